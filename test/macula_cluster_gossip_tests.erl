%% The gossip server over real UDP on the loopback interface. Other nodes are played by a socket of
%% the test; real ones are in macula_cluster_SUITE.
-module(macula_cluster_gossip_tests).

-include_lib("eunit/include/eunit.hrl").

-define(GROUP, {230, 1, 1, 251}).
-define(SECRET, <<"the secret of these tests">>).
-define(HANG, 10_000).

gossip_test_() ->
    {foreach, fun setup/0, fun clean_up/1,
     [fun(Socket) -> {atom_to_list(Name), {timeout, 60, fun() -> Test(Socket) end}} end
      || {Name, Test} <- [{life, fun life/1}, {second_start, fun second_start/1}, {bad_options, fun bad_options/1},
                             {port_in_use, fun port_in_use/1}, {discovers, fun discovers/1}, {unicast, fun unicast/1},
                             {goodbye, fun goodbye/1}, {secret, fun secret/1}, {wrong_secret, fun wrong_secret/1},
                             {replay, fun replay/1}, {strict, fun strict/1}, {no_atoms, fun no_atoms/1},
                             {too_many_names, fun too_many_names/1}, {own_name, fun own_name/1},
                             {addresses, fun addresses/1}, {interface_missing, fun interface_missing/1},
                             {hides_secret, fun hides_secret/1}, {environment, fun environment/1},
                             {announces, fun announces/1}, {broadcast_only, fun broadcast_only/1}]]}.

