%% @doc UDP sockets to look at a network with, each in a process that keeps what arrives, and when.
-module(netlab_probe).

-export([open/1, open/3, close/1, address/1, send/3, received/1, arrivals/1, forget/1]).

-export_type([probe/0, address/0]).

-type probe() :: pid().
-type address() :: {inet:ip_address(), inet:port_number()}.
-type arrival() :: {Nanoseconds :: integer(), From :: address(), Data :: binary()}.

%% For a burst of some thousand datagrams while the VM does something else.
-define(BUFFER, 4 * 1024 * 1024).

%% @doc Opens a socket of this VM on a machine of the lab.
-spec open(netlab:lab(), atom(), [term()]) -> probe().
open(Lab, Name, Options) ->
    open([netlab:netns(Lab, Name) | Options]).

%% @doc Opens a socket with these options of gen_udp and perhaps a `{port, Port}'.
-spec open([term()]) -> probe().
open(Options) ->
    Caller = self(),
    {Probe, Monitor} = spawn_monitor(fun() -> init(Caller, Options) end),
    receive
        {Probe, open} ->
            demonitor(Monitor, [flush]),
            Probe;
        {'DOWN', Monitor, process, Probe, Reason} ->
            error(Reason)
    end.

%% @doc Closes it; it also closes with the process that opened it.
-spec close(probe()) -> ok.
close(Probe) ->
    ask(Probe, close).

-spec address(probe()) -> address().
address(Probe) ->
    ask(Probe, address).

-spec send(probe(), address(), iodata()) -> ok | {error, inet:posix()}.
send(Probe, To, Data) ->
    ask(Probe, {send, To, Data}).

%% @doc Everything that has arrived so far, oldest first.
-spec received(probe()) -> [{From :: address(), Data :: binary()}].
received(Probe) ->
    [{From, Data} || {_, From, Data} <- arrivals(Probe)].

%% @doc The same with the time of each on this VM's monotonic clock.
-spec arrivals(probe()) -> [arrival()].
arrivals(Probe) ->
    ask(Probe, arrivals).

%% @doc Begins anew with what arrives.
-spec forget(probe()) -> ok.
forget(Probe) ->
    ask(Probe, forget).

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

init(Caller, Options) ->
    %% Times are taken by this process, so it comes before others.
    process_flag(priority, high),
    _ = monitor(process, Caller),
    Port = proplists:get_value(port, Options, 0),
    {ok, Socket} = gen_udp:open(Port, [binary, {recbuf, ?BUFFER}, {read_packets, 100}
                                       | proplists:delete(port, Options)]),
    Caller ! {self(), open},
    loop(Socket, []).

loop(Socket, Arrivals) ->
    receive
        {udp, Socket, Ip, Port, Data} ->
            loop(Socket, [{erlang:monotonic_time(nanosecond), {Ip, Port}, Data} | Arrivals]);
        {From, Ref, forget} ->
            From ! {Ref, ok},
            loop(Socket, []);
        {From, Ref, close} ->
            ok = gen_udp:close(Socket),
            From ! {Ref, ok};
        {From, Ref, Request} when is_reference(Ref) ->
            From ! {Ref, answer(Request, Socket, Arrivals)},
            loop(Socket, Arrivals);
        {'DOWN', _, process, _, _} ->
            ok
    end.

answer({send, {Ip, Port}, Data}, Socket, _) -> gen_udp:send(Socket, Ip, Port, Data);
answer(arrivals, _, Arrivals) -> lists:reverse(Arrivals);
answer(address, Socket, _) -> element(2, inet:sockname(Socket)).
