%% @doc A picture of the same: one small panel per figure, in it three bars
%% for each place. Bars start at zero; the thin line goes from the worst to
%% the best round.
-module(bench_plot).

-export([svg/1]).

-define(COLUMNS, 3).
-define(PANEL, 360).
-define(GAP, 24).
-define(LEFT, 70).
-define(VALUE, 64).
-define(BAR, 15).
-define(TOP, 76).

-spec svg(map()) -> unicode:chardata().
svg(#{mode := Mode, otp := Otp, cores := Cores, places := Places}) ->
    Figures = bench_figures:all(),
    Height = panel_height(length(Places)),
    Rows = (length(Figures) + ?COLUMNS - 1) div ?COLUMNS,
    Width = ?COLUMNS * (?PANEL + ?GAP) + ?GAP,
    [io_lib:format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"~b\" height=\"~b\" "
                   "font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"12\">~n"
                   "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>~n",
                   [Width, ?TOP + Rows * (Height + ?GAP)]),
     text(?GAP, 30, "start", "18", "bold", "Erlang distribution: macula beside inet_tcp and inet_tls"),
     text(?GAP, 52, "start", "12", "normal",
          io_lib:format("~ts run, OTP ~ts, ~b cores for both nodes; ~ts",
                        [Mode, Otp, Cores, lists:join("; ", [about(P) || P <- Places])])),
     [panel(Index, Height, Figure, Places) || {Index, Figure} <- lists:enumerate(Figures)],
     "</svg>\n"].

about(#{name := Name, facts := #{<<"mtu">> := Mtu, <<"congestion">> := Congestion}}) ->
    io_lib:format("~ts: MTU ~ts, TCP with ~ts", [Name, Mtu, Congestion]).

panel_height(Places) -> 34 + Places * (20 + 3 * (?BAR + 3)) + 4.

panel(Index, Height, #{title := Title, unit := Unit, better := Better} = Figure, Places) ->
    X = ?GAP + ((Index - 1) rem ?COLUMNS) * (?PANEL + ?GAP),
    Y = ?TOP + ((Index - 1) div ?COLUMNS) * (Height + ?GAP),
    Scale = scale(Figure, Places),
    [io_lib:format("<g transform=\"translate(~b,~b)\">~n<rect width=\"~b\" height=\"~b\" rx=\"4\" fill=\"#f6f7f9\"/>~n",
                   [X, Y, ?PANEL, Height]),
     text(10, 20, "start", "13", "bold", Title),
     text(?PANEL - 10, 20, "end", "11", "normal", [Unit, ", ", atom_to_list(Better), " is better"]),
     [group(34 + (I - 1) * (20 + 3 * (?BAR + 3)), Figure, Scale, Place) || {I, Place} <- lists:enumerate(Places)],
     "</g>\n"].

group(Y, #{key := Key}, Scale, #{name := Name, carriers := Carriers}) ->
    [text(10, Y + 12, "start", "11", "bold", atom_to_list(Name)),
     [bar(Y + 18 + (I - 1) * (?BAR + 3), Carrier, Key, Scale) || {I, Carrier} <- lists:enumerate(Carriers)]].

bar(Y, #{name := Name, figures := Figures, bulk_suffered := Suffered}, Key, Scale) ->
    [text(?LEFT - 4, Y + 12, "end", "11", "normal", atom_to_list(Name)),
     case Figures of
         #{Key := Summary} -> measured(Y, Name, Summary, Scale, mark(Suffered, Key));
         #{} -> text(?LEFT + 4, Y + 12, "start", "11", "normal", "failed")
     end].

%% See bench_report: small calls whose bulk did not run as it should.
mark(true, Key) when Key =:= mixed_p50; Key =:= mixed_p99 -> " *";
mark(_, _) -> "".

measured(Y, Name, #{median := Median, min := Min, max := Max}, Scale, Mark) ->
    Room = ?PANEL - ?LEFT - ?VALUE,
    At = fun(Value) -> min(Room * Value / Scale, float(Room)) end,
    [io_lib:format("<rect x=\"~b\" y=\"~b\" width=\"~.1f\" height=\"~b\" fill=\"~ts\"/>~n",
                   [?LEFT, Y, max(At(Median), 0.5), ?BAR, colour(Name)]),
     io_lib:format("<line x1=\"~.1f\" x2=\"~.1f\" y1=\"~.1f\" y2=\"~.1f\" stroke=\"#222222\"/>~n",
                   [?LEFT + At(Min), ?LEFT + At(Max), Y + ?BAR / 2, Y + ?BAR / 2]),
     [cut(?LEFT + Room, Y) || Median > Scale],
     text(?LEFT + ceil(max(At(Median), At(Max))) + 5, Y + 12, "start", "11", "normal",
          [bench_report:number(Median), Mark])].

%% The bar is longer than there is room for.
cut(Right, Y) ->
    io_lib:format("<path d=\"M~b ~b l6 -~b h5 l-6 ~b z\" fill=\"#f6f7f9\"/>~n", [Right - 24, Y + ?BAR, ?BAR, ?BAR]).

%% One carrier that is worse by orders of magnitude would leave the others without
%% any length to compare.
scale(#{key := Key}, Places) ->
    Medians = [Median || #{carriers := Carriers} <- Places, #{figures := #{Key := #{median := Median}}} <- Carriers],
    Sorted = lists:sort(Medians),
    case Sorted of
        [] -> 1.0;
        _ -> max(min(lists:last(Sorted), 6 * bench_stats:median(Sorted)), 1.0e-9)
    end.

colour(inet_tcp) -> "#9aa5b1";
colour(inet_tls) -> "#e0a458";
colour(macula) -> "#2a6fb0".

text(X, Y, Anchor, Size, Weight, Text) ->
    io_lib:format("<text x=\"~b\" y=\"~b\" text-anchor=\"~ts\" font-size=\"~ts\" font-weight=\"~ts\">~ts</text>~n",
                  [X, Y, Anchor, Size, Weight, Text]).
