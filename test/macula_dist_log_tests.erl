-module(macula_dist_log_tests).

-include_lib("eunit/include/eunit.hrl").

%% This module is also the logger handler of its own test.
-export([log/2]).

unreachable_line_test() ->
    Line = line(#{event => unreachable, node => 'b@h',
                  attempts => [#{source => registry, reason => not_found},
                               #{source => dns, address => {{192, 0, 2, 7}, 4433}, reason => timeout},
                               #{source => peers, address => {{0, 0, 0, 0, 0, 0, 0, 1}, 1},
                                 reason => {refused, wrong_name}}]}),
    [?assertNotEqual(nomatch, string:find(Line, Part))
     || Part <- ["cannot reach b@h: ", "registry: not known there",
                 "192.0.2.7:4433 (dns) did not answer in time",
                 "[::1]:1 (peers) another node lives there", "-proto_dist macula"]],
    ?assertEqual(nomatch, string:find(Line, "\n")).

%% Whatever the native side or a resolver answers ends up as text.
every_reason_is_readable_test_() ->
    [?_assertMatch(<<_, _/binary>>, line(#{event => listen_failed, node => 'a@h', reason => Reason}))
     || Reason <- [timeout, port_closed, nxdomain, duplicate_name, {refused, busy},
                   {version_mismatch, 1, 2}, {not_macula, <<"h3">>}, {tls, <<"bad">>},
                   {io, <<"x">>}, {bind_failed, <<"x">>}, {nif_not_loaded, "/p", "t"},
                   {ports_in_use, [1], {os_env, "MACULA_DIST_PORT"}},
                   {ports_in_use, [1, 2], {app_env, kernel, inet_dist_listen_min}},
                   {ports_in_use, [1], {app_env, macula, {dist, port}}},
                   {ports_in_use, [1], node_name}, {ports_in_use, [1], default},
                   {bad_option, a, {did_you_mean, b}, c}, {illegal_name, no_at_sign}, whatever]].

repeats_are_held_back_test() ->
    Say = fun(Reason) -> macula_dist_log:unreachable('b@h', [#{source => dns, reason => Reason}]) end,
    ?assertEqual(2, length(logged(fun() -> [Say(Reason) || Reason <- [timeout, timeout, nxdomain, nxdomain]] end))).

%% One stranger who calls itself by a new name each time, in turn with other mistakes.
one_stranger_does_not_fill_the_log_test() ->
    Names = [integer_to_binary(N) || N <- lists:seq(1, 1_000)],
    Said = logged(fun() ->
                      [macula_dist_log:refused({{192, 0, 2, 1}, 1_024 + rand:uniform(60_000)}, Name, Reason)
                       || Name <- Names, Reason <- [proof, malformed, version_mismatch]]
                  end),
    ?assertEqual(3, length(Said)).

%% And neither do very many of them; the number of those that are not told is.
many_strangers_do_not_fill_the_log_test() ->
    Refuse = fun(N) -> macula_dist_log:refused({{10, 0, N div 256, N rem 256}, 1}, <<"x@y">>, proof) end,
    Said = logged(fun() -> [Refuse(N) || N <- lists:seq(1, 3_000)] end),
    ?assert(length(Said) =< 20, length(Said)),
    ?assertMatch({_, _}, binary:match(line(#{event => refused, address => {{10, 0, 0, 1}, 1}, name => <<>>,
                                             reason => proof, untold => 7}), <<"7 more were refused">>)).

%% Whatever a stranger calls itself, it is one line, and not a long one.
names_are_shown_as_what_they_are_test_() ->
    [?_assert(is_short_line(line(#{event => refused, address => {{10, 0, 0, 1}, 1}, name => Name, reason => proof,
                                   untold => 0})))
     || Name <- [<<>>, <<"a@b\nmacula: all is well">>, binary:copy(<<"x">>, 1_020), binary:copy(<<7>>, 1_020),
                 binary:copy(<<"\x{e9}"/utf8>>, 510), <<255, 254>>]].

is_short_line(Line) ->
    binary:match(Line, <<"\n">>) =:= nomatch andalso byte_size(Line) < 800.

%% What is logged while Fun runs.
logged(Fun) ->
    ok = macula_dist_log:init(),
    #{level := Level} = logger:get_primary_config(),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
    logger:set_primary_config(level, warning),
    _ = Fun(),
    logger:set_primary_config(level, Level),
    ok = logger:remove_handler(?MODULE),
    true = ets:delete(macula_dist_log),
    all_logged().

log(Event, #{config := Pid}) ->
    Pid ! {logged, Event}.

all_logged() ->
    receive
        {logged, Event} -> [Event | all_logged()]
    after 0 -> []
    end.

line(Report) ->
    {Format, Args} = macula_dist_log:format(Report),
    unicode:characters_to_binary(io_lib:format(Format, Args)).
