%% @doc The cells of a place's table, for whoever prints one: a column for each
%% contender, then what macula's figure is to those it is compared with.
-module(bench_table).

-export([headline/1, head/1, rows/1, promised/1, number/1]).

-type cells() :: [string()].

%% @doc Where that was, in a line.
-spec headline(map()) -> string().
headline(#{name := Name, facts := #{<<"mtu">> := Mtu} = Facts}) ->
    Line = [[", ", Line] || #{<<"line">> := Line} <- [Facts]],
    Tcp = [[", TCP with ", Congestion] || #{<<"congestion">> := Congestion} <- [Facts]],
    flat("~ts, MTU ~ts~ts~ts, QUIC with cubic", [Name, Mtu, Line, Tcp]).

-spec head(map()) -> cells().
head(#{contenders := Contenders}) ->
    ["", ""] ++ [flat("~ts", [Title]) || #{title := Title} <- Contenders]
        ++ [flat("/ ~ts", [Title]) || #{title := Title} <- compared(Contenders)].

%% @doc One for each figure that anybody has.
-spec rows(map()) -> [cells()].
rows(#{contenders := Contenders}) ->
    [row(Figure, Contenders) || #{key := Key} = Figure <- bench_figures:all(),
                                lists:any(fun(#{figures := Figures}) -> is_map_key(Key, Figures) end, Contenders)].

row(#{key := Key, title := Title, unit := Unit, better := Better}, Contenders) ->
    #{figures := Subject} = bench_contender:subject(Contenders),
    [Title, Unit] ++ [shown(Key, Contender) || Contender <- Contenders]
        ++ [ratio(Better, maps:get(Key, Subject, none), maps:get(Key, Figures, none)) || #{figures := Figures} <- compared(Contenders)].

compared(Contenders) ->
    [Contender || #{part := compared} = Contender <- Contenders].

%% Not every run measures every contender, nor each of them all figures.
figure(Name, Key, Contenders) ->
    case [Figure || #{name := N, figures := #{Key := Figure}} <- Contenders, N =:= Name] of
        [Figure] -> Figure;
        [] -> none
    end.

shown(Key, #{figures := Figures, bulk_suffered := Suffered}) ->
    case Figures of
        #{Key := #{median := Median, values := [_]}} -> number(Median) ++ mark(Key, Suffered);
        #{Key := #{median := Median, min := Min, max := Max}} ->
            Spread = round(50 * (Max - Min) / max(abs(Median), 1.0e-9)),
            flat("~ts~ts ~~~3b%", [number(Median), mark(Key, Suffered), Spread]);
        #{} -> ""
    end.

%% The bulk beside which these calls ran did not run as it should.
mark(Key, true) when Key =:= mixed_p50; Key =:= mixed_p99; Key =:= mixed_max -> "*";
mark(_, _) -> "".

ratio(_, none, _) -> "";
ratio(_, _, none) -> "";
%% Less than nothing: memory that the emulator happened to give back.
ratio(_, _, #{median := Theirs}) when Theirs =< 0 -> "";
ratio(Better, Ours, Theirs) ->
    Ratio = bench_stats:ratio(Ours, Theirs),
    flat("~ts ~ts", [number(Ratio), sign(Better, Ratio, bench_stats:range(Ours, Theirs))]).

sign(_, _, {Low, High}) when Low < 1, High > 1 -> "?";
sign(Better, Ratio, _) -> sign(bench_figures:better(Better, Ratio, 1)).

sign(better) -> "+";
sign(worse) -> "-";
sign(same) -> "=".

%% @doc What was promised, what it was against, and what came of it.
-spec promised(map()) -> [{Promise :: string(), Measured :: string(), boolean()}].
promised(#{name := Place, contenders := Contenders}) ->
    #{name := Subject} = bench_contender:subject(Contenders),
    [{Title, flat("~ts ~ts", [number(Measured), unit(Key, Against)]), kept(Way, Measured, Bound)}
     || {Title, Key, Way, Bound, Against} <- bench_figures:promises(Place),
        Measured <- measured(figure(Subject, Key, Contenders), Against, Contenders)].

measured(none, _, _) -> [];
measured(#{median := Ours}, absolute, _) -> [Ours];
measured(Ours, {times, Name, Key}, Contenders) ->
    [bench_stats:ratio(Ours, Theirs) || #{} = Theirs <- [figure(Name, Key, Contenders)]].

unit(_, {times, _, _}) -> "times";
unit(Key, absolute) -> hd([Unit || #{key := K, unit := Unit} <- bench_figures:all(), K =:= Key]).

kept(at_least, Measured, Bound) -> Measured >= Bound;
kept(at_most, Measured, Bound) -> Measured =< Bound.

%% @doc Three digits that mean something; more would only be noise.
-spec number(number()) -> string().
number(Number) when Number < 0 -> "-" ++ number(-Number);
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

flat(Format, Args) ->
    lists:flatten(io_lib:format(Format, Args)).
