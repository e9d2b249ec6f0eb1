-module(macula_cookie_tests).

-include_lib("kernel/include/file.hrl").
-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(macula_property, [holds/1]).

-define(VARIABLES, ["HOME", "XDG_CONFIG_HOME", "MACULA_COOKIE", "RELEASE_COOKIE", "ERLANG_COOKIE"]).

%% Each in a home of its own, without cookies in the environment.
in_own_home_test_() ->
    {foreach, fun setup/0, fun clean_up/1,
     [fun(Home) -> {atom_to_list(Name), fun() -> Test(Home) end} end
      || {Name, Test} <- [{order, fun order/1}, {file, fun file/1}, {file_in_config, fun file_in_config/1},
                          {generated, fun generated/1}, {generated_together, fun generated_together/1},
                          {no_home, fun no_home/1}, {set, fun set/1}, {set_replaces, fun set_replaces/1},
                          {bad_cookies, fun bad_cookies/1}, {peer, fun peer/1}]]}.

%% The environment of the application, then of the system, then the file.
order(Home) ->
    ?assertEqual({error, not_found}, macula_cookie:resolve()),
    write(filename:join(Home, ".erlang.cookie"), "from_file\n"),
    ?assertEqual({ok, from_file}, macula_cookie:resolve()),
    [begin
         os:putenv(Name, "from_" ++ Name),
         ?assertEqual({ok, list_to_atom("from_" ++ Name)}, macula_cookie:resolve())
     end || Name <- ["ERLANG_COOKIE", "RELEASE_COOKIE", "MACULA_COOKIE"]],
    [begin
         ok = application:set_env(macula, cookie, Cookie),
         ?assertEqual({ok, from_env}, macula_cookie:resolve()),
         ?assertEqual(from_env, macula_cookie:get())
     end || Cookie <- [from_env, <<"from_env">>, "from_env"]].

file(Home) ->
    Path = filename:join(Home, ".erlang.cookie"),
    ?assertEqual(Path, macula_cookie:file_path()),
    ?assertEqual({error, {cookie_file_read_failed, enoent}}, macula_cookie:read_file()),
    [begin
         write(Path, Content),
         ?assertEqual(Expected, macula_cookie:read_file())
     end || {Content, Expected} <- [{"", {error, empty_cookie}}, {" \n", {error, empty_cookie}},
                                    {"abc", {ok, abc}}, {"  abc\r\n", {ok, abc}},
                                    {"two\nlines", {error, {cookie_file_read_failed, {bad_cookie, not_printable}}}}]],
    ok = file:delete(Path),
    ok = file:make_dir(Path),
    ?assertMatch({error, {cookie_file_read_failed, _}}, macula_cookie:read_file()),
    ok = file:del_dir(Path).

%% The second place counts when the first is empty.
file_in_config(Home) ->
    Path = filename:join([Home, ".config", "erlang", ".erlang.cookie"]),
    ok = filelib:ensure_dir(Path),
    write(Path, "from_config"),
    ?assertEqual({ok, from_config}, macula_cookie:resolve()),
    os:putenv("XDG_CONFIG_HOME", filename:join(Home, "xdg")),
    ?assertEqual({error, not_found}, macula_cookie:resolve()),
    Xdg = filename:join([Home, "xdg", "erlang", ".erlang.cookie"]),
    ok = filelib:ensure_dir(Xdg),
    write(Xdg, "from_xdg"),
    ?assertEqual({ok, from_xdg}, macula_cookie:resolve()),
    write(filename:join(Home, ".erlang.cookie"), "from_home"),
    ?assertEqual({ok, from_home}, macula_cookie:resolve()).

