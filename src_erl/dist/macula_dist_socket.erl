%% @doc The term that stands for a link in OTP's handshake and tick loop, and
%% what dist_util asks of it. Runs in the connection's ticker process.
-module(macula_dist_socket).

-export([new/1, adopt/2, bridge/1, address/1, peer/1, reject_flags/1]).
-export([send/2, recv/3, tick/1, getstat/1, setopts/2, getopts/2]).

-export_type([socket/0]).

-record(macula, {id :: macula_nif:link_id(),
                 link :: macula_nif:link(),
                 bridge :: pid() | undefined}).

-opaque socket() :: #macula{}.

%% erts, dist.h.
-define(DFLAG_DIST_HDR_ATOM_CACHE, 16#2000).

%% In OTP's handshake the whole conversation has net_kernel's own timer above
%% it; this one only bounds a single packet.
-define(RECV_TIMEOUT, 60_000).

-spec new(macula_nif:link()) -> socket().
new(Link) ->
    #macula{id = macula_nif:link_id(Link), link = Link}.

%% @doc Puts a bridge, tied to the calling ticker, on the link.
-spec adopt(socket(), Ticker :: pid()) -> socket().
adopt(#macula{link = Link} = Socket, Ticker) ->
    {ok, Bridge} = macula_dist_bridge_sup:start_bridge(Link, Ticker),
    Socket#macula{bridge = Bridge}.

-spec bridge(socket()) -> pid().
bridge(#macula{bridge = Bridge}) when is_pid(Bridge) -> Bridge.

-spec address(socket()) -> macula_nif:address().
address(#macula{link = Link}) -> macula_nif:link_address(Link).

%% @doc The name that the peer had in the hello; empty when it has none yet.
-spec peer(socket()) -> binary().
peer(#macula{link = Link}) -> macula_nif:link_peer(Link).

%% @doc Flags of OTP's handshake that this node must not agree to. On several
%% streams a frame can name cached atoms only where both libraries see to it
%% that frames which overtake each other do so.
-spec reject_flags(socket()) -> non_neg_integer().
reject_flags(#macula{link = Link}) ->
    case macula_nif:link_has_atom_cache(Link) of
        true -> 0;
        false -> ?DFLAG_DIST_HDR_ATOM_CACHE
    end.

-spec send(socket(), iodata()) -> ok | {error, closed}.
send(#macula{link = Link}, Packet) ->
    macula_nif:link_send_packet(Link, Packet).

%% @doc One handshake packet, as a list: dist_util matches on lists.
-spec recv(socket(), 0, infinity) -> {ok, [byte()]} | {error, closed | timeout}.
recv(#macula{id = Id, link = Link}, _Length, _Timeout) ->
    _ = macula_nif:link_recv_packet(Link),
    receive
        {macula_link, Id, {packet, Packet}} -> {ok, binary_to_list(Packet)};
        {macula_link, Id, {closed, _Reason}} -> {error, closed}
    after ?RECV_TIMEOUT ->
        {error, timeout}
    end.

-spec tick(socket()) -> ok | {error, closed}.
tick(#macula{link = Link} = Socket) ->
    case macula_nif:link_tick(Link) of
        ok ->
            ok;
        {error, closed} = Error ->
            self() ! {tcp_closed, Socket},
            Error
    end.

%% @doc Counts frames, not bytes: dist_util takes it that a tick adds one to
%% what was sent, and would skip every second tick otherwise.
-spec getstat(socket()) ->
          {ok, non_neg_integer(), non_neg_integer(), non_neg_integer()} | {error, closed}.
getstat(#macula{link = Link}) ->
    macula_nif:link_stat(Link).

%% A link has no socket options to set.
-spec setopts(term(), list()) -> ok | {error, enotsup}.
setopts(_, []) -> ok;
setopts(_, _) -> {error, enotsup}.

-spec getopts(term(), list()) -> {ok, []} | {error, enotsup}.
getopts(_, []) -> {ok, []};
getopts(_, _) -> {error, enotsup}.
