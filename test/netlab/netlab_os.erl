%% @doc Programs of the operating system, run to their end.
-module(netlab_os).

-export([run/1, try_run/1, start_time/1]).

%% @doc What the program printed; fails with all of it when its status is not 0.
-spec run([string()]) -> binary().
run(Command) ->
    case try_run(Command) of
        {0, Output} -> Output;
        {Status, Output} -> error({command_failed, lists:join(" ", Command), Status, Output})
    end.

-spec try_run([string()]) -> {Status :: integer(), Output :: binary()}.
try_run([Program | Args]) ->
    Port = open_port({spawn_executable, executable(Program)},
                     [{args, Args}, exit_status, stderr_to_stdout, binary, hide]),
    collect(Port, []).

collect(Port, Output) ->
    receive
        {Port, {data, Data}} -> collect(Port, [Output, Data]);
        {Port, {exit_status, Status}} -> {Status, iolist_to_binary(Output)}
    end.

executable(Program) ->
    case os:find_executable(Program) of
        false -> error({not_installed, Program});
        Path -> Path
    end.

%% @doc When the process started, in ticks since boot: with it a process id names one process for
%% good. The name in the second field may hold anything, so fields count from its closing bracket.
-spec start_time(OsPid :: string()) -> string().
start_time(OsPid) ->
    {ok, Stat} = file:read_file("/proc/" ++ OsPid ++ "/stat"),
    [_, Fields] = string:split(Stat, ") ", trailing),
    binary_to_list(lists:nth(20, string:lexemes(Fields, " "))).
