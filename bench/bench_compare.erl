%% @doc The latest two runs of one kind beside each other: `./dev bench compare'.
%% What is compared is what the bench is read for, macula's ratios to the
%% others; on an idle machine they should stay as they are, or within what the
%% rounds of each run leave open.
-module(bench_compare).

-export([keep/2, main/0]).

-define(DIR, "_build/bench/runs").
%% Above this, two runs on an idle machine do not say the same.
-define(SAME_PERCENT, 15).

%% @doc Keeps a run for later comparisons, under its kind and time.
-spec keep(atom(), [map()]) -> ok.
keep(Mode, Places) ->
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:local_time(),
    File = io_lib:format("~ts/~ts-~4..0b~2..0b~2..0bT~2..0b~2..0b~2..0b.term",
                         [?DIR, Mode, Year, Month, Day, Hour, Minute, Second]),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, io_lib:format("~tp.~n", [lists:append([ratios(Place) || Place <- Places])])).

ratios(#{name := Place, contenders := Contenders}) ->
    #{figures := Ours} = bench_contender:subject(Contenders),
    [{{Place, Key, Name}, bench_stats:ratio(Our, Their), bench_stats:range(Our, Their)}
     || #{key := Key} <- bench_figures:all(), #{Key := Our} <- [Ours],
        #{name := Name, part := compared, figures := #{Key := #{median := Median} = Their}} <- Contenders, Median > 0].

-spec main() -> no_return().
main() ->
    case latest_two() of
        [Newer, Older] ->
            {ok, [Before]} = file:consult(Older),
            {ok, [After]} = file:consult(Newer),
            io:format("~ts~n~ts~n~n", [Older, Newer]),
            report([{What, {Was, WasIn}, {Is, IsIn}} || {What, Is, IsIn} <- After, {W, Was, WasIn} <- Before, W =:= What]),
            halt(0);
        _ ->
            io:format(standard_error, "bench: ~ts holds no two runs of one kind~n", [?DIR]),
            halt(1)
    end.

%% Their names sort by time within a kind.
latest_two() ->
    Runs = lists:reverse(lists:sort(filelib:wildcard(?DIR ++ "/*.term"))),
    Kinds = [[Run || Run <- Runs, lists:prefix(?DIR ++ "/" ++ Kind, Run)] || Kind <- ["full", "quick", "beside", "relay"]],
    lists:append([lists:sublist(Kind, 2) || Kind <- lists:sublist([K || K <- Kinds, length(K) > 1], 1)]).

report(Changes) ->
    Verdicts = [verdict(Change) || Change <- Changes],
    lists:foreach(fun row/1, lists:zip(Changes, Verdicts)),
    Count = fun(Verdict) -> length([V || V <- Verdicts, V =:= Verdict]) end,
    io:format("~n~b of ~b ratios within ~b %, ~b more within what the rounds of each run leave open, ~b changed~n",
              [Count(same), length(Changes), ?SAME_PERCENT, Count(open), Count(changed)]).

verdict({_, {Was, {WasLow, WasHigh}}, {Is, {IsLow, IsHigh}}}) ->
    case percent(Was, Is) of
        Percent when Percent =< ?SAME_PERCENT -> same;
        %% One value, as of the longest wait, tells nothing of the next one.
        _ when WasLow =:= WasHigh; IsLow =:= IsHigh -> open;
        _ when IsLow =< WasHigh, WasLow =< IsHigh -> open;
        _ -> changed
    end.

percent(Was, Is) -> 100 * (max(Was, Is) / max(min(Was, Is), 1.0e-9) - 1).

row({{{Place, Key, Name}, {Was, WasIn}, {Is, IsIn}}, Verdict}) ->
    #{title := Title} = hd([F || #{key := K} = F <- bench_figures:all(), K =:= Key]),
    io:format("~-9ts ~-27ts / ~-14ts ~-24ts ~-24ts ~5b % ~ts~n",
              [Place, Title, Name, ratio(Was, WasIn), ratio(Is, IsIn), round(percent(Was, Is)), mark(Verdict)]).

ratio(Ratio, {Low, High}) ->
    io_lib:format("~ts (~ts to ~ts)", [bench_table:number(N) || N <- [Ratio, Low, High]]).

mark(same) -> "";
mark(open) -> "?";
mark(changed) -> "!".
