%% Names, addresses and ports: what a node may be called, where it listens, and how it is found.
-module(macula_dist_naming_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, end_per_testcase/2]).
-export([short_names/1, long_names/1, long_name_without_dot/1, hidden_node/1, hidden_connection/1,
         dist_listen_false/1, dynamic_short_name/1, dynamic_long_name/1, remote_shell/1,
         stop_and_start/1, other_name_after_stop/1, start_with_options/1]).
-export([ipv4_host/1, ipv6_host/1, ipv6_interface/1, ipv4_interface/1, port_in_name/1,
         ipv6_port_in_name/1, port_from_environment/1, port_from_kernel/1, port_from_options/1,
         port_range/1, port_range_of_kernel/1, default_port/1, default_port_taken/1, peer_table/1]).
-export([port_taken/1, range_taken/1, duplicate_name/1, stale_registration/1, restart_at_once/1,
         registry_unusable/1, registry_is_per_folder/1]).
-export([origins/1, unknown_option/1, bad_values/1, bad_option_at_run_time/1,
         late_options/1, missing_library/1,
         illegal_own_name/1]).

-import(macula_test_node, [start/1, start/2, try_start/2, call/2, call/4, name/1, connect/2,
                           wait_until/1, unique/1]).

-define(HANG, 60_000).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [{group, names}, {group, addresses}, {group, registry}, {group, options}].

groups() ->
    [{names, [short_names, long_names, long_name_without_dot, hidden_node, hidden_connection,
              dist_listen_false, dynamic_short_name, dynamic_long_name, remote_shell,
              stop_and_start, other_name_after_stop, start_with_options]},
     {addresses, [ipv4_host, ipv6_host, ipv6_interface, ipv4_interface, port_in_name,
                  ipv6_port_in_name, port_from_environment, port_from_kernel, port_from_options,
                  port_range, port_range_of_kernel, default_port, default_port_taken, peer_table]},
     {registry, [port_taken, range_taken, duplicate_name, stale_registration, restart_at_once,
                 registry_unusable, registry_is_per_folder]},
     {options, [origins, unknown_option, bad_values, bad_option_at_run_time, late_options, missing_library,
                illegal_own_name]}].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%%% Names

%% -sname
short_names(_) ->
    talk(start(unique("a")), start(unique("b"))).

%% -name with dots, found through the registry although no such host exists.
long_names(_) ->
    Options = #{domain => longnames, host => "a-host.does-not-exist.invalid"},
    talk(start(unique("a"), Options), start(unique("b"), Options)).

%% -name takes a host without a dot as well.
long_name_without_dot(_) ->
    Options = #{domain => longnames},
    talk(start(unique("a"), Options), start(unique("b"), Options)).

%% A hidden node is connected, but not among the visible ones.
hidden_node(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{args => ["-hidden"]}),
    ?assertEqual(pong, ping(A, name(B))),
    ?assertEqual({[], [name(B)]}, call(A, fun() -> {nodes(), nodes(hidden)} end)),
    ?assertEqual({[], [name(A)]}, call(B, fun() -> {nodes(), nodes(hidden)} end)),
    ?assertEqual(name(B), call(A, erpc, call, [name(B), erlang, node, []])).

%% A visible node may dial as if hidden.
hidden_connection(_) ->
    A = start(unique("a")),
    B = start(unique("b")),
    true = call(A, net_kernel, hidden_connect_node, [name(B)]),
    ?assertEqual([name(B)], call(A, erlang, nodes, [hidden])),
    ?assertEqual([], call(A, erlang, nodes, [visible])).

%% With -dist_listen false a node dials, is served over that connection, and cannot be dialled.
dist_listen_false(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{args => ["-dist_listen", "false"]}),
    ?assertEqual(pang, ping(A, name(B))),
    ?assertEqual(pong, ping(B, name(A))),
    wait_until(fun() -> call(A, erlang, nodes, [hidden]) =:= [name(B)] end),
    ?assertEqual(name(B), call(A, erpc, call, [name(B), erlang, node, []])).

