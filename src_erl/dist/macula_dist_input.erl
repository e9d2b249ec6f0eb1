%% @doc The input side of one link: takes received frames and hands them to the
%% emulator. The only process that may do so for its connection. It also hears
%% of the link's end, since that comes after the last frame.
-module(macula_dist_input).

-export([start_link/2, finish/1]).
-export([init/2]).

-include("macula_hops.hrl").

%% A connection that took no more data is being torn down by net_kernel; this
%% is how long that may take before this process goes by itself.
-define(CONTROLLER_TIMEOUT, 30_000).

%% After this much, drop references to what was delivered: an idle process
%% would keep the last large binaries alive. And let others run: calls beside
%% large messages waited up to 50 ms between here and their receivers now and
%% then, and wait for a third of that since this yields. That it went on because
%% these calls count few reductions is a guess. Yielding after each call costs a
%% stream of 4 KiB messages a tenth.
-define(COLLECT_BYTES, 1_048_576).

%% @doc Started by, and linked to, the bridge.
%%
%% Priority normal: decoding then competes fairly with the processes that
%% receive the messages; a higher one would fill mailboxes faster than their
%% owners, on the same scheduler, could empty them. What waits, waits in the
%% link; fullsweep_after 0 frees binaries at the first collection.
-spec start_link(macula_nif:link(), erlang:dist_handle()) -> pid().
start_link(Link, DHandle) ->
    spawn_opt(?MODULE, init, [Link, DHandle],
              [link, {fullsweep_after, 0}]).

%% @doc Delivers what has come so far, then goes, and so ends the connection.
-spec finish(pid()) -> ok.
finish(Input) ->
    Input ! finish,
    ok.

-spec init(macula_nif:link(), erlang:dist_handle()) -> no_return().
init(Link, DHandle) ->
    loop(Link, macula_nif:link_id(Link), DHandle, 0).

loop(Link, Id, DHandle, Since) ->
    receive
        {macula_link, Id, readable} ->
            ?HOP(input_woken),
            loop(Link, Id, DHandle, take(Link, DHandle, Since));
        {macula_link, Id, {closed, _}} ->
            exit(connection_closed);
        finish ->
            _ = take(Link, DHandle, Since),
            exit(connection_closed);
        _ ->
            loop(Link, Id, DHandle, Since)
    end.

%% All that has come; of the next we are told.
take(Link, DHandle, Since) ->
    {Frames, Bytes, More} = macula_nif:link_receive(Link),
    ok = deliver(Frames, DHandle),
    case More of
        more -> take(Link, DHandle, collect(Since + Bytes));
        none -> collect(Since + Bytes)
    end.

deliver([], _) ->
    ok;
deliver([Frame | Frames], DHandle) ->
    try
        erlang:dist_ctrl_put_data(DHandle, Frame)
    catch
        %% badarg: it is down. notsup: it is up again, under another handler.
        error:Reason when Reason =:= badarg; Reason =:= notsup -> await_end()
    end,
    deliver(Frames, DHandle).

%% The connection is gone, and the bridge, to which we are linked, with it.
-spec await_end() -> no_return().
await_end() ->
    receive
        finish -> exit(connection_closed)
    after ?CONTROLLER_TIMEOUT ->
        exit(connection_closed)
    end.

collect(Since) when Since >= ?COLLECT_BYTES ->
    true = erlang:garbage_collect(),
    true = erlang:yield(),
    0;
collect(Since) ->
    Since.
