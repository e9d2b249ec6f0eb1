%% What a scenario is worked out into.
-module(netlab_scenario_tests).

-include_lib("eunit/include/eunit.hrl").

%% Every scenario there is has a plan, and says what it is.
scenarios_test() ->
    Names = netlab_scenario:names(),
    ?assert(length(Names) >= 6),
    [begin
         {ok, Scenario} = netlab_scenario:read(Name, #{}),
         ?assertMatch({Name, [_ | _], {ok, _}}, {Name, Lines, netlab_scenario:plan(Scenario)})
     end || {Name, Lines} <- Names].

%% A misspelled option is not passed over.
unknown_option_test() ->
    ?assertMatch({error, {bad_scenario, {options, wan}, {unknown_keys, [dealy], _}}},
                 netlab_scenario:read(wan, #{dealy => 5})).

%% Hosts come as one names them, whatever order the map of them has.
order_test() ->
    Names = [list_to_atom([Letter]) || Letter <- lists:seq($a, $z)],
    ?assertEqual(Names, [Name || #{name := Name} <- netlab_scenario:machines(plan(lan, #{hosts => 26}))]).

%% A home's way out is its router, which needs none: the public net is at its door.
routes_test() ->
    Plan = plan(two_nats, #{}),
    ?assertEqual([{{{0, 0, 0, 0}, 0}, {192, 168, 1, 1}}], routes(a, Plan)),
    ?assertEqual([], routes(nat_a, Plan)),
    ?assertEqual([], routes(p, Plan)).

%% What lies behind a plain router is reached through it, both ways, in both families.
plain_router_test() ->
    Plan = plan(routed, #{}),
    ?assertEqual([{{0, 0, 0, 0}, 0}, {{0, 0, 0, 0, 0, 0, 0, 0}, 0}], [To || {To, _} <- routes(a, Plan)]),
    ?assertEqual([{{10, 0, 0, 0}, 24}, {{16#fd00, 0, 0, 0, 0, 0, 0, 0}, 64}],
                 [To || {To, _} <- routes(b, Plan)]).

%% A NAT behind another leads out by it.
nat_behind_nat_test() ->
    {ok, Plan} = netlab_scenario:plan(
                   #{nets => #{internet => #{}, provider => #{}, home => #{}},
                     hosts => #{a => home, p => internet},
                     routers => #{carrier => #{inside => provider, outside => internet, nat => symmetric},
                                  nat_a => #{inside => home, outside => provider, nat => full_cone}}}),
    ?assertMatch([{{{0, 0, 0, 0}, 0}, {10, 2, 0, 1}}], routes(nat_a, Plan)),
    ?assertEqual([home, internet, provider], netlab_scenario:visible(a, Plan)),
    ?assertEqual([internet], netlab_scenario:visible(p, Plan)).

%% Names are known where they lead: outwards, and never behind a NAT.
visible_test() ->
    Plan = plan(two_nats, #{}),
    ?assertEqual([home_a, internet], netlab_scenario:visible(a, Plan)),
    ?assertEqual([internet], netlab_scenario:visible(p, Plan)),
    ?assertEqual([left, right], netlab_scenario:visible(b, plan(routed, #{}))).

%% A new address is one that nobody has had.
readdress_test() ->
    Plan = plan(lan, #{hosts => 3}),
    Addresses = [address(Name, Plan) || Name <- [a, b, c]],
    Changed = netlab_scenario:readdress(b, lan, Plan),
    ?assertNot(lists:member(address(b, Changed), Addresses)),
    ?assertEqual(address(a, Plan), address(a, Changed)).

%% What is said outside of `up' and `down' holds for both.
impairment_test() ->
    {ok, #{up := Up, down := Down}} = netlab_scenario:impairment(here, #{delay => 5, up => #{loss => 1}}),
    ?assertMatch({#{delay := 5, loss := 1}, #{delay := 5, loss := 0}}, {Up, Down}),
    ?assertMatch({error, {bad_scenario, {here, loss}, _}}, netlab_scenario:impairment(here, #{loss => 2})).

plan(Name, Options) ->
    {ok, Scenario} = netlab_scenario:read(Name, Options),
    {ok, Plan} = netlab_scenario:plan(Scenario),
    Plan.

routes(Name, #{machines := Machines}) ->
    maps:get(routes, maps:get(Name, Machines)).

address(Name, #{machines := Machines}) ->
    #{links := [#{address := Address} | _]} = maps:get(Name, Machines),
    Address.
