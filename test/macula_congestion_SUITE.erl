%% Congestion control on a line that loses packets without being full: what CUBIC and BBR make of it.
-module(macula_congestion_SUITE).

-include_lib("eunit/include/eunit.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([straight/1, through_a_relay/1]).

-import(macula_test_node, [call/2, call/4, cast/2, connect/2, unique/1]).
-import(macula_test_mesh, [node_on/3, join/2, only_relays/0]).

%% 20 ms and 1 % loss each way in all, and more room than loss leaves to CUBIC.
-define(WIRE, #{delay => 10, loss => 0.005, rate => 100}).
%% So many times as much comes through with BBR, at least; 27 to 29 times as much were measured.
-define(RATIO, 3).
-define(BEGUN_MS, 2_000).
-define(MEASURED_MS, 4_000).
-define(MESSAGE, (64 bsl 10)).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [straight, through_a_relay].

init_per_suite(Config) ->
    case netlab:requires() of
        ok -> Config;
        Skip -> Skip
    end.

end_per_suite(_) -> ok.

end_per_testcase(_, Config) ->
    macula_test_node:stop_all(),
    netlab:stop_all(Config).

straight(_) ->
    Lab = lab(),
    is_quicker([{Congestion, rate(pair(Lab, env(Congestion)))} || Congestion <- ["cubic", "bbr"]]).

%% Whoever sends packets on goes by its own congestion control, so the relay does as well.
through_a_relay(_) ->
    Lab = lab(),
    is_quicker([{Congestion, relayed(Lab, env(Congestion))} || Congestion <- ["cubic", "bbr"]]).

is_quicker([{"cubic", Cubic}, {"bbr", Bbr}]) ->
    ct:pal("bytes/s: ~b with CUBIC, ~b with BBR", [Cubic, Bbr]),
    ?assert(Bbr >= ?RATIO * Cubic).

lab() ->
    netlab:start(#{nets => #{net => #{}}, hosts => #{a => {net, ?WIRE}, b => {net, ?WIRE}, p => net}}).

env(Congestion) -> [{"MACULA_CONGESTION", Congestion}].

pair(Lab, Env) ->
    [node_on(Lab, Host, #{env => Env}) || Host <- [a, b]].

relayed(Lab, Env) ->
    Relay = macula_test_node:start(unique("relay"), #{within => netlab:within(Lab, p), domain => none, env => Env}),
    ok = call(Relay, macula, start_relay, [#{port => 4433}]),
    Nodes = pair(Lab, Env ++ only_relays()),
    [ok = join(Node, #{}) || Node <- Nodes],
    rate(Nodes).

%% Bytes a second that arrive. The nodes end then: others have the line to themselves.
rate([A, B]) ->
    connect(A, B),
    Sink = cast(B, fun() -> count(0) end),
    _ = cast(A, fun() -> send(Sink, rand:bytes(?MESSAGE)) end),
    timer:sleep(?BEGUN_MS),
    Before = counted(B, Sink),
    timer:sleep(?MEASURED_MS),
    After = counted(B, Sink),
    macula_test_node:stop_all(),
    (After - Before) * 1000 div ?MEASURED_MS.

count(Bytes) ->
    receive
        {counted, From} -> From ! {self(), Bytes}, count(Bytes);
        Message -> count(Bytes + byte_size(Message))
    end.

counted(Node, Sink) ->
    call(Node, fun() -> Sink ! {counted, self()}, receive {Sink, Bytes} -> Bytes end end).

send(Sink, Message) ->
    Sink ! Message,
    send(Sink, Message).
