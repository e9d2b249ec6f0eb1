%% @doc The distribution controller of one link: takes frames from the
%% emulator while the link has room, and lives and dies with the connection.
%%
%% A plain special process and not a gen_server: between two batches it must
%% look into its mailbox without waiting there, which is one `after 0' here,
%% and it answers no calls on the busy path.
-module(macula_dist_bridge).

-export([start_link/2, established/3]).
-export([init/3]).
-export([system_continue/3, system_terminate/4, system_code_change/4, system_get_state/1,
         system_replace_state/2]).

-include("macula_hops.hrl").

%% What one native call takes: it runs on a normal scheduler, so well under 1 ms.
%% One fragment of the emulator; with four times that, one call of 58 000 took 1.1 ms.
-define(BATCH_BYTES, 65_536).
-define(BATCH_FRAMES, 64).
%% More than a batch of fragments ever has. Only what was sent before the nodes
%% were connected comes uncut, as one frame of any size; one of a million small
%% binaries took 36 ms.
-define(LARGE_BYTES, 3 * ?BATCH_BYTES).

%% See macula_dist_input.
-define(COLLECT_BYTES, 1_048_576).

%% How long the input side may take to deliver what came before the end.
-define(FINISH_TIMEOUT, 5_000).

%% handshake: OTP's handshake runs, the ticker reads and writes.
%% idle:      the emulator has nothing; it will tell us (dist_data).
%% draining:  the emulator has more, and the link has room.
%% blocked:   the link has no room; it will tell us (writable).
%% closing:   the link is gone; what was received is being delivered.
-type phase() :: handshake | idle | draining | blocked | closing.

-record(state, {parent :: pid(),
                ticker :: pid(),
                link :: macula_nif:link(),
                id :: macula_nif:link_id(),
                phase = handshake :: phase(),
                dhandle :: erlang:dist_handle() | undefined,
                input :: pid() | undefined,
                since = 0 :: non_neg_integer(),
                injects :: boolean(),
                waiting = [] :: [injection()]}).

%% A frame that some process of this node made itself, and waits to see sent. OTP's own test suites
%% do that with any controller that is a process. Obeyed with the flag below only: a peer may be
%% handed anything so.
-type injection() :: {send, pid(), reference(), iodata()}.

-define(INJECT_FLAG, macula_dist_inject).

%% @doc Started under macula_dist_bridge_sup; owns the link from then on.
%%
%% Priority high: over TCP the emulator writes outside the run queues, so at
%% normal priority all distribution of a busy node would queue behind its
%% ordinary work. It cannot starve them: it has work only as long as they
%% produce it. The queue stays on the heap: a handful of small messages.
-spec start_link(macula_nif:link(), Ticker :: pid()) -> {ok, pid()} | {error, term()}.
start_link(Link, Ticker) ->
    proc_lib:start_link(?MODULE, init, [self(), Link, Ticker], infinity,
                        [{priority, high}, {fullsweep_after, 0}]).

%% @doc The connection is up: from now on the emulator's data flows. Called by
%% the ticker. A monitor and not the link: the bridge of a link that closed
%% during the handshake lets go of its ticker.
-spec established(pid(), node(), erlang:dist_handle()) -> ok.
established(Bridge, Node, DHandle) ->
    Ref = monitor(process, Bridge),
    Bridge ! {established, {self(), Ref}, Node, DHandle},
    receive
        {Ref, ok} ->
            true = demonitor(Ref, [flush]),
            ok;
        {'DOWN', Ref, process, _, _} ->
            exit(connection_closed)
    end.

-spec init(pid(), macula_nif:link(), pid()) -> no_return().
init(Parent, Link, Ticker) ->
    %% To close the link with its reason, and to leave in silence.
    process_flag(trap_exit, true),
    link(Ticker),
    ok = macula_nif:link_own(Link, self()),
    proc_lib:init_ack(Parent, {ok, self()}),
    loop(#state{parent = Parent, ticker = Ticker, link = Link,
                id = macula_nif:link_id(Link),
                injects = init:get_argument(?INJECT_FLAG) =/= error}).

loop(#state{phase = draining} = State) ->
    receive
        Message -> handle(Message, State)
    after 0 ->
        drain(State)
    end;
loop(State) ->
    receive
        Message -> handle(Message, State)
    end.

handle(dist_data, #state{phase = idle} = State) ->
    ?HOP(bridge_woken),
    loop(State#state{phase = draining});
handle({macula_link, Id, writable}, #state{id = Id, phase = blocked} = State) ->
    loop(resume(State#state{phase = draining}));
handle({macula_link, Id, {resume, Processes}}, #state{id = Id} = State) ->
    ok = macula_dist_brake:resume(Processes),
    loop(State);
handle({macula_link, Id, {closed, _}}, #state{id = Id, phase = handshake} = State) ->
    %% Not the ticker's end: it may have been told to wait for net_kernel to
    %% put the peer's own connection in its place. If it is reading, it knows.
    unlink(State#state.ticker),
    leave(connection_closed, State);
handle({established, {Ticker, Ref}, Node, DHandle}, #state{ticker = Ticker} = State) ->
    NewState = establish(Node, DHandle, State),
    Ticker ! {Ref, ok},
    loop(NewState);
handle({send, _, _, _} = Injection, #state{injects = true} = State) ->
    inject(Injection, State);
handle(finish_timeout, State) ->
    leave(connection_closed, State);
handle({'EXIT', Parent, Reason}, #state{parent = Parent} = State) ->
    close(State),
    exit(Reason);
handle({'EXIT', _, normal}, State) ->
    loop(State);
handle({'EXIT', _, Reason}, State) ->
    leave(Reason, State);
handle({system, From, Request}, #state{parent = Parent} = State) ->
    sys:handle_system_msg(Request, From, Parent, ?MODULE, [], State);
handle(_, State) ->
    loop(State).

establish(Node, DHandle, #state{link = Link} = State) ->
    Input = macula_dist_input:start_link(Link, DHandle),
    try
        ok = erlang:dist_ctrl_input_handler(DHandle, Input),
        _ = erlang:dist_ctrl_set_opt(DHandle, get_size, true),
        ok = macula_nif:link_established(Link, atom_to_binary(Node, utf8), Input),
        ok = erlang:dist_ctrl_get_data_notification(DHandle)
    catch
        %% Disconnected before it was fully up.
        error:badarg -> leave(connection_closed, State)
    end,
    State#state{phase = idle, dhandle = DHandle, input = Input}.

%% One batch. Nothing is taken from the emulator that the link has no room
%% for: its own queue is what makes senders wait (busy_dist_port).
drain(#state{dhandle = DHandle, link = Link} = State) ->
    case take(DHandle, 0, 0, []) of
        gone ->
            loop(finish(State));
        {More, Bytes, Frames} ->
            drained(send(Link, Bytes, Frames), More, State#state{since = State#state.since + Bytes})
    end.

drained({Sent, Processes}, More, State) when is_list(Processes) ->
    ok = macula_dist_brake:suspend(Processes),
    drained(Sent, More, State);
drained(ok, more, State) -> loop(State);
drained(ok, none, State) -> loop(idle(State));
drained(wait, _, State) -> loop(State#state{phase = blocked});
drained({error, closed}, _, State) -> loop(finish(State)).

send(_, _, []) -> ok;
send(Link, Bytes, Frames) when Bytes > ?LARGE_BYTES -> macula_nif:link_send_large(Link, Frames);
send(Link, _, Frames) -> macula_nif:link_send(Link, Frames).

%% Answered when the link has taken the frame, so that whoever sends many of them
%% comes to wait as a sender of messages would.
inject(Injection, #state{phase = blocked, waiting = Waiting} = State) ->
    loop(State#state{waiting = [Injection | Waiting]});
inject({send, From, Ref, Data}, #state{phase = Phase, link = Link} = State)
  when Phase =:= idle; Phase =:= draining ->
    Size = iolist_size(Data),
    Sent = send(Link, Size, [{Size, erlang:iolist_to_iovec(Data)}]),
    From ! {Ref, ok},
    drained(Sent, more, State);
inject({send, From, Ref, _}, State) ->
    From ! {Ref, {error, closed}},
    loop(State).

resume(#state{waiting = Waiting} = State) ->
    lists:foreach(fun(Injection) -> self() ! Injection end, lists:reverse(Waiting)),
    State#state{waiting = []}.

take(_, Count, Bytes, Frames) when Count >= ?BATCH_FRAMES; Bytes >= ?BATCH_BYTES ->
    {more, Bytes, lists:reverse(Frames)};
take(DHandle, Count, Bytes, Frames) ->
    case get_data(DHandle) of
        none -> {none, Bytes, lists:reverse(Frames)};
        gone -> gone;
        {Size, _} = Frame -> take(DHandle, Count + 1, Bytes + Size, [Frame | Frames])
    end.

%% The emulator may end a connection by itself; its exit signal to us is then
%% on the way, and these calls fail already.
get_data(DHandle) ->
    try
        erlang:dist_ctrl_get_data(DHandle)
    catch
        error:badarg -> gone
    end.

idle(#state{dhandle = DHandle} = State) ->
    try erlang:dist_ctrl_get_data_notification(DHandle) of
        ok -> collect(State#state{phase = idle})
    catch
        error:badarg -> finish(State)
    end.

collect(#state{since = Since} = State) when Since >= ?COLLECT_BYTES ->
    true = erlang:garbage_collect(),
    State#state{since = 0};
collect(State) ->
    State.

%% The input side goes with connection_closed after the last frame, which
%% comes back to us as its exit.
finish(#state{input = Input} = State) ->
    ok = macula_dist_input:finish(Input),
    _ = erlang:send_after(?FINISH_TIMEOUT, self(), finish_timeout),
    State#state{phase = closing}.

%% Our exit reason is what monitor_nodes calls the nodedown reason, so it must
%% be the plain one. A supervisor, though, reports every plain reason as an
%% error, and a lost peer is no error: it is told of a shutdown instead. The
%% exit comes as a signal, since proc_lib would report one that is raised.
-spec leave(term(), #state{}) -> no_return().
leave(Reason, #state{parent = Parent, input = Input} = State) ->
    drop_input(Input),
    close(State),
    unlink(Parent),
    Parent ! {'EXIT', self(), {shutdown, Reason}},
    process_flag(trap_exit, false),
    exit(self(), Reason),
    receive
    after infinity -> ok
    end.

%% When the link closes it would end for a reason of its own, which might come
%% to be ours.
drop_input(undefined) ->
    ok;
drop_input(Input) ->
    true = unlink(Input),
    true = exit(Input, shutdown),
    ok.

close(#state{link = Link}) ->
    ok = macula_nif:link_close(Link).

%% sys

-spec system_continue(pid(), [sys:dbg_opt()], #state{}) -> no_return().
system_continue(_Parent, _Debug, State) ->
    loop(State).

-spec system_terminate(term(), pid(), [sys:dbg_opt()], #state{}) -> no_return().
system_terminate(Reason, _Parent, _Debug, State) ->
    leave(Reason, State).

-spec system_code_change(#state{}, module(), term(), term()) -> {ok, #state{}}.
system_code_change(State, _Module, _OldVersion, _Extra) ->
    {ok, State}.

-spec system_get_state(#state{}) -> {ok, #state{}}.
system_get_state(State) ->
    {ok, State}.

-spec system_replace_state(fun((#state{}) -> #state{}), #state{}) -> {ok, #state{}, #state{}}.
system_replace_state(Fun, State) ->
    NewState = Fun(State),
    {ok, NewState, NewState}.
