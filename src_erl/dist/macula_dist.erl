%% @doc The carrier: what net_kernel asks of `-proto_dist macula'. Listening,
%% accepting and dialling are turned over to the other modules here; the
%% handshake is OTP's own.
-module(macula_dist).

-include_lib("kernel/include/net_address.hrl").
-include_lib("kernel/include/dist_util.hrl").

-export([childspecs/0, listen/1, listen/2, accept/1, accept_connection/5, setup/5,
         close/1, select/1, address/0, is_node_name/1, setopts/2, getopts/2]).
-export([own_name/0]).
-export([do_accept/6, do_setup/6]).

%% What net_kernel tells carriers apart by. The family is only a label: one
%% endpoint serves IPv4 and IPv6.
-define(FAMILY, inet).
-define(PROTOCOL, quic).

%% The spec'd bound on reaching a peer, where net_setuptime allows as much.
-define(NEGOTIATION_TIMEOUT, 25_000).

-type domain() :: longnames | shortnames.

%% @doc What the carrier cannot do without. It goes under net_sup.
-spec childspecs() -> {ok, [supervisor:child_spec()]}.
childspecs() ->
    {ok, [#{id => macula_dist_endpoint,
            start => {macula_dist_endpoint, start_link, []},
            shutdown => 900},
          #{id => macula_dist_bridge_sup,
            start => {macula_dist_bridge_sup, start_link, []},
            type => supervisor}]}.

-spec listen(atom()) ->
          {ok, {macula_dist_endpoint:handle(), #net_address{}, pos_integer()}} | {error, term()}.
listen(Name) ->
    listen(Name, hostname()).

-spec listen(atom(), string()) ->
          {ok, {macula_dist_endpoint:handle(), #net_address{}, pos_integer()}} | {error, term()}.
listen(Name, Host) ->
    Node = list_to_atom(atom_to_list(Name) ++ "@" ++ Host),
    case listen_as(Node) of
        {ok, Handle, Address} ->
            ok = macula_dist_endpoint:await_mesh(),
            {ok, {Handle, (address())#net_address{address = Address}, creation()}};
        {error, Reason} ->
            macula_dist_log:listen_failed(Node, Reason),
            {error, Reason}
    end.

listen_as(Node) ->
    case macula_dist_name:split(Node) of
        {ok, Parts} -> macula_dist_endpoint:listen(Node, Parts);
        {error, Reason} -> {error, {illegal_name, Reason}}
    end.

%% Tells this run of the node from earlier ones: 32 bits, above the values that
%% stand for something else. Within one VM, where pids of earlier runs may still
%% be held, each is the last one's successor, so that none comes twice.
creation() ->
    4 + atomics:add_get(creations(), 1, 1) rem ((1 bsl 32) - 4).

%% crypto is not there yet when a release of OTP 25 gets here.
creations() ->
    case persistent_term:get(?MODULE, none) of
        none ->
            Creations = atomics:new(1, []),
            ok = atomics:put(Creations, 1, rand:uniform(1 bsl 32)),
            ok = persistent_term:put(?MODULE, Creations),
            Creations;
        Creations ->
            Creations
    end.

%% @doc The same label as in `accept', and of a node that does not listen.
-spec address() -> #net_address{}.
address() ->
    #net_address{host = hostname(), protocol = ?PROTOCOL, family = ?FAMILY}.

hostname() ->
    {ok, Host} = inet:gethostname(),
    Host.

-spec accept(macula_dist_endpoint:handle()) -> pid().
accept(Handle) ->
    macula_dist_acceptor:start_link(Handle, ?FAMILY, ?PROTOCOL).

-spec close(macula_dist_endpoint:handle()) -> ok.
close(Handle) ->
    macula_dist_endpoint:close(Handle).

%% @doc Runs inside net_kernel, so it only looks at the name, and at the rule
%% where there are other carriers.
-spec select(node()) -> boolean().
select(Node) ->
    can_dial(Node) andalso macula_dist_select:carrier(Node) =:= macula.

%% A name with a bad host or port is taken, so that setup can say what is wrong
%% with it.
can_dial(Node) ->
    case macula_dist_name:split(Node) of
        {ok, _} -> true;
        {error, {bad_host, _}} -> true;
        {error, {bad_port, _}} -> true;
        {error, _} -> false
    end.

-spec is_node_name(node()) -> boolean().
is_node_name(Node) ->
    case macula_dist_name:split(Node) of
        {ok, _} -> true;
        {error, _} -> false
    end.

-spec setopts(term(), list()) -> ok | {error, enotsup}.
setopts(Handle, Options) ->
    macula_dist_socket:setopts(Handle, Options).

-spec getopts(term(), list()) -> {ok, []} | {error, enotsup}.
getopts(Handle, Options) ->
    macula_dist_socket:getopts(Handle, Options).

%% A peer called.

-spec accept_connection(pid(), macula_dist_socket:socket(), node(), list(), timeout()) -> pid().
accept_connection(Acceptor, Socket, MyNode, Allowed, SetupTime) ->
    spawn_opt(?MODULE, do_accept, [self(), Acceptor, Socket, MyNode, Allowed, SetupTime],
              dist_util:net_ticker_spawn_options()).

-spec do_accept(pid(), pid(), macula_dist_socket:socket(), node(), list(), timeout()) ->
          no_return().
