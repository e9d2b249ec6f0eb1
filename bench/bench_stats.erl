%% @doc Medians, percentiles and spread; and what the kernel says about
%% processor time.
-module(bench_stats).

-export([percentile/2, median/1, summary/1, ratio/2, cpu_seconds/1, busy_percent/1]).
-export_type([summary/0]).

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
    median(lists:zipwith(fun quotient/2, Ours, Theirs));
ratio(#{median := Ours}, #{median := Theirs}) ->
    quotient(Ours, Theirs).

quotient(Ours, Theirs) -> Ours / max(Theirs, 1.0e-9).

%% @doc User and system time of processes of the operating system so far.
-spec cpu_seconds([integer()]) -> float().
cpu_seconds(OsPids) ->
    lists:sum([ticks(OsPid) || OsPid <- OsPids]) / ?TICKS_PER_SECOND.

%% @doc How much of the machine's processors is in use during the next
%% milliseconds.
-spec busy_percent(pos_integer()) -> float().
busy_percent(Ms) ->
    {IdleBefore, AllBefore} = machine_ticks(),
    timer:sleep(Ms),
    {IdleAfter, AllAfter} = machine_ticks(),
    100 * (1 - (IdleAfter - IdleBefore) / max(1, AllAfter - AllBefore)).

%% First line of /proc/stat: user, nice, system, idle, waiting for disks, ...
machine_ticks() ->
    {ok, Stat} = file:read_file("/proc/stat"),
    [<<"cpu">> | Fields] = string:lexemes(hd(binary:split(Stat, <<"\n">>)), " "),
    Ticks = [binary_to_integer(Field) || Field <- Fields],
    {lists:nth(4, Ticks) + lists:nth(5, Ticks), lists:sum(lists:sublist(Ticks, 8))}.

ticks(OsPid) ->
    {ok, Stat} = file:read_file("/proc/" ++ integer_to_list(OsPid) ++ "/stat"),
    %% The program's name comes second, in parentheses, and may hold spaces.
    [_, Rest] = string:split(Stat, ") ", trailing),
    Fields = string:lexemes(Rest, " "),
    binary_to_integer(lists:nth(12, Fields)) + binary_to_integer(lists:nth(13, Fields)).
