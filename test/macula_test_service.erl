%% What a dial may meet at a port instead of a node.
-module(macula_test_service).

-export([answering/1, silent/0, garbage/0, other_quic/0, foreign/1]).

-export_type([service/0]).

-define(HANG, 60_000).

%% Its port, as text, and what ends it.
-type service() :: {string(), fun(() -> ok)}.

%% @doc A UDP port that answers each packet with these.
-spec answering(fun((binary()) -> [iodata()])) -> service().
answering(Answers) ->
    Self = self(),
    Pid = spawn_link(fun() ->
                         {ok, Socket} = gen_udp:open(0, [binary, {active, true}]),
                         {ok, Port} = inet:port(Socket),
                         Self ! {self(), integer_to_list(Port)},
                         serve(Socket, Answers)
                     end),
    receive
        {Pid, Port} -> {Port, fun() -> unlink(Pid), exit(Pid, kill), ok end}
    end.

serve(Socket, Answers) ->
    receive
        {udp, Socket, Ip, Port, Packet} ->
            [gen_udp:send(Socket, Ip, Port, Answer) || Answer <- Answers(Packet)],
            serve(Socket, Answers)
    end.

%% @doc Something has the port, but never answers.
-spec silent() -> service().
silent() ->
    answering(fun(_) -> [] end).

%% @doc Something answers, but not in QUIC.
-spec garbage() -> service().
garbage() ->
    answering(fun(Packet) -> [rand:bytes(1 + rand:uniform(1_200)), <<"HTTP/1.1 400 Bad Request\r\n\r\n">>, <<0, Packet/binary>>] end).

%% @doc A server of another version of QUIC, which says so (RFC 9000, 17.2.1).
-spec other_quic() -> service().
other_quic() ->
    answering(fun negotiate/1).

negotiate(<<1:1, _:7, _Version:32, N, Theirs:N/binary, M, Ours:M/binary, _/binary>>) ->
    [<<16#c0, 0:32, M, Ours/binary, N, Theirs/binary, 16#6b3343cf:32>>];
negotiate(_) ->
    [].

%% @doc A peer of another make: see the example foreigner of macula_net.
-spec foreign([string()]) -> service().
foreign(Args) ->
    Tool = macula_test_tool:start("foreigner", Args),
    <<"listening ", Port/binary>> = macula_test_tool:heard(Tool, ?HANG),
    {string:trim(binary_to_list(Port)), fun() -> macula_test_tool:stop(Tool) end}.
