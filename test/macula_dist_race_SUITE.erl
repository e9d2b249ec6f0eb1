%% Connections that come and go, again and again: both sides dialling at once, and what a connection
%% leaves behind.
-module(macula_dist_race_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, end_per_testcase/2]).
-export([simultaneous_dials/1, simultaneous_dials_of_three/1, dial_during_disconnect/1, reconnect_at_once/1,
         reconnect_before_the_peer_is_through/1, connects_leave_nothing_behind/1, failed_dials_leave_nothing_behind/1]).

-import(macula_test_node, [start/1, call/2, call/4, name/1, connect/2, wait_until/1, unique/1]).

-define(HANG, 60_000).
%% The first rounds may load modules, grow tables and pools.
-define(WARM_UP, 20).

suite() ->
    [{timetrap, {minutes, 10}}].

all() ->
    [simultaneous_dials, simultaneous_dials_of_three, dial_during_disconnect, reconnect_at_once,
     reconnect_before_the_peer_is_through, connects_leave_nothing_behind, failed_dials_leave_nothing_behind].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%% Both nodes dial at the same instant: they always end up with exactly one connection.
simultaneous_dials(_) ->
    Rounds = macula_test_node:full(1_000, 200),
    Nodes = [start(unique("a")), start(unique("b"))],
    [race(Round, Nodes) || Round <- lists:seq(1, Rounds)],
    ct:log("~b rounds", [Rounds]).

