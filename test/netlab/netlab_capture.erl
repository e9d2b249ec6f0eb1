%% @doc Packet captures: one file for each machine, headers only, and never without bound.
-module(netlab_capture).

-export([start/3, delete/2]).

%% Enough for every header up to QUIC's; the rest is encrypted.
-define(SNAP, "160").
%% The two latest files of so many million bytes are kept.
-define(FILE_MB, "50").
-define(READY_MS, 30_000).

%% @doc Captures on every interface of the machine, until the lab ends.
-spec start(netlab_space:id(), atom(), file:filename()) -> port().
start(Id, Name, Folder) ->
    ok = filelib:ensure_dir(file(Folder, Name)),
    [Program | Args] = netlab_space:exec(Id, Name)
        ++ ["tcpdump", "-i", "any", "-n", "-U", "-Z", "root", "-s", ?SNAP,
            "-C", ?FILE_MB, "-W", "2", "-w", file(Folder, Name)],
    Port = open_port({spawn_executable, Program},
                     [{args, Args}, {line, 1024}, exit_status, stderr_to_stdout, hide]),
    await_ready(Port),
    Port.

await_ready(Port) ->
    receive
        {Port, {data, {eol, Line}}} ->
            case string:find(Line, "listening on") of
                nomatch -> await_ready(Port);
                _ -> ok
            end;
        {Port, {exit_status, Status}} ->
            error({tcpdump_ended, Status})
    after ?READY_MS ->
        error(tcpdump_is_not_ready)
    end.

file(Folder, Name) ->
    filename:join(Folder, atom_to_list(Name) ++ ".pcap").

%% @doc Deletes what was captured on that machine.
-spec delete(atom(), file:filename()) -> ok.
delete(Name, Folder) ->
    lists:foreach(fun file:delete/1, filelib:wildcard(file(Folder, Name) ++ "*")).
