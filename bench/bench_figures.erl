%% @doc The figures, in the order in which they are shown: what they are
%% called, in which unit, and which way is better.
-module(bench_figures).

-export([all/0, of_load/1, better/3]).
-export_type([key/0, figure/0]).

-type key() :: atom().
-type figure() :: #{key := key(), title := string(), unit := string(), better := more | less}.

-spec all() -> [figure()].
all() ->
    [figure(round_trip_p50, "round trip p50", "us", less),
     figure(round_trip_p99, "round trip p99", "us", less),
     figure(flood, "32 B flood", "msg/s", more),
     figure(erpc, "16 x erpc", "calls/s", more),
     figure(stream_4k, "4 KiB stream", "MB/s", more),
     figure(stream_64k, "64 KiB stream", "MB/s", more),
     figure(stream_16m, "16 MiB stream", "MB/s", more),
     figure(mixed_p50, "call beside bulk p50", "ms", less),
     figure(mixed_p99, "call beside bulk p99", "ms", less),
     figure(mixed_bulk, "bulk beside calls", "MB/s", more),
     figure(cpu_64k, "CPU, 64 KiB stream", "s/GB", less),
     figure(cpu_16m, "CPU, 16 MiB stream", "s/GB", less),
     figure(connect, "connect", "ms", less)].

figure(Key, Title, Unit, Better) ->
    #{key => Key, title => Title, unit => Unit, better => Better}.

%% @doc The figure worth a word while the bench runs.
-spec of_load(atom()) -> figure().
of_load(Load) ->
    Key = case Load of
              round_trip -> round_trip_p50;
              mixed -> mixed_p50;
              _ -> Load
          end,
    [Figure] = [F || #{key := K} = F <- all(), K =:= Key],
    Figure.

%% @doc Within 5 % two figures count as the same.
-spec better(more | less, number(), number()) -> better | same | worse.
better(Direction, Ours, Theirs) ->
    case {Direction, Ours / max(Theirs, 1.0e-9)} of
        {_, Ratio} when Ratio > 0.95, Ratio < 1.05 -> same;
        {more, Ratio} when Ratio > 1 -> better;
        {less, Ratio} when Ratio < 1 -> better;
        _ -> worse
    end.
