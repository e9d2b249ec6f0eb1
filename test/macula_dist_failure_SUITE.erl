%% What cannot be reached, and who should not be let in: a failed dial ends in time and says why, and
%% no stranger harms a node.
-module(macula_dist_failure_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, end_per_testcase/2]).
-export([unknown_host/1, closed_port/1, silent_port/1, garbage_port/1, mirror_port/1, dns_port/1, other_quic/1,
         http3_server/1, silent_server/1, later_acceptor/1, later_dialler/1, wrong_name/1, wrong_cookie/1,
         name_of_a_live_node/1, illegal_name/1, short_name_with_dot/1, short_setuptime/1, key_before_setuptime/1, one_line_for_many_dials/1]).
-export([stranger/1, flood_of_connections/1]).
-export([idle_link_stays/1, idle_links_sleep/1, stopped_peer_goes_down/1, huge_message_is_life/1]).

-import(macula_test_node, [start/1, start/2, call/2, call/4, name/1, connect/2, wait_until/1, unique/1]).

-define(HANG, 60_000).
%% net_kernel's default, and what a busy machine may add.
-define(SETUP_MS, 7_000).
-define(SLACK_MS, 3_000).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [{group, dials}, {group, strangers}, {group, ticks}].

groups() ->
    [{dials, [unknown_host, closed_port, silent_port, garbage_port, mirror_port, dns_port, other_quic, http3_server,
              silent_server, later_acceptor, later_dialler, wrong_name, wrong_cookie, name_of_a_live_node,
              illegal_name, short_name_with_dot, short_setuptime, key_before_setuptime, one_line_for_many_dials]},
     {strangers, [stranger, flood_of_connections]},
     %% They mostly wait, so they can do so together.
     {ticks, [parallel], [idle_link_stays, idle_links_sleep, stopped_peer_goes_down, huge_message_is_life]}].

%% Nodes of cases that run beside each other end with their case's process.
end_per_testcase(Case, _) when Case =:= idle_link_stays; Case =:= idle_links_sleep;
                               Case =:= stopped_peer_goes_down; Case =:= huge_message_is_life ->
    ok;
end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%%% Dials that fail: pang in time, one line that says why, and the node goes on

