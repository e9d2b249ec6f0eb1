-module(macula_cluster_options_tests).

-include_lib("eunit/include/eunit.hrl").

defaults_test() ->
    ?assertEqual(#{strategy => gossip, secret => none, nodes => [], reconnect_interval => 5_000, callback => none,
                   watcher => none, multicast_addr => {230, 1, 1, 251}, port => 45892, broadcast_interval => 1_500,
                   multicast_ttl => 1, interface => any, ipv6_group => {16#ff12, 0, 0, 0, 0, 0, 16#4d41, 16#4355},
                   broadcast_only => false, seeds => [], strict => false},
                 resolve(#{})).

%% As Erlang and as Elixir write them.
both_languages_test_() ->
    [?_assertMatch(#{strategy := static, nodes := ['a@h', 'b@h']}, resolve(Given))
     || Given <- [#{strategy => static, nodes => ['a@h', 'b@h']}, [{strategy, static}, {nodes, ['a@h', 'b@h']}],
                  #{strategy => <<"static">>, nodes => <<"a@h, b@h">>},
                  #{strategy => "static", nodes => ["a@h", <<"b@h">>]}, #{strategy => static, nodes => "a@h,b@h"}]].

environment_test_() ->
    Os = #{"CLUSTER_STRATEGY" => "static", "CLUSTER_SECRET" => "one", "MACULA_GOSSIP_SECRET" => "two",
           "CLUSTER_NODES" => "a@h,b@h", "MACULA_GOSSIP_ADDR" => "239.1.2.3", "MACULA_GOSSIP_PORT" => "4711"},
    [?_assertMatch(#{strategy := static, nodes := ['a@h', 'b@h'], multicast_addr := {239, 1, 2, 3}, port := 4711},
                   resolve(#{}, Os)),
     ?_assertEqual(<<"one">>, secret(resolve(#{}, Os))),
     ?_assertEqual(<<"two">>, secret(resolve(#{}, maps:remove("CLUSTER_SECRET", Os)))),
     %% What is given wins; an empty list is as good as none.
     ?_assertMatch(#{strategy := gossip, nodes := ['c@h'], port := 1}, resolve(#{strategy => gossip, nodes => ['c@h'], port => 1}, Os)),
     ?_assertMatch(#{nodes := ['a@h', 'b@h']}, resolve(#{nodes => []}, Os))].

%% The error names the key, what was expected and what was there; a misspelled key the right one.
errors_test_() ->
    [?_assertMatch({error, {bad_option, Key, Expected, Got}}, bad(Given, Os))
     || {Key, Expected, Got, Given, Os} <-
            [{strategey, {did_you_mean, strategy}, gossip, #{strategey => gossip}, #{}},
             {reconect_interval, {did_you_mean, reconnect_interval}, 1, #{reconect_interval => 1}, #{}},
             {strategy, {one_of, [gossip, static, mdns]}, gosip, #{strategy => gosip}, #{}},
             {"CLUSTER_STRATEGY", {one_of, [gossip, static, mdns]}, "gosip", #{}, #{"CLUSTER_STRATEGY" => "gosip"}},
             {"MACULA_GOSSIP_PORT", {integer, 1, 65535}, "x", #{}, #{"MACULA_GOSSIP_PORT" => "x"}},
             {port, {integer, 1, 65535}, 65536, #{port => 65536}, #{}},
             {nodes, {list_of, node_name}, [nonsense], #{nodes => [nonsense]}, #{}},
             {nodes, {list_of, node_name}, 7, #{nodes => 7}, #{}},
             {multicast_addr, multicast_address, {192, 168, 0, 1}, #{multicast_addr => {192, 168, 0, 1}}, #{}},
             {ipv6_group, multicast_address, "fe80::1", #{ipv6_group => "fe80::1"}, #{}},
             {reconnect_interval, {integer, 50, 3_600_000}, 0, #{reconnect_interval => 0}, #{}},
             {callback, callback, <<"x">>, #{callback => <<"x">>}, #{}},
             {strict, boolean, yes, #{strict => yes}, #{}},
             {strict, {needs, secret}, true, #{strict => true}, #{}},
             {seeds, {list_of, address}, ["a b:1:2"], #{seeds => ["a b:1:2"]}, #{}},
             {options, map, not_a_map, 17, #{}}]].

%% A secret never shows: not in errors, not in what is resolved, not in what a supervisor prints.
secrets_test_() ->
    Texts = [bad(#{secrte => "hush hush"}, #{}), bad(#{secret => {"hush hush"}}, #{}), bad(#{secret => "hush hush", port => x}, #{}),
             resolve(#{secret => "hush hush"}), resolve(#{}, #{"CLUSTER_SECRET" => "hush hush"}),
             macula_cluster:child_spec(#{secret => "hush hush"}), macula_cluster:child_spec([{secret, <<"hush hush">>}])],
    [?_assertEqual(nomatch, string:find(io_lib:format("~0p", [Text]), "hush")) || Text <- Texts]
        ++ [?_assertMatch({error, {bad_option, secret, _, hidden}}, bad(#{secret => Bad}, #{})) || Bad <- [<<>>, 17, {a}]].

secret_forms_test_() ->
    [?_assertEqual(<<"s3cret">>, secret(resolve(#{secret => Secret})))
     || Secret <- ["s3cret", <<"s3cret">>, fun() -> "s3cret" end]].

seeds_test() ->
    ?assertMatch(#{seeds := [{{192, 0, 2, 1}, default}, {{192, 0, 2, 2}, 99}, {"host", default}, {"host.example", 99},
                             {{16#2001, 16#db8, 0, 0, 0, 0, 0, 1}, 99}]},
                 resolve(#{seeds => ["192.0.2.1", <<"192.0.2.2:99">>, "host", "host.example:99", "[2001:db8::1]:99"]})).

%% What was resolved resolves to itself, whatever is in the environment by then.
again_test() ->
    Once = resolve(#{secret => "s", seeds => ["192.0.2.1", "host", "host:1"], interface => "eth0", nodes => ["a@h"]}),
    Again = resolve(Once, #{"CLUSTER_SECRET" => "other", "CLUSTER_NODES" => "x@h"}),
    ?assertEqual(maps:remove(secret, Once), maps:remove(secret, Again)),
    ?assertEqual(<<"s">>, secret(Again)).

%% Each part takes its own options only.
parts_test_() ->
    [?_assertMatch({error, {bad_option, Key, {did_you_mean, _}, _}},
                   macula_cluster_options:resolve(#{Key => 1}, macula_cluster_options:keys(Part), #{}))
     || {Part, Key} <- [{gossip, nodes}, {static, secrets}, {static, port}, {strategy, strategy}]].

every_error_is_readable_test_() ->
    [?_assertMatch([_ | _], lists:flatten(macula_config:format_error(Bad)))
     || {error, Bad} <- [bad(#{strategey => 1}, #{}), bad(#{strategy => 1}, #{}), bad(#{nodes => 1}, #{}),
                         bad(#{secret => 1}, #{}), bad(#{strict => true}, #{})]].

resolve(Given) -> resolve(Given, #{}).

resolve(Given, Os) ->
    {ok, Config} = macula_cluster_options:resolve(Given, macula_cluster_options:keys(macula_cluster), Os),
    Config.

bad(Given, Os) ->
    macula_cluster_options:resolve(Given, macula_cluster_options:keys(macula_cluster), Os).

secret(#{secret := Secret}) -> Secret().
