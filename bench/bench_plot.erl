%% @doc A picture of the same: one small panel per figure, in it a bar for each
%% contender of each place. Bars start at zero; the thin line goes from the worst to
%% the best round.
-module(bench_plot).

-export([svg/1]).

-define(COLUMNS, 3).
-define(PANEL, 360).
-define(GAP, 24).
-define(LEFT, 96).
-define(VALUE, 64).
-define(BAR, 15).
-define(TOP, 112).

-spec svg(map()) -> unicode:chardata().
svg(#{mode := Mode, otp := Otp, cores := Cores, places := Places}) ->
    Panels = [{Figure, Shown} || Figure <- bench_figures:all(), Shown <- [with_figure(Figure, Places)], Shown =/= []],
    {Drawn, Bottom} = lists:mapfoldl(fun row/2, ?TOP, in_rows(Panels)),
    [io_lib:format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"~b\" height=\"~b\" "
                   "font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"12\">~n"
                   "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>~n",
                   [?COLUMNS * (?PANEL + ?GAP) + ?GAP, Bottom]),
     text(?GAP, 28, "start", "18", "bold", ["Erlang distribution: ", beside(Mode)]),
     text(?GAP, 48, "start", "12", "normal",
          io_lib:format("~ts run, OTP ~ts, ~b cores for both nodes", [Mode, Otp, Cores])),
     [text(?GAP, 48 + 16 * N, "start", "12", "normal", bench_table:headline(Place))
      || {N, Place} <- lists:enumerate(Places)],
     Drawn,
     "</svg>\n"].

beside(relay) -> "macula through a relay beside macula directly";
beside(_) -> "macula beside inet_tcp, inet_tls and bare QUIC".

%% The places that have the figure, with the contenders that have it.
with_figure(#{key := Key}, Places) ->
    [Place#{contenders := Having} || #{contenders := Contenders} = Place <- Places,
                                     Having <- [[C || #{figures := #{Key := _}} = C <- Contenders]], Having =/= []].

in_rows(Panels) when length(Panels) > ?COLUMNS ->
    {Row, Rest} = lists:split(?COLUMNS, Panels),
    [Row | in_rows(Rest)];
in_rows(Panels) ->
    [Panels].

row(Panels, Y) ->
    Height = lists:max([panel_height(Places) || {_, Places} <- Panels]),
    {[panel(?GAP + (I - 1) * (?PANEL + ?GAP), Y, Height, Figure, Places)
      || {I, {Figure, Places}} <- lists:enumerate(Panels)], Y + Height + ?GAP}.

panel_height(Places) -> 38 + lists:sum([group_height(Place) || Place <- Places]).

group_height(#{contenders := Contenders}) -> 24 + length(Contenders) * (?BAR + 3).

panel(X, Y, Height, #{title := Title, unit := Unit, better := Better} = Figure, Places) ->
    Scale = scale(Figure, Places),
    {Groups, _} = lists:mapfoldl(fun(Place, Top) -> {group(Top, Figure, Scale, Place), Top + group_height(Place)} end,
                                 34, Places),
    [io_lib:format("<g transform=\"translate(~b,~b)\">~n<rect width=\"~b\" height=\"~b\" rx=\"4\" fill=\"#f6f7f9\"/>~n",
                   [X, Y, ?PANEL, Height]),
     text(10, 20, "start", "13", "bold", Title),
     text(?PANEL - 10, 20, "end", "11", "normal", [Unit, ", ", atom_to_list(Better), " is better"]),
     Groups,
     "</g>\n"].

group(Y, #{key := Key}, Scale, #{name := Name, contenders := Contenders}) ->
    [text(10, Y + 12, "start", "11", "bold", atom_to_list(Name)),
     [bar(Y + 18 + (I - 1) * (?BAR + 3), Contender, Key, Scale) || {I, Contender} <- lists:enumerate(Contenders)]].

bar(Y, #{name := Name, title := Title, figures := #{} = Figures, bulk_suffered := Suffered}, Key, Scale) ->
    [text(?LEFT - 4, Y + 12, "end", "11", "normal", Title),
     measured(Y, Name, maps:get(Key, Figures), Scale, mark(Suffered, Key))].

%% See bench_table: small calls whose bulk did not run as it should.
mark(true, Key) when Key =:= mixed_p50; Key =:= mixed_p99; Key =:= mixed_max -> " *";
mark(_, _) -> "".

measured(Y, Name, #{median := Median, min := Min, max := Max}, Scale, Mark) ->
    Room = ?PANEL - ?LEFT - ?VALUE,
    At = fun(Value) -> max(0.0, min(Room * Value / Scale, float(Room))) end,
    [io_lib:format("<rect x=\"~b\" y=\"~b\" width=\"~.1f\" height=\"~b\" fill=\"~ts\"/>~n",
                   [?LEFT, Y, max(At(Median), 0.5), ?BAR, colour(Name)]),
     io_lib:format("<line x1=\"~.1f\" x2=\"~.1f\" y1=\"~.1f\" y2=\"~.1f\" stroke=\"#222222\"/>~n",
                   [?LEFT + At(Min), ?LEFT + At(Max), Y + ?BAR / 2, Y + ?BAR / 2]),
     [cut(?LEFT + Room, Y) || Median > Scale],
     text(?LEFT + ceil(max(At(Median), At(Max))) + 5, Y + 12, "start", "11", "normal",
          [bench_table:number(Median), Mark])].

%% The bar is longer than there is room for.
cut(Right, Y) ->
    io_lib:format("<path d=\"M~b ~b l6 -~b h5 l-6 ~b z\" fill=\"#f6f7f9\"/>~n", [Right - 24, Y + ?BAR, ?BAR, ?BAR]).

%% One carrier that is worse by orders of magnitude would leave the others without
%% any length to compare.
scale(#{key := Key}, Places) ->
    Medians = [Median || #{contenders := Contenders} <- Places,
                         #{figures := #{Key := #{median := Median}}} <- Contenders],
    Sorted = lists:sort(Medians),
    case Sorted of
        [] -> 1.0;
        _ -> max(min(lists:last(Sorted), 6 * bench_stats:median(Sorted)), 1.0e-9)
    end.

colour(Name) when Name =:= inet_tcp; Name =:= inet_tcp_cubic -> "#9aa5b1";
colour(inet_tcp_bbr) -> "#7b8794";
colour(Name) when Name =:= inet_tls; Name =:= inet_tls_cubic -> "#e0a458";
colour(inet_tls_bbr) -> "#c98a3a";
colour(relayed) -> "#8e5ea2";
colour(one_stream) -> "#a9c4de";
colour(macula) -> "#2a6fb0";
colour(macula_bbr) -> "#1b4a78";
colour(quinn) -> "#7fb069".

text(X, Y, Anchor, Size, Weight, Text) ->
    io_lib:format("<text x=\"~b\" y=\"~b\" text-anchor=\"~ts\" font-size=\"~ts\" font-weight=\"~ts\">~ts</text>~n",
                  [X, Y, Anchor, Size, Weight, Text]).
