%% @doc Plain QUIC between two processes of the operating system, with a link's
%% parameters and one stream: native/macula_net/examples/bare_quic. What a
%% carrier over QUIC loses against it, it loses in itself.
-module(bench_bare).

-export([start/2, load/3, stop/1]).
-export_type([pair/0]).

-type pair() :: #{server := port(), client := port(), os_pids := [integer()]}.

-define(START_MS, 10_000).
-define(STOP_MS, 5_000).
-define(KIB, 1024).
-define(MIB, (1024 * 1024)).
%% Longer lines come in parts: all times of a load stand in one.
-define(LONGEST, 65_536).

-spec start(bench_place:place(), bench_vm:settings()) -> {ok, pair()} | {error, string()}.
start(#{address_b := Address, prefix_a := PrefixA, prefix_b := PrefixB}, #{bare := Program}) ->
    Server = open(PrefixB ++ [Program, "serve", Address]),
    case answer(Server, ?START_MS) of
        {ok, "port " ++ Port} ->
            Client = open(PrefixA ++ [Program, "measure", Address ++ ":" ++ Port]),
            Pair = #{server => Server, client => Client, os_pids => [os_pid(Server), os_pid(Client)]},
            started(Pair, answer(Client, ?START_MS));
        Other ->
            Why = why(Server, Other),
            catch port_close(Server),
            {error, Why}
    end.

started(Pair, {ok, "up"}) -> {ok, Pair};
started(#{client := Client} = Pair, Other) ->
    Why = why(Client, Other),
    stop(Pair),
    {error, Why}.

%% A program that panics does so in several lines.
why(Port, {ok, Said}) -> lists:concat([Said, " ", why(Port, answer(Port, ?START_MS))]);
why(_, {error, Reason}) -> Reason.

open([Command | Args]) ->
    open_port({spawn_executable, Command}, [{args, Args}, {line, ?LONGEST}, exit_status, stderr_to_stdout]).

%% @doc The loads it knows, as bench_load has them.
-spec load(pair(), bench_load:load(), timeout()) ->
          {ok, #{bench_figures:key() => number()} | none} | {error, string()}.
load(Pair, {round_trip, Ms}, Limit) ->
    warmed(Pair, ["round_trip"], Ms, Limit,
           fun(Times, Cpu) ->
                   #{round_trip_p50 => bench_stats:percentile(50, Times) / 1000,
                     round_trip_p99 => bench_stats:percentile(99, Times) / 1000,
                     cpu_round_trip => Cpu / length(Times) * 1.0e6}
           end);
load(Pair, {stream_4k, Ms}, Limit) -> stream(Pair, 4 * ?KIB, Ms, Limit, stream_4k, cpu_4k);
load(Pair, {stream_64k, Ms}, Limit) -> stream(Pair, 64 * ?KIB, Ms, Limit, stream_64k, cpu_64k);
load(Pair, {stream_16m, Ms}, Limit) -> stream(Pair, 16 * ?MIB, Ms, Limit, stream_16m, cpu_16m);
load(Pair, {slow_stream, Ms}, Limit) ->
    with(ask(Pair, ["slow_stream", integer_to_list(64 * ?KIB), integer_to_list(Ms)], Limit),
         fun([Bytes, Ns]) -> #{slow_stream => Bytes * 1000 / Ns} end);
load(Pair, {connect, Times}, Limit) ->
    with(ask(Pair, ["connect", integer_to_list(Times)], Limit),
         fun(Ns) -> #{connect => bench_stats:median(Ns) / 1.0e6} end);
load(_, _, _) ->
    {ok, none}.

stream(Pair, Size, Ms, Limit, Rate, CpuPerByte) ->
    warmed(Pair, ["stream", integer_to_list(Size)], Ms, Limit,
           fun([Bytes, Ns], Cpu) -> #{Rate => Bytes * 1000 / Ns, CpuPerByte => Cpu / Bytes * 1.0e9} end).

%% As in bench_load: a fifth before that does not count.
warmed(#{os_pids := OsPids} = Pair, Words, Ms, Limit, Figures) ->
    _ = ask(Pair, Words ++ [integer_to_list(Ms div 5)], Limit),
    Before = bench_stats:cpu_seconds(OsPids),
    with(ask(Pair, Words ++ [integer_to_list(Ms)], Limit),
         fun(Numbers) -> Figures(Numbers, bench_stats:cpu_seconds(OsPids) - Before) end).

with({ok, Numbers}, Figures) -> {ok, Figures(Numbers)};
with({error, _} = Error, _) -> Error.

ask(#{client := Client}, Words, Limit) ->
    true = port_command(Client, [lists:join(" ", Words), $\n]),
    case answer(Client, Limit) of
        {ok, Line} -> {ok, [list_to_integer(Word) || Word <- string:lexemes(Line, " ")]};
        {error, _} = Error -> Error
    end.

answer(Port, Limit) -> answer(Port, Limit, []).

answer(Port, Limit, Parts) ->
    receive
        {Port, {data, {noeol, Part}}} -> answer(Port, Limit, [Parts, Part]);
        {Port, {data, {eol, Last}}} -> {ok, lists:flatten([Parts, Last])};
        {Port, {exit_status, Status}} -> {error, lists:concat(["bare_quic ended with status ", Status])}
    after Limit ->
        {error, "no answer in time"}
    end.

%% They end with their standard input.
-spec stop(pair()) -> ok.
stop(#{server := Server, client := Client, os_pids := OsPids}) ->
    [catch port_close(Port) || Port <- [Client, Server]],
    await_end(OsPids, ?STOP_MS).

await_end(OsPids, Left) ->
    case [OsPid || OsPid <- OsPids, filelib:is_dir("/proc/" ++ integer_to_list(OsPid))] of
        [] -> ok;
        Alive when Left =< 0 -> [os:cmd("kill -9 " ++ integer_to_list(OsPid)) || OsPid <- Alive], ok;
        _ -> timer:sleep(20), await_end(OsPids, Left - 20)
    end.

os_pid(Port) ->
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    OsPid.
