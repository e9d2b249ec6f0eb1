%% @doc macula against inet_tcp and inet_tls, in turns, in one run:
%% `./dev bench [quick]'. This module decides what is measured when; progress
%% goes to standard error, the table to standard output.
-module(bench).

-export([main/0]).

-define(DIR, "_build/bench").
-define(CARRIERS, [inet_tcp, inet_tls, macula]).
%% Above what any load takes, its drain included.
-define(LOAD_LIMIT_MS, 60_000).
%% While nothing of ours runs, to see what else does.
-define(QUIET_MS, 300).

-type mode() :: #{name := quick | full, rounds := pos_integer(), ms := pos_integer(), bulk_ms := pos_integer(),
                  mixed_ms := pos_integer(), connects := pos_integer(), budget_s := pos_integer()}.

%% @doc Arguments stand behind `-extra'.
-spec main() -> no_return().
main() ->
    try mode(init:get_plain_arguments()) of
        Mode -> run(Mode), halt(0)
    catch
        throw:{usage, Text} -> say("bench: ~ts", [Text]), halt(1);
        Class:Reason:Stack -> say("bench failed: ~tp", [{Class, Reason, Stack}]), halt(1)
    end.

-spec mode([string()]) -> mode().
mode(["quick"]) ->
    #{name => quick, rounds => 2, ms => 300, bulk_ms => 500, mixed_ms => 1000, connects => 5, budget_s => 100};
mode([]) ->
    #{name => full, rounds => 5, ms => 800, bulk_ms => 1200, mixed_ms => 2500, connects => 8, budget_s => 540};
mode(_) ->
    throw({usage, "knows only quick"}).

run(#{name := Name} = Mode) ->
    put(started, now_s()),
    LoadBefore = load_average(),
    Settings = #{ebin => filename:absname(?DIR), macula_ebin => filename:absname(?DIR ++ "/macula/ebin"),
                 tls_options => bench_cert:write(filename:absname(?DIR))},
    Places = [loopback, veth],
    Measured = [Result || {I, Place} <- lists:enumerate(Places),
                          Result <- place(Place, until_place(I, length(Places), Mode), Mode, Settings)],
    Result = #{mode => Name, otp => list_to_binary(erlang:system_info(otp_release)),
               cores => erlang:system_info(logical_processors_available), seconds => round(elapsed()),
               load_before => LoadBefore, load_after => load_average(), places => Measured},
    ok = file:write_file(?DIR ++ "/latest.json", bench_json:encode(Result)),
    ok = file:write_file(?DIR ++ "/latest.svg", bench_plot:svg(Result)),
    io:put_chars(bench_report:text(Result)),
    io:format("~n~ts/latest.json and ~ts/latest.svg written.~n", [?DIR, ?DIR]).