life(_) ->
    {ok, Pid} = start(#{}),
    ?assertEqual(Pid, whereis(macula_cluster_gossip)),
    ?assertEqual([], macula_cluster_gossip:get_discovered()),
    ?assertEqual([], macula_cluster_gossip:get_connected()),
    ?assertEqual([], macula_cluster_gossip:get_discovered(Pid)),
    ?assertEqual([], macula_cluster_gossip:get_connected(Pid)),
    ?assertEqual(ok, macula_cluster_gossip:broadcast_now()),
    ?assertEqual(ok, macula_cluster_gossip:broadcast_now(Pid)),
    ?assertEqual(ok, macula_cluster_gossip:stop()),
    ?assertEqual(undefined, whereis(macula_cluster_gossip)),
    {ok, Again} = start(#{}),
    ?assertEqual(ok, macula_cluster_gossip:stop(Again)).

second_start(_) ->
    {ok, Pid} = start(#{}),
    ?assertEqual({error, {already_started, Pid}}, start(#{})).

bad_options(_) ->
    ?assertEqual({error, {bad_option, prot, {did_you_mean, port}, 1}}, macula_cluster_gossip:start_link(#{prot => 1})),
    ?assertMatch({error, {bad_option, multicast_addr, _, _}}, macula_cluster_gossip:start_link(#{multicast_addr => {1, 2, 3}})).

%% Somebody else has the port to himself.
port_in_use(_) ->
    {ok, Other} = gen_udp:open(0),
    {ok, Port} = inet:port(Other),
    ?assertEqual({error, {socket_open_failed, eaddrinuse}}, start(#{port => Port})),
    ok = gen_udp:close(Other).

%% A plain packet, as any implementation of the format sends it.
discovers(Socket) ->
    {ok, _} = start(#{}),
    say(Socket, <<"MACULA_GOSSIP:one@nowhere.invalid">>),
    say(Socket, <<"MACULA_GOSSIP:two@nowhere.invalid|with a suffix">>),
    await_discovered(['one@nowhere.invalid', 'two@nowhere.invalid']),
    ?assertEqual([], macula_cluster_gossip:get_connected()).

%% What is sent to this host alone counts as well.
unicast(Socket) ->
    {ok, _} = start(#{}),
    ok = gen_udp:send(Socket, {127, 0, 0, 1}, port(), <<"MACULA_GOSSIP:one@nowhere.invalid">>),
    await_discovered(['one@nowhere.invalid']).

goodbye(Socket) ->
    {ok, _} = start(#{}),
    say(Socket, dated('one@nowhere.invalid', hello, 0, none)),
    await_discovered(['one@nowhere.invalid']),
    say(Socket, dated('one@nowhere.invalid', bye, 1, none)),
    await_discovered([]),
    %% What comes right after it was said before it.
    say(Socket, <<"MACULA_GOSSIP:one@nowhere.invalid">>),
    say(Socket, <<"MACULA_GOSSIP:two@nowhere.invalid">>),
    await_discovered(['two@nowhere.invalid']).

%% With a secret, only who has it counts.
secret(Socket) ->
    {ok, _} = start(#{secret => ?SECRET}),
    say(Socket, <<"MACULA_GOSSIP:bad@nowhere.invalid">>),
    say(Socket, macula_gossip_packet:plain(<<"bad@nowhere.invalid">>, <<"other">>)),
    say(Socket, <<"MACULA_GOSSIP:bad@nowhere.invalid|this is no hex, and too short">>),
    say(Socket, macula_gossip_packet:plain(<<"one@nowhere.invalid">>, ?SECRET)),
    say(Socket, dated('two@nowhere.invalid', hello, 0, ?SECRET)),
    await_discovered(['one@nowhere.invalid', 'two@nowhere.invalid']).

%% The documented line, once for many packets.
wrong_secret(Socket) ->
    {ok, _} = start(#{secret => ?SECRET}),
    Lines = macula_test_log:during(
              fun() ->
                      [say(Socket, <<"MACULA_GOSSIP:bad@nowhere.invalid">>) || _ <- lists:seq(1, 100)],
                      say(Socket, macula_gossip_packet:plain(<<"one@nowhere.invalid">>, ?SECRET)),
                      await_discovered(['one@nowhere.invalid'])
              end),
    Line = <<"[macula_cluster_gossip] Invalid HMAC from 127.0.0.1 (authentication failed)">>,
    ?assertMatch([_], [L || L <- Lines, L =:= Line], Lines).

%% A recorded packet counts once; after a goodbye it brings nobody back.
replay(Socket) ->
    {ok, _} = start(#{secret => ?SECRET}),
    Hello = dated('one@nowhere.invalid', hello, 0, ?SECRET),
    Plain = macula_gossip_packet:plain(<<"one@nowhere.invalid">>, ?SECRET),
    say(Socket, Hello),
    await_discovered(['one@nowhere.invalid']),
    say(Socket, dated('one@nowhere.invalid', bye, 1, ?SECRET)),
    await_discovered([]),
    timer:sleep(3_100),
    [say(Socket, Packet) || _ <- lists:seq(1, 10), Packet <- [Hello, Plain]],
    say(Socket, dated('two@nowhere.invalid', hello, 0, ?SECRET)),
    await_discovered(['two@nowhere.invalid']).

%% Under strict, what says no time does not count at all.
strict(Socket) ->
    {ok, _} = start(#{secret => ?SECRET, strict => true}),
    say(Socket, macula_gossip_packet:plain(<<"one@nowhere.invalid">>, ?SECRET)),
    say(Socket, dated('two@nowhere.invalid', hello, -120_000, ?SECRET)),
    say(Socket, dated('three@nowhere.invalid', hello, 0, ?SECRET)),
    await_discovered(['three@nowhere.invalid']).

%% What is not authentic makes no atom, whatever it is.
no_atoms(Socket) ->
    {ok, _} = start(#{secret => ?SECRET}),
    Last = dated('last@nowhere.invalid', hello, 0, ?SECRET),
    Rest = dated('rest@nowhere.invalid', hello, 0, ?SECRET),
    say(Socket, Last),
    await_discovered(['last@nowhere.invalid']),
    Packets = [packet(N) || N <- lists:seq(1, 500)],
    Atoms = erlang:system_info(atom_count),
    %% With a pause now and then: what overflows the kernel's buffer tests nothing.
    [begin say(Socket, Packet), N rem 50 =:= 0 andalso timer:sleep(5) end || {N, Packet} <- lists:enumerate(Packets)],
    say(Socket, Rest),
    await_discovered(['last@nowhere.invalid', 'rest@nowhere.invalid']),
    ?assertEqual(Atoms, erlang:system_info(atom_count)).

packet(N) when N rem 4 =:= 0 -> crypto:strong_rand_bytes(N);
packet(N) when N rem 4 =:= 1 -> <<"MACULA_GOSSIP:forged", (integer_to_binary(N))/binary, "@h|", (crypto:strong_rand_bytes(64))/binary>>;
packet(N) when N rem 4 =:= 2 -> binary:copy(<<"MACULA_GOSSIP:">>, N);
packet(N) -> macula_gossip_packet:plain(<<"forged", (integer_to_binary(N))/binary, "@h">>, <<"guess">>).

%% Without a secret anyone can invent names: they are bounded, and do not push out who is here.
too_many_names(Socket) ->
    {ok, _} = start(#{}),
    Atoms = erlang:system_info(atom_count),
    [begin
         say(Socket, <<"MACULA_GOSSIP:n", (integer_to_binary(N))/binary, "@nowhere.invalid">>),
         N rem 100 =:= 0 andalso timer:sleep(20)
     end || N <- lists:seq(1, 5_000)],
    ?assert(length(macula_cluster_gossip:get_discovered()) =< 1_000),
    ?assert(erlang:system_info(atom_count) - Atoms < 10_500).

own_name(Socket) ->
    macula_test_distribution:with(
      fun() ->
              ok = macula:ensure_distributed(),
              {ok, _} = start(#{}),
              say(Socket, <<"MACULA_GOSSIP:", (atom_to_binary(node()))/binary>>),
              say(Socket, <<"MACULA_GOSSIP:one@nowhere.invalid">>),
              await_discovered(['one@nowhere.invalid'])
      end).

%% Where a node says it is goes to discovery, and from there to the dialler. Without a secret only
%% addresses on our own links count: nobody shall make us call elsewhere.
addresses(Socket) ->
    {ok, Discovery} = macula_dist_discovery:start_link(),
    Address = {127, 0, 0, 77},
    Hello = fun(Node, Secret) -> dated(Node, hello, 0, Secret, #{port => 4711, addresses => [Address, {198, 51, 100, 1}]}) end,
    {ok, Open} = start(#{}),
    say(Socket, Hello('one@nowhere.invalid', none)),
    await_discovered(['one@nowhere.invalid']),
    ?assertEqual([{Address, 4711}, {{127, 0, 0, 1}, 4711}], macula_dist_discovery:addresses('one@nowhere.invalid')),
    ok = macula_cluster_gossip:stop(Open),
    ?assertEqual([], macula_dist_discovery:addresses('one@nowhere.invalid')),
    {ok, _} = start(#{secret => ?SECRET}),
    say(Socket, Hello('two@nowhere.invalid', ?SECRET)),
    await_discovered(['two@nowhere.invalid']),
    ?assertEqual([{Address, 4711}, {{198, 51, 100, 1}, 4711}, {{127, 0, 0, 1}, 4711}],
                 macula_dist_discovery:addresses('two@nowhere.invalid')),
    unlink(Discovery),
    gen_server:stop(Discovery).

%% No such interface: said, and no crash.
interface_missing(_) ->
    Lines = macula_test_log:during(
              fun() ->
                      {ok, _} = start(#{interface => "nosuch0"}),
                      ?assertEqual([], macula_cluster_gossip:get_discovered())
              end),
    ?assertMatch([_], [L || L <- Lines, string:find(L, "there is no interface nosuch0") =/= nomatch], Lines).

%% Neither the state nor the reason of a crash shows the secret.
hides_secret(_) ->
    Lines = macula_test_log:during(
              fun() ->
                      {ok, Pid} = start(#{secret => ?SECRET}),
                      Status = [sys:get_status(P) || P <- [Pid | linked(Pid)]],
                      ?assertEqual(nomatch, string:find(io_lib:format("~0p", [Status]), "the secret of")),
                      unlink(Pid),
                      Monitor = monitor(process, Pid),
                      [exit(P, crash) || P <- linked(Pid)],
                      receive {'DOWN', Monitor, process, Pid, _} -> ok end
              end),
    ?assertEqual([], [L || L <- Lines, string:find(L, "the secret of") =/= nomatch]).

linked(Pid) ->
    {links, Links} = process_info(Pid, links),
    [P || P <- Links, is_pid(P), P =/= self()].

environment(Socket) ->
    os:putenv("MACULA_GOSSIP_SECRET", binary_to_list(?SECRET)),
    os:putenv("MACULA_GOSSIP_PORT", integer_to_list(port())),
    os:putenv("MACULA_GOSSIP_ADDR", "230.1.1.251"),
    try
        {ok, _} = macula_cluster_gossip:start_link(#{interface => "lo"}),
        say(Socket, <<"MACULA_GOSSIP:bad@nowhere.invalid">>),
        say(Socket, macula_gossip_packet:plain(<<"one@nowhere.invalid">>, ?SECRET)),
        await_discovered(['one@nowhere.invalid'])
    after
        [os:unsetenv(Name) || Name <- ["MACULA_GOSSIP_SECRET", "MACULA_GOSSIP_PORT", "MACULA_GOSSIP_ADDR"]]
    end.

%% What goes out: first with time, then plain and exactly in the documented format; nothing plain
%% under strict; at last a goodbye when the node leaves.
announces(_) ->
    macula_test_distribution:with(
      fun() ->
              ok = macula:ensure_distributed(),
              Name = atom_to_binary(node()),
              Ears = ears(),
              {ok, Pid} = start(#{secret => ?SECRET}),
              Plain = macula_gossip_packet:plain(Name, ?SECRET),
              [Dated, Plain | _] = heard(Ears, 2),
              ?assertMatch({ok, #{form := dated, kind := hello, name := Name}}, macula_gossip_packet:decode(Dated, ?SECRET)),
              ok = macula_cluster_gossip:stop(Pid),
              _ = drain(Ears),
              {ok, Strict} = start(#{secret => ?SECRET, strict => true}),
              ok = macula_cluster_gossip:broadcast_now(),
              Packets = heard(Ears, 2),
              [?assertMatch({ok, #{form := dated}}, macula_gossip_packet:decode(Packet, ?SECRET)) || Packet <- Packets],
              _ = drain(Ears),
              unlink(Strict),
              gen_server:stop(Strict, {shutdown, leave}, infinity),
              ?assertEqual([bye], lists:usort([Kind || Packet <- heard(Ears, 3),
                                                       {ok, #{kind := Kind}} <- [macula_gossip_packet:decode(Packet, ?SECRET)],
                                                       Kind =:= bye]))
      end).

%% Nothing is sent to a group, and none is joined.
broadcast_only(Socket) ->
    Ears = ears(),
    {ok, _} = start(#{broadcast_only => true}),
    ok = macula_cluster_gossip:broadcast_now(),
    ?assertEqual([], drain(Ears)),
    ok = gen_udp:close(Ears),
    ok = gen_udp:send(Socket, {127, 0, 0, 1}, port(), <<"MACULA_GOSSIP:one@nowhere.invalid">>),
    await_discovered(['one@nowhere.invalid']).

%%% Help

%% A port of this run's own, and a socket that says what peers would.
setup() ->
    {ok, Socket} = gen_udp:open(0, [binary, {active, false}, {multicast_if, {127, 0, 0, 1}}, {multicast_loop, true}]),
    {ok, Free} = gen_udp:open(0),
    {ok, Port} = inet:port(Free),
    ok = gen_udp:close(Free),
    persistent_term:put(?MODULE, Port),
    Socket.

clean_up(Socket) ->
    case whereis(macula_cluster_gossip) of
        undefined ->
            ok;
        Pid ->
            Monitor = monitor(process, Pid),
            unlink(Pid),
            exit(Pid, shutdown),
            receive {'DOWN', Monitor, process, Pid, _} -> ok end
    end,
    gen_udp:close(Socket).

%% A socket that hears what peers would.
ears() ->
    Options = [binary, {active, false}, {reuseaddr, true}, {add_membership, {?GROUP, {127, 0, 0, 1}}}],
    {ok, Ears} = gen_udp:open(port(), Options ++ [{raw, 1, 15, <<1:32/native>>} || {unix, linux} =:= os:type()]),
    Ears.

port() -> persistent_term:get(?MODULE).

%% By itself each announcement would take 1.5 s; nothing here waits for the second one.
start(Options) ->
    process_flag(trap_exit, true),
    macula_cluster_gossip:start_link(maps:merge(#{port => port(), interface => "lo"}, Options)).

say(Socket, Packet) ->
    ok = gen_udp:send(Socket, ?GROUP, port(), Packet).

dated(Node, Kind, Offset, Secret) ->
    dated(Node, Kind, Offset, Secret, #{}).

dated(Node, Kind, Offset, Secret, More) ->
    macula_gossip_packet:dated(More#{name => atom_to_binary(Node), form => dated, kind => Kind,
                                     time => erlang:system_time(millisecond) + Offset}, Secret).

await_discovered(Nodes) ->
    await_discovered(Nodes, erlang:monotonic_time(millisecond) + ?HANG).

await_discovered(Nodes, Deadline) ->
    case lists:sort(macula_cluster_gossip:get_discovered()) =:= lists:sort(Nodes) of
        true -> ok;
        false ->
            erlang:monotonic_time(millisecond) < Deadline
                orelse error({expected, Nodes, found, macula_cluster_gossip:get_discovered()}),
            timer:sleep(5),
            await_discovered(Nodes, Deadline)
    end.

heard(Ears, Count) ->
    [begin {ok, {_, _, Packet}} = gen_udp:recv(Ears, 0, ?HANG), Packet end || _ <- lists:seq(1, Count)].

%% All that was heard so far.
drain(Ears) ->
    case gen_udp:recv(Ears, 0, 100) of
        {ok, {_, _, Packet}} -> [Packet | drain(Ears)];
        {error, timeout} -> []
    end.
