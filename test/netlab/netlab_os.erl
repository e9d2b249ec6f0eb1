%% @doc Programs of the operating system, and where things are.
-module(netlab_os).

-export([run/1, try_run/1, executable/1, is_installed/1, start_time/1, source_folder/0]).
-export([rust_program/2, has_rust_programs/0]).

%% @doc What the program printed; fails with all of it when its status is not 0.
-spec run([string()]) -> binary().
run(Command) ->
    case try_run(Command) of
        {0, Output} ->
            Output;
        {Status, Output} ->
            error({command_failed, lists:append(lists:join(" ", Command)), Status, Output})
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

%% @doc Where the program is.
-spec executable(string()) -> file:filename().
executable(Program) ->
    case os:find_executable(Program, path()) of
        false -> error({not_installed, Program});
        Executable -> Executable
    end.

-spec is_installed(string()) -> boolean().
is_installed(Program) ->
    os:find_executable(Program, path()) =/= false.

%% @doc A helper in Rust that cargo builds there with these arguments. MACULA_TEST_TOOLS is a folder
%% that has all of them already, for machines without cargo.
-spec rust_program(file:filename(), [string()]) -> file:filename().
rust_program(Built, CargoArgs) ->
    case os:getenv("MACULA_TEST_TOOLS") of
        false ->
            %% Cargo itself knows whether there is something to do.
            _ = run(["cargo", "build", "--quiet", "--locked" | CargoArgs]),
            Built;
        Folder ->
            filename:join(Folder, filename:basename(Built))
    end.

%% @doc Whether rust_program/2 can give any.
-spec has_rust_programs() -> boolean().
has_rust_programs() ->
    os:getenv("MACULA_TEST_TOOLS") =/= false orelse is_installed("cargo").

%% rustup puts cargo where not every PATH has it.
path() ->
    Cargo = os:getenv("CARGO_HOME", filename:join(os:getenv("HOME", "/root"), ".cargo")),
    os:getenv("PATH", "") ++ ":" ++ filename:join(Cargo, "bin").

%% @doc When the process started, in ticks since boot: with it a process id names one process for
%% good. The name in the second field may hold anything, so fields count from its closing bracket.
-spec start_time(OsPid :: string()) -> string().
start_time(OsPid) ->
    {ok, Stat} = file:read_file("/proc/" ++ OsPid ++ "/stat"),
    [_, Fields] = string:split(Stat, ") ", trailing),
    binary_to_list(lists:nth(20, string:lexemes(Fields, " "))).

%% @doc The folder of the lab's sources, wherever the beams lie.
-spec source_folder() -> file:filename().
source_folder() ->
    filename:dirname(proplists:get_value(source, ?MODULE:module_info(compile))).
