%% @doc The tables for a terminal.
-module(bench_report).

-export([text/1]).

-spec text(map()) -> unicode:chardata().
text(#{mode := Mode, otp := Otp, cores := Cores, seconds := Seconds, load_before := Before, load_after := After,
       places := Places}) ->
    [io_lib:format("~nErlang distribution, ~ts run of ~b s, OTP ~ts, ~b cores for both nodes, "
                   "load average ~tp before and ~tp after~n",
                   [Mode, Seconds, Otp, Cores, Before, After]),
     [place(Place) || Place <- Places],
     "\nMedians of all rounds, ~ is half of what lies between the best and the worst round; longest: of all rounds.\n",
     legend(Mode),
     [promises(Place) || #{name := Name} = Place <- Places, Mode =/= against, bench_figures:promises(Name) =/= []]].

legend(relay) ->
    "+ relayed is better, - worse, = within 5 %, ? the rounds do not tell.\n";
legend(against) ->
    "+ macula is better than what it is measured against, - worse, = within 5 %, ? the rounds do not tell.\n";
legend(_) ->
    "+ macula is better, - worse, = within 5 %, ? the rounds do not tell. Bare quinn: no Erlang, one QUIC stream.\n"
    "* the bulk ran below 0.8 of its rate without small calls.\n".

place(Place) ->
    Rows = [bench_table:head(Place) | bench_table:rows(Place)],
    Widths = [lists:max([string:length(Cell) || Cell <- Column]) || Column <- columns(Rows)],
    [io_lib:format("~n~ts~n", [bench_table:headline(Place)]), [line(Row, Widths) || Row <- Rows], others(Place)].

columns([[] | _]) -> [];
columns(Rows) -> [[hd(Row) || Row <- Rows] | columns([tl(Row) || Row <- Rows])].

%% Title and unit to the left, figures to the right.
line([Title, Unit | Figures], [TitleWidth, UnitWidth | Widths]) ->
    Padded = [["  ", string:pad(Text, Width, Where)]
              || {Text, Width, Where} <- [{Title, TitleWidth, trailing}, {Unit, UnitWidth, trailing}
                                          | [{Text, Width, leading} || {Text, Width} <- lists:zip(Figures, Widths)]]],
    [string:trim(Padded, trailing), $\n].

%% On a busy machine the figures of the carrier that needs least suffer least.
others(#{others_busy := #{median := Median, max := Max}, stolen := #{median := Stolen, max := Most}}) ->
    io_lib:format("  before each round other programs used ~b % of the processors in the median, ~b % at most;~n"
                  "  the machine's host took ~b % of their time during a round, ~b % at most~ts~n",
                  [round(Median), round(Max), round(Stolen), round(Most), [": do not trust this run" || Median > 10]]).

promises(#{name := Name} = Place) ->
    [io_lib:format("~nPromised, on ~ts:~n", [Name]),
     [io_lib:format("  ~-45ts~-15ts~ts~n", [Title, Measured, kept(Kept)])
      || {Title, Measured, Kept} <- bench_table:promised(Place)]].

kept(true) -> "kept";
kept(false) -> "MISSED".
