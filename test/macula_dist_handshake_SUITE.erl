%% OTP's handshake, spoken to a node by a client of ours that proved the cookie and then says what no
%% node would. The hello before it is tested natively.
-module(macula_dist_handshake_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/dist.hrl").

-export([suite/0, all/0, end_per_testcase/2]).
-export([spoken_by_hand/1, senders_untold/1, wrong_digest/1, missing_flags/1, digest_of_flags/1, other_name/1,
         garbage/1, silence/1, connected_already/1, calls_crossing/1]).

-import(macula_test_node, [call/2, call/4, name/1, wait_until/1, unique/1]).

-define(HANG, 30_000).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [spoken_by_hand, senders_untold, wrong_digest, missing_flags, digest_of_flags, other_name, garbage, silence,
     connected_already, calls_crossing].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%% Spoken as it should be, it makes a connection, which ends with the link.
spoken_by_hand(_) ->
    {Node, Client, Place} = node_and_client(),
    ok = on(Client, first, fun() -> connect_by_hand(Place) end),
    wait_until(fun() -> is_connected(Node, Place) end),
    ok = let_go(Client, first),
    wait_until(fun() -> not is_connected(Node, Place) end).

%% A peer to which messages do not tell their sender is none to refuse: it gets them in order, too. It has no atom cache, so
%% that its frames can be read here.
senders_untold(_) ->
    {Node, Client, #{own := Own, target := Target} = Place} = node_and_client(),
    Numbers = lists:seq(1, 100),
    _ = macula_test_node:cast(Node, fun() ->
                                        wait_until(fun() -> lists:member(list_to_atom(Own), nodes(connected)) end),
                                        Pid = pid(Own),
                                        [Pid ! Number || Number <- Numbers]
                                    end),
    ?assertEqual(Numbers,
                 on(Client, first, fun() ->
                                       Unknown = ?DFLAG_SEND_SENDER bor ?DFLAG_DIST_HDR_ATOM_CACHE,
                                       Link = connected_by_hand(Place, flags() band bnot Unknown),
                                       ok = macula_nif:link_established(Link, list_to_binary(Target), self()),
                                       untold(Link, length(Numbers))
                                   end)).

%% A process of the client, as the node sees it.
pid(Own) ->
    binary_to_term(<<131, 88, 119, (length(Own)), (list_to_binary(Own))/binary, 80:32, 0:32, 1:32>>).

%% The numbers sent by `{2, '', Pid}', which has a cookie where others have a sender.
untold(_, 0) ->
    [];
untold(Link, Count) ->
    Id = macula_nif:link_id(Link),
    receive
        {macula_link, Id, readable} ->
            Numbers = [binary:last(Frame) || <<131, $D, 0, 104, 3, 97, 2, 119, 0, _/binary>> = Frame <- received(Link)],
            Numbers ++ untold(Link, Count - length(Numbers))
    after ?HANG -> error({missing, Count})
    end.

received(Link) ->
    case macula_nif:link_receive(Link) of
        {Frames, _, more} -> Frames ++ received(Link);
        {Frames, _, none} -> Frames
    end.

%% Who has the cookie for the hello but not for OTP gets no connection.
wrong_digest(_) ->
    {Node, Client, Place} = node_and_client(),
    ?assertEqual(closed,
                 on(Client, first, fun() ->
                                       Link = dialled(Place),
                                       ok = say_name(Link, Place),
                                       {ok, "sok"} = hear(Link),
                                       {ok, [$N | _]} = hear(Link),
                                       ok = say(Link, [$r, <<1:32>>, crypto:strong_rand_bytes(16)]),
                                       hear(Link)
                               end)),
    ?assertNot(is_connected(Node, Place)).

%% Each flag that a node must have is missed.
missing_flags(_) ->
    {Node, Client, Place} = node_and_client(),
    Mandatory = element(3, call(Node, erts_internal, get_dflags, [])),
    Answers = [on(Client, first, fun() ->
                                     Link = dialled(Place),
                                     Flags = flags() band bnot ?DFLAG_MANDATORY_25_DIGEST,
                                     ok = say_name(Link, Place, Flags band bnot Flag),
                                     [hear(Link), hear(Link)]
                             end) || Flag <- bits(Mandatory)],
    ?assertEqual([[{ok, "snot_allowed"}, closed]], lists:usort(Answers)),
    ?assertNot(is_connected(Node, Place)).

%% Except that one flag of OTP 25 stands for all that were mandatory then.
digest_of_flags(_) ->
    {_, Client, Place} = node_and_client(),
    ?assertEqual({ok, "sok"},
                 on(Client, first, fun() ->
                                       Link = dialled(Place),
                                       Flags = flags() band bnot ?MANDATORY_DFLAGS_25,
                                       ok = say_name(Link, Place, Flags bor ?DFLAG_MANDATORY_25_DIGEST),
                                       hear(Link)
                               end)).

%% Nobody proves one name in the hello and goes by another afterwards.
other_name(_) ->
    {Node, Client, Place} = node_and_client(),
    ?assertEqual([{ok, "snot_allowed"}, closed],
                 on(Client, first, fun() ->
                                       Link = dialled(Place),
                                       ok = say_name(Link, Place#{own := "another@localhost"}),
                                       [hear(Link), hear(Link)]
                               end)),
    ?assertEqual([], call(Node, erlang, nodes, [connected])).

%% What is no name ends the link, and nothing else.
garbage(_) ->
    {Node, Client, Place} = node_and_client(),
    Garbage = [<<>>, <<"x">>, <<"N">>, binary:copy(<<255>>, 65_535),
               name_packet(flags(), <<"no_at_sign">>), name_packet(flags(), <<"@">>),
               name_packet(flags(), <<>>), name_packet(flags(), <<"a@b@c">>),
               name_packet(flags(), binary:copy(<<"n">>, 60_000)),
               <<$N, (flags()):64, 1:32, 65_535:16, "short@localhost">>,
               <<"n", 5:16, 0:32, "old@localhost">>],
    Answers = [on(Client, first, fun() ->
                                     Link = dialled(Place),
                                     ok = say(Link, Packet),
                                     until_closed(Link)
                             end) || Packet <- Garbage],
    ?assertEqual([closed], lists:usort(Answers)),
    ?assertEqual([], call(Node, erlang, nodes, [connected])),
    ok = on(Client, first, fun() -> connect_by_hand(Place) end),
    wait_until(fun() -> is_connected(Node, Place) end).

%% Who says nothing is let go when the setup time is over.
silence(_) ->
    {Node, Client, Place} = node_and_client(["-kernel", "net_setuptime", "1"]),
    ?assertEqual(closed, on(Client, first, fun() -> hear(dialled(Place)) end)),
    ?assertEqual([], call(Node, erlang, nodes, [connected])).

%% A second connection of the same node is questioned, and takes over when the first one goes.
connected_already(_) ->
    {Node, Client, #{own := Own} = Place} = node_and_client(),
    %% One endpoint for both: another would be another life of the node.
    ok = on(Client, endpoint, fun() -> {ok, E} = open(Own), persistent_term:put(endpoint, E) end),
    Again = fun() ->
                Link = dialled(persistent_term:get(endpoint), Place),
                ok = say_name(Link, Place),
                {hear(Link), Link}
            end,
    ok = on(Client, first, fun() ->
                               {{ok, "sok"}, Link} = Again(),
                               {ok, Challenge} = hear(Link),
                               prove(Link, Challenge, Place)
                           end),
    wait_until(fun() -> is_connected(Node, Place) end),
    ?assertEqual(closed, on(Client, second, fun() ->
                                                {{ok, "salive"}, Link} = Again(),
                                                ok = say(Link, "sfalse"),
                                                hear(Link)
                                            end)),
    ?assert(is_connected(Node, Place)),
    ok = on(Client, second, fun() ->
                                {{ok, "salive"}, Link} = Again(),
                                ok = say(Link, "strue"),
                                {ok, Challenge} = hear(Link),
                                ok = release(first),
                                prove(Link, Challenge, Place)
                            end),
    wait_until(fun() -> is_connected(Node, Place) end),
    ok = let_go(Client, second),
    wait_until(fun() -> not is_connected(Node, Place) end).

%% Two nodes call each other at once: the call of the greater name counts.
calls_crossing(_) ->
    {Node, Client, Place} = node_and_client(),
    ?assertEqual({ok, "snok"}, crossing(Node, Client, Place, "a_lesser")),
    ?assertEqual({ok, "sok_simultaneous"}, crossing(Node, Client, Place, "z_greater")).

%% What the node answers to the name of a client that it is calling itself.
crossing(Node, Client, Place, Own) ->
    Port = on(Client, waiting, fun() -> await_call(Own, Place) end),
    Name = Own ++ "@localhost:" ++ integer_to_list(Port),
    _ = macula_test_node:cast(Node, net_kernel, connect_node, [list_to_atom(Name)]),
    Answer = on(Client, first, fun() ->
                                   Endpoint = called(),
                                   Link = dialled(Endpoint, Place#{own := Name}),
                                   ok = say_name(Link, Place#{own := Name}),
                                   hear(Link)
                           end),
    ok = let_go(Client, first),
    ok = let_go(Client, waiting),
    Answer.

%%% The client, on a VM without distribution

%% A node, the client's VM, and what the client must know: where the node is and what both are called.
node_and_client() ->
    node_and_client([]).

node_and_client(Args) ->
    Port = macula_test_node:free_port(),
    Node = macula_test_node:start(unique("b"), #{args => Args,
                                                 env => [{"MACULA_DIST_PORT", integer_to_list(Port)}]}),
    Client = macula_test_node:start(unique("client"), #{domain => none}),
    {Node, Client, #{port => Port, target => atom_to_list(name(Node)), own => "client@localhost",
                     cookie => macula_test_node:cookie()}}.

is_connected(Node, #{own := Own}) ->
    lists:member(list_to_atom(Own), call(Node, erlang, nodes, [connected])).

%% Runs Fun on the client's VM, in a process of that name, which then keeps its links until let go.
on(Client, Name, Fun) ->
    call(Client, fun() -> hold(Name, Fun) end).

hold(Name, Fun) ->
    release(Name),
    Self = self(),
    {Holder, Monitor} = spawn_monitor(fun() ->
                                          true = register(Name, self()),
                                          Self ! {self(), Fun()},
                                          receive after infinity -> ok end
                                      end),
    receive
        {Holder, Result} -> Result;
        {'DOWN', Monitor, process, Holder, Reason} -> error(Reason)
    end.

let_go(Client, Name) ->
    call(Client, fun() -> release(Name) end).

release(Name) ->
    case whereis(Name) of
        undefined -> ok;
        Pid ->
            Monitor = monitor(process, Pid),
            exit(Pid, kill),
            receive
                {'DOWN', Monitor, process, Pid, _} -> ok
            end
    end.

%% A link to the node, over which nothing has been said but the hello.
dialled(#{own := Own} = Place) ->
    {ok, Endpoint} = open(Own),
    dialled(Endpoint, Place).

dialled(Endpoint, #{port := Port, target := Target, own := Own, cookie := Cookie}) ->
    {ok, _} = macula_nif:dial(Endpoint, #{id => 1, addresses => [{{127, 0, 0, 1}, Port}],
                                          target => list_to_binary(Target),
                                          name => list_to_binary(Own),
                                          cookie => list_to_binary(Cookie), timeout => ?HANG}),
    receive
        {macula_dial, 1, {ok, Link}} ->
            ok = macula_nif:link_own(Link, owner()),
            put({endpoint, Link}, Endpoint),
            Link
    after ?HANG -> error(no_link)
    end.

%% A link tells its owner that it is closed as soon as it is, and who asked for a packet only after the
%% packets that came before. As in a node, these are two processes; they end together.
owner() ->
    spawn_link(fun() -> receive after infinity -> ok end end).

open(Own) ->
    macula_nif:endpoint_open(#{owner => self(), ip => {127, 0, 0, 1}, ports => [0], threads => 1,
                               name => list_to_binary(Own), home => undefined, authorities => undefined,
                               certificate => undefined, registry => undefined, well_known_port => undefined,
                               dist_streams => 64, link_memory => 4 bsl 20, congestion => cubic}).

%% An endpoint that the node can call; its name has its port in it.
await_call(Own, Place) ->
    Self = self(),
    _ = spawn_link(fun() ->
                       true = register(called, self()),
                       {ok, Endpoint} = open(Own),
                       {_, Port} = macula_nif:endpoint_address(Endpoint),
                       Name = Own ++ "@localhost:" ++ integer_to_list(Port),
                       ok = macula_nif:endpoint_rename(Endpoint, list_to_binary(Name)),
                       ok = macula_nif:endpoint_accept(Endpoint, self()),
                       Self ! {port, Port},
                       serve(Endpoint, Place, none)
                   end),
    receive
        {port, Port} -> Port
    end.

%% The node's call is accepted, and then hears nothing.
serve(Endpoint, #{cookie := Cookie} = Place, Kept) ->
    receive
        {macula_cookie, Question, _} ->
            ok = macula_nif:endpoint_cookie(Endpoint, Question, list_to_binary(Cookie)),
            serve(Endpoint, Place, Kept);
        {macula_accept, Link, _} ->
            ok = macula_nif:link_own(Link, self()),
            receive
                {called, Asker} -> Asker ! {called, Endpoint}
            end,
            serve(Endpoint, Place, Link)
    end.

called() ->
    called ! {called, self()},
    receive
        {called, Endpoint} -> Endpoint
    after ?HANG -> error(nobody_called)
    end.

connect_by_hand(Place) ->
    _ = connected_by_hand(Place, flags()),
    ok.

connected_by_hand(Place, Flags) ->
    Link = dialled(Place),
    ok = say_name(Link, Place, Flags),
    {ok, "sok"} = hear(Link),
    {ok, Challenge} = hear(Link),
    ok = prove(Link, Challenge, Place),
    Link.

prove(Link, [$N | Rest], #{cookie := Cookie}) ->
    <<_Flags:64, Challenge:32, _/binary>> = list_to_binary(Rest),
    ok = say(Link, [$r, <<1:32>>, digest(Challenge, Cookie)]),
    Own = digest(1, Cookie),
    {ok, [$a | Theirs]} = hear(Link),
    Own = list_to_binary(Theirs),
    ok.

digest(Challenge, Cookie) ->
    erlang:md5([Cookie, integer_to_list(Challenge)]).

say_name(Link, Place) ->
    say_name(Link, Place, flags()).

say_name(Link, #{own := Own}, Flags) ->
    say(Link, name_packet(Flags, list_to_binary(Own))).

name_packet(Flags, Name) ->
    <<$N, Flags:64, 1:32, (byte_size(Name)):16, Name/binary>>.

flags() ->
    element(2, erts_internal:get_dflags()).

bits(Flags) ->
    [1 bsl Bit || Bit <- lists:seq(0, 63), Flags band (1 bsl Bit) =/= 0].

say(Link, Packet) ->
    macula_nif:link_send_packet(Link, Packet).

hear(Link) ->
    Id = macula_nif:link_id(Link),
    ok = macula_nif:link_recv_packet(Link),
    receive
        {macula_link, Id, {packet, Packet}} -> {ok, binary_to_list(Packet)};
        {macula_link, Id, {closed, _}} -> closed
    after ?HANG -> error(says_nothing)
    end.

until_closed(Link) ->
    case hear(Link) of
        closed -> closed;
        {ok, _} -> until_closed(Link)
    end.
