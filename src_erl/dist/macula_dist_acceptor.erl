%% @doc The accept process of the carrier: offers each incoming link to
%% net_kernel, one after the other, as net_kernel expects it, and none of a peer
%% with which a handshake is about to end here.
%%
%% For the peer that one is over with our last packet. It may hang up and dial
%% again before this node is through, and net_kernel would take that for two
%% nodes that dial each other, turn the new link away, and the peer would wait
%% until its net_setuptime is over for a link of ours that never comes.
-module(macula_dist_acceptor).

-export([start_link/3, last_packet/1, handshake_over/1]).
-export([init/4]).

%% By then a handshake is not about to end: net_kernel may judge. After its last
%% packet it waits for nothing but this node's schedulers.
-define(PATIENCE_MS, 1_000).

%% ending: with whom a handshake is about to end, the process that has it, and
%% the links of that peer which wait for that, the last one first. There may be
%% several of one dial, all but one of which the peer is about to close.
-record(state, {kernel :: pid(),
                family :: atom(),
                protocol :: atom(),
                ending = #{} :: #{peer() => {pid(), [macula_nif:link()]}}}).

%% Its name in the hello; empty when it has none yet.
-type peer() :: binary().

%% @doc Called by net_kernel, which restarts this process when it dies.
-spec start_link(macula_dist_endpoint:handle(), Family :: atom(), Protocol :: atom()) -> pid().
start_link(Handle, Family, Protocol) ->
    spawn_opt(?MODULE, init, [self(), Handle, Family, Protocol], [link, {priority, max}]).

%% @doc The calling process is about to send the last packet of its handshake,
%% whichever of the nodes dialled.
-spec last_packet(peer()) -> ok.
last_packet(Peer) -> tell({last_packet, Peer, self()}).

%% @doc The calling process has told net_kernel that the nodes are connected.
-spec handshake_over(peer()) -> ok.
handshake_over(Peer) -> tell({handshake_over, Peer, self()}).

%% Nodes that have no name yet have nothing in common; and where nobody listens,
%% nobody dials again.
tell({_, <<>>, _}) ->
    ok;
tell(Message) ->
    _ = [Acceptor ! Message || Acceptor <- [whereis(?MODULE)], is_pid(Acceptor)],
    ok.

-spec init(pid(), macula_dist_endpoint:handle(), atom(), atom()) -> no_return().
init(Kernel, Handle, Family, Protocol) ->
    true = register(?MODULE, self()),
    case macula_dist_endpoint:accept(Handle, self()) of
        ok -> loop(#state{kernel = Kernel, family = Family, protocol = Protocol});
        {error, closed} -> await_end()
    end.

%% Links wait in the mailbox, bounded by the native side, and stay ours until
%% the connection's own process has put a bridge on them.
loop(State) ->
    receive
        {macula_accept, Link, #{node := Peer}} -> loop(came(Peer, Link, State));
        {last_packet, Peer, Pid} -> loop(ends(Peer, Pid, State));
        {handshake_over, Peer, Pid} -> loop(ended(Peer, Pid, State));
        {{gone, Peer}, _, process, Pid, _} -> loop(ended(Peer, Pid, State))
    end.

came(Peer, Link, #state{ending = Ending} = State) ->
    case Ending of
        #{Peer := {Pid, Links}} ->
            State#state{ending = Ending#{Peer := {Pid, [Link | Links]}}};
        _ ->
            ok = offer(Link, State),
            State
    end.

ends(Peer, Pid, #state{ending = Ending} = State) ->
    _ = monitor(process, Pid, [{tag, {gone, Peer}}]),
    _ = erlang:send_after(?PATIENCE_MS, self(), {handshake_over, Peer, Pid}),
    {_, Links} = maps:get(Peer, Ending, {none, []}),
    State#state{ending = Ending#{Peer => {Pid, Links}}}.

ended(Peer, Pid, #state{ending = Ending} = State) ->
    case maps:take(Peer, Ending) of
        {{Pid, Links}, Others} ->
            _ = [ok = offer(Link, State) || Link <- lists:reverse(Links)],
            State#state{ending = Others};
        _ ->
            State
    end.

offer(Link, #state{kernel = Kernel, family = Family, protocol = Protocol}) ->
    Kernel ! {accept, self(), macula_dist_socket:new(Link), Family, Protocol},
    receive
        {Kernel, controller, Pid} ->
            Pid ! {self(), controller},
            ok;
        {Kernel, unsupported_protocol} ->
            exit(unsupported_protocol)
    end.

%% The endpoint is gone: net_kernel is going too, and would only start us
%% again, over and over, until it has.
-spec await_end() -> no_return().
await_end() ->
    receive
    after infinity -> ok
    end.
