%% Constant traffic between two nodes, both ways: numbered and checked messages, small and large, and how long it takes
%% until something sent now has come and been answered.
-module(macula_test_traffic).

-include_lib("stdlib/include/assert.hrl").

-export([start/3, resumed_ms/1, assert_sound/1]).

-import(macula_test_node, [call/2, call/3, cast/2, name/1]).

-export_type([traffic/0]).

-type traffic() :: [{Node :: macula_test_node:server(), Peer :: macula_test_node:server(), Receiver :: pid()}].

-define(PAUSE_MS, 5).
%% Every so manieth message is a large one.
-define(LARGE_EVERY, 100).
-define(HANG_MS, 30_000).

%% @doc Begins: the nodes are connected and stay so. Large: bytes of the large messages.
-spec start(macula_test_node:server(), macula_test_node:server(), pos_integer()) -> traffic().
start(A, B, Large) ->
    Traffic = [{Node, Peer, cast(Node, fun receiver/0)} || {Node, Peer} <- [{A, B}, {B, A}]],
    [cast(Node, fun() -> sender(receiver_on(Peer, Traffic), Large, 1) end) || {Node, Peer, _} <- Traffic],
    Traffic.

receiver_on(Node, Traffic) ->
    {Node, _, Receiver} = lists:keyfind(Node, 1, Traffic),
    Receiver.

%% @doc Until what is sent now, by either, was answered: in milliseconds, the longer of both.
-spec resumed_ms(traffic()) -> non_neg_integer().
resumed_ms(Traffic) ->
    Test = self(),
    Askers = [begin
                  To = receiver_on(Peer, Traffic),
                  spawn_link(fun() -> Test ! {self(), call(Node, fun() -> answered_ms(To) end, ?HANG_MS)} end)
              end || {Node, Peer, _} <- Traffic],
    lists:max([receive {Asker, Ms} -> Ms end || Asker <- Askers]).

%% @doc Whether all that came was what was sent, in order, and nobody lost the other.
-spec assert_sound(traffic()) -> Received :: pos_integer().
assert_sound(Traffic) ->
    Counts = [begin
                  {Count, Wrong, Nodes} = call(Node, fun() -> {C, W} = ask(Receiver, report), {C, W, nodes()} end),
                  ?assertEqual([], Wrong),
                  ?assert(lists:member(name(Peer), Nodes)),
                  ?assertEqual(0, macula_test_node:has_said(Node, "nodedown")),
                  Count
              end || {Node, Peer, Receiver} <- Traffic],
    [?assert(Count > 0) || Count <- Counts],
    lists:sum(Counts).

%%% On the nodes

sender(Receiver, Large, Number) ->
    Size = case Number rem ?LARGE_EVERY of
               0 -> Large;
               _ -> 10
           end,
    Payload = rand:bytes(Size),
    Receiver ! {data, Number, erlang:crc32(Payload), Payload},
    timer:sleep(?PAUSE_MS),
    sender(Receiver, Large, Number + 1).

receiver() ->
    ok = net_kernel:monitor_nodes(true),
    receiver(0, []).

receiver(Last, Wrong) ->
    receive
        {data, Number, Sum, Payload} ->
            IsSound = Number =:= Last + 1 andalso Sum =:= erlang:crc32(Payload),
            receiver(Number, [{Last, Number} || not IsSound] ++ Wrong);
        {nodedown, Node} ->
            receiver(Last, [{nodedown, Node} | Wrong]);
        {nodeup, _} ->
            receiver(Last, Wrong);
        {From, Ref, report} ->
            From ! {Ref, {Last, Wrong}},
            receiver(Last, Wrong);
        {From, Ref, answer} ->
            From ! {Ref, ok},
            receiver(Last, Wrong)
    end.

answered_ms(Receiver) ->
    Began = erlang:monotonic_time(millisecond),
    ok = ask(Receiver, answer),
    erlang:monotonic_time(millisecond) - Began.

ask(Receiver, What) ->
    Ref = monitor(process, Receiver),
    Receiver ! {self(), Ref, What},
    receive
        {Ref, Answer} ->
            demonitor(Ref, [flush]),
            Answer;
        {'DOWN', Ref, _, _, Reason} ->
            {gone, Reason}
    end.
