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
    [?_assertMatch([_ | _], line(#{event => listen_failed, node => 'a@h', reason => Reason}))
     || Reason <- [timeout, port_closed, nxdomain, duplicate_name, {refused, busy},
                   {version_mismatch, 1, 2}, {not_macula, <<"h3">>}, {tls, <<"bad">>},
                   {io, <<"x">>}, {bind_failed, <<"x">>}, {nif_not_loaded, "/p", "t"},
                   {ports_in_use, [1], {os_env, "MACULA_DIST_PORT"}},
                   {ports_in_use, [1, 2], {app_env, kernel, inet_dist_listen_min}},
                   {ports_in_use, [1], {app_env, macula, {dist, port}}},
                   {ports_in_use, [1], node_name}, {ports_in_use, [1], default},
                   {bad_option, a, {did_you_mean, b}, c}, {illegal_name, no_at_sign}, whatever]].

repeats_are_held_back_test() ->
    ok = macula_dist_log:init(),
    #{level := Level} = logger:get_primary_config(),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
    logger:set_primary_config(level, warning),
    Say = fun(Reason) -> macula_dist_log:unreachable('b@h', [#{source => dns, reason => Reason}]) end,
    [Say(Reason) || Reason <- [timeout, timeout, nxdomain, nxdomain]],
    logger:set_primary_config(level, Level),
    ok = logger:remove_handler(?MODULE),
    true = ets:delete(macula_dist_log),
    ?assertEqual(2, count(0)).

log(_, #{config := Pid}) ->
    Pid ! logged.

count(N) ->
    receive
        logged -> count(N + 1)
    after 0 -> N
    end.

line(Report) ->
    {Format, Args} = macula_dist_log:format(Report),
    lists:flatten(io_lib:format(Format, Args)).
