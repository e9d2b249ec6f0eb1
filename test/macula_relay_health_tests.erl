-module(macula_relay_health_tests).

-include_lib("eunit/include/eunit.hrl").

%% Of those who connect and say nothing, more than are answered at the same time.
-define(MUTE, 20).

%% The first relay starts the application, without which other tests begin.
health_test_() ->
    {setup, fun() -> ok end, fun(_) -> application:stop(macula) end, {timeout, 60, fun health/0}}.

health() ->
    {ok, Port} = free_port(),
    ok = macula:start_relay(#{port => Port, health => Port, realms => #{<<"r">> => open}}),
    ?assertMatch({200, <<"{\"status\":\"ok\",\"bytes\":0,", _/binary>>}, ask(Port, "GET /health HTTP/1.1\r\n\r\n")),
    ?assertMatch({200, _}, ask(Port, "GET /health HTTP/1.0\r\nHost: a\r\n\r\n")),
    ?assertMatch({404, _}, ask(Port, "GET / HTTP/1.1\r\n\r\n")),
    ?assertMatch({404, _}, ask(Port, "POST /health HTTP/1.1\r\n\r\n")),
    ?assertMatch({400, _}, ask(Port, "what?\r\n")),
    %% Who asks waits for those who say nothing for as long as one of them may, and no longer.
    Mute = [connect(Port) || _ <- lists:seq(1, ?MUTE)],
    ?assertMatch({200, _}, ask(Port, "GET /health HTTP/1.1\r\n\r\n")),
    [ok = gen_tcp:close(Socket) || Socket <- Mute],
    %% One that cannot be had is named, and takes no relay's port with it.
    ok = macula:stop_relay(),
    Taken = take(Port, 20),
    ?assertEqual({error, {port_in_use, Port}}, macula:start_relay(#{port => Port, health => Port})),
    ok = gen_tcp:close(Taken),
    ok = macula:start_relay(#{port => Port, health => Port, realms => #{<<"r">> => open}}),
    ?assertMatch({200, _}, ask(Port, "GET /health HTTP/1.1\r\n\r\n")),
    ok = macula:stop_relay(),
    ?assertEqual({error, econnrefused}, gen_tcp:connect({127, 0, 0, 1}, Port, [])).

free_port() ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    Port = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.

connect(Port) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    Socket.

ask(Port, Request) ->
    Socket = connect(Port),
    ok = gen_tcp:send(Socket, Request),
    Answer = rest(Socket),
    <<"HTTP/1.1 ", Status:3/binary, _/binary>> = Answer,
    [_, Body] = binary:split(Answer, <<"\r\n\r\n">>),
    {binary_to_integer(Status), Body}.

rest(Socket) ->
    case gen_tcp:recv(Socket, 0, 20_000) of
        {ok, Some} -> <<Some/binary, (rest(Socket))/binary>>;
        {error, closed} -> <<>>
    end.

%% The system may hold on to it for a moment, for one of the connections that were just closed.
take(Port, Tries) ->
    case gen_tcp:listen(Port, [{ip, {127, 0, 0, 1}}, {reuseaddr, true}]) of
        {ok, Socket} -> Socket;
        {error, eaddrinuse} when Tries > 0 -> timer:sleep(100), take(Port, Tries - 1)
    end.
