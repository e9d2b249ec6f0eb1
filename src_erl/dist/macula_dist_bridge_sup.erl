%% @doc One bridge for each link.
-module(macula_dist_bridge_sup).

-behaviour(supervisor).

-export([start_link/0, start_bridge/2]).
-export([init/1]).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    case supervisor:start_link({local, ?MODULE}, ?MODULE, []) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Takes the link over on behalf of the ticker.
-spec start_bridge(macula_nif:link(), Ticker :: pid()) -> {ok, pid()} | {error, term()}.
start_bridge(Link, Ticker) ->
    case supervisor:start_child(?MODULE, [Link, Ticker]) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    %% A broken link is never restarted: net_kernel makes a new one.
    Bridge = #{id => macula_dist_bridge,
               start => {macula_dist_bridge, start_link, []},
               restart => temporary,
               shutdown => 1000,
               modules => [macula_dist_bridge]},
    {ok, {#{strategy => simple_one_for_one, intensity => 0, period => 1}, [Bridge]}}.
