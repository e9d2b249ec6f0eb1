%% @doc The strategy `static': stays connected to the nodes of a list.
-module(macula_cluster_static).

-behaviour(gen_server).

-export([start_link/0, start_link/1, stop/0, stop/1, get_nodes/0, get_nodes/1,
         get_connected/0, get_connected/1, add_node/1, add_node/2, remove_node/1, remove_node/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-type server() :: gen_server:server_ref().
-type name() :: node() | string() | binary().
-type state() :: macula_cluster_members:members().

%% @doc Nodes from the environment variable CLUSTER_NODES.
-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    start_link(#{}).

%% @doc Options: nodes, reconnect_interval, callback; see docs/configuration.md.
-spec start_link(macula_cluster_options:given()) -> {ok, pid()} | {error, term()}.
start_link(Options) ->
    macula_cluster_members:start_link(?MODULE, static, Options).

-spec stop() -> ok.
stop() ->
    stop(?MODULE).

-spec stop(server()) -> ok.
stop(Server) ->
    gen_server:stop(Server).

%% @doc All nodes of the list.
-spec get_nodes() -> [node()].
get_nodes() ->
    get_nodes(?MODULE).

-spec get_nodes(server()) -> [node()].
get_nodes(Server) ->
    gen_server:call(Server, get_nodes).

%% @doc Those of them that are connected.
-spec get_connected() -> [node()].
get_connected() ->
    get_connected(?MODULE).

-spec get_connected(server()) -> [node()].
get_connected(Server) ->
    gen_server:call(Server, get_connected).

%% @doc Puts a node on the list; it is called at once.
-spec add_node(name()) -> ok | {error, macula_cluster_options:bad_option()}.
add_node(Node) ->
    add_node(?MODULE, Node).

-spec add_node(server(), name()) -> ok | {error, macula_cluster_options:bad_option()}.
add_node(Server, Name) ->
    with_node(Name, fun(Node) -> gen_server:call(Server, {add_node, Node}) end).

%% @doc Takes a node off the list and disconnects it.
-spec remove_node(name()) -> ok | {error, macula_cluster_options:bad_option()}.
remove_node(Node) ->
    remove_node(?MODULE, Node).

-spec remove_node(server(), name()) -> ok | {error, macula_cluster_options:bad_option()}.
remove_node(Server, Name) ->
    with_node(Name, fun(Node) -> gen_server:call(Server, {remove_node, Node}) end).

with_node(Name, Fun) ->
    case macula_cluster_options:read(#{nodes => [Name]}, [nodes]) of
        {ok, #{nodes := [Node]}} -> Fun(Node);
        {error, _} = Error -> Error
    end.

-spec init(macula_cluster_options:config()) -> {ok, state()}.
init(#{nodes := Nodes, reconnect_interval := Interval, callback := Callback, watcher := Watcher}) ->
    process_flag(trap_exit, true),
    _ = macula_cluster_callback:start_link(Callback),
    Members = macula_cluster_members:new({configured, Interval}, Watcher),
    {ok, lists:foldl(fun macula_cluster_members:keep/2, Members, Nodes)}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call(get_nodes, _, Members) ->
    {reply, macula_cluster_members:peers(Members), Members};
handle_call(get_connected, _, Members) ->
    {reply, macula_cluster_members:connected(Members), Members};
handle_call({add_node, Node}, _, Members) ->
    {reply, ok, macula_cluster_members:keep(Node, Members)};
handle_call({remove_node, Node}, _, Members) ->
    %% Not in here: it waits for the connection's processes.
    _ = spawn(fun() -> erlang:disconnect_node(Node) end),
    {reply, ok, macula_cluster_members:forget(Node, Members)};
handle_call(_, _, Members) ->
    {reply, {error, unknown_call}, Members}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, Members) ->
    {noreply, Members}.

-spec handle_info(term(), state()) -> {noreply, state()} | {stop, term(), state()}.
handle_info({'EXIT', _, Reason}, Members) when Reason =/= normal ->
    {stop, Reason, Members};
handle_info(Message, Members) ->
    case macula_cluster_members:handle(Message, Members) of
        {ok, New} -> {noreply, New};
        not_mine -> {noreply, Members}
    end.

-spec terminate(term(), state()) -> ok.
terminate(Reason, _) ->
    macula_cluster_members:goodbye(Reason).
