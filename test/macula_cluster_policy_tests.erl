-module(macula_cluster_policy_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(macula_property, [holds/1]).

-define(OPTIONS, #{own => 'm@h', first => 100, max => 5_000, stranger_max => 60_000}).

%% A new node is called at once by the one with the smaller name, and a little later by the other.
courtesy_test() ->
    P = heard('z@h', 0, heard('a@h', 0, new())),
    {['z@h'], P1} = macula_cluster_policy:due(0, P),
    ?assertEqual(300, macula_cluster_policy:next(0, P1)),
    ?assertMatch({['a@h'], _}, macula_cluster_policy:due(300, P1)).

%% A node that is connected when it is heard of is not called.
connected_already_test() ->
    P = heard('z@h', 0, macula_cluster_policy:up('z@h', 0, new())),
    ?assertMatch({[], _}, macula_cluster_policy:due(1_000, P)),
    ?assertEqual(['z@h'], macula_cluster_policy:connected(P)).

%% Failures: pauses grow to their bound, and never end.
backoff_test() ->
    Pauses = pauses(12, kept('z@h')),
    [?assert(Pause >= Full div 2 andalso Pause =< Full, {Pause, Full})
     || {Pause, Full} <- lists:zip(Pauses, [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000, 5_000, 5_000, 5_000, 5_000])].

%% Pauses differ between nodes: not all call at the same moment.
jitter_test() ->
    First = [hd(pauses(1, macula_cluster_policy:keep('z@h', 0, macula_cluster_policy:new(?OPTIONS, Seed))))
             || Seed <- lists:seq(1, 50)],
    ?assert(length(lists:usort(First)) > 20).

%% Lost after it was connected: called soon. Heard of again after a silence: called at once.
lost_test() ->
    Lost = macula_cluster_policy:down('z@h', 1_000, connected('z@h')),
    ?assert(macula_cluster_policy:next(1_000, Lost) =< 1_100),
    {['z@h'], P1} = macula_cluster_policy:due(1_100, Lost),
    P2 = fail_often('z@h', 20, macula_cluster_policy:ended('z@h', 1_100, P1)),
    Now = macula_cluster_policy:next(0, P2) - 1,
    ?assertMatch({[], _}, macula_cluster_policy:due(Now, P2)),
    ?assertMatch({['z@h'], _}, macula_cluster_policy:due(Now, heard('z@h', Now, P2))).

%% Heard of all the time, and failing all the time, another cluster's node for instance: called
%% less and less often, at last once a minute.
heard_but_failing_test() ->
    {Calls, P} = lists:foldl(fun(Now, {Calls, P0}) ->
                                 {Nodes, P1} = macula_cluster_policy:due(Now, heard('z@h', Now, P0)),
                                 {Calls + length(Nodes), lists:foldl(fun(N, Q) -> macula_cluster_policy:ended(N, Now, Q) end, P1, Nodes)}
                         end, {0, new()}, lists:seq(0, 600_000, 500)),
    ?assert(Calls >= 15 andalso Calls =< 40, Calls),
    ?assert(macula_cluster_policy:next(600_000, P) =< 660_000).

%% Goodbye: not called, neither when the connection ends nor by an announcement that came late;
%% but by a new one.
bye_test() ->
    Bye = macula_cluster_policy:bye('z@h', 1_000, connected('z@h')),
    Down = heard('z@h', 2_000, macula_cluster_policy:down('z@h', 1_100, Bye)),
    ?assertMatch({[], _}, macula_cluster_policy:due(100_000, Down)),
    ?assertEqual([], macula_cluster_policy:peers(Down)),
    ?assertMatch({['z@h'], _}, macula_cluster_policy:due(50_000, heard('z@h', 50_000, Down))).

%% One that comes back by itself after its goodbye is a peer like any other.
back_after_bye_test() ->
    Bye = macula_cluster_policy:bye('z@h', 1_000, connected('z@h')),
    Back = macula_cluster_policy:up('z@h', 9_000, macula_cluster_policy:down('z@h', 1_100, Bye)),
    ?assertMatch({['z@h'], _}, macula_cluster_policy:due(20_000, macula_cluster_policy:down('z@h', 10_000, Back))).

%% A connection that came from the other side while we called.
crossed_test() ->
    {['z@h'], P} = macula_cluster_policy:due(0, heard('z@h', 0, new())),
    Up = macula_cluster_policy:ended('z@h', 20, macula_cluster_policy:up('z@h', 10, P)),
    ?assertEqual(infinity, macula_cluster_policy:next(20, Up)),
    ?assertMatch({[], _}, macula_cluster_policy:due(100_000, Up)).

%% However many fail, one that is new is called at once.
failing_do_not_delay_test() ->
    Failing = [list_to_atom("n" ++ integer_to_list(N) ++ "@h") || N <- lists:seq(1, 90)],
    P = lists:foldl(fun(Node, Q) -> macula_cluster_policy:keep(Node, 0, Q) end, new(), Failing),
    {Called, P1} = macula_cluster_policy:due(0, P),
    ?assertEqual(90, length(Called)),
    P2 = lists:foldl(fun(Node, Q) -> macula_cluster_policy:ended(Node, 10, Q) end, P1, Called),
    {Again, P3} = macula_cluster_policy:due(10_000, P2),
    ?assertEqual(32, length(Again)),
    ?assertMatch({['z@h'], _}, macula_cluster_policy:due(10_001, heard('z@h', 10_001, P3))).

%% What strangers can make us remember is bounded, and connected nodes stay.
bounded_test() ->
    P = connected('z@h'),
    Full = lists:foldl(fun(N, Q) -> heard(list_to_atom("s" ++ integer_to_list(N) ++ "@h"), N, Q) end, P, lists:seq(1, 1_200)),
    ?assertEqual(1_000, length(macula_cluster_policy:peers(Full))),
    ?assertEqual(['z@h'], macula_cluster_policy:connected(Full)),
    {_, Later} = macula_cluster_policy:due(500_000, Full),
    %% Those being called at that moment are not dropped.
    ?assert(length(macula_cluster_policy:peers(Later)) < 200).

properties_test_() ->
    [macula_property:test(never_wrong, prop_never_wrong(), 500),
     macula_property:test(for_ever, prop_for_ever(), 500),
     macula_property:test(deterministic, prop_deterministic(), 100)].

%% Whatever happens: nobody is called who is connected, is being called, or has gone; and no more
%% at once than the limits say.
prop_never_wrong() ->
    ?FORALL(Events, list(event()), holds(fun() -> is_map(run(Events)) end)).

%% Whatever happened: a configured or once connected peer that is neither connected nor gone is
%% called within the longest pause, when calls end.
prop_for_ever() ->
    ?FORALL({Events, Node}, {list(event()), name()},
            holds(fun() ->
                          #{policy := P0, now := Now} = World = run([{keep, Node} | Events]),
                          #{up := Up, gone := Gone, kept := Kept, trying := Trying} = World,
                          P1 = lists:foldl(fun(N, P) -> macula_cluster_policy:ended(N, Now, P) end, P0, maps:keys(Trying)),
                          {Called, _} = macula_cluster_policy:due(Now + 5_000, P1),
                          is_map_key(Node, Up) orelse is_map_key(Node, Gone) orelse not is_map_key(Node, Kept)
                              orelse lists:member(Node, Called)
                  end)).

%% The same events with the same seed end the same.
prop_deterministic() ->
    ?FORALL(Events, list(event()),
            holds(fun() -> maps:get(policy, run(Events)) =:= maps:get(policy, run(Events)) end)).

event() ->
    oneof([{wait, integer(1, 20_000)},
           {oneof([keep, heard, bye, forget, up, down]), name()},
           {ended, integer(0, 5)}]).

name() ->
    oneof(['a@h', 'b@h', 'c@h', 'x@h', 'y@h', 'z@h']).

run(Events) ->
    lists:foldl(fun step/2, start(), Events).

start() ->
    #{policy => new(), now => 0, up => #{}, trying => #{}, gone => #{}, kept => #{}}.

%% The model: what we know without looking into the policy.
step({wait, Ms}, #{now := Now} = World) ->
    call(World#{now := Now + Ms});
step({ended, Pick}, #{trying := Trying, policy := P, now := Now} = World) ->
    case maps:keys(Trying) of
        [] -> World;
        Nodes ->
            Node = lists:nth(Pick rem length(Nodes) + 1, Nodes),
            call(World#{policy := macula_cluster_policy:ended(Node, Now, P), trying := maps:remove(Node, Trying)})
    end;
step({up, Node}, World) -> call(mark(up, Node, unmark(gone, Node, change(up, Node, World))));
step({down, Node}, World) -> call(unmark(up, Node, change(down, Node, World)));
step({keep, Node}, World) -> call(mark(kept, Node, unmark(gone, Node, change(keep, Node, World))));
step({bye, Node}, World) -> call(mark(gone, Node, change(bye, Node, World)));
step({heard, Node}, #{gone := Gone, now := Now} = World) ->
    case Gone of
        #{Node := Then} when Now - Then < 3_000 -> call(change(heard, Node, World));
        _ -> call(unmark(gone, Node, change(heard, Node, World)))
    end;
step({forget, Node}, #{policy := P} = World) ->
    %% A call on its way goes on; the next peer of that name may be called beside it.
    call(unmark(trying, Node, unmark(kept, Node, unmark(gone, Node, World#{policy := macula_cluster_policy:forget(Node, P)})))).

change(Event, Node, #{policy := P, now := Now} = World) ->
    World#{policy := macula_cluster_policy:Event(Node, Now, P)}.

mark(Set, Node, #{now := Now} = World) -> World#{Set := (maps:get(Set, World))#{Node => Now}}.

unmark(Set, Node, World) -> World#{Set := maps:remove(Node, maps:get(Set, World))}.

call(#{policy := P, now := Now, up := Up, trying := Trying, gone := Gone} = World) ->
    {Nodes, New} = macula_cluster_policy:due(Now, P),
    [begin
         ?assertNot(is_map_key(Node, Up)),
         ?assertNot(is_map_key(Node, Trying)),
         ?assertNot(is_map_key(Node, Gone))
     end || Node <- Nodes],
    World#{policy := New, trying := maps:merge(Trying, maps:from_keys(Nodes, Now))}.

%%% Help

new() ->
    macula_cluster_policy:new(?OPTIONS, 42).

heard(Node, Now, P) ->
    macula_cluster_policy:heard(Node, Now, P).

kept(Node) ->
    macula_cluster_policy:keep(Node, 0, new()).

connected(Node) ->
    macula_cluster_policy:up(Node, 0, heard(Node, 0, new())).

%% How long it takes from one failure to the next call.
pauses(0, _) ->
    [];
pauses(Count, P) ->
    Now = case macula_cluster_policy:next(-1, P) of
              infinity -> 0;
              Next -> Next
          end,
    {['z@h'], P1} = macula_cluster_policy:due(Now, P),
    P2 = macula_cluster_policy:ended('z@h', Now, P1),
    [macula_cluster_policy:next(Now, P2) - Now | pauses(Count - 1, P2)].

fail_often(_, 0, P) ->
    P;
fail_often(Node, Count, P) ->
    Now = macula_cluster_policy:next(0, P),
    {[Node], P1} = macula_cluster_policy:due(Now, P),
    fail_often(Node, Count - 1, macula_cluster_policy:ended(Node, Now, P1)).
