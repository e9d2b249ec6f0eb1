-module(macula_config_tests).

-include_lib("eunit/include/eunit.hrl").

%% Origins and precedence.

defaults_test() ->
    ?assertEqual({ok, #{port => {[4433, 0], default},
                        interface => {any, default},
                        advertise => {undefined, default},
                        threads => {max(1, min(8, erlang:system_info(schedulers_online) div 4)), default},
                        dist_streams => {64, default},
                        link_memory => {195 * 1024 * 1024, default},
                        congestion => {cubic, default},
                        peers => {#{}, default},
                        select => {[], default},
                        mesh => {undefined, default},
                        dist_mode => {all, default},
                        tls_verify => {none, default},
                        cacertfile => {undefined, default},
                        certfile => {undefined, default},
                        keyfile => {undefined, default}}},
                 resolve(#{})).

port_precedence_test() ->
    All = #{node_port => 1,
            os_env => #{"MACULA_DIST_PORT" => "2"},
            kernel => #{macula_dist_port => 3, inet_dist_listen_min => 6},
            macula => #{dist => #{port => 4, port_range => {5, 5}}}},
    NoName = maps:remove(node_port, All),
    NoOs = maps:remove(os_env, NoName),
    NoKernelPort = NoOs#{kernel => #{inet_dist_listen_min => 6}},
    NoPort = NoKernelPort#{macula => #{dist => #{port_range => {5, 5}}}},
    NoRange = maps:remove(macula, NoPort),
    ?assertEqual([{1, node_name},
                  {2, {os_env, "MACULA_DIST_PORT"}},
                  {3, {app_env, kernel, macula_dist_port}},
                  {4, {app_env, macula, {dist, port}}},
                  {{5, 5}, {app_env, macula, {dist, port_range}}},
                  {{6, 6}, {app_env, kernel, inet_dist_listen_min}},
                  {[4433, 0], default}],
                 [port(S) || S <- [All, NoName, NoOs, NoKernelPort, NoPort, NoRange, #{}]]).

kernel_range_test() ->
    ?assertEqual({{7, 9}, {app_env, kernel, inet_dist_listen_min}},
                 port(#{kernel => #{inet_dist_listen_min => 7, inet_dist_listen_max => 9}})).

interface_test_() ->
    Kernel = #{inet_dist_use_interface => {10, 0, 0, 1}},
    [?_assertMatch({ok, #{interface := {{10, 0, 0, 1}, {app_env, kernel, inet_dist_use_interface}}}},
                   resolve(#{kernel => Kernel})),
     ?_assertMatch({ok, #{interface := {{0, 0, 0, 0, 0, 0, 0, 1}, {app_env, macula, {dist, interface}}}}},
                   resolve(#{kernel => Kernel, macula => #{dist => #{interface => "::1"}}}))].

ports_test_() ->
    [?_assertEqual([4433, 0], macula_config:ports([4433, 0])),
     ?_assertEqual([7], macula_config:ports(7)),
     ?_assertEqual([7, 8, 9], macula_config:ports({7, 9}))].

%% Addresses.

address_test_() ->
    [?_assertEqual(Expected, macula_config:parse_address(Given))
     || {Given, Expected} <-
            [{"192.0.2.7:4433", {ok, {{192, 0, 2, 7}, 4433}}},
             {<<"192.0.2.7:4433">>, {ok, {{192, 0, 2, 7}, 4433}}},
             {"[2001:db8::1]:4433", {ok, {{16#2001, 16#db8, 0, 0, 0, 0, 0, 1}, 4433}}},
             {"host.example.org:4433", {ok, {"host.example.org", 4433}}},
             {{{192, 0, 2, 7}, 1}, {ok, {{192, 0, 2, 7}, 1}}},
             {"192.0.2.7", error}, {"", error}, {":1", error}, {"h:x", error}, {"a@b:1", error},
             {{{192, 0, 2}, 1}, error}, {{{192, 0, 2, 7}, 0}, error}, {12, error}]].

peers_test() ->
    ?assertMatch({ok, #{peers := {#{'b@h' := {{192, 0, 2, 7}, 4433}}, {app_env, macula, peers}}}},
                 resolve(#{macula => #{peers => #{'b@h' => "192.0.2.7:4433"}}})).

%% Congestion control.

congestion_test_() ->
    Configured = #{macula => #{congestion => bbr}},
    [?_assertMatch({ok, #{congestion := {bbr, {app_env, macula, congestion}}}}, resolve(Configured)),
     ?_assertMatch({ok, #{congestion := {cubic, {os_env, "MACULA_CONGESTION"}}}},
                   resolve(Configured#{os_env => #{"MACULA_CONGESTION" => "cubic"}}))].

%% Streams.

dist_streams_test_() ->
    [?_assertMatch({ok, #{dist_streams := {N, {app_env, macula, dist_streams}}}},
                   resolve(#{macula => #{dist_streams => N}})) || N <- [1, 64, 255]].

%% Memory.

link_memory_test_() ->
    [?_assertMatch({ok, #{link_memory := {N, {app_env, macula, link_memory}}}},
                   resolve(#{macula => #{link_memory => N}})) || N <- [4 bsl 20, 10_000_000, 2 bsl 30]].

%% Carriers.

select_test_() ->
    Rule = [{'b@h', macula}, {"*@*.paris.example.org", inet_tcp}, {<<"*">>, macula}],
    [?_assertMatch({ok, #{select := {Rule, {app_env, macula, select}}}}, resolve(select(Rule))),
     %% Left over from when there was another carrier.
     ?_assertMatch({ok, #{select := {Rule, _}}}, resolve((select(Rule))#{carriers => [macula]}))].

select(Rule) ->
    #{macula => #{select => Rule}}.

%% Certificates.

certificates_test() ->
    Dist = #{tls_verify => verify_peer, cacertfile => "ca.pem", certfile => <<"a.crt">>, keyfile => "ä.key"},
    Origin = fun(Key) -> {app_env, macula, {dist, Key}} end,
    {ok, Config} = resolve(dist(Dist)),
    ?assertEqual(#{tls_verify => {verify_peer, Origin(tls_verify)},
                   cacertfile => {<<"ca.pem">>, Origin(cacertfile)},
                   certfile => {<<"a.crt">>, Origin(certfile)},
                   keyfile => {<<"ä.key"/utf8>>, Origin(keyfile)}},
                 maps:with(maps:keys(Dist), Config)).

%% Bad options.

bad_option_test_() ->
    [?_assertEqual({error, {bad_option, Key, Expected, Got}}, resolve(Sources))
     || {Sources, Key, Expected, Got} <-
            [{dist(#{prot => 1}), prot, {did_you_mean, port}, 1},
             {dist(#{ports_range => 1}), ports_range, {did_you_mean, port_range}, 1},
             {dist(#{"thread" => 1}), "thread", {did_you_mean, threads}, 1},
             {#{macula => #{peer => x}}, peer, {did_you_mean, peers}, x},
             {#{macula => #{dist => []}}, dist, map, []},
             {dist(#{port => 70000}), port, {integer, 0, 65535}, 70000},
             {dist(#{port_range => {2, 1}}), port_range, {range, 1, 65535}, {2, 1}},
             {dist(#{interface => "eth0"}), interface, ip_address, "eth0"},
             {dist(#{advertise => "x"}), advertise, address, "x"},
             {dist(#{threads => 0}), threads, {integer, 1, 1024}, 0},
             {#{macula => #{dist_stream => 1}}, dist_stream, {did_you_mean, dist_streams}, 1},
             {#{macula => #{congestion => bbr3}}, congestion, {one_of, [cubic, bbr]}, bbr3},
             {#{macula => #{congestions => bbr}}, congestions, {did_you_mean, congestion}, bbr},
             {#{os_env => #{"MACULA_CONGESTION" => "BBR"}}, "MACULA_CONGESTION", {one_of, ["cubic", "bbr"]}, "BBR"},
             {#{macula => #{dist_streams => 0}}, dist_streams, {integer, 1, 255}, 0},
             {#{macula => #{dist_streams => 256}}, dist_streams, {integer, 1, 255}, 256},
             {#{macula => #{dist_streams => 64.0}}, dist_streams, {integer, 1, 255}, 64.0},
             {#{macula => #{dist_streams => all}}, dist_streams, {integer, 1, 255}, all},
             {#{macula => #{link_mem => 1}}, link_mem, {did_you_mean, link_memory}, 1},
             {#{macula => #{link_memory => 1000}}, link_memory, {integer, 4194304, 2147483648}, 1000},
             {#{macula => #{link_memory => 1 bsl 32}}, link_memory, {integer, 4194304, 2147483648}, 1 bsl 32},
             {#{macula => #{link_memory => "64M"}}, link_memory, {integer, 4194304, 2147483648}, "64M"},
             {#{os_env => #{"MACULA_DIST_PORT" => "x"}}, "MACULA_DIST_PORT", {integer, 0, 65535}, "x"},
             {#{kernel => #{macula_dist_port => x}}, macula_dist_port, {integer, 0, 65535}, x},
             {dist(#{tls_verify => x}), tls_verify, {one_of, [none, verify_peer]}, x},
             {dist(#{tls_verify => verify_peer}), cacertfile, {needed_for, {tls_verify, verify_peer}}, undefined},
             {dist(#{cacertfile => "f"}), cacertfile, {only_with, {tls_verify, verify_peer}}, "f"},
             {dist(#{tls_verify => verify_peer, cacertfile => ""}), cacertfile, file_name, ""},
             {dist(#{certfile => "f"}), keyfile, {needed_for, certfile}, undefined},
             {dist(#{keyfile => "f"}), certfile, {needed_for, keyfile}, undefined},
             {dist(#{certfile => x, keyfile => "f"}), certfile, file_name, x},
             {dist(#{certfile => [-1], keyfile => "f"}), certfile, file_name, [-1]},
             {select(#{}), select, rule, #{}},
             {select([{"*", macula} | x]), select, rule, x},
             {select([macula]), select, pattern_and_carrier, macula},
             {select([{12, macula}]), select, pattern, 12},
             {select([{"", macula}]), select, pattern, ""},
             {select([{"h.example.org", macula}]), select, pattern, "h.example.org"},
             {select([{"*", inet_tls}]), {select, "*"}, {one_of, [macula, inet_tcp]}, inet_tls},
             {#{macula => #{peers => []}}, peers, map, []},
             {#{macula => #{peers => #{b => "h:1"}}}, peers, node_name, b},
             {#{macula => #{peers => #{'b@h' => "h"}}}, {peers, 'b@h'}, address, "h"}]].

%% A source that is overruled is checked all the same.
overruled_typo_test() ->
    ?assertMatch({error, {bad_option, port, _, x}},
                 resolve((dist(#{port => x}))#{node_port => 4434})).

every_error_is_readable_test_() ->
    [?_assertMatch([_ | _], lists:flatten(macula_config:format_error({bad_option, key, E, got})))
     || E <- [{did_you_mean, port}, {integer, 0, 1}, {range, 0, 1}, ip_address, address,
              node_name, map, rule, pattern_and_carrier, pattern, file_name, {one_of, [a]}, {needed_for, k}, {only_with, {k, v}}, other]].

resolve(Given) ->
    macula_config:resolve(maps:merge(#{node_port => default, os_env => #{},
                                       kernel => #{}, macula => #{},
                                       carriers => [macula, inet_tcp]}, Given)).

port(Given) ->
    {ok, #{port := Port}} = resolve(Given),
    Port.

dist(Dist) ->
    #{macula => #{dist => Dist}}.
