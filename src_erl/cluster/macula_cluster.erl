%% @doc Clusters on a LAN: nodes that find each other, connect and stay
%% connected, over macula or over any other carrier. In a supervision tree:
%%
%%   {macula_cluster, strategy: :gossip}        in Elixir
%%   macula_cluster:child_spec(#{})             in Erlang
%%
%% or with `start_cluster/1', below macula's own supervisor.
-module(macula_cluster).

-export([start_cluster/0, start_cluster/1, stop_cluster/0, leave/0, child_spec/1, start_link/1]).
-export([is_clustered/0, nodes/0, get_hostname/0, is_distributed/0, ensure_distributed/0]).
-export([get_cookie/0, set_cookie/1, set_cookie/2, resolve_cookie/0, read_cookie_file/0,
         cookie_file_path/0]).
-export([monitor_nodes/0, unmonitor_nodes/0]).

-export_type([error/0]).

-type error() :: {gossip_strategy_failed, term()}
               | {static_strategy_failed, term()}
               | {discovery_strategy_failed, term()}
               | {distribution_failed, term()}
               | {application_failed, term()}
               | macula_cluster_options:bad_option().

%% The one that this module starts, whoever supervises it.
-define(STRATEGY, macula_cluster_strategy).

%% @doc Options by default, or from the environment.
-spec start_cluster() -> ok | {error, error()}.
start_cluster() ->
    start_cluster(#{}).

%% @doc Starts clustering below macula's own supervisor, where it outlives the
%% caller. For the options see docs/configuration.md. While clustering runs,
%% another call changes nothing.
-spec start_cluster(macula_cluster_options:given()) -> ok | {error, error()}.
start_cluster(Options) ->
    case options(Options) of
        {ok, Config} -> start(Config, whereis(?STRATEGY));
        {error, _} = Error -> Error
    end.

start(_, Running) when is_pid(Running) ->
    ok;
start(Config, undefined) ->
    case start_application() of
        ok -> start_below_system(Config);
        {error, _} = Error -> Error
    end.

start_application() ->
    case application:ensure_all_started(macula) of
        {ok, _} -> ok;
        {error, Reason} -> {error, {application_failed, Reason}}
    end.

start_below_system(Config) ->
    case macula_dist_system:start_cluster(Config) of
        {ok, _} -> ok;
        {error, {already_started, _}} -> ok;
        {error, _} = Error -> Error
    end.

%% @doc Stops clustering. Connections stay.
-spec stop_cluster() -> ok.
stop_cluster() ->
    stop_with(fun macula_cluster_strategy:stop/1).

%% @doc Says goodbye, stops clustering and disconnects: the others do not call
%% this node back. An orderly stop of the VM does the same by itself.
-spec leave() -> ok.
leave() ->
    ok = stop_with(fun macula_cluster_strategy:leave/1),
    disconnect_in_order(),
    lists:foreach(fun erlang:disconnect_node/1, erlang:nodes()).

%% Disconnected one by one, those that still see us and those that do not
%% would disconnect from each other (kernel's prevent_overlapping_partitions).
disconnect_in_order() ->
    case erlang:function_exported(global, disconnect, 0) of
        true -> _ = global:disconnect(), ok;
        false -> ok
    end.

stop_with(Stop) ->
    try
        Stop(?STRATEGY)
    catch
        exit:noproc -> ok;
        exit:{noproc, _} -> ok
    end,
    macula_dist_system:forget_cluster().

%% @doc For a supervisor; options as a map or a keyword list.
-spec child_spec(macula_cluster_options:given()) -> supervisor:child_spec().
child_spec(Options) ->
    #{id => ?MODULE, start => {?MODULE, start_link, [macula_cluster_options:hide(Options)]},
      restart => transient, shutdown => 10_000, type => worker}.

%% @doc As `start_cluster/1', linked to the caller, a supervisor.
-spec start_link(macula_cluster_options:given()) -> {ok, pid()} | {error, error() | term()}.
start_link(Options) ->
    case options(Options) of
        {ok, Config} -> start_link_checked(Config, ensure_distributed());
        {error, _} = Error -> Error
    end.

start_link_checked(_, {error, _} = Error) ->
    Error;
start_link_checked(#{strategy := Strategy} = Config, ok) ->
    case macula_cluster_strategy:start_link(?STRATEGY, #{topology => ?MODULE, config => Config}) of
        {ok, Pid} -> {ok, Pid};
        {error, {already_started, _}} = Error -> Error;
        {error, Reason} -> {error, {failure(Strategy), Reason}}
    end.

failure(gossip) -> gossip_strategy_failed;
failure(static) -> static_strategy_failed;
failure(mdns) -> discovery_strategy_failed.

%% The environment is read once, here: only what was resolved goes on.
options(Options) ->
    macula_cluster_options:read(Options, macula_cluster_options:keys(?MODULE)).

%% @doc Whether this node is connected to another one.
-spec is_clustered() -> boolean().
is_clustered() ->
    erlang:nodes() =/= [].

%% @doc The other nodes.
-spec nodes() -> [node()].
nodes() ->
    erlang:nodes().

%% @doc This host's name, as it stands in the names of nodes.
-spec get_hostname() -> string().
get_hostname() ->
    macula_distribution:hostname().

-spec is_distributed() -> boolean().
is_distributed() ->
    is_alive().

%% @doc See `macula:ensure_distributed/0'.
-spec ensure_distributed() -> ok | {error, {distribution_failed, term()}}.
ensure_distributed() ->
    macula_distribution:ensure().

%% @doc See `macula:get_cookie/0'.
-spec get_cookie() -> atom().
get_cookie() ->
    macula_cookie:get().

%% @doc See `macula:set_cookie/1'.
-spec set_cookie(macula_cookie:cookie()) -> ok | {error, term()}.
set_cookie(Cookie) ->
    macula_cookie:set(Cookie).

%% @doc See `macula:set_cookie/2'.
-spec set_cookie(node(), macula_cookie:cookie()) -> ok | {error, term()}.
set_cookie(Node, Cookie) ->
    macula_cookie:set(Node, Cookie).

%% @doc The cookie by configuration, without making one.
-spec resolve_cookie() -> {ok, atom()} | {error, not_found}.
resolve_cookie() ->
    macula_cookie:resolve().

-spec read_cookie_file() -> {ok, atom()} | {error, macula_cookie:file_error()}.
read_cookie_file() ->
    macula_cookie:read_file().

-spec cookie_file_path() -> file:filename().
cookie_file_path() ->
    macula_cookie:file_path().

%% @doc From now on the caller gets {nodeup, Node} and {nodedown, Node}.
-spec monitor_nodes() -> ok.
monitor_nodes() ->
    ok = net_kernel:monitor_nodes(true).

%% @doc Takes one `monitor_nodes/0' back.
-spec unmonitor_nodes() -> ok.
unmonitor_nodes() ->
    ok = net_kernel:monitor_nodes(false).
