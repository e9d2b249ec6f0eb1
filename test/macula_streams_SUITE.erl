%% Many streams between two nodes: the order of signals, and that who waits for room on one stream holds up nobody else and
%% goes on in the end, whatever happens meanwhile.
-module(macula_streams_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_group/2, end_per_group/2,
         end_per_testcase/2]).
-export([order/1]).

-import(macula_test_node, [call/2, call/3, name/1, connect/2, full/2]).
-import(macula_test_mesh, [node_on/2]).

%% The signals of an hour are checked by MACULA_STREAMS_SECONDS=3600.
-define(ORDER_SECONDS, full(60, 10)).
%% On each node as many senders as receivers.
-define(ORDER_PROCESSES, full(1000, 500)).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [{group, bad_link}].

groups() ->
    [{bad_link, [order]}].

init_per_suite(Config) -> Config.

end_per_suite(_) -> ok.

init_per_group(bad_link, Config) ->
    case netlab:requires() of
        ok -> Config;
        Skip -> Skip
    end.

end_per_group(_, _) -> ok.

end_per_testcase(_, Config) ->
    macula_test_node:stop_all(),
    netlab:stop_all(Config).

%%% Order

%% 20 ms each way, lost and late packets: streams overtake each other all the time.
order(_) ->
    Seconds = setting("MACULA_STREAMS_SECONDS", ?ORDER_SECONDS),
    Seed = setting("MACULA_STREAMS_SEED", erlang:system_time(millisecond)),
    ct:timetrap({seconds, Seconds + 300}),
    ct:pal("seed ~b: MACULA_STREAMS_SEED=~b repeats it", [Seed, Seed]),
    Lab = netlab:start(wan, #{seed => Seed, delay => 20, loss => 0.01, reorder => 0.05}),
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    connect(A, B),
    NodeB = name(B),
    Run = fun() -> macula_test_order:run(NodeB, Seed, ?ORDER_PROCESSES, Seconds) end,
    {Waves, Signals} = call(A, Run, infinity),
    ct:pal("~b signals in ~b waves", [Signals, Waves]),
    [?assertMatch([_], call(Node, fun macula:links/0)) || Node <- Nodes].

setting(Name, Default) ->
    case os:getenv(Name) of
        false -> Default;
        Text -> list_to_integer(Text)
    end.
