%% @doc What finds and keeps nodes: discovery, and the cluster's strategy when
%% there is one. Under `macula_sup', apart from the carrier: nothing that
%% fails here takes distribution with it.
-module(macula_dist_system).

-behaviour(supervisor).

-export([start_link/0, start_link/1, start_cluster/1, forget_cluster/0]).
-export([init/1]).

%% With the cluster that the application's environment asks for.
-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    case application:get_env(macula, cluster) of
        {ok, Options} -> start_link(#{cluster => Options});
        undefined -> start_link(#{})
    end.

%% @doc Options: `cluster', the options of `macula_cluster:start_cluster/1'.
-spec start_link(#{cluster => macula_cluster_options:given()}) -> {ok, pid()} | {error, term()}.
start_link(Options) ->
    case supervisor:start_link({local, ?MODULE}, ?MODULE, Options) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Starts the cluster's strategy here.
-spec start_cluster(macula_cluster_options:given()) -> {ok, pid()} | {error, term()}.
start_cluster(Options) ->
    ok = forget_cluster(),
    case supervisor:start_child(?MODULE, cluster(Options)) of
        {ok, Pid} -> {ok, Pid};
        {error, {already_started, _} = Running} -> {error, Running};
        {error, {Reason, _Child}} -> {error, Reason};
        {error, Reason} -> {error, Reason}
    end.

%% @doc A strategy that has stopped starts no more.
-spec forget_cluster() -> ok.
forget_cluster() ->
    try
        _ = supervisor:delete_child(?MODULE, macula_cluster_strategy),
        ok
    catch
        exit:_ -> ok
    end.

-spec init(map()) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(Options) ->
    Discovery = #{id => macula_dist_discovery, start => {macula_dist_discovery, start_link, []}},
    Cluster = [cluster(Given) || #{cluster := Given} <- [Options]],
    {ok, {#{strategy => one_for_one, intensity => 10, period => 60}, [Discovery | Cluster]}}.

cluster(Options) ->
    (macula_cluster:child_spec(Options))#{id => macula_cluster_strategy}.
