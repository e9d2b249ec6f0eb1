%% The network lab does what its scenarios say: every kind of link and NAT is probed before others
%% may trust it.
-module(netlab_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-export([hosts_reach_each_other/1, multicast/1, mtu/1, path_mtu/1]).
-export([delay_and_loss/1, jitter_keeps_order/1, reordering/1, rate/1, each_way_by_itself/1,
         same_seed_same_fates/1]).
-export([mapping_and_filtering/1, strangers_do_not_disturb/1, udp_is_blocked/1, mappings_expire/1,
         hole_punching/1]).
-export([cut_and_heal/1, retuned/1, new_address/1, rebinding/1, new_address_of_a_nat/1,
         stopped_host/1]).
-export([labs_side_by_side/1, removed_after_end/1, swept/1, captures/1, shell/1,
         what_is_wrong_is_named/1]).
-export([macula_over_wan/1]).

-import(macula_test_node, [start/2, call/2, call/4, name/1, wait_until/1, unique/1, full/2, scratch/1]).

-define(HANG, 30_000).
%% After the last datagram that must arrive: time for one that must not.
-define(GRACE, 200).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [{group, Group} || {Group, _} <- groups()].

groups() ->
    [{nets, [hosts_reach_each_other, multicast, mtu, path_mtu]},
     {links, [delay_and_loss, jitter_keeps_order, reordering, rate, each_way_by_itself,
              same_seed_same_fates]},
     {nats, [mapping_and_filtering, strangers_do_not_disturb, udp_is_blocked, mappings_expire,
             hole_punching]},
     {changes, [cut_and_heal, retuned, new_address, rebinding, new_address_of_a_nat, stopped_host]},
     {life, [labs_side_by_side, removed_after_end, swept, captures, shell, what_is_wrong_is_named]},
     {macula, [macula_over_wan]}].

init_per_suite(Config) ->
    case netlab:requires() of
        ok -> Config;
        Skip -> Skip
    end.

end_per_suite(_) ->
    ok.

init_per_testcase(Case, Config) ->
    [{captures, filename:join(proplists:get_value(priv_dir, Config), Case)} | Config].

end_per_testcase(_, Config) ->
    macula_test_node:stop_all(),
    netlab:stop_all(Config).

%%% Nets

%% Macula nodes find each other by host name; datagrams pass over IPv4 and IPv6.
hosts_reach_each_other(_) ->
    Lab = netlab:start(lan, #{hosts => 3}),
    ?assertEqual([a, b, c], netlab:hosts(Lab)),
    [A, B, C] = [start(unique(atom_to_list(Host)),
                       #{within => netlab:within(Lab, Host), host => atom_to_list(Host)})
                 || Host <- netlab:hosts(Lab)],
    [?assertEqual(pong, call(From, net_adm, ping, [name(To)])) || {From, To} <- [{A, B}, {C, A}]],
    [begin
         From = netlab_probe:open(Lab, a, [Family]),
         To = netlab_probe:open(Lab, c, [Family]),
         {_, Port} = netlab_probe:address(To),
         ok = netlab_probe:send(From, {netlab:address(Lab, c, Family), Port}, <<"hello">>),
         await(To, [<<"hello">>])
     end || Family <- [inet, inet6]].

%% One datagram to a group reaches every member of it.
multicast(_) ->
    Lab = netlab:start(lan, #{hosts => 4}),
    [First | Others] = netlab:hosts(Lab),
    Group = {230, 1, 1, 251},
    Members = [netlab_probe:open(Lab, Host, [{port, 45892}, {add_membership, {Group, {0, 0, 0, 0}}}])
               || Host <- Others],
    Sender = netlab_probe:open(Lab, First, []),
    ok = netlab_probe:send(Sender, {Group, 45892}, <<"hello">>),
    [await(Member, [<<"hello">>]) || Member <- Members].

%% The largest datagram that fits passes whole, and the next one is refused.
mtu(_) ->
    Lab = netlab:start(veth, #{mtu => 1400}),
    {From, To, Address} = pair(Lab, unfragmented()),
    ?assertEqual({error, emsgsize}, netlab_probe:send(From, Address, payload(1401))),
    ok = netlab_probe:send(From, Address, payload(1400)),
    await(To, [iolist_to_binary(payload(1400))]).

%% A router says that a packet is too large for the next link, and the sender learns it.
path_mtu(_) ->
    Lab = netlab:start(routed, #{mtu => 1280}),
    {From, To, Address} = pair(Lab, unfragmented()),
    ok = netlab_probe:send(From, Address, payload(1281)),
    wait_until(fun() -> netlab_probe:send(From, Address, payload(1281)) =:= {error, emsgsize} end),
    ok = netlab_probe:send(From, Address, payload(1280)),
    await(To, [iolist_to_binary(payload(1280))]).

%% IP_MTU_DISCOVER, IP_PMTUDISC_DO
unfragmented() ->
    [{raw, 0, 10, <<2:32/native>>}].

%% What makes an IPv4 packet of that size: 20 bytes of IP and 8 of UDP come before it.
payload(Size) ->
    binary:copy(<<0>>, Size - 28).

%%% Links

%% Both are what was set: the median delay within 1 ms, loss within a tenth.
delay_and_loss(_) ->
    Count = full(100_000, 10_000),
    [begin
         Lab = netlab:start(wan, #{delay => Delay, loss => Loss}),
         Arrivals = probe(Lab, Count, 10),
         Delays = [Took || {_, Took} <- Arrivals],
         Lost = 1 - length(Arrivals) / Count,
         ct:pal("set ~b ms, ~p lost; measured over ~b probes: median ~.3f ms, p1 ~.3f, p99 ~.3f, ~.4f lost",
                [Delay, Loss, Count, percentile(50, Delays), percentile(1, Delays),
                 percentile(99, Delays), Lost]),
         ?assert(abs(percentile(50, Delays) - Delay) < 1.0),
         ?assert(abs(Lost - Loss) =< Loss / 10),
         #{up := #{lost := Counted, passed := Passed}} = netlab:counters(Lab, a),
         %% Neighbour discovery comes along.
         ?assert(abs(Counted - Lost * Count) < 20),
         ?assert(abs(Counted + Passed - Count) < 50),
         netlab:stop(Lab)
     end || {Delay, Loss} <- full([{20, 0.01}, {20, 0.05}, {50, 0.2}], [{20, 0.2}])].

%% Delays spread as far as set, to both sides of the median, and nothing overtakes anything.
jitter_keeps_order(_) ->
    Lab = netlab:start(wan, #{delay => 20, jitter => 8, loss => 0}),
    Arrivals = probe(Lab, full(10_000, 1_000), 1),
    Delays = [Took || {_, Took} <- Arrivals],
    Numbers = [Number || {Number, _} <- Arrivals],
    ct:pal("delay 20 ms, jitter 8 ms: p1 ~.3f ms, median ~.3f, p99 ~.3f",
           [percentile(P, Delays) || P <- [1, 50, 99]]),
    ?assertEqual(lists:sort(Numbers), Numbers),
    ?assert(lists:min(Delays) >= 12),
    ?assert(percentile(99, Delays) - percentile(1, Delays) > 4),
    %% Alone on the wire a packet waits for none before it.
    Sparse = [Took || {_, Took} <- probe(Lab, full(2_000, 150), 1, 18)],
    ct:pal("sparse: p1 ~.3f ms, median ~.3f, p99 ~.3f", [percentile(P, Sparse) || P <- [1, 50, 99]]),
    ?assert(percentile(99, Sparse) - percentile(1, Sparse) > 12),
    ?assert(abs(percentile(50, Sparse) - 20) < full(2.0, 5.0)).

%% As many as set arrive after ones that were sent later (reordered as in RFC 4737).
reordering(_) ->
    Count = full(100_000, 10_000),
    Lab = netlab:start(wan, #{delay => 5, loss => 0, reorder => 0.1, reorder_by => 10}),
    Numbers = [Number || {Number, _} <- probe(Lab, Count, 10)],
    {_, Late} = lists:foldl(fun(Number, {Highest, N}) when Number < Highest -> {Highest, N + 1};
                               (Number, {_, N}) -> {Number, N}
                            end, {-1, 0}, Numbers),
    ct:pal("reorder 0.1: ~.4f of ~b were", [Late / Count, Count]),
    ?assertEqual(Count, length(Numbers)),
    ?assert(abs(Late / Count - 0.1) < 0.015).

%% More than fits is offered: what arrives is what was set, and the rest found the queue full.
rate(_) ->
    {Megabits, Queue, Size} = {40, 200, 1400},
    Lab = netlab:start(wan, #{delay => 0, loss => 0, rate => Megabits, queue => Queue}),
    Arrivals = probe(Lab, full(100_000, 20_000), 40, 1, Size),
    {First, Last} = {element(3, hd(Arrivals)), element(3, lists:last(Arrivals))},
    %% On the wire an Ethernet header comes before the IP packet.
    Measured = (length(Arrivals) - 1) * (Size + 14) * 8 / ((Last - First) / 1_000),
    #{up := #{queue_full := Dropped}} = netlab:counters(Lab, a),
    ct:pal("rate ~b Mbit/s: ~.2f; ~b dropped", [Megabits, Measured, Dropped]),
    ?assert(abs(Measured - Megabits) < Megabits / 20),
    ?assert(Dropped > 0),
    %% Without an end of the queue the last would have waited for seconds.
    ?assert(percentile(95, [Took || {_, Took, _} <- Arrivals]) < 2 * Queue).

%% One way bad, the other good.
each_way_by_itself(_) ->
    Lab = netlab:start(wan, #{delay => 0, loss => 0, up => #{delay => 30}, down => #{loss => 1}}),
    {A, B, ToB} = pair(Lab, []),
    {_, PortA} = netlab_probe:address(A),
    %% Without an answer to ARP nothing goes up either.
    ok = netlab:change(Lab, {set, a, #{up => #{delay => 30}}}),
    ok = netlab_probe:send(A, ToB, <<"up">>),
    await(B, [<<"up">>]),
    ok = netlab:change(Lab, {set, a, #{up => #{delay => 30}, down => #{loss => 1}}}),
    ok = netlab_probe:send(B, {netlab:address(Lab, a), PortA}, <<"down">>),
    ok = netlab_probe:send(A, ToB, <<"up again">>),
    await(B, [<<"up">>, <<"up again">>]),
    ?assertEqual([], netlab_probe:received(A)).

%% The same packets, lost by the same seed; others by another; and the same again when set again.
same_seed_same_fates(_) ->
    [[One | _], _, [Other | _]] = All = [survivors(Seed) || Seed <- [7, 7, 8]],
    ?assertEqual([[One, One], [One, One], [Other, Other]], All),
    ?assertNotEqual(One, Other).

%% Without neighbour discovery, whose packets come when they like, and would be decided about too.
survivors(Seed) ->
    Lab = netlab:start(#{nets => #{wire => #{type => wire, subnet6 => none}},
                         hosts => #{a => {wire, #{}}, b => wire}}, #{seed => Seed}),
    [knows_neighbour(Lab, Host, Other) || {Host, Other} <- [{a, b}, {b, a}]],
    {From, To, Address} = pair(Lab, []),
    Survivors = [begin
                     ok = netlab:change(Lab, {set, a, #{loss => 0.5}}),
                     ok = netlab_probe:forget(To),
                     ok = send_numbered(From, Address, 500, 10, 1, 64),
                     [Number || {Number, _, _} <- arrived(To)]
                 end || _ <- [1, 2]],
    ok = netlab:stop(Lab),
    Survivors.

knows_neighbour(Lab, Host, Other) ->
    Run = fun(Where, Command) -> {0, Output} = netlab:exec(Lab, Where, Command), Output end,
    Link = string:trim(binary_to_list(Run(Other, ["cat", "/sys/class/net/eth0/address"]))),
    Run(Host, ["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1"]),
    Run(Host, ["ip", "neigh", "replace", inet:ntoa(netlab:address(Lab, Other)), "lladdr", Link, "dev", "eth0"]).

%%% NATs

kinds() ->
    [full_cone, address_restricted, port_restricted, symmetric].

%% Each kind maps and filters as RFC 4787 describes it.
mapping_and_filtering(_) ->
    Lab = netlab:start(every_kind()),
    Found = [{Kind, mapping(Lab, host(Kind)), filtering(Lab, host(Kind))} || Kind <- kinds()],
    ct:pal("~p", [Found]),
    ?assertEqual([{full_cone, endpoint_independent, endpoint_independent},
                  {address_restricted, endpoint_independent, address_dependent},
                  {port_restricted, endpoint_independent, address_and_port_dependent},
                  {symmetric, address_and_port_dependent, address_and_port_dependent}], Found).

%% The same towards somebody outside who has sent to the port before anything left by it.
strangers_do_not_disturb(_) ->
    Lab = netlab:start(every_kind()),
    [begin
         Inner = netlab_probe:open(Lab, host(Kind), []),
         {_, Port} = netlab_probe:address(Inner),
         Stranger = public(Lab, q),
         Early = {netlab:address(Lab, called(Kind, x, "_nat")), Port},
         [ok = netlab_probe:send(Stranger, Early, <<"early">>) || _ <- [1, 2, 3]],
         timer:sleep(?GRACE),
         [First, Second] = [outer(Inner, Public) || Public <- [public(Lab, p), Stranger]],
         ?assertEqual({Kind, First}, {Kind, Second}),
         ?assertEqual([], netlab_probe:received(Inner))
     end || Kind <- kinds() -- [symmetric]].

%% Two homes, x and y, behind each kind of NAT, and hosts p and q outside.
every_kind() ->
    Home = #{subnet => "192.168.1.0/24", subnet6 => none},
    Homes = [{Kind, Side} || Kind <- kinds(), Side <- [x, y]],
    Home_ = fun({Kind, Side}) -> called(Kind, Side, "_home") end,
    #{nets => maps:from_list([{internet, #{subnet => "203.0.113.0/24"}} | [{Home_(H), Home} || H <- Homes]]),
      hosts => maps:from_list([{p, internet}, {q, internet}
                               | [{host(Kind, Side), Home_(H)} || {Kind, Side} = H <- Homes]]),
      routers => maps:from_list([{called(Kind, Side, "_nat"), #{inside => Home_(H), outside => internet, nat => Kind}}
                                 || {Kind, Side} = H <- Homes])}.

%% The host behind that NAT.
host(Kind) -> host(Kind, x).

host(Kind, Side) -> called(Kind, Side, "").

called(Kind, Side, What) ->
    list_to_atom(hd(string:split(atom_to_list(Kind), "_")) ++ "_" ++ atom_to_list(Side) ++ What).

%% Whether a socket has one outer address for all, for each address, or for each address and port.
mapping(Lab, Host) when is_atom(Host) ->
    mapping(Lab, netlab_probe:open(Lab, Host, []));
mapping(Lab, Inner) ->
    Outside = [public(Lab, p), public(Lab, p), public(Lab, q)],
    case [outer(Inner, To) || To <- Outside] of
        [Same, Same, Same] -> endpoint_independent;
        [Same, Same, _] -> address_dependent;
        [_, _, _] -> address_and_port_dependent
    end.

%% Who may send to the outer address of a socket that has sent to one host and port.
filtering(Lab, Host) ->
    Inner = netlab_probe:open(Lab, Host, []),
    [Known, OtherPort, OtherHost] = [public(Lab, p), public(Lab, p), public(Lab, q)],
    Outer = outer(Inner, Known),
    [ok = netlab_probe:send(Probe, Outer, Name)
     || {Probe, Name} <- [{OtherHost, <<"other host">>}, {OtherPort, <<"other port">>}, {Known, <<"known">>}]],
    wait_until(fun() -> lists:member(<<"known">>, data(Inner)) end),
    timer:sleep(?GRACE),
    case lists:sort(data(Inner)) of
        [<<"known">>, <<"other host">>, <<"other port">>] -> endpoint_independent;
        [<<"known">>, <<"other port">>] -> address_dependent;
        [<<"known">>] -> address_and_port_dependent
    end.

public(Lab, Host) ->
    netlab_probe:open(Lab, Host, [{ip, netlab:address(Lab, Host)}]).

%% The address under which a public probe sees the inner one.
outer(Inner, Public) ->
    Token = integer_to_binary(erlang:unique_integer([positive])),
    ok = netlab_probe:send(Inner, netlab_probe:address(Public), Token),
    wait_until(fun() -> lists:member(Token, data(Public)) end),
    {Outer, Token} = lists:keyfind(Token, 2, netlab_probe:received(Public)),
    Outer.

%% UDP does not leave, but to port 53; TCP does.
udp_is_blocked(_) ->
    Lab = netlab:start(udp_blocked),
    Inner = netlab_probe:open(Lab, a, []),
    Address = netlab:address(Lab, p),
    [Dns, Other] = [netlab_probe:open(Lab, p, [{ip, Address}, {port, Port}]) || Port <- [53, 443]],
    ok = netlab_probe:send(Inner, {Address, 443}, <<"blocked">>),
    ok = netlab_probe:send(Inner, {Address, 53}, <<"dns">>),
    await(Dns, [<<"dns">>]),
    timer:sleep(?GRACE),
    ?assertEqual([], netlab_probe:received(Other)),
    {ok, Listen} = gen_tcp:listen(443, [netlab:netns(Lab, p), {ip, Address}]),
    {ok, _} = gen_tcp:connect(Address, 443, [netlab:netns(Lab, a)], ?HANG),
    {ok, _} = gen_tcp:accept(Listen, ?HANG).

%% A mapping that is not used goes: nobody gets in by it any more.
mappings_expire(_) ->
    Seconds = 2,
    Flows = [begin
                 Lab = netlab:start(two_nats, #{nat => Kind, mapping_timeout => Seconds}),
                 {Inner, Public} = {netlab_probe:open(Lab, a, []), public(Lab, p)},
                 Outer = outer(Inner, Public),
                 ok = netlab_probe:send(Public, Outer, <<"in time">>),
                 await(Inner, [<<"in time">>]),
                 {Inner, Public, Outer}
             end || Kind <- [full_cone, port_restricted]],
    timer:sleep((Seconds + 2) * 1000),
    [ok = netlab_probe:send(Public, Outer, <<"too late">>) || {_, Public, Outer} <- Flows],
    timer:sleep(?GRACE),
    [begin
         ?assertEqual([<<"in time">>], data(Inner)),
         %% Whoever sends has one again.
         ok = netlab_probe:send(Public, outer(Inner, Public), <<"again">>),
         await(Inner, [<<"in time">>, <<"again">>])
     end || {Inner, Public, _} <- Flows].

%% Two hosts that know each other's outer address, as p sees it, and both send to it: who hears whom,
%% and whether both do once they answer to where it came from.
hole_punching(_) ->
    Lab = netlab:start(every_kind()),
    Found = [{A, B, punches(Lab, host(A, x), host(B, y))} || A <- kinds(), B <- kinds(), A =< B],
    ct:pal("~p", [Found]),
    Expected = [{A, B, {ports_alone(A, B), answering(A, B)}} || {A, B, _} <- Found],
    ?assertEqual(Expected, Found).

%% A symmetric NAT sends from a port that nobody has seen before.
ports_alone(A, B) ->
    not lists:member(symmetric, [A, B]).

%% Who lets in any port of a host hears it all the same.
answering(A, symmetric) -> lists:member(A, [full_cone, address_restricted]);
answering(_, _) -> true.

punches(Lab, HostA, HostB) ->
    Hosts = [A, B] = [netlab_probe:open(Lab, Host, []) || Host <- [HostA, HostB]],
    Public = public(Lab, p),
    [OuterA, OuterB] = [outer(Host, Public) || Host <- Hosts],
    [begin
         ok = netlab_probe:send(A, OuterB, <<"punch">>),
         ok = netlab_probe:send(B, OuterA, <<"punch">>),
         timer:sleep(20)
     end || _ <- lists:seq(1, 5)],
    timer:sleep(?GRACE),
    ByPortsAlone = both_hear(Hosts),
    [netlab_probe:send(Host, From, <<"answer">>)
     || Host <- Hosts, From <- lists:usort([From || {From, _} <- netlab_probe:received(Host)])],
    timer:sleep(?GRACE),
    {ByPortsAlone, both_hear(Hosts)}.

both_hear(Hosts) ->
    lists:all(fun(Host) -> data(Host) =/= [] end, Hosts).

%%% Changes

%% While cut nothing passes and no interface shows it; what was sent meanwhile is lost; then all is
%% as before. On a good wire, on a bad one and at a switch.
cut_and_heal(_) ->
    [begin
         Lab = netlab:start(Scenario),
         {A, B, ToB} = pair(Lab, []),
         ok = netlab_probe:send(A, ToB, <<"before">>),
         await(B, [<<"before">>]),
         [ok = netlab:change(Lab, {cut, a}) || _ <- [1, 2]],
         ?assertEqual({0, <<"1\n">>}, netlab:exec(Lab, a, ["cat", "/sys/class/net/eth0/carrier"])),
         ok = netlab_probe:send(A, ToB, <<"meanwhile">>),
         timer:sleep(?GRACE),
         [ok = netlab:change(Lab, {heal, a}) || _ <- [1, 2]],
         ok = netlab_probe:send(A, ToB, <<"after">>),
         await(B, [<<"before">>, <<"after">>])
     end || Scenario <- [veth, lan, #{nets => #{lan => #{}}, hosts => #{a => {lan, #{delay => 5}}, b => lan}}]].

%% Another delay from the next packet on.
retuned(_) ->
    Lab = netlab:start(wan, #{delay => 5, loss => 0}),
    %% The fastest tenth: what a busy machine adds is not the line's.
    Delay = fun() -> percentile(10, [Took || {_, Took} <- probe(Lab, 200, 5)]) end,
    Short = Delay(),
    ok = netlab:change(Lab, {set, a, #{delay => 60}}),
    Long = Delay(),
    ct:pal("5 ms: ~.3f; 60 ms: ~.3f", [Short, Long]),
    ?assert(abs(Long - Short - 55) < 5).

%% The old address is gone, the new one answers, and an open socket goes on from it.
new_address(_) ->
    Lab = netlab:start(lan),
    {A, B, {Old, Port}} = pair(Lab, []),
    {_, PortA} = netlab_probe:address(A),
    ok = netlab:change(Lab, {readdress, b}),
    New = netlab:address(Lab, b),
    ?assertNotEqual(Old, New),
    _ = netlab_probe:send(A, {Old, Port}, <<"to the old">>),
    ok = netlab_probe:send(A, {New, Port}, <<"to the new">>),
    await(B, [<<"to the new">>]),
    ok = netlab_probe:send(B, {netlab:address(Lab, a), PortA}, <<"from">>),
    wait_until(fun() -> netlab_probe:received(A) =:= [{{New, Port}, <<"from">>}] end).

%% The flow has another outer port with its next packet, and nobody gets in by the old one.
rebinding(_) ->
    [begin
         Lab = netlab:start(two_nats, #{nat => Kind}),
         {Inner, Public} = {netlab_probe:open(Lab, a, []), public(Lab, p)},
         Before = outer(Inner, Public),
         [begin
              ok = netlab:change(Lab, {rebind, nat_a}),
              ok = netlab_probe:send(Public, Before, <<"to the old one">>),
              timer:sleep(?GRACE),
              ?assertEqual([], data(Inner)),
              {Ip, Port} = outer(Inner, Public),
              ?assertEqual({Kind, element(1, Before)}, {Kind, Ip}),
              ?assertNotEqual({Kind, element(2, Before)}, {Kind, Port}),
              ok = netlab_probe:send(Public, {Ip, Port}, <<"to the new one">>),
              await(Inner, [<<"to the new one">>]),
              ok = netlab_probe:forget(Inner),
              %% It is still the NAT it was.
              ?assertEqual(expected_mapping(Kind), mapping(Lab, a)),
              ?assertEqual(expected_filtering(Kind), filtering(Lab, a))
          end || _ <- lists:seq(1, full(3, 1))],
         ok = netlab:stop(Lab)
     end || Kind <- kinds()].

expected_mapping(symmetric) -> address_and_port_dependent;
expected_mapping(_) -> endpoint_independent.

expected_filtering(full_cone) -> endpoint_independent;
expected_filtering(address_restricted) -> address_dependent;
expected_filtering(_) -> address_and_port_dependent.

%% A provider's new address: the flow comes from there with its next packet.
new_address_of_a_nat(_) ->
    Lab = netlab:start(two_nats),
    {Inner, Public} = {netlab_probe:open(Lab, a, []), public(Lab, p)},
    {Old, _} = outer(Inner, Public),
    ok = netlab:change(Lab, {readdress, nat_a}),
    {New, _} = outer(Inner, Public),
    ?assertNotEqual(Old, New),
    ?assertEqual(New, netlab:address(Lab, nat_a)).

%% A host whose processes stand still, and go on.
stopped_host(_) ->
    Lab = netlab:start(lan),
    A = start(unique("a"), #{within => netlab:within(Lab, a), flags => [], domain => none}),
    ok = netlab:change(Lab, {pause, a}),
    ?assertError({no_answer, _}, macula_test_node:call(A, fun() -> late end, 500)),
    ok = netlab:change(Lab, {resume, a}),
    ?assertEqual(again, call(A, fun() -> again end)).

%%% Life

%% The same hosts with the same addresses, twice: each has its own datagrams, and its own end.
labs_side_by_side(_) ->
    Labs = [Lab1, Lab2] = [netlab:start(lan) || _ <- [1, 2]],
    Pairs = [pair(Lab, [{port, 7000}]) || Lab <- Labs],
    [ok = netlab_probe:send(A, ToB, integer_to_binary(Number))
     || {Number, {A, _, ToB}} <- lists:zip([1, 2], Pairs)],
    [await(B, [integer_to_binary(Number)]) || {Number, {_, B, _}} <- lists:zip([1, 2], Pairs)],
    ok = netlab:stop(Lab1),
    ?assertMatch({0, _}, netlab:exec(Lab2, a, ["true"])).

%% A VM that ends leaves nothing, however it ends.
removed_after_end(_) ->
    [begin
         Owner = start(unique("owner"), #{flags => [], domain => none}),
         {Namespace, Sleeper} = call(Owner, fun lab_with_a_process/0),
         ?assert(is_there(Namespace)),
         wait_until(fun() -> is_running(Sleeper) end),
         macula_test_node:signal(Owner, Signal),
         wait_until(fun() -> not is_there(Namespace) end),
         wait_until(fun() -> not is_running(Sleeper) end),
         wait_until(fun() -> not filelib:is_dir("/etc/netns/" ++ Namespace) end)
     end || Signal <- ["KILL", "TERM", "INT"]].

lab_with_a_process() ->
    Lab = netlab:start(wan),
    [Program | Args] = netlab:within(Lab, a) ++ ["sleep", "1000"],
    Port = open_port({spawn_executable, Program}, [{args, Args}]),
    {lists:last(netlab:within(Lab, a)), element(2, erlang:port_info(Port, os_pid))}.

is_there(Namespace) ->
    filelib:is_file("/run/netns/" ++ Namespace).

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

%% Of a failed test they are kept, with the packets in them.
captures(Config) ->
    [begin
         Folder = scratch(Config),
         Lab = netlab:start(veth, #{capture => Folder}),
         {A, B, ToB} = pair(Lab, []),
         ok = netlab_probe:send(A, ToB, <<"to be captured">>),
         await(B, [<<"to be captured">>]),
         File = filename:join(Folder, "b.pcap0"),
         wait_until(fun() -> contains(File, <<"to be captured">>) end),
         ok = netlab:stop_all([{tc_status, Status}]),
         ?assertEqual({Status, Kept}, {Status, filelib:wildcard("*", Folder)})
     end || {Status, Kept} <- [{ok, []}, {{failed, because}, ["a.pcap0", "b.pcap0"]}]].

contains(File, Text) ->
    case file:read_file(File) of
        {ok, Data} -> binary:match(Data, Text) =/= nomatch;
        {error, enoent} -> false
    end.

%% What `./dev lab' opens, with its commands.
shell(Config) ->
    Commands = filename:join(scratch(Config), "commands"),
    ok = file:write_file(Commands, ["lab machines; lab on b sh -c 'echo here is $NETLAB_HOST'\n"
                                    "lab cut a && ping -c 1 -W 1 b >/dev/null || echo it is cut\n"
                                    "lab heal a && ping -c 1 -W 5 b >/dev/null && echo it is healed\n"
                                    "lab set a delay=1 && lab readdress b && lab address b\n"
                                    "lab burn a || echo no such command\n"]),
    Folder = netlab_os:source_folder(),
    {0, Said} = netlab_os:try_run(["sh", "-c", "sh \"$0\" \"$1\" wan delay=3 loss=0 <\"$2\"",
                                   filename:join(Folder, "shell.sh"), filename:dirname(code:which(netlab)),
                                   Commands]),
    ct:log("~ts", [Said]),
    [?assertMatch({_, _}, binary:match(Said, Text), {Text, Said})
     || Text <- [<<"a b\n">>, <<"here is b">>, <<"it is cut">>, <<"it is healed">>, <<"10.0.0.13 fd00::d">>,
                 <<"unknown_change">>, <<"no such command">>]],
    {1, Error} = netlab_os:try_run(["sh", filename:join(Folder, "shell.sh"),
                                    filename:dirname(code:which(netlab)), "nowhere"]),
    ?assertMatch({_, _}, binary:match(Error, <<"no_such_scenario">>)).

what_is_wrong_is_named(_) ->
    ?assertError({no_such_scenario, nowhere, [_ | _]}, netlab:start(nowhere)),
    [?assertError({bad_scenario, Where, _}, netlab:start(Scenario))
     || {Where, Scenario} <-
            [{{machine, a}, #{nets => #{}, hosts => #{a => elsewhere}}},
             {{net, lan}, #{nets => #{lan => #{mut => 1500}}, hosts => #{}}},
             {{net, lan, mtu}, #{nets => #{lan => #{mtu => 100}}, hosts => #{}}},
             {{net, wire}, #{nets => #{wire => #{type => wire}}, hosts => #{a => wire}}},
             {{{a, lan}, loss}, #{nets => #{lan => #{}}, hosts => #{a => {lan, #{loss => 2}}}}},
             {'A', #{nets => #{lan => #{}}, hosts => #{'A' => lan}}},
             {{router, r, nat}, #{nets => #{lan => #{}}, hosts => #{}, routers => #{r => #{nat => cone}}}}]],
    Lab = netlab:start(veth),
    [?assertEqual(Error, reason(fun() -> netlab:change(Lab, Change) end))
     || {Error, Change} <- [{{no_such_machine, c}, {cut, c}},
                            {{no_such_link, a}, {cut, {a, lan}}},
                            {{not_impaired, a}, {set, a, #{}}},
                            {{not_a_nat, a}, {rebind, a}},
                            {{unknown_change, {burn, a}}, {burn, a}}]],
    ?assertMatch({0, _}, netlab:exec(Lab, a, ["true"])).

%% What it is and about what.
reason(Fun) ->
    try Fun() of
        Result -> {returned, Result}
    catch
        error:Reason -> {element(1, Reason), element(2, Reason)}
    end.

%%% Macula

%% Two nodes far apart, over a lossy link that is cut for 3 s: nothing of a stream of messages is
%% lost, doubled or out of order, and the link between them stays.
macula_over_wan(Config) ->
    Lab = netlab:start(wan, #{capture => proplists:get_value(captures, Config)}),
    [A, B] = [start(unique(atom_to_list(Host)),
                    #{within => netlab:within(Lab, Host), host => atom_to_list(Host)}) || Host <- [a, b]],
    ?assertEqual(pong, call(A, net_adm, ping, [name(B)])),
    Count = 500,
    Collector = macula_test_node:cast(B, fun() -> collect(self(), []) end),
    _ = macula_test_node:cast(A, fun() -> stream(Collector, Count) end),
    wait_until(fun() -> collected(B, Collector) > 50 end),
    ok = netlab:change(Lab, {cut, a}),
    timer:sleep(?GRACE),
    AtCut = collected(B, Collector),
    timer:sleep(3_000),
    ?assertEqual(AtCut, collected(B, Collector)),
    ok = netlab:change(Lab, {heal, a}),
    wait_until(fun() -> collected(B, Collector) >= Count end),
    ?assertEqual(lists:seq(1, Count), call(B, fun() -> Collector ! {all, self()}, receive {all, All} -> All end end)),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    ?assertMatch(#{up := #{lost := Lost}} when Lost > 0, netlab:counters(Lab, a)).

stream(To, Count) ->
    [begin
         To ! {message, Number},
         timer:sleep(10)
     end || Number <- lists:seq(1, Count)].

collect(Self, Numbers) ->
    receive
        {message, Number} -> collect(Self, [Number | Numbers]);
        {count, From} -> From ! {count, length(Numbers)}, collect(Self, Numbers);
        {all, From} -> From ! {all, lists:reverse(Numbers)}, collect(Self, Numbers)
    end.

collected(Node, Collector) ->
    call(Node, fun() -> Collector ! {count, self()}, receive {count, Count} -> Count end end).

%%% Help

%% A probe on a, one on b, and where the latter is reached.
pair(Lab, Options) ->
    [A, B] = [netlab_probe:open(Lab, Host, Options) || Host <- [a, b]],
    {_, Port} = netlab_probe:address(B),
    {A, B, {netlab:address(Lab, b), Port}}.

data(Probe) ->
    [Data || {_, Data} <- netlab_probe:received(Probe)].

await(Probe, Expected) ->
    wait_until(fun() -> length(data(Probe)) >= length(Expected) end),
    ?assertEqual(Expected, data(Probe)).

%% Sends numbered datagrams from a to b, so many every so many ms: what arrived, in that order, and
%% the ms that each took.
probe(Lab, Count, AtOnce) ->
    probe(Lab, Count, AtOnce, 1).

probe(Lab, Count, AtOnce, Every) ->
    [{Number, Took} || {Number, Took, _} <- probe(Lab, Count, AtOnce, Every, 64)].

probe(Lab, Count, AtOnce, Every, Size) ->
    {From, To, Address} = pair(Lab, []),
    %% The neighbour is known before the first probe.
    wait_until(fun() -> netlab_probe:send(From, Address, <<"warm up">>), data(To) =/= [] end),
    timer:sleep(?GRACE),
    ok = netlab_probe:forget(To),
    ok = send_numbered(From, Address, Count, AtOnce, Every, Size),
    Arrived = arrived(To),
    [ok = netlab_probe:close(Probe) || Probe <- [From, To]],
    Arrived.

send_numbered(From, Address, Count, AtOnce, Every, Size) ->
    Priority = process_flag(priority, high),
    [begin
         Sent = erlang:monotonic_time(nanosecond),
         ok = netlab_probe:send(From, Address, [<<Number:64, Sent:64/signed>> | payload(Size - 16)]),
         Number rem AtOnce =/= 0 orelse timer:sleep(Every)
     end || Number <- lists:seq(1, Count)],
    _ = process_flag(priority, Priority),
    ok.

%% Number, ms it took, and when it came, of each numbered datagram, in the order they came.
arrived(Probe) ->
    await_quiet(Probe, -1),
    [{Number, (At - Sent) / 1_000_000, At}
     || {At, _, <<Number:64, Sent:64/signed, _/binary>>} <- netlab_probe:arrivals(Probe)].

%% Until nothing has come for longer than any link here delays, and a busy machine stops.
await_quiet(Probe, Count) ->
    timer:sleep(500),
    case length(netlab_probe:received(Probe)) of
        Count -> ok;
        More -> await_quiet(Probe, More)
    end.

percentile(Percent, Values) ->
    Sorted = lists:sort(Values),
    lists:nth(max(1, ceil(length(Sorted) * Percent / 100)), Sorted).
