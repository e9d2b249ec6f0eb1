%% @doc The native half: one stub for each native function, and the loading of
%% the library. No logic; see native/macula_nif for what stands behind.
-module(macula_nif).

-export([load/0]).
-export([endpoint_open/1, endpoint_address/1, endpoint_rename/2, endpoint_accept/2,
         endpoint_close/1, endpoint_links/1, endpoint_stats/1, endpoint_cookie/3,
         endpoint_identity/1, endpoint_renew/1, endpoint_prepare/2]).
-export([dial/2, dial_cancel/1]).
-export([mesh_join/2, mesh_leave/2, mesh_cookies/2, mesh_relays/1, mesh_nodes/2, mesh_tunnels/1]).
-export([relay_start/2, relay_stop/2, relay_stats/1, relay_peers/1]).
-export([link_id/1, link_own/2, link_address/1, link_peer/1, link_has_atom_cache/1, link_send_packet/2,
         link_recv_packet/1, link_established/3, link_receive/1, link_send/2,
         link_send_large/2, link_tick/1, link_stat/1, link_close/1]).
-export([registry_publish/3, registry_find/2, registry_list/1]).
-export([registry_withdraw/1]).
-export([mdns_start/1, mdns_stop/1]).
-export([srv_lookup/3]).
-export([call_times/0, memory/0, hop/1, hops/0]).

-export_type([endpoint/0, dial/0, link/0, link_id/0, registration/0, address/0, candidate/0,
              frame/0, sent/0, local_process/0, bad_file/0, mdns/0, hop/0]).

-type endpoint() :: reference().
-type dial() :: reference().
-type link() :: reference().
-type link_id() :: integer().
%% Whether more may be sent, and who has sent too much.
-type sent() :: ok | wait | {ok | wait, Suspend :: [local_process(), ...]} | {error, closed}.
%% The numbers of a pid of this node, as the external term format has them.
-type local_process() :: {Id :: non_neg_integer(), Serial :: non_neg_integer(),
                          Creation :: non_neg_integer()}.
-type registration() :: reference().
-type mdns() :: reference().
-type address() :: {inet:ip_address(), inet:port_number()}.
%% An IPv6 address that means something only on a link comes with that interface's index.
-type candidate() :: address()
                   | {inet:ip6_address(), inet:port_number(), Interface :: pos_integer()}
                   | mesh.
-type bad_file() :: {bad_file, Path :: binary(), Why :: binary()}.
-type frame() :: {Size :: non_neg_integer(), erlang:iovec()}.

%% There is no -on_load: in an embedded OTP 25 release, modules that have one
%% are undefined while distribution boots. Instead the first call of any stub
%% loads the library, which replaces the stubs, and calls again.

-spec load() -> ok | {error, {nif_not_loaded, file:filename(), string()}}.
load() ->
    Path = path(),
    case erlang:load_nif(Path, 0) of
        ok ->
            %% The library cannot be upgraded in place: refuse a hot reload
            %% of this module with OTP's own words instead of a crash.
            _ = code:stick_mod(?MODULE),
            ok;
        {error, {reload, _}} ->
            ok;
        {error, {_, Text}} ->
            {error, {nif_not_loaded, Path, Text}}
    end.

path() ->
    case os:getenv("MACULA_NIF_PATH", "") of
        "" -> filename:join(priv_dir(), "macula_nif");
        Path -> filename:rootname(Path, ".so")
    end.

priv_dir() ->
    case code:priv_dir(macula) of
        {error, bad_name} ->
            filename:join([filename:dirname(code:which(?MODULE)), "..", "priv"]);
        Dir ->
            Dir
    end.

load_and(Function, Args) ->
    case load() of
        ok -> again(Function, Args, lists:member({Function, length(Args)}, ?MODULE:module_info(nifs)));
        {error, Reason} -> erlang:nif_error(Reason)
    end.

%% A library that lacks the function would send us round for ever.
again(Function, Args, true) -> apply(?MODULE, Function, Args);
again(Function, Args, false) -> erlang:nif_error({not_in_library, {Function, length(Args)}}).

%% Endpoint: one UDP port with everything on it.

-spec endpoint_open(#{owner := pid(), ip := any | inet:ip_address(),
                      ports := [inet:port_number()], name := binary(),
                      threads := pos_integer(), home := undefined | binary(),
                      authorities := undefined | binary(),
                      certificate := undefined | {File :: binary(), KeyFile :: binary()},
                      registry := undefined | binary(),
                      well_known_port := undefined | inet:port_number(),
                      dist_streams := 1..255, link_memory := 16#400000..16#80000000,
                      congestion := cubic | bbr}) ->
          {ok, endpoint()} | {error, eaddrinuse | {bind_failed, binary()} | bad_file()}.
endpoint_open(Options) -> load_and(endpoint_open, [Options]).

