%% @doc Tells a user's callback of nodes that come and go, once per change and
%% in order. A process of its own, so that a slow callback holds up no
%% strategy, and one that fails ends nothing.
-module(macula_cluster_callback).

-behaviour(gen_server).

-export([start_link/1, tell/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([callback/0, event/0]).

%% A pid gets {macula_cluster, nodeup | nodedown, Node}. {M, F} is called as
%% M:F(nodeup | nodedown, Node), {topology, M, T} as M:handle_event(T, {Event, Node}).
-type callback() :: none | pid() | {module(), atom()} | {topology, module(), term()}.
-type event() :: nodeup | nodedown | connected | disconnected.

%% @doc Linked to the caller; nothing to start for `none'.
-spec start_link(callback()) -> {ok, pid()} | ignore.
start_link(none) ->
    ignore;
start_link(Callback) ->
    {ok, _} = gen_server:start_link(?MODULE, Callback, []).

%% @doc An event that is not the kernel's own.
-spec tell(pid(), event(), node()) -> ok.
tell(Pid, Event, Node) ->
    gen_server:cast(Pid, {Event, Node}).

-record(state, {callback :: callback(),
                up :: [node()]}).

-type state() :: #state{}.

-spec init(callback()) -> {ok, state()}.
init(Callback) ->
    ok = net_kernel:monitor_nodes(true),
    {ok, #state{callback = Callback, up = nodes()}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, {error, unknown_call}, state()}.
handle_call(_, _, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast({event(), node()}, state()) -> {noreply, state()}.
handle_cast({Event, Node}, #state{callback = Callback} = State) ->
    call(Callback, Event, Node),
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({Event, Node}, State) when Event =:= nodeup; Event =:= nodedown ->
    {noreply, change(Event, Node, lists:member(Node, State#state.up), State)};
handle_info(_, State) ->
    {noreply, State}.

%% When distribution starts and stops, the kernel tells of our own node as well.
change(nodeup, Node, false, #state{callback = Callback, up = Up} = State) when Node =/= node() ->
    call(Callback, nodeup, Node),
    State#state{up = [Node | Up]};
change(nodedown, Node, true, #state{callback = Callback, up = Up} = State) ->
    call(Callback, nodedown, Node),
    State#state{up = lists:delete(Node, Up)};
change(_, _, _, State) ->
    State.

call(Pid, Event, Node) when is_pid(Pid) ->
    Pid ! {macula_cluster, Event, Node};
call({Module, Function}, Event, Node) ->
    safely(Module, Function, [Event, Node]);
call({topology, Module, Topology}, Event, Node) ->
    safely(Module, handle_event, [Topology, {Event, Node}]).

safely(Module, Function, Args) ->
    try
        apply(Module, Function, Args)
    catch
        Class:Reason:Stack ->
            macula_cluster_log:warning(#{event => callback_failed,
                                         reason => {Class, Reason, Stack}})
    end.
