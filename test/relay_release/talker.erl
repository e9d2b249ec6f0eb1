%% A node of the test: it joins, says how it stands with its relays, and calls another one again and again.
-module(talker).

-export([start/1]).

-define(LOOK_MS, 50).
-define(CALL_MS, 15_000).

start([Relays, Token, Authorities | Peer]) ->
    spawn(fun() -> run(string:lexemes(atom_to_list(Relays), ","), atom_to_binary(Token), Authorities, Peer) end).

run(Relays, Token, Authorities, Peer) ->
    true = os:putenv("MACULA_DIST_MODE", "relay"),
    Options = #{relays => Relays, realm => <<"shop">>, token => Token, tls_verify => verify_peer,
                cacertfile => atom_to_list(Authorities)},
    joined(Options),
    spawn(fun() -> watch(#{}) end),
    ok = net_kernel:monitor_nodes(true),
    [talk(Node) || Node <- Peer, Node =/= none].

%% The relay may be about to notice its certificate.
joined(Options) ->
    case macula:join_mesh(Options) of
        ok -> say("joined", []);
        {error, Reason} ->
            say("not joined: ~tp", [Reason]),
            timer:sleep(1_000),
            joined(Options)
    end.

watch(Before) ->
    Now = maps:from_list([{Url, state(State)} || {Url, State} <- macula:relays()]),
    [say("~s ~ts", [State, Url]) || {Url, State} <- maps:to_list(Now), maps:get(Url, Before, none) =/= State],
    timer:sleep(?LOOK_MS),
    watch(Now).

state({State, _}) -> State;
state(State) -> State.

talk(Node) ->
    receive
        {nodedown, Node} -> say("nodedown", [])
    after 0 ->
        ok
    end,
    case catch erpc:call(Node, erlang, node, [], ?CALL_MS) of
        Node -> say("answered", []);
        Other -> say("no answer: ~tp", [Other])
    end,
    timer:sleep(?LOOK_MS),
    talk(Node).

say(Format, Arguments) ->
    io:format("talker: " ++ Format ++ "~n", Arguments).
