%% @doc Terms to JSON: as much of it as the bench needs, since OTP has it only
%% from release 27 on.
-module(bench_json).

-export([encode/1]).

%% @doc Lists are arrays, atoms and binaries are strings.
-spec encode(term()) -> iolist().
encode(Term) -> [value(Term, 0), $\n].

value(Map, Depth) when is_map(Map) ->
    Members = [[string(Key), ": ", value(Value, Depth + 1)] || {Key, Value} <- lists:sort(maps:to_list(Map))],
    block(${, Members, $}, Depth);
value([First | _] = Numbers, _) when is_number(First) ->
    [$[, lists:join(", ", [value(Number, 0) || Number <- Numbers]), $]];
value(List, Depth) when is_list(List) ->
    block($[, [value(Element, Depth + 1) || Element <- List], $], Depth);
value(Number, _) when is_integer(Number) -> integer_to_list(Number);
value(Number, _) when is_float(Number) -> float_to_list(Number, [{decimals, 6}, compact]);
value(Literal, _) when Literal =:= true; Literal =:= false; Literal =:= null -> atom_to_list(Literal);
value(Text, _) -> string(Text).

block(Open, [], Close, _) ->
    [Open, Close];
block(Open, Elements, Close, Depth) ->
    Indent = fun(By) -> [$\n, lists:duplicate(2 * By, $\s)] end,
    [Open, lists:join($,, [[Indent(Depth + 1), Element] || Element <- Elements]), Indent(Depth), Close].

string(Atom) when is_atom(Atom) -> string(atom_to_binary(Atom));
string(Text) when is_binary(Text) -> [$", [escaped(Char) || <<Char>> <= Text], $"].

escaped($") -> "\\\"";
escaped($\\) -> "\\\\";
escaped(Char) when Char < 32 -> io_lib:format("\\u~4.16.0b", [Char]);
escaped(Char) -> Char.
