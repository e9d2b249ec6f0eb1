%% Nodes with two carriers, `-proto_dist inet_tcp macula': who dials whom with which, hidden nodes,
%% nodes that do not listen and nodes without a name among them, and a cluster's move from one
%% carrier to the other.
-module(macula_carriers_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/net_address.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([rule_decides/1, rule_changes/1, late_rule/1, bad_rule_at_run_time/1, bad_rule_at_boot/1,
         macula_not_last/1, restart_of_distribution/1, beside_inet_tls/1, two_sites/1, mixed_cluster/1,
         crossing_dials/1, hidden/1, dist_listen_false/1, dynamic_name/1, rolling_move/1]).

-import(macula_test_node, [start/2, call/2, call/4, cast/2, cast/4, name/1, connect/2, wait_until/1, unique/1]).

-define(HANG, 60_000).
-define(NAME, treasure).
-define(LOCK, {gold, keeper}).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [rule_decides, rule_changes, late_rule, bad_rule_at_run_time, bad_rule_at_boot, macula_not_last,
     restart_of_distribution, beside_inet_tls, two_sites, mixed_cluster, crossing_dials, hidden, dist_listen_false,
     dynamic_name, rolling_move].

%% An epmd of our own, at a port of its own, that ends by itself should this run be killed.
init_per_suite(Config) ->
    {ok, Socket} = gen_tcp:listen(0, []),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    {Keeper, OsPid} = start_epmd(integer_to_list(Port)),
    os:putenv("ERL_EPMD_PORT", integer_to_list(Port)),
    [{epmd, {Keeper, OsPid}} | Config].

start_epmd(Port) ->
    Caller = self(),
    Keeper = spawn(fun() ->
                      Epmd = open_port({spawn_executable, os:find_executable("timeout")},
                                       [{args, ["1200", epmd(), "-port", Port]}, exit_status]),
                      Caller ! {self(), erlang:port_info(Epmd, os_pid)},
                      receive {Epmd, {exit_status, _}} -> ok end
                   end),
    receive
        {Keeper, {os_pid, OsPid}} -> {Keeper, OsPid}
    after ?HANG -> error(no_epmd)
    end.

epmd() ->
    Bin = filename:join(code:root_dir(), "erts-" ++ erlang:system_info(version) ++ "/bin"),
    case os:find_executable("epmd", Bin) of
        false -> os:find_executable("epmd");
        Path -> Path
    end.

end_per_suite(Config) ->
    stop_epmd(Config),
    os:unsetenv("ERL_EPMD_PORT").

%% Once, however often it is asked for.
stop_epmd(Config) ->
    {Keeper, OsPid} = proplists:get_value(epmd, Config),
    Monitor = monitor(process, Keeper),
    _ = is_process_alive(Keeper) andalso os:cmd("kill " ++ integer_to_list(OsPid)),
    receive {'DOWN', Monitor, process, Keeper, _} -> ok after ?HANG -> error(epmd_stays) end.

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%%% The rule

%% Each node as its own rule says; what no pattern matches goes over macula.
rule_decides(_) ->
    [A, B, C] = [node_with(both, Name, []) || Name <- ["a", "b", "c"]],
    D = node_with(both, "d", [{name(A), inet_tcp}, {"c_*@*", inet_tcp}]),
    [connect(D, Other) || Other <- [A, B, C]],
    ?assertEqual([tcp, quic, tcp], [protocol(D, Other) || Other <- [A, B, C]]),
    %% The link is what it is from either end.
    ?assertEqual([tcp, quic, tcp], [protocol(Other, D) || Other <- [A, B, C]]),
    ?assertEqual([inet_tcp, macula, inet_tcp], [call(D, macula, carrier, [name(Other)]) || Other <- [A, B, C]]),
    ?assert(lists:member(name(B), [Node || #{node := Node} <- call(D, macula, links, [])])),
    [talk(D, Other) || Other <- [A, B, C]].

%% A new rule counts from the next connection on; what is up stays up.
rule_changes(_) ->
    A = node_with(both, "a", [{"*", inet_tcp}]),
    B = node_with(both, "b", [{"*", inet_tcp}]),
    connect(A, B),
    ?assertEqual(tcp, protocol(A, B)),
    ok = call(A, macula, set_select, [[]]),
    talk(A, B),
    ?assertEqual({tcp, macula}, {protocol(A, B), call(A, macula, carrier, [name(B)])}),
    disconnect(A, B),
    connect(A, B),
    ?assertEqual(quic, protocol(A, B)),
    ok = call(A, macula, set_select, [[{<<"b_*@*">>, inet_tcp}]]),
    disconnect(A, B),
    connect(A, B),
    ?assertEqual(tcp, protocol(A, B)),
    ?assertMatch([#{value := [{<<"b_*@*">>, inet_tcp}], origin := {app_env, macula, select}}],
                 [Setting || #{key := select} = Setting <- call(A, macula, config, [])]).

%% A rule that is configured after distribution started counts from the start of the application on.
late_rule(_) ->
    A = node_with(both, "a", []),
    ok = call(A, application, set_env, [macula, select, [{"*", inet_tcp}]]),
    ?assertEqual(macula, call(A, macula, carrier, ['b@localhost'])),
    {ok, _} = call(A, application, ensure_all_started, [macula]),
    ?assertEqual(inet_tcp, call(A, macula, carrier, ['b@localhost'])).

%% A mistake is named, and the former rule stays.
bad_rule_at_run_time(_) ->
    A = node_with(both, "a", [{"*", inet_tcp}]),
    ?assertEqual({error, {bad_option, {select, "*"}, {one_of, [macula, inet_tcp]}, inet_tls}},
                 call(A, macula, set_select, [[{"*", inet_tls}]])),
    ?assertEqual({error, {bad_option, select, pattern, "host"}},
                 call(A, macula, set_select, [[{"host", macula}]])),
    ?assertEqual(inet_tcp, call(A, macula, carrier, ['b@localhost'])).

%% Without macula's half the node still runs with its other carrier, and says what is wrong.
bad_rule_at_boot(_) ->
    A = node_with(both, "a", [{"*", inet_tpc}]),
    macula_test_node:await_said(A, "option {select,\"*\"} should be one of [macula,inet_tcp], but is inet_tpc", ?HANG),
    B = node_with(inet_tcp, "b", none),
    connect(A, B),
    ?assertEqual(tcp, protocol(A, B)).

%% Where another carrier is asked first no rule can help: that is said.
macula_not_last(_) ->
    A = start(unique("a"), #{flags => ["-proto_dist", "macula", "inet_tcp", "-start_epmd", "false"]}),
    macula_test_node:await_said(A, "with -proto_dist macula inet_tcp other carriers take nodes before", ?HANG).

%% net_kernel:stop and start bring both carriers back, with the rule as it was last.
restart_of_distribution(_) ->
    A = start(unique("a"), #{flags => flags(both), domain => none}),
    B = node_with(both, "b", []),
    {ok, _} = call(A, net_kernel, start, [[name(A), shortnames]]),
    true = call(A, erlang, set_cookie, [list_to_atom(macula_test_node:cookie())]),
    ok = call(A, macula, set_select, [[{name(B), inet_tcp}]]),
    ok = call(A, net_kernel, stop, []),
    wait_until(fun() -> call(A, erlang, node, []) =:= nonode@nohost andalso not is_in_epmd(A) end),
    {ok, _} = call(A, net_kernel, start, [[name(A), shortnames]]),
    true = call(A, erlang, set_cookie, [list_to_atom(macula_test_node:cookie())]),
    connect(A, B),
    ?assertEqual(tcp, protocol(A, B)).

%% It takes its time to notice that a node has gone, and refuses the name until then.
is_in_epmd(Node) ->
    {ok, Names} = call(Node, erl_epmd, names, [{127, 0, 0, 1}]),
    [Name, _] = string:split(atom_to_list(name(Node)), "@"),
    lists:keymember(Name, 1, Names).

%% The other carrier may be OTP's TLS.
beside_inet_tls(Config) ->
    Options = #{flags => ["-proto_dist", "inet_tls", "macula", "-start_epmd", "false",
                          "-ssl_dist_opt", "server_certfile", certificate_and_key(Config),
                          "-ssl_dist_opt", "client_verify", "verify_none"]},
    [A, B, C] = [start(unique(Name), Options) || Name <- ["a", "b", "c"]],
    ok = call(A, macula, set_select, [[{name(B), inet_tls}]]),
    [connect(A, Other) || Other <- [B, C]],
    ?assertEqual([tls, quic], [protocol(A, B), protocol(A, C)]),
    [talk(A, Other) || Other <- [B, C]].

%% RSA, which every OTP's TLS takes by default. One file may hold both.
certificate_and_key(Config) ->
    Rsa = [{digest, sha256}, {key, {rsa, 2048, 65_537}}],
    Chain = #{root => Rsa, intermediates => [], peer => Rsa},
    #{server_config := Made} = public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
    {KeyType, Key} = proplists:get_value(key, Made),
    File = filename:join(macula_test_node:scratch(Config), "node.pem"),
    ok = file:write_file(File, public_key:pem_encode([{'Certificate', proplists:get_value(cert, Made), not_encrypted},
                                                      {KeyType, Key, not_encrypted}])),
    File.

%%% Clusters

%% Classic distribution inside a site, macula between sites: one rule of hosts a site.
two_sites(_) ->
    Sites = [[site_node(Name, Site) || Name <- ["a", "b"]] || Site <- ["127.0.1", "127.0.2"]],
    [First | Others] = Nodes = lists:append(Sites),
    [connect(First, Other) || Other <- Others],
    await_mesh(Nodes),
    [[?assertEqual(expected(site(Node), site(Other)), protocol(Node, Other)) || Other <- Nodes, Other =/= Node]
     || Node <- Nodes],
    [talk(First, Other) || Other <- Others].

site_node(Name, Site) ->
    Host = Site ++ ".1",
    start(unique(Name), #{domain => longnames, host => Host, flags => flags(both),
                          args => select([{"*@" ++ Site ++ ".*", inet_tcp}])}).

site(Server) ->
    {ok, #{host := {A, B, C, _}}} = macula_dist_name:split(name(Server)),
    {A, B, C}.

expected(Site, Site) -> tcp;
expected(_, _) -> quic.

%% One node that knows nothing of macula, two that have both: names, groups, links and calls go
%% through the whole of it.
mixed_cluster(_) ->
    A = node_with(inet_tcp, "a", none),
    [B, C] = [node_with(both, Name, [{name(A), inet_tcp}]) || Name <- ["b", "c"]],
    Nodes = [A, B, C],
    connect(B, A),
    connect(B, C),
    await_mesh(Nodes),
    ?assertEqual([tcp, tcp, quic], [protocol(A, B), protocol(A, C), protocol(B, C)]),
    [talk(X, Y) || X <- Nodes, Y <- Nodes, X =/= Y],
    Pid = cast(A, fun() -> yes = global:register_name(?NAME, self()), receive stop -> exit(stopped) end end),
    [wait_until(fun() -> call(Node, global, whereis_name, [?NAME]) =:= Pid end) || Node <- Nodes],
    [{ok, _} = call(Node, fun() -> {ok, Scope} = pg:start(carriers), {ok, Scope} end) || Node <- Nodes],
    Member = cast(C, timer, sleep, [?HANG]),
    ok = call(C, pg, join, [carriers, group, Member]),
    [wait_until(fun() -> call(Node, pg, get_members, [carriers, group]) =:= [Member] end) || Node <- Nodes],
    [?assertEqual(stopped, exit_reason(Node, cast(A, fun() -> receive stop -> exit(stopped) end end)))
     || Node <- [B, C]].

%% What a process linked from this node dies of.
exit_reason(Node, Pid) ->
    call(Node, fun() ->
                  process_flag(trap_exit, true),
                  link(Pid),
                  Pid ! stop,
                  receive {'EXIT', Pid, Reason} -> Reason after ?HANG -> hangs end
               end).

%% Two nodes call each other at the same moment, one over each carrier: one link comes of it, and
%% it works.
crossing_dials(_) ->
    Nodes = [A, B] = [node_with(both, Name, []) || Name <- ["a", "b"]],
    [begin
         ok = call(Server, macula, set_select, [[{"*", inet_tcp}]]),
         ok = call(hd(Nodes -- [Server]), macula, set_select, [[]]),
         ct:log("~p", [[crossing(A, B) || _ <- lists:seq(1, macula_test_node:full(100, 10))]])
     end || Server <- Nodes].

crossing(A, B) ->
    Self = self(),
    Dials = [spawn_monitor(fun() -> Self ! {self(), call(X, net_kernel, connect_node, [name(Y)])} end)
             || {X, Y} <- [{A, B}, {B, A}]],
    ?assertEqual([true, true], [receive {Pid, Result} -> Result after ?HANG -> hangs end || {Pid, _} <- Dials]),
    talk(A, B),
    Protocol = protocol(A, B),
    ?assertEqual(Protocol, protocol(B, A)),
    disconnect(A, B),
    Protocol.

%%% Hidden nodes, tools, nodes without a name

hidden(_) ->
    B = node_with(both, "b", []),
    [begin
         A = start(unique("a"), #{flags => flags(both), args => ["-hidden" | select([{"*", Carrier}])]}),
         connect(A, B),
         ?assertEqual({Protocol, [], [name(A)]}, {protocol(A, B), call(B, erlang, nodes, []), call(B, erlang, nodes, [hidden])}),
         talk(A, B),
         macula_test_node:stop(A),
         wait_until(fun() -> call(B, erlang, nodes, [hidden]) =:= [] end)
     end || {Carrier, Protocol} <- [{inet_tcp, tcp}, {macula, quic}]].

%% It dials over either carrier and is dialled over none. The rule is there before the first dial.
dist_listen_false(_) ->
    [B, C] = [node_with(both, Name, []) || Name <- ["b", "c"]],
    A = start(unique("a"), #{flags => flags(both), args => ["-dist_listen", "false" | select([{name(B), inet_tcp}])]}),
    connect(A, B),
    connect(A, C),
    ?assertEqual([tcp, quic], [protocol(A, B), protocol(A, C)]),
    [talk(A, Other) || Other <- [B, C]],
    [disconnect(A, Other) || Other <- [B, C]],
    ?assertEqual([pang, pang], [call(Other, net_adm, ping, [name(A)]) || Other <- [B, C]]).

%% Whichever carrier it dials first gives it its name, and the name is good for the other.
dynamic_name(_) ->
    [B, C] = [node_with(both, Name, []) || Name <- ["b", "c"]],
    [begin
         A = start("undefined", #{flags => flags(both), args => select([{name(B), inet_tcp}])}),
         [true = call(A, net_kernel, connect_node, [name(Other)]) || Other <- Order],
         Name = call(A, erlang, node, []),
         ?assertNotEqual(nonode@nohost, Name),
         ?assertEqual([tcp, quic], [protocol(A, B), protocol(A, C)]),
         [wait_until(fun() -> lists:member(Name, call(Other, erlang, nodes, [connected])) end) || Other <- Order],
         [?assertEqual(Name, call(Other, erpc, call, [Name, erlang, node, []])) || Other <- Order],
         macula_test_node:stop(A),
         [wait_until(fun() -> not lists:member(Name, call(Other, erlang, nodes, [connected])) end) || Other <- Order]
     end || Order <- [[B, C], [C, B]]].

%%% The move

%% docs/guides/rolling-move.md: three nodes go from inet_tcp to macula, each restarted twice, one at
%% a time. All the while every node that runs knows the global name, nobody else gets the lock, and
%% at the end epmd is not needed.
rolling_move(Config) ->
    Names = [unique(Name) || Name <- ["a", "b", "c"]],
    Classic = [{Name, start(Name, #{flags => flags(inet_tcp)})} || Name <- Names],
    gather(Classic),
    ?assertEqual([tcp], protocols(Classic)),
    Keeper = keep(server(hd(Names), Classic), none),
    Start = {Classic, Keeper, [watch(Server) || {_, Server} <- Classic]},

    {Both, _, _} = Phase1 = restart_all(Names, #{flags => flags(both), args => select([{"*", inet_tcp}])}, Start),
    ?assertEqual([tcp], protocols(Both)),

    [ok = call(Server, macula, set_select, [[{"*", macula}]]) || {_, Server} <- Both],
    ?assertEqual([tcp], protocols(Both)),

    {Moved, LastKeeper, Watchers} = restart_all(Names, #{}, Phase1),
    ?assertEqual([quic], protocols(Moved)),
    stop_epmd(Config),
    [talk(X, Y) || {_, X} <- Moved, {_, Y} <- Moved, X =/= Y],
    [?assertEqual({Server, LastKeeper}, {Server, call(Server, global, whereis_name, [?NAME])}) || {_, Server} <- Moved],
    [assert_undisturbed(Watcher) || Watcher <- Watchers].

restart_all(Names, Options, State) ->
    lists:foldl(fun(Name, Now) -> restart(Name, Options, Now) end, State, Names).

%% Hands over what lives on the node, stops it in good order, starts it anew, and goes on when all
%% see each other again.
restart(Name, Options, {Nodes, Keeper, Watchers}) ->
    Old = server(Name, Nodes),
    [{_, Heir} | _] = Others = lists:keydelete(Name, 1, Nodes),
    NewKeeper = case node(Keeper) =:= name(Old) of
                    true -> keep(Heir, Keeper);
                    false -> Keeper
                end,
    {[Leaving], Staying} = lists:partition(fun({Server, _}) -> Server =:= Old end, Watchers),
    assert_undisturbed(Leaving),
    ok = call(Old, init, stop, []),
    0 = macula_test_node:exit_status(Old, ?HANG),
    macula_test_node:stop(Old),
    New = start(Name, Options),
    Again = [{Name, New} | Others],
    gather(Again),
    ct:log("~ts is back: ~p", [Name, protocols(Again)]),
    {Again, NewKeeper, [watch(New) | Staying]}.

server(Name, Nodes) ->
    {Name, Server} = lists:keyfind(Name, 1, Nodes),
    Server.

gather([{_, First} | Others] = Nodes) ->
    [connect(First, Other) || {_, Other} <- Others],
    await_mesh([Server || {_, Server} <- Nodes]),
    ok = call(First, global, sync, []).

protocols(Nodes) ->
    lists:usort([protocol(X, Y) || {_, X} <- Nodes, {_, Y} <- Nodes, X =/= Y]).

%% A process on this node has the global name and the lock; it takes both from the former keeper.
keep(Server, Former) ->
    Keeper = cast(Server, fun() -> keeper(Former) end),
    wait_until(fun() -> call(Server, global, whereis_name, [?NAME]) =:= Keeper end),
    wait_until(fun() -> call(Server, fun() -> Former =:= none orelse is_gone(Former) end) end),
    Keeper.

is_gone(Pid) ->
    not erpc:call(node(Pid), erlang, is_process_alive, [Pid]).

%% The lock can be set by several processes with one requester id, and is held until the last is
%% gone. It is asked for until it is got: on a node that is back, and does not know the lock yet, a
%% watcher may hold it for the moment until the other nodes refuse it.
keeper(Former) ->
    true = global:set_lock(?LOCK, [node() | nodes()]),
    yes = take_name(Former),
    _ = is_pid(Former) andalso (Former ! handed_over),
    receive handed_over -> ok end.

take_name(none) -> global:register_name(?NAME, self());
take_name(_) -> global:re_register_name(?NAME, self()).

%% A process that looks for the name and reaches for the lock again and again, as another program
%% on that node would. However soon it is asked for its report: it has looked by then.
watch(Server) ->
    {Server, cast(Server, fun() -> watcher([]) end)}.

watcher(Before) ->
    Wrong = [What || What <- [name_is_lost(), lock_is_lost()], What =/= false] ++ Before,
    receive
        {From, report} -> From ! {self(), Wrong}
    after 5 ->
        watcher(Wrong)
    end.

name_is_lost() ->
    global:whereis_name(?NAME) =:= undefined andalso {name_lost, erlang:system_time(millisecond)}.

lock_is_lost() ->
    global:set_lock({element(1, ?LOCK), self()}, [node() | nodes()], 0)
        andalso {lock_lost, erlang:system_time(millisecond), nodes()}.

assert_undisturbed({Server, Pid}) ->
    ?assertEqual([], call(Server, fun() ->
                                     Pid ! {self(), report},
                                     receive {Pid, Wrong} -> Wrong after ?HANG -> hangs end
                                  end)).

%%% Help

flags(both) -> ["-proto_dist", "inet_tcp", "macula", "-start_epmd", "false"];
flags(inet_tcp) -> ["-start_epmd", "false"].

node_with(Carriers, Name, none) ->
    start(unique(Name), #{flags => flags(Carriers)});
node_with(Carriers, Name, Rule) ->
    start(unique(Name), #{flags => flags(Carriers), args => select(Rule)}).

select(Rule) ->
    ["-macula", "select", lists:flatten(io_lib:format("~0p", [Rule]))].

%% What the link between them is made of, by net_kernel's own books.
protocol(Server, Other) ->
    Node = name(Other),
    call(Server, fun() ->
                    {ok, Info} = net_kernel:node_info(Node),
                    {address, #net_address{protocol = Protocol}} = lists:keyfind(address, 1, Info),
                    Protocol
                 end).

await_mesh(Servers) ->
    Nodes = lists:sort([name(Server) || Server <- Servers]),
    [wait_until(fun() -> lists:sort([name(Server) | call(Server, erlang, nodes, [])]) =:= Nodes end) || Server <- Servers].

%% What runs in the background, global above all, would connect them again, by whatever rule it meets.
disconnect(A, B) ->
    [ok = call(Node, application, set_env, [kernel, dist_auto_connect, never]) || Node <- [A, B]],
    true = call(A, erlang, disconnect_node, [name(B)]),
    NameA = name(A),
    wait_until(fun() -> not lists:member(NameA, call(B, erlang, nodes, [connected])) end),
    [ok = call(Node, application, unset_env, [kernel, dist_auto_connect]) || Node <- [A, B]],
    ok.

%% A call each way.
talk(A, B) ->
    ?assertEqual(name(B), call(A, erpc, call, [name(B), erlang, node, []])),
    ?assertEqual(name(A), call(B, erpc, call, [name(A), erlang, node, []])).