%% The same with three nodes, each of which dials both others.
simultaneous_dials_of_three(_) ->
    Rounds = macula_test_node:full(100, 20),
    Nodes = [start(unique(Name), #{args => ["-kernel", "prevent_overlapping_partitions", "false"]})
             || Name <- ["a", "b", "c"]],
    [race(Round, Nodes) || Round <- lists:seq(1, Rounds)].

race(Round, Nodes) ->
    Instant = erlang:system_time(microsecond) + 20_000,
    Results = parallel([fun() -> dial_at(Instant, Node, names(Nodes, Node)) end || Node <- Nodes]),
    %% Who was told `true' is connected; a dial given up for the peer's own is answered true as well.
    ?assertEqual({Round, [[true || _ <- tl(Nodes)] || _ <- Nodes]}, {Round, Results}),
    %% Long enough for a second connection to show, were there one.
    wait_until(fun() -> lists:all(fun(Node) -> is_settled(Node, names(Nodes, Node)) end, Nodes) end),
    [true = is_settled(Node, names(Nodes, Node)) || Node <- Nodes],
    %% It is a connection that works.
    [?assertEqual(Peer, call(Node, erpc, call, [Peer, erlang, node, []]))
     || Node <- Nodes, Peer <- names(Nodes, Node)],
    [call(Node, fun() -> [erlang:disconnect_node(Peer) || Peer <- nodes()] end) || Node <- tl(Nodes)],
    wait_until(fun() -> lists:all(fun(Node) -> is_settled(Node, []) end, Nodes) end).

dial_at(Instant, Node, Peers) ->
    call(Node, fun() -> dial_at(Instant, Peers) end).

dial_at(Instant, Peers) ->
    timer:sleep(max(0, (Instant - erlang:system_time(microsecond)) div 1_000 - 2)),
    wait_for(Instant),
    Self = self(),
    Pids = [spawn_link(fun() -> Self ! {self(), net_kernel:connect_node(Peer)} end) || Peer <- Peers],
    [receive {Pid, Result} -> Result end || Pid <- Pids].

wait_for(Instant) ->
    case erlang:system_time(microsecond) >= Instant of
        true -> ok;
        false -> wait_for(Instant)
    end.

%% Exactly these nodes, and one established link to each.
is_settled(Node, Peers) ->
    call(Node, fun() ->
                   lists:sort(nodes(connected)) =:= lists:sort(Peers)
                       andalso lists:sort([Peer || #{node := Peer} <- macula:links()]) =:= lists:sort(Peers)
               end).

%% One side hangs up, and the other dials again before it may have heard of that.
dial_during_disconnect(_) ->
    Rounds = macula_test_node:full(200, 50),
    A = start(unique("a")),
    B = start(unique("b")),
    {NodeA, NodeB} = {name(A), name(B)},
    connect(A, B),
    [begin
         true = call(A, erlang, disconnect_node, [NodeB]),
         wait_until(fun() -> call(B, net_adm, ping, [NodeA]) =:= pong end),
         wait_until(fun() -> is_settled(A, [NodeB]) andalso is_settled(B, [NodeA]) end)
     end || _ <- lists:seq(1, Rounds)].

%% Disconnected while frames are on their way, and connected again at once: what still comes of the old
%% connection is dropped, and nothing falls over it.
reconnect_at_once(_) ->
    {A, B} = {start(unique("a")), start(unique("b"))},
    {NodeA, NodeB} = {name(A), name(B)},
    connect(A, B),
    _ = macula_test_node:cast(B, fun() -> chatter(NodeA) end),
    Failed = missed_connects(A, NodeB, macula_test_node:full(1_000, 200)),
    [?assertEqual({[], <<>>}, {Failed, macula_test_node:output(Server)}) || Failed =/= [], Server <- [A, B]],
    wait_until(fun() -> call(A, net_adm, ping, [NodeB]) =:= pong end),
    [?assertEqual(0, macula_test_node:has_said(Server, "Error in process")) || Server <- [A, B]].

%% For the dialler a handshake is over with the peer's last packet. It may hang up and dial again before
%% the peer has told its net_kernel or knows that the first call is over, here as if that peer's
%% schedulers were held up: the second call is not one of both nodes at the same time.
reconnect_before_the_peer_is_through(_) ->
    %% Of two calls at once net_kernel prefers one by the names, so both orders.
    [begin
         {A, B} = {start(unique(NameA)), start(unique(NameB))},
         [slow_down(B, Function) || Function <- [{macula_dist, remote_address, 2}, {macula_dist_bridge, leave, 2}]],
         ?assertEqual([], missed_connects(A, name(B), 10)),
         wait_until(fun() -> call(A, net_adm, ping, [name(B)]) =:= pong end),
         [?assertEqual(0, macula_test_node:has_said(Server, "Net kernel got")) || Server <- [A, B]]
     end || {NameA, NameB} <- [{"a", "b"}, {"d", "c"}]].

%% Has a function begin with a pause on that node.
slow_down(Node, {Module, Function, Arity}) ->
    {ok, {Module, [{abstract_code, {_, Forms}}]}} = beam_lib:chunks(code:which(Module), [abstract_code]),
    {ok, Tokens, _} = erl_scan:string("timer:sleep(50)."),
    {ok, [Pause]} = erl_parse:parse_exprs(Tokens),
    Slow = [case Form of
                {function, Line, Function, Arity, Clauses} ->
                    {function, Line, Function, Arity,
                     [setelement(5, Clause, [Pause | element(5, Clause)]) || Clause <- Clauses]};
                _ ->
                    Form
            end || Form <- Forms],
    ?assertNotEqual(Forms, Slow),
    {ok, Module, Beam} = compile:forms(Slow),
    {module, Module} = call(Node, code, load_binary, [Module, "slow", Beam]).

missed_connects(From, To, Rounds) ->
    call(From, fun() -> [Round || Round <- lists:seq(1, Rounds), not comes_and_goes(To)] end).

comes_and_goes(Node) ->
    IsConnected = net_kernel:connect_node(Node),
    timer:sleep(rand:uniform(10)),
    _ = erlang:disconnect_node(Node),
    IsConnected.

chatter(Node) ->
    [erlang:send({nobody, Node}, N, [noconnect]) || N <- lists:seq(1, 100)],
    erlang:yield(),
    chatter(Node).

%% After many connections nothing is left: no process, port, file descriptor, atom, memory.
connects_leave_nothing_behind(_) ->
    Rounds = macula_test_node:full(200, 60),
    A = start(unique("a")),
    B = start(unique("b")),
    Round = fun() ->
                connect(A, B),
                ?assertEqual(name(B), call(A, erpc, call, [name(B), erlang, node, []])),
                true = call(A, erlang, disconnect_node, [name(B)]),
                wait_until(fun() -> is_settled(A, []) andalso is_settled(B, []) end)
            end,
    same_after([A, B], Rounds, Round).

%% Nor do dials that fail: a name that is not there, a closed port.
failed_dials_leave_nothing_behind(_) ->
    Rounds = macula_test_node:full(200, 25),
    A = start(unique("a")),
    Port = integer_to_list(macula_test_node:free_port()),
    Closed = list_to_atom("closed@localhost:" ++ Port),
    Round = fun() ->
                ?assertEqual([pang, pang], call(A, fun() -> [net_adm:ping(N) || N <- ['nobody@localhost', Closed]] end))
            end,
    same_after([A], Rounds, Round).

same_after(Nodes, Rounds, Round) ->
    [Round() || _ <- lists:seq(1, ?WARM_UP)],
    First = [settled_use(Node, fun(_) -> true end) || Node <- Nodes],
    [Round() || _ <- lists:seq(1, Rounds)],
    Second = [settled_use(Node, fun(Use) -> is_same(Was, Use) end) || {Node, Was} <- lists:zip(Nodes, First)],
    case lists:all(fun({Was, Is}) -> is_same(Was, Is) end, lists:zip(First, Second)) of
        true ->
            ok;
        false ->
            %% Some things are made once, late; what leaks grows again.
            ct:log("grown once: ~0p -> ~0p", [First, Second]),
            same_again(Nodes, Second, Rounds, Round)
    end.

same_again(Nodes, Before, Rounds, Round) ->
    [Round() || _ <- lists:seq(1, Rounds)],
    [begin
         %% Connections that are closed drain for two seconds at most: it need not be at once.
         After = settled_use(Node, fun(Use) -> is_same(Was, Use) end),
         ct:log("~ts~nbefore ~0p~nafter ~b rounds ~0p", [name(Node), Was, Rounds, After]),
         ?assertEqual(maps:remove(memory, Was), maps:remove(memory, After)),
         ?assert(is_same(Was, After))
     end || {Node, Was} <- lists:zip(Nodes, Before)].

is_same(#{memory := Was} = Before, #{memory := Is} = After) ->
    maps:remove(memory, Before) =:= maps:remove(memory, After) andalso Is =< Was * 1.1.

%% What a node uses, once that has not changed for a while and is as wished, or time is up.
settled_use(Node, Wish) ->
    settled_use(Node, Wish, 30, none).

settled_use(Node, Wish, Tries, Last) ->
    Use = use(Node),
    Steady = Last =/= none andalso maps:remove(memory, Use) =:= maps:remove(memory, Last),
    case (Steady andalso Wish(Use)) orelse Tries =:= 0 of
        true ->
            Use;
        false ->
            timer:sleep(500),
            settled_use(Node, Wish, Tries - 1, Use)
    end.

use(Node) ->
    call(Node, fun() ->
                   [garbage_collect(Pid) || Pid <- processes()],
                   Native = macula_nif:memory(),
                   {ok, Fds} = file:list_dir("/proc/self/fd"),
                   #{processes => erlang:system_info(process_count),
                     ports => erlang:system_info(port_count),
                     atoms => erlang:system_info(atom_count),
                     fds => length(Fds),
                     memory => erlang:memory(total) + Native}
               end).

%%% Help

names(Nodes, Except) ->
    [name(Node) || Node <- Nodes, Node =/= Except].

start(Name, Options) ->
    macula_test_node:start(Name, Options).

parallel(Funs) ->
    Workers = [spawn_monitor(fun() -> exit({result, Fun()}) end) || Fun <- Funs],
    [receive
         {'DOWN', Monitor, process, Pid, {result, Result}} -> Result;
         {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
     after 2 * ?HANG -> error(deadlock)
     end || {Pid, Monitor} <- Workers].
