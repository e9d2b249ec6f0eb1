%% Who may attach to a relay, which relay a node trusts, and nodes that change their cookies while all
%% they have between them is a relay.
-module(macula_mesh_trust_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([cookie_rotation/1, cookie_changed_by_otp/1, cookies_of_peers/1, many_cookies/1, relay_certificate/1,
         realm_of_a_ca/1, realm_of_tokens/1]).

-import(macula_test_mesh, [url/2, relay/2, relay/3, node_on/2, node_on/3, join/2, joined/3, only_relays/0, ping/2]).
-import(macula_test_node, [call/2, call/4, name/1, unique/1, wait_until/1]).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [cookie_rotation, cookie_changed_by_otp, cookies_of_peers, many_cookies, relay_certificate, realm_of_a_ca,
     realm_of_tokens].

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

%%% Cookies

%% First each node knows the new cookie as that of its peers, then each takes it; no link is lost, and
%% links that are made anew at any moment between find their way.
cookie_rotation(Config) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    Nodes = joined(Lab, [a, b, q], at_home(Config)),
    Pairs = [{From, To} || From <- Nodes, To <- Nodes, From < To],
    [?assertEqual(pong, ping(From, To)) || {From, To} <- Pairs],
    Watchers = [{Node, nodes_lost(Node)} || Node <- Nodes],
    New = unique("rotated"),
    [ok = call(Node, macula, set_cookie, [name(Peer), list_to_atom(New)])
     || Node <- Nodes, Peer <- Nodes, Node =/= Peer],
    [ok = call(Node, macula, set_cookie, [list_to_binary(New)]) || Node <- Nodes],
    [?assertEqual([], Lost()) || {_, Lost} <- Watchers],
    [reconnect(From, To) || {From, To} <- Pairs],
    %% Who comes with the new one is one of them, who has stayed with the old one is not.
    [Newcomer] = joined(Lab, [q], (at_home(Config))#{cookie => New}),
    [?assertEqual(pong, ping(Newcomer, Node)) || Node <- Nodes],
    [Latecomer] = joined(Lab, [q], at_home(Config)),
    [?assertEqual(pang, ping(From, To)) || Node <- Nodes, {From, To} <- [{Node, Latecomer}, {Latecomer, Node}]].

%% erlang:set_cookie/1 tells nobody.
cookie_changed_by_otp(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [A, B] = joined(Lab, [a, b], only_through_relays()),
    ?assertEqual(pong, ping(A, B)),
    [begin
         Cookie = list_to_atom(unique("changed")),
         [true = call(Node, erlang, set_cookie, [Cookie]) || Node <- [A, B]],
         [begin
              disconnect(A, B),
              wait_until(fun() -> ping(From, To) =:= pong end)
          end || {From, To} <- [{A, B}, {B, A}]]
     end || _ <- [once, again]].

%% A cookie for each pair, none of them a node's own.
cookies_of_peers(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    Nodes = [node_on(Lab, Host, (only_through_relays())#{cookie => unique("of" ++ atom_to_list(Host))})
             || Host <- [a, b, q]],
    Pairs = [{From, To} || From <- Nodes, To <- Nodes, From < To],
    Share = fun(From, To, Cookie) -> ok = call(From, macula, set_cookie, [name(To), Cookie]) end,
    [A, B, C] = Nodes,
    %% Before it joins, and after.
    [ok = join(Node, #{}) || Node <- [B, C]],
    [begin Share(From, To, Cookie), Share(To, From, Cookie) end
     || {From, To} <- Pairs, Cookie <- [list_to_atom(unique("pair"))]],
    ok = join(A, #{}),
    [begin
         wait_until(fun() -> ping(From, To) =:= pong end),
         reconnect(To, From)
     end || {From, To} <- Pairs],
    Share(A, B, list_to_atom(unique("wrong"))),
    disconnect(A, B),
    [?assertEqual(pang, ping(From, To)) || {From, To} <- [{A, B}, {B, A}]],
    ?assertEqual(pong, ping(A, C)).

%% More than a relay lets one node have: those in use stay.
many_cookies(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [A, B] = joined(Lab, [a, b], only_through_relays()),
    ?assertEqual(pong, ping(A, B)),
    Nobody = fun(N) -> list_to_atom("nobody" ++ integer_to_list(N) ++ "@nowhere.lab") end,
    [ok = call(A, macula, set_cookie, [Nobody(N), list_to_atom(unique("c"))]) || N <- lists:seq(1, 70)],
    [begin
         true = call(A, erlang, set_cookie, [Nobody(N), list_to_atom(unique("c"))]),
         ?assertEqual(pang, call(A, net_adm, ping, [Nobody(N)]))
     end || N <- lists:seq(71, 73)],
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    reconnect(A, B),
    reconnect(B, A).

%%% Certificates and tokens

%% A node that asks for it attaches only to the relay whose certificate is of a CA it trusts, and for
%% the host that was named.
relay_certificate(Config) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Ca = ca(Config, "relays"),
    Wrong = [{wrong_name, Ca, host("elsewhere.lab")},
             {unknown_issuer, ca(Config, "others"), host("q.lab")},
             {expired, Ca, (host("q.lab"))#{validity => {{2001, 1, 1}, {2002, 1, 1}}}}],
    relay(Lab, p, with_certificate(4433, macula_test_ca:issue(Ca, "p", host("p.lab")))),
    [A, B] = [node_on(Lab, Host, only_through_relays()) || Host <- [a, b]],
    Verify = #{tls_verify => verify_peer, cacertfile => macula_test_ca:file(Ca)},
    [begin
         relay(Lab, q, with_certificate(Port, macula_test_ca:issue(Issuer, atom_to_list(Fault), San))),
         Url = url(q, Port),
         Options = #{relays => [Url], timeout => 5_000},
         ?assertEqual({error, {relays_unreachable, [{Url, {certificate, Fault}}]}},
                      join(A, maps:merge(Verify, Options))),
         ?assertEqual(ok, join(A, Options)),
         ok = call(A, macula, leave_mesh, [])
     end || {Port, {Fault, Issuer, San}} <- lists:zip(lists:seq(4701, 4703), Wrong)],
    [?assertEqual(ok, join(Node, Verify)) || Node <- [A, B]],
    ?assertEqual(pong, ping(A, B)),
    %% A node that is a relay on its own port shows it as well.
    OnNode = node_on(Lab, q),
    Shown = with_certificate(4433, macula_test_ca:issue(Ca, "q", host("q.lab"))),
    ok = call(OnNode, macula, start_relay, [maps:remove(port, Shown)]),
    ?assertEqual(ok, join(A, Verify#{relays => [url(q, 4433)], timeout => 5_000})).

%% Who has no certificate of the realm's CA is not let in, whatever it knows.
realm_of_a_ca(Config) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Ca = ca(Config, "members"),
    Realms = #{<<"members">> => {cacertfile, macula_test_ca:file(Ca)}, <<"guests">> => open},
    relay(Lab, p, #{port => 4433, realms => Realms}),
    [A, B] = [node_on(Lab, Host, only_through_relays()) || Host <- [a, b]],
    Member = #{realm => <<"members">>, timeout => 5_000},
    Shows = fun(Issuer, Name) ->
                    {Cert, Key} = macula_test_ca:issue(Issuer, Name, host(Name ++ ".lab")),
                    Member#{certfile => Cert, keyfile => Key}
            end,
    Refused = {error, {relays_unreachable, [{macula_test_mesh:url(), {refused, certificate}}]}},
    ?assertEqual(Refused, join(A, Member)),
    ?assertEqual(Refused, join(A, Shows(ca(Config, "strangers"), "a"))),
    ?assertEqual(ok, join(B, #{realm => <<"guests">>})),
    ?assertEqual(ok, join(A, Shows(Ca, "a"))),
    ?assertEqual(pang, ping(A, B)),
    ?assertEqual(ok, join(B, Shows(Ca, "b"))),
    ?assertEqual(pong, ping(A, B)).

%% Each realm has tokens of its own, and one token is as good as another.
realm_of_tokens(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Realms = #{<<"one">> => {tokens, [<<"red">>, <<"green">>]}, <<"two">> => {tokens, [<<"blue">>]}},
    relay(Lab, p, #{port => 4433, realms => Realms}),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    In = fun(Realm, Token) -> #{realm => Realm, token => Token, timeout => 5_000} end,
    ?assertMatch({error, {relays_unreachable, [{_, {refused, token}}]}}, join(A, In(<<"one">>, <<"blue">>))),
    ?assertEqual(ok, join(A, In(<<"one">>, <<"red">>))),
    ?assertEqual(ok, join(B, In(<<"two">>, <<"blue">>))),
    ?assertEqual(pang, ping(A, B)),
    ?assertEqual(ok, join(B, In(<<"one">>, <<"green">>))),
    ?assertEqual(pong, ping(A, B)).

%%% Help

only_through_relays() ->
    #{env => only_relays()}.

%% With a home of its own, where its cookie is kept.
at_home(Config) ->
    #{env => [{"HOME", macula_test_node:scratch(Config)} | only_relays()]}.

ca(Config, Name) ->
    macula_test_ca:new(macula_test_node:scratch(Config), Name).

host(Host) -> #{san => [{dNSName, Host}]}.

with_certificate(Port, {Cert, Key}) ->
    #{port => Port, certfile => Cert, keyfile => Key}.

%% The result gives the nodes lost since.
nodes_lost(Node) ->
    Watcher = macula_test_node:cast(Node, fun() -> ok = net_kernel:monitor_nodes(true), watch([]) end),
    fun() ->
            call(Node, fun() ->
                               Watcher ! {self(), lost},
                               receive {Watcher, Lost} -> Lost end
                       end)
    end.

watch(Lost) ->
    receive
        {nodedown, Node} -> watch([Node | Lost]);
        {nodeup, _} -> watch(Lost);
        {From, lost} -> From ! {self(), Lost}, watch(Lost)
    end.

reconnect(From, To) ->
    disconnect(From, To),
    ?assertEqual(pong, ping(From, To)).

disconnect(From, To) ->
    _ = call(From, erlang, disconnect_node, [name(To)]),
    {There, Here} = {name(To), name(From)},
    wait_until(fun() -> not lists:member(There, call(From, erlang, nodes, [])) end),
    wait_until(fun() -> not lists:member(Here, call(To, erlang, nodes, [])) end).