%% A node without a name of its own gets one from the first node it dials (-sname undefined).
dynamic_short_name(_) ->
    dynamic("undefined", shortnames).

dynamic_long_name(_) ->
    dynamic("undefined", longnames).

dynamic(Undefined, Domain) ->
    A = start(unique("a"), #{domain => Domain}),
    B = start(Undefined, #{domain => Domain}),
    ?assertEqual(nonode@nohost, call(B, erlang, node, [])),
    true = call(B, net_kernel, connect_node, [name(A)]),
    Name = call(B, erlang, node, []),
    ?assertNotEqual(nonode@nohost, Name),
    wait_until(fun() -> call(A, erlang, nodes, [connected]) =:= [Name] end),
    ?assertEqual(Name, call(A, erpc, call, [Name, erlang, node, []])),
    ?assertMatch([#{node := Name}], call(A, macula, links, [])),
    %% And keeps it towards the next node.
    C = start(unique("c"), #{domain => Domain}),
    true = call(B, net_kernel, connect_node, [name(C)]),
    wait_until(fun() -> lists:member(Name, call(C, erlang, nodes, [connected])) end).

%% -remsh: a shell on another node, from a node with a dynamic name. It wants a terminal, which
%% script(1) gives it.
remote_shell(_) ->
    case os:find_executable("script") of
        false -> {skip, "there is no script(1) here"};
        Script -> remote_shell_in(Script)
    end.

remote_shell_in(Script) ->
    A = start(unique("a")),
    Node = atom_to_list(name(A)),
    Command = ["timeout --foreground 60 ", lists:join(" ", [macula_test_node:erl()] ++ macula_test_node:flags()
        ++ macula_test_node:ebins() ++ ["-setcookie", macula_test_node:cookie(), "-sname", "undefined", "-remsh", Node])],
    Port = open_port({spawn_executable, Script},
                     [{args, ["-qec", lists:flatten(Command), "/dev/null"]}, {env, [{"TERM", "xterm"}, {"MACULA_HOME", macula_test_node:home()},
                             {"XDG_RUNTIME_DIR", macula_test_node:home()}]},
                      exit_status, stderr_to_stdout, binary, hide]),
    Prompt = says(Port, "(" ++ Node ++ ")1>", <<>>),
    port_command(Port, "{the_shell_is_on, node()}.\n"),
    Answer = says(Port, "{the_shell_is_on," ++ Node ++ "}", Prompt),
    ?assertMatch([_], call(A, erlang, nodes, [hidden])),
    %% Ctrl-G, then q: the local node ends, the other one stays.
    Again = says(Port, "(" ++ Node ++ ")2>", Answer),
    port_command(Port, "\^G"),
    Switch = says(Port, "-->", Again),
    port_command(Port, "q\n"),
    receive {Port, {exit_status, _}} -> ok after ?HANG -> error({hangs, Switch}) end,
    wait_until(fun() -> call(A, erlang, nodes, [hidden]) =:= [] end).

says(Port, Text, Said) ->
    case is_in(Text, Said) of
        true ->
            Said;
        false ->
            receive
                {Port, {data, Data}} -> says(Port, Text, <<Said/binary, Data/binary>>);
                {Port, {exit_status, Status}} -> error({ended, Status, Said})
            after ?HANG ->
                error({never_said, Text, Said})
            end
    end.

%% net_kernel:stop and start at run time, again and again, under the same name.
stop_and_start(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{domain => none}),
    Name = name(B),
    Creations =
        [begin
             {ok, _} = call(B, net_kernel, start, [[Name, shortnames]]),
             true = call(B, erlang, set_cookie, [list_to_atom(macula_test_node:cookie())]),
             ?assertEqual(pong, ping(A, Name)),
             Creation = call(B, erlang, system_info, [creation]),
             ok = call(B, net_kernel, stop, []),
             %% The emulator drops the name when the last controller process has gone.
             wait_until(fun() -> call(B, erlang, node, []) =:= nonode@nohost end),
             wait_until(fun() -> call(A, erlang, nodes, []) =:= [] end),
             ?assertEqual([], call(B, macula, links, [])),
             Creation
         end || _ <- lists:seq(1, 5)],
    %% Pids of an earlier run are never taken for those of a later one.
    ?assertEqual(Creations, lists:usort(Creations)).

%% After a stop the node may come back under another name; the old one is free.
other_name_after_stop(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{domain => none}),
    Other = list_to_atom(unique("other") ++ "@localhost"),
    {ok, _} = call(B, net_kernel, start, [[name(B), shortnames]]),
    ok = call(B, net_kernel, stop, []),
    {ok, _} = call(B, net_kernel, start, [[Other, shortnames]]),
    true = call(B, erlang, set_cookie, [list_to_atom(macula_test_node:cookie())]),
    ?assertEqual(pang, ping(A, name(B))),
    ?assertEqual(pong, ping(A, Other)).

%% net_kernel:start/2 with options: hidden, and not listening.
start_with_options(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{domain => none}),
    {ok, _} = call(B, net_kernel, start, [name(B), #{name_domain => shortnames, hidden => true, dist_listen => false}]),
    true = call(B, erlang, set_cookie, [list_to_atom(macula_test_node:cookie())]),
    ?assertEqual(pang, ping(A, name(B))),
    ?assertEqual(pong, ping(B, name(A))),
    wait_until(fun() -> call(A, erlang, nodes, [hidden]) =:= [name(B)] end).

%%% Addresses and ports

ipv4_host(_) ->
    Options = #{domain => longnames, host => "127.0.0.1"},
    talk(start(unique("a"), Options), start(unique("b"), Options)).

%% An IPv6 address as the host, without brackets.
ipv6_host(_) ->
    Options = #{domain => longnames, host => "::1"},
    talk(start(unique("a"), Options), start(unique("b"), Options)).

%% Bound to ::1 alone, and reached there.
ipv6_interface(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{args => interface("{0,0,0,0,0,0,0,1}")}),
    ?assertMatch({{0, 0, 0, 0, 0, 0, 0, 1}, _}, registered(B)),
    talk(A, B),
    ?assertMatch([#{address := {{0, 0, 0, 0, 0, 0, 0, 1}, _}}], call(A, macula, links, [])).

ipv4_interface(_) ->
    A = start(unique("a")),
    B = start(unique("b"), #{args => interface("{127,0,0,1}")}),
    ?assertMatch({{127, 0, 0, 1}, _}, registered(B)),
    talk(A, B).

interface(Ip) ->
    ["-kernel", "inet_dist_use_interface", Ip].

%% 'b@localhost:45671' listens there, and is dialled there without any registry.
port_in_name(Config) ->
    Port = macula_test_node:free_port(),
    A = start(unique("a"), own_registry(Config)),
    B = start(unique("b"), #{host => "localhost:" ++ integer_to_list(Port)}),
    ?assertMatch({_, Port}, registered(B)),
    talk(A, B),
    ?assertMatch([#{address := {_, Port}}], call(A, macula, links, [])).

%% 'b@[::1]:45671'
ipv6_port_in_name(Config) ->
    Port = macula_test_node:free_port(inet6),
    A = start(unique("a"), (own_registry(Config))#{domain => longnames}),
    B = start(unique("b"), #{domain => longnames, host => "[::1]:" ++ integer_to_list(Port)}),
    talk(A, B),
    ?assertMatch([#{address := {{0, 0, 0, 0, 0, 0, 0, 1}, Port}}], call(A, macula, links, [])).

port_from_environment(_) ->
    Port = macula_test_node:free_port(),
    listens_at(Port, #{env => [{"MACULA_DIST_PORT", integer_to_list(Port)}]}).

port_from_kernel(_) ->
    Port = macula_test_node:free_port(),
    listens_at(Port, #{args => ["-kernel", "macula_dist_port", integer_to_list(Port)]}).

port_from_options(_) ->
    Port = macula_test_node:free_port(),
    listens_at(Port, #{args => dist_option("port", integer_to_list(Port))}).

listens_at(Port, Options) ->
    B = start(unique("b"), Options),
    ?assertMatch({_, Port}, registered(B)),
    talk(start(unique("a")), B).

%% Nodes with the same range take one port of it each.
port_range(_) ->
    range(fun(Min, Max) -> dist_option("port_range", "{" ++ Min ++ "," ++ Max ++ "}") end).

%% OTP's own options for it.
port_range_of_kernel(_) ->
    range(fun(Min, Max) -> ["-kernel", "inet_dist_listen_min", Min, "inet_dist_listen_max", Max] end).

range(Args) ->
    Min = free_ports(3),
    Options = #{args => Args(integer_to_list(Min), integer_to_list(Min + 2))},
    Nodes = [start(unique(Name), Options) || Name <- ["a", "b", "c"]],
    ?assertEqual([Min, Min + 1, Min + 2], [element(2, registered(Node)) || Node <- Nodes]),
    talk(hd(Nodes), lists:last(Nodes)).

%% The first of so many free ports in a row.
free_ports(Count) ->
    First = macula_test_node:free_port(),
    Sockets = [gen_udp:open(Port) || Port <- lists:seq(First, First + Count - 1), Port < 65_536],
    [ok = gen_udp:close(Socket) || {ok, Socket} <- Sockets],
    case [Socket || {ok, Socket} <- Sockets] of
        All when length(All) =:= Count -> First;
        _ -> free_ports(Count)
    end.

%% A node that is told nothing takes 4433, where others find it by its host alone.
default_port(Config) ->
    case gen_udp:open(4433) of
        {ok, Socket} ->
            ok = gen_udp:close(Socket),
            B = start(unique("b")),
            ?assertMatch({_, 4433}, registered(B)),
            talk(start(unique("a"), own_registry(Config)), B);
        {error, eaddrinuse} ->
            {skip, "port 4433 is in use on this machine"}
    end.

%% When 4433 is taken a node gets another port, and is found through the machine's registry.
default_port_taken(_) ->
    Socket = gen_udp:open(4433, [inet6, {ipv6_v6only, false}]),
    ?assert(element(1, Socket) =:= ok orelse Socket =:= {error, eaddrinuse}),
    B = start(unique("b")),
    ?assertNotMatch({_, 4433}, registered(B)),
    talk(start(unique("a")), B),
    [ok = gen_udp:close(S) || {ok, S} <- [Socket]].

%% -macula peers: the address of a node that nothing else knows.
peer_table(Config) ->
    Port = macula_test_node:free_port(),
    B = start(unique("b"), #{domain => longnames, host => "far.invalid",
                             args => ["-kernel", "macula_dist_port", integer_to_list(Port)]}),
    Elsewhere = (own_registry(Config))#{domain => longnames},
    ?assertEqual(pang, ping(start(unique("a"), Elsewhere), name(B))),
    Peers = lists:flatten(io_lib:format("#{'~s' => \"127.0.0.1:~b\"}", [name(B), Port])),
    talk(start(unique("a"), Elsewhere#{args => ["-macula", "peers", Peers]}), B).

%%% The machine's registry

%% A port that was asked for and is taken: the node does not come up, and says which and why.
port_taken(_) ->
    {ok, Socket} = gen_udp:open(0, [inet6, {ipv6_v6only, false}]),
    {ok, Port} = inet:port(Socket),
    Text = integer_to_list(Port),
    [does_not_start(Options, ["port " ++ Text, Origin, "in use"])
     || {Options, Origin} <-
            [{#{env => [{"MACULA_DIST_PORT", Text}]}, "MACULA_DIST_PORT"},
             {#{args => ["-kernel", "macula_dist_port", Text]}, "macula_dist_port"},
             {#{host => "localhost:" ++ Text}, "the node name"}]],
    ok = gen_udp:close(Socket).

range_taken(_) ->
    {ok, Socket} = gen_udp:open(0, [inet6, {ipv6_v6only, false}]),
    {ok, Port} = inet:port(Socket),
    Text = integer_to_list(Port),
    does_not_start(#{args => dist_option("port_range", "{" ++ Text ++ "," ++ Text ++ "}")}, [Text, "in use"]),
    ok = gen_udp:close(Socket).

%% A second node of the same name on this machine is refused, and the first one is not disturbed.
duplicate_name(_) ->
    Name = unique("b"),
    B = start(Name),
    A = start(unique("a")),
    connect(A, B),
    {error, Said} = try_start(Name, #{}),
    ?assertMatch({_, _}, binary:match(Said, <<"another node of that name">>), Said),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    talk(A, B).

%% The entry of a node that was killed does not stand in the way of its successor, nor of a ping.
stale_registration(_) ->
    Name = unique("b"),
    A = start(unique("a")),
    [begin
         B = start(Name),
         talk(A, B),
         macula_test_node:kill(B),
         wait_until(fun() -> call(A, erlang, nodes, []) =:= [] end),
         ?assertEqual(pang, ping(A, name(B)))
     end || _ <- lists:seq(1, 3)].

%% Killed and started again before anyone noticed: the name is free, and peers find the new one.
restart_at_once(_) ->
    Name = unique("b"),
    A = start(unique("a")),
    B = start(Name),
    connect(A, B),
    macula_test_node:kill(B),
    Again = start(Name),
    wait_until(fun() -> ping(A, name(Again)) =:= pong end),
    wait_until(fun() -> call(Again, erlang, nodes, []) =:= [name(A)] end).

%% Where the registry cannot be written the node says so, runs, and is reached by its port.
registry_unusable(Config) ->
    File = filename:join(macula_test_node:scratch(Config), "a_file"),
    ok = file:write_file(File, <<>>),
    Port = macula_test_node:free_port(),
    B = start(unique("b"), #{host => "localhost:" ++ integer_to_list(Port), env => [{"XDG_RUNTIME_DIR", File}]}),
    macula_test_node:await_said(B, "will not find this one by name", ?HANG),
    talk(start(unique("a")), B).

%% XDG_RUNTIME_DIR says where the registry is: who has another one does not find the node.
registry_is_per_folder(Config) ->
    Here = own_registry(Config),
    Busy = gen_udp:open(4433, [inet6, {ipv6_v6only, false}]),
    B = start(unique("b"), Here),
    ?assertEqual(pang, ping(start(unique("a")), name(B))),
    talk(start(unique("a"), Here), B),
    [ok = gen_udp:close(S) || {ok, S} <- [Busy]].

%%% Options

%% macula:config/0 tells each value and where it came from.
origins(_) ->
    Port = macula_test_node:free_port(),
    A = start(unique("a"), #{env => [{"MACULA_DIST_PORT", integer_to_list(Port)}],
                             args => interface("{127,0,0,1}") ++ dist_option("threads", "2")}),
    Settings = maps:from_list([{Key, {Value, Origin}} || #{key := Key, value := Value, origin := Origin}
                                                             <- call(A, macula, config, [])]),
    ?assertMatch(#{port := {Port, {os_env, "MACULA_DIST_PORT"}},
                   interface := {{127, 0, 0, 1}, {app_env, kernel, inet_dist_use_interface}},
                   threads := {2, {app_env, macula, {dist, threads}}},
                   peers := {_, default}}, Settings),
    Host = "localhost:" ++ integer_to_list(macula_test_node:free_port()),
    B = start(unique("b"), #{host => Host}),
    ?assertMatch([_], [S || #{key := port, origin := node_name} = S <- call(B, macula, config, [])]).

%% A misspelled option: the node does not come up, and names the right one.
unknown_option(_) ->
    does_not_start(#{args => dist_option("prot", "1")}, ["unknown option prot", "did you mean port"]),
    does_not_start(#{args => ["-macula", "peer", "[]"]}, ["unknown option peer", "did you mean peers"]).

%% A value of the wrong kind: the node does not come up, and says what was expected.
bad_values(_) ->
    does_not_start(#{args => dist_option("port", "99999")}, ["option port should be an integer"]),
    does_not_start(#{env => [{"MACULA_DIST_PORT", "none"}]}, ["MACULA_DIST_PORT", "should be an integer"]),
    does_not_start(#{args => interface("nowhere")}, ["inet_dist_use_interface", "should be an IP address"]),
    does_not_start(#{args => ["-macula", "peers", "#{'x@y' => \"z\"}"]}, ["x@y", "should be an address"]).

%% The peer table is read at each dial: a mistake made at run time is told, and mended.
bad_option_at_run_time(_) ->
    A = start(unique("a")),
    B = start(unique("b")),
    ok = call(A, application, set_env, [macula, peers, nonsense]),
    ?assertEqual(pong, ping(A, name(B))),
    ?assertEqual(pang, ping(A, 'nobody@localhost')),
    macula_test_node:await_said(A, "option peers should be a map", ?HANG).

%% What is configured only when distribution runs, as by Mix's runtime.exs, is told by name.
late_options(_) ->
    A = start(unique("a")),
    ok = call(A, application, set_env, [macula, dist, #{tls_verify => verify_peer, cacertfile => "ca.pem"}]),
    {ok, _} = call(A, application, ensure_all_started, [macula]),
    macula_test_node:await_said(A, "dist's cacertfile, dist's tls_verify: set after distribution had started", ?HANG),
    B = start(unique("b"), #{args => dist_option("threads", "1")}),
    {ok, _} = call(B, application, ensure_all_started, [macula]),
    ?assertEqual(0, macula_test_node:has_said(B, "set after distribution had started")).

%% Without the native library the node says which file is missing.
missing_library(_) ->
    does_not_start(#{env => [{"MACULA_NIF_PATH", "/nowhere/macula_nif.so"}]},
                   ["native library /nowhere/macula_nif", "could not be loaded"]),
    %% An empty variable is none.
    _ = start(unique("a"), #{env => [{"MACULA_NIF_PATH", ""}]}).

%% A port in the node name that is none.
illegal_own_name(_) ->
    does_not_start(#{host => "localhost:99999"}, ["99999"]).

%% A node that must not come up: within the bound, with one line that says all this.
does_not_start(Options, Texts) ->
    case try_start(unique("bad"), Options) of
        {ok, _} ->
            error({started, Options});
        {error, Said} ->
            ct:log("~ts", [Said]),
            Lines = [Line || Line <- binary:split(Said, <<"\n">>, [global]), is_in("macula: ", Line)],
            ?assertMatch([_], Lines, Said),
            [?assert(is_in(Text, hd(Lines)), {Text, Said}) || Text <- Texts]
    end.

is_in(Text, Line) ->
    binary:match(Line, list_to_binary(Text)) =/= nomatch.

%%% Help

ping(Server, Node) ->
    call(Server, net_adm, ping, [Node]).

%% Ping, and a call each way.
talk(A, B) ->
    {NodeA, NodeB} = {name(A), name(B)},
    ?assertEqual(pong, ping(A, NodeB)),
    ?assertEqual(NodeB, call(A, erpc, call, [NodeB, erlang, node, []])),
    ?assertEqual(NodeA, call(B, erpc, call, [NodeA, erlang, node, []])).

%% Where the registry of this machine says the node is.
registered(Server) ->
    {ok, Address} = call(Server, macula_dist_registry, find, [atom_to_binary(name(Server), utf8)]),
    Address.

%% A registry that other nodes are not in.
own_registry(Config) ->
    #{env => [{"XDG_RUNTIME_DIR", macula_test_node:scratch(Config)}]}.

dist_option(Key, Value) ->
    ["-macula", "dist", "#{" ++ Key ++ " => " ++ Value ++ "}"].
