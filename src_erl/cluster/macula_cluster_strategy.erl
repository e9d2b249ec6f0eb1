%% @doc Keeps one strategy running, whatever happens to it, and tells a
%% callback module of the nodes of its topology.
%%
%% A strategy that crashes is started again here, for ever and with growing
%% pauses, instead of by a supervisor: that gives up after a few crashes, and
%% then ends everything above it, at last the VM.
-module(macula_cluster_strategy).

-behaviour(gen_server).

-export([start_link/1, start_link/2, stop/1, list_connected/1, leave/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(FIRST_PAUSE_MS, 500).
-define(MAX_PAUSE_MS, 30_000).
%% Running for so long, a strategy is taken for healthy.
-define(HEALTHY_MS, 60_000).

-record(state, {strategy :: macula_cluster_options:strategy(),
                config :: macula_cluster_options:config(),
                running :: undefined | pid(),
                started = 0 :: integer(),
                crashes = 0 :: non_neg_integer(),
                callback = none :: none | pid(),
                connected = [] :: [node()]}).

-type state() :: #state{}.

%% @doc Options: `topology', any term that names it; `config', the options of
%% `macula_cluster:start_cluster/1'; `callback_module', whose
%% handle_event(Topology, {nodeup | nodedown | connected | disconnected, Node})
%% is called: nodeup and nodedown for any node, the others for those of this
%% topology.
-spec start_link(macula_cluster_options:given()) -> {ok, pid()} | {error, term()}.
start_link(Options) ->
    with_options(Options, fun(Args) -> gen_server:start_link(?MODULE, Args, []) end).

%% @doc The same, registered under a name.
-spec start_link(atom(), macula_cluster_options:given()) -> {ok, pid()} | {error, term()}.
start_link(Name, Options) ->
    with_options(Options, fun(Args) -> gen_server:start_link({local, Name}, ?MODULE, Args, []) end).

with_options(Options, Start) ->
    case macula_cluster_options:read(Options, macula_cluster_options:keys(strategy)) of
        {ok, #{config := Given} = Args} -> with_config(Given, Args, Start);
        {error, _} = Error -> Error
    end.

with_config(Given, Args, Start) ->
    case macula_cluster_options:read(Given, macula_cluster_options:keys(macula_cluster)) of
        {ok, Config} -> started(Start(Args#{config => Config}));
        {error, _} = Error -> Error
    end.

started({ok, Pid}) -> {ok, Pid};
started({error, Reason}) -> {error, Reason}.

-spec stop(gen_server:server_ref()) -> ok.
stop(Server) ->
    gen_server:stop(Server).

%% @doc Stops because this node goes: its peers hear of it, and do not call it back.
-spec leave(gen_server:server_ref()) -> ok.
leave(Server) ->
    gen_server:stop(Server, {shutdown, leave}, infinity).

%% @doc The nodes of this topology that are connected.
-spec list_connected(gen_server:server_ref()) -> [node()].
list_connected(Server) ->
    gen_server:call(Server, list_connected).

-spec init(map()) -> {ok, state()} | {stop, term()}.
init(#{topology := Topology, callback_module := Module, config := Config}) ->
    process_flag(trap_exit, true),
    #{strategy := Strategy, callback := Callback} = Config,
    %% Its own, since it outlives the strategy and so tells each change once.
    _ = macula_cluster_callback:start_link(Callback),
    State = #state{strategy = Strategy, config = Config#{callback => none, watcher => self()},
                   callback = topology_callback(Topology, Module)},
    case start_strategy(State) of
        {ok, Running} -> {ok, Running};
        {error, Reason} -> {stop, Reason}
    end.

topology_callback(_, none) ->
    none;
topology_callback(Topology, Module) ->
    {ok, Pid} = macula_cluster_callback:start_link({topology, Module, Topology}),
    Pid.

start_strategy(#state{strategy = Strategy, config = Config} = State) ->
    Options = maps:with(macula_cluster_options:keys(Strategy), Config),
    case (module(Strategy)):start_link(Options) of
        {ok, Pid} -> {ok, State#state{running = Pid, started = now_ms()}};
        {error, Reason} -> {error, Reason}
    end.

module(gossip) -> macula_cluster_gossip;
module(static) -> macula_cluster_static;
module(mdns) -> macula_cluster_mdns.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call(list_connected, _, #state{connected = Connected} = State) ->
    {reply, Connected, State};
handle_call(_, _, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({macula_cluster_members, connected, Node}, #state{connected = Connected} = State) ->
    case lists:member(Node, Connected) of
        true -> {noreply, State};
        false -> {noreply, tell(connected, Node, State#state{connected = [Node | Connected]})}
    end;
handle_info({macula_cluster_members, disconnected, Node}, #state{connected = Connected} = State) ->
    case lists:delete(Node, Connected) of
        Connected -> {noreply, State};
        Left -> {noreply, tell(disconnected, Node, State#state{connected = Left})}
    end;
handle_info({'EXIT', Running, Reason}, #state{running = Running} = State) ->
    {noreply, start_later(Reason, State#state{running = undefined})};
handle_info(start_again, #state{running = undefined} = State) ->
    case start_strategy(State) of
        {ok, Running} -> {noreply, Running};
        {error, Reason} -> {noreply, start_later(Reason, State)}
    end;
handle_info(_, State) ->
    {noreply, State}.

-spec terminate(term(), state()) -> ok.
terminate(_, #state{running = undefined}) ->
    ok;
terminate(Reason, #state{running = Running}) ->
    try
        gen_server:stop(Running, shutdown_reason(Reason), infinity)
    catch
        exit:_ -> ok
    end.

shutdown_reason({shutdown, leave} = Leave) -> Leave;
shutdown_reason(_) -> shutdown.

start_later(Reason, #state{strategy = Strategy, started = Started, crashes = Before} = State) ->
    Crashes = case now_ms() - Started > ?HEALTHY_MS of
                  true -> 1;
                  false -> Before + 1
              end,
    Pause = min(?MAX_PAUSE_MS, ?FIRST_PAUSE_MS bsl min(Crashes - 1, 10)),
    macula_cluster_log:warning(#{event => strategy_failed, strategy => Strategy, reason => Reason,
                                 again_ms => Pause}),
    erlang:send_after(Pause, self(), start_again),
    State#state{crashes = Crashes}.

tell(_, _, #state{callback = none} = State) ->
    State;
tell(Event, Node, #state{callback = Callback} = State) ->
    macula_cluster_callback:tell(Callback, Event, Node),
    State.

now_ms() ->
    erlang:monotonic_time(millisecond).
