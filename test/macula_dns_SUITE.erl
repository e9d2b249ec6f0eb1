%% Nodes found by DNS: a name server of the lab's own tells which host and port the nodes of a name
%% are at; and one that is slow, or dead, holds up nobody who is found without it.
-module(macula_dns_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([found_by_service/1, found_in_search_domain/1, other_server_while_running/1, in_order/1, not_offered/1,
         dead_server_delays_nobody/1, silent_about_services/1, silent_about_ipv6/1, many_names_of_a_dead_server/1,
         diagnosed/1]).

-import(macula_test_node, [start/2, call/2, call/3, call/4, name/1, wait_until/1, unique/1]).

-define(HANG, 60_000).
%% What the resolver gives DNS for a service; what the dialler gives the other family of addresses;
%% and what a busy machine may add.
-define(SRV_MS, 2_000).
-define(OTHER_FAMILY_MS, 2_000).
-define(SLACK_MS, 2_000).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [found_by_service, found_in_search_domain, other_server_while_running, in_order, not_offered,
     dead_server_delays_nobody, silent_about_services, silent_about_ipv6, many_names_of_a_dead_server, diagnosed].

init_per_suite(Config) ->
    case {netlab:requires(), netlab_os:is_installed("dnsmasq")} of
        {ok, true} -> Config;
        {ok, false} -> {skip, "needs dnsmasq (./dev setup)"};
        {Skip, _} -> Skip
    end.

end_per_suite(_) ->
    ok.

end_per_testcase(_, Config) ->
    macula_test_node:stop_all(),
    netlab:stop_all(Config).

%%% Found

%% No such host, but a service of that name: at a port of its own, on a host of another name.
found_by_service(_) ->
    Lab = lab(),
    serve_names(Lab, a, ["--srv-host=_macula._udp.cluster.example,b.example,45001"]),
    ask(Lab, c, a, ""),
    B = start_on(Lab, b, #{host => "cluster.example", env => [{"MACULA_DIST_PORT", "45001"}]}),
    C = start_on(Lab, c, #{}),
    ?assertEqual(pong, call(C, net_adm, ping, [name(B)])),
    Address = netlab:address(Lab, b),
    ?assertMatch([#{address := {Address, 45001}}], call(C, macula, links, [])).

%% A host without a dot is looked up as the system does: in the search domains.
found_in_search_domain(_) ->
    Lab = lab(),
    serve_names(Lab, a, ["--srv-host=_macula._udp.cluster.example,b.example,45001"]),
    ask(Lab, c, a, "search nothing.example example\n"),
    B = start_on(Lab, b, #{host => "cluster", domain => shortnames, env => [{"MACULA_DIST_PORT", "45001"}]}),
    C = start_on(Lab, c, #{host => "c", domain => shortnames}),
    ?assertEqual(pong, call(C, net_adm, ping, [name(B)])).

%% A computer that moves to another network has another name server there.
other_server_while_running(_) ->
    Lab = lab(),
    serve_names(Lab, a, []),
    serve_names(Lab, b, ["--srv-host=_macula._udp.cluster.example,b.example,45001"]),
    ask(Lab, c, a, ""),
    C = start_on(Lab, c, #{}),
    ?assertEqual({error, not_found}, service_of(C, "cluster.example")),
    ask(Lab, c, b, ""),
    ?assertEqual({ok, [{netlab:address(Lab, b), 45001}]}, service_of(C, "cluster.example")).

%% By priority; among those of one, as often in front as the weight says. What the server says of
%% hosts that do not exist is left out.
in_order(_) ->
    Lab = lab(),
    serve_names(Lab, a, ["--srv-host=_macula._udp.cluster.example,b.example,1001,1,10",
                         "--srv-host=_macula._udp.cluster.example,b.example,1002,1,30",
                         "--srv-host=_macula._udp.cluster.example,gone.example,1003,1,30",
                         "--srv-host=_macula._udp.cluster.example,c.example,1000,0,0",
                         "--srv-host=_macula._udp.cluster.example,a.example,1009,2,0"]),
    ask(Lab, c, a, ""),
    C = start_on(Lab, c, #{}),
    [A, B, OfC] = [netlab:address(Lab, Host) || Host <- [a, b, c]],
    Count = 300,
    Answers = [Ports || _ <- lists:seq(1, Count), {ok, Addresses} <- [service_of(C, "cluster.example")],
                        Ports <- [[Port || {_, Port} <- Addresses]]],
    ?assertEqual(Count, length(Answers)),
    {ok, Some} = service_of(C, "cluster.example"),
    ?assertEqual([{OfC, 1000}, {B, 1001}, {B, 1002}, {A, 1009}], lists:sort(fun({_, P}, {_, Q}) -> P =< Q end, Some)),
    [?assertMatch([1000, _, _, 1009], Ports) || Ports <- Answers],
    Light = length([light || [_, 1001 | _] <- Answers]),
    ct:log("the lighter one was in front ~b of ~b times", [Light, Count]),
    %% One in four is fair; five standard deviations are 0.125 of it all.
    ?assert(abs(Light / Count - 0.25) < 0.125, Light).

not_offered(_) ->
    Lab = lab(),
    serve_names(Lab, a, ["--srv-host=_macula._udp.none.example"]),
    ask(Lab, c, a, ""),
    C = start_on(Lab, c, #{}),
    ?assertEqual({error, not_offered}, service_of(C, "none.example")),
    Node = 'x@none.example',
    ?assertEqual(pang, call(C, net_adm, ping, [Node])),
    macula_test_node:await_said(C, "says that there are no nodes on that host", ?HANG).

%%% Name servers that do not answer

%% Whom another source knows is reached while DNS still says nothing.
dead_server_delays_nobody(_) ->
    Lab = lab(),
    say_nothing(Lab, a),
    ask(Lab, c, a, ""),
    B = start_on(Lab, b, #{host => "cluster.example", env => [{"MACULA_DIST_PORT", "45001"}]}),
    Peers = io_lib:format("#{'~s' => {~w, 45001}}", [name(B), netlab:address(Lab, b)]),
    C = start_on(Lab, c, #{args => ["-macula", "peers", lists:flatten(Peers)]}),
    %% With its key computed: that is not what is looked at.
    Dead = spawn_link(fun() -> exit({looked_up, service_of(C, "cluster.example")}) end),
    unlink(Dead),
    Monitor = monitor(process, Dead),
    ?assertEqual(pong, call(C, net_adm, ping, [name(B)])),
    ?assert(is_process_alive(Dead)),
    receive
        {'DOWN', Monitor, process, Dead, Reason} -> ?assertEqual({looked_up, {error, timeout}}, Reason)
    after ?HANG -> error(hangs)
    end.

%% A server that denies hosts at once, and says nothing of services: the pang waits for that as long
%% as is said, not as long as a dial may take.
silent_about_services(_) ->
    Lab = lab(),
    Server = start_on(Lab, a, #{domain => none}),
    serve(Server, fun(Packet) -> deny_all_but(33, Packet) end),
    ask(Lab, c, a, ""),
    C = start_on(Lab, c, #{}),
    _ = call(C, net_adm, ping, ['x@first.example']),
    {Took, pang} = timed(fun() -> call(C, net_adm, ping, ['x@second.example']) end),
    ct:log("pang after ~b ms", [Took]),
    %% Not before it was asked again.
    ?assert(Took > ?SRV_MS div 2, Took),
    ?assert(Took < ?SRV_MS + ?SLACK_MS, Took).

%% Nor for IPv6 addresses, when there is an answer about the other ones.
silent_about_ipv6(_) ->
    Lab = lab(),
    serve(start_on(Lab, a, #{domain => none}), fun(Packet) -> deny_all_but(28, Packet) end),
    ask(Lab, c, a, ""),
    C = start_on(Lab, c, #{}),
    {Took, pang} = timed(fun() -> call(C, net_adm, ping, ['x@second.example']) end),
    ct:log("pang after ~b ms", [Took]),
    ?assert(Took < ?OTHER_FAMILY_MS + ?SLACK_MS, Took).

%% As many lookups as there are helpers of the operating system's resolver, each stuck with a dead
%% server, do not keep another dial waiting.
many_names_of_a_dead_server(_) ->
    Lab = lab(),
    say_nothing(Lab, a),
    ask(Lab, c, a, ""),
    B = start_on(Lab, b, #{host => "b.lab:45001"}),
    C = start_on(Lab, c, #{}),
    Stuck = ['x@stuck1.example', 'x@stuck2.example', 'x@stuck3.example', 'x@stuck4.example', 'x@stuck5.example'],
    {Alone, pang} = timed(fun() -> call(C, net_adm, ping, [hd(Stuck)]) end),
    Callers = [spawn_monitor(fun() -> call(C, net_adm, ping, [Node]) end) || Node <- Stuck],
    timer:sleep(500),
    {Took, pong} = timed(fun() -> call(C, net_adm, ping, [name(B)]) end),
    ct:log("a dead name: pang after ~b ms; beside five of them another node: pong after ~b ms", [Alone, Took]),
    [receive {'DOWN', Monitor, process, _, _} -> ok after ?HANG -> error(hangs) end || {_, Monitor} <- Callers],
    ?assert(Took < Alone div 2, {Took, Alone}).

%%% What macula:diagnose/1 says of DNS

diagnosed(_) ->
    Lab = lab(),
    serve_names(Lab, a, ["--srv-host=_macula._udp.none.example"]),
    ask(Lab, c, a, ""),
    C = start_on(Lab, c, #{}),
    finds(C, 'x@nowhere.example', ["no such host", "how the host is spelt"]),
    finds(C, 'x@none.example', ["no nodes on that host"]),
    say_nothing(Lab, b),
    ask(Lab, c, b, ""),
    finds(C, 'x@nowhere.example', ["No name server answers", "/etc/resolv.conf"]),
    %% No way leads there.
    ask(Lab, c, {192, 0, 2, 53}, ""),
    finds(C, 'x@nowhere.example', ["DNS fails", "/etc/resolv.conf"]),
    ask(Lab, c, none, ""),
    finds(C, 'x@nowhere.example', ["DNS fails", "/etc/resolv.conf"]).

finds(Node, About, Texts) ->
    Findings = call(Node, macula, diagnose, [About]),
    {address, failed, #{text := Text, advice := Advice}} = lists:keyfind(address, 1, Findings),
    ct:log("~ts~n~ts", [Text, Advice]),
    [?assertNotEqual(nomatch, string:find([Text, " ", Advice], Said), {Said, Text, Advice}) || Said <- Texts],
    ?assertEqual([skipped], lists:usort([Result || {Stage, Result, _} <- Findings,
                                                   not lists:member(Stage, [node, name, address])])).

%%% Help

lab() ->
    netlab:start(lan, #{hosts => 3}).

start_on(Lab, Host, Options) ->
    Default = #{domain => longnames, host => atom_to_list(Host) ++ ".lab", within => netlab:within(Lab, Host)},
    start(unique("n"), maps:merge(Default, Options)).

%% A name server on this host, which knows the lab's hosts in its own domain and nothing else.
serve_names(Lab, Host, Options) ->
    Hosts = ["--host-record=" ++ atom_to_list(H) ++ ".example," ++ inet:ntoa(netlab:address(Lab, H)) || H <- netlab:hosts(Lab)],
    [Program | Args] = netlab:within(Lab, Host)
        ++ ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-resolv",
            "--no-hosts", "--local=/#/", "--no-daemon" | Hosts ++ Options],
    Port = open_port({spawn_executable, Program}, [{args, Args}, exit_status, stderr_to_stdout, binary, hide]),
    await_server(Port, <<>>).

await_server(Port, Said) ->
    case binary:match(Said, <<"started">>) of
        nomatch ->
            receive
                {Port, {data, More}} -> await_server(Port, <<Said/binary, More/binary>>);
                {Port, {exit_status, Status}} -> error({dnsmasq, Status, Said})
            after ?HANG -> error({dnsmasq, Said})
            end;
        _ ->
            ok
    end.

%% From now on that host asks this name server: `ip netns exec' shows the file as /etc/resolv.conf.
ask(Lab, Host, Server, More) ->
    {netns, Space} = netlab:netns(Lab, Host),
    File = filename:join(["/etc/netns", filename:basename(Space), "resolv.conf"]),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, [name_server(Lab, Server), More]).

name_server(_, none) -> "";
name_server(_, Ip) when is_tuple(Ip) -> ["nameserver ", inet:ntoa(Ip), "\n"];
name_server(Lab, Host) -> name_server(Lab, netlab:address(Lab, Host)).

%% On that node.
service_of(Node, Host) ->
    call(Node, fun() ->
                   {ok, _} = macula_dist_endpoint:dialling(),
                   ok = macula_nif:srv_lookup(1, list_to_binary(Host), ?SRV_MS),
                   receive {macula_srv, 1, Found} -> Found after ?HANG -> error(hangs) end
               end).

%% A name server that takes questions and answers none.
say_nothing(Lab, Host) ->
    serve(start_on(Lab, Host, #{domain => none}), fun(_) -> none end).

%% One that answers as Fun does. It is up when this returns.
serve(Server, Fun) ->
    _ = macula_test_node:cast(Server, fun() -> answer_as(Fun) end),
    wait_until(fun() -> call(Server, erlang, whereis, [name_server]) =/= undefined end).

answer_as(Fun) ->
    {ok, Socket} = gen_udp:open(53, [binary, {active, true}]),
    register(name_server, self()),
    answer_as(Fun, Socket).

answer_as(Fun, Socket) ->
    receive
        {udp, Socket, Ip, Port, Packet} ->
            case Fun(Packet) of
                none -> ok;
                Answer -> gen_udp:send(Socket, Ip, Port, Answer)
            end,
            answer_as(Fun, Socket)
    end.

%% There is no such host; to a question of that type, nothing.
deny_all_but(Type, <<Id:16, _:16, 1:16, _:48, Rest/binary>>) ->
    Question = question(Rest),
    case binary:part(Question, byte_size(Question), -4) of
        <<Type:16, 1:16>> -> none;
        _ -> <<Id:16, 16#8183:16, 1:16, 0:48, Question/binary>>
    end.

question(<<0, TypeAndClass:4/binary, _/binary>>) -> <<0, TypeAndClass/binary>>;
question(<<N, Label:N/binary, Rest/binary>>) -> <<N, Label/binary, (question(Rest))/binary>>.

timed(Fun) ->
    Before = erlang:monotonic_time(millisecond),
    Result = Fun(),
    {erlang:monotonic_time(millisecond) - Before, Result}.
