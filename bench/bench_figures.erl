%% @doc The figures, in the order in which they are shown: what they are
%% called, in which unit, and which way is better; and what was promised.
-module(bench_figures).

-export([all/0, of_load/1, of_rounds/2, better/3, promises/1]).
-export_type([key/0, figure/0, promise/0]).

-type key() :: atom().
-type figure() :: #{key := key(), title := string(), unit := string(), better := more | less}.
%% A ratio to another contender's figure, or a figure by itself.
-type promise() :: {string(), key(), at_least | at_most, number(), {times, Contender :: atom(), key()} | absolute}.

-spec all() -> [figure()].
all() ->
    [figure(round_trip_p50, "round trip p50", "us", less),
     figure(round_trip_p99, "round trip p99", "us", less),
     figure(paced_p50, "200 calls/s, p50", "ms", less),
     figure(paced_p99, "200 calls/s, p99", "ms", less),
     figure(flood, "32 B flood", "msg/s", more),
     figure(erpc, "16 x erpc", "calls/s", more),
     figure(stream_4k, "4 KiB stream", "MB/s", more),
     figure(stream_64k, "64 KiB stream", "MB/s", more),
     figure(stream_16m, "16 MiB stream", "MB/s", more),
     figure(mixed_p50, "call beside bulk p50", "ms", less),
     figure(mixed_p99, "call beside bulk p99", "ms", less),
     figure(mixed_max, "call beside bulk, longest", "ms", less),
     figure(mixed_bulk, "bulk beside calls", "MB/s", more),
     figure(mixed_4_p50, "call beside 4 bulk p50", "ms", less),
     figure(mixed_4_p99, "call beside 4 bulk p99", "ms", less),
     figure(mixed_4_max, "call beside 4 bulk, longest", "ms", less),
     figure(mixed_4_bulk, "4 bulk beside calls", "MB/s", more),
     figure(mixed_32_p50, "call beside 32 bulk p50", "ms", less),
     figure(mixed_32_p99, "call beside 32 bulk p99", "ms", less),
     figure(mixed_32_max, "call beside 32 bulk, longest", "ms", less),
     figure(mixed_32_bulk, "32 bulk beside calls", "MB/s", more),
     figure(slow_stream, "64 KiB beside calls", "MB/s", more),
     figure(slow_p50, "call beside it p50", "ms", less),
     figure(slow_p99, "call beside it p99", "ms", less),
     figure(slow_streams, "32 x 4 KiB beside calls", "MB/s", more),
     figure(slow_32_p50, "call beside 32 p50", "ms", less),
     figure(slow_32_p99, "call beside 32 p99", "ms", less),
     figure(cpu_round_trip, "CPU, round trip", "us", less),
     figure(cpu_flood, "CPU, 32 B message", "us", less),
     figure(cpu_4k, "CPU, 4 KiB stream", "s/GB", less),
     figure(cpu_64k, "CPU, 64 KiB stream", "s/GB", less),
     figure(cpu_16m, "CPU, 16 MiB stream", "s/GB", less),
     figure(relay_cpu_round_trip, "relay's CPU, round trip", "us", less),
     figure(relay_cpu_flood, "relay's CPU, 32 B message", "us", less),
     figure(relay_cpu_64k, "relay's CPU, 64 KiB stream", "s/GB", less),
     figure(relay_cpu_16m, "relay's CPU, 16 MiB stream", "s/GB", less),
     figure(connect, "connect", "ms", less),
     figure(idle_vm, "idle link, emulator", "kB", less),
     figure(idle_native, "idle link, native", "kB", less),
     figure(idle_resident, "idle link, resident", "kB", less)].

figure(Key, Title, Unit, Better) ->
    #{key => Key, title => Title, unit => Unit, better => Better}.