%% Each place has its share of the time, so that a slow first one does not
%% leave the headline without rounds.
until_place(I, Count, #{budget_s := Budget}) ->
    Budget * I / Count.

%%% A place: rounds, in each of which every carrier has its turn

place(Name, Until, Mode, Settings) ->
    case open(Name) of
        {ok, Place} ->
            Facts = (maps:get(facts, Place))#{<<"congestion">> => congestion(Place, Settings)},
            say("~ts: ~ts", [Name, lists:join(", ", [[K, " ", V] || {K, V} <- lists:sort(maps:to_list(Facts))])]),
            Turns = rounds(1, Until, Place, Mode, Settings),
            bench_place:close(Place),
            [summarised(Name, Facts, Turns)];
        {error, Reason} ->
            say("~ts is left out: ~ts", [Name, Reason]),
            []
    end.

%% What TCP really uses there, asked of a connection.
congestion(Place, Settings) ->
    case bench_pair:start(inet_tcp, Place, Settings) of
        {ok, Pair} ->
            {ok, Names} = bench_pair:ask(Pair, congestion, ?LOAD_LIMIT_MS),
            bench_pair:stop(Pair),
            iolist_to_binary(lists:join("+", Names));
        {error, Reason} ->
            iolist_to_binary(["unknown: ", Reason])
    end.

open(Name) ->
    case bench_place:possible(Name) of
        yes -> bench_place:open(Name, "bench/place.sh");
        {no, Reason} -> {error, Reason}
    end.

rounds(Round, _, _, #{rounds := Rounds}, _) when Round > Rounds ->
    [];
rounds(Round, Until, Place, Mode, Settings) ->
    Before = elapsed(),
    Turns = [turn(Carrier, Round, Place, Mode, Settings) || Carrier <- rotated(Round, ?CARRIERS)],
    Took = elapsed() - Before,
    case elapsed() + Took > Until of
        true when Round < map_get(rounds, Mode) ->
            say("no time for more than ~b rounds of ~ts", [Round, maps:get(name, Place)]),
            Turns;
        _ ->
            Turns ++ rounds(Round + 1, Until, Place, Mode, Settings)
    end.

%% Nobody is always the one to come first, or after the one that heats the processor most.
rotated(Round, Carriers) ->
    {Head, Tail} = lists:split((Round - 1) rem length(Carriers), Carriers),
    Tail ++ Head.

%%% A turn: one pair of nodes, every load once

turn(Carrier, Round, #{name := PlaceName} = Place, #{rounds := Rounds} = Mode, Settings) ->
    say("[~3b s] ~ts, round ~b of ~b, ~ts", [round(elapsed()), PlaceName, Round, Rounds, Carrier]),
    Quiet = #{others_busy => bench_stats:busy_percent(?QUIET_MS)},
    Measure = fun(Load, Acc) -> load(Load, Carrier, Place, Settings, Acc) end,
    {Pair, Figures} = lists:foldl(Measure, {none, Quiet}, loads(Mode)),
    stop(Pair),
    {Carrier, Figures}.

loads(#{ms := Ms, bulk_ms := BulkMs, mixed_ms := MixedMs, connects := Connects}) ->
    [{round_trip, Ms}, {flood, Ms}, {erpc, Ms}, {stream_4k, Ms}, {stream_64k, Ms}, {stream_16m, BulkMs},
     {mixed, MixedMs}, {connect, Connects}].

%% A load that fails costs its own figures and the pair, not the run.
load({Name, _} = Load, Carrier, Place, Settings, {Pair0, Figures}) ->
    case ask(pair(Pair0, Carrier, Place, Settings), Load) of
        {Pair, {ok, New}} ->
            #{key := Key, title := Title, unit := Unit} = bench_figures:of_load(Name),
            say("        ~ts ~ts ~ts", [Title, bench_report:number(maps:get(Key, New)), Unit]),
            {Pair, maps:merge(Figures, New)};
        {Pair, {error, Reason}} ->
            say("        ~ts FAILED: ~ts", [Name, Reason]),
            stop(Pair),
            {none, Figures}
    end.

pair(none, Carrier, Place, Settings) -> bench_pair:start(Carrier, Place, Settings);
pair(Pair, _, _, _) -> {ok, Pair}.

ask({ok, Pair}, Load) -> {Pair, bench_pair:ask(Pair, {load, Load}, ?LOAD_LIMIT_MS)};
ask({error, _} = Error, _) -> {none, Error}.

stop(none) -> ok;
stop(Pair) -> bench_pair:stop(Pair).

%%% Summary

summarised(Name, Facts, Turns) ->
    #{name => Name, facts => Facts,
      others_busy => bench_stats:summary([Busy || {_, #{others_busy := Busy}} <- Turns]),
      carriers => [#{name => Carrier, figures => figures(Carrier, Turns),
                     bulk_suffered => bulk_suffered(Carrier, Turns)} || Carrier <- ?CARRIERS]}.

figures(Carrier, Turns) ->
    Lists = lists:foldl(fun({C, Figures}, Acc) when C =:= Carrier -> maps:fold(fun add/3, Acc, Figures);
                           (_, Acc) -> Acc
                        end, #{}, Turns),
    maps:map(fun(_, Values) -> bench_stats:summary(lists:reverse(Values)) end, Lists).

add(Key, Value, Acc) ->
    maps:update_with(Key, fun(Values) -> [Value | Values] end, [Value], Acc).

%% Quick small calls are no merit when the bulk they run beside hardly moves.
bulk_suffered(Carrier, Turns) ->
    case figures(Carrier, Turns) of
        #{mixed_bulk := #{median := Beside}, stream_16m := #{median := Alone}} -> Beside < 0.8 * Alone;
        _ -> false
    end.

load_average() ->
    case file:read_file("/proc/loadavg") of
        {ok, Text} -> binary_to_float(hd(binary:split(Text, <<" ">>)));
        {error, _} -> null
    end.

elapsed() -> now_s() - get(started).

now_s() -> erlang:monotonic_time(millisecond) / 1000.

say(Format, Args) -> io:format(standard_error, Format ++ "~n", Args).
