-module(macula_dist_name_tests).

-include_lib("eunit/include/eunit.hrl").

split_test_() ->
    [?_assertMatch({ok, #{name := "a", host := "myhost", port := default}}, split('a@myhost')),
     ?_assertMatch({ok, #{host := "h.example.org", port := 4434}}, split('a@h.example.org:4434')),
     ?_assertMatch({ok, #{host := {127, 0, 0, 1}, port := default}}, split('a@127.0.0.1')),
     ?_assertMatch({ok, #{host := {127, 0, 0, 1}, port := 1}}, split('a@127.0.0.1:1')),
     ?_assertMatch({ok, #{host := {0, 0, 0, 0, 0, 0, 0, 1}, port := 4433}}, split('a@[::1]:4433')),
     ?_assertMatch({ok, #{host := {0, 0, 0, 0, 0, 0, 0, 1}, port := default}}, split('a@[::1]')),
     ?_assertMatch({ok, #{host := {0, 0, 0, 0, 0, 0, 0, 1}, port := default,
                          text := "::1"}}, split('a@::1')),
     ?_assertMatch({ok, #{host := "1:bc3:0:1", port := default}}, split('a@1:bc3:0:1'))].

illegal_test_() ->
    [?_assertEqual({error, Error}, split(Name))
     || {Name, Error} <- [{a, no_at_sign}, {'a@', empty_host}, {'@h', empty_name},
                          {'a@b@c', many_at_signs}, {'a@:1', empty_host},
                          {'a@h:', {bad_port, ""}}, {'a@h:0', {bad_port, "0"}},
                          {'a@h:65536', {bad_port, "65536"}}, {'a@h:x', {bad_port, "x"}},
                          {'a@h:+1', {bad_port, "+1"}}, {"a@\x{301}@h", many_at_signs},
                          {'a@h:1:x', {bad_host, "h:1:x"}}, {'a@[::1', {bad_host, "[::1"}},
                          {'a@[h]:1', {bad_host, "h"}}, {'a@[::1]1', {bad_host, "[::1]1"}}]].

domain_test_() ->
    [?_assertMatch({ok, _}, macula_dist_name:check('a@myhost', longnames)),
     ?_assertMatch({ok, _}, macula_dist_name:check('a@my.host', longnames)),
     ?_assertMatch({ok, _}, macula_dist_name:check('a@myhost:4434', shortnames)),
     ?_assertMatch({ok, _}, macula_dist_name:check('a@::1', shortnames)),
     ?_assertEqual({error, {dot_in_short_name, "my.host"}},
                   macula_dist_name:check('a@my.host', shortnames)),
     ?_assertEqual({error, no_at_sign}, macula_dist_name:check(a, shortnames))].

every_error_is_readable_test_() ->
    [?_assertMatch([_ | _], lists:flatten(macula_dist_name:format_error(Error)))
     || Error <- [no_at_sign, many_at_signs, empty_name, empty_host, {bad_port, "x"},
                  {bad_host, "x"}, {dot_in_short_name, "x.y"}]].

split(Name) ->
    macula_dist_name:split(Name).
