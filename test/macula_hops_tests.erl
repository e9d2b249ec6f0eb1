%% The hop trace costs nothing where nobody asked for it: nothing of it is in the code.
-module(macula_hops_tests).

-include_lib("eunit/include/eunit.hrl").

-define(STAMPED, [macula_dist_bridge, macula_dist_input]).

no_module_calls_it_test_() ->
    [{atom_to_list(Module), ?_assertNot(calls_hop(code:which(Module)))} || Module <- ?STAMPED].

modules_built_for_it_do_test_() ->
    [{atom_to_list(Module), ?_assert(calls_hop(built_with_hops(Module)))} || Module <- ?STAMPED].

the_library_notes_nothing_test() ->
    ok = macula_nif:hop(sent),
    ?assertEqual(not_recorded, macula_nif:hops()).

an_unknown_hop_is_refused_test() ->
    ?assertError(badarg, macula_nif:hop(nowhere)).

calls_hop(Beam) ->
    {ok, {_, [{imports, Imports}]}} = beam_lib:chunks(Beam, [imports]),
    lists:member({macula_nif, hop, 1}, Imports).

built_with_hops(Module) ->
    Source = proplists:get_value(source, Module:module_info(compile)),
    {ok, Module, Beam} = compile:file(Source, [binary, {d, 'MACULA_HOPS'}]),
    Beam.
