-module(macula_dist_discovery_tests).

-include_lib("eunit/include/eunit.hrl").

-define(ADDRESS, {{192, 0, 2, 7}, 4433}).
-define(OTHER, {{192, 0, 2, 8}, 4434}).

%% Without the process everything has an answer.
without_it_test() ->
    ?assertEqual({error, not_running}, macula_dist_discovery:register_node('a@h', ?ADDRESS)),
    ?assertEqual({error, not_running}, macula_dist_discovery:subscribe(self())),
    ?assertEqual({error, not_found}, macula_dist_discovery:lookup_node('a@h')),
    ?assertEqual({error, not_found}, macula_dist_discovery:lookup_node('a@h', 10)),
    ?assertEqual([], macula_dist_discovery:addresses('a@h')),
    ?assertEqual([], macula_dist_discovery:list_nodes()).

discovery_test_() ->
    {foreach,
     fun() -> {ok, Pid} = macula_dist_discovery:start_link(), Pid end,
     fun(Pid) -> unlink(Pid), gen_server:stop(Pid) end,
     [{"register", fun register_and_look_up/0}, {"names", fun names/0}, {"bad", fun bad/0},
      {"events", fun events/0}, {"subscriber gone", fun subscriber_gone/0}, {"wait", fun wait/0},
      {"many", fun many/0}]}.

register_and_look_up() ->
    ?assertEqual({error, not_found}, macula_dist_discovery:lookup_node('a@h')),
    ok = macula_dist_discovery:register_node('a@h', ?ADDRESS),
    ?assertEqual({ok, ?ADDRESS}, macula_dist_discovery:lookup_node('a@h')),
    ok = macula_dist_discovery:register_node('a@h', [?OTHER, ?ADDRESS]),
    ?assertEqual({ok, ?OTHER}, macula_dist_discovery:lookup_node('a@h')),
    ?assertEqual([?OTHER, ?ADDRESS], macula_dist_discovery:addresses('a@h')),
    ok = macula_dist_discovery:register_node('b@h', 4711),
    ?assertEqual([{'a@h', {192, 0, 2, 8}, 4434}, {'b@h', {127, 0, 0, 1}, 4711}], macula_dist_discovery:list_nodes()),
    ok = macula_dist_discovery:unregister_node('a@h'),
    ok = macula_dist_discovery:unregister_node('a@h'),
    ?assertEqual({error, not_found}, macula_dist_discovery:lookup_node('a@h')).

%% Names may be text; looking one up makes no atom.
names() ->
    ok = macula_dist_discovery:register_node(<<"text@h">>, ?ADDRESS),
    ?assertEqual({ok, ?ADDRESS}, macula_dist_discovery:lookup_node("text@h")),
    Atoms = erlang:system_info(atom_count),
    ?assertEqual({error, not_found}, macula_dist_discovery:lookup_node(<<"never heard of@", (integer_to_binary(Atoms))/binary>>)),
    ?assertEqual(Atoms, erlang:system_info(atom_count)).

bad() ->
    [?assertEqual({error, bad_address}, macula_dist_discovery:register_node('a@h', Bad))
     || Bad <- [0, 65536, [], x, {{1, 2, 3}, 1}, {"host", 1}, [?ADDRESS, x], {{1, 2, 3, 4}, 0}]],
    ?assertEqual({error, bad_name}, macula_dist_discovery:register_node(17, ?ADDRESS)),
    ?assertEqual([], macula_dist_discovery:list_nodes()).

%% A change is told once; the same again, or in another order, is none.
events() ->
    ok = macula_dist_discovery:subscribe(self()),
    ok = macula_dist_discovery:subscribe(self()),
    ok = macula_dist_discovery:register_node('a@h', [?ADDRESS, ?OTHER]),
    ok = macula_dist_discovery:register_node('a@h', [?OTHER, ?ADDRESS]),
    ok = macula_dist_discovery:register_node('a@h', ?OTHER),
    ok = macula_dist_discovery:unregister_node('a@h'),
    ok = macula_dist_discovery:unregister_node('a@h'),
    ok = macula_dist_discovery:unsubscribe(self()),
    ok = macula_dist_discovery:register_node('b@h', ?ADDRESS),
    ?assertEqual([{node_discovered, 'a@h', {192, 0, 2, 7}, 4433}, {node_discovered, 'a@h', {192, 0, 2, 8}, 4434},
                  {node_lost, 'a@h'}],
                 messages()).

subscriber_gone() ->
    {Pid, Monitor} = spawn_monitor(fun() -> ok = macula_dist_discovery:subscribe(self()) end),
    receive {'DOWN', Monitor, process, Pid, normal} -> ok end,
    ok = macula_dist_discovery:register_node('a@h', ?ADDRESS),
    ?assertEqual(#{}, sys:get_state(macula_dist_discovery)).

%% Looking up with a time waits for the node to be found, and leaves nothing behind.
wait() ->
    Self = self(),
    _ = spawn_link(fun() -> Self ! {found, macula_dist_discovery:lookup_node('later@h', 10_000)} end),
    timer:sleep(20),
    ok = macula_dist_discovery:register_node('other@h', ?OTHER),
    ok = macula_dist_discovery:register_node('later@h', ?ADDRESS),
    ?assertEqual({ok, ?ADDRESS}, receive {found, Found} -> Found end),
    ?assertEqual({ok, ?ADDRESS}, macula_dist_discovery:lookup_node('later@h', infinity)),
    ?assertEqual({error, not_found}, macula_dist_discovery:lookup_node('never@h', 20)),
    ?assertEqual({error, not_found}, macula_dist_discovery:lookup_node('never@h', 0)),
    ?assertEqual([], messages()).

%% Readers never wait for the process.
many() ->
    ok = macula_dist_discovery:register_node('a@h', ?ADDRESS),
    ok = sys:suspend(macula_dist_discovery),
    ?assertEqual({ok, ?ADDRESS}, macula_dist_discovery:lookup_node('a@h')),
    ?assertEqual([?ADDRESS], macula_dist_discovery:addresses('a@h')),
    ok = sys:resume(macula_dist_discovery).

messages() ->
    receive Message -> [Message | messages()]
    after 50 -> []
    end.
