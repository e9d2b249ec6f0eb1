%% What the command line of macula_call says.
-module(macula_call_tests).

-include_lib("eunit/include/eunit.hrl").

-define(REQUEST(Action), {ok, #{node := b@h, cookie := undefined, timeout := 60_000, tagged := false, action := Action}}).

call_test_() ->
    [?_assertMatch(?REQUEST({call, lists, seq, [1, 2]}), parse(["b@h", "lists", "seq", "1", "2."])),
     ?_assertMatch(?REQUEST({call, 'Elixir.Enum', 'any?', [[]]}),
                   parse(["b@h", "Elixir.Enum", "any?", "[]"])),
     %% Behind the node nothing is an option.
     ?_assertMatch(?REQUEST({call, m, f, [-1]}), parse(["b@h", "m", "f", "-1"])),
     ?_assertMatch(?REQUEST({call, m, f, ["ä\x{1F600}"]}), parse(["b@h", "m", "f", "\"ä\x{1F600}\""]))].

options_test_() ->
    [?_assertMatch({ok, #{cookie := c, timeout := 5_000, action := ping}},
                   parse(["-c", "c", "-timeout", "5", "ping", "b@h"])),
     ?_assertMatch({ok, #{cookie := c, timeout := infinity}},
                   parse(["-setcookie", "c", "-timeout", "infinity", "ping", "b@h"])),
     ?_assertEqual(help, parse(["-c", "x", "--help"]))].

eval_test_() ->
    [?_assertMatch(?REQUEST({eval, [{integer, _, 1}]}), parse(["eval", "b@h", "1"])),
     ?_assertMatch(?REQUEST({eval, [_, _]}), parse(["eval", "b@h", "X = 1, X."])),
     ?_assertMatch(?REQUEST({eval, standard_input}), parse(["eval", "b@h", "-"]))].

%% As relx's start script calls erl_call.
as_erl_call_test_() ->
    Options = ["-sname", "b@h", "-R", "-c", "c", "-timeout", "60"],
    [?_assertMatch({ok, #{node := b@h, cookie := c, action := {call, erlang, is_alive, []}}},
                   parse(Options ++ ["-a", "erlang is_alive"])),
     ?_assertMatch({ok, #{action := {call, m, start, []}}}, parse(Options ++ ["-a", "m"])),
     ?_assertMatch({ok, #{action := {call, m, f, [a, "b c"]}}}, parse(Options ++ ["-a", "m f [a, \"b c\"]"])),
     ?_assertMatch({ok, #{action := {eval, standard_input}, tagged := true}}, parse(Options ++ ["-e"]))].

%% Each error names what is wrong.
usage_test_() ->
    [?_assertMatch({_, {_, _}}, {Why, binary:match(Why, Said)})
     || {Arguments, Said} <- [{[], <<"a node, a module and a function">>},
                              {["b@h", "m"], <<"a function">>},
                              {["b", "m", "f"], <<"b is no node name: it has no '@'">>},
                              {["ping", "b@h:99999"], <<"99999 is not a port">>},
                              {["b@h", "m", "f", "[1"], <<"[1 is no Erlang term">>},
                              {["b@h", "m", "f", "X"], <<"X is no Erlang term">>},
                              {["eval", "b@h", "1 +"], <<"cannot be read">>},
                              {["-timeout", "0", "ping", "b@h"], <<"-timeout 0">>},
                              {["-timeout"], <<"-timeout is no option, or">>},
                              {["-port", "1", "ping", "b@h"], <<"-port is no option">>},
                              {["-sname", "b@h", "-a", "m f 1"], <<"1 is no list of arguments">>},
                              {["-c", "", "ping", "b@h"], <<"a cookie has 1 to 255">>}],
        {error, Text} <- [parse(Arguments)],
        Why <- [unicode:characters_to_binary(Text)]].

%% What might be a cookie is not repeated.
cookie_is_not_shown_test() ->
    Cookie = lists:duplicate(300, $s),
    {error, Why} = parse(["-c", Cookie, "ping", "b@h"]),
    ?assertEqual(nomatch, string:find(Why, "sss")).

parse(Arguments) ->
    macula_call:parse(Arguments).
