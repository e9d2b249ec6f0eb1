%% The network lab does what its scenarios say, checked by probes.
-module(netlab_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([hosts_reach_each_other/1, multicast/1, labs_side_by_side/1, removed_after_kill/1,
         swept/1, what_is_wrong_is_named/1]).

-import(macula_test_node, [start/2, call/2, call/4, name/1, wait_until/1, unique/1]).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [hosts_reach_each_other, multicast, labs_side_by_side, removed_after_kill,
     swept, what_is_wrong_is_named].

init_per_suite(Config) ->
    case netlab:requires() of
        ok -> Config;
        Skip -> Skip
    end.

end_per_suite(_) ->
    ok.

end_per_testcase(_, _) ->
    macula_test_node:stop_all(),
    netlab:stop_all().

%%% A switch

%% Macula nodes find each other by host name; datagrams pass over IPv4 and IPv6.
hosts_reach_each_other(_) ->
    Lab = netlab:start(lan, #{hosts => 3}),
    ?assertEqual([a, b, c], netlab:hosts(Lab)),
    [A, B, C] = [start(unique(atom_to_list(Host)),
                       #{within => netlab:within(Lab, Host), host => atom_to_list(Host)})
                 || Host <- netlab:hosts(Lab)],
    [?assertEqual(pong, call(From, net_adm, ping, [name(To)])) || {From, To} <- [{A, B}, {C, A}]],
    [arrives(A, C, Family, netlab:address(Lab, c, Family)) || Family <- [inet, inet6]].

arrives(From, To, Family, Address) ->
    Receiver = call(To, netlab_probe, open, [[Family]]),
    {_, Port} = call(To, netlab_probe, address, [Receiver]),
    Sender = call(From, netlab_probe, open, [[Family]]),
    ok = call(From, netlab_probe, send, [Sender, {Address, Port}, <<"hello">>]),
    wait_until(fun() -> [Data || {_, Data} <- call(To, netlab_probe, received, [Receiver])] =:= [<<"hello">>] end).

%% One datagram to a group reaches every member of it.
multicast(_) ->
    Lab = netlab:start(lan, #{hosts => 4}),
    [A | Others] = [plain(Lab, Host) || Host <- netlab:hosts(Lab)],
    Group = {230, 1, 1, 251},
    Members = [{Node, call(Node, netlab_probe, open, [[{port, 45892}, {add_membership, {Group, {0, 0, 0, 0}}}]])}
               || Node <- Others],
    Sender = call(A, netlab_probe, open, [[]]),
    ok = call(A, netlab_probe, send, [Sender, {Group, 45892}, <<"hello">>]),
    [wait_until(fun() -> [Data || {_, Data} <- call(Node, netlab_probe, received, [Probe])] =:= [<<"hello">>] end)
     || {Node, Probe} <- Members].

%%% Life

%% The same hosts with the same addresses, twice, and neither sees the other.
labs_side_by_side(_) ->
    [Lab1, Lab2] = [netlab:start(lan) || _ <- [1, 2]],
    ?assertEqual(netlab:address(Lab1, a), netlab:address(Lab2, a)),
    ?assertNotEqual(netlab:within(Lab1, a), netlab:within(Lab2, a)),
    ok = netlab:stop(Lab1),
    ?assertMatch({0, _}, netlab:exec(Lab2, a, ["true"])).

%% A VM that is killed leaves nothing.
removed_after_kill(_) ->
    Owner = start(unique("owner"), #{flags => [], domain => none}),
    {Prefix, Sleeper} = call(Owner, fun() ->
                                        Lab = netlab:start(lan),
                                        Within = netlab:within(Lab, a),
                                        Port = open_port({spawn_executable, hd(Within)},
                                                         [{args, tl(Within) ++ ["sleep", "1000"]}]),
                                        {lists:last(Within), element(2, erlang:port_info(Port, os_pid))}
                                    end),
    ?assert(is_there(Prefix)),
    macula_test_node:kill(Owner),
    wait_until(fun() -> not is_there(Prefix) end),
    wait_until(fun() -> not is_running(Sleeper) end).

%% Of a zombie there is no command line.
is_running(OsPid) ->
    case file:read_file("/proc/" ++ integer_to_list(OsPid) ++ "/cmdline") of
        {ok, <<_, _/binary>>} -> true;
        _ -> false
    end.

%% What is left when the keeper was killed as well goes when the next lab starts; what belongs to a
%% process that lives stays.
swept(_) ->
    Dead = "netlab-999999999-1-1-a",
    Alive = "netlab-" ++ os:getpid() ++ "-" ++ netlab_os:start_time(os:getpid()) ++ "-0-a",
    [netlab_os:run(["ip", "netns", "add", Namespace]) || Namespace <- [Dead, Alive]],
    _ = netlab:start(lan),
    ?assertEqual({false, true}, {is_there(Dead), is_there(Alive)}),
    netlab_os:run(["ip", "netns", "delete", Alive]).

is_there(Namespace) ->
    filelib:is_file("/run/netns/" ++ Namespace).

%%% Scenarios

what_is_wrong_is_named(_) ->
    ?assertError({no_such_scenario, nowhere, [_ | _]}, netlab:start(nowhere)),
    ?assertError({bad_scenario, {machine, a}, {no_such_net, elsewhere}},
                 netlab:start(#{nets => #{}, hosts => #{a => elsewhere}})),
    ?assertError({bad_scenario, {net, lan}, {unknown_keys, [mut], _}},
                 netlab:start(#{nets => #{lan => #{mut => 1500}}, hosts => #{}})).

%%% Help

%% A host to look from: a VM without a name.
plain(Lab, Host) ->
    start(unique(atom_to_list(Host)), #{within => netlab:within(Lab, Host), flags => [], domain => none}).
