%% Nothing is lost when the network moves: under constant traffic both ways relays end and begin, addresses change, NATs
%% forget, hosts stand still, and the link goes on. Each case prints how long it took from when a usable path was there.
-module(macula_paths_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([relay_starts_again/1, other_relay/1, relay_drains/1, relay_stands_still/1, relays_lose_each_other/1,
         address_changes/1, address_changes_at_the_relay/1, nat_forgets/1, nat_forgets_at_the_relay/1, outage/1,
         host_stands_still/1, lan_is_cut/1, one_way_is_dead/1, bad_links/1,
         datagrams_fit/1]).

-import(macula_test_mesh, [relay/2, relay/3, node_on/3, join/2, url/2, ping/2]).
-import(macula_test_node, [await_said/3, call/4, full/2, wait_until/1]).
-import(macula_test_traffic, [resumed_ms/1, assert_sound/1]).

-define(RELAYS, [url(p, 4433), url(q, 4433)]).
%% As in README: what a total outage may last.
-define(ARGS, ["-kernel", "net_ticktime", "120"]).
%% The large messages among the small ones.
-define(LARGE, 1_000_000).
%% As in macula_net::mtu: what always arrives, between machines, and within one.
-define(LEAST, 1200).
-define(USUAL, 1452).
-define(LARGEST, 6500).
%% What takes longer hangs: docs/performance.md has the figures.
-define(HANG_MS, 20_000).

suite() ->
    [{timetrap, {minutes, full(30, 3)}}].

all() ->
    [relay_starts_again, other_relay, relay_drains, relay_stands_still, relays_lose_each_other, address_changes,
     address_changes_at_the_relay, nat_forgets, nat_forgets_at_the_relay, outage, host_stands_still, lan_is_cut,
     one_way_is_dead, bad_links, datagrams_fit].

init_per_suite(Config) ->
    case netlab:requires() of
        ok -> Config;
        Skip -> Skip
    end.

end_per_suite(_) ->
    ok.

end_per_testcase(_, Config) ->
    macula_test_node:stop_all(),
    netlab:stop_all(Config).

%%% Relays

relay_starts_again(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relay = relay(Lab, p),
    {_, Traffic} = through(Lab, [url(p, 4433)]),
    _ = repeat(relay_starts_again, Traffic, full(30, 2), Relay, fun(Former) ->
        macula_test_node:kill(Former),
        timer:sleep(500),
        relay(Lab, p)
    end).

%% Of two relays the one in use ends. It comes back for the next time.
other_relay(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relays = maps:from_list([{Host, relay(Lab, Host)} || Host <- [p, q]]),
    {[A, _] = Nodes, Traffic} = through(Lab, ?RELAYS),
    _ = repeat(other_relay, Traffic, full(30, 2), Relays, fun(Now) ->
        wait_until(fun() -> lists:all(fun has_both_relays/1, Nodes) end),
        Used = relay_used(A),
        macula_test_node:kill(maps:get(Used, Now)),
        resumed_by_then(Traffic),
        Now#{Used := relay(Lab, Used)}
    end).

%% One that goes in good order is left before it is gone: nothing stands still.
relay_drains(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relays = maps:from_list([{Host, relay(Lab, Host)} || Host <- [p, q]]),
    {[A, _] = Nodes, Traffic} = through(Lab, ?RELAYS),
    wait_until(fun() -> lists:all(fun has_both_relays/1, Nodes) end),
    Used = relay_used(A),
    ok = call(maps:get(Used, Relays), macula, stop_relay, []),
    report(relay_drains, [resumed_ms(Traffic)]),
    wait_until(fun() -> relay_used(A) =/= Used end),
    assert_sound(Traffic).

relay_stands_still(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    _ = relay(Lab, p),
    {_, Traffic} = through(Lab, [url(p, 4433)]),
    still(relay_stands_still, Lab, p, full(20_000, 4_000), Traffic).

%% Each node is at a relay of its own. The line between the relays is cut, for shorter and longer than they need to notice.
relays_lose_each_other(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Q = relay(Lab, q),
    P = relay(Lab, p, #{port => 4433, peers => [url(q, 4433)]}),
    wait_until(fun() -> relay_count(P, peers) =:= 1 end),
    {_, Traffic} = connected([joined(Lab, a, [url(p, 4433)]), joined(Lab, b, [url(q, 4433)])], ?LARGE),
    _ = repeat(relays_lose_each_other, Traffic, full(30, 2), 7_000, fun(Ms) ->
        block(Lab, p, netlab:address(Lab, q)),
        timer:sleep(Ms),
        unblock(Lab, p),
        500 + rand:uniform(9_500)
    end),
    ?assert(relay_count(Q, peers_lost) > 0).

relay_count(Relay, Name) ->
    maps:get(Name, call(Relay, macula, relay_stats, [])).

block(Lab, Host, {A, B, C, D}) ->
    Rules = io_lib:format("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; "
                          "add chain inet cut out { type filter hook output priority 0; }; "
                          "add rule inet cut in ip saddr ~b.~b.~b.~b drop; add rule inet cut out ip daddr ~b.~b.~b.~b drop",
                          [A, B, C, D, A, B, C, D]),
    {0, _} = netlab:exec(Lab, Host, ["nft", lists:flatten(Rules)]).

unblock(Lab, Host) ->
    {0, _} = netlab:exec(Lab, Host, ["nft", "delete table inet cut"]).

%%% Addresses

%% Of a straight link without any relay.
address_changes(_) ->
    Lab = netlab:start(lan, #{hosts => 2}),
    {_, Traffic} = straight(Lab),
    _ = repeat(address_changes, Traffic, full(30, 2), none, fun(none) ->
        ok = netlab:change(Lab, {readdress, a}),
        none
    end).

address_changes_at_the_relay(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    _ = relay(Lab, p),
    {_, Traffic} = through(Lab, [url(p, 4433)]),
    _ = repeat(address_changes_at_the_relay, Traffic, full(30, 2), none, fun(none) ->
        ok = netlab:change(Lab, {readdress, a}),
        none
    end).

%% A node at home, straight to one in public.
nat_forgets(_) ->
    Lab = netlab:start(two_nats, #{nat => port_restricted}),
    {_, Traffic} = straight(Lab, a, q),
    rebinds(nat_forgets, Lab, Traffic).

nat_forgets_at_the_relay(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    _ = relay(Lab, p),
    {_, Traffic} = through(Lab, [url(p, 4433)]),
    rebinds(nat_forgets_at_the_relay, Lab, Traffic).

rebinds(Case, Lab, Traffic) ->
    _ = repeat(Case, Traffic, full(30, 2), none, fun(none) ->
        ok = netlab:change(Lab, {rebind, nat_a}),
        none
    end).

%%% Outages

outage(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    _ = relay(Lab, p),
    {_, Traffic} = through(Lab, [url(p, 4433)]),
    _ = repeat(outage, Traffic, 1, none, fun(none) ->
        ok = netlab:change(Lab, {cut, nat_a}),
        timer:sleep(full(60_000, 5_000)),
        ok = netlab:change(Lab, {heal, nat_a}),
        none
    end).

host_stands_still(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    _ = relay(Lab, p),
    {_, Traffic} = through(Lab, [url(p, 4433)]),
    still(host_stands_still, Lab, a, full(80_000, 5_000), Traffic).

still(Case, Lab, Host, Ms, Traffic) ->
    _ = repeat(Case, Traffic, 1, none, fun(none) ->
        ok = netlab:change(Lab, {pause, Host}),
        timer:sleep(Ms),
        ok = netlab:change(Lab, {resume, Host}),
        none
    end).

%%% Straight or through a relay

%% Two hosts on one LAN, each of which reaches a relay by a provider of its own.
lan_is_cut(_) ->
    {Lab, Nodes, Traffic} = lan_and_relay(),
    _ = repeat(lan_is_cut, Traffic, full(30, 2), none, fun(none) ->
        wait_until(fun() -> paths(Nodes) =:= [direct] end),
        ok = netlab:change(Lab, {cut, {a, home}}),
        resumed_by_then(Traffic),
        wait_until(fun() -> paths(Nodes) =:= [relay] end),
        ok = netlab:change(Lab, {heal, {a, home}}),
        none
    end),
    wait_until(fun() -> paths(Nodes) =:= [direct] end),
    [await_said(Node, Said, ?HANG_MS) || Node <- Nodes,
                                         Said <- ["goes through the relay https://p.lab:4433 now", "goes straight to"]].

%% What one sends on the LAN is lost, what the other sends there arrives.
one_way_is_dead(_) ->
    {Lab, Nodes, Traffic} = lan_and_relay(),
    _ = repeat(one_way_is_dead, Traffic, full(10, 1), none, fun(none) ->
        wait_until(fun() -> paths(Nodes) =:= [direct] end),
        ok = netlab:change(Lab, {set, {a, home}, #{up => #{loss => 1.0}}}),
        resumed_by_then(Traffic),
        wait_until(fun() -> paths(Nodes) =:= [relay] end),
        ok = netlab:change(Lab, {set, {a, home}, #{}}),
        none
    end),
    wait_until(fun() -> paths(Nodes) =:= [direct] end).

lan_and_relay() ->
    Provider = fun(Net) -> #{inside => Net, outside => internet, nat => port_restricted} end,
    Lab = netlab:start(#{nets => #{home => #{}, internet => #{}, dsl => #{}, cable => #{}},
                         hosts => #{a => [{home, #{}}, dsl], b => [{home, #{}}, cable], p => internet},
                         routers => #{r => Provider(dsl), s => Provider(cable)}}),
    _ = relay(Lab, p),
    {Nodes, Traffic} = straight(Lab),
    [ok = join(Node, #{relays => [url(p, 4433)]}) || Node <- Nodes],
    {Lab, Nodes, Traffic}.

%%% Bad links

%% Straight links that lose, delay and reorder.
bad_links(_) ->
    [begin
         Lab = netlab:start(wan, Bad),
         {_, Traffic} = straight(Lab, a, b, 5_000),
         timer:sleep(full(20_000, 2_000)),
         report({bad_links, Bad}, [resumed_ms(Traffic) || _ <- lists:seq(1, full(20, 3))]),
         ct:pal("~p: ~b messages", [Bad, assert_sound(Traffic)]),
         macula_test_node:stop_all(),
         netlab:stop(Lab)
     end || Bad <- full([#{loss => 0.01}, #{loss => 0.05}, #{loss => 0.1}, #{delay => 50, jitter => 10},
                         #{delay => 50, reorder => 0.05, loss => 0.01}],
                        [#{delay => 50, jitter => 10, loss => 0.05}])].

%%% The size of datagrams

%% Where the network carries more than usual, another way that the link takes may not.
datagrams_fit(_) ->
    [begin
         Lab = netlab:start(veth, #{mtu => Mtu}),
         have_mtu(Largest, straight(Lab)),
         netlab:stop(Lab)
     end || {Mtu, Largest} <- [{1400, fun(Family) -> 1400 - headers(Family) end}, {1500, fun(_) -> ?USUAL end},
                               {9000, fun(_) -> ?USUAL end}]],
    Lab = netlab:start(veth),
    have_mtu(fun(_) -> ?LARGEST end, straight(Lab, a, a)),
    %% What is sent to this machine may be passed on to a container, by an interface like any other.
    drop_large(Lab, a),
    have_mtu(fun(_) -> ?LEAST end, straight(Lab, a, a)).

drop_large(Lab, Host) ->
    [{0, _} = netlab:exec(Lab, Host, ["nft", Rule])
     || Rule <- ["add table inet small", "add chain inet small input { type filter hook input priority 0; }",
                 io_lib:format("add rule inet small input udp length > ~b drop", [?USUAL])]].

%% The link takes the family whose handshake is done first.
have_mtu(Largest, {Nodes, Traffic}) ->
    Others = fun() -> [Other || {Family, Mtu} = Other <- mtus(Nodes), Mtu =/= Largest(Family)] end,
    wait_until(fun() -> case Others() of [] -> true; Some -> Some end end),
    %% Every half a second one sends something large.
    _ = resumed_ms(Traffic),
    timer:sleep(1_000),
    _ = assert_sound(Traffic),
    %% Where it is the least, they had it from the beginning.
    ?assertEqual([], Others()),
    lists:foreach(fun macula_test_node:stop/1, Nodes).

%% Bytes beside a datagram's content, those of UDP among them.
headers(inet) -> 20 + 8;
headers(inet6) -> 40 + 8.

%%% What the cases share

%% Two nodes at home that only relays connect.
through(Lab, Relays) ->
    connected([joined(Lab, Host, Relays) || Host <- [a, b]], ?LARGE).

joined(Lab, Host, Relays) ->
    Node = node_on(Lab, Host, #{args => ?ARGS}),
    ok = join(Node, #{relays => Relays}),
    Node.

straight(Lab) ->
    straight(Lab, a, b).

straight(Lab, From, To) ->
    straight(Lab, From, To, ?LARGE).

straight(Lab, From, To, Large) ->
    connected([node_on(Lab, Host, #{args => ?ARGS}) || Host <- [From, To]], Large).

connected([A, B] = Nodes, Large) ->
    wait_until(fun() -> ping(A, B) =:= pong end),
    {Nodes, macula_test_traffic:start(A, B, Large)}.

%% Does something to the network, again and again, each time with what came of it before, and measures how long it takes
%% from then until what is sent is answered.
repeat(Case, Traffic, Times, State, Change) ->
    _ = resumed_ms(Traffic),
    {Resumed, Last} = lists:mapfoldl(fun(_, Before) ->
                                             After = Change(Before),
                                             {resumed_ms(Traffic), After}
                                     end, State, lists:seq(1, Times)),
    Received = assert_sound(Traffic),
    report(Case, Resumed),
    ct:pal("~p: ~b messages", [Case, Received]),
    Last.

%% A usable path is there already.
resumed_by_then(Traffic) ->
    Ms = resumed_ms(Traffic),
    report(meanwhile, [Ms]).

report(Case, Resumed) ->
    Sorted = lists:sort(Resumed),
    At = fun(Share) -> lists:nth(max(1, ceil(Share * length(Sorted))), Sorted) end,
    ct:pal("~p, ~b times: resumed after ~b ms (median), ~b (p95), ~b (longest)",
           [Case, length(Sorted), At(0.5), At(0.95), lists:last(Sorted)]),
    ?assert(lists:last(Sorted) < ?HANG_MS).

has_both_relays(Node) ->
    length([Url || {Url, {attached, _}} <- call(Node, macula, relays, [])]) =:= 2.

relay_used(Node) ->
    [#{relay := Url}] = call(Node, macula, links, []),
    [Host] = [Host || Host <- [p, q], Url =:= url(Host, 4433)],
    Host.

mtus(Nodes) ->
    lists:usort([{family(Address), Mtu} || Node <- Nodes, #{mtu := Mtu, address := Address} <- call(Node, macula, links, [])]).

family({Ip, _}) when tuple_size(Ip) =:= 4 -> inet;
family({_, _}) -> inet6.

paths(Nodes) ->
    lists:usort([Path || Node <- Nodes, #{path := Path} <- call(Node, macula, links, [])]).
