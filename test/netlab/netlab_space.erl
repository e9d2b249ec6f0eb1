%% @doc Network namespaces: how those of a lab are called, and how commands run in them.
-module(netlab_space).

-export([namespace/2, folder/1, exec/2, run/3, batch/2, batch/3]).

-export_type([id/0]).

%% keeper.sh knows what it is made of.
-type id() :: string().

%% @doc The network namespace of a machine or switch.
-spec namespace(id(), atom()) -> string().
namespace(Id, Name) ->
    Id ++ "-" ++ atom_to_list(Name).

%% @doc The folder of a lab's own files.
-spec folder(id()) -> file:filename().
folder(Id) ->
    filename:join("/run/netlab", Id).

%% @doc What to put before a command so that it runs there.
-spec exec(id(), atom()) -> [string()].
exec(Id, Name) ->
    [netlab_os:executable("ip"), "netns", "exec", namespace(Id, Name)].

%% @doc Runs a command there, which must succeed.
-spec run(id(), atom(), [string()]) -> binary().
run(Id, Name, Command) ->
    netlab_os:run(exec(Id, Name) ++ Command).

%% @doc Many commands of `ip' in one process, outside of all namespaces.
-spec batch(id(), [iolist()]) -> ok.
batch(Id, Lines) ->
    batch_with(Id, [], Lines).

%% @doc The same, there.
-spec batch(id(), atom(), [iolist()]) -> ok.
batch(Id, Name, Lines) ->
    batch_with(Id, ["-n", namespace(Id, Name)], Lines).

%% The first command that fails ends the batch, and `ip' names its line.
batch_with(Id, Where, Lines) ->
    File = filename:join(folder(Id), "batch"),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, lists:join("\n", Lines)),
    case netlab_os:try_run(["ip" | Where] ++ ["-batch", File]) of
        {0, _} -> ok;
        {_, Output} -> error({ip_failed, Where, Output, iolist_to_binary(lists:join("\n", Lines))})
    end.
