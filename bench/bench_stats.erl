%% @doc Medians, percentiles and spread; and what the kernel says about
%% processor time.
-module(bench_stats).

-export([percentile/2, median/1, summary/1, ratio/2, range/2, cpu_seconds/1, busy_percent/1, machine/0, stolen_percent/1]).
-export_type([summary/0, machine/0]).

-type machine() :: #{busy := integer(), idle := integer(), stolen := integer()}.
-type summary() :: #{median := number(), min := number(), max := number(), values := [number(), ...]}.

%% Linux reports processor time to user space in this unit on every
%% architecture, whatever its timer does.
-define(TICKS_PER_SECOND, 100).

%% @doc The nearest rank: always a value that was measured.
-spec percentile(0..100, [number(), ...]) -> number().
percentile(Percent, Values) ->
    lists:nth(max(1, ceil(Percent * length(Values) / 100)), lists:sort(Values)).

-spec median([number(), ...]) -> number().
median(Values) ->
    Sorted = lists:sort(Values),
    Half = length(Sorted) div 2,
    case length(Sorted) rem 2 of
        1 -> lists:nth(Half + 1, Sorted);
        0 -> (lists:nth(Half, Sorted) + lists:nth(Half + 1, Sorted)) / 2
    end.

-spec summary([number(), ...]) -> summary().
summary(Values) ->
    #{median => median(Values), min => lists:min(Values), max => lists:max(Values), values => Values}.

%% @doc What one is to another, in the median of the rounds: what was measured
%% within seconds has met the same machine. Where one of them lacks a round, what
%% the medians are to each other.
-spec ratio(summary(), summary()) -> float().
ratio(#{values := Ours}, #{values := Theirs}) when length(Ours) =:= length(Theirs) ->
    median(quotients(Ours, Theirs));
ratio(#{median := Ours}, #{median := Theirs}) ->
    quotient(Ours, Theirs).

%% @doc Between which ratios that of ever more rounds would lie, nine times in ten
%% (the sign test). With fewer than five rounds it is between the least and the
%% greatest, and less sure.
-spec range(summary(), summary()) -> {float(), float()}.
range(#{values := Ours}, #{values := Theirs}) when length(Ours) =:= length(Theirs) ->
    Ratios = lists:sort(quotients(Ours, Theirs)),
    Rounds = length(Ratios),
    Rank = rank(Rounds, 1, math:pow(0.5, Rounds)),
    {lists:nth(Rank, Ratios), lists:nth(Rounds + 1 - Rank, Ratios)};
range(#{min := Least, max := Greatest}, #{min := TheirLeast, max := TheirGreatest}) ->
    {quotient(Least, TheirGreatest), quotient(Greatest, TheirLeast)}.

%% The highest of so many sorted values' ranks that is above the median no more
%% than one time in twenty: so seldom do fewer tosses of as many coins come up heads.
rank(Tosses, Rank, Fewer) ->
    case Fewer + binomial(Tosses, Rank) * math:pow(0.5, Tosses) of
        AsMany when AsMany =< 0.05 -> rank(Tosses, Rank + 1, AsMany);
        _ -> Rank
    end.

binomial(_, 0) -> 1;
binomial(N, K) -> binomial(N, K - 1) * (N - K + 1) div K.

quotients(Ours, Theirs) -> lists:zipwith(fun quotient/2, Ours, Theirs).

quotient(Ours, Theirs) -> Ours / max(Theirs, 1.0e-9).

%% @doc User and system time of processes of the operating system so far.
-spec cpu_seconds([integer()]) -> float().
cpu_seconds(OsPids) ->
    lists:sum([ticks(OsPid) || OsPid <- OsPids]) / ?TICKS_PER_SECOND.

%% @doc How much of the machine's processors is in use during the next
%% milliseconds.
-spec busy_percent(pos_integer()) -> float().
busy_percent(Ms) ->
    Before = machine(),
    timer:sleep(Ms),
    #{busy := Busy, idle := Idle} = since(Before),
    100 * Busy / max(1, Busy + Idle).

%% @doc How much of the processor time that this machine wanted since then its
%% host gave to others: a virtual machine looks idle to itself meanwhile.
-spec stolen_percent(machine()) -> float().
stolen_percent(Before) ->
    #{busy := Busy, stolen := Stolen} = since(Before),
    100 * Stolen / max(1, Busy).

%% @doc Ticks of all processors so far; what was stolen was wanted, and so is
%% busy.
-spec machine() -> machine().
machine() ->
    {ok, Stat} = file:read_file("/proc/stat"),
    [<<"cpu">> | Fields] = string:lexemes(hd(binary:split(Stat, <<"\n">>)), " "),
    [User, Nice, System, Idle, Disks, Interrupts, SoftInterrupts, Stolen | _] =
        [binary_to_integer(Field) || Field <- Fields],
    #{busy => User + Nice + System + Interrupts + SoftInterrupts + Stolen, idle => Idle + Disks, stolen => Stolen}.

since(Before) ->
    maps:map(fun(What, Ticks) -> Ticks - map_get(What, Before) end, machine()).

ticks(OsPid) ->
    {ok, Stat} = file:read_file("/proc/" ++ integer_to_list(OsPid) ++ "/stat"),
    %% The program's name comes second, in parentheses, and may hold spaces.
    [_, Rest] = string:split(Stat, ") ", trailing),
    Fields = string:lexemes(Rest, " "),
    binary_to_integer(lists:nth(12, Fields)) + binary_to_integer(lists:nth(13, Fields)).
