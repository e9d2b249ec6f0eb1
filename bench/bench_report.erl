%% @doc The table: for each place a line per figure, medians with their spread
%% and what macula's is to the others'.
-module(bench_report).

-export([text/1, number/1]).

-spec text(map()) -> unicode:chardata().
text(#{mode := Mode, otp := Otp, cores := Cores, seconds := Seconds, load_before := Before, load_after := After,
       places := Places}) ->
    [io_lib:format("~nErlang distribution, ~ts run of ~b s, OTP ~ts, ~b cores for both nodes, "
                   "load average ~tp before and ~tp after~n",
                   [Mode, Seconds, Otp, Cores, Before, After]),
     [place(Place) || Place <- Places],
     "\nMedians of all rounds, ~ is half of what lies between the best and the worst round.\n"
     "+ better, - worse, = within 5 %.\n"
     "* the bulk ran below 0.8 of its rate without small calls.\n"].

place(#{name := Name, facts := #{<<"mtu">> := Mtu, <<"congestion">> := Congestion}, carriers := Carriers,
        others_busy := Busy}) ->
    [io_lib:format("~n~ts, MTU ~ts, TCP with ~ts, QUIC with cubic~n", [Name, Mtu, Congestion]),
     line(["", "", "inet_tcp", "inet_tls", "macula", "/ inet_tcp", "/ inet_tls"]),
     [figure(Figure, Carriers) || Figure <- bench_figures:all()],
     others(Busy)].

%% On a busy machine the figures of the carrier that needs least suffer least.
others(#{median := Median, max := Max}) ->
    io_lib:format("  before each turn other programs used ~b % of the processors in the median, ~b % at most~ts~n",
                  [round(Median), round(Max), [": do not trust this run" || Median > 10]]).

figure(#{key := Key, title := Title, unit := Unit, better := Better}, Carriers) ->
    [Tcp, Tls, Macula] = [cell(Key, Carrier) || Carrier <- Carriers],
    line([Title, Unit, shown(Tcp), shown(Tls), shown(Macula), ratio(Better, Macula, Tcp), ratio(Better, Macula, Tls)]).

cell(Key, #{figures := Figures, bulk_suffered := Suffered}) ->
    case Figures of
        #{Key := Summary} -> Summary#{mark => mark(Suffered andalso lists:member(Key, [mixed_p50, mixed_p99]))};
        #{} -> missing
    end.

mark(true) -> "*";
mark(false) -> "".

shown(missing) ->
    "failed";
shown(#{median := Median, min := Min, max := Max, mark := Mark}) ->
    io_lib:format("~ts~ts ~~~3b%", [number(Median), Mark, round(50 * (Max - Min) / max(Median, 1.0e-9))]).

ratio(_, missing, _) -> "";
ratio(_, _, missing) -> "";
ratio(Better, #{median := Ours}, #{median := Theirs}) ->
    io_lib:format("~ts ~ts", [number(Ours / max(Theirs, 1.0e-9)), sign(bench_figures:better(Better, Ours, Theirs))]).

sign(better) -> "+";
sign(worse) -> "-";
sign(same) -> "=".

line([Title, Unit, Tcp, Tls, Macula, ToTcp, ToTls]) ->
    Text = io_lib:format("  ~-21ts~-8ts~16ts~16ts~16ts~12ts~12ts",
                         [Title, Unit | [lists:flatten(Cell) || Cell <- [Tcp, Tls, Macula, ToTcp, ToTls]]]),
    [string:trim(Text, trailing), $\n].

%% @doc Three digits that mean something; more would only be noise.
-spec number(number()) -> string().
number(Number) ->
    Value = float(Number),
    if
        Value >= 100.0 -> integer_to_list(rounded(Value));
        Value >= 10.0 -> float_to_list(Value, [{decimals, 1}]);
        Value >= 0.1 -> float_to_list(Value, [{decimals, 2}]);
        true -> float_to_list(Value, [{decimals, 3}])
    end.

rounded(Value) when Value < 1000.0 -> round(Value);
rounded(Value) -> Unit = floor(math:pow(10, floor(math:log10(Value)) - 2)), round(Value / Unit) * Unit.
