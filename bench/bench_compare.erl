%% @doc The latest two runs of one kind beside each other: `./dev bench compare'.
%% What is compared is what the bench is read for, macula's ratios to the
%% others; on an idle machine they should stay as they are.
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
    [{{Place, Key, Name}, bench_stats:ratio(Our, Their)}
     || #{key := Key} <- bench_figures:all(), #{Key := Our} <- [Ours],
        #{name := Name, part := compared, figures := #{Key := #{median := Median} = Their}} <- Contenders, Median > 0].

-spec main() -> no_return().
main() ->
    case latest_two() of
        [Newer, Older] ->
            {ok, [Before]} = file:consult(Older),
            {ok, [After]} = file:consult(Newer),
            io:format("~ts~n~ts~n~n", [Older, Newer]),
            report([{What, Was, Is} || {What, Is} <- After, {W, Was} <- Before, W =:= What]),
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
    Rows = [{What, Was, Is, 100 * (max(Was, Is) / max(min(Was, Is), 1.0e-9) - 1)} || {What, Was, Is} <- Changes],
    lists:foreach(fun row/1, Rows),
    Same = length([same || {_, _, _, Percent} <- Rows, Percent =< ?SAME_PERCENT]),
    io:format("~n~b of ~b ratios within ~b %~n", [Same, length(Rows), ?SAME_PERCENT]).

row({{Place, Key, Name}, Was, Is, Percent}) ->
    #{title := Title} = hd([F || #{key := K} = F <- bench_figures:all(), K =:= Key]),
    io:format("~-9ts ~-21ts / ~-15ts ~8ts ~8ts ~6b % ~ts~n",
              [Place, Title, Name, bench_table:number(Was), bench_table:number(Is), round(Percent),
               [$! || Percent > ?SAME_PERCENT]]).
