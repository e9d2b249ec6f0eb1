%% The relay of a run in which no node reaches another one directly: a VM without distribution, on
%% loopback. It ends with its standard input.
-module(otp_suites_relay).

-export([start/2, url/1, stop/1]).
-export([main/0]).

-export_type([relay/0]).

-type relay() :: {port(), inet:port_number()}.

-define(START_MS, 30_000).
-define(STOP_MS, 10_000).

%%% In the VM that runs the suites

%% @doc Starts it with the library in `Ebin'; `Env' marks it as a process of the run.
-spec start(file:filename(), [{string(), string() | false}]) -> relay().
start(Ebin, Env) ->
    UdpPort = free_port(),
    Own = filename:dirname(code:which(?MODULE)),
    Args = ["+Bd", "-noshell", "-pa", Ebin, "-pa", Own, "-s", ?MODULE_STRING, "main",
            "-extra", integer_to_list(UdpPort)],
    Relay = open_port({spawn_executable, os:find_executable("erl")},
                      [{args, Args}, {env, lists:keystore("ERL_AFLAGS", 1, Env, {"ERL_AFLAGS", false})},
                       {line, 1024}, exit_status, stderr_to_stdout]),
    case said(Relay, "relay: ", ?START_MS) of
        {ok, "up"} -> {Relay, UdpPort};
        Other -> throw({stop, "the relay did not start: ~tp", [Other]})
    end.

%% @doc For MACULA_RELAYS.
-spec url(relay()) -> string().
url({_, UdpPort}) ->
    "https://127.0.0.1:" ++ integer_to_list(UdpPort).

%% @doc Ends it; says how many datagrams went through it.
-spec stop(relay()) -> string().
stop({Relay, _}) ->
    true = port_command(Relay, "stop\n"),
    Told = case said(Relay, "relay: ", ?STOP_MS) of
               {ok, Figures} -> Figures;
               {error, Why} -> "it ended before: " ++ Why
           end,
    ok = close(Relay),
    Told.

%% It closes by itself when the VM behind it ends.
close(Relay) ->
    try port_close(Relay) of
        true -> ok
    catch
        error:badarg -> ok
    end.

said(Relay, Mark, Limit) ->
    receive
        {Relay, {data, {eol, Line}}} ->
            case string:prefix(Line, Mark) of
                nomatch -> said(Relay, Mark, Limit);
                Rest -> {ok, Rest}
            end;
        {Relay, {data, {noeol, _}}} ->
            said(Relay, Mark, Limit);
        {Relay, {exit_status, Status}} ->
            {error, "status " ++ integer_to_list(Status)}
    after Limit ->
        {error, "no answer in time"}
    end.

free_port() ->
    {ok, Socket} = gen_udp:open(0),
    {ok, Port} = inet:port(Socket),
    ok = gen_udp:close(Socket),
    Port.

%%% In the relay's VM

-spec main() -> no_return().
main() ->
    [Port] = init:get_plain_arguments(),
    ok = macula:start_relay(#{port => list_to_integer(Port)}),
    say("up"),
    _ = io:get_line(""),
    #{forwarded := Forwarded} = Stats = macula:relay_stats(),
    say(io_lib:format("~b datagrams; ~0tp", [Forwarded, Stats])),
    halt(0).

say(Text) ->
    io:format("~nrelay: ~ts~n", [Text]).