-spec endpoint_address(endpoint()) -> address().
endpoint_address(Endpoint) -> load_and(endpoint_address, [Endpoint]).

-spec endpoint_rename(endpoint(), binary()) -> ok.
endpoint_rename(Endpoint, Name) -> load_and(endpoint_rename, [Endpoint, Name]).

-spec endpoint_accept(endpoint(), pid()) -> ok.
endpoint_accept(Endpoint, Pid) -> load_and(endpoint_accept, [Endpoint, Pid]).

-spec endpoint_close(endpoint()) -> ok.
endpoint_close(Endpoint) -> load_and(endpoint_close, [Endpoint]).

-spec endpoint_links(endpoint()) -> [#{atom() => term()}].
endpoint_links(Endpoint) -> load_and(endpoint_links, [Endpoint]).

%% The answer to {macula_cookie, Question, NodeName}, which the owner gets.
-spec endpoint_cookie(endpoint(), Question :: non_neg_integer(), binary()) -> ok.
endpoint_cookie(Endpoint, Question, Cookie) -> load_and(endpoint_cookie, [Endpoint, Question, Cookie]).

-spec endpoint_identity(endpoint()) ->
          {NodeId :: <<_:256>>, kept | ephemeral | {ephemeral, Why :: binary()}}.
endpoint_identity(Endpoint) -> load_and(endpoint_identity, [Endpoint]).

%% Waits until the key of this cookie is known, which takes a while the first time.
-spec endpoint_prepare(endpoint(), Cookie :: binary()) -> ok.
endpoint_prepare(Endpoint, Cookie) -> load_and(endpoint_prepare, [Endpoint, Cookie]).

%% Certificates are read anew from their files.
-spec endpoint_renew(endpoint()) -> ok | {error, bad_file()}.
endpoint_renew(Endpoint) -> load_and(endpoint_renew, [Endpoint]).

-spec endpoint_stats(endpoint()) -> #{atom() => integer()}.
endpoint_stats(Endpoint) -> load_and(endpoint_stats, [Endpoint]).

%% Dialling: the caller gets {macula_dial, Id, {ok, Link} | {error, Attempts}}.

-spec dial(endpoint(), #{id := integer(), addresses := [candidate()], target := binary(),
                         name := binary(), cookie := binary(), timeout := pos_integer()}) -> {ok, dial()}.
dial(Endpoint, Request) -> load_and(dial, [Endpoint, Request]).

-spec dial_cancel(dial()) -> ok.
dial_cancel(Dial) -> load_and(dial_cancel, [Dial]).

%% The mesh: the caller gets {macula_mesh, Id, ok | {error, Reason}} and
%% {macula_mesh_nodes, Id, undefined | [Name]}; the owner of the endpoint gets
%% {macula_relay, Url, State}, and {macula_moved, Name, Url | undefined, Address}
%% when the link with a node takes another path.