unknown_host(_) ->
    A = start(unique("a"), #{domain => longnames}),
    fails(A, 'x@does-not-exist.invalid', ["no such host"]).

%% A machine that is there, and nothing on that port.
closed_port(_) ->
    Port = integer_to_list(macula_test_node:free_port()),
    fails(start(unique("a")), list_to_atom("x@localhost:" ++ Port), [Port, "nothing listens there"]).

%% Something has the port, but never answers.
silent_port(_) ->
    {Port, Close} = macula_test_service:silent(),
    fails(start(unique("a")), node_at(Port), [Port, "did not answer in time"]),
    Close().

%% Something answers, but not QUIC.
garbage_port(_) ->
    {Port, Close} = macula_test_service:garbage(),
    fails(start(unique("a")), node_at(Port), [Port, "does not speak macula", "not in QUIC"]),
    Close().

%% Something sends back what it gets: the node meets itself, and notices.
mirror_port(_) ->
    {Port, Close} = macula_test_service:answering(fun(Packet) -> [Packet] end),
    fails(start(unique("a")), node_at(Port), [Port]),
    Close().

%% Something answers as a name server would: the same id, a flag, a reason.
dns_port(_) ->
    {Port, Close} = macula_test_service:answering(fun(<<Id:16, _:16, Rest/binary>>) -> [<<Id:16, 16#8181:16, Rest/binary>>] end),
    fails(start(unique("a")), node_at(Port), [Port, "does not speak macula", "not in QUIC"]),
    Close().

%% A server of another version of QUIC says so (RFC 9000, 17.2.1).
other_quic(_) ->
    {Port, Close} = macula_test_service:other_quic(),
    fails(start(unique("a")), node_at(Port), [Port, "does not speak macula", "another version of QUIC"]),
    Close().

http3_server(_) ->
    {Port, Close} = macula_test_service:foreign(["h3"]),
    fails(start(unique("a")), node_at(Port), [Port, "does not speak macula", "a QUIC server of another protocol"]),
    Close().

%% It completes TLS as we do, and then has nothing to say.
silent_server(_) ->
    {Port, Close} = macula_test_service:foreign(["silent"]),
    fails(start(unique("a")), node_at(Port), [Port, "did not answer in time"]),
    Close().

%% A node of the future, which has forgotten our version: dialled by us, and dialling us.
later_acceptor(_) ->
    {Port, Close} = macula_test_service:foreign(["offers", "7", "9"]),
    fails(start(unique("a")), node_at(Port), [Port, "speaks versions 7 to 9", "same version of macula"]),
    Close().

later_dialler(_) ->
    A = start(unique("a")),
    {_, Port} = address(A),
    Tool = macula_test_tool:start("foreigner", ["claims", "9", "127.0.0.1:" ++ integer_to_list(Port)]),
    %% REFUSED, for its version.
    ?assertEqual(<<"answered [0, 2, 4, 2]\n">>, macula_test_tool:ended(Tool, ?HANG)),
    macula_test_node:await_said(A, "macula: refused 127.0.0.1:", ?HANG),
    macula_test_node:await_said(A, "no protocol version in common", ?HANG),
    ?assertEqual(pong, call(start(unique("well")), net_adm, ping, [name(A)])).

%% Another node is at that address.
wrong_name(_) ->
    Port = integer_to_list(macula_test_node:free_port()),
    B = start(unique("b"), #{host => "localhost:" ++ Port}),
    A = start(unique("a")),
    fails(A, node_at(Port), [Port, "another node lives there"]),
    ?assertEqual(pong, call(A, net_adm, ping, [name(B)])).

%% Who has another cookie is not let in, from neither side, and the dialler is told why.
wrong_cookie(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{cookie => "another_one"}),
    {NodeA, NodeB} = {name(A), name(B)},
    fails(A, NodeB, ["cookie is another one"]),
    refuses(B, NodeA, "cookie is another one"),
    ?assertEqual(pang, call(B, net_adm, ping, [NodeA])),
    refuses(A, NodeB, "cookie is another one"),
    ?assertNot(lists:member(NodeB, call(A, erlang, nodes, [connected]))),
    ?assertEqual([], call(B, erlang, nodes, [connected])),
    %% With the right one it works at once.
    true = call(A, erlang, set_cookie, [NodeB, another_one]),
    ?assertEqual(pong, call(A, net_adm, ping, [NodeB])).

%% A second node of a name, on a machine that does not know of the first: it is refused by whoever is
%% connected to the first, told so, and the first is not disturbed.
name_of_a_live_node(Config) ->
    Name = unique("b"),
    {A, First} = {start(unique("a")), start(Name)},
    connect(A, First),
    Elsewhere = [{"XDG_RUNTIME_DIR", macula_test_node:scratch(Config)}, {"MACULA_HOME", macula_test_node:scratch(Config)}],
    {_, Port} = address(A),
    Peers = lists:flatten(io_lib:format("#{'~s' => \"127.0.0.1:~b\"}", [name(A), Port])),
    Second = start(Name, #{env => Elsewhere, args => ["-macula", "peers", Peers]}),
    ?assertEqual(name(First), name(Second)),
    Os = macula_test_node:os_pid(First),
    {Time, Answer} = timed(fun() -> call(Second, net_adm, ping, [name(A)]) end),
    ?assertEqual(pang, Answer),
    ?assert(Time < ?SETUP_MS + ?SLACK_MS, Time),
    macula_test_node:await_said(Second, "a live node of that name is connected already", ?HANG),
    macula_test_node:await_said(Second, "no other node runs under this node's name", ?HANG),
    refuses(A, name(Second), "a live node of that name is connected already"),
    ?assertEqual(integer_to_list(Os), call(A, erpc, call, [name(First), os, getpid, []])),
    ?assertEqual([], call(Second, erlang, nodes, [connected])).

%% The refusing side says whom it refused, and why.
refuses(Server, Node, Why) ->
    macula_test_node:await_said(Server, "macula: refused ", ?HANG),
    [Line | _] = [Line || Line <- binary:split(macula_test_node:output(Server), <<"\n">>, [global]),
                          binary:match(Line, <<"macula: refused ">>) =/= nomatch],
    [?assertMatch({_, _}, binary:match(Line, iolist_to_binary(Text)), {Text, Line})
     || Text <- [atom_to_binary(Node, utf8), Why]].

illegal_name(_) ->
    fails_with(start(unique("a")), 'x@localhost:99999', ["cannot dial", "99999 is not a port"]).

short_name_with_dot(_) ->
    fails_with(start(unique("a")), 'x@host.example', ["cannot dial", "short names"]).

%% With a net_setuptime of a second the dial ends within it, its causes told all the same.
short_setuptime(_) ->
    {Port, Close} = macula_test_service:silent(),
    A = start(unique("a"), #{args => ["-kernel", "net_setuptime", "1"]}),
    {Time, pang} = timed(fun() -> call(A, net_adm, ping, [node_at(Port)]) end),
    ?assert(Time < 1_000 + ?SLACK_MS),
    macula_test_node:await_said(A, "did not answer in time", ?HANG),
    Close().

%% A key that takes longer than net_setuptime allows for the whole dial: that time is for the peer.
%% Keys are computed one after the other, so those of other cookies make this one late.
key_before_setuptime(_) ->
    B = start(unique("b")),
    A = start(unique("a"), #{cookie => "another_one", args => ["-kernel", "net_setuptime", "0.5"]}),
    NodeB = name(B),
    true = call(A, erlang, set_cookie, [NodeB, list_to_atom(macula_test_node:cookie())]),
    {ok, Endpoint} = call(A, macula_dist_endpoint, dialling, []),
    Prepare = fun(N) -> macula_dist_cookie:prepare(Endpoint, <<"another cookie ", N>>) end,
    {One, ok} = timed(fun() -> call(A, fun() -> Prepare(0) end) end),
    Keys = 1 + 2_000 div max(1, One),
    {Took, Answer} = timed(fun() ->
                               call(A, fun() ->
                                           [spawn(fun() -> Prepare(N) end) || N <- lists:seq(1, Keys)],
                                           timer:sleep(100),
                                           net_adm:ping(NodeB)
                                       end)
                           end),
    ct:log("one key: ~b ms; behind ~b of them: ~p after ~b ms", [One, Keys, Answer, Took]),
    ?assertEqual(pong, Answer),
    %% Else it would have shown nothing.
    ?assert(Took > 600, Took).

%% A process that keeps trying does not fill the log.
one_line_for_many_dials(_) ->
    A = start(unique("a")),
    {Time, _} = timed(fun() -> call(A, fun() -> [pang = net_adm:ping('nobody@localhost') || _ <- lists:seq(1, 50)] end) end),
    macula_test_node:await_said(A, "cannot reach", ?HANG),
    ?assert(macula_test_node:has_said(A, "cannot reach") =< 1 + Time div 5_000).

fails(A, Node, Texts) ->
    fails_with(A, Node, ["cannot reach" | Texts]).

fails_with(A, Node, Texts) ->
    {Time, Answer} = timed(fun() -> call(A, net_adm, ping, [Node]) end),
    ?assertEqual(pang, Answer),
    ?assert(Time < ?SETUP_MS + ?SLACK_MS, Time),
    macula_test_node:await_said(A, "macula: cannot ", ?HANG),
    Lines = [Line || Line <- binary:split(macula_test_node:output(A), <<"\n">>, [global]),
                     binary:match(Line, <<"macula: cannot ">>) =/= nomatch],
    ct:log("~b ms: ~ts", [Time, Lines]),
    [Line] = Lines,
    [?assertMatch({_, _}, binary:match(Line, iolist_to_binary(Text)), {Text, Line})
     || Text <- [atom_to_binary(Node, utf8) | Texts]],
    %% It is none the worse for it.
    B = start(unique("well"), #{domain => domain(A)}),
    ?assertEqual(pong, call(A, net_adm, ping, [name(B)])).

domain(A) ->
    case call(A, net_kernel, longnames, []) of
        true -> longnames;
        false -> shortnames
    end.

node_at(Port) ->
    list_to_atom("x@localhost:" ++ Port).

timed(Fun) ->
    Before = erlang:monotonic_time(millisecond),
    Result = Fun(),
    {erlang:monotonic_time(millisecond) - Before, Result}.

%%% Strangers

%% Garbage of every kind at the port of a node that is talking: nothing of the talk is lost, the
%% counters tell, and the node is as before.
stranger(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    Count = macula_test_node:full(200_000, 50_000),
    Address = {_, Port} = address(B),
    Before = call(B, macula_dist_endpoint, stats, []),
    Self = self(),
    Talk = spawn_link(fun() -> Self ! {self(), call(A, fun() -> talk(NodeB, Count) end)} end),
    Thrown = throw_garbage(Address, macula_test_node:full(20_000, 4_000)),
    receive {Talk, Result} -> ?assertEqual(ok, Result) after 2 * ?HANG -> error(hangs) end,
    After = call(B, macula_dist_endpoint, stats, []),
    ct:log("~b packets thrown at port ~b~nbefore ~0p~nafter ~0p", [Thrown, Port, Before, After]),
    Moved = [Key || Key <- maps:keys(After), maps:get(Key, After) > maps:get(Key, Before, 0)],
    ct:log("moved: ~0p", [Moved]),
    [?assert(lists:member(Key, Moved), {Key, Moved}) || Key <- [stun, sealed, unknown]],
    ?assertEqual([name(A)], call(B, erlang, nodes, [])),
    ?assertEqual(NodeB, call(A, erpc, call, [NodeB, erlang, node, []])),
    %% And a newcomer still gets in.
    C = start(unique("c")),
    ?assertEqual(pong, call(C, net_adm, ping, [NodeB])).

%% Echoed one by one in windows, so that a loss or a stall shows.
talk(Node, Count) ->
    Echo = spawn_link(Node, fun Loop() -> receive {From, N} -> From ! {echo, N}, Loop() end end),
    [Echo ! {self(), N} || N <- lists:seq(1, Count)],
    [receive {echo, M} -> N = M after ?HANG -> error({lost, N}) end || N <- lists:seq(1, Count)],
    unlink(Echo),
    ok.

throw_garbage({Ip, Port}, Rounds) ->
    {ok, Socket} = gen_udp:open(0, [binary, {active, false}]),
    Initial = real_initial(),
    Thrown = lists:sum([throw_one(Socket, Ip, Port, garbage(N, Initial)) || N <- lists:seq(1, Rounds)]),
    ok = gen_udp:close(Socket),
    Thrown.

throw_one(Socket, Ip, Port, Packet) ->
    %% Now and then a pause: what overflows the socket's buffer is not even looked at.
    rand:uniform(20) =:= 1 andalso timer:sleep(1),
    case gen_udp:send(Socket, Ip, Port, Packet) of
        ok -> 1;
        {error, _} -> 0
    end.

garbage(N, Initial) ->
    Random = rand:bytes(rand:uniform(1_400)),
    case N rem 10 of
        0 -> Random;
        1 -> <<>>;
        2 -> <<(rand:uniform(256) - 1)>>;
        %% A long header of QUIC 1: Initial, 0-RTT, Handshake, Retry.
        3 -> <<3:2, (rand:uniform(64) - 1):6, 1:32, 8, (rand:bytes(8))/binary, 8, Random/binary>>;
        %% The same of a version that nobody knows, large enough for an answer.
        4 -> <<3:2, 0:6, (rand:uniform(16#ffffffff)):32, 8, (rand:bytes(8))/binary, 8, (rand:bytes(1_300))/binary>>;
        %% A short header.
        5 -> <<1:2, (rand:uniform(64) - 1):6, Random/binary>>;
        %% STUN: a type, a length, its magic cookie.
        6 -> <<0:2, 1:14, 0:16, 16#2112A442:32, (rand:bytes(12))/binary>>;
        %% What a sealed datagram of ours would begin with.
        7 -> <<(127 + rand:uniform(64)), Random/binary>>;
        %% The first packet of a true dial, cut short or spoiled.
        8 -> binary:part(Initial, 0, rand:uniform(byte_size(Initial)));
        9 -> spoiled(Initial, rand:uniform(byte_size(Initial)) - 1)
    end.

spoiled(Packet, At) ->
    <<Head:At/binary, Byte, Tail/binary>> = Packet,
    <<Head/binary, (Byte bxor rand:uniform(255)), Tail/binary>>.

%% What a node sends first when it dials.
real_initial() ->
    Self = self(),
    {Port, Close} = macula_test_service:answering(fun(Packet) -> Self ! {initial, Packet}, [] end),
    A = start(unique("dialler")),
    macula_test_node:cast(A, net_adm, ping, [node_at(Port)]),
    Initial = receive {initial, Packet} -> Packet after ?HANG -> error(nothing_came) end,
    macula_test_node:stop(A),
    Close(),
    Initial.

%% The first packet of a dial over and over, each as from a new client: what is open stays open, what
%% is new gets in, and memory does not grow with it.
flood_of_connections(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    {Ip, Port} = address(B),
    Initial = real_initial(),
    Before = call(B, macula_nif, memory, []),
    Sockets = [element(2, {ok, _} = gen_udp:open(0, [binary, {active, false}])) || _ <- lists:seq(1, 50)],
    [gen_udp:send(Socket, Ip, Port, renumbered(Initial)) || _ <- lists:seq(1, 20), Socket <- Sockets],
    ?assertEqual(NodeB, call(A, erpc, call, [NodeB, erlang, node, []])),
    C = start(unique("c")),
    wait_until(fun() -> call(C, net_adm, ping, [NodeB]) =:= pong end),
    [ok = gen_udp:close(Socket) || Socket <- Sockets],
    ct:log("native memory ~b, then ~b, ~0p", [Before, call(B, macula_nif, memory, []), call(B, macula_dist_endpoint, stats, [])]),
    %% The half-open ones are dropped in time.
    wait_until(fun() -> call(B, macula_nif, memory, []) < Before + 16_000_000 end),
    ?assertEqual([name(A)], call(B, fun() -> nodes() end) -- [name(C)]).

%% Another destination id: the server takes it for a new connection (and cannot decrypt it).
renumbered(<<First, Version:4/binary, Length, _:Length/binary, Rest/binary>>) ->
    <<First, Version/binary, Length, (rand:bytes(Length))/binary, Rest/binary>>.

%%% Ticks

%% With a tick time of four seconds an idle link is still up after twenty.
idle_link_stays(_) ->
    {A, B} = pair(#{args => ["-kernel", "net_ticktime", "4"]}),
    NodeB = name(B),
    Down = macula_test_node:full(60_000, 10_000),
    ?assertEqual(up, call(A, fun() ->
                                 true = monitor_node(NodeB, true),
                                 receive {nodedown, NodeB} -> down after Down -> up end
                             end)),
    ?assertEqual([NodeB], call(A, erlang, nodes, [])),
    ?assertEqual([name(A)], call(B, erlang, nodes, [])).

%% A link on which nothing happens wakes the node for its keep-alives, every other second, and for nothing else: each
%% takes a few wake-ups, of a timer and of packets. With a timer of its own that ran twice a second it was 4.7 in place of 2 a second.
idle_links_sleep(_) ->
    Alone = #{args => ["-connect_all", "false"]},
    A = start(unique("a"), Alone),
    %% Until it has made its keys.
    timer:sleep(5_000),
    Before = wake_ups(A),
    Peers = [start(unique("b"), Alone) || _ <- lists:seq(1, 4)],
    [ok = connect(A, B) || B <- Peers],
    %% Until QUIC knows its paths, and the threads that made the keys have ended.
    timer:sleep(12_000),
    Each = (wake_ups(A) - Before) / length(Peers),
    ct:pal("an idle link: ~.1f wake-ups a second; a node without links: ~.1f", [Each, Before]),
    ?assert(Each < 3.5),
    ?assertEqual(4, length(call(A, erlang, nodes, []))).

%% How often a second native threads of a node wake up.
wake_ups(Node) ->
    Seconds = 6,
    Before = sleeps(Node),
    timer:sleep(Seconds * 1000),
    After = sleeps(Node),
    lists:sum([Count - maps:get(Thread, Before, Count) || {Thread, Count} <- maps:to_list(After)]) / Seconds.

%% How often each of them has gone to sleep.
sleeps(Node) ->
    Threads = filelib:wildcard(lists:concat([macula_test_node:os_pid(Node), "/task/*"]), "/proc"),
    maps:from_list([{Thread, Count} || Thread <- Threads, is_native(Thread),
                                       {ok, Count} <- [macula_test_node:os_status(Thread, "voluntary_ctxt_switches")]]).

is_native(Thread) ->
    file:read_file(filename:join(["/proc", Thread, "comm"])) =:= {ok, <<"macula\n">>}.

%% A peer that is stopped, but whose port is still there, is declared down; when it goes on it can
%% connect again.
stopped_peer_goes_down(_) ->
    {A, B} = pair(#{args => ["-kernel", "net_ticktime", "4"]}),
    {NodeA, NodeB} = {name(A), name(B)},
    Self = self(),
    Watch = spawn_link(fun() -> Self ! {self(), call(A, fun() -> nodedown_reason(NodeB) end)} end),
    wait_until(fun() -> call(A, erlang, whereis, [watching]) =/= undefined end),
    macula_test_node:signal(B, "STOP"),
    receive
        {Watch, Reason} -> ?assertEqual(net_tick_timeout, Reason)
    after ?HANG -> error(not_noticed)
    end,
    macula_test_node:signal(B, "CONT"),
    wait_until(fun() -> call(B, net_adm, ping, [NodeA]) =:= pong end),
    ?assertEqual([NodeB], call(A, erlang, nodes, [])).

nodedown_reason(Node) ->
    ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
    register(watching, self()),
    receive
        {nodedown, Node, [{nodedown_reason, Reason}]} -> Reason
    after ?HANG -> error(not_noticed)
    end.

%% A transfer that takes longer than the tick time keeps its link up: its parts are signs of life.
huge_message_is_life(_) ->
    {A, B} = pair(#{args => ["-kernel", "net_ticktime", "4"]}),
    NodeB = name(B),
    ?assertEqual(ok, call(A, fun() ->
                                 true = monitor_node(NodeB, true),
                                 Until = erlang:monotonic_time(millisecond) + 10_000,
                                 keep_busy(NodeB, rand:bytes(64 bsl 20), Until)
                             end)).

keep_busy(Node, Data, Until) ->
    Size = byte_size(Data),
    Size = erpc:call(Node, erlang, byte_size, [Data]),
    receive
        {nodedown, Node} -> nodedown
    after 0 ->
        case erlang:monotonic_time(millisecond) > Until of
            true -> ok;
            false -> keep_busy(Node, Data, Until)
        end
    end.

%%% Help

pair() ->
    pair(#{}).

pair(Options) ->
    A = start(unique("a"), Options),
    B = start(unique("b"), Options),
    connect(A, B),
    {A, B}.

address(Server) ->
    {ok, Address} = call(Server, macula_dist_registry, find, [atom_to_binary(name(Server), utf8)]),
    Address.
