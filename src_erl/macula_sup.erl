%% @doc Top supervisor of the macula application.
-module(macula_sup).

-behaviour(supervisor).

-export([start_link/0]).
-export([init/1]).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    case supervisor:start_link({local, ?MODULE}, ?MODULE, []) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    System = #{id => macula_dist_system,
               start => {macula_dist_system, start_link, []},
               type => supervisor},
    {ok, {#{strategy => one_for_one}, [System | macula_relay:configured()]}}.
