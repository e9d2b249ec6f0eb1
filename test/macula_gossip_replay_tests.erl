-module(macula_gossip_replay_tests).

-include_lib("eunit/include/eunit.hrl").

-define(NOW, 1_700_000_000_000).

%% Each announcement once, and only in rising order of time.
once_test() ->
    ?assertEqual([fresh, repeated, fresh, repeated, repeated],
                 judge(false, [dated(a, 0), dated(a, 0), dated(a, 5), dated(a, 3), dated(a, 5)])).

%% Names do not get in each other's way.
by_name_test() ->
    ?assertEqual([fresh, fresh, repeated], judge(false, [dated(a, 5), dated(b, 1), dated(a, 1)])).

%% Too old or too far ahead: not taken, and not remembered either.
clock_test() ->
    ?assertEqual([{clock, -60_001}, {clock, 60_001}, fresh, fresh],
                 judge(false, [dated(a, -60_001), dated(a, 60_001), dated(a, -60_000), dated(a, 60_000)])).

%% Plain ones count until their name has said a time, and never under strict.
plain_test_() ->
    [?_assertEqual([fresh, fresh, fresh, undated, fresh], judge(false, [plain(a), plain(a), dated(a, 1), plain(a), plain(b)])),
     ?_assertEqual([undated, fresh], judge(true, [plain(a), dated(a, 1)])),
     %% A recording with a bad clock does not lock a plain sender out.
     ?_assertEqual([{clock, -70_000}, fresh], judge(false, [dated(a, -70_000), plain(a)]))].

%% Memory is bounded: the name longest unheard is forgotten.
bounded_test_() ->
    {timeout, 60,
     fun() ->
             Verdicts = judge(false, [dated(N, N) || N <- lists:seq(1, 10_001)] ++ [dated(10_001, 10_001), dated(2, 2)]),
             ?assertEqual([repeated, repeated], lists:nthtail(10_001, Verdicts))
     end}.

judge(Strict, Announcements) ->
    {Verdicts, _} = lists:mapfoldl(fun(A, Replay) -> macula_gossip_replay:judge(A, ?NOW, Replay) end,
                                   macula_gossip_replay:new(Strict), Announcements),
    Verdicts.

dated(Name, Offset) -> #{name => name(Name), form => dated, kind => hello, time => ?NOW + Offset}.

plain(Name) -> #{name => name(Name), form => plain, kind => hello}.

name(Name) -> iolist_to_binary(io_lib:format("~p@h", [Name])).
