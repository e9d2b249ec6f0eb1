%% @doc UDP sockets to look at a network with, each in a process that keeps what arrives. They run
%% where they are opened: on a host of the lab that is a node of macula_test_node.
-module(netlab_probe).

-export([open/1, send/3, received/1, address/1]).

-type probe() :: pid().
-type address() :: {inet:ip_address(), inet:port_number()}.

%% @doc Opens a socket with these options of gen_udp; what needs no port of its own gets a free one.
-spec open([term()]) -> probe().
open(Options) ->
    Caller = self(),
    Probe = spawn(fun() ->
                      {Port, Rest} = take_port(Options),
                      {ok, Socket} = gen_udp:open(Port, [binary | Rest]),
                      Caller ! {self(), open},
                      loop(Socket, [])
                  end),
    Monitor = monitor(process, Probe),
    receive
        {Probe, open} ->
            demonitor(Monitor, [flush]),
            Probe;
        {'DOWN', Monitor, process, Probe, Reason} ->
            error(Reason)
    end.

take_port(Options) ->
    case lists:keytake(port, 1, Options) of
        {value, {port, Port}, Rest} -> {Port, Rest};
        false -> {0, Options}
    end.

-spec send(probe(), address(), binary()) -> ok | {error, inet:posix()}.
send(Probe, To, Data) ->
    ask(Probe, {send, To, Data}).

%% @doc Everything that has arrived so far, oldest first.
-spec received(probe()) -> [{From :: address(), Data :: binary()}].
received(Probe) ->
    ask(Probe, received).

-spec address(probe()) -> address().
address(Probe) ->
    ask(Probe, address).

ask(Probe, Request) ->
    Monitor = monitor(process, Probe),
    Probe ! {self(), Monitor, Request},
    receive
        {Monitor, Answer} ->
            demonitor(Monitor, [flush]),
            Answer;
        {'DOWN', Monitor, process, Probe, Reason} ->
            error(Reason)
    end.

loop(Socket, Received) ->
    receive
        {udp, Socket, Ip, Port, Data} ->
            loop(Socket, [{{Ip, Port}, Data} | Received]);
        {From, Ref, Request} ->
            From ! {Ref, answer(Request, Socket, Received)},
            loop(Socket, Received)
    end.

answer({send, {Ip, Port}, Data}, Socket, _) -> gen_udp:send(Socket, Ip, Port, Data);
answer(received, _, Received) -> lists:reverse(Received);
answer(address, Socket, _) -> element(2, inet:sockname(Socket)).
