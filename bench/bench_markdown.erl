%% @doc The tables for docs/performance.md.
-module(bench_markdown).

-export([text/1]).

-spec text(map()) -> unicode:chardata().
text(#{mode := Mode, otp := Otp, cores := Cores, date := Date, seconds := Seconds, places := Places}) ->
    [io_lib:format("A ~ts run of ~b s on ~ts, OTP ~ts, one machine whose ~b cores are shared by all that runs.~n",
                   [Mode, Seconds, Date, Otp, Cores]),
     [place(Place) || Place <- Places],
     [promises(Place) || #{name := Name} = Place <- Places, bench_figures:promises(Name) =/= []]].

place(#{others_busy := #{median := Median, max := Max}, stolen := #{median := Stolen, max := Most}} = Place) ->
    [io_lib:format("~n**~ts.** Other programs used ~b % of the processors in the median before each round, "
                   "~b % at most; the machine's host took ~b % of their time during a round, ~b % at most.~n~n",
                   [bench_table:headline(Place), round(Median), round(Max), round(Stolen), round(Most)]),
     table([named(Cells) || Cells <- [bench_table:head(Place) | bench_table:rows(Place)]])].

named([Title, "" | Cells]) -> [Title | Cells];
named([Title, Unit | Cells]) -> [[Title, ", ", Unit] | Cells].

promises(#{name := Name} = Place) ->
    [io_lib:format("~n**Promised, on ~ts.**~n~n", [Name]),
     table([["", "measured", ""] | [[Title, Measured, kept(Kept)]
                                    || {Title, Measured, Kept} <- bench_table:promised(Place)]])].

kept(true) -> "kept";
kept(false) -> "**missed**".

table([Head | Rows]) ->
    [row(Head), row(["---" | ["--:" || _ <- tl(Head)]]) | [row(Row) || Row <- Rows]].

row(Cells) ->
    [["| ", lists:join(" | ", [escaped(Cell) || Cell <- Cells]), " |\n"]].

%% Two tildes in a row would strike through, and spread is padded for a terminal.
escaped(Cell) ->
    re:replace(string:replace(Cell, "*", "\\*", all), "~ *", "\\\\~", [global, {return, list}]).
