%% A node is killed and comes back under its name, at once, before its peer has any reason to think
%% it gone: the peer is idle meanwhile. Whoever calls first, they are connected again within two seconds of
%% the node's being up, whether its key was kept or not.
-module(macula_restart_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, end_per_testcase/2]).
-export([newcomer_calls/1, survivor_calls/1, newcomer_calls_with_fresh_home/1, survivor_calls_with_fresh_home/1,
         busy_survivor/1, busy_survivor_with_fresh_home/1]).

-import(macula_test_node, [start/1, start/2, call/2, call/4, name/1, connect/2, wait_until/1, unique/1]).

%% What the product promises, from being up to being reached.
-define(REACHED_MS, 2_000).
%% Where a connection would have been given up in any case.
-define(NEVER_MS, 30_000).

suite() ->
    [{timetrap, {minutes, 15}}].

all() ->
    [newcomer_calls, survivor_calls, newcomer_calls_with_fresh_home, survivor_calls_with_fresh_home,
     busy_survivor, busy_survivor_with_fresh_home].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

newcomer_calls(_) ->
    restarts(idle, fun macula_test_node:home/0, fun(A, B) -> {B, name(A), A} end).

survivor_calls(_) ->
    restarts(idle, fun macula_test_node:home/0, fun(A, B) -> {A, name(B), B} end).

%% Without its key nothing that the newcomer's system sends tells the survivor that the old link is dead.
newcomer_calls_with_fresh_home(Config) ->
    restarts(idle, fun() -> macula_test_node:scratch(Config) end, fun(A, B) -> {B, name(A), A} end).

survivor_calls_with_fresh_home(Config) ->
    restarts(idle, fun() -> macula_test_node:scratch(Config) end, fun(A, B) -> {A, name(B), B} end).

%% The survivor sends all the time, and so hears of the closed port.
busy_survivor(_) ->
    restarts(busy, fun macula_test_node:home/0, fun(A, B) -> {A, name(B), B} end).

busy_survivor_with_fresh_home(Config) ->
    restarts(busy, fun() -> macula_test_node:scratch(Config) end, fun(A, B) -> {A, name(B), B} end).

%% How gives who calls, the name it calls, and the node that is to answer.
restarts(Doing, Home, How) ->
    A = start(unique("a")),
    Name = unique("b"),
    Host = "localhost:" ++ integer_to_list(macula_test_node:free_port()),
    Start = fun() -> start(Name, #{host => Host, env => [{"MACULA_HOME", Home()}]}) end,
    B = Start(),
    Times = restart(macula_test_node:full(50, 3), Doing, Start, How, A, B, []),
    Sorted = lists:sort(Times),
    P95 = lists:nth(ceil(length(Sorted) * 0.95), Sorted),
    ct:pal("~b restarts, reached after: p50 ~b ms, p95 ~b ms, most ~b ms",
           [length(Sorted), lists:nth(ceil(length(Sorted) / 2), Sorted), P95, lists:last(Sorted)]),
    ?assert(P95 =< ?REACHED_MS, Sorted).

restart(0, _, _, _, _, _, Times) ->
    Times;
restart(Count, Doing, Start, How, A, B, Times) ->
    connect(A, B),
    NodeB = name(B),
    Busy = busy(Doing, A, NodeB),
    macula_test_node:kill(B),
    Again = Start(),
    Up = erlang:monotonic_time(millisecond),
    {Caller, Callee, Server} = How(A, Again),
    Life = integer_to_list(macula_test_node:os_pid(Server)),
    call(Caller, fun() -> reach(Callee, Life, erlang:monotonic_time(millisecond) + ?NEVER_MS) end),
    Time = erlang:monotonic_time(millisecond) - Up,
    call(A, erlang, exit, [Busy, kill]),
    %% One link, to this life, and nothing left of the former one.
    wait_until(fun() -> [NodeB] =:= call(A, erlang, nodes, [connected]) end),
    wait_until(fun() -> length(call(A, macula, links, [])) =:= 1 end),
    ?assertEqual([name(A)], call(Again, erlang, nodes, [connected])),
    restart(Count - 1, Doing, Start, How, A, Again, [Time | Times]).

%% As a user would notice: a call is answered, by the new life of the node.
reach(Node, Life, Deadline) ->
    erlang:monotonic_time(millisecond) < Deadline orelse error({not_reached, Node}),
    try erpc:call(Node, os, getpid, [], 200) of
        Life -> ok
    catch
        error:{erpc, _} -> reach_again(Node, Life, Deadline)
    end.

reach_again(Node, Life, Deadline) ->
    timer:sleep(10),
    reach(Node, Life, Deadline).

busy(idle, A, _) ->
    macula_test_node:cast(A, fun() -> ok end);
busy(busy, A, Node) ->
    macula_test_node:cast(A, fun() -> keep_sending(Node) end).

keep_sending(Node) ->
    erlang:send({nobody, Node}, some_words, [noconnect]),
    timer:sleep(10),
    keep_sending(Node).
