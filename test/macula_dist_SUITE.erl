%% Two and three nodes that do with each other what Erlang nodes do.
-module(macula_dist_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([binaries_of_all_sizes/1, huge_binary/1, huge_first_message/1, first_message_of_many_parts/1,
         many_small_binaries/1, small_messages_in_order/1, both_directions_at_once/1, big_beside_small/1]).
-export([links/1, link_to_nobody/1, process_monitors/1, named_monitors/1, node_monitors/1,
         exit_signals/1, spawning/1, spawning_fails/1, rpc_calls/1, erpc_calls/1, process_groups/1,
         global_names/1, global_locks/1, code_from_another_node/1, file_transfer/1,
         group_leader_output/1, three_nodes/1]).
-export([peer_killed/1, peer_halts/1, peer_disconnected/1, disconnected_by_peer/1,
         peer_stops_distribution/1, down_under_load/1]).

-import(macula_test_node, [start/1, call/2, call/4, name/1, connect/2, wait_until/1, unique/1]).

-define(HANG, 60_000).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [{group, messages}, {group, signals}, {group, down}].

groups() ->
    [{messages, [binaries_of_all_sizes, huge_binary, huge_first_message, first_message_of_many_parts,
                 many_small_binaries, small_messages_in_order, both_directions_at_once, big_beside_small]},
     {signals, [links, link_to_nobody, process_monitors, named_monitors, node_monitors,
                exit_signals, spawning, spawning_fails, rpc_calls, erpc_calls, process_groups,
                global_names, global_locks, code_from_another_node, file_transfer,
                group_leader_output, three_nodes]},
     {down, [peer_killed, peer_halts, peer_disconnected, disconnected_by_peer,
             peer_stops_distribution, down_under_load]}].

init_per_suite(Config) -> Config.

end_per_suite(_) -> ok.

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%%% Messages

%% A binary of each critical size arrives whole, as a message of its own.
binaries_of_all_sizes(_) ->
    {A, B} = pair(),
    Sizes = [0, 1, 63, 64, 65, 255, 256, 65535, 65536, 65537, 1 bsl 20, 16 bsl 20],
    Sent = send_binaries(A, B, Sizes),
    ?assertEqual(Sizes, [Size || {Size, _} <- Sent]).

%% A message of 256 MB arrives whole.
huge_binary(_) ->
    {A, B} = pair(),
    [{Size, _}] = send_binaries(A, B, [256 bsl 20]),
    ?assertEqual(256 bsl 20, Size).

%% A process on B tells the size and checksum of what it gets; it must be what A sent.
send_binaries(A, B, Sizes) ->
    NodeB = name(B),
    call(A, fun() -> [send_binary(NodeB, Size) || Size <- Sizes] end).

send_binary(Node, Size) ->
    Self = self(),
    Pid = spawn(Node, fun() ->
                          receive
                              {data, Data} -> Self ! {self(), byte_size(Data), erlang:crc32(Data)}
                          end
                  end),
    Data = data(Size),
    Crc = erlang:crc32(Data),
    Pid ! {data, Data},
    receive
        {Pid, Size, Crc} -> {Size, Crc}
    after ?HANG ->
        error({not_received, Size, Crc, process_info(self(), messages)})
    end.

%% What is sent before the nodes are connected is not cut into fragments, however large it is.
huge_first_message(_) ->
    {A, B} = {start(unique("a")), start(unique("b"))},
    NodeB = name(B),
    Data = fun() -> binary:copy(rand:bytes(1 bsl 20), 100) end,
    ?assertEqual(100 bsl 20, call(A, fun() -> rpc:call(NodeB, erlang, byte_size, [Data()]) end)).

%% Each of its binaries is a part that the native side looks at: not on a scheduler.
first_message_of_many_parts(_) ->
    {A, B} = {start(unique("a")), start(unique("b"))},
    NodeB = name(B),
    {Here, There} = call(A, fun() ->
                                Parts = [<<N:560>> || N <- lists:seq(1, 500_000)],
                                {erlang:md5(Parts), rpc:call(NodeB, erlang, md5, [Parts])}
                            end),
    ?assertEqual(Here, There),
    ?assertMatch({link_send_large, Calls, _, true} when Calls > 0,
                 lists:keyfind(link_send_large, 1, call(A, macula_nif, call_times, []))).

%% Not constant, and made quickly: a random block over and over, with a tail.
data(Size) ->
    Block = rand:bytes(min(Size, 65521)),
    Whole = binary:copy(Block, Size div max(1, byte_size(Block))),
    <<Whole/binary, (binary:part(Block, 0, Size - byte_size(Whole)))/binary>>.

%% Terms with many binaries and sub-binaries, and iolists, arrive as they were.
many_small_binaries(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                Source = rand:bytes(1_000_000),
                Subs = [binary:part(Source, I * 100, I rem 100) || I <- lists:seq(0, 9_999)],
                Terms = [Subs,
                         [[Sub, $a, <<"x">> | <<"tail">>] || Sub <- Subs],
                         maps:from_list(lists:zip(lists:seq(0, 9_999), Subs)),
                         list_to_tuple([rand:bytes(65) || _ <- lists:seq(1, 10_000)]),
                         [rand:bytes(100_000) || _ <- lists:seq(1, 50)],
                         <<5:3>>, [<<1:1, Sub/binary>> || Sub <- lists:sublist(Subs, 1_000)],
                         [make_ref(), self(), 1 bsl 4000, -1.5, 'æøå', fun lists:map/2, #{}, {}, []]],
                [?assertEqual(Term, erpc:call(NodeB, erlang, hd, [[Term]])) || Term <- Terms]
            end).

%% Not one of many small messages is lost, doubled or out of order.
small_messages_in_order(_) ->
    Count = macula_test_node:full(1_000_000, 200_000),
    {A, B} = pair(),
    NodeB = name(B),
    ?assertEqual({Count, ok}, call(A, fun() -> in_order(NodeB, Count) end)).

in_order(Node, Count) ->
    Self = self(),
    Pid = spawn(Node, fun() -> Self ! {self(), receive_in_order(0, Count)} end),
    [Pid ! {n, N} || N <- lists:seq(0, Count - 1)],
    receive
        {Pid, Result} -> Result
    after 4 * ?HANG ->
        error(hangs)
    end.

receive_in_order(Count, Count) ->
    receive
        More -> {Count, {too_much, More}}
    after 0 -> {Count, ok}
    end;
receive_in_order(N, Count) ->
    receive
        {n, N} -> receive_in_order(N + 1, Count);
        Other -> {N, {unexpected, Other}}
    end.

%% Traffic in both directions, from several processes each, keeps each one's order.
both_directions_at_once(_) ->
    {A, B} = pair(),
    Count = macula_test_node:full(100_000, 20_000),
    Nodes = [{A, name(B)}, {B, name(A)}],
    Workers = [worker(fun() -> call(From, fun() -> in_order(To, Count) end) end)
               || {From, To} <- Nodes, _ <- lists:seq(1, 4)],
    ?assertEqual([{Count, ok} || _ <- Workers], [await(Worker) || Worker <- Workers]).

%% Small calls are answered while large messages flow the same way.
big_beside_small(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    Bulk = worker(fun() -> send_binaries(A, B, lists:duplicate(20, 16 bsl 20)) end),
    call(A, fun() -> [?assertEqual(N, erpc:call(NodeB, erlang, abs, [-N])) || N <- lists:seq(1, 100)] end),
    ?assertEqual(20, length(await(Bulk))).

%%% Links, monitors, signals

%% The end of a linked process comes over, with its reason, in both directions.
links(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                process_flag(trap_exit, true),
                Remote = spawn_link(NodeB, fun() -> receive Reason -> exit(Reason) end end),
                Remote ! because,
                ?assertEqual(because, exit_of(Remote)),
                Self = self(),
                %% The other way: our local process goes, the remote one hears of it.
                Watcher = spawn(NodeB, fun() ->
                                           process_flag(trap_exit, true),
                                           receive Local -> link(Local) end,
                                           Local ! linked,
                                           receive Exit -> Self ! {self(), Exit} end
                                   end),
                Local = spawn(fun() -> receive linked -> exit(gone) end end),
                Watcher ! Local,
                receive {Watcher, Exit} -> ?assertEqual({'EXIT', Local, gone}, Exit) after ?HANG -> error(hangs) end,
                %% Unlinked is unlinked.
                Free = spawn_link(NodeB, fun() -> receive Why -> exit(Why) end end),
                true = unlink(Free),
                Monitor = monitor(process, Free),
                Free ! anything,
                receive {'DOWN', Monitor, process, Free, anything} -> ok after ?HANG -> error(hangs) end,
                receive {'EXIT', Free, _} = Bad -> error(Bad) after 0 -> ok end
            end).

%% A link to a process that is gone, or to a node that is not there, breaks.
link_to_nobody(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                process_flag(trap_exit, true),
                {Gone, Monitor} = spawn_monitor(NodeB, erlang, abs, [1]),
                receive {'DOWN', Monitor, process, Gone, normal} -> ok after ?HANG -> error(hangs) end,
                true = link(Gone),
                ?assertEqual(noproc, exit_of(Gone))
            end),
    macula_test_node:kill(B),
    call(A, fun() ->
                process_flag(trap_exit, true),
                wait_until(fun() -> nodes() =:= [] end),
                Nowhere = spawn_link(NodeB, erlang, abs, [1]),
                ?assertEqual(noconnection, exit_of(Nowhere))
            end).

exit_of(Pid) ->
    receive
        {'EXIT', Pid, Reason} -> Reason
    after ?HANG ->
        error({no_exit, Pid})
    end.

%% A monitor tells the reason of the end, noproc of a dead process, nothing once it is taken off.
process_monitors(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                Pid = spawn(NodeB, fun() -> receive Reason -> exit(Reason) end end),
                First = monitor(process, Pid),
                Off = monitor(process, Pid),
                true = demonitor(Off),
                Pid ! {reason, 1},
                ?assertEqual({process, Pid, {reason, 1}}, down(First)),
                ?assertEqual({process, Pid, noproc}, down(monitor(process, Pid))),
                receive {'DOWN', Off, _, _, _} -> error(taken_off) after 0 -> ok end
            end).

%% The same for registered names, from either side.
named_monitors(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                Self = self(),
                Pid = spawn(NodeB, fun() ->
                                       register(the_name, self()),
                                       Self ! registered,
                                       receive Reason -> exit(Reason) end
                               end),
                receive registered -> ok after ?HANG -> error(hangs) end,
                Monitor = monitor(process, {the_name, NodeB}),
                {the_name, NodeB} ! called_by_name,
                ?assertEqual({process, {the_name, NodeB}, called_by_name}, down(Monitor)),
                ?assertEqual({process, {the_name, NodeB}, noproc},
                             down(monitor(process, {the_name, NodeB}))),
                ?assert(is_pid(Pid))
            end).

down(Monitor) ->
    receive
        {'DOWN', Monitor, Type, Who, Reason} -> {Type, Who, Reason}
    after ?HANG ->
        error(no_down)
    end.

%% monitor_node and monitor_nodes tell of a node's coming and going.
node_monitors(_) ->
    A = start(unique("a")),
    B = start(unique("b")),
    NodeB = name(B),
    call(A, fun() ->
                ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
                true = net_kernel:connect_node(NodeB),
                receive {nodeup, NodeB, _} -> ok after ?HANG -> error(hangs) end,
                true = monitor_node(NodeB, true),
                true = erlang:disconnect_node(NodeB),
                receive {nodedown, NodeB} -> ok after ?HANG -> error(hangs) end,
                receive {nodedown, NodeB, Info} -> ?assertEqual([{nodedown_reason, disconnect}], Info)
                after ?HANG -> error(hangs)
                end
            end).

%% exit/2 to a remote process: ordinary reasons can be trapped, kill cannot.
exit_signals(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                Self = self(),
                Trapper = spawn(NodeB, fun() ->
                                           process_flag(trap_exit, true),
                                           Self ! trapping,
                                           receive {'EXIT', From, Reason} -> Self ! {self(), From, Reason} end,
                                           receive never -> ok end
                                   end),
                receive trapping -> ok after ?HANG -> error(hangs) end,
                Monitor = monitor(process, Trapper),
                exit(Trapper, {please, <<"stop">>}),
                receive {Trapper, Self, Reason} -> ?assertEqual({please, <<"stop">>}, Reason)
                after ?HANG -> error(hangs)
                end,
                exit(Trapper, kill),
                ?assertMatch({process, Trapper, killed}, down(Monitor)),
                Plain = spawn(NodeB, fun() -> receive never -> ok end end),
                PlainMonitor = monitor(process, Plain),
                exit(Plain, normal),
                exit(Plain, rand:bytes(1 bsl 20)),
                {process, Plain, Large} = down(PlainMonitor),
                ?assertEqual(1 bsl 20, byte_size(Large))
            end).

%% spawn, spawn_link, spawn_monitor, spawn_opt and spawn_request start processes over there.
spawning(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                process_flag(trap_exit, true),
                Self = self(),
                Tell = fun() -> Self ! {self(), node()}, exit(done) end,
                Plain = spawn(NodeB, Tell),
                Linked = spawn_link(NodeB, Tell),
                {Monitored, Monitor} = spawn_monitor(NodeB, Tell),
                {Both, BothMonitor} = spawn_opt(NodeB, Tell, [link, monitor]),
                Request = spawn_request(NodeB, Tell, [monitor]),
                Requested = receive {spawn_reply, Request, ok, Pid} -> Pid after ?HANG -> error(hangs) end,
                [receive {P, Node} -> ?assertEqual(NodeB, Node) after ?HANG -> error({silent, P}) end
                 || P <- [Plain, Linked, Monitored, Both, Requested]],
                ?assertEqual(done, exit_of(Linked)),
                ?assertEqual(done, exit_of(Both)),
                [?assertMatch({process, _, done}, down(M)) || M <- [Monitor, BothMonitor, Request]]
            end).

%% What cannot be spawned says so.
spawning_fails(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                Request = spawn_request(NodeB, erlang, abs, [1], [{not_an, option}]),
                receive {spawn_reply, Request, error, badopt} -> ok after ?HANG -> error(hangs) end,
                Elsewhere = spawn_request('nobody@localhost', erlang, abs, [1], []),
                receive {spawn_reply, Elsewhere, error, noconnection} -> ok after ?HANG -> error(hangs) end
            end).

%% rpc: call, cast, multicall, async_call, errors.
rpc_calls(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                ?assertEqual(NodeB, rpc:call(NodeB, erlang, node, [])),
                ?assertMatch({badrpc, {'EXIT', {badarith, _}}}, rpc:call(NodeB, erlang, 'div', [1, 0])),
                ?assertEqual({badrpc, timeout}, rpc:call(NodeB, timer, sleep, [?HANG], 50)),
                ?assertEqual({badrpc, nodedown}, rpc:call('nobody@localhost', erlang, node, [])),
                ?assertEqual({[node(), NodeB], []}, rpc:multicall([node(), NodeB], erlang, node, [])),
                Key = rpc:async_call(NodeB, erlang, node, []),
                ?assertEqual(NodeB, rpc:yield(Key)),
                true = rpc:cast(NodeB, erlang, send, [self(), cast_came]),
                receive cast_came -> ok after ?HANG -> error(hangs) end
            end).

%% erpc: call, send_request, multicall, exceptions of each class.
erpc_calls(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    call(A, fun() ->
                ?assertEqual(NodeB, erpc:call(NodeB, fun() -> node() end)),
                ?assertError({exception, badarith, _}, erpc:call(NodeB, erlang, 'div', [1, 0])),
                ?assertThrow(ball, erpc:call(NodeB, fun() -> throw(ball) end)),
                ?assertExit({exception, over}, erpc:call(NodeB, fun() -> exit(over) end)),
                ?assertError({erpc, timeout}, erpc:call(NodeB, timer, sleep, [?HANG], 50)),
                ?assertError({erpc, noconnection}, erpc:call('nobody@localhost', erlang, node, [])),
                Requests = [erpc:send_request(NodeB, erlang, abs, [-N]) || N <- lists:seq(1, 100)],
                ?assertEqual(lists:seq(1, 100), [erpc:receive_response(R) || R <- Requests]),
                ?assertEqual([{ok, node()}, {ok, NodeB}], erpc:multicall([node(), NodeB], erlang, node, []))
            end).

%% pg: members on other nodes come and go, with their processes and with their nodes.
process_groups(_) ->
    {A, B} = pair(),
    Member = fun() -> {ok, _} = pg:start(a_scope), pg:join(a_scope, group, self()), receive never -> ok end end,
    PidA = macula_test_node:cast(A, Member),
    PidB = macula_test_node:cast(B, Member),
    PidB2 = macula_test_node:cast(B, fun() -> wait_until(fun() -> whereis(a_scope) =/= undefined end),
                                              pg:join(a_scope, group, self()), receive never -> ok end end),
    Members = fun(Node) -> lists:sort(call(Node, pg, get_members, [a_scope, group])) end,
    All = lists:sort([PidA, PidB, PidB2]),
    wait_until(fun() -> Members(A) =:= All andalso Members(B) =:= All end),
    true = call(B, erlang, exit, [PidB2, kill]),
    wait_until(fun() -> Members(A) =:= lists:sort([PidA, PidB]) end),
    macula_test_node:kill(B),
    wait_until(fun() -> Members(A) =:= [PidA] end).

%% global: a name registered on one node is known, called, and freed on all.
global_names(_) ->
    {A, B} = pair(),
    call(B, fun() ->
                Self = self(),
                spawn(fun() ->
                          yes = global:register_name(the_one, self()),
                          Self ! registered,
                          receive {From, Question} -> From ! {answer, Question} end
                  end),
                receive registered -> ok after ?HANG -> error(hangs) end
            end),
    call(A, fun() ->
                ok = global:sync(),
                wait_until(fun() -> is_pid(global:whereis_name(the_one)) end),
                no = global:register_name(the_one, self()),
                global:send(the_one, {self(), <<"?">>}),
                receive {answer, <<"?">>} -> ok after ?HANG -> error(hangs) end,
                wait_until(fun() -> global:whereis_name(the_one) =:= undefined end),
                yes = global:register_name(the_one, self())
            end).

%% global: a lock held on one node is refused on the other, and freed when its holder's node dies.
global_locks(_) ->
    {A, B} = pair(),
    call(A, fun() -> global:sync() end),
    _ = macula_test_node:cast(B, fun() -> true = global:set_lock({the_lock, self()}),
                                          register(holder, self()), receive never -> ok end end),
    wait_until(fun() -> call(B, erlang, whereis, [holder]) =/= undefined end),
    ?assertEqual(false, call(A, fun() -> global:set_lock({the_lock, self()}, [node() | nodes()], 0) end)),
    macula_test_node:kill(B),
    wait_until(fun() -> call(A, fun() -> global:set_lock({the_lock, self()}, [node()], 0) end) end).

%% A module that only one node has is loaded into the other, and runs there.
code_from_another_node(Config) ->
    {A, B} = pair(),
    NodeB = name(B),
    Module = macula_test_travels,
    Forms = [{attribute, 1, module, Module}, {attribute, 1, export, [{where, 0}]},
             {function, 1, where, 0, [{clause, 1, [], [], [{call, 1, {atom, 1, node}, []}]}]}],
    {ok, Module, Beam} = compile:forms(Forms, []),
    File = filename:join(macula_test_node:scratch(Config), "macula_test_travels.beam"),
    ok = file:write_file(File, Beam),
    call(A, fun() ->
                {module, Module} = code:load_abs(filename:rootname(File)),
                ?assertError({exception, undef, _}, erpc:call(NodeB, Module, where, [])),
                ?assertEqual({[{module, Module}], []},
                             rpc:multicall([NodeB], code, load_binary, [Module, File, Beam])),
                ?assertEqual(NodeB, erpc:call(NodeB, Module, where, []))
            end).

%% A file is read there, written here, and written there, by rpc and by a remote file handle.
file_transfer(Config) ->
    {A, B} = pair(),
    NodeB = name(B),
    Dir = macula_test_node:scratch(Config),
    call(A, fun() ->
                Data = data(5_000_000),
                There = filename:join(Dir, "there"),
                ok = rpc:call(NodeB, file, write_file, [There, Data]),
                {ok, Back} = rpc:call(NodeB, file, read_file, [There]),
                ?assertEqual(erlang:crc32(Data), erlang:crc32(Back)),
                Self = self(),
                %% A file closes with the process that opened it.
                _ = spawn_link(NodeB, fun() ->
                                          {ok, File} = file:open(There, [read, binary]),
                                          Self ! {file, File},
                                          receive never -> ok end
                                      end),
                Handle = receive {file, File} -> File after ?HANG -> error(hangs) end,
                ?assertEqual(NodeB, node(Handle)),
                {ok, Part} = file:pread(Handle, 1_000_000, 70_000),
                ?assert(Part =:= binary:part(Data, 1_000_000, 70_000)),
                ok = file:close(Handle)
            end).

%% The output of a remotely started process comes to the node that started it (its group leader).
group_leader_output(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    Text = unique("spoken"),
    call(A, fun() ->
                true = group_leader(whereis(user), self()),
                erpc:call(NodeB, io, format, ["~s~n", [Text]])
            end),
    macula_test_node:await_said(A, Text, ?HANG),
    ?assertEqual(0, macula_test_node:has_said(B, Text)).

%% Three nodes know each other through the one they have in common, and a message goes round.
three_nodes(_) ->
    {A, B} = pair(),
    C = start(unique("c")),
    connect(C, A),
    wait_until(fun() -> lists:all(fun(N) -> length(call(N, erlang, nodes, [])) =:= 2 end, [A, B, C]) end),
    {NodeB, NodeC} = {name(B), name(C)},
    Back = call(A, fun() -> erpc:call(NodeB, erpc, call, [NodeC, erlang, nodes, []]) end),
    ?assertEqual(lists:sort([name(A), NodeB]), lists:sort(Back)),
    [?assertEqual(2, length(call(N, macula, links, []))) || N <- [A, B, C]].

%%% A node goes, and comes back

%% kill -9: the other side hears of it at once, and the node can come back under its name.
peer_killed(_) ->
    Reason = went(fun(_, B) -> macula_test_node:kill(B) end),
    ?assertEqual(connection_closed, Reason).

%% halt(): as over TCP, the connection is closed.
peer_halts(_) ->
    Reason = went(fun(_, B) ->
                      macula_test_node:cast(B, erlang, halt, []),
                      0 = macula_test_node:exit_status(B, ?HANG)
                  end),
    ?assertEqual(connection_closed, Reason).

%% B goes as Go does it: what A's monitors say. Then another B of that name connects.
went(Go) ->
    Name = unique("b"),
    A = start(unique("a")),
    B = start(Name),
    connect(A, B),
    Watch = watch(A, B),
    Go(A, B),
    Reason = reason(Watch),
    wait_until(fun() -> {[], []} =:= {call(A, erlang, nodes, []), call(A, macula, links, [])} end),
    _ = macula_test_node:exit_status(B, ?HANG),
    Again = start(Name),
    NodeB = name(Again),
    ?assertEqual(pong, call(A, net_adm, ping, [NodeB])),
    wait_until(fun() -> call(Again, erlang, nodes, []) =:= [name(A)] end),
    Reason.

%% A linked, a monitored process and the node, all on B, are watched on A: all must be told.
watch(A, B) ->
    NodeB = name(B),
    Self = self(),
    Pid = spawn(fun() ->
                    Self ! {self(), call(A, fun() -> watch_on(NodeB) end)}
                end),
    wait_until(fun() -> call(A, erlang, whereis, [watching]) =/= undefined end),
    Pid.

watch_on(Node) ->
    process_flag(trap_exit, true),
    ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
    Linked = spawn_link(Node, timer, sleep, [infinity]),
    {Monitored, Monitor} = spawn_monitor(Node, timer, sleep, [infinity]),
    Named = monitor(process, {kernel_sup, Node}),
    true = monitor_node(Node, true),
    pong = net_adm:ping(Node),
    register(watching, self()),
    noconnection = exit_of(Linked),
    {process, Monitored, noconnection} = down(Monitor),
    {process, {kernel_sup, Node}, noconnection} = down(Named),
    receive {nodedown, Node} -> ok after ?HANG -> error(no_nodedown) end,
    receive {nodedown, Node, [{nodedown_reason, Reason}]} -> Reason after ?HANG -> error(no_nodedown) end.

reason(Watch) ->
    receive
        {Watch, Reason} -> Reason
    after 2 * ?HANG ->
        error(nothing_was_told)
    end.

%% disconnect_node: both sides are told, and may connect again at once.
peer_disconnected(_) ->
    {A, B} = pair(),
    Watch = watch(A, B),
    WatchB = watch(B, A),
    NodeB = name(B),
    true = call(A, erlang, disconnect_node, [NodeB]),
    ?assertEqual(disconnect, reason(Watch)),
    ?assertEqual(connection_closed, reason(WatchB)),
    ?assertEqual(pong, call(A, net_adm, ping, [NodeB])).

%% The same from the other side: who was dialled hangs up on the dialler.
disconnected_by_peer(_) ->
    {A, B} = pair(),
    Watch = watch(A, B),
    true = call(B, erlang, disconnect_node, [name(A)]),
    ?assertEqual(connection_closed, reason(Watch)),
    ?assertEqual(pong, call(B, net_adm, ping, [name(A)])).

%% net_kernel:stop on one side is a nodedown on the other, and start brings the node back.
peer_stops_distribution(_) ->
    {A, _} = pair(),
    C = start(unique("c"), #{domain => none}),
    NodeC = name(C),
    {ok, _} = call(C, net_kernel, start, [[NodeC, shortnames]]),
    true = call(C, erlang, set_cookie, [NodeC, list_to_atom(macula_test_node:cookie())]),
    pong = call(C, net_adm, ping, [name(A)]),
    wait_until(fun() -> lists:member(NodeC, call(A, erlang, nodes, [])) end),
    ok = call(C, net_kernel, stop, []),
    wait_until(fun() -> not lists:member(NodeC, call(A, erlang, nodes, [])) end),
    {ok, _} = call(C, net_kernel, start, [[NodeC, shortnames]]),
    true = call(C, erlang, set_cookie, [NodeC, list_to_atom(macula_test_node:cookie())]),
    ?assertEqual(pong, call(A, net_adm, ping, [NodeC])).

%% A node killed while data pours in both directions goes down all the same, and comes back.
down_under_load(_) ->
    Reason = went(fun(A, B) ->
                      pour(A, B),
                      pour(B, A),
                      timer:sleep(300),
                      macula_test_node:kill(B)
                  end),
    ?assertEqual(connection_closed, Reason).

pour(From, To) ->
    Node = name(To),
    macula_test_node:cast(From, fun() ->
                                    Sink = spawn_link(Node, fun Eat() -> receive _ -> Eat() end end),
                                    pour_into(Sink, rand:bytes(100_000))
                                end).

%% Linked, so that it ends with the sink's node.
pour_into(Sink, Data) ->
    Sink ! Data,
    pour_into(Sink, Data).

%%% Help

pair() ->
    A = start(unique("a")),
    B = start(unique("b")),
    connect(A, B),
    {A, B}.

start(Name, Options) ->
    macula_test_node:start(Name, Options).

%% A process of this node that does something meanwhile.
worker(Fun) ->
    spawn_monitor(fun() -> exit({result, Fun()}) end).

await({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    after 4 * ?HANG ->
        error(hangs)
    end.
