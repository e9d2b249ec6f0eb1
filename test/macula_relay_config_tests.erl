-module(macula_relay_config_tests).

-include_lib("eunit/include/eunit.hrl").

read(Options, Env) ->
    read(Options, Env, fun(_) -> {error, enoent} end).

read(Options, Env, Consult) ->
    macula_relay_config:read(Options, fun(Name) -> proplists:get_value(Name, Env, false) end, Consult).

said(Error) ->
    lists:flatten(unicode:characters_to_list(macula_relay_config:format_error(Error))).

nothing_configures_no_relay_test() ->
    ?assertEqual(none, read(none, [])),
    ?assertEqual(none, read(none, [{"MACULA_RELAY_PORT", ""}, {"MACULA_RELAY_CONFIG", ""}])),
    ?assertEqual({ok, #{}}, read(#{}, [])).

the_environment_comes_before_the_file_and_that_before_the_release_test() ->
    Consult = fun("relay.config") -> {ok, [#{port => 2, nodes => 2}]} end,
    Env = [{"MACULA_RELAY_CONFIG", "relay.config"}, {"MACULA_RELAY_PORT", " 3 "}],
    ?assertEqual({ok, #{port => 3, nodes => 2, health => 1}}, read(#{port => 1, nodes => 1, health => 1}, Env, Consult)).

every_option_has_a_name_in_the_environment_test() ->
    Numbers = ["PORT", "NODES", "NODES_PER_REALM", "ATTACHMENTS_PER_SECOND", "ATTACHMENTS_PER_REALM", "MEMORY",
               "BYTES_PER_NODE", "DATAGRAMS_PER_NODE", "BYTES_PER_REALM", "DATAGRAMS_PER_REALM"],
    Texts = [{"CERTFILE", "r.crt"}, {"KEYFILE", "r.key"}, {"PEERS", "https://r.example,https://s.example:4433"},
             {"HEALTH", "0.0.0.0:4480"}, {"REALMS", "a=open, b=x,b=y"}],
    Env = [{"MACULA_RELAY_" ++ Name, "7"} || Name <- Numbers] ++ [{"MACULA_RELAY_" ++ Name, Text} || {Name, Text} <- Texts],
    {ok, Options} = read(none, Env),
    {ok, Relay} = macula_mesh_options:relay(Options),
    ?assertMatch(#{port := 7, nodes := 7, nodes_per_realm := 7, attachments_per_second := 7, attachments_per_realm := 7,
                   memory := 7, bytes_per_node := 7, datagrams_per_node := 7, bytes_per_realm := 7, datagrams_per_realm := 7,
                   certificate := {<<"r.crt">>, <<"r.key">>}, health := {{0, 0, 0, 0}, 4480},
                   peers := [{_, <<"r.example">>, 443}, {_, <<"s.example">>, 4433}]}, Relay),
    ?assertEqual([{<<"a">>, open}, {<<"b">>, {tokens, [<<"x">>, <<"y">>]}}], lists:sort(maps:get(realms, Relay))).

what_is_wrong_is_named_test() ->
    Wrong = fun(Env, Consult) -> {error, Error} = read(#{}, Env, Consult), said(Error) end,
    File = [{"MACULA_RELAY_CONFIG", "/etc/r.config"}],
    ?assertEqual("/etc/r.config: no such file or directory", Wrong(File, fun(_) -> {error, enoent} end)),
    ?assertMatch("/etc/r.config: it must hold one map" ++ _, Wrong(File, fun(_) -> {ok, [{port, 1}]} end)),
    ?assertMatch("/etc/r.config: 3: syntax error" ++ _,
                 Wrong(File, fun(_) -> {error, {3, erl_parse, ["syntax error before: ", "'}'"]}} end)),
    ?assertMatch("/etc/r.config: 2: what begins here has no end" ++ _, Wrong(File, consulted("#{a =>\n<<\"secret>>}."))),
    ?assertEqual("/etc/r.config: 1: syntax error before a string", Wrong(File, consulted("#{a => <<b \"secret\">>}."))),
    ?assertEqual("/etc/r.config: 1: syntax error before: '}'", Wrong(File, consulted("#{a => }."))),
    ?assertEqual("MACULA_RELAY_NODES=many is no number", Wrong([{"MACULA_RELAY_NODES", "many"}], none)),
    Tokens = Wrong([{"MACULA_RELAY_REALMS", "secret"}], none),
    ?assertMatch("MACULA_RELAY_REALMS must be " ++ _, Tokens),
    ?assertEqual(nomatch, string:find(Tokens, "secret")).

%% What file:consult/1 says of a file with this text.
consulted(Text) ->
    fun(_) ->
            case erl_scan:string(Text) of
                {ok, Tokens, _} -> erl_parse:parse_term(Tokens);
                {error, Reason, _} -> {error, Reason}
            end
    end.
