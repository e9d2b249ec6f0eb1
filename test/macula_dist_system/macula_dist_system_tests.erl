-module(macula_dist_system_tests).

-include_lib("eunit/include/eunit.hrl").

-define(STATIC, #{strategy => static, nodes => ['nobody@nowhere.invalid']}).

%% Alone, without the application: discovery, and no strategy unless one is asked for.
children_test() ->
    with_system(#{}, fun(Pid) ->
                             ?assertEqual(Pid, whereis(macula_dist_system)),
                             ?assertEqual([macula_dist_discovery], children())
                     end).

%% One process that fails is started again; its neighbour does not notice.
one_for_one_test() ->
    with_system(#{}, fun(_) ->
                             Before = whereis(macula_dist_discovery),
                             exit(Before, kill),
                             wait_until(fun() -> is_pid(whereis(macula_dist_discovery)) andalso whereis(macula_dist_discovery) =/= Before end)
                     end).

%% With a cluster configured. It needs distribution, which it starts.
cluster_test_() ->
    {timeout, 60, fun with_cluster/0}.

with_cluster() ->
    macula_test_distribution:with(
      fun() ->
              with_system(#{cluster => ?STATIC},
                          fun(_) ->
                                  ?assertEqual([macula_cluster_strategy, macula_dist_discovery], children()),
                                  ?assertEqual(['nobody@nowhere.invalid'], macula_cluster_static:get_nodes()),
                                  crash_often()
                          end)
      end).

%% A strategy that crashes again and again takes nothing with it, and comes back.
crash_often() ->
    Level = quiet(),
    System = whereis(macula_dist_system),
    [begin
         wait_until(fun() -> is_pid(whereis(macula_cluster_static)) end),
         exit(whereis(macula_cluster_static), kill)
     end || _ <- lists:seq(1, 3)],
    wait_until(fun() -> is_pid(whereis(macula_cluster_static)) end),
    ?assertEqual(System, whereis(macula_dist_system)),
    logger:set_primary_config(level, Level).

%% A bad option is the answer, with its name.
bad_option_test() ->
    process_flag(trap_exit, true),
    Level = quiet(),
    ?assertMatch({error, _}, macula_dist_system:start_link(#{cluster => #{strategey => static}})),
    logger:set_primary_config(level, Level),
    process_flag(trap_exit, false).

with_system(Options, Fun) ->
    {ok, Pid} = macula_dist_system:start_link(Options),
    unlink(Pid),
    try
        Fun(Pid)
    after
        Monitor = monitor(process, Pid),
        exit(Pid, shutdown),
        receive {'DOWN', Monitor, process, Pid, _} -> ok end
    end.

children() ->
    lists:sort([Id || {Id, Child, _, _} <- supervisor:which_children(macula_dist_system), is_pid(Child)]).

quiet() ->
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, none),
    Level.

wait_until(Fun) ->
    case Fun() of
        true -> ok;
        false ->
            timer:sleep(10),
            wait_until(Fun)
    end.
