%% @doc macula against inet_tcp, inet_tls and bare QUIC, in turns, in one run:
%% `./dev bench [quick]'; for calls beside bulk, long enough to meet what is
%% rare: `./dev bench beside'; against itself through a relay: `./dev bench
%% relay', or as it was: `./dev bench against'. This module decides what is
%% measured when; progress goes to standard error, the table to standard output.
-module(bench).

-export([main/0]).

-define(DIR, "_build/bench").
%% Above what any load takes: so many times its own time, as calls beside bulk
%% are waited for, and this for its drains.
-define(PATIENCE, 6).
-define(LOAD_LIMIT_MS, 60_000).
%% A load that takes so many times as long as it should has not come to its end
%% by itself. Its figure stands, and the other rounds have the time.
-define(HELD_UP, 3).
%% While nothing of ours runs, to see what else does.
-define(QUIET_MS, 300).

%% seconds: for the rounds of each place, after which none is begun that would
%% take longer. slow_ms: loads of the line, on which 200 ms are not much.
%% contenders: those that are measured; without, all of a place. libraries: other
%% ones of macula, which it is measured against. loads: without, those of a place.
-type mode() :: #{name := quick | full | beside | relay | against, contenders => [atom()], libraries => [{string(), file:filename()}],
                  places := [bench_place:name()], loads => [bench_load:name()], rounds := pos_integer(), ms := non_neg_integer(),
                  bulk_ms := non_neg_integer(), mixed_ms := non_neg_integer(), slow_ms := non_neg_integer(), connects := non_neg_integer(),
                  idle_links := non_neg_integer(), seconds := #{bench_place:name() => pos_integer()}}.

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
    #{name => quick, places => [veth, loopback, wan], rounds => 2, ms => 300, bulk_ms => 500, mixed_ms => 1000, slow_ms => 1500, connects => 3,
      idle_links => 6, seconds => #{veth => 40, loopback => 20, wan => 15}};
mode([]) ->
    #{name => full, places => [veth, loopback, wan], rounds => 9, ms => 500, bulk_ms => 800, mixed_ms => 2000, slow_ms => 6000, connects => 4,
      idle_links => 50, seconds => #{veth => 360, loopback => 300, wan => 630}};
%% Five minutes of calls beside each number of senders.
mode(["beside"]) ->
    #{name => beside, contenders => [inet_tcp, macula], places => [veth], rounds => 10, ms => 0, bulk_ms => 2000, mixed_ms => 30_000,
      slow_ms => 0, connects => 0, idle_links => 0, seconds => #{veth => 3000}};
mode(["relay"]) ->
    #{name => relay, places => [switch, relay_loopback], rounds => 9, ms => 800, bulk_ms => 1200, mixed_ms => 0,
      slow_ms => 0, connects => 3, idle_links => 0, seconds => #{switch => 120, relay_loopback => 120}};
mode(["against" | Arguments]) ->
    against(Arguments);
mode(_) ->
    throw({usage, "knows only quick, beside, relay and against"}).

%% The others, each a name and where it is, and the places and loads to measure; those of a full run unless some are named.
against(Arguments) ->
    {Libraries, Names} = lists:partition(fun(Argument) -> lists:member($=, Argument) end, Arguments),
    Full = #{places := Places} = mode([]),
    Against = Full#{name := against, rounds := 99, idle_links := 0, places := Places -- [wan],
                    seconds := #{veth => 180, loopback => 180, wan => 400},
                    libraries => [list_to_tuple(string:split(Library, "=")) || Library <- Libraries]},
    Wanted = #{places => named(Places, Names), loads => named(bench_load:names(), Names)},
    Unknown = Names -- [atom_to_list(Known) || Known <- lists:append(maps:values(Wanted))],
    Unknown =:= [] orelse throw({usage, ["knows no place or load ", lists:join(", ", Unknown)]}),
    maps:merge(Against, maps:filter(fun(_, Some) -> Some =/= [] end, Wanted)).

named(Known, Names) ->
    [Name || Name <- Known, lists:member(atom_to_list(Name), Names)].