do_accept(Kernel, Acceptor, Socket, MyNode, Allowed, SetupTime) ->
    receive
        {Acceptor, controller} -> ok
    end,
    Timer = dist_util:start_timer(SetupTime),
    HsData = hs_data(Kernel, MyNode, macula_dist_socket:adopt(Socket, self()), Timer),
    Peer = macula_dist_socket:peer(Socket),
    dist_util:handshake_other_started(HsData#hs_data{allowed = allowed(Allowed, Peer)}).

%% Whom OTP's handshake may be with: nobody else than whom the hello was with, or who could take the
%% place of another node. A node without a name gets one only now. What net_kernel:allow/1 was told
%% comes first; an empty list of it allows all.
allowed([], Peer) when Peer =/= <<>> -> [unicode:characters_to_list(Peer)];
allowed(Allowed, _) -> Allowed.

%% We call a peer.

-spec setup(node(), atom(), node(), domain(), timeout()) -> pid().
setup(Node, Type, MyNode, Domain, SetupTime) ->
    spawn_opt(?MODULE, do_setup, [self(), Node, Type, MyNode, Domain, SetupTime],
              dist_util:net_ticker_spawn_options()).

-spec do_setup(pid(), node(), atom(), node(), domain(), timeout()) -> no_return().
do_setup(Kernel, Node, Type, MyNode, Domain, SetupTime) ->
    %% What only this node has to do is not to be taken from the time for the peer's answer.
    ok = macula_dist_dialler:prepare(Node),
    Timer = dist_util:start_timer(SetupTime),
    case reach(Node, macula_dist_name:check(Node, Domain), SetupTime) of
        {ok, Socket} ->
            %% A peer answered: OTP's handshake gets the whole time again.
            dist_util:reset_timer(Timer),
            HsData = hs_data(Kernel, MyNode, Socket, Timer),
            dist_util:handshake_we_started(HsData#hs_data{other_node = Node,
                                                          request_type = Type});
        error ->
            ?shutdown(Node)
    end.

reach(Node, {error, Error}, _) ->
    macula_dist_log:illegal_name(Node, Error),
    error;
reach(Node, {ok, Parts}, SetupTime) ->
    case dial(Node, Parts, SetupTime) of
        {ok, Socket} ->
            {ok, Socket};
        {error, Attempts} ->
            macula_dist_log:unreachable(Node, Attempts),
            error
    end.

dial(Node, Parts, SetupTime) ->
    Ticker = self(),
    case macula_dist_endpoint:dialling() of
        {ok, Endpoint} ->
            Request = #{endpoint => Endpoint, node => Node, parts => Parts,
                        own_name => own_name(), timeout => dial_time(SetupTime)},
            macula_dist_dialler:connect(
              Request,
              fun(Link) -> macula_dist_socket:adopt(macula_dist_socket:new(Link), Ticker) end);
        {error, Reason} ->
            {error, [#{source => endpoint, reason => Reason}]}
    end.

%% A little less than until net_kernel's timer kills us, so that the failure
%% can be told with its causes.
dial_time(SetupTime) ->
    max(1, min(?NEGOTIATION_TIMEOUT, SetupTime - max(20, min(500, SetupTime div 10)))).

%% @doc This node's name, as hellos have it. A node with a dynamic name has
%% none until its first peer gives it one.
-spec own_name() -> binary().
own_name() ->
    case node() of
        nonode@nohost -> <<>>;
        Node -> atom_to_binary(Node, utf8)
    end.

%% What both directions have in common.
hs_data(Kernel, MyNode, Socket, Timer) ->
    IsNameless = node() =:= nonode@nohost,
    #hs_data{kernel_pid = Kernel,
             this_node = MyNode,
             socket = Socket,
             timer = Timer,
             this_flags = 0,
             reject_flags = macula_dist_socket:reject_flags(Socket),
             f_send = fun send/2,
             f_recv = fun macula_dist_socket:recv/3,
             f_setopts_pre_nodeup = fun(_) -> ok end,
             f_setopts_post_nodeup = fun(_) -> ok end,
             f_getll = fun(S) -> {ok, macula_dist_socket:bridge(S)} end,
             f_address = fun remote_address/2,
             f_handshake_complete = fun(S, Node, DHandle) ->
                                            complete(IsNameless, S, Node, DHandle)
                                    end,
             mf_tick = fun macula_dist_socket:tick/1,
             mf_getstat = fun macula_dist_socket:getstat/1,
             mf_setopts = fun macula_dist_socket:setopts/2,
             mf_getopts = fun macula_dist_socket:getopts/2}.

send(Socket, Packet) ->
    ok = case iolist_to_binary(Packet) of
             %% The dialler's answer to the challenge, or the other side's: the last that each says.
             <<Tag, _/binary>> when Tag =:= $r; Tag =:= $a ->
                 macula_dist_acceptor:last_packet(macula_dist_socket:peer(Socket));
             _ ->
                 ok
         end,
    macula_dist_socket:send(Socket, Packet).

complete(true, Socket, Node, DHandle) ->
    ok = macula_dist_endpoint:named(node()),
    complete(false, Socket, Node, DHandle);
complete(false, Socket, Node, DHandle) ->
    ok = macula_dist_bridge:established(macula_dist_socket:bridge(Socket), Node, DHandle),
    macula_dist_acceptor:handshake_over(macula_dist_socket:peer(Socket)).

remote_address(Socket, Node) ->
    {Ip, _} = Address = macula_dist_socket:address(Socket),
    {ok, #{text := Host}} = macula_dist_name:split(Node),
    #net_address{address = Address, host = Host, protocol = ?PROTOCOL, family = family(Ip)}.

family(Ip) when tuple_size(Ip) =:= 4 -> inet;
family(Ip) when tuple_size(Ip) =:= 8 -> inet6.
