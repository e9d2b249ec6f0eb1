%% @doc Has single processes wait whose messages fill their stream of a link, as
%% `macula_core::dist::brake' says. Both functions are called by the link's bridge
%% alone: the emulator counts suspensions by who asked for them, and takes them back
%% when that process ends, however it ends.
-module(macula_dist_brake).

-export([suspend/1, resume/1]).

%% What these do for all others must not wait for one peer. What they send is
%% small, or not theirs to hold back.
-define(NEVER, [init, erl_prim_loader, code_server, application_controller, kernel_sup,
                net_kernel, net_sup, auth, global_name_server, global_group, rex, erpc,
                logger, logger_proxy, user, user_drv, standard_error, file_server_2, inet_db]).

%% @doc They wait when they run next. Once for each time they are named.
-spec suspend([macula_nif:local_process()]) -> ok.
suspend(Processes) ->
    lists:foreach(fun(Process) -> pause(pid(Process)) end, Processes).

%% @doc They go on when they were resumed as often as suspended.
-spec resume([macula_nif:local_process()]) -> ok.
resume(Processes) ->
    lists:foreach(fun(Process) -> go_on(pid(Process)) end, Processes).

pause(Pid) ->
    case lists:any(fun(Name) -> whereis(Name) =:= Pid end, ?NEVER) of
        true -> ok;
        false -> try_to(fun() -> erlang:suspend_process(Pid, [asynchronous]) end)
    end.

go_on(Pid) ->
    try_to(fun() -> erlang:resume_process(Pid) end).

%% It may have ended meanwhile, may be one of the emulator's own, or of the time
%% before the node got its name; and was not suspended then.
try_to(Act) ->
    try Act() of
        true -> ok
    catch
        error:badarg -> ok
    end.

%% The numbers come from the emulator of this node, and so does the name.
pid({Id, Serial, Creation}) ->
    <<131, Node/binary>> = term_to_binary(node()),
    binary_to_term(<<131, 88, Node/binary, Id:32, Serial:32, Creation:32>>).