run(#{name := Name, places := Places} = Mode) ->
    put(started, now_s()),
    LoadBefore = load_average(),
    Measured = lists:append([place(Place, Mode, settings()) || Place <- Places]),
    Result = #{mode => Name, otp => list_to_binary(erlang:system_info(otp_release)), date => date_of_today(),
               cores => erlang:system_info(logical_processors_available), seconds => round(elapsed()),
               load_before => LoadBefore, load_after => load_average(), places => Measured},
    io:put_chars(bench_report:text(Result)),
    Name =:= against orelse keep(Name, Result).

keep(Name, #{places := Measured} = Result) ->
    [ok = file:write_file(lists:concat([?DIR, "/", file(Name), ".", Kind]), unicode:characters_to_binary(Text))
     || {Kind, Text} <- [{json, bench_json:encode(Result)}, {svg, bench_plot:svg(Result)},
                         {md, bench_markdown:text(Result)}]],
    ok = bench_compare:keep(Name, Measured),
    io:format("~n~ts/~ts.json, .svg and .md written; ./dev bench docs puts the tables into docs/performance.md.~n",
              [?DIR, file(Name)]).

file(Name) when Name =:= relay; Name =:= beside -> atom_to_list(Name);
file(_) -> "latest".

settings() ->
    Path = fun(File) -> filename:absname(filename:join(?DIR, File)) end,
    #{ebin => filename:absname(?DIR), macula_ebin => Path("macula/ebin"), measured_ebin => Path("measured/ebin"),
      tls_options => bench_cert:write(filename:absname(?DIR)), bare => Path("bare_quic")}.

%%% A place: rounds, in each of which every contender has its turn at each load

