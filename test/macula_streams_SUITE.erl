%% Many streams between two nodes: the order of signals, and that who waits for room on one stream holds up nobody else and
%% goes on in the end, whatever happens meanwhile.
-module(macula_streams_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_group/2, end_per_group/2,
         end_per_testcase/2]).
-export([order/1, model/1, atoms/1, bulk_waits_alone/1, many_on_a_slow_line/1]).
-export([what_follows/1]).
-export([read_atoms/2]).
-export([peer_killed/1, disconnected/1, bridge_killed/1, senders_end/1, suspended_by_others_too/1, code_changes/1,
         nosuspend/1, async_senders/1, single_stream/1, link_memory/1]).

-import(macula_test_node, [start/1, start/2, call/2, call/3, call/4, cast/2, name/1, connect/2, full/2, unique/1,
                           wait_until/1]).
-import(macula_test_mesh, [node_on/2]).

%% The signals of an hour are checked by MACULA_STREAMS_SECONDS=3600.
-define(ORDER_SECONDS, full(60, 5)).
%% On each node as many senders as receivers.
-define(ORDER_PROCESSES, full(1000, 250)).

%% Programs of up to so many steps.
-define(MODEL_PROGRAMS, full(1000, 100)).
-define(MODEL_STEPS, 100).

%% Two and a half times as many atoms as an emulator's cache has slots, and some that are named again and again; each of the
%% processes has a stream and a queue of its own.
-define(ATOMS, 5000).
-define(ATOM_SENDERS, 64).
-define(ATOM_MESSAGES, full(500, 50)).
-define(ATOMS_EACH, 8).

%% One message of those that fill a stream.
-define(BULK, 16 bsl 20).
%% As in macula_core::dist::memory: beyond it, a third of what a link may hold, the emulator is not drained; a batch of ours
%% comes on top.
-define(LINK_MEMORY, (195 bsl 20)).
-define(LINK_HIGH, (?LINK_MEMORY div 3)).
-define(LITTLE_LINK_MEMORY, (16 bsl 20)).
-define(BATCH, (1 bsl 20)).
-define(CALLS_MS, full(10_000, 2_000)).
%% Senders, what they send, and how often and after how long it is looked whether calls still come back beside them. As many
%% callers as there are lanes: half of them share theirs with a sender, which may have 512 KiB on it.
-define(SENDERS, 32).
-define(SENT, (4 bsl 10)).
-define(CALLERS, 64).
-define(LOOKS, full(20, 4)).
-define(LOOK_MS, 4_000).
%% Links, each of them new, and on how many an answer may come before what it follows from: a machine that stands
%% still between two packets. Lanes read by tasks of their own had one in six.
-define(NEW_LINKS, full(1000, 100)).
-define(REVERSED, (?NEW_LINKS div 50)).
%% Half a dozen was measured; with all in one stream it is over a hundred.
-define(CALLS_RATIO, 20).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [what_follows, {group, bad_link}, {group, waiting}].

groups() ->
    [{bad_link, [order, model, atoms, bulk_waits_alone, many_on_a_slow_line]},
     {waiting, [peer_killed, disconnected, bridge_killed, senders_end, suspended_by_others_too, code_changes, nosuspend,
                async_senders, single_stream, link_memory]}].

init_per_suite(Config) -> Config.

end_per_suite(_) -> ok.

init_per_group(bad_link, Config) ->
    case netlab:requires() of
        ok -> Config;
        Skip -> Skip
    end;
init_per_group(_, Config) ->
    Config.

end_per_group(_, _) -> ok.

end_per_testcase(_, Config) ->
    macula_test_node:stop_all(),
    netlab:stop_all(Config).

%%% Order