%% @doc The figure worth a word while the bench runs.
-spec of_load(atom()) -> figure().
of_load(Load) ->
    Key = case Load of
              round_trip -> round_trip_p50;
              paced -> paced_p50;
              mixed -> mixed_p50;
              mixed_4 -> mixed_4_p50;
              mixed_32 -> mixed_32_p50;
              idle -> idle_resident;
              _ -> Load
          end,
    [Figure] = [F || #{key := K} = F <- all(), K =:= Key],
    Figure.

%% @doc What a figure is in all rounds. The longest wait of them is one; of all else the median is shown.
-spec of_rounds(key(), [number(), ...]) -> [number(), ...].
of_rounds(Key, Values) when Key =:= mixed_max; Key =:= mixed_4_max; Key =:= mixed_32_max -> [lists:max(Values)];
of_rounds(_, Values) -> Values.

%% @doc Within 5 % two figures count as the same.
-spec better(more | less, number(), number()) -> better | same | worse.
better(Direction, Ours, Theirs) ->
    case {Direction, Ours / max(Theirs, 1.0e-9)} of
        {_, Ratio} when Ratio > 0.95, Ratio < 1.05 -> same;
        {more, Ratio} when Ratio > 1 -> better;
        {less, Ratio} when Ratio < 1 -> better;
        _ -> worse
    end.

%% @doc What a plain carrier of one stream was expected to reach on veth, what
%% users are promised of a LAN and of a line that loses packets, and what a
%% relay between may cost.
-spec promises(bench_place:name()) -> [promise()].
promises(switch) ->
    [{"64 KiB stream 0.3 times direct", stream_64k, at_least, 0.3, {times, macula, stream_64k}},
     {"16 MiB stream 0.3 times direct", stream_16m, at_least, 0.3, {times, macula, stream_16m}},
     {"32 B flood 0.3 times direct", flood, at_least, 0.3, {times, macula, flood}},
     {"round trip p50 2.5 times direct", round_trip_p50, at_most, 2.5, {times, macula, round_trip_p50}}];
promises(veth) ->
    [{"round trip under 10 ms", round_trip_p99, at_most, 10_000, absolute},
     {"over 10 000 messages/s", flood, at_least, 10_000, absolute},
     {"64 KiB stream 5 times inet_tls", stream_64k, at_least, 5, {times, inet_tls, stream_64k}},
     {"16 MiB stream 5 times inet_tls", stream_16m, at_least, 5, {times, inet_tls, stream_16m}},
     {"32 B flood 1.5 times inet_tcp", flood, at_least, 1.5, {times, inet_tcp, flood}},
     {"round trip 0.9 of inet_tls", round_trip_p50, at_most, 0.9, {times, inet_tls, round_trip_p50}},
     {"calls beside 16 MiB: p50 0.33 of inet_tcp", mixed_p50, at_most, 0.33, {times, inet_tcp, mixed_p50}},
     {"calls beside 16 MiB: p99 0.33 of inet_tcp", mixed_p99, at_most, 0.33, {times, inet_tcp, mixed_p99}},
     {"beside 4 of them: p99 0.33 of inet_tcp", mixed_4_p99, at_most, 0.33, {times, inet_tcp, mixed_4_p99}},
     {"beside 32 of them: p99 0.33 of inet_tcp", mixed_32_p99, at_most, 0.33, {times, inet_tcp, mixed_32_p99}}]
        ++ [{"longest beside " ++ Senders ++ " no more than inet_tcp", Key, at_most, 1, {times, inet_tcp, Key}}
            || {Senders, Key} <- [{"16 MiB", mixed_max}, {"4", mixed_4_max}, {"32", mixed_32_max}]];
promises(wan) ->
    [{"calls beside 64 KiB: p99 0.25 of inet_tcp", slow_p99, at_most, 0.25, {times, inet_tcp_cubic, slow_p99}},
     {"calls beside 64 KiB: p99 0.5 of one stream", slow_p99, at_most, 0.5, {times, one_stream, slow_p99}},
     {"beside 32 of them: p99 0.25 of inet_tcp", slow_32_p99, at_most, 0.25, {times, inet_tcp_cubic, slow_32_p99}},
     {"beside 32 of them: p99 0.5 of one stream", slow_32_p99, at_most, 0.5, {times, one_stream, slow_32_p99}},
     {"32 x 4 KiB 0.9 of inet_tcp", slow_streams, at_least, 0.9, {times, inet_tcp_cubic, slow_streams}}];
promises(_) ->
    [].
