%% Nodes under fire: two of them work while an attacker, in a network of his own behind the same node,
%% sends it what he likes under whatever addresses he likes. The attacker is `examples/flood' of
%% macula_net; he and the nodes live in network namespaces that are made here.
-module(macula_flood_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-export([flood/1, half_open_forged/1, half_open_real/1, forged_reports/1,
         dialling_beside_forged_reports/1]).

-import(macula_test_node, [start/2, call/2, call/3, call/4, name/1, connect/2, wait_until/1, unique/1, full/2]).

%% The victim's addresses towards the good node and the attacker, and theirs. The attacker forges
%% sources of a /16 that is routed to him.
-define(VICTIM, "10.203.0.1").
-define(GOOD, "10.203.0.2").
-define(VICTIM_X, "10.204.0.1").
-define(ATTACKER, "10.204.0.2").
-define(FORGED, "10.205.0.0").

%% Where nodes listen that are told nothing else, and a port where nothing does.
-define(PORT, 4433).
-define(CLOSED_PORT, 4999).

-define(RATE, 20_000).
-define(HALF_OPEN, 2_000).

%% What the product promises under fire.
-define(THROUGHPUT, 0.8).
-define(GROWTH_KB, 20 * 1024).
-define(CONNECT_MS, 1_000).

-define(MESSAGE_BYTES, 4_096).
-define(WINDOW, 1_024).
-define(ACK_EVERY, 64).
-define(HANG, 60_000).

suite() ->
    [{timetrap, {minutes, 6}}].

all() ->
    [flood, half_open_forged, half_open_real, forged_reports,
     dialling_beside_forged_reports].

init_per_suite(Config) ->
    case os:cmd("id -u") of
        "0\n" -> Config;
        _ -> {skip, "network namespaces and raw sockets take root"}
    end.

end_per_suite(_) ->
    ok.

init_per_testcase(_, Config) ->
    remove_stale(),
    [{net, make_net()} | Config].

end_per_testcase(_, Config) ->
    macula_test_node:stop_all(),
    remove_net(proplists:get_value(net, Config)).

%%% Cases

%% Checked messages flow while packets of all kinds hit the port of their receiver; the same packets
%% at a closed port, before and after, are the yardstick.
flood(Config) ->
    {A, B} = {good_node("a", Config), victim_node(Config)},
    Recorded = filename:join(proplists:get_value(priv_dir, Config), "recorded"),
    Record = attack(good, ["record", integer_to_list(?PORT), "400", "20", Recorded], Config),
    connect(A, B),
    Talk = talk(A, name(B)),
    ct:log("~ts", [ended(Record)]),
    Seconds = full(60, 6),
    Rss = watch_rss(B),
    Phases = [phase(Name, Port, Time, Recorded, {B, Rss}, Config)
              || {Name, Port, Time} <- [{before, ?CLOSED_PORT, Seconds div 2},
                                        {fire, ?PORT, Seconds},
                                        {later, ?CLOSED_PORT, Seconds div 2}]],
    Messages = stop_talk(Talk),
    Stats = call(B, macula_dist_endpoint, stats, []),
    [#{rate := Before, rss := Rss0}, #{rate := Fire, rss := Rss1}, #{rate := Later}] = Phases,
    Ratio = 2 * Fire / (Before + Later),
    [ct:pal("~0p", [Phase]) || Phase <- Phases],
    ct:pal("throughput ~.2f of that with the fire at a closed port, memory up ~b kB, ~b messages~n~0p",
           [Ratio, Rss1 - Rss0, Messages, Stats]),
    ?assert(Rss1 - Rss0 =< ?GROWTH_KB),
    ?assert(Ratio >= ?THROUGHPUT).

%% Handshakes begun from addresses that nobody has.
half_open_forged(Config) ->
    half_open("forged", Config).

%% The same from addresses that receive, so that each stranger can show that he is there.
half_open_real(Config) ->
    half_open("real", Config).

half_open(Kind, Config) ->
    B = victim_node(Config),
    Quiet = connect_times(good_node("quiet", Config), name(B)),
    Seconds = full(30, 12),
    Attack = attack(attacker, ["half-open", address(?VICTIM_X, ?PORT), ?FORGED, integer_to_list(?HALF_OPEN),
                               integer_to_list(Seconds), Kind], Config),
    %% Until he has begun them all.
    _ = macula_test_tool:heard(Attack, ?HANG),
    Times = connect_times(good_node("good", Config), name(B)),
    Stats = call(B, macula_dist_endpoint, stats, []),
    ct:pal("~ts, ~b half-open handshakes: connecting took ~w ms, without them ~w ms~n~0p",
           [Kind, ?HALF_OPEN, Times, Quiet, Stats]),
    ct:log("~ts", [ended(Attack)]),
    ?assert(lists:max(Times) =< ?CONNECT_MS + lists:max(Quiet)).

%% Reports, which anybody can forge, that the peer's port is closed: an idle link to a peer that is
%% alive survives them.
forged_reports(Config) ->
    {A, B} = {good_node("a", Config), victim_node(Config)},
    connect(A, B),
    NodeA = name(A),
    Attack = attack(attacker, ["unreachable", address(?VICTIM, ?PORT), address(?GOOD, ?PORT), "20",
                               integer_to_list(full(30, 8))], Config),
    Watch = call(B, fun() ->
                        spawn(fun() -> true = monitor_node(NodeA, true), register(watch, self()),
                                       receive {nodedown, NodeA} -> exit(down) end
                              end)
                    end),
    ct:log("~ts", [ended(Attack)]),
    #{unreachable := Reports} = call(B, macula_dist_endpoint, stats, []),
    ct:log("~b reports arrived", [Reports]),
    %% Each was read, or this would show nothing.
    ?assert(Reports > 20),
    ?assert(call(B, erlang, is_process_alive, [Watch])),
    ?assertEqual([NodeA], call(B, erlang, nodes, [])).

%% The same while the peer is dialled: it answers, and that counts.
dialling_beside_forged_reports(Config) ->
    {A, B} = {good_node("a", Config), victim_node(Config)},
    Attack = attack(attacker, ["unreachable", address(?VICTIM, ?PORT), address(?GOOD, ?PORT), "200", "5"], Config),
    %% Until the reports arrive.
    wait_until(fun() -> maps:get(unreachable, call(B, macula_dist_endpoint, stats, [])) > 10 end),
    Times = connect_times(B, name(A)),
    ct:pal("connecting took ~w ms", [Times]),
    _ = ended(Attack).

%% The first time a node meets another, and some later ones.
connect_times(Server, Node) ->
    [connect_time(Server, Node) || _ <- lists:seq(1, 10)].

connect_time(Server, Node) ->
    Before = erlang:monotonic_time(millisecond),
    ?assertEqual(pong, call(Server, net_adm, ping, [Node])),
    Time = erlang:monotonic_time(millisecond) - Before,
    true = call(Server, erlang, disconnect_node, [Node]),
    wait_until(fun() -> call(Server, erlang, nodes, [connected]) =:= [] end),
    Time.

%%% The talk: numbered messages with a sum over their content, in a window

talk(A, Node) ->
    Self = self(),
    Body = rand:bytes(?MESSAGE_BYTES),
    Caller = spawn_link(fun() -> Self ! {self(), call(A, fun() -> sender(Node, Body) end, infinity)} end),
    wait_until(fun() -> call(A, erlang, whereis, [flood_sender]) =/= undefined end),
    {Caller, A}.

stop_talk({Caller, A}) ->
    call(A, fun() -> flood_sender ! stop end),
    receive
        {Caller, {ok, Messages}} -> Messages
    after ?HANG -> error(the_talk_hangs)
    end.

sender(Node, Body) ->
    Self = self(),
    Receiver = spawn_link(Node, fun() -> receiver(Self) end),
    receive {Receiver, ready} -> ok end,
    register(flood_sender, self()),
    send(Receiver, Body, 0, 0).

send(Receiver, Body, Sent, Acked) when Sent - Acked < ?WINDOW ->
    receive
        {acked, Count} ->
            send(Receiver, Body, Sent, Count);
        stop ->
            Receiver ! {finish, Sent},
            finished(Receiver)
    after 0 ->
        Data = <<Sent:64, Body/binary>>,
        Receiver ! {Sent, erlang:crc32(Data), Data},
        send(Receiver, Body, Sent + 1, Acked)
    end;
send(Receiver, Body, Sent, _) ->
    receive {acked, Count} -> send(Receiver, Body, Sent, Count) end.

finished(Receiver) ->
    receive
        {acked, _} -> finished(Receiver);
        {Receiver, finished, Count} -> {ok, Count}
    after ?HANG -> error(messages_are_missing)
    end.

receiver(Sender) ->
    Counter = counters:new(1, []),
    persistent_term:put(?MODULE, Counter),
    Sender ! {self(), ready},
    receive_all(Sender, 0, Counter).

receive_all(Sender, Next, Counter) ->
    receive
        {finish, Next} ->
            Sender ! {self(), finished, Next};
        {Next, Sum, Data} ->
            Sum = erlang:crc32(Data),
            counters:add(Counter, 1, 1),
            (Next + 1) rem ?ACK_EVERY =:= 0 andalso (Sender ! {acked, Next + 1}),
            receive_all(Sender, Next + 1, Counter);
        Other ->
            %% One that is lost, doubled or out of order.
            error({not_the_next, Next, Other})
    end.

received(B) ->
    call(B, fun() -> counters:get(persistent_term:get(?MODULE), 1) end).

%%% Phases

%% Messages a second while the fire is at that port, and the most memory the node had.
phase(Name, Port, Seconds, Recorded, {B, Rss}, Config) ->
    _ = most_rss(Rss),
    Attack = attack(attacker, ["fire", address(?VICTIM_X, Port), ?FORGED, integer_to_list(?RATE),
                               integer_to_list(Seconds), Recorded], Config),
    {From, Then} = {received(B), erlang:monotonic_time(millisecond)},
    Said = ended(Attack),
    {To, Now} = {received(B), erlang:monotonic_time(millisecond)},
    {match, [Sent, Ms]} = re:run(Said, "sent ([0-9]+) in ([0-9]+) ms", [{capture, all_but_first, list}]),
    ?assert(list_to_integer(Sent) * 1_000 >= 0.9 * ?RATE * list_to_integer(Ms), Said),
    #{phase => Name, rate => (To - From) * 1_000 / (Now - Then), rss => most_rss(Rss), said => Said}.

%% The operating system's own view of the node's memory.
watch_rss(B) ->
    OsPid = macula_test_node:os_pid(B),
    spawn_link(fun() -> watch_rss(OsPid, 0) end).

watch_rss(OsPid, Most) ->
    receive
        {Pid, Ref, most} ->
            Pid ! {Ref, Most},
            watch_rss(OsPid, 0)
    after 100 ->
        case macula_test_node:os_status(integer_to_list(OsPid), "VmRSS") of
            {ok, Kb} ->
                watch_rss(OsPid, max(Most, Kb));
            {error, gone} ->
                %% It has ended, and so has the test.
                ok
        end
    end.

most_rss(Watcher) ->
    Ref = make_ref(),
    Watcher ! {self(), Ref, most},
    receive {Ref, Most} -> Most end.

%%% The attacker

attack(Where, Args, Config) ->
    macula_test_tool:start(maps:get(Where, proplists:get_value(net, Config)), "flood", Args).

ended(Attack) ->
    macula_test_tool:ended(Attack, 2 * ?HANG).

address(Ip, Port) ->
    Ip ++ ":" ++ integer_to_list(Port).

%%% The network: a good node and an attacker, each on a wire of its own to the victim

good_node(Name, Config) ->
    node_in(good, Name, ?GOOD, Config).

victim_node(Config) ->
    node_in(victim, "b", ?VICTIM, Config).

node_in(Where, Name, Ip, Config) ->
    Netns = maps:get(Where, proplists:get_value(net, Config)),
    start(unique(Name), #{within => [os:find_executable("ip"), "netns", "exec", Netns], domain => longnames, host => Ip}).

make_net() ->
    Prefix = "mfl" ++ os:getpid(),
    Net = #{victim := V, good := G, attacker := X} =
        #{victim => Prefix ++ "v", good => Prefix ++ "g", attacker => Prefix ++ "x"},
    [ip(["netns add ", Netns]) || Netns <- maps:values(Net)],
    [ip(["-n ", Netns, " link set lo up"]) || Netns <- maps:values(Net)],
    wire(V, "good", ?VICTIM, G, ?GOOD),
    wire(V, "attacker", ?VICTIM_X, X, ?ATTACKER),
    ip(["-n ", G, " route add default via ", ?VICTIM]),
    ip(["-n ", X, " route add default via ", ?VICTIM_X]),
    ip(["-n ", V, " route add ", ?FORGED, "/16 via ", ?ATTACKER]),
    %% All of it is his: he gets what is sent there, and may bind to it.
    ip(["-n ", X, " route add local ", ?FORGED, "/16 dev lo"]),
    Net.

wire(V, Name, IpV, Other, Ip) ->
    ip(["-n ", V, " link add ", Name, " type veth peer name victim netns ", Other]),
    ip(["-n ", V, " address add ", IpV, "/24 dev ", Name]),
    ip(["-n ", Other, " address add ", Ip, "/24 dev victim"]),
    ip(["-n ", V, " link set ", Name, " up"]),
    ip(["-n ", Other, " link set victim up"]).

remove_net(Net) ->
    [ip(["netns delete ", Netns]) || Netns <- maps:values(Net)],
    ok.

%% What an earlier run left that was killed.
remove_stale() ->
    [ip(["netns delete ", Name])
     || Name <- string:lexemes(os:cmd("ls /run/netns 2>/dev/null"), "\n"),
        {match, [Pid]} <- [re:run(Name, "^mfl([0-9]+)[vgx]$", [{capture, all_but_first, list}])],
        not filelib:is_dir("/proc/" ++ Pid) orelse Pid =:= os:getpid()].

ip(Args) ->
    case os:cmd("ip " ++ lists:flatten(Args)) of
        "" -> ok;
        Said -> error({ip, lists:flatten(Args), Said})
    end.
