%% Nodes that cannot reach each other directly, and one cluster all the same: through a relay, for whoever has the cookie
%% and the realm, and nobody else.
-module(macula_mesh_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([as_typed/1, three_lines_behind_nats/1, joined_by_environment/1, relay_of_a_node/1, outlives_its_relay/1,
         large_messages/1, other_cookie_or_realm/1, says_why_not/1, name_taken/1, started_again/1, tokens/1,
         leaves/1, joins_again_under_another_name/1, diagnosed/1, up_when_reachable/1, huge_message/1,
         many_in_order/1, killed_behind_its_relay/1, peered_relays/1]).

-import(macula_test_mesh, [relay/2, relay/3, node_on/2, join/2, joined/3, ping/2]).
-import(macula_test_node, [call/2, call/4, name/1, unique/1, wait_until/1, has_said/2, await_said/3]).

-define(URL, <<"https://p.lab:4433">>).
-define(SAID_MS, 10_000).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [as_typed, three_lines_behind_nats, joined_by_environment, relay_of_a_node, outlives_its_relay, large_messages,
     other_cookie_or_realm, says_why_not, name_taken, started_again, tokens, leaves, joins_again_under_another_name,
     diagnosed, up_when_reachable, huge_message, many_in_order, killed_behind_its_relay, peered_relays].

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

%% What README has a user type, in two shells, to the letter but for the addresses.
as_typed(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [Erl, Join, Ping] = three_lines(),
    There = shell(Lab, b, string:replace(Erl, "mynode@myhost", "othernode@otherhost")),
    type(There, Join),
    await_prompt(There, 2),
    Here = shell(Lab, a, Erl),
    type(Here, Join),
    await_prompt(Here, 2),
    type(Here, Ping),
    ?assertNotEqual(nomatch, string:find(await_prompt(Here, 3), "pong")),
    [true = port_close(Shell) || Shell <- [Here, There]].

three_lines() ->
    {ok, Readme} = file:read_file(filename:join(root(), "README.md")),
    [_, Block | _] = string:split(Readme, "```", all),
    [<<"sh">> | Lines] = string:split(string:trim(Block), "\n", all),
    [lists:foldl(fun({From, To}, Text) -> string:replace(Text, From, To) end, Line,
                 [{"https://relay.example.org:4433", ?URL},
                  {"_build/default/lib/macula/ebin", filename:join(code:lib_dir(macula), "ebin")},
                  {"1> ", ""}, {"2> ", ""}]) || Line <- Lines].

root() ->
    lists:foldl(fun(_, Dir) -> filename:dirname(Dir) end, code:lib_dir(macula), lists:seq(1, 4)).

shell(Lab, Host, Line) ->
    [Program | Args] = netlab:within(Lab, Host) ++ string:lexemes(unicode:characters_to_list(Line), " "),
    open_port({spawn_executable, os:find_executable(Program)}, [{args, Args}, exit_status, stderr_to_stdout]).

type(Shell, Line) ->
    true = port_command(Shell, unicode:characters_to_binary([Line, "\n"])).

await_prompt(Shell, Number) ->
    await_prompt(Shell, ")" ++ integer_to_list(Number) ++ "> ", "").

await_prompt(Shell, Prompt, Said) ->
    case string:find(Said, Prompt) of
        nomatch ->
            receive
                {Shell, {data, More}} -> await_prompt(Shell, Prompt, Said ++ More);
                {Shell, {exit_status, Status}} -> error({ended, Status, Said})
            after ?SAID_MS -> error({silent, Said})
            end;
        _ ->
            Said
    end.

%% Each behind a NAT that no hole can be punched through, with the relay in public.
three_lines_behind_nats(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relay = relay(Lab, p),
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    ?assertEqual(pang, ping(A, B)),
    [ok = join(Node, #{}) || Node <- Nodes],
    ?assertEqual(pong, ping(A, B)),
    ?assertEqual({hello, name(B)}, call(A, rpc, call, [name(B), erlang, apply, [fun() -> {hello, node()} end, []]])),
    Group = call(B, fun() ->
                            Member = spawn(fun() -> receive {From, Ref} -> From ! {Ref, node()} end end),
                            {ok, _} = pg:start(mesh_scope),
                            ok = pg:join(mesh_scope, group, Member),
                            Member
                    end),
    ?assertEqual(name(B), call(A, fun() ->
                                          {ok, _} = pg:start(mesh_scope),
                                          await(fun() -> pg:get_members(mesh_scope, group) =:= [Group] end),
                                          Ref = make_ref(),
                                          Group ! {self(), Ref},
                                          receive {Ref, Node} -> Node end
                                  end)),
    [#{node := There, path := relay, relay := ?URL, rtt_us := _}] = call(A, macula, links, []),
    ?assertEqual(name(B), There),
    ?assertEqual(lists:sort([atom_to_binary(name(Node)) || Node <- Nodes]), call(A, macula, mesh_nodes, [])),
    [{_, #{bytes_out := Out, bytes_in := In, decrypt_failed := 0}}] = call(A, macula_dist_relay, get_tunnel_metrics, []),
    ?assert(Out > 0 andalso In > 0),
    #{nodes := 2, forwarded := Forwarded} = call(Relay, macula, relay_stats, []),
    ?assert(Forwarded > 0),
    Down = down_of(A, B),
    %% With a goodbye: without one net_ticktime decides.
    _ = macula_test_node:cast(B, erlang, halt, []),
    ?assertEqual(name(B), Down()).

%% No code, and no other way.
joined_by_environment(_) ->
    Lab = netlab:start(lan, #{hosts => 3}),
    [_, B, C] = netlab:hosts(Lab),
    relay(Lab, hd(netlab:hosts(Lab)), #{port => 4711}),
    Env = [{"MACULA_RELAYS", "https://a.lab:4711, quic://a.lab:4712"}, {"MACULA_DIST_MODE", "relay"}],
    [Here, There] = [macula_test_node:start(unique("n"), #{within => netlab:within(Lab, Host),
                                                           host => atom_to_list(Host), env => Env})
                     || Host <- [B, C]],
    wait_until(fun() -> ping(Here, There) =:= pong end),
    ?assert(call(Here, macula_dist_relay, is_relay_mode, [])),
    ?assertMatch([#{path := relay}], call(There, macula, links, [])),
    #{value := #{relays := [_, _]}, origin := {os_env, "MACULA_RELAYS"}} = setting(mesh, call(Here, macula, config, [])).

%% A node is the relay of others on its own port, and of itself.
relay_of_a_node(_) ->
    Lab = netlab:start(two_nats, #{nat => port_restricted}),
    P = node_on(Lab, p),
    ok = call(P, macula, start_relay, [#{}]),
    wait_until(fun() -> has_said(P, "this relay is open") > 0 end),
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    [ok = join(Node, #{}) || Node <- [P | Nodes]],
    ?assertEqual(pong, ping(A, B)),
    ?assertEqual(pong, ping(P, B)),
    ?assertEqual(pong, ping(A, P)),
    ?assertEqual([direct, relay], lists:sort([Path || #{path := Path} <- call(A, macula, links, [])])),
    ?assertEqual({error, already_started}, call(P, macula, start_relay, [#{}])).

%% What is sent while the relay is gone arrives when it is back, once, in order.
outlives_its_relay(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relay = relay(Lab, p),
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    [ok = join(Node, #{}) || Node <- Nodes],
    ?assertEqual(pong, ping(A, B)),
    Count = 2_000,
    Collector = macula_test_node:cast(B, fun() -> collect(Count) end),
    Sender = macula_test_node:cast(A, fun() ->
                                              [begin Collector ! N, timer:sleep(2) end || N <- lists:seq(1, Count)],
                                              receive stop -> ok end
                                      end),
    timer:sleep(500),
    macula_test_node:kill(Relay),
    timer:sleep(1_000),
    relay(Lab, p),
    ?assertEqual(lists:seq(1, Count), collected(B, Collector)),
    ?assert(is_pid(Sender)),
    ?assertEqual(0, has_said(A, "nodedown")),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])).

large_messages(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    [ok = join(Node, #{}) || Node <- Nodes],
    [?assertEqual(erlang:md5(Data), call(A, rpc, call, [name(B), erlang, md5, [Data]]))
     || Size <- [0, 1_000, 1_000_000, macula_test_node:full(100_000_000, 20_000_000)],
        Data <- [rand:bytes(Size)]].

other_cookie_or_realm(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relay = relay(Lab, p),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    Stranger = macula_test_node:start(unique("q"), #{within => netlab:within(Lab, q), host => "q.lab",
                                                     domain => longnames, cookie => "another"}),
    ok = join(A, #{}),
    ok = join(B, #{realm => <<"elsewhere">>}),
    ok = join(Stranger, #{}),
    [?assertEqual(pang, ping(From, To)) || {From, To} <- [{A, B}, {B, A}, {A, Stranger}, {Stranger, A}]],
    await_said(A, "no relay knows of it under this node's cookie in this realm", ?SAID_MS),
    await_said(A, "Check that it has joined the mesh, and that cookie and realm are the same", ?SAID_MS),
    ?assertEqual([atom_to_binary(name(A))], call(A, macula, mesh_nodes, [])),
    %% Nobody was harmed.
    ok = join(B, #{}),
    ?assertEqual(pong, ping(A, B)),
    ?assertMatch(#{nodes := 3}, call(Relay, macula, relay_stats, [])).

says_why_not(_) ->
    Lab = netlab:start(lan, #{hosts => 3}),
    [A, B, C] = [macula_test_node:start(unique("n"), #{within => netlab:within(Lab, Host), host => atom_to_list(Host)})
                 || Host <- netlab:hosts(Lab)],
    Join = fun(Options) -> call(A, macula, join_mesh, [maps:merge(#{timeout => 2_000}, Options)]) end,
    ?assertEqual({error, {bad_option, relay, {did_you_mean, relays}, []}}, Join(#{relay => []})),
    ?assertMatch({error, {bad_option, relays, relay_urls, []}}, Join(#{})),
    ?assertMatch({error, {bad_option, relays, relay_url, <<"b.lab">>}}, Join(#{relays => [<<"b.lab">>]})),
    ?assertMatch({error, {bad_option, relays, relay_url, "ftp://b.lab:1"}}, Join(#{relays => ["ftp://b.lab:1"]})),
    Node = <<"https://b.lab:4433">>,
    ?assertEqual({error, {relays_unreachable, [{Node, no_relay_started}]}}, Join(#{relays => [Node]})),
    Closed = <<"https://b.lab:4999">>,
    ?assertEqual({error, {relays_unreachable, [{Closed, port_closed}]}}, Join(#{relays => [Closed]})),
    Nowhere = <<"https://nowhere.lab:4433">>,
    ?assertMatch({error, {relays_unreachable, [{Nowhere, {no_address, _}}]}}, Join(#{relays => [Nowhere]})),
    ok = call(C, fun garbage/0),
    Garbage = <<"https://c.lab:4700">>,
    [?assertEqual({error, {not_a_macula_relay, Garbage}}, Join(#{relays => [Garbage], timeout => Ms}))
     || Ms <- [2_000, 8_000]],
    ok = call(B, macula, start_relay, [#{}]),
    Unnamed = #{relays => [Node], tls_verify => verify_peer},
    case Join(Unnamed) of
        {error, {relays_unreachable, [{Node, {certificate, unknown_issuer}}]}} -> ok;
        %% A machine without any CA.
        {error, {bad_option, cacertfile, _, _}} -> ok
    end,
    ?assertEqual(ok, Join(#{relays => [Node]})).

name_taken(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    Name = unique("n"),
    [A, B] = [macula_test_node:start(Name, #{within => netlab:within(Lab, Host), host => "same.lab",
                                             domain => longnames}) || Host <- [a, b]],
    ok = join(A, #{}),
    ?assertEqual({error, {name_taken, atom_to_binary(name(A))}}, join(B, #{})),
    ok = join(B, #{identity => <<"other">>, realm => <<"elsewhere">>}).

%% A container that is killed and comes back with nothing but the cookie has its name again.
started_again(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    [ok = join(Node, #{}) || Node <- [A, B]],
    ?assertEqual(pong, ping(A, B)),
    [Alive, _] = string:split(atom_to_list(name(B)), "@"),
    macula_test_node:kill(B),
    Again = macula_test_node:start(Alive, #{within => netlab:within(Lab, b), host => "b.lab", domain => longnames}),
    ?assertEqual(name(B), name(Again)),
    ok = join(Again, #{}),
    wait_until(fun() -> ping(A, Again) =:= pong end),
    ?assertEqual(call(Again, os, getpid, []), call(A, rpc, call, [name(B), os, getpid, []])).

tokens(_) ->
    Lab = netlab:start(two_nats, #{}),
    Realms = #{<<"open">> => open, <<"closed">> => {tokens, [<<"sesame">>]}},
    relay(Lab, p, #{port => 4433, realms => Realms}),
    A = node_on(Lab, a),
    Refused = fun(Why) -> {error, {relays_unreachable, [{?URL, {refused, Why}}]}} end,
    ?assertEqual(Refused(unknown_realm), join(A, #{})),
    ?assertEqual(Refused(token), join(A, #{realm => <<"closed">>})),
    ?assertEqual(Refused(token), join(A, #{realm => <<"closed">>, token => <<"sesam">>})),
    ?assertEqual(ok, join(A, #{realm => <<"closed">>, token => <<"sesame">>})),
    ?assertEqual(ok, join(A, #{realm => "open"})).

leaves(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    [ok = join(Node, #{}) || Node <- Nodes],
    ?assertEqual(pong, ping(A, B)),
    Down = down_of(A, B),
    ok = call(A, macula, leave_mesh, []),
    ?assertEqual(name(B), Down()),
    ?assertNot(call(A, macula_dist_relay, is_relay_mode, [])),
    ?assertEqual(undefined, call(A, macula, relays, [])),
    ?assertEqual(pang, ping(A, B)),
    ok = join(A, #{}),
    ?assertEqual(pong, ping(A, B)).

joins_again_under_another_name(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    B = node_on(Lab, b),
    A = macula_test_node:start(unique("a"), #{within => netlab:within(Lab, a), domain => none}),
    Become = fun(Name) ->
                     {ok, _} = call(A, net_kernel, start, [Name, #{name_domain => longnames}]),
                     Cookie = call(B, erlang, get_cookie, []),
                     true = call(A, erlang, set_cookie, [Cookie])
             end,
    Become('first@a.lab'),
    [ok = join(Node, #{}) || Node <- [A, B]],
    ?assertEqual(pong, call(B, net_adm, ping, ['first@a.lab'])),
    ok = call(A, net_kernel, stop, []),
    Become('second@a.lab'),
    wait_until(fun() -> call(B, net_adm, ping, ['second@a.lab']) =:= pong end).

%% macula:diagnose/1 where there are relays: each thing that can be wrong with them, at its stage.
diagnosed(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relay = relay(Lab, p, #{port => 4433, realms => #{<<"io.macula">> => open}}),
    [A, B] = [node_on(Lab, Host) || Host <- [a, b]],
    Before = diagnose(A, B),
    ?assertNot(lists:keymember(mesh, 1, Before)),
    ?assertMatch({address, failed, _}, lists:keyfind(address, 1, Before)),
    _ = call(A, macula, join_mesh, [#{relays => [?URL], realm => <<"other">>, timeout => 1_000}]),
    ok = join(A, #{}),
    %% Not there: the mesh is well, and the node not in it.
    NotThere = diagnose(A, B),
    ?assertMatch({mesh, ok, #{relays := [{?URL, {attached, _}}]}}, lists:keyfind(mesh, 1, NotThere)),
    ?assertMatch({port, failed, #{reason := not_in_mesh}}, lists:keyfind(port, 1, NotThere)),
    ok = join(B, #{}),
    There = diagnose(A, B),
    ?assertEqual([], [Stage || {Stage, failed, _} <- There]),
    ?assertMatch({handshake, ok, _}, lists:keyfind(handshake, 1, There)),
    Through = <<"connected, through ", ?URL/binary>>,
    wait_until(fun() ->
                       {_, ok, #{text := Text}} = lists:keyfind(port, 1, diagnose(A, B)),
                       Text =:= Through
               end),
    true = call(A, erlang, disconnect_node, [name(B)]),
    macula_test_node:kill(Relay),
    wait_until(fun() -> [] =:= [Url || {Url, {attached, _}} <- call(A, macula, relays, [])] end),
    ?assertMatch({mesh, failed, #{reason := not_attached, advice := _}}, lists:keyfind(mesh, 1, diagnose(A, B))).

diagnose(From, To) ->
    call(From, macula, diagnose, [name(To), #{timeout => 1_500}]).

%% A node of a configured mesh that is up can be called, at once; and boots without any relay, too.
up_when_reachable(_) ->
    Lab = netlab:start(lan, #{hosts => 3}),
    [RelayHost, HereHost, ThereHost] = netlab:hosts(Lab),
    Relay = relay(Lab, RelayHost, #{port => 4711}),
    Env = [{"MACULA_RELAYS", "https://a.lab:4711"} | macula_test_mesh:only_relays()],
    Start = fun(Host) ->
                    macula_test_node:start(unique("n"), #{within => netlab:within(Lab, Host),
                                                          host => atom_to_list(Host), env => Env})
            end,
    Here = Start(HereHost),
    [?assertEqual(pong, ping(Here, Start(ThereHost))) || _ <- lists:seq(1, 3)],
    macula_test_node:kill(Relay),
    Alone = Start(ThereHost),
    ?assertEqual(pang, ping(Here, Alone)),
    relay(Lab, RelayHost, #{port => 4711}),
    wait_until(fun() -> ping(Here, Alone) =:= pong end).

huge_message(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [A, B] = joined(Lab, [a, b], #{}),
    There = name(B),
    ?assertEqual(pong, ping(A, B)),
    Lost = macula_test_node:cast(A, fun() -> net_kernel:monitor_nodes(true), receive {nodedown, _} -> ok end end),
    ?assertEqual(256 * 1024 * 1024,
                 call(A, fun() ->
                                 Data = binary:copy(rand:bytes(1024 * 1024), 256),
                                 {Size, Hash} = rpc:call(There, erlang, apply,
                                                         [fun(D) -> {byte_size(D), erlang:md5(D)} end, [Data]]),
                                 Hash = erlang:md5(Data),
                                 Size
                         end)),
    ?assert(call(A, erlang, is_process_alive, [Lost])),
    ?assertMatch([#{path := relay}], call(A, macula, links, [])).

many_in_order(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    relay(Lab, p),
    [A, B] = joined(Lab, [a, b], #{}),
    ?assertEqual(pong, ping(A, B)),
    Count = 100_000,
    Collector = macula_test_node:cast(B, fun() -> collect(Count) end),
    _ = macula_test_node:cast(A, fun() -> [Collector ! N || N <- lists:seq(1, Count)] end),
    ?assertEqual(lists:seq(1, Count), collected(B, Collector)).

%% Nobody says goodbye for it, and the relay's word that it is gone would not count: net_ticktime does.
killed_behind_its_relay(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Relay = relay(Lab, p),
    [A, B] = joined(Lab, [a, b], #{args => ["-kernel", "net_ticktime", "8"]}),
    ?assertEqual(pong, ping(A, B)),
    Process = macula_test_node:cast(B, fun() -> receive never -> ok end end),
    Test = self(),
    Watcher = spawn_link(fun() ->
                                 Reason = call(A, fun() ->
                                                          Monitor = monitor(process, Process),
                                                          receive {'DOWN', Monitor, _, _, Reason} -> Reason end
                                                  end),
                                 Test ! {self(), Reason}
                         end),
    Down = down_of(A, B),
    timer:sleep(500),
    macula_test_node:kill(B),
    ?assertEqual(name(B), Down()),
    ?assertEqual(noconnection, receive {Watcher, Reason} -> Reason end),
    ?assertEqual([], call(A, macula, links, [])),
    wait_until(fun() -> maps:get(nodes, call(Relay, macula, relay_stats, [])) =:= 1 end),
    ?assertEqual(pang, ping(A, B)).

%% Two relays with the same list, and a node at each: nothing but the relays connects them. One is killed and started
%% again.
peered_relays(_) ->
    Lab = netlab:start(two_nats, #{nat => symmetric}),
    Urls = [macula_test_mesh:url(Host, 4433) || Host <- [p, q]],
    Options = #{port => 4433, peers => Urls, realms => #{<<"io.macula">> => {tokens, [<<"sesame">>]}}},
    [P, _] = Relays = [relay(Lab, Host, Options) || Host <- [p, q]],
    Shared = fun(All) -> lists:all(fun(Relay) -> relay_count(Relay, peers) =:= 1 end, All) end,
    wait_until(fun() -> Shared(Relays) end),
    [?assert(lists:member({Url, {down, {refused, itself}}}, call(Relay, macula, relay_peers, [])))
     || {Url, Relay} <- lists:zip(Urls, Relays)],
    [A, B] = Nodes = [node_on(Lab, Host) || Host <- [a, b]],
    Join = fun(Node, Url) -> join(Node, #{relays => [Url], token => <<"sesame">>}) end,
    [ok = Join(Node, Url) || {Node, Url} <- lists:zip(Nodes, Urls)],
    wait_until(fun() -> ping(A, B) =:= pong end),
    ?assertEqual([lists:nth(1, Urls)], [Url || #{path := relay, relay := Url} <- call(A, macula, links, [])]),
    ?assertEqual(lists:sort([atom_to_binary(name(Node)) || Node <- Nodes]), call(A, macula, mesh_nodes, [])),
    Counted = macula_test_node:cast(B, fun() -> collect(200) end),
    _ = macula_test_node:cast(A, fun() -> [begin Counted ! N, timer:sleep(20) end || N <- lists:seq(1, 200)] end),
    timer:sleep(500),
    macula_test_node:kill(P),
    wait_until(fun() -> has_said(lists:last(Relays), "is no peer") > 0 end),
    Again = relay(Lab, p, Options),
    ?assertEqual(lists:seq(1, 200), collected(B, Counted)),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    wait_until(fun() -> Shared([Again | tl(Relays)]) end),
    true = call(A, erlang, disconnect_node, [name(B)]),
    wait_until(fun() -> ping(A, B) =:= pong end),
    %% A name is taken at both.
    [Taken, _] = string:split(atom_to_list(name(B)), "@"),
    Rival = macula_test_node:start(Taken, #{within => netlab:within(Lab, a), host => "b.lab", domain => longnames}),
    ?assertEqual({error, {name_taken, atom_to_binary(name(B))}}, Join(Rival, hd(Urls))).

%%% What the cases share

relay_count(Relay, Name) ->
    maps:get(Name, call(Relay, macula, relay_stats, [])).

%% Watches the node To from the node From; the result waits for its end.
down_of(From, To) ->
    Test = self(),
    There = name(To),
    _ = spawn_link(fun() ->
                           Test ! {down, call(From, fun() ->
                                                            monitor_node(There, true),
                                                            receive {nodedown, Node} -> Node end
                                                    end)}
                   end),
    fun() -> receive {down, Node} -> Node end end.

setting(Key, Settings) ->
    [Setting] = [Setting || #{key := K} = Setting <- Settings, K =:= Key],
    Setting.

%%% On the nodes

collect(Count) ->
    Numbers = [receive N when is_integer(N) -> N end || _ <- lists:seq(1, Count)],
    receive {From, Ref} -> From ! {Ref, Numbers} end.

collected(Node, Collector) ->
    call(Node, fun() ->
                       Ref = make_ref(),
                       Collector ! {self(), Ref},
                       receive {Ref, Numbers} -> Numbers after 60_000 -> timeout end
               end).

await(Condition) ->
    Condition() orelse begin timer:sleep(20), await(Condition) end.

%% A port that answers whatever comes with something else.
garbage() ->
    Self = self(),
    _ = spawn(fun() ->
                      {ok, Socket} = gen_udp:open(4700, [binary, {active, true}]),
                      Self ! opened,
                      answer(Socket)
              end),
    receive opened -> ok end.

answer(Socket) ->
    receive
        {udp, Socket, Ip, Port, _} ->
            _ = gen_udp:send(Socket, Ip, Port, <<"HTTP/1.1 400 Bad Request\r\n\r\n">>),
            answer(Socket)
    end.
