%% The tool macula_call against a real node: what it prints where, and with which status it ends.
-module(macula_call_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([results/1, exceptions/1, usage/1, unreachable/1, lost/1, too_late/1, evaluation/1,
         standard_input/1, output_of_the_call/1, cookies/1, leaves_nothing/1, as_erl_call/1,
         long_names/1, configured/1, through_a_link/1]).

-import(macula_test_node, [start/1, start/2, call/4, name/1, unique/1, wait_until/1]).

-define(HANG, 60_000).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [results, exceptions, usage, unreachable, lost, too_late, evaluation, standard_input,
     output_of_the_call, cookies, leaves_nothing, as_erl_call, long_names, configured,
     through_a_link].

init_per_suite(Config) ->
    [{tool, filename:join(code:priv_dir(macula), "macula_call")} | Config].

end_per_suite(_) ->
    ok.

init_per_testcase(_, Config) ->
    [{node, start(unique("b"))} | Config].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%% One line that can be read back, whatever it is.
results(Config) ->
    Term = [ok, 1, -1.5, "häl\x{1F600}lo", <<"hél"/utf8>>, <<1:3>>, #{a => [b, {c, 'D e'}]},
            lists:seq(1, 1_000), [$a | b]],
    {0, Said, <<>>} = run(Config, [node_name(Config), "erlang", "hd", io_lib:format("~0tp", [[Term]])]),
    ?assertEqual({Said, Term}, {Said, consult(Said)}),
    ?assertMatch([_, <<>>], binary:split(Said, <<"\n">>)).

%% Status 1; why is on standard error.
exceptions(Config) ->
    [begin
         {1, <<>>, Why} = run(Config, [node_name(Config) | Call]),
         ?assertMatch({_, {_, _}}, {Why, binary:match(Why, Said)})
     end || {Call, Said} <- [{["lists", "sum", "a"], <<"no function clause matching lists:sum(a">>},
                             {["no_such_module", "f"], <<"undefined function no_such_module:f/0">>},
                             {["erlang", "throw", "{a,1}"], <<"exception throw: {a,1}">>},
                             {["erlang", "exit", "reason"], <<"exception exit: reason">>}]].

usage(Config) ->
    [?assertMatch({2, <<>>, <<"macula_call: ", _/binary>>}, run(Config, Arguments))
     || Arguments <- [[], ["x"], [node_name(Config), "m", "f", "["], ["-what", "ping", node_name(Config)]]],
    {0, Help, <<>>} = run(Config, ["-help"]),
    ?assertMatch({_, _}, binary:match(Help, <<"macula_call [OPTION...] NODE MODULE FUNCTION">>)).

%% Status 3, and the carrier's own words on why.
unreachable(Config) ->
    ?assertMatch({0, <<"pong\n">>, <<>>}, run(Config, ["ping", node_name(Config)])),
    Nobody = unique("nobody") ++ "@localhost",
    {3, <<"pang\n">>, Why} = run(Config, ["ping", Nobody]),
    ?assertMatch({_, {_, _}}, {Why, binary:match(Why, <<"macula: cannot reach nobody">>)}),
    ?assertMatch({3, <<>>, _}, run(Config, [Nobody, "erlang", "node"])),
    {3, <<"pang\n">>, Other} = run(Config, ["-c", "another", "ping", node_name(Config)]),
    ?assertMatch({_, {_, _}}, {Other, binary:match(Other, <<"cookie">>)}).

%% The node goes during the call.
lost(Config) ->
    {3, <<>>, Why} = run(Config, [node_name(Config), "erlang", "halt"]),
    ?assertMatch({_, _}, binary:match(Why, <<"was lost during the call">>)).

too_late(Config) ->
    {4, <<>>, Why} = run(Config, ["-timeout", "1", node_name(Config), "timer", "sleep", "60000"]),
    ?assertMatch({_, _}, binary:match(Why, <<"did not answer within 1 s">>)).

evaluation(Config) ->
    ?assertMatch({0, <<"{2,[3]}\n">>, <<>>}, run(Config, ["eval", node_name(Config), "X = 1, {X + 1, [3]}."])),
    ?assertMatch({1, <<>>, _}, run(Config, ["eval", node_name(Config), "1 = 2"])),
    ?assertMatch({2, <<>>, _}, run(Config, ["eval", node_name(Config), "1 ="])).

%% Read only where it is asked for, so that a loop can go over lines and call for each.
standard_input(Config) ->
    Node = node_name(Config),
    ?assertMatch({0, <<"\"é\"\n"/utf8>>, <<>>}, run(Config, "printf 'L = [233],\\nL.\\n' | exec \"$0\" \"$@\"", ["eval", Node, "-"], [])),
    ?assertMatch({2, <<>>, _}, run(Config, "echo '1 +' | exec \"$0\" \"$@\"", ["eval", Node, "-"], [])),
    Loop = "printf '1\\n2\\n3\\n' | while read -r n; do \"$0\" \"$@\" \"[$n]\"; done",
    ?assertMatch({0, <<"1\n2\n3\n">>, <<>>}, run(Config, Loop, [Node, "lists", "sum"], [])).

%% Standard output is for the result.
output_of_the_call(Config) ->
    ?assertEqual({0, <<"ok\n">>, <<"hallo wörld\n"/utf8>>},
                 run(Config, [node_name(Config), "io", "format", "\"hallo w\\x{f6}rld~n\""])).

%% An option, the environment, the user's file; and nobody is given a cookie that was not asked for.
cookies(Config) ->
    Ping = ["ping", node_name(Config)],
    Home = macula_test_node:scratch(Config),
    Alone = [{"MACULA_COOKIE", false}, {"HOME", Home}],
    {2, <<>>, Why} = run(Config, Ping, Alone),
    ?assertMatch({_, _}, binary:match(Why, <<"there is no cookie">>)),
    ?assertEqual([], filelib:wildcard(filename:join(Home, ".erlang.cookie"))),
    ?assertMatch({0, <<"pong\n">>, <<>>}, run(Config, ["-c", macula_test_node:cookie() | Ping], Alone)),
    ?assertEqual([], filelib:wildcard(filename:join(Home, ".erlang.cookie"))),
    ?assertMatch({0, <<"pong\n">>, <<>>}, run(Config, Ping, [{"RELEASE_COOKIE", macula_test_node:cookie()} | Alone])),
    ok = file:write_file(filename:join(Home, ".erlang.cookie"), macula_test_node:cookie()),
    ?assertMatch({0, <<"pong\n">>, <<>>}, run(Config, Ping, Alone)).

%% It is hidden, and gone afterwards; no key and no registry entry stays.
leaves_nothing(Config) ->
    Home = macula_test_node:scratch(Config),
    Env = [{"HOME", Home}, {"MACULA_HOME", filename:join(Home, "macula")}],
    {0, Seen, <<>>} = run(Config, ["eval", node_name(Config), "{nodes(), length(nodes(hidden))}"], Env),
    ?assertEqual({[], 1}, consult(Seen)),
    wait_until(fun() -> call(proplists:get_value(node, Config), erlang, nodes, [connected]) =:= [] end),
    ?assertEqual({ok, []}, file:list_dir(Home)).

%% What the start script of a relx release asks of erl_call.
as_erl_call(Config) ->
    Options = ["-sname", node_name(Config), "-R", "-c", macula_test_node:cookie(), "-timeout", "60"],
    ?assertMatch({0, <<"true\n">>, <<>>}, run(Config, Options ++ ["-a", "erlang is_alive"])),
    ?assertMatch({0, <<"3\n">>, <<>>}, run(Config, Options ++ ["-a", "lists sum [[1, 2]]"])),
    ?assertMatch({0, <<"{ok,3}\n">>, <<>>}, run(Config, "echo '1 + 2.' | exec \"$0\" \"$@\"", Options ++ ["-e"], [])).

long_names(Config) ->
    B = start(unique("b"), #{domain => longnames, host => "a-host.does-not-exist.invalid"}),
    Name = atom_to_list(name(B)),
    ?assertEqual({0, iolist_to_binary(["'", Name, "'\n"]), <<>>}, run(Config, [Name, "erlang", "node"])).

%% A configuration file by ERL_FLAGS: the address of a node that nothing else knows, and the cookie.
configured(Config) ->
    Port = macula_test_node:free_port(),
    B = start(unique("b"), #{domain => longnames, host => "far.invalid",
                             args => ["-kernel", "macula_dist_port", integer_to_list(Port)]}),
    Name = atom_to_list(name(B)),
    Dir = macula_test_node:scratch(Config),
    File = filename:join(Dir, "call"),
    Options = [{peers, #{name(B) => "127.0.0.1:" ++ integer_to_list(Port)}}, {cookie, macula_test_node:cookie()}],
    ok = file:write_file(File ++ ".config", io_lib:format("~p.~n", [[{macula, Options}]])),
    Elsewhere = [{"XDG_RUNTIME_DIR", Dir}, {"MACULA_COOKIE", false}],
    ?assertMatch({0, <<"pong\n">>, <<>>}, run(Config, ["ping", Name], [{"ERL_FLAGS", "-config " ++ File} | Elsewhere])),
    ?assertMatch({3, <<"pang\n">>, _}, run(Config, ["-c", macula_test_node:cookie(), "ping", Name], Elsewhere)).

%% As /usr/local/bin/macula_call might be.
through_a_link(Config) ->
    Link = filename:join(macula_test_node:scratch(Config), "call"),
    ok = file:make_symlink(proplists:get_value(tool, Config), Link),
    ?assertMatch({0, <<"pong\n">>, <<>>}, run([{tool, Link} | Config], ["ping", node_name(Config)])).

%%% Help

node_name(Config) ->
    atom_to_list(name(proplists:get_value(node, Config))).

consult(Said) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Said) ++ "."),
    {ok, Term} = erl_parse:parse_term(Tokens),
    Term.

run(Config, Arguments) ->
    run(Config, Arguments, []).

run(Config, Arguments, Env) ->
    run(Config, "exec \"$0\" \"$@\" </dev/null", Arguments, Env).

%% {Status, Standard output, Standard error}
run(Config, Script, Arguments, Env) ->
    Errors = filename:join(macula_test_node:scratch(Config), "stderr"),
    Port = open_port({spawn_executable, "/bin/sh"},
                     [{args, ["-c", "exec 2>\"$ERRORS\"; " ++ Script, proplists:get_value(tool, Config)
                              | [unicode:characters_to_binary(Argument) || Argument <- Arguments]]},
                      {env, Env ++ [{"ERRORS", Errors} | environment(Env)]}, exit_status, binary, hide]),
    {Status, Output} = ended(Port, <<>>),
    {ok, Said} = file:read_file(Errors),
    %% OTP's own helper for ports says this when the VM ends before it has begun.
    Errors_ = re:replace(Said, "erl_child_setup: failed with error 32[^\\n]*\\n", "", [global, {return, binary}]),
    ct:log("~tp~n-> ~b~n~ts~ts", [Arguments, Status, Output, Errors_]),
    {Status, Output, Errors_}.

environment(Env) ->
    [Default || {Name, _} = Default <- [{"MACULA_COOKIE", macula_test_node:cookie()},
                                        {"MACULA_HOME", macula_test_node:home()},
                                        {"XDG_RUNTIME_DIR", macula_test_node:home()},
                                        {"RELEASE_COOKIE", false}, {"ERLANG_COOKIE", false},
                                        {"XDG_CONFIG_HOME", false}, {"MACULA_CALL_TIMES", false}],
                not lists:keymember(Name, 1, Env)].

ended(Port, Said) ->
    receive
        {Port, {data, Data}} -> ended(Port, <<Said/binary, Data/binary>>);
        {Port, {exit_status, Status}} -> {Status, Said}
    after ?HANG ->
        error({hangs, Said})
    end.
