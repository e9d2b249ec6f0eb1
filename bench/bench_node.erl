%% @doc What runs in a measured node: reads requests from standard input, a
%% line each, and answers with a line each.
-module(bench_node).

-export([start/0]).

-define(MARK, "bench:").
%% After the last handshake of many, what served it goes.
-define(SETTLE_MS, 1_000).

-spec start() -> ok.
start() ->
    _ = spawn(fun() ->
                  say({ok, up}),
                  read(spawn_link(fun() -> serve(undefined) end))
              end),
    ok.

%% Reading goes on during a load: the end of the input is the end of the node,
%% whatever it is doing.
read(Server) ->
    case io:get_line("") of
        %% Without waiting for a slow line to take what was sent.
        "halt\n" -> erlang:halt(0, [{flush, false}]);
        Line when is_list(Line) ->
            Server ! binary_to_term(base64:decode(string:trim(Line))),
            read(Server);
        _ -> erlang:halt(1, [{flush, false}])
    end.

serve(Peer) ->
    receive
        {peer, Node, OsPids} ->
            say(connected(Node)),
            serve({Node, OsPids});
        {load, Load} ->
            {Node, OsPids} = Peer,
            say(result(fun() -> bench_load:run(Load, Node, OsPids) end)),
            serve(Peer);
        {idle, {WarmUp, Nodes}} ->
            say(result(fun() -> idle(WarmUp, Nodes) end)),
            serve(Peer);
        {relay, Port} ->
            say(result(fun() -> macula:start_relay(#{port => Port}) end)),
            serve(Peer);
        {hops, Count} ->
            {Node, _} = Peer,
            say(result(fun() -> bench_hops:measure(Node, Count) end)),
            serve(Peer);
        congestion ->
            say({ok, lists:usort([congestion(Port) || Port <- erlang:ports(), is_link(Port)])}),
            serve(Peer)
    end.

connected(Node) ->
    case net_kernel:connect_node(Node) of
        true -> {ok, ok};
        Other -> {error, {no_connection, Node, Other}}
    end.

%% In a process of its own: one that failed leaves messages and links behind.
result(Measure) ->
    {_, Monitor} = spawn_monitor(fun() -> exit({measured, Measure()}) end),
    receive
        {'DOWN', Monitor, process, _, {measured, Figures}} -> {ok, Figures};
        {'DOWN', Monitor, process, _, Reason} -> {error, Reason}
    end.

%%% Memory

idle(WarmUp, Nodes) ->
    _ = connect_all(WarmUp),
    Before = settled_memory(),
    _ = connect_all(Nodes),
    maps:map(fun(Key, Bytes) -> (Bytes - map_get(Key, Before)) / length(Nodes) / 1000 end, settled_memory()).

connect_all(Nodes) ->
    [{ok, ok} = connected(Node) || Node <- Nodes].

%% What is collected goes back to the system only some time later.
settled_memory() ->
    [begin
         timer:sleep(?SETTLE_MS),
         [erlang:garbage_collect(Pid) || Pid <- processes()]
     end || _ <- [handshakes, what_they_left]],
    maps:merge(#{idle_vm => erlang:memory(total), idle_resident => resident()}, native()).

%% Anonymous pages only: those of files are shared, and come and go.
resident() ->
    {ok, Status} = file:read_file("/proc/self/status"),
    {match, [KiB]} = re:run(Status, "RssAnon:\\s+(\\d+) kB", [{capture, all_but_first, list}]),
    list_to_integer(KiB) * 1024.

native() ->
    case init:get_argument(proto_dist) of
        {ok, [["macula"]]} -> #{idle_native => macula_nif:memory()};
        _ -> #{}
    end.

%% epmd has a connection as well.
is_link(Port) ->
    EpmdPort = list_to_integer(os:getenv("ERL_EPMD_PORT")),
    erlang:port_info(Port, name) =:= {name, "tcp_inet"} andalso
        case inet:peername(Port) of
            {ok, {_, PeerPort}} -> PeerPort =/= EpmdPort;
            {error, _} -> false
        end.

%% TCP_CONGESTION, as the kernel has it for this very connection.
congestion(Port) ->
    {ok, [{raw, 6, 13, Name}]} = inet:getopts(Port, [{raw, 6, 13, 16}]),
    hd(binary:split(Name, <<0>>)).

say(Term) ->
    io:put_chars([?MARK, base64:encode(term_to_binary(Term)), $\n]).