%% Strong, kept, and nobody else's to read; the same the next time.
generated(Home) ->
    Cookie = macula_cookie:get(),
    ?assert(macula_cookie:is_strong(Cookie)),
    ?assertEqual({ok, Cookie}, macula_cookie:read_file()),
    ?assertEqual(8#600, mode(filename:join(Home, ".erlang.cookie"))),
    ?assertEqual([".erlang.cookie"], files(Home)),
    ?assertEqual(Cookie, macula_cookie:get()).

%% Several at the same moment agree on one.
generated_together(Home) ->
    Self = self(),
    Pids = [spawn_link(fun() -> receive go -> Self ! {self(), macula_cookie:get()} end end) || _ <- lists:seq(1, 20)],
    [Pid ! go || Pid <- Pids],
    Cookies = [receive {Pid, Cookie} -> Cookie end || Pid <- Pids],
    ?assertMatch([_], lists:usort(Cookies)),
    ?assertEqual([".erlang.cookie"], files(Home)).

%% Where nothing can be kept there is one for this run.
no_home(Home) ->
    os:putenv("HOME", filename:join(Home, "file/below")),
    write(filename:join(Home, "file"), ""),
    Level = logger_level(none),
    ?assert(macula_cookie:is_strong(macula_cookie:get())),
    ?assertMatch({error, {cookie_file_write_failed, _}}, macula_cookie:set(abc)),
    logger_level(Level).

set(Home) ->
    ?assertEqual(ok, macula_cookie:set(first)),
    ?assertEqual({ok, first}, macula_cookie:read_file()),
    ?assertEqual(first, macula_cookie:get()),
    ?assertEqual(ok, macula_cookie:set(<<"second">>)),
    ?assertEqual(second, macula_cookie:get()),
    ?assertEqual(8#600, mode(filename:join(Home, ".erlang.cookie"))),
    ?assertEqual([".erlang.cookie"], files(Home)).

%% A file that others could read, or that cannot be written, is replaced by one that is right.
set_replaces(Home) ->
    Path = filename:join(Home, ".erlang.cookie"),
    [begin
         write(Path, "old"),
         ok = file:change_mode(Path, Mode),
         ok = macula_cookie:set(new),
         ?assertEqual({8#600, {ok, new}}, {mode(Path), macula_cookie:read_file()})
     end || Mode <- [8#644, 8#400]].

%% What is no cookie is refused by what is wrong with it, not by what it is.
bad_cookies(Home) ->
    [?assertEqual({error, {bad_cookie, Why}}, macula_cookie:set(Cookie))
     || {Why, Cookie} <- [{empty, ''}, {empty, <<>>}, {too_long, binary:copy(<<"x">>, 256)},
                          {not_printable, <<"a\nb">>}, {not_printable, <<0>>}, {not_text, <<255>>},
                          {not_text, 17}, {not_text, [a]}]],
    ?assertEqual([], files(Home)).

%% Without distribution there are no peers to have cookies with.
peer(_) ->
    ?assertEqual({error, {bad_cookie, empty}}, macula_cookie:set('a@b', <<>>)),
    is_alive() orelse ?assertEqual({error, not_distributed}, macula_cookie:set('a@b', abc)).

%%% Strength

strength_test_() ->
    [{Cookie, ?_assertEqual({IsStrong, Cookie}, {macula_cookie:is_strong(Cookie), Cookie})}
     || {IsStrong, Cookies} <-
            [{false, ["", "a", "MYSECRET", "secret", "monster", "mycookie123", "0123456789ABCDEF0123456789ABCDEF",
                      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abcabcabcabcabcabcabcabcabcabcabc",
                      "abcdefghijklmnopqrstuvwxyz", "12345678901234567890", "20240131", "my-production-cluster",
                      "macula_test_12345", "secret_cookie_for_tests", "correct-horse-battery-staple",
                      "7F3A9C41E2B8", "GMXQKWPZHRTB", "changeme!changeme!changeme!"]},
             {true, ["7F3A9C41E2B85D60A1C4F7E93B20D586", "7f3a9c41e2b85d60a1c4f7e93b20d586",
                     "550e8400-e29b-41d4-a716-446655440000", "GMXQKWPZHRTBVLCEYNJD", "PUQZVAHLNRWEKXJMCOTD",
                     "kJ8s+Qm2/Zx0Lr7WvT5nYg==", "8362950174629385017462938501"]}],
        Cookie <- Cookies].

properties_test_() ->
    [macula_property:test(random_is_strong, prop_random_is_strong(), 1_000),
     macula_property:test(repeating_adds_nothing, prop_repeating_adds_nothing(), 500),
     macula_property:test(never_fails, prop_never_fails(), 500)].

%% What OTP and we make ourselves is strong, but for a very few that look like words.
prop_random_is_strong() ->
    ?FORALL(Digits, vector(40, oneof("0123456789ABCDEF")), holds(fun() -> macula_cookie:is_strong(Digits) end)).

prop_repeating_adds_nothing() ->
    ?FORALL({Text, Times}, {non_empty(list(integer($!, $~))), integer(2, 5)},
            holds(fun() ->
                          Repeated = lists:append(lists:duplicate(Times, Text)),
                          length(Repeated) > 255
                              orelse macula_cookie:strength(Repeated) =:= macula_cookie:strength(Text)
                  end)).

prop_never_fails() ->
    ?FORALL(Text, list(integer(32, 16#10ffff)),
            holds(fun() ->
                          [C || C <- Text, C >= 16#d800, C =< 16#dfff] =/= []
                              orelse macula_cookie:strength(unicode:characters_to_binary(Text)) >= 0.0
                  end)).

%%% Help

setup() ->
    Before = [{Name, os:getenv(Name)} || Name <- ?VARIABLES],
    Cookie = application:get_env(macula, cookie),
    [os:unsetenv(Name) || Name <- ?VARIABLES],
    ok = application:unset_env(macula, cookie),
    Home = filename:join("/tmp", "macula_cookie_tests_" ++ os:getpid() ++ "_" ++ integer_to_list(erlang:unique_integer([positive]))),
    ok = file:make_dir(Home),
    os:putenv("HOME", Home),
    put(before, {Before, Cookie}),
    Home.

clean_up(Home) ->
    {Before, Cookie} = get(before),
    [case Value of
         false -> os:unsetenv(Name);
         _ -> os:putenv(Name, Value)
     end || {Name, Value} <- Before],
    case Cookie of
        undefined -> application:unset_env(macula, cookie);
        {ok, Value} -> application:set_env(macula, cookie, Value)
    end,
    file:del_dir_r(Home).

logger_level(Level) ->
    #{level := Before} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, Level),
    Before.

write(Path, Content) ->
    _ = file:change_mode(Path, 8#600),
    ok = file:write_file(Path, Content).

mode(Path) ->
    {ok, #file_info{mode = Mode}} = file:read_file_info(Path),
    Mode band 8#777.

files(Dir) ->
    {ok, Names} = file:list_dir(Dir),
    lists:sort(Names).
