%% Runs the tests' helpers that are written in Rust: the examples of macula_net.
-module(macula_test_tool).

-export([start/2, start/3, heard/2, ended/2, stop/1]).

-export_type([tool/0]).

-type tool() :: port().

%% @doc Starts a helper. What it prints comes to the caller.
-spec start(string(), [string()]) -> tool().
start(Name, Args) ->
    open(build(Name), Args).

%% @doc The same in a network namespace.
-spec start(string(), string(), [string()]) -> tool().
start(Netns, Name, Args) ->
    open(os:find_executable("ip"), ["netns", "exec", Netns, build(Name) | Args]).

open(Program, Args) ->
    open_port({spawn_executable, Program}, [{args, Args}, exit_status, stderr_to_stdout, binary]).

%% @doc What it has printed next.
-spec heard(tool(), timeout()) -> binary().
heard(Tool, Timeout) ->
    receive
        {Tool, {data, Said}} -> Said;
        {Tool, {exit_status, Status}} -> error({tool_ended, Status})
    after Timeout -> error(tool_is_silent)
    end.

%% @doc Waits for its end, which must be a good one; all that it still printed.
-spec ended(tool(), timeout()) -> binary().
ended(Tool, Timeout) ->
    ended(Tool, Timeout, <<>>).

ended(Tool, Timeout, Said) ->
    receive
        {Tool, {data, More}} -> ended(Tool, Timeout, <<Said/binary, More/binary>>);
        {Tool, {exit_status, 0}} -> Said;
        {Tool, {exit_status, Status}} -> error({tool_failed, Status, Said})
    after Timeout -> error({tool_hangs, Said})
    end.

%% @doc Ends one that would not end by itself.
-spec stop(tool()) -> ok.
stop(Tool) ->
    {os_pid, Pid} = erlang:port_info(Tool, os_pid),
    [] = os:cmd("kill " ++ integer_to_list(Pid)),
    receive
        {Tool, {exit_status, _}} -> ok
    after 10_000 -> error(tool_cannot_be_stopped)
    end.

build(Name) ->
    Target = filename:join(root(), "target"),
    netlab_os:rust_program(filename:join([Target, "debug", "examples", Name]),
                           ["--target-dir", Target, "-p", "macula_net", "--example", Name,
                            "--manifest-path", filename:join(root(), "Cargo.toml")]).

%% The folder of the project: the library under test is in _build/PROFILE/lib/macula/ebin of it.
root() ->
    lists:foldl(fun(_, Dir) -> filename:dirname(Dir) end, code:which(macula_nif), lists:seq(1, 6)).
