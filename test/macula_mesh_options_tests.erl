-module(macula_mesh_options_tests).

-include_lib("eunit/include/eunit.hrl").

mesh(Options) -> macula_mesh_options:mesh(Options).

relay(Options) -> macula_mesh_options:relay(Options).

defaults_are_those_of_the_contract_test() ->
    {ok, Mesh} = mesh(#{relays => [<<"https://relay.example.org:4433">>]}),
    ?assertEqual(#{relays => [{<<"https://relay.example.org:4433">>, <<"relay.example.org">>, 4433}],
                   realm => <<"io.macula">>, identity => undefined, token => <<>>, verify => false,
                   authorities => undefined, certificate => undefined, timeout => 30_000,
                   interval => 2_000, attempts => 15}, Mesh).

relay_urls_test_() ->
    Parsed = fun(Url) ->
                     {ok, #{relays := [{_, Host, Port}]}} = mesh(#{relays => [Url]}),
                     {Host, Port}
             end,
    [?_assertEqual(Expected, Parsed(Url))
     || {Url, Expected} <- [{"quic://r.example:1", {<<"r.example">>, 1}},
                            {"https://r.example", {<<"r.example">>, 443}},
                            {"quic://r.example", {<<"r.example">>, 4433}},
                            {<<"https://192.0.2.7:4433/">>, {<<"192.0.2.7">>, 4433}},
                            {"https://[2001:db8::1]:4433", {<<"2001:db8::1">>, 4433}}]]
        ++ [?_assertMatch({error, {bad_option, relays, _, _}}, mesh(#{relays => Bad}))
            || Bad <- [[], #{}, [<<"r.example:4433">>], ["http://r.example"], ["https://"], [42],
                       ["https://r.example:0"], ["https://r.example:99999"], [<<255>>],
                       lists:duplicate(65, "https://r.example")]].

relays_of_the_environment_test() ->
    ?assertMatch([{<<"https://a:1">>, <<"a">>, 1}, {<<"quic://b:2">>, <<"b">>, 2}],
                 macula_mesh_options:relays("MACULA_RELAYS", "https://a:1, quic://b:2")).

bad_options_name_the_key_test_() ->
    Relays = #{relays => ["https://r.example"]},
    [?_assertMatch({error, {bad_option, Key, Expected, _}}, mesh(maps:merge(Relays, Options)))
     || {Options, Key, Expected}
            <- [{#{relas => []}, relas, {did_you_mean, relays}},
                {#{realm => 42}, realm, realm},
                {#{realm => <<>>}, realm, realm},
                {#{timeout => infinity}, timeout, {integer, 1, 2147483647}},
                {#{tls_verify => yes}, tls_verify, {one_of, [none, verify_peer]}},
                {#{cacertfile => "ca.pem"}, cacertfile, {only_with, {tls_verify, verify_peer}}},
                {#{certfile => "c.pem"}, keyfile, {needed_for, certfile}},
                {#{keyfile => "k.pem"}, certfile, {needed_for, keyfile}},
                {#{token => []}, token, token}]].

a_token_never_shows_test() ->
    Long = binary:copy(<<"s">>, 2_000),
    ?assertEqual({error, {bad_option, token, token, secret}},
                 mesh(#{relays => ["https://r.example"], token => Long})).

relay_options_test() ->
    Realms = #{"a" => open, <<"b">> => {tokens, ["t"]}, c => {cacertfile, "ca.pem"}},
    {ok, #{port := 4433, realms := Given}} = relay(#{port => 4433, realms => Realms}),
    ?assertEqual([{<<"a">>, open}, {<<"b">>, {tokens, [<<"t">>]}}, {<<"c">>, {cacertfile, <<"ca.pem">>}}],
                 lists:sort(Given)),
    ?assertMatch({ok, #{peers := [{_, <<"r.example">>, 4433}, {_, <<"s.example">>, 443}]}},
                 relay(#{peers => ["quic://r.example", <<"https://s.example">>]})),
    ?assertMatch({ok, #{peers := []}}, relay(#{peers => []})),
    ?assertEqual({error, {bad_option, peers, relay_url, <<"r.example:4433">>}}, relay(#{peers => [<<"r.example:4433">>]})),
    ?assertEqual({error, {bad_option, peers, relay_urls, 42}}, relay(#{peers => 42})),
    ?assertMatch({ok, #{port := undefined, realms := undefined, nodes := 4096,
                        attachments_per_second := 500, memory := 268_435_456,
                        nodes_per_realm := undefined, attachments_per_realm := undefined, peers := []}}, relay(#{})),
    ?assertMatch({error, {bad_option, memory, _, 0}}, relay(#{memory => 0})),
    ?assertMatch({ok, #{attachments_per_realm := 50}}, relay(#{attachments_per_realm => 50})),
    ?assertMatch({error, {bad_option, attachments_per_realm, _, 0}}, relay(#{attachments_per_realm => 0})),
    ?assertMatch({ok, #{nodes := 20_000}}, relay(#{nodes => 20_000})),
    ?assertMatch({error, {bad_option, nodes, _, infinity}}, relay(#{nodes => infinity})),
    ?assertMatch({error, {bad_option, prot, {did_you_mean, port}, _}}, relay(#{prot => 1})),
    ?assertMatch({error, {bad_option, port, _, 0}}, relay(#{port => 0})),
    ?assertMatch({error, {bad_option, {realms, <<"a">>}, realm_access, closed}},
                 relay(#{realms => #{<<"a">> => closed}})),
    ?assertMatch({error, {bad_option, relay, map, []}}, relay([])).