-spec mesh_join(endpoint(), #{atom() => term()}) -> ok | {error, closed}.
mesh_join(Endpoint, Options) -> load_and(mesh_join, [Endpoint, Options]).

-spec mesh_leave(endpoint(), Id :: integer()) -> ok | {error, closed}.
mesh_leave(Endpoint, Id) -> load_and(mesh_leave, [Endpoint, Id]).

%% @doc The cookies in use, this node's own first.
-spec mesh_cookies(endpoint(), [binary(), ...]) -> ok.
mesh_cookies(Endpoint, Cookies) -> load_and(mesh_cookies, [Endpoint, Cookies]).

-spec mesh_relays(endpoint()) -> undefined | [{Url :: binary(), macula_mesh:relay_state()}].
mesh_relays(Endpoint) -> load_and(mesh_relays, [Endpoint]).

-spec mesh_nodes(endpoint(), Id :: integer()) -> ok | {error, closed}.
mesh_nodes(Endpoint, Id) -> load_and(mesh_nodes, [Endpoint, Id]).

-spec mesh_tunnels(endpoint()) -> [{Id :: binary(), macula_dist_relay:metrics()}].
mesh_tunnels(Endpoint) -> load_and(mesh_tunnels, [Endpoint]).

-spec relay_start(endpoint(), #{atom() => term()}) -> ok | {error, bad_file()}.
relay_start(Endpoint, Options) -> load_and(relay_start, [Endpoint, Options]).

-spec relay_stop(endpoint(), GraceMs :: non_neg_integer()) -> ok.
relay_stop(Endpoint, GraceMs) -> load_and(relay_stop, [Endpoint, GraceMs]).

-spec relay_stats(endpoint()) -> undefined | #{atom() => non_neg_integer()}.
relay_stats(Endpoint) -> load_and(relay_stats, [Endpoint]).

%% The owner of the endpoint gets {macula_peer, Url, State}.
-spec relay_peers(endpoint()) -> undefined | [{Name :: binary(), macula_relay:peer_state()}].
relay_peers(Endpoint) -> load_and(relay_peers, [Endpoint]).

%% Link: one peer.

-spec link_id(link()) -> link_id().
link_id(Link) -> load_and(link_id, [Link]).

-spec link_own(link(), pid()) -> ok.
link_own(Link, Pid) -> load_and(link_own, [Link, Pid]).

-spec link_address(link()) -> address().
link_address(Link) -> load_and(link_address, [Link]).

-spec link_peer(link()) -> binary().
link_peer(Link) -> load_and(link_peer, [Link]).

%% @doc Whether the emulators may use their atom cache on the link.
-spec link_has_atom_cache(link()) -> boolean().
link_has_atom_cache(Link) -> load_and(link_has_atom_cache, [Link]).

-spec link_send_packet(link(), iodata()) -> ok | {error, closed}.
link_send_packet(Link, Packet) -> load_and(link_send_packet, [Link, Packet]).

-spec link_recv_packet(link()) -> ok.
link_recv_packet(Link) -> load_and(link_recv_packet, [Link]).

-spec link_established(link(), binary(), pid()) -> ok.
link_established(Link, Node, Input) -> load_and(link_established, [Link, Node, Input]).

-spec link_receive(link()) -> {[binary()], Bytes :: non_neg_integer(), more | none}.
link_receive(Link) -> load_and(link_receive, [Link]).

%% Processes that are to be suspended are named again in
%% {macula_link, Id, {resume, Processes}}.
-spec link_send(link(), [frame()]) -> sent().
link_send(Link, Frames) -> load_and(link_send, [Link, Frames]).

%% The same on a dirty scheduler, for frames of any size.
-spec link_send_large(link(), [frame()]) -> sent().
link_send_large(Link, Frames) -> load_and(link_send_large, [Link, Frames]).

-spec link_tick(link()) -> ok | {error, closed}.
link_tick(Link) -> load_and(link_tick, [Link]).

-spec link_stat(link()) ->
          {ok, FramesIn :: non_neg_integer(), FramesOut :: non_neg_integer(),
           QueuedBytes :: non_neg_integer()} | {error, closed}.
link_stat(Link) -> load_and(link_stat, [Link]).

-spec link_close(link()) -> ok.
link_close(Link) -> load_and(link_close, [Link]).

%% Registry of the nodes running on this machine.

-spec registry_publish(binary(), binary(), address()) ->
          {ok, registration()} | {error, taken | {io, binary()}}.
registry_publish(Dir, Name, Address) -> load_and(registry_publish, [Dir, Name, Address]).

-spec registry_withdraw(registration()) -> ok.
registry_withdraw(Registration) -> load_and(registry_withdraw, [Registration]).

-spec registry_find(binary(), binary()) -> {ok, address()} | {error, not_found | {io, binary()}}.
registry_find(Dir, Name) -> load_and(registry_find, [Dir, Name]).

-spec registry_list(binary()) -> {ok, [{binary(), address()}]} | {error, {io, binary()}}.
registry_list(Dir) -> load_and(registry_list, [Dir]).

%% DNS: the caller gets {macula_srv, Id, Found}, where the nodes of a host are.

-spec srv_lookup(Id :: integer(), Host :: binary(), Timeout :: pos_integer()) ->
          ok | {error, closed}.
srv_lookup(Id, Host, Timeout) -> load_and(srv_lookup, [Id, Host, Timeout]).

%% Multicast DNS: the owner gets {macula_mdns, found, Instance, Port, Ips,
%% [{Key, Value}]} and {macula_mdns, lost, Instance}.

-spec mdns_start(#{owner := pid(), instance := binary(), host := binary(),
                   port := inet:port_number(), addresses := [inet:ip_address()],
                   properties := [{binary(), binary()}],
                   interface := any | binary() | inet:ip_address()}) ->
          {ok, mdns()} | {error, binary()}.
mdns_start(Options) -> load_and(mdns_start, [Options]).

-spec mdns_stop(mdns()) -> ok.
mdns_stop(Mdns) -> load_and(mdns_stop, [Mdns]).

%% Figures of test builds.

-spec call_times() -> not_recorded | [{atom(), non_neg_integer(), non_neg_integer(), boolean()}].
call_times() -> load_and(call_times, []).

-spec memory() -> not_recorded | non_neg_integer().
memory() -> load_and(memory, []).

%% A message's way, see native/macula_net/src/hops.rs. Stamps are in ns of the
%% system's monotonic clock, and each is told once.
-type hop() :: sent | bridge_woken | called | queued | writing | socket_out | socket_in | reading | posted
             | input_woken | received.

-spec hop(hop()) -> ok.
hop(Hop) -> load_and(hop, [Hop]).

-spec hops() -> not_recorded | [{hop(), Ns :: non_neg_integer()}].
hops() -> load_and(hops, []).
