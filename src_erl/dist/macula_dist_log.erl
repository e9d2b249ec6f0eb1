%% @doc What the carrier says in the log: one readable line for each event,
%% as a structured report in the domain [macula, dist].
-module(macula_dist_log).

-include_lib("kernel/include/logger.hrl").

-export([init/0, refused/3, certificate/1, unreachable/2, relay/2, moved/3, peer/2, forged/1,
         listen_failed/2,
         illegal_name/2, note/2, format/1]).
-export([let_through/0]).
-export([reason/1, relay_reason/1, address/1, check/1]).

-export_type([attempt/0]).

%% What was tried to reach a node, and how it ended. Without an address it is
%% the looking up itself that failed.
-type attempt() :: #{source := atom(), reason := term(), address => macula_nif:candidate()}.

%% The same failure of the same node is said again only after this.
-define(REPEAT_MS, 5_000).
%% The last words of a boot that failed are worth this much waiting.
-define(PRINT_MS, 2_000).
%% Node names that never worked must not pile up.
-define(MAX_NODES, 1_000).
%% Refusals told in a minute, from wherever: one a node of a cluster with the
%% wrong cookie, and no more than a log can take for days.
-define(MAX_REFUSALS, 20).
-define(REFUSALS_MS, 60_000).
%% What is shown of a name that a stranger gives itself.
-define(MAX_NAME, 100).

%% @doc Makes the table of recent lines; its owner is the endpoint process.
-spec init() -> ok.
init() ->
    _ = ets:new(?MODULE, [named_table, public, set]),
    ok.

