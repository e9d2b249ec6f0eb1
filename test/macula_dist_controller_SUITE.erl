%% What other parts of a node ask of a distribution controller beside carrying messages.
-module(macula_dist_controller_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, end_per_testcase/2]).
-export([injected_frames_arrive/1, injection_waits_for_room/1, injection_needs_its_flag/1, empty_frames/1,
         options_while_links_come_and_go/1]).

-import(macula_test_node, [call/2, call/4, name/1, connect/2, wait_until/1, unique/1]).

-define(REG_SEND, 6).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [injected_frames_arrive, injection_waits_for_room, injection_needs_its_flag, empty_frames,
     options_while_links_come_and_go].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%% Frames that a process makes itself go out beside the emulator's, in its order.
injected_frames_arrive(_) ->
    {A, B} = pair(["-macula_dist_inject", "true"]),
    NodeB = name(B),
    Numbers = lists:seq(1, 1_000),
    ?assertEqual(Numbers, call(A, fun() -> injected(NodeB, Numbers) end)).

injected(Node, Numbers) ->
    Self = self(),
    Collector = spawn(Node, fun() ->
                                true = register(collector, self()),
                                Self ! {self(), ready},
                                Got = [receive {number, N} -> N end || _ <- Numbers],
                                Self ! {self(), Got}
                        end),
    receive
        {Collector, ready} -> ok
    end,
    [ok = inject(Node, frame(collector, {number, Number}), 10_000) || Number <- Numbers],
    receive
        {Collector, Got} -> Got
    after 10_000 -> error(missing)
    end.

%% While the peer takes nothing, whoever injects is held up, and the link stays bounded; when the
%% peer goes on, so does he.
injection_waits_for_room(_) ->
    {A, B} = pair(["-macula_dist_inject", "true"]),
    NodeB = name(B),
    ok = macula_test_node:signal(B, "STOP"),
    Frame = frame(nobody, binary:copy(<<1>>, 1 bsl 20)),
    Count = call(A, fun() -> start_injector(NodeB, Frame) end),
    Held = call(A, fun() -> settled(Count) end),
    ?assert(Held < 100),
    ok = macula_test_node:signal(B, "CONT"),
    wait_until(fun() -> call(A, fun() -> counted(Count) end) > Held + 100 end).

%% It keeps its count under a name, since counters do not travel.
start_injector(Node, Frame) ->
    Count = counters:new(1, []),
    persistent_term:put(?MODULE, Count),
    _ = spawn(fun() -> inject_for_ever(Node, Frame, Count) end),
    ?MODULE.

inject_for_ever(Node, Frame, Count) ->
    ok = inject(Node, Frame, infinity),
    counters:add(Count, 1, 1),
    inject_for_ever(Node, Frame, Count).

counted(Name) ->
    counters:get(persistent_term:get(Name), 1).

%% The count, when a second has not changed it.
settled(Name) ->
    Before = counted(Name),
    timer:sleep(1_000),
    case counted(Name) of
        Before when Before > 0 -> Before;
        _ -> settled(Name)
    end.

%% Without the flag nobody can: the message is ignored, and the link lives on.
injection_needs_its_flag(_) ->
    {A, B} = pair([]),
    NodeB = name(B),
    ?assertEqual(no_answer, call(A, fun() -> inject(NodeB, frame(nobody, x), 1_000) end)),
    ?assertEqual(pong, call(A, fun() -> net_adm:ping(NodeB) end)),
    ?assert(lists:member(NodeB, call(A, erlang, nodes, []))).

%% The emulator hands out an empty frame in the place of what the peer turned out not to understand. It says nothing,
%% as over TCP.
empty_frames(_) ->
    {A, B} = pair(["-macula_dist_inject", "true"]),
    NodeB = name(B),
    Controller = call(A, fun() -> controller(NodeB) end),
    [?assertEqual([1, 2], call(A, fun() ->
                                      ok = inject(NodeB, <<>>, 10_000),
                                      injected(NodeB, [1, 2])
                                  end)) || _ <- [1, 2]],
    ?assertEqual(Controller, call(A, fun() -> controller(NodeB) end)).

%% Setting options for all links runs in net_kernel: it must never wait for a link that comes or goes.
options_while_links_come_and_go(_) ->
    {A, B} = pair([]),
    NodeB = name(B),
    ?assertEqual({ok, []}, call(A, fun() -> net_kernel:getopts(NodeB, []) end)),
    Setter = macula_test_node:cast(A, fun Set() ->
                                              _ = net_kernel:setopts(new, [{nodelay, true}]),
                                              _ = net_kernel:setopts(NodeB, []),
                                              receive after 1 -> Set() end
                                      end),
    [begin
         true = call(A, fun() -> erlang:disconnect_node(NodeB) end),
         pong = call(A, fun() -> net_adm:ping(NodeB) end)
     end || _ <- lists:seq(1, 50)],
    true = call(A, fun() -> exit(Setter, kill) end).

pair(Args) ->
    A = macula_test_node:start(unique("a"), #{args => Args}),
    B = macula_test_node:start(unique("b"), #{args => Args}),
    ok = connect(A, B),
    {A, B}.

inject(Node, Frame, Timeout) ->
    Ref = make_ref(),
    controller(Node) ! {send, self(), Ref, Frame},
    receive
        {Ref, Answer} -> Answer
    after Timeout -> no_answer
    end.

controller(Node) ->
    {Node, Controller} = lists:keyfind(Node, 1, erlang:system_info(dist_ctrl)),
    Controller.

%% A message to a registered name as the distribution protocol has it, without an atom cache.
frame(Name, Message) ->
    [<<131, $D, 0>>, external({?REG_SEND, self(), '', Name}), external(Message)].

external(Term) ->
    <<131, External/binary>> = term_to_binary(Term),
    External.