%% 20 ms each way, lost and late packets: streams overtake each other all the time. More packets that are late would be
%% taken for lost, and so little would be sent that they would not overtake anything.
order(_) ->
    Seconds = setting("MACULA_STREAMS_SECONDS", ?ORDER_SECONDS),
    Seed = setting("MACULA_STREAMS_SEED", erlang:system_time(millisecond)),
    ct:timetrap({seconds, Seconds + 300}),
    ct:pal("seed ~b: MACULA_STREAMS_SEED=~b repeats it", [Seed, Seed]),
    Lab = netlab:start(wan, #{seed => Seed, delay => 20, loss => 0.01, reorder => 0.01}),
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    connect(A, B),
    NodeB = name(B),
    Run = fun() -> macula_test_order:run(NodeB, Seed, ?ORDER_PROCESSES, Seconds) end,
    {Signals, Ms} = lists:unzip(call(A, Run, infinity)),
    ct:pal("~b signals in ~b waves, the longest of which took ~b ms", [lists:sum(Signals), length(Signals), lists:max(Ms)]),
    [?assertMatch([_], call(Node, fun macula:links/0)) || Node <- Nodes].

%% The same promise as a model. Programs are short, so that more has to get lost: a program that breaks the promise is made as
%% small as can be.
model(_) ->
    Seed = setting("MACULA_STREAMS_SEED", erlang:system_time(millisecond)),
    ct:pal("seed of the line ~b", [Seed]),
    Lab = netlab:start(wan, #{seed => Seed, delay => 2, loss => 0.05}),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    connect(A, B),
    NodeB = name(B),
    Options = [quiet, long_result, {numtests, ?MODEL_PROGRAMS}, {max_size, ?MODEL_STEPS}],
    Checked = call(A, fun() -> proper:quickcheck(macula_signal_model:prop_order(NodeB), Options) end, infinity),
    ct:pal("the line: ~p", [netlab:counters(Lab, a)]),
    ?assertEqual(true, Checked).

%% An atom goes to the peer as the number of a slot of its cache, and as text before that: more atoms than there are slots,
%% named by many processes whose streams overtake each other. Every message says them in plain words as well.
atoms(_) ->
    Seed = setting("MACULA_STREAMS_SEED", erlang:system_time(millisecond)),
    ct:pal("seed ~b", [Seed]),
    Lab = netlab:start(wan, #{seed => Seed, delay => 5, loss => 0.02, reorder => 0.01}),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    connect(A, B),
    NodeB = name(B),
    Messages = ?ATOM_SENDERS * ?ATOM_MESSAGES,
    ?assertEqual({read, Messages}, call(A, fun() -> write_atoms(NodeB, Seed, Messages) end, infinity)),
    Sink = sink(B),
    ?assert(call(A, fun() -> bytes_of_atom(Sink) end) < 255 div 2),
    [?assertMatch([_], call(Node, fun macula:links/0)) || Node <- [A, B]].

%% Bytes on the link of a message that is the longest atom, once that is known.
bytes_of_atom(Sink) ->
    Atom = list_to_atom(lists:duplicate(255, $x)),
    Sink ! Atom,
    Before = bytes_sent(),
    [Sink ! Atom || _ <- lists:seq(1, 100)],
    (bytes_sent() - Before) div 100.

%% So many that what this process sent so far is among them: its answer follows.
bytes_sent() ->
    [Node] = nodes(),
    Node = erpc:call(Node, erlang, node, []),
    [#{bytes_out := Bytes}] = macula:links(),
    Bytes.

write_atoms(Peer, Seed, Messages) ->
    {Reader, Monitor} = spawn_monitor(Peer, ?MODULE, read_atoms, [Messages, 0]),
    [spawn_link(fun() -> write_atoms(Reader, rand:seed(exsss, {Seed, Number, 0})) end)
     || Number <- lists:seq(1, ?ATOM_SENDERS)],
    receive
        {'DOWN', Monitor, process, Reader, Result} -> Result
    end.

write_atoms(Reader, _) ->
    [begin
         Names = [atom_name(rand:uniform(?ATOMS)) || _ <- lists:seq(1, ?ATOMS_EACH)] ++ [atom_name(rand:uniform(20))],
         Reader ! {Names, [binary_to_atom(Name) || Name <- Names]}
     end || _ <- lists:seq(1, ?ATOM_MESSAGES)].

%% Some are longer than one byte can tell.
atom_name(Number) ->
    unicode:characters_to_binary(["atom ", integer_to_list(Number), [lists:duplicate(200, $\x{e9}) || Number rem 50 =:= 0]]).

-spec read_atoms(pos_integer(), non_neg_integer()) -> no_return().
read_atoms(Messages, Messages) ->
    exit({read, Messages});
read_atoms(Messages, Read) ->
    receive
        {Names, Atoms} ->
            case [atom_to_binary(Atom) || Atom <- Atoms] of
                Names -> read_atoms(Messages, Read + 1);
                Others -> exit({{meant, Names}, {came, Others}})
            end
    end.

%% Nothing promises it, and every program expects it: what a process says because another one has said something arrives
%% after that. Where packets arrive in order and nobody fills a lane, it does, on lanes that were never used, too.
what_follows(_) ->
    [A, B] = [start(unique(Name)) || Name <- ["a", "b"]],
    Teller = cast(B, fun tell_and_have_answered/0),
    Reversed = call(A, fun() -> length([N || N <- lists:seq(1, ?NEW_LINKS), is_reversed(Teller, N)]) end, infinity),
    ct:pal("~b of ~b answers came before what they follow from", [Reversed, ?NEW_LINKS]),
    ?assert(Reversed =< ?REVERSED).

%% One process tells, and has another one answer.
tell_and_have_answered() ->
    receive
        {From, Listener, N} ->
            Listener ! {told, N},
            Other = spawn(fun() -> receive answer -> From ! {answer, N} end end),
            Other ! answer,
            tell_and_have_answered()
    end.

is_reversed(Teller, N) ->
    Node = node(Teller),
    _ = erlang:disconnect_node(Node),
    wait_until(fun() -> net_kernel:connect_node(Node) end),
    Listener = spawn_link(fun() -> listen(false) end),
    Teller ! {self(), Listener, N},
    receive {answer, N} -> ok end,
    Listener ! {self(), is_told},
    receive {Listener, IsTold} -> not IsTold end.

listen(IsTold) ->
    receive
        {told, _} -> listen(true);
        {From, is_told} -> From ! {self(), IsTold}
    end.

setting(Name, Default) ->
    case os:getenv(Name) of
        false -> Default;
        Text -> list_to_integer(Text)
    end.

%%% Who waits

%% 20 Mbit/s: a large message takes seven seconds.
bulk_waits_alone(_) ->
    Lab = netlab:start(wan, #{delay => 5, loss => 0, rate => 20}),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    connect(A, B),
    NodeB = name(B),
    Calls = fun() -> calls(NodeB, ?CALLS_MS) end,
    Alone = call(A, Calls),
    Sink = sink(B),
    Bulk = [bulk(A, Sink, []) || _ <- lists:seq(1, 4)],
    wait_until(fun() -> lists:all(fun(Pid) -> is_held(A, Pid) end, Bulk) end),
    Beside = call(A, Calls),
    [#{queue := Queue}] = call(A, fun macula:links/0),
    ct:pal("~b calls, beside bulk ~b; ~b bytes wait", [Alone, Beside, Queue]),
    ?assert(Beside * ?CALLS_RATIO > Alone),
    ?assert(Queue < ?LINK_HIGH + ?BATCH).

%% Where some 300 kB/s get through, all of them together send for minutes what they may send ahead. Nobody waits for that, whichever
%% lane it is on.
many_on_a_slow_line(_) ->
    Lab = netlab:start(wan, #{delay => 20, loss => 0.01}),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    connect(A, B),
    NodeB = name(B),
    Sink = sink(B),
    _ = [cast(A, fun() -> send_on(Sink, [], rand:bytes(?SENT), 1) end) || _ <- lists:seq(1, ?SENDERS)],
    Callers = [cast(A, fun() -> call_on(NodeB, 1) end) || _ <- lists:seq(1, ?CALLERS)],
    {[First | _] = Answered, States} = lists:unzip([begin timer:sleep(?LOOK_MS), {answered(A, Callers), state(A, Callers)} end
                                                    || _ <- lists:seq(1, ?LOOKS)]),
    %% At first the line is filled until it loses more than it does by itself.
    Since = lists:zipwith(fun erlang:'-'/2, lists:last(Answered), First),
    ct:pal("calls answered after each ~b ms: ~w, of one caller since the first at least ~b; the link and the callers then:~n~p",
           [?LOOK_MS, [lists:sum(Counts) || Counts <- Answered], lists:min(Since), States]),
    ?assert(lists:min(Since) > 0).

answered(Node, Callers) ->
    [proplists:get_value(answered, dictionary(Node, Caller), 0) || Caller <- Callers].

%% What tells why calls are not answered.
state(Node, Callers) ->
    [Link] = call(Node, fun macula:links/0),
    Doing = [call(Node, erlang, process_info, [Caller, [status, current_function]]) || Caller <- Callers],
    {maps:with([rtt_us, bytes_in, bytes_out, queue], Link), lists:usort(Doing)}.

call_on(Node, Count) ->
    Node = erpc:call(Node, erlang, node, []),
    put(answered, Count),
    call_on(Node, Count + 1).

%% How many calls of one process after the other are answered in a time.
calls(Node, Ms) ->
    calls(Node, erlang:monotonic_time(millisecond) + Ms, 0).

calls(Node, Until, Count) ->
    case erlang:monotonic_time(millisecond) < Until of
        true ->
            Node = erpc:call(Node, erlang, node, []),
            calls(Node, Until, Count + 1);
        false ->
            Count
    end.

%%% Nobody waits for ever

peer_killed(_) ->
    {A, B, _, Bulk} = held(4),
    macula_test_node:kill(B),
    all_go_on(A, Bulk).

disconnected(_) ->
    {A, B, _, Bulk} = held(4),
    true = call(A, erlang, disconnect_node, [name(B)]),
    all_go_on(A, Bulk).

bridge_killed(_) ->
    {A, _, _, Bulk} = held(4),
    true = call(A, fun() -> exit(bridge(), kill) end),
    all_go_on(A, Bulk).

%% Senders that end, and are ended, while they wait; those that do not end go on.
senders_end(_) ->
    {A, B, Sink, [Killed, Shut, Other]} = held(3),
    NodeB = name(B),
    Traps = cast(A, fun() -> process_flag(trap_exit, true), send_on(Sink, []) end),
    Last = cast(A, fun() -> Sink ! rand:bytes(?BULK) end),
    wait_until(fun() -> is_suspended(A, Traps) andalso is_suspended(A, Last) end),
    true = call(A, erlang, exit, [Killed, kill]),
    [true = call(A, erlang, exit, [Pid, shutdown]) || Pid <- [Shut, Traps]],
    wait_until(fun() -> not is_alive(A, Killed) andalso not is_alive(A, Shut) end),
    [?assert(is_alive(A, Pid)) || Pid <- [Traps, Other]],
    macula_test_node:signal(B, "CONT"),
    wait_until(fun() -> not is_alive(A, Last) end),
    all_go_on(A, [Traps, Other]),
    wait_until(fun() -> lists:member({exit, shutdown}, dictionary(A, Traps)) end),
    ?assertEqual(pong, call(A, net_adm, ping, [NodeB])),
    ?assertMatch([_], call(A, fun macula:links/0)).

%% What others suspend stays so until they resume it, and then goes on.
suspended_by_others_too(_) ->
    {A, B, _, [Bulk, Other]} = held(2),
    Debugger = cast(A, fun() ->
                           true = erlang:suspend_process(Bulk),
                           register(debugger, self()),
                           receive resume -> true = erlang:resume_process(Bulk) end,
                           receive never -> ok end
                       end),
    wait_until(fun() -> call(A, erlang, whereis, [debugger]) =/= undefined end),
    macula_test_node:signal(B, "CONT"),
    all_go_on(A, [Other]),
    wait_until(fun() -> not is_held(A, Bulk) end),
    Before = sent(A, Bulk),
    timer:sleep(300),
    ?assert(is_suspended(A, Bulk)),
    ?assertEqual(Before, sent(A, Bulk)),
    _ = call(A, erlang, send, [Debugger, resume]),
    all_go_on(A, [Bulk]).

%% The module is loaded anew, so often that nothing of the first one is left.
code_changes(_) ->
    {A, B, _, Bulk} = held(2),
    Bridge = call(A, fun bridge/0),
    [begin
         _ = call(A, code, purge, [macula_dist_brake]),
         {module, _} = call(A, code, load_file, [macula_dist_brake])
     end || _ <- [1, 2, 3]],
    macula_test_node:signal(B, "CONT"),
    all_go_on(A, Bulk),
    ?assertEqual(Bridge, call(A, fun bridge/0)).

%% Who would rather not wait does not wait for a peer that stands still: the link leaves that to the emulator.
nosuspend(_) ->
    {A, B, Sink, Bulk} = held(2),
    IsHeld = fun(Pid) -> is_held(A, Pid) end,
    wait_until(fun() -> not lists:any(IsHeld, Bulk) end),
    ok = call(A, fun() -> until_nosuspend(Sink, rand:bytes(1 bsl 16)) end, 60_000),
    macula_test_node:signal(B, "CONT"),
    all_go_on(A, Bulk),
    wait_until(fun() -> lists:any(IsHeld, Bulk) end).

until_nosuspend(Sink, Data) ->
    case erlang:send(Sink, Data, [nosuspend]) of
        nosuspend -> ok;
        ok -> until_nosuspend(Sink, Data)
    end.

%% Who sends without waiting, as far as it goes, takes no more memory of the link than all others, and hangs no one.
async_senders(_) ->
    {A, B, Sink, Bulk} = held(2),
    case call(A, fun is_async_known/0) of
        false ->
            {skip, "process_flag(async_dist, true) came with OTP 25.3"};
        true ->
            Asyncs = [cast(A, fun() -> send_async(Sink) end) || _ <- [1, 2]],
            timer:sleep(1000),
            [#{queue := Queue}] = call(A, fun macula:links/0),
            ?assert(Queue < ?LINK_HIGH + ?BATCH),
            macula_test_node:signal(B, "CONT"),
            all_go_on(A, Bulk),
            wait_until(fun() -> not lists:any(fun(Pid) -> is_alive(A, Pid) end, Asyncs) end)
    end.

%% A link has lanes when both nodes want them; without, its signals are in order, and the emulator alone has its
%% senders wait.
single_stream(_) ->
    [without_lanes(start(unique("a"), Options), start(unique("b"), Others))
     || {Options, Others} <- [{one_stream(), #{}}, {#{}, one_stream()}]].

one_stream() ->
    #{args => ["-macula", "dist_streams", "1"]}.

without_lanes(A, B) ->
    connect(A, B),
    NodeB = name(B),
    Seed = erlang:system_time(millisecond),
    Run = fun() -> macula_test_order:run(NodeB, Seed, 100, 0) end,
    ?assertMatch([{_, _}], call(A, Run)),
    Sink = sink(B),
    macula_test_node:signal(B, "STOP"),
    Bulk = bulk(A, Sink, [noconnect]),
    wait_until(fun() -> is_suspended(A, Bulk) end),
    ?assertNot(is_held(A, Bulk)),
    macula_test_node:signal(B, "CONT"),
    all_go_on(A, [Bulk]).

%% Neither side holds more than it may: not who sends, nor who receives and does not come to take it.
link_memory(_) ->
    {Sent, Received} = held_bytes(?LITTLE_LINK_MEMORY),
    {_, ByDefault} = held_bytes(?LINK_MEMORY),
    ct:pal("~b bytes wait at the sender, ~b at the receiver, ~b by default", [Sent, Received, ByDefault]),
    ?assert(Sent < ?LITTLE_LINK_MEMORY div 3 + ?BATCH),
    %% Beside content there is what QUIC and the allocator need to keep it.
    ?assert(Received < 2 * ?LITTLE_LINK_MEMORY),
    ?assert(Received * 4 < ByDefault).

%% As many senders as there are streams, until all of them wait; and then all go on.
held_bytes(Bytes) ->
    Options = #{args => ["-macula", "link_memory", integer_to_list(Bytes)]},
    [A, B] = [start(unique(Name), Options) || Name <- ["a", "b"]],
    connect(A, B),
    Sink = sink(B),
    Input = call(B, fun input/0),
    Before = call(B, macula_nif, memory, []),
    %% Until it is resumed.
    Holder = cast(B, fun() -> erlang:suspend_process(Input), receive go_on -> erlang:resume_process(Input) end end),
    Data = binary:copy(<<"m">>, 1 bsl 20),
    Bulk = [cast(A, fun() -> send_on(Sink, [noconnect], Data, 1) end) || _ <- lists:seq(1, 2 * ?SENDERS)],
    wait_until(fun() -> lists:all(fun(Pid) -> is_suspended(A, Pid) end, Bulk) end),
    [#{queue := Queue}] = call(A, fun macula:links/0),
    Held = full_memory(B, Before) - Before,
    go_on = call(B, erlang, send, [Holder, go_on]),
    all_go_on(A, Bulk),
    [macula_test_node:stop(Node) || Node <- [A, B]],
    {Queue, Held}.

%% When it grows no more.
full_memory(Node, Bytes) ->
    timer:sleep(?LOOK_MS div 4),
    case call(Node, macula_nif, memory, []) of
        More when More > Bytes + Bytes div 20 -> full_memory(Node, More);
        Full -> Full
    end.

%%% Help

%% Two nodes, the second of them stopped, and so many processes of the first one that wait for it.
held(Count) ->
    A = start(unique("a")),
    B = start(unique("b")),
    connect(A, B),
    Sink = sink(B),
    macula_test_node:signal(B, "STOP"),
    Bulk = [bulk(A, Sink, [noconnect]) || _ <- lists:seq(1, Count)],
    wait_until(fun() -> lists:all(fun(Pid) -> is_suspended(A, Pid) end, Bulk) end),
    {A, B, Sink, Bulk}.

sink(Node) ->
    cast(Node, fun swallow/0).

swallow() ->
    receive _ -> swallow() end.

%% A process that sends for ever.
bulk(Node, Sink, Options) ->
    cast(Node, fun() -> send_on(Sink, Options) end).

send_on(Sink, Options) ->
    send_on(Sink, Options, rand:bytes(?BULK), 1).

send_on(Sink, Options, Data, Count) ->
    %% So that one whose peer is gone does not spin.
    erlang:send(Sink, Data, Options) =:= ok orelse timer:sleep(1),
    put(sent, Count),
    receive
        {'EXIT', _, Reason} -> put(exit, Reason)
    after 0 -> ok
    end,
    send_on(Sink, Options, Data, Count + 1).

is_async_known() ->
    try
        is_boolean(process_flag(async_dist, false))
    catch
        error:badarg -> false
    end.

send_async(Sink) ->
    _ = process_flag(async_dist, true),
    Data = rand:bytes(1 bsl 20),
    lists:foreach(fun(_) -> Sink ! Data end, lists:seq(1, 64)).

%% Of the only link there is.
bridge() ->
    [{_, Bridge, _, _}] = supervisor:which_children(macula_dist_bridge_sup),
    Bridge.

%% Who takes what comes over it.
input() ->
    {links, Links} = process_info(bridge(), links),
    [Input] = [Pid || Pid <- Links, is_pid(Pid),
                      process_info(Pid, initial_call) =:= {initial_call, {macula_dist_input, init, 2}}],
    Input.

%% By whomever: at first by the link, then by the emulator, as the peer takes nothing any more.
is_suspended(Node, Pid) ->
    call(Node, erlang, process_info, [Pid, status]) =:= {status, suspended}.

%% Whether the link has it wait; it alone, not what the emulator has wait at its own mark.
is_held(Node, Pid) ->
    call(Node, fun() ->
                   {suspending, Suspended} = process_info(bridge(), suspending),
                   lists:keymember(Pid, 1, Suspended)
               end).

is_alive(Node, Pid) ->
    call(Node, erlang, is_process_alive, [Pid]).

dictionary(Node, Pid) ->
    {dictionary, Dictionary} = call(Node, erlang, process_info, [Pid, dictionary]),
    Dictionary.

sent(Node, Pid) ->
    proplists:get_value(sent, dictionary(Node, Pid), 0).

%% Each of them sends something that it had not sent before.
all_go_on(Node, Bulk) ->
    Before = [{Pid, sent(Node, Pid)} || Pid <- Bulk],
    wait_until(fun() -> lists:all(fun({Pid, Sent}) -> sent(Node, Pid) > Sent end, Before) end).
