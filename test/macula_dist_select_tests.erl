%% Which carrier takes which node: by example, and against regular expressions.
-module(macula_dist_select_tests).

-include_lib("eunit/include/eunit.hrl").

%% Debian's PropEr comes without its header.
-import(proper, [forall/2]).
-import(proper_types, [list/1, oneof/1]).

decide_test_() ->
    Rule = [{'b@h', macula}, {"db-*@*", inet_tcp}, {<<"*@*.paris.example.org">>, inet_tcp},
            {"*@10.1.*", inet_tcp}],
    [?_assertEqual({Node, Carrier}, {Node, decide(Node, Rule)})
     || {Node, Carrier} <- [{'b@h', macula}, {'bb@h', macula}, {'db-1@h', inet_tcp}, {'db@h', macula},
                            {'a@x.paris.example.org', inet_tcp}, {'a@paris.example.org', macula},
                            {'a@x.paris.example.org:4434', macula}, {'a@10.1.2.3', inet_tcp},
                            {'a@10.10.2.3', macula}]].

first_match_decides_test() ->
    ?assertEqual(inet_tcp, decide('a@h', [{"a@*", inet_tcp}, {"*", macula}])),
    ?assertEqual(macula, decide('a@h', [{"*", macula}, {"a@*", inet_tcp}])).

%% What stands at both ends is not counted twice.
pieces_do_not_overlap_test() ->
    ?assertEqual(macula, decide('a@h', [{"a@h*@h", inet_tcp}])),
    ?assertEqual(inet_tcp, decide('a@h@h', [{"a@h*@h", inet_tcp}])).

no_rule_test() ->
    ?assertEqual(macula, decide('a@h', [])).

%% A rule may name a carrier that this VM no longer has.
absent_carrier_test() ->
    Compiled = macula_dist_select:compile([{"*", inet_tcp}], [macula]),
    ?assertEqual(macula, macula_dist_select:decide('a@h', Compiled)).

%% net_kernel asks the last carrier first; a rule can only give to the next one.
carriers_test_() ->
    [?_assertEqual(Carriers, macula_dist_select:carriers(Given))
     || {Given, Carriers} <- [{["macula"], [macula]}, {["inet_tcp", "macula"], [macula, inet_tcp]},
                              {["macula", "inet_tcp"], [macula]}, {["inet_tcp"], [macula]}, {[], [macula]},
                              {["inet_tcp", "inet_tls", "macula"], [macula, inet_tls]}]].

%% Without the carrier there is an answer as well.
no_table_test() ->
    ?assertEqual(undefined, ets:whereis(macula_dist_select)),
    ?assertEqual(ok, macula_dist_select:use([{"*", inet_tcp}])),
    ?assertEqual(macula, macula_dist_select:carrier('a@h')).

pattern_test_() ->
    case code:which(proper) of
        non_existing -> {"skipped: there is no PropEr here (Debian: erlang-proper)", []};
        _ -> macula_property:test(patterns, patterns(), 5_000)
    end.

%% Few letters, so that patterns match often and in several ways.
patterns() ->
    Text = list(oneof("ab.@")),
    forall({list(oneof("ab.@*")), Text},
           fun({Pattern, Name}) ->
                   macula_property:holds(
                     fun() -> (decide(list_to_atom(Name), [{Pattern, inet_tcp}]) =:= inet_tcp)
                                  =:= is_match(Pattern, Name) end)
           end).

is_match(Pattern, Name) ->
    re:run(Name, ["^", [expression(Char) || Char <- Pattern], "$"], [{capture, none}, dollar_endonly]) =:= match.

expression($*) -> ".*";
expression(Char) when Char =:= $. -> "\\.";
expression(Char) -> Char.

decide(Node, Rule) ->
    macula_dist_select:decide(Node, macula_dist_select:compile(Rule, [macula, inet_tcp])).