%% @doc A node could not be reached: what was tried and why each failed.
-spec unreachable(node(), [attempt()]) -> ok.
unreachable(Node, Attempts) ->
    %% They come in the order they ended in, and must not look new for that.
    warn_once(Node, #{event => unreachable, node => Node, attempts => lists:sort(Attempts)}).

%% @doc This node stands with a relay in another way now.
-spec relay(binary(), macula_mesh:relay_state()) -> ok.
relay(Url, {down, Reason}) ->
    warn_once({relay, Url}, #{event => relay_down, relay => Url, reason => Reason});
relay(Url, State) ->
    ?LOG_NOTICE(#{event => relay, relay => Url, state => State}, metadata()).

%% @doc The relay here stands with one of its peers in another way now. The
%% native side tells only of changes.
-spec peer(binary(), macula_relay:peer_state()) -> ok.
peer(Url, {down, {refused, itself}}) ->
    ?LOG_INFO(#{event => peer_itself, relay => Url}, metadata());
peer(Url, {down, Reason}) ->
    ?LOG_WARNING(#{event => peer_down, relay => Url, reason => Reason}, metadata());
peer(Url, {_, Address}) ->
    ?LOG_NOTICE(#{event => peer, relay => Url, address => Address}, metadata()).

%% @doc The link with a node takes another path now: through a relay, or straight.
-spec moved(binary(), Relay :: binary() | undefined, macula_nif:address()) -> ok.
moved(Node, Relay, Address) ->
    ?LOG_NOTICE(#{event => moved, node => Node, relay => Relay, address => Address}, metadata()).

%% @doc Datagrams came through relays that nobody with this node's cookie had
%% sealed so. The native side tells that every few seconds at most.
-spec forged(pos_integer()) -> ok.
forged(Count) ->
    ?LOG_WARNING(#{event => decrypt_failed, count => Count}, metadata()).

%% @doc A stranger was turned away.
-spec refused(macula_nif:address(), binary(), atom() | {atom(), atom()}) -> ok.
refused(_, _, wrong_name) ->
    %% It proved the cookie and looked for a node of this machine at the default
    %% port, as nodes do. That it is not here is said where it was asked for.
    ok;
refused({Ip, _} = Address, Name, Reason) ->
    %% A port is new with every attempt and a name costs nothing: neither makes
    %% news, or a stranger could fill the log.
    Now = erlang:monotonic_time(millisecond),
    case is_news({refused, Ip, Reason}, refused, Now) andalso may_tell(Now) of
        {true, Untold} ->
            ?LOG_WARNING(#{event => refused, address => Address, name => Name, reason => Reason,
                           untold => Untold},
                         metadata());
        false ->
            ok
    end.

%% Whether another refusal may be told now, and how many were not before it.
%% Only the endpoint process asks. A row of another size than the rest: it
%% outlives them.
may_tell(Now) ->
    case ets:lookup(?MODULE, refusals) of
        [{_, Since, Told, Untold}] when Now - Since < ?REFUSALS_MS, Told >= ?MAX_REFUSALS ->
            ets:insert(?MODULE, {refusals, Since, Told, Untold + 1}),
            false;
        [{_, Since, Told, Untold}] when Now - Since < ?REFUSALS_MS ->
            ets:insert(?MODULE, {refusals, Since, Told + 1, 0}),
            {true, Untold};
        [{_, _, _, Untold}] ->
            ets:insert(?MODULE, {refusals, Now, 1, 0}),
            {true, Untold};
        [] ->
            ets:insert(?MODULE, {refusals, Now, 1, 0}),
            {true, 0}
    end.

%% @doc There is something to know about this node's certificates.
-spec certificate(renewed | expired | {ending, Seconds :: non_neg_integer()}
                  | {not_renewed, macula_nif:bad_file()}) -> ok.
certificate(renewed) ->
    ?LOG_NOTICE(#{event => certificates_renewed}, metadata());
certificate(expired) ->
    ?LOG_ERROR(#{event => certificate_expired}, metadata());
certificate({ending, Seconds}) ->
    ?LOG_WARNING(#{event => certificate_ending, seconds => Seconds}, metadata());
certificate({not_renewed, Why}) ->
    ?LOG_WARNING(#{event => certificates_not_renewed, reason => Why}, metadata()).

%% @doc A node name that cannot be dialled.
-spec illegal_name(node(), macula_dist_name:error()) -> ok.
illegal_name(Node, Error) ->
    warn_once(Node, #{event => illegal_name, node => Node, reason => Error}).

%% @doc This node cannot listen. The VM may halt right after, without waiting
%% for the logger of the boot phase, a process that prints as messages come.
-spec listen_failed(node() | string(), term()) -> ok.
listen_failed(Node, Reason) ->
    ?LOG_ERROR(#{event => listen_failed, node => Node, reason => Reason}, metadata()),
    printed(erlang:monotonic_time(millisecond) + ?PRINT_MS).

%% Waits for OTP's handler of the boot phase to have nothing left to print: it
%% is back in its loop then. In between it may wait too, for code to be loaded.
printed(Deadline) ->
    Printer = whereis(logger_simple_h),
    case is_pid(Printer) andalso process_info(Printer, [message_queue_len, current_function]) of
        [{message_queue_len, 0}, {current_function, {logger_simple_h, loop, _}}] ->
            ok;
        [_ | _] ->
            receive after 5 -> ok end,
            case erlang:monotonic_time(millisecond) < Deadline of
                true -> printed(Deadline);
                false -> ok
            end;
        _ ->
            ok
    end.

%% @doc Something failed that is worked around.
-spec note(atom(), term()) -> ok.
note(Event, Reason) ->
    ?LOG_WARNING(#{event => Event, reason => Reason}, metadata()).

metadata() ->
    let_through(),
    #{domain => [macula, dist], report_cb => fun ?MODULE:format/1}.

%% @doc OTP's handlers (simple: during boot) drop every domain but OTP's own; a
%% user who set up nothing must still see our lines. A filter that is there
%% already, or a handler that is not, changes nothing.
-spec let_through() -> ok.
let_through() ->
    lists:foreach(fun let_through/1, [default, simple]).

let_through(Handler) ->
    logger:add_handler_filter(Handler, macula,
                              {fun logger_filters:domain/2, {log, sub, [macula]}}).

warn_once(About, Report) ->
    case is_news(About, Report, erlang:monotonic_time(millisecond)) of
        true -> ?LOG_WARNING(Report, metadata());
        false -> ok
    end.

is_news(About, News, Now) ->
    Hash = erlang:phash2(News),
    try ets:lookup(?MODULE, About) of
        [{_, Hash, Then}] when Now - Then < ?REPEAT_MS -> false;
        _ -> remember(About, Hash, Now)
    catch
        %% No table: the carrier is stopping.
        error:badarg -> true
    end.

remember(About, Hash, Now) ->
    case ets:info(?MODULE, size) of
        Size when is_integer(Size), Size >= ?MAX_NODES -> ets:match_delete(?MODULE, {'_', '_', '_'});
        _ -> ok
    end,
    ets:insert(?MODULE, {About, Hash, Now}).

%% @doc A report of this module as one line.
-spec format(map()) -> {io:format(), [term()]}.
format(#{event := unreachable, node := Node, attempts := Attempts}) ->
    {"macula: cannot reach ~ts: ~ts. ~ts",
     [Node, lists:join("; ", [attempt(A) || A <- Attempts]), advice(Node, Attempts)]};
format(#{event := relay_down, relay := Url, reason := Reason}) ->
    {"macula: not attached to the relay ~ts: ~ts. It is tried again", [Url, relay_reason(Reason)]};
format(#{event := relay, relay := Url, state := {attached, Observed}}) ->
    {"macula: attached to the relay ~ts, which sees this node at ~ts", [Url, address(Observed)]};
format(#{event := peer_itself, relay := Url}) ->
    {"macula: the peer ~ts of this relay is this relay", [Url]};
format(#{event := peer_down, relay := Url, reason := {refused, token}}) ->
    {"macula: the relay ~ts is no peer: no realm is open to both, nor has a token that both know. "
     "It is called again", [Url]};
format(#{event := peer_down, relay := Url, reason := Reason}) ->
    {"macula: the relay ~ts is no peer: ~ts. It is called again", [Url, relay_reason(Reason)]};
format(#{event := peer, relay := Url, address := Address}) ->
    {"macula: the relay ~ts, at ~ts, is a peer", [Url, address(Address)]};
format(#{event := moved, node := Node, relay := undefined, address := Address}) ->
    {"macula: the link with ~ts goes straight to ~ts now", [Node, address(Address)]};
format(#{event := moved, node := Node, relay := Relay}) ->
    {"macula: the link with ~ts goes through the relay ~ts now", [Node, Relay]};
format(#{event := decrypt_failed, count := Count}) ->
    {"macula: decrypt_failed: ~b datagrams came through relays that nobody with this node's cookie "
     "had sealed; they were dropped. If links suffer, use another relay", [Count]};
format(#{event := relay, relay := Url, state := draining}) ->
    {"macula: the relay ~ts is about to go", [Url]};
format(#{event := illegal_name, node := Node, reason := Error}) ->
    {"macula: cannot dial ~ts: ~ts", [Node, macula_dist_name:format_error(Error)]};
format(#{event := refused, address := Address, reason := {own_certificate, _} = Reason}) ->
    {"macula: ~ts was not let in by this node: ~ts. ~ts",
     [address(Address), reason(Reason), check(Reason)]};
format(#{event := refused, address := Address, name := Name, reason := Reason, untold := Untold}) ->
    {"macula: refused ~ts~ts: ~ts~ts",
     [address(Address), called(Name), refusal(Reason), untold(Untold)]};
format(#{event := certificates_renewed}) ->
    {"macula: new certificates are in use", []};
format(#{event := certificate_expired}) ->
    {"macula: this node's certificate has expired; nodes with tls_verify => verify_peer refuse it. "
     "Put a new one into its file: it is noticed by itself", []};
format(#{event := certificate_ending, seconds := Seconds}) ->
    {"macula: this node's certificate ends in ~ts. Put a new one into its file: it is noticed by itself",
     [span(Seconds)]};
format(#{event := certificates_not_renewed, reason := Reason}) ->
    {"macula: the certificates were changed and cannot be used, the former ones stay in use: ~ts",
     [reason(Reason)]};
format(#{event := key_not_kept, reason := Reason}) ->
    {"macula: this node has a key for this run only: ~ts", [reason(Reason)]};
format(#{event := listen_failed, node := Node, reason := Reason}) ->
    {"macula: ~ts cannot listen: ~ts", [Node, reason(Reason)]};
format(#{event := registry_unusable, reason := Reason}) ->
    {"macula: other nodes of this machine will not find this one by name: ~ts", [reason(Reason)]};
format(#{event := late_options, reason := Keys}) ->
    {"macula: ~ts: set after distribution had started, and without effect until it starts anew. "
     "Set it in sys.config, or with Mix: releases: [name: [reboot_system_after_config: true]]",
     [lists:join(", ", [io_lib:format("dist's ~tp", [Key]) || Key <- Keys])]};
format(#{event := not_asked_first, reason := Carriers}) ->
    {"macula: with -proto_dist ~ts other carriers take nodes before macula is asked, and the rule "
     "in {macula, [{select, ...}]} does not count for those; write macula last",
     [lists:join(" ", Carriers)]};
format(#{event := Event, reason := Reason}) ->
    {"macula: ~tp: ~ts", [Event, reason(Reason)]}.

attempt(#{source := Source, address := Address, reason := Reason}) ->
    io_lib:format("~ts (~tp) ~ts", [address(Address), Source, reason(Reason)]);
attempt(#{source := Source, reason := Reason}) ->
    io_lib:format("~tp: ~ts", [Source, reason(Reason)]).

%% @doc A way to a node as people write it.
-spec address(macula_nif:candidate()) -> iolist().
address(mesh) ->
    "the mesh";
address({Ip, Port, Interface}) ->
    ["[", inet:ntoa(Ip), "%", integer_to_list(Interface), "]:", integer_to_list(Port)];
address({Ip, Port}) when tuple_size(Ip) =:= 8 ->
    ["[", inet:ntoa(Ip), "]:", integer_to_list(Port)];
address({Ip, Port}) ->
    [inet:ntoa(Ip), ":", integer_to_list(Port)].

%% @doc Why this node is not attached to a relay.
-spec relay_reason(term()) -> iodata().
relay_reason(trying) -> "no answer yet";
relay_reason({no_address, Text}) -> ["its host has no address: ", Text];
relay_reason({not_a_relay, Text}) -> ["it is no macula relay: ", Text];
relay_reason(no_relay_started) ->
    "a macula node lives there, but no relay: start it with macula:start_relay/1";
relay_reason({refused, unknown_realm}) -> "it does not serve this realm";
relay_reason({refused, token}) -> "it wants another token for this realm (option token)";
relay_reason({refused, certificate}) ->
    "it wants a certificate of the realm's CA (options certfile and keyfile)";
relay_reason({refused, {busy, Ms}}) ->
    io_lib:format("too many nodes come at the moment; it is tried again after ~b ms", [Ms]);
relay_reason({refused, full}) -> "it has as many nodes as it takes";
relay_reason({refused, replaced}) -> "this node has attached again";
relay_reason({certificate, wrong_name}) -> "its certificate does not name its host";
relay_reason({lost, Text}) -> Text;
relay_reason(Reason) -> reason(Reason).

%% @doc How an attempt ended, in words.
-spec reason(term()) -> iolist().
reason(no_mesh) -> "no mesh is joined: macula:join_mesh/1";
reason(not_in_mesh) -> "no relay knows of it under this node's cookie in this realm";
reason(timeout) -> "did not answer in time";
reason(no_hello) -> "connected, but did not answer in time";
reason(not_found) -> "not known there";
reason(not_offered) -> "says that there are no nodes on that host";
reason({dns, Text}) -> Text;
reason(nxdomain) -> "no such host";
reason(busy) -> "takes no new connections now";
reason(not_running) -> "this node's endpoint does not run";
reason(port_closed) -> "nothing listens there";
reason(eaddrinuse) -> "the port is in use";
reason(setup_timeout) -> "took longer than net_setuptime allows";
reason({ports_in_use, [Port], Origin}) ->
    io_lib:format("port ~b, asked for by ~ts, is in use", [Port, origin(Origin)]);
reason({ports_in_use, Ports, Origin}) ->
    io_lib:format("ports ~b to ~b, asked for by ~ts, are all in use",
                  [hd(Ports), lists:last(Ports), origin(Origin)]);
reason(duplicate_name) -> "another node of that name runs on this machine";
reason({refused, wrong_name}) -> "another node lives there";
reason({refused, Why}) -> ["refused: ", refusal(Why)];
reason({version_mismatch, Min, Max}) ->
    io_lib:format("speaks versions ~b to ~b of macula only", [Min, Max]);
reason({not_macula, Text}) -> io_lib:format("does not speak macula: ~ts", [Text]);
reason({certificate, Fault}) -> refusal({certificate, Fault});
reason({own_certificate, Fault}) -> ["it refuses this node's certificate, which ", fault(Fault)];
reason({bad_file, Path, Why}) -> [Path, ": ", Why];
reason({tls, Text}) -> io_lib:format("TLS failed: ~ts", [Text]);
reason({io, Text}) -> Text;
reason({bind_failed, Text}) -> Text;
reason({nif_not_loaded, Path, Text}) ->
    io_lib:format("the native library ~ts could not be loaded: ~ts", [Path, Text]);
reason({bad_option, _, _, _} = Bad) -> macula_config:format_error(Bad);
reason(Other) -> io_lib:format("~tp", [Other]).

refusal(proof) -> "its cookie is another one than here, or somebody sits in between";
refusal(name_taken) -> "a live node of that name is connected already";
refusal(version_mismatch) -> "no protocol version in common";
refusal({certificate, Fault}) -> ["its certificate ", fault(Fault)];
refusal(malformed) -> "its hello could not be read";
refusal(Other) -> io_lib:format("~tp", [Other]).

fault(unreadable) -> "is missing or cannot be read";
fault(expired) -> "has expired";
fault(not_yet_valid) -> "is not valid yet";
fault(unknown_issuer) -> "does not come from a CA of the cacertfile";
fault(wrong_name) -> "names neither the node nor its host";
fault(unfit) -> "cannot be used for this (key usage, constraints or signature algorithm)".

span(Seconds) when Seconds < 7_200 -> io_lib:format("~b minutes", [Seconds div 60]);
span(Seconds) when Seconds < 172_800 -> io_lib:format("~b hours", [Seconds div 3_600]);
span(Seconds) -> io_lib:format("~b days", [Seconds div 86_400]).

%% What a stranger calls itself is shown as what it is: bytes from the network.
called(<<>>) -> "";
called(Name) ->
    case unicode:characters_to_list(Name) of
        [_ | _] = Long when length(Long) > ?MAX_NAME ->
            Shown = unicode:characters_to_binary(lists:sublist(Long, ?MAX_NAME)),
            io_lib:format(", which says it is ~0tp and so on", [Shown]);
        _ ->
            io_lib:format(", which says it is ~0tp", [Name])
    end.

untold(0) -> "";
untold(Count) -> io_lib:format(" (~b more were refused before, too many to tell)", [Count]).

origin({os_env, Name}) -> Name;
origin({app_env, kernel, Key}) -> io_lib:format("kernel's ~tp", [Key]);
origin({app_env, macula, {dist, Key}}) -> io_lib:format("macula's dist option ~tp", [Key]);
origin(node_name) -> "the node name";
origin(Other) -> io_lib:format("~tp", [Other]).

%% The first thing to check, by the most telling failure.
advice(_, [#{source := endpoint}]) ->
    "This node has no endpoint to dial from.";
advice(Node, Attempts) ->
    case [Check || #{reason := Reason} <- Attempts, Check <- check(Reason)] of
        [Check | _] -> Check;
        [] -> general_advice(Node)
    end.

general_advice(Node) ->
    io_lib:format("Check that it runs with -proto_dist macula, that its UDP port is open, "
                  "and its address: {macula, [{peers, #{'~ts' => \"Ip:Port\"}}]}.", [Node]).

%% @doc What a peer that answered gives away: what to check, if anything.
-spec check(term()) -> [string()].
check({refused, proof}) -> ["Check that erlang:get_cookie() is the same on both nodes."];
check(not_in_mesh) ->
    ["Check that it has joined the mesh, and that cookie and realm are the same on both nodes."];
check({refused, name_taken}) -> ["Check that no other node runs under this node's name."];
check({certificate, not_yet_valid}) -> ["Check the clocks of both hosts."];
check({own_certificate, not_yet_valid}) -> ["Check the clocks of both hosts."];
check({certificate, _}) -> ["Check its certfile, and the cacertfile here."];
check({own_certificate, _}) -> ["Check the certfile here, and its cacertfile."];
check({version_mismatch, _, _}) -> ["Check that both nodes run the same version of macula."];
check(_) -> [].
