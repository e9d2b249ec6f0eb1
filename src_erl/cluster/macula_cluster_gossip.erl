%% @doc The strategy `gossip': says on the LAN that this node is here, and
%% connects to those of which it hears. What is said is in
%% `macula_gossip_packet', how it gets out and in, in `macula_gossip_socket'.
-module(macula_cluster_gossip).

-behaviour(gen_server).

-export([start_link/0, start_link/1, stop/0, stop/1, get_discovered/0, get_discovered/1,
         get_connected/0, get_connected/1, broadcast_now/0, broadcast_now/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-type server() :: gen_server:server_ref().

%% The first announcements come faster, so that one lost one costs little.
-define(EARLY_MS, [200, 600]).
%% Not heard of for so many intervals, a node that is not connected is lost.
-define(MISSED, 10).
%% What announcements of anyone may make us hold.
-define(MAX_SEEN, 1_000).

-record(state, {socket :: pid(),
                trust :: authentic | open,
                interval :: pos_integer(),
                members :: macula_cluster_members:members(),
                %% Where a node was last told to discovery to be, and when it was heard.
                seen = #{} :: #{node() => {[macula_nif:address()], Heard :: integer()}},
                names :: macula_cluster_names:names()}).

-type state() :: #state{}.

%% @doc All by default, or from the environment.
-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    start_link(#{}).

%% @doc For the options see docs/configuration.md.
-spec start_link(macula_cluster_options:given()) -> {ok, pid()} | {error, term()}.
start_link(Options) ->
    macula_cluster_members:start_link(?MODULE, gossip, Options).

-spec stop() -> ok.
stop() ->
    stop(?MODULE).

-spec stop(server()) -> ok.
stop(Server) ->
    gen_server:stop(Server).

%% @doc The nodes that are here, as far as was heard.
-spec get_discovered() -> [node()].
get_discovered() ->
    get_discovered(?MODULE).

-spec get_discovered(server()) -> [node()].
get_discovered(Server) ->
    gen_server:call(Server, get_discovered).

%% @doc Those of them that are connected.
-spec get_connected() -> [node()].
get_connected() ->
    get_connected(?MODULE).

-spec get_connected(server()) -> [node()].
get_connected(Server) ->
    gen_server:call(Server, get_connected).

%% @doc Says now that this node is here.
-spec broadcast_now() -> ok.
broadcast_now() ->
    broadcast_now(?MODULE).

-spec broadcast_now(server()) -> ok.
broadcast_now(Server) ->
    gen_server:cast(Server, broadcast_now).

-spec init(macula_cluster_options:config()) -> {ok, state()} | {stop, term()}.
init(Config) ->
    process_flag(trap_exit, true),
    case macula_gossip_socket:start_link(Config) of
        {ok, Socket} ->
            #{secret := Secret, callback := Callback, watcher := Watcher,
              broadcast_interval := Interval} = Config,
            _ = macula_cluster_callback:start_link(Callback),
            Trust = trust(Secret),
            ok = macula_gossip_socket:announce(Socket),
            _ = [erlang:send_after(Ms, self(), early) || Ms <- ?EARLY_MS],
            later(Interval),
            {ok, #state{socket = Socket, trust = Trust, interval = Interval,
                        names = macula_cluster_names:new(Trust),
                        members = macula_cluster_members:new(Trust, Watcher)}};
        {error, Reason} ->
            {stop, Reason}
    end.

trust(none) -> open;
trust(_) -> authentic.

%% Not all nodes at the same moment, and not always the same two together.
later(Interval) ->
    erlang:send_after(Interval - rand:uniform(max(1, Interval div 10)), self(), announce).

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call(get_discovered, _, #state{members = Members} = State) ->
    {reply, macula_cluster_members:peers(Members), State};
handle_call(get_connected, _, #state{members = Members} = State) ->
    {reply, macula_cluster_members:connected(Members), State};
handle_call(_, _, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(broadcast_now, #state{socket = Socket} = State) ->
    ok = macula_gossip_socket:announce(Socket),
    {noreply, State};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()} | {stop, term(), state()}.
handle_info({macula_gossip, Announcement, Addresses}, State) ->
    {noreply, heard(Announcement, Addresses, State)};
handle_info(announce, #state{socket = Socket, interval = Interval} = State) ->
    ok = macula_gossip_socket:announce(Socket),
    later(Interval),
    {noreply, lose_silent(State)};
handle_info(early, #state{socket = Socket} = State) ->
    ok = macula_gossip_socket:announce(Socket),
    {noreply, State};
handle_info({'EXIT', _, Reason}, State) when Reason =/= normal ->
    {stop, Reason, State};
handle_info({macula_gossip_known, Known}, State) ->
    HeardOf = fun({Node, Addresses}, S) -> heard_of(hello, Node, Addresses, S) end,
    {noreply, lists:foldl(HeardOf, State, Known)};
handle_info(Message, #state{members = Members} = State) ->
    case macula_cluster_members:handle(Message, Members) of
        {ok, New} -> {noreply, tell_newcomer(Message, State#state{members = New})};
        not_mine -> {noreply, State}
    end.

%% Whoever reaches one of us need not hear all of us: where only seeds are
%% spoken to, or the network swallows some, we tell him of the others.
tell_newcomer({nodeup, Node}, #state{seen = Seen, members = Members} = State) ->
    Known = [{Other, element(1, maps:get(Other, Seen, {[], 0}))}
             || Other <- macula_cluster_members:connected(Members), Other =/= Node],
    _ = erlang:send({?MODULE, Node}, {macula_gossip_known, Known}, [noconnect, nosuspend]),
    State;
tell_newcomer(_, State) ->
    State.

-spec terminate(term(), state()) -> ok.
terminate(Reason, #state{socket = Socket, seen = Seen}) ->
    lists:foreach(fun macula_dist_discovery:unregister_node/1, maps:keys(Seen)),
    _ = macula_cluster_members:is_leaving(Reason) andalso macula_gossip_socket:goodbye(Socket),
    macula_cluster_members:goodbye(Reason).

heard(#{name := Name, kind := Kind}, Addresses, State) ->
    case macula_cluster_names:to_node(Name, State#state.names) of
        {too_many, Names} -> State#state{names = Names};
        {Node, Names} -> heard_of(Kind, Node, Addresses, State#state{names = Names})
    end.

heard_of(_, Node, _, State) when Node =:= node() ->
    State;
heard_of(hello, Node, _, #state{trust = open, seen = Seen} = State)
  when map_size(Seen) >= ?MAX_SEEN, not is_map_key(Node, Seen) ->
    State;
heard_of(hello, Node, Addresses, #state{members = Members} = State) ->
    %% Where it is must be known before it is called.
    Known = seen(Node, Addresses, State),
    Known#state{members = macula_cluster_members:heard(Node, Members)};
heard_of(bye, Node, _, #state{members = Members} = State) ->
    lose(Node, State#state{members = macula_cluster_members:bye(Node, Members)}).

%% Plain announcements name no address, and take none away.
seen(Node, [], #state{seen = Seen} = State) ->
    {Addresses, _} = maps:get(Node, Seen, {[], 0}),
    State#state{seen = Seen#{Node => {Addresses, now_ms()}}};
seen(Node, Addresses, #state{seen = Seen} = State) ->
    case Seen of
        #{Node := {Addresses, _}} -> ok;
        _ -> macula_dist_discovery:register_node(Node, Addresses)
    end,
    State#state{seen = Seen#{Node => {Addresses, now_ms()}}}.

%% A connected node is here, whatever is heard of it.
lose_silent(#state{seen = Seen, interval = Interval, members = Members} = State) ->
    Limit = now_ms() - ?MISSED * Interval,
    Silent = [Node || {Node, {_, Heard}} <- maps:to_list(Seen), Heard < Limit],
    lists:foldl(fun lose/2, State, Silent -- macula_cluster_members:connected(Members)).

lose(Node, #state{seen = Seen} = State) ->
    macula_dist_discovery:unregister_node(Node),
    State#state{seen = maps:remove(Node, Seen)}.

now_ms() ->
    erlang:monotonic_time(millisecond).
