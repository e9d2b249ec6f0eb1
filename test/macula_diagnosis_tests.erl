%% What is made of what was observed of a node.
-module(macula_diagnosis_tests).

-include_lib("eunit/include/eunit.hrl").

-define(STAGES, [node, name, address, port, version, tls, cookie, handshake]).
-define(ADDRESS, {{192, 0, 2, 7}, 4433}).
-define(OTHER, {{0, 0, 0, 0, 0, 0, 0, 1}, 4433}).

%% Every way in which a dial can end is laid to one stage; what is not known is, too.
every_failure_has_its_stage_test_() ->
    [{lists:flatten(io_lib:format("~0p", [Reason])),
      ?_assertEqual([Stage], [S || {S, failed, _} <- attempted([{?ADDRESS, {error, Reason}}])])}
     || {Reason, Stage} <-
            [{timeout, port}, {port_closed, port}, {{io, <<"no route">>}, port}, {not_running, port},
             {of_a_later_release, port},
             {{not_macula, <<"it is not">>}, version}, {{version_mismatch, 2, 3}, version},
             {{refused, version_mismatch}, version}, {{refused, malformed}, version},
             {{tls, <<"alert">>}, tls}, {{certificate, expired}, tls}, {{own_certificate, unfit}, tls},
             {{refused, proof}, cookie},
             {{refused, wrong_name}, handshake}, {{refused, name_taken}, handshake},
             {{refused, later_version}, handshake}, {busy, handshake}, {no_hello, handshake}]].

%% Always all stages, each with a text, and what failed with what to do.
every_stage_is_told_test_() ->
    [?_test(begin
                Findings = macula_diagnosis:findings(Observed),
                ?assertEqual(?STAGES, [Stage || {Stage, _, _} <- Findings]),
                [?assertNotEqual("", lists:flatten(unicode:characters_to_list(Text))) || {_, _, #{text := Text}} <- Findings],
                ?assertEqual([], [Stage || {Stage, failed, Details} <- Findings, not is_map_key(advice, Details)]),
                ?assert(is_binary(unicode:characters_to_binary(macula_diagnosis:format('b@host', Findings))))
            end)
     || Observed <- [observed(#{}),
                     observed(#{carrier => {not_distributed, nonode@nohost}}),
                     observed(#{carrier => {other_carrier, 'a@host'}}),
                     observed(#{carrier => {unusable, {bind_failed, <<"no">>}}}),
                     observed(#{carrier => {macula, 'b@host', {error, not_listening}}}),
                     observed(#{carrier => {macula, 'a@host', {ok, {"proxy.example", 4433}}}}),
                     observed(#{name => {error, {bad_port, "x"}}}),
                     observed(#{link => #{node => 'b@host', address => ?ADDRESS}}),
                     observed(#{look_ups => [#{source => srv, found => {error, {dns, <<"none">>}}}]}),
                     observed(#{attempts => [#{address => ?ADDRESS, result => ok}], handshake => failed})]].

%% One address is dead and another one's node has another cookie: that is what counts.
the_attempt_that_got_furthest_counts_test() ->
    Findings = attempted([{?ADDRESS, {error, port_closed}}, {?OTHER, {error, {refused, proof}}}]),
    ?assertMatch({port, ok, #{address := ?OTHER}}, lists:keyfind(port, 1, Findings)),
    {cookie, failed, #{address := ?OTHER, attempts := [_, _], text := Text}} = lists:keyfind(cookie, 1, Findings),
    ?assertNotEqual(nomatch, string:find(Text, "192.0.2.7:4433 nothing listens there")).

%% With a mesh: its own stage, and what it says of the node counts more than an address that is silent.
mesh_test_() ->
    Attached = {<<"https://one:1">>, {attached, ?ADDRESS}},
    Down = {<<"https://two:2">>, {down, {refused, token}}},
    [{lists:flatten(io_lib:format("~0p", [Expected])),
      fun() ->
              Findings = macula_diagnosis:findings(
                           observed(#{mesh => Mesh, attempts => [#{address => Way, result => Result}
                                                                 || {Way, Result} <- Attempts]})),
              ?assertEqual(Expected, [{Stage, maps:get(reason, Details, none)}
                                      || {Stage, failed, Details} <- Findings]),
              ?assert(is_binary(unicode:characters_to_binary(macula_diagnosis:format('b@host', Findings))))
      end}
     || {Mesh, Attempts, Expected} <-
            [{#{relays => [Down, Attached], forged => 0}, [{?ADDRESS, {error, timeout}}, {mesh, {error, not_in_mesh}}],
              [{port, not_in_mesh}]},
             {#{relays => [Down], forged => 0}, [{?ADDRESS, {error, timeout}}, {mesh, {error, timeout}}],
              [{mesh, not_attached}, {port, timeout}]},
             {#{relays => [Attached], forged => 7}, [{mesh, {error, timeout}}],
              [{mesh, decrypt_failed}, {port, timeout}]},
             {#{relays => [Attached], forged => 0}, [{mesh, {error, {refused, name_taken}}}],
              [{handshake, {refused, name_taken}}]},
             {#{relays => [Down], forged => 0}, [{?ADDRESS, ok}, {mesh, {error, timeout}}], []},
             {not_joined, [{mesh, {error, no_mesh}}], [{mesh, no_mesh}, {port, no_mesh}]}]].

the_upshot_is_in_front_test() ->
    Report = unicode:characters_to_list(macula_diagnosis:format('b@host', attempted([{?ADDRESS, {error, timeout}}]))),
    ?assertMatch("b@host cannot be reached: port\n" ++ _, Report),
    ?assertMatch("b@host: nothing is wrong\n" ++ _,
                 unicode:characters_to_list(macula_diagnosis:format('b@host', attempted([{?ADDRESS, ok}])))).

attempted(Attempts) ->
    macula_diagnosis:findings(
      observed(#{attempts => [#{address => Address, result => Result} || {Address, Result} <- Attempts],
                 handshake => ok})).

observed(More) ->
    maps:merge(#{node => 'b@host', carrier => {macula, 'a@host', {ok, ?ADDRESS}},
                 name => macula_dist_name:split('b@host'), link => none,
                 look_ups => [#{source => dns, found => {ok, [?ADDRESS, ?OTHER]}},
                              #{source => registry, found => {error, not_found}}],
                 mesh => not_joined, attempts => [], handshake => not_tried}, More).