place(Name, Mode, Settings) ->
    case open(Name) of
        {ok, Place} ->
            Contenders = [Contender#{held_up => []} || Contender <- contenders(Name, Mode)],
            Facts = maps:merge(maps:get(facts, Place), congestion(Contenders, Place, Settings)),
            say("~ts: ~ts", [Name, lists:join(", ", [[K, " ", V] || {K, V} <- lists:sort(maps:to_list(Facts))])]),
            Until = elapsed() + map_get(Name, maps:get(seconds, Mode)),
            Turns = rounds(1, Until, Contenders, Place, Mode, Settings) ++ idle(Contenders, Place, Mode, Settings),
            bench_place:close(Place),
            [summarised(Name, Facts, Contenders, Turns)];
        {error, Reason} ->
            say("~ts is left out: ~ts", [Name, Reason]),
            []
    end.

contenders(Place, #{libraries := Libraries}) ->
    bench_contender:libraries(Place, Libraries);
contenders(Place, #{contenders := Names}) ->
    [Contender || #{name := Name} = Contender <- bench_contender:all(Place), lists:member(Name, Names)];
contenders(Place, _) ->
    bench_contender:all(Place).

open(Name) ->
    case bench_place:possible(Name) of
        yes -> bench_place:open(Name, "bench/place.sh");
        {no, Reason} -> {error, Reason}
    end.

%% What TCP really uses there, asked of connections.
congestion(Contenders, Place, Settings) ->
    case [asked_for_congestion(C, Place, Settings) || #{carrier := inet_tcp} = C <- Contenders] of
        [] -> #{};
        Asked -> #{<<"congestion">> => iolist_to_binary(lists:join(" and ", Asked))}
    end.

asked_for_congestion(Contender, Place, Settings) ->
    case bench_pair:start(Contender, Place, Settings) of
        {ok, Pair} ->
            {ok, Names} = bench_pair:ask(Pair, congestion, ?LOAD_LIMIT_MS),
            bench_pair:stop(Pair),
            lists:join("+", Names);
        {error, Reason} ->
            ["unknown: ", Reason]
    end.

rounds(Round, _, _, _, #{rounds := Rounds}, _) when Round > Rounds ->
    [];
rounds(Round, Until, Contenders, Place, Mode, Settings) ->
    Before = elapsed(),
    {Turns, Later} = round(Round, Contenders, Place, Mode, Settings),
    Took = elapsed() - Before,
    case elapsed() + Took > Until of
        true when Round < map_get(rounds, Mode) ->
            say("no time for more than ~b rounds of ~ts", [Round, maps:get(name, Place)]),
            Turns;
        _ ->
            Turns ++ rounds(Round + 1, Until, Later, Place, Mode, Settings)
    end.

%%% A round: a pair of each contender, which all have their turn at a load before
%%% the next one. What else the machine does changes from second to second, and
%%% so it meets them alike.

round(Round, Contenders, #{name := PlaceName} = Place, Mode, Settings) ->
    say("[~4b s] ~ts, round ~b of ~b", [round(elapsed()), PlaceName, Round, maps:get(rounds, Mode)]),
    Quiet = #{others_busy => bench_stats:busy_percent(?QUIET_MS)},
    Machine = bench_stats:machine(),
    Turns = lists:foldl(fun(Load, Turns) -> turns(Load, shuffled(Turns), Place, Settings) end,
                        [{Contender, none, Quiet} || Contender <- Contenders], loads(PlaceName, Mode)),
    Stolen = #{stolen => bench_stats:stolen_percent(Machine)},
    {[begin stop(Pair), {Name, maps:merge(Figures, Stolen)} end || {#{name := Name}, Pair, Figures} <- Turns],
     [Contender || #{name := Name} <- Contenders, {#{name := N} = Contender, _, _} <- Turns, N =:= Name]}.

turns({Load, _} = What, Turns, Place, Settings) ->
    say("        ~ts", [maps:get(title, bench_figures:of_load(Load))]),
    [turn(What, Turn, Place, Settings) || Turn <- Turns].

%% Nobody is always the one to come first, or after the one that heats the processor most.
shuffled(Turns) ->
    [Turn || {_, Turn} <- lists:keysort(1, [{rand:uniform(), Turn} || Turn <- Turns])].

loads(Place, #{name := Name} = Mode) ->
    [{Load, ms(Load, Mode)} || Load <- maps:get(loads, Mode, load_names(Place, Name))].

load_names(wan, quick) -> [paced, connect, slow_stream];
load_names(wan, _) -> [paced, connect, slow_stream, slow_streams];
load_names(Place, _) when Place =:= switch; Place =:= relay_loopback -> [round_trip, flood, stream_64k, stream_16m, connect];
load_names(_, beside) -> [stream_16m, mixed, mixed_4, mixed_32];
load_names(_, quick) -> [round_trip, flood, erpc, stream_4k, stream_64k, stream_16m, mixed, connect];
load_names(_, _) -> load_names(veth, quick) ++ [mixed_4, mixed_32].

%% How often to connect, or for how long.
ms(connect, #{connects := Connects}) -> Connects;
ms(stream_16m, #{bulk_ms := Ms}) -> Ms;
ms(Load, #{mixed_ms := Ms}) when Load =:= mixed; Load =:= mixed_4; Load =:= mixed_32 -> Ms;
ms(Load, #{slow_ms := Ms}) when Load =:= paced; Load =:= slow_stream; Load =:= slow_streams -> Ms;
ms(_, #{ms := Ms}) -> Ms.

%% A load in which a contender was held up once is not repeated with it.
turn({Load, _} = What, {#{held_up := HeldUp} = Contender, Pair, Figures} = Turn, Place, Settings) ->
    case lists:member(Load, HeldUp) of
        true ->
            Turn;
        false ->
            Started = pair(Pair, Contender, Place, Settings),
            Began = elapsed(),
            {Left, New} = run_turn(What, Contender, Started),
            {Contender#{held_up := [Load || is_held_up(What, elapsed() - Began)] ++ HeldUp}, Left, maps:merge(Figures, New)}
    end.

is_held_up({connect, _}, _) -> false;
is_held_up({_, Ms}, Took) -> Took > ?HELD_UP * Ms / 1000.

%% A load that fails costs its own figures and the pair, not the run.
run_turn({Name, _} = Load, #{title := Title}, Started) ->
    case run_load(Started, Load) of
        {Pair, {ok, none}} ->
            {Pair, #{}};
        {Pair, {ok, Figures}} ->
            said(Title, Name, Figures),
            {left_by(Name, Pair), Figures};
        {Pair, {error, Reason}} ->
            say("            ~ts FAILED: ~ts", [Title, Reason]),
            stop(Pair),
            {none, #{}}
    end.

%% What these leave in buffers a slow line would carry for many seconds.
left_by(Load, Pair) when Load =:= slow_stream; Load =:= slow_streams ->
    stop(Pair),
    none;
left_by(_, Pair) ->
    Pair.

said(Title, Load, Figures) ->
    #{key := Key, unit := Unit} = bench_figures:of_load(Load),
    say("            ~ts ~ts ~ts", [Title, bench_table:number(maps:get(Key, Figures)), Unit]).

pair(none, Contender, Place, Settings) -> bench_contender:start(Contender, Place, Settings);
pair(Pair, _, _, _) -> {ok, Pair}.

run_load({ok, Pair}, {_, Ms} = Load) -> {Pair, bench_contender:load(Pair, Load, ?PATIENCE * Ms + ?LOAD_LIMIT_MS)};
run_load({error, _} = Error, _) -> {none, Error}.

stop(none) -> ok;
stop(Pair) -> bench_contender:stop(Pair).

%%% Idle links: once, since memory does not depend on who else uses the
%%% processors, and in one place, since it does not depend on that either

idle(Contenders, #{name := loopback} = Place, #{idle_links := Count}, Settings) when Count > 0 ->
    lists:append([idle_of(C, Count, Place, Settings) || #{carrier := Carrier} = C <- Contenders, Carrier =/= quinn]);
idle(_, _, _, _) ->
    [].

idle_of(#{name := Name, title := Title} = Contender, Count, Place, Settings) ->
    say("[~4b s] ~b idle links", [round(elapsed()), Count]),
    case bench_idle:measure(Contender, Count, Place, Settings) of
        {ok, Figures} ->
            said(Title, idle, Figures),
            [{Name, Figures}];
        {error, Reason} ->
            say("        FAILED: ~ts", [Reason]),
            []
    end.

%%% Summary

summarised(Name, Facts, Contenders, Turns) ->
    #{name => Name, facts => Facts,
      others_busy => bench_stats:summary([Busy || {_, #{others_busy := Busy}} <- Turns]),
      stolen => bench_stats:summary([Stolen || {_, #{stolen := Stolen}} <- Turns]),
      contenders => [summary_of(Contender, Turns) || Contender <- Contenders]}.

summary_of(#{name := Name, title := Title, part := Part}, Turns) ->
    Figures = figures(Name, Turns),
    #{name => Name, title => list_to_binary(Title), part => Part, figures => Figures,
      bulk_suffered => bulk_suffered(Figures)}.

figures(Name, Turns) ->
    Lists = lists:foldl(fun(Figures, Acc) -> maps:fold(fun add/3, Acc, Figures) end, #{},
                        [maps:without([others_busy, stolen], Figures) || {N, Figures} <- Turns, N =:= Name]),
    maps:map(fun(Key, Values) -> bench_stats:summary(bench_figures:of_rounds(Key, lists:reverse(Values))) end, Lists).

add(Key, Value, Acc) ->
    maps:update_with(Key, fun(Values) -> [Value | Values] end, [Value], Acc).

%% Quick small calls are no merit when the bulk they run beside hardly moves.
bulk_suffered(#{mixed_bulk := #{median := Beside}, stream_16m := #{median := Alone}}) -> Beside < 0.8 * Alone;
bulk_suffered(_) -> false.

load_average() ->
    case file:read_file("/proc/loadavg") of
        {ok, Text} -> binary_to_float(hd(binary:split(Text, <<" ">>)));
        {error, _} -> null
    end.

date_of_today() ->
    {Year, Month, Day} = date(),
    iolist_to_binary(io_lib:format("~4..0b-~2..0b-~2..0b", [Year, Month, Day])).

elapsed() -> now_s() - get(started).

now_s() -> erlang:monotonic_time(millisecond) / 1000.

say(Format, Args) -> io:format(standard_error, Format ++ "~n", Args).
