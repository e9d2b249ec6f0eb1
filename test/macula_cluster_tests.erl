%% The face of clustering, in the VM that runs the tests. Nodes that really connect are in
%% macula_cluster_SUITE.
-module(macula_cluster_tests).

-include_lib("eunit/include/eunit.hrl").

%% Callbacks: of a supervisor, of clustering.
-export([init/1, on_change/2, handle_event/2]).

-define(NOBODY, 'nobody@nowhere.invalid').
-define(STATIC, #{strategy => static, nodes => [?NOBODY]}).

%%% Without distribution

%% What others call to see whether macula is there, and what works without the application.
optional_use_test() ->
    [{module, Module} = code:ensure_loaded(Module) || Module <- [macula, macula_cluster]],
    [?assert(erlang:function_exported(Module, Function, Arity), {Module, Function, Arity})
     || Module <- [macula, macula_cluster],
        {Function, Arity} <- [{ensure_distributed, 0}, {get_cookie, 0}, {set_cookie, 1}, {set_cookie, 2},
                              {monitor_nodes, 0}, {unmonitor_nodes, 0}]].

not_distributed_test() ->
    is_alive() orelse begin
                          ?assertNot(macula_cluster:is_distributed()),
                          ?assertNot(macula_cluster:is_clustered()),
                          ?assertEqual([], macula_cluster:nodes())
                      end.

hostname_test() ->
    {ok, Host} = inet:gethostname(),
    ?assertEqual(Host, macula_cluster:get_hostname()).

monitor_test() ->
    ?assertEqual(ok, macula_cluster:monitor_nodes()),
    ?assertEqual(ok, macula_cluster:unmonitor_nodes()).

%% Errors come before anything is started.
bad_options_test_() ->
    [?_assertMatch({error, {bad_option, Key, _, _}}, Start(Options))
     || {Key, Options} <- [{strategy, #{strategy => gosip}}, {stratgy, #{stratgy => gossip}}, {stratgy, [{stratgy, gossip}]},
                           {options, 17}],
        Start <- [fun macula_cluster:start_cluster/1, fun macula_cluster:start_link/1]]
        ++ [?_assertEqual(undefined, whereis(macula_cluster_strategy))].

%% As Elixir's Supervisor calls it: {:macula_cluster, strategy: :gossip}
child_spec_test_() ->
    [?_assertMatch(#{id := macula_cluster, type := worker, start := {macula_cluster, start_link, [_]}},
                   macula_cluster:child_spec(Options))
     || Options <- [[{strategy, gossip}], #{strategy => gossip}, [], #{}]].

stop_without_start_test() ->
    ?assertEqual(ok, macula_cluster:stop_cluster()).

%%% With it

distributed_test_() ->
    [{atom_to_list(Name), {timeout, 60, {spawn, fun() -> macula_test_distribution:with(Test) end}}}
     || {Name, Test} <- [{ensure_distributed, fun ensure_distributed/0}, {start_and_stop, fun start_and_stop/0},
                         {outlives_caller, fun outlives_caller/0}, {in_supervisor, fun in_supervisor/0},
                         {static, fun static/0}, {callbacks, fun callbacks/0}, {strategy, fun strategy/0},
                         {strategy_restarts, fun strategy_restarts/0}, {gossip_port_in_use, fun gossip_port_in_use/0},
                         {cookies, fun cookies/0}]].

ensure_distributed() ->
    WasAlive = is_alive(),
    ?assertEqual(ok, macula:ensure_distributed()),
    ?assert(macula_cluster:is_distributed()),
    ?assertEqual(ok, macula:ensure_distributed()),
    WasAlive orelse begin
                        [Name, Host] = string:split(atom_to_list(node()), "@"),
                        ?assertMatch("macula_host" ++ _, Name),
                        ?assertEqual(macula_cluster:get_hostname(), Host),
                        ?assertEqual(os:getenv("MACULA_COOKIE"), atom_to_list(erlang:get_cookie()))
                    end.

start_and_stop() ->
    ?assertEqual(ok, macula_cluster:start_cluster(?STATIC)),
    ?assert(macula_cluster:is_distributed()),
    ?assertEqual([?NOBODY], macula_cluster_static:get_nodes()),
    ?assertMatch([_], [Id || {Id = macula_cluster_strategy, _, _, _} <- supervisor:which_children(macula_dist_system)]),
    Pid = whereis(macula_cluster_strategy),
    ?assertEqual(ok, macula_cluster:start_cluster(?STATIC)),
    ?assertEqual(ok, macula_cluster:start_cluster(#{strategy => gossip})),
    ?assertEqual(Pid, whereis(macula_cluster_strategy)),
    ?assertEqual(undefined, whereis(macula_cluster_gossip)),
    ?assertEqual(ok, macula_cluster:stop_cluster()),
    ?assertEqual([undefined, undefined], [whereis(Name) || Name <- [macula_cluster_strategy, macula_cluster_static]]),
    ?assertEqual(ok, macula_cluster:stop_cluster()),
    ?assertEqual(ok, macula_cluster:start_cluster(?STATIC)),
    ?assertEqual(ok, macula_cluster:leave()),
    ?assertEqual(undefined, whereis(macula_cluster_static)).

%% A short-lived starter, such as a shell that crashes, takes nothing with it.
outlives_caller() ->
    {Pid, Monitor} = spawn_monitor(fun() -> ok = macula_cluster:start_cluster(?STATIC), exit(crash) end),
    receive {'DOWN', Monitor, process, Pid, crash} -> ok end,
    ?assertEqual([?NOBODY], macula_cluster_static:get_nodes()),
    ok = macula_cluster:stop_cluster().

in_supervisor() ->
    process_flag(trap_exit, true),
    {ok, Supervisor} = supervisor:start_link(?MODULE, [macula_cluster:child_spec(?STATIC)]),
    ?assertEqual([?NOBODY], macula_cluster_static:get_nodes()),
    ?assertMatch({error, {already_started, _}}, macula_cluster:start_link(?STATIC)),
    ?assertEqual(ok, macula_cluster:start_cluster(?STATIC)),
    %% Stopped means stopped.
    ?assertEqual(ok, macula_cluster:stop_cluster()),
    timer:sleep(50),
    ?assertEqual(undefined, whereis(macula_cluster_strategy)),
    ?assert(is_process_alive(Supervisor)),
    stop_supervisor(Supervisor).

%% Of that supervisor.
init(Children) ->
    {ok, {#{}, Children}}.

static() ->
    ok = macula:ensure_distributed(),
    {ok, Pid} = macula_cluster_static:start_link(#{nodes => [?NOBODY, node()], reconnect_interval => 100}),
    ?assertEqual([?NOBODY], macula_cluster_static:get_nodes()),
    ?assertEqual([], macula_cluster_static:get_connected()),
    ?assertEqual(ok, macula_cluster_static:add_node("other@nowhere.invalid")),
    ?assertEqual(ok, macula_cluster_static:add_node(Pid, <<"third@nowhere.invalid">>)),
    ?assertEqual(['nobody@nowhere.invalid', 'other@nowhere.invalid', 'third@nowhere.invalid'],
                 lists:sort(macula_cluster_static:get_nodes(Pid))),
    ?assertMatch({error, {bad_option, nodes, _, _}}, macula_cluster_static:add_node(nonsense)),
    ?assertEqual(ok, macula_cluster_static:remove_node('other@nowhere.invalid')),
    ?assertEqual(ok, macula_cluster_static:remove_node(Pid, 'third@nowhere.invalid')),
    ?assertEqual([?NOBODY], macula_cluster_static:get_nodes()),
    ?assertEqual({error, {already_started, Pid}}, macula_cluster_static:start_link(#{})),
    ?assertEqual(ok, macula_cluster_static:stop(Pid)),
    os:putenv("CLUSTER_NODES", "x@nowhere.invalid, y@nowhere.invalid"),
    {ok, _} = macula_cluster_static:start_link(),
    os:unsetenv("CLUSTER_NODES"),
    ?assertEqual(['x@nowhere.invalid', 'y@nowhere.invalid'], lists:sort(macula_cluster_static:get_nodes())),
    ?assertEqual(ok, macula_cluster_static:stop()).

%% Once per change, in order; one that crashes or is slow disturbs nobody.
callbacks() ->
    ok = macula_cluster:start_cluster(maps:put(callback, self(), ?STATIC)),
    [Callback] = callback_processes(),
    [Callback ! Event || Event <- [{nodeup, a@h}, {nodedown, a@h}]],
    ?assertEqual([{macula_cluster, nodeup, a@h}, {macula_cluster, nodedown, a@h}], messages(2)),
    ok = macula_cluster:stop_cluster(),
    persistent_term:put(?MODULE, self()),
    ok = macula_cluster:start_cluster(maps:put(callback, {?MODULE, on_change}, ?STATIC)),
    [Again] = callback_processes(),
    Lines = macula_test_log:during(
              fun() ->
                      [Again ! Event || Event <- [{nodeup, crash@h}, {nodeup, a@h}]],
                      ?assertEqual([{nodeup, crash@h}, {nodeup, a@h}], messages(2))
              end),
    ?assertMatch([_], [L || L <- Lines, string:find(L, "the callback failed") =/= nomatch]),
    ?assert(is_process_alive(Again)),
    ok = macula_cluster:stop_cluster().

on_change(Event, Node) ->
    persistent_term:get(?MODULE) ! {Event, Node},
    Node =:= crash@h andalso error(crash).

strategy() ->
    ok = macula:ensure_distributed(),
    persistent_term:put(?MODULE, self()),
    Options = #{topology => {my, topology}, config => ?STATIC, callback_module => ?MODULE},
    {ok, Pid} = macula_cluster_strategy:start_link(Options),
    ?assertEqual([], macula_cluster_strategy:list_connected(Pid)),
    %% As the strategy's own server tells it.
    [Pid ! {macula_cluster_members, Event, ?NOBODY} || Event <- [connected, connected]],
    ?assertEqual([?NOBODY], macula_cluster_strategy:list_connected(Pid)),
    [Pid ! {macula_cluster_members, Event, ?NOBODY} || Event <- [disconnected, disconnected]],
    ?assertEqual([{{my, topology}, {connected, ?NOBODY}}, {{my, topology}, {disconnected, ?NOBODY}}], messages(2)),
    ?assertEqual([], macula_cluster_strategy:list_connected(Pid)),
    ?assertEqual(ok, macula_cluster_strategy:stop(Pid)),
    ?assertEqual(undefined, whereis(macula_cluster_static)),
    {ok, _} = macula_cluster_strategy:start_link(my_strategy, maps:to_list(Options)),
    ?assertEqual([], macula_cluster_strategy:list_connected(my_strategy)),
    ?assertEqual(ok, macula_cluster_strategy:stop(my_strategy)),
    [?assertMatch({error, {bad_option, Key, _, _}}, macula_cluster_strategy:start_link(Bad))
     || {Key, Bad} <- [{topologie, #{topologie => x}}, {strategey, #{config => #{strategey => x}}}, {config, #{config => 17}}]].

handle_event(Topology, Event) ->
    persistent_term:get(?MODULE) ! {Topology, Event}.

%% A strategy that crashes is back, with growing pauses, and what it knew of the cluster is kept.
strategy_restarts() ->
    ok = macula:ensure_distributed(),
    {ok, Pid} = macula_cluster_strategy:start_link(#{config => ?STATIC}),
    Lines = macula_test_log:during(fun() -> [crash() || _ <- lists:seq(1, 3)] end),
    ?assert(is_process_alive(Pid)),
    ?assertEqual([?NOBODY], macula_cluster_static:get_nodes()),
    [?assertMatch({_, [_]}, {Ms, [L || L <- Lines, string:find(L, "starts again in " ++ Ms ++ " ms: killed") =/= nomatch]})
     || Ms <- ["500", "1000", "2000"]],
    ok = macula_cluster_strategy:stop(Pid).

crash() ->
    Pid = whereis(macula_cluster_static),
    exit(Pid, kill),
    wait_until(fun() -> is_pid(whereis(macula_cluster_static)) andalso whereis(macula_cluster_static) =/= Pid end).

gossip_port_in_use() ->
    {ok, Socket} = gen_udp:open(0),
    {ok, Port} = inet:port(Socket),
    ?assertEqual({error, {gossip_strategy_failed, {socket_open_failed, eaddrinuse}}},
                 macula_cluster:start_cluster(#{port => Port, interface => "lo"})),
    ok = gen_udp:close(Socket),
    ?assertEqual(ok, macula_cluster:start_cluster([{port, Port}, {interface, <<"lo">>}])),
    ?assertEqual([], macula_cluster_gossip:get_discovered()),
    ok = macula_cluster:stop_cluster().

%% The cookie of this node and of single peers.
cookies() ->
    ok = macula:ensure_distributed(),
    Own = erlang:get_cookie(),
    ?assertEqual(ok, macula:set_cookie('peer@nowhere.invalid', <<"peers own">>)),
    ?assertEqual('peers own', erlang:get_cookie('peer@nowhere.invalid')),
    ?assertEqual(Own, erlang:get_cookie()),
    ?assert(lists:member({'peer@nowhere.invalid', 'peers own'}, macula_cookie:peers())),
    Home = os:getenv("HOME"),
    Scratch = filename:join("/tmp", "macula_cluster_tests_" ++ os:getpid()),
    ok = file:make_dir(Scratch),
    os:putenv("HOME", Scratch),
    ?assertEqual(ok, macula:set_cookie(<<"another one">>)),
    ?assertEqual('another one', erlang:get_cookie()),
    ?assertEqual('another one', macula:get_cookie()),
    ?assertEqual({ok, 'another one'}, macula_cluster:read_cookie_file()),
    ?assertEqual(filename:join(Scratch, ".erlang.cookie"), macula_cluster:cookie_file_path()),
    application:unset_env(macula, cookie),
    os:putenv("HOME", Home),
    erlang:set_cookie(node(), Own),
    ok = file:del_dir_r(Scratch).

%%% Help

callback_processes() ->
    {links, Links} = process_info(whereis(macula_cluster_strategy), links),
    [Pid || Pid <- Links, {dictionary, Dictionary} <- [process_info(Pid, dictionary)],
            proplists:get_value('$initial_call', Dictionary) =:= {macula_cluster_callback, init, 1}].

messages(Count) ->
    [receive Message -> Message after 5_000 -> error({only, Got - 1, of_messages, Count}) end
     || Got <- lists:seq(1, Count)].

wait_until(Fun) ->
    case Fun() of
        true -> ok;
        false ->
            timer:sleep(10),
            wait_until(Fun)
    end.

stop_supervisor(Pid) ->
    Monitor = monitor(process, Pid),
    exit(Pid, shutdown),
    receive {'DOWN', Monitor, process, Pid, _} -> ok end.
