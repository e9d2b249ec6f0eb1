%% @doc The accept process of the carrier: offers each incoming link to
%% net_kernel, one after the other, as net_kernel expects it, and to one peer's
%% links one handshake at a time.
%%
%% A peer that hangs up and calls again at once may be here before this node is
%% through with the handshake of the call before: for the peer that one was over
%% with our last packet. net_kernel would take the two for calls of both nodes at
%% the same time and turn the second away, and the peer would wait until its
%% net_setuptime is over for a call of ours that never comes.
-module(macula_dist_acceptor).

-export([start_link/3, handshake_over/2]).
-export([init/4]).

%% By then whoever is in the way is not about to finish: net_kernel may judge.
%% What is left of a handshake that the peer takes for done waits for nothing
%% but this node's schedulers.
-define(PATIENCE_MS, 1_000).

%% handshakes: whose handshake is under way, the process that has it, and that
%% peer's next link. A peer dials once at a time: what it dialled before that one
%% it has given up.
-record(state, {kernel :: pid(),
                family :: atom(),
                protocol :: atom(),
                handshakes = #{} :: #{peer() => {pid(), none | {next, macula_nif:link()}}}}).

%% Its name in the hello.
-type peer() :: binary().

%% @doc Called by net_kernel, which restarts this process when it dies.
-spec start_link(macula_dist_endpoint:handle(), Family :: atom(), Protocol :: atom()) -> pid().
start_link(Handle, Family, Protocol) ->
    spawn_opt(?MODULE, init, [self(), Handle, Family, Protocol], [link, {priority, max}]).

%% @doc Told by the process that an accepted link was given to: the nodes are
%% connected.
-spec handshake_over(Acceptor :: pid(), peer()) -> ok.
handshake_over(Acceptor, Peer) ->
    Acceptor ! {handshake_over, Peer, self()},
    ok.

-spec init(pid(), macula_dist_endpoint:handle(), atom(), atom()) -> no_return().
init(Kernel, Handle, Family, Protocol) ->
    case macula_dist_endpoint:accept(Handle, self()) of
        ok -> loop(#state{kernel = Kernel, family = Family, protocol = Protocol});
        {error, closed} -> await_end()
    end.

%% Links wait in the mailbox, bounded by the native side, and stay ours until
%% the connection's own process has put a bridge on them.
loop(State) ->
    receive
        {macula_accept, Link, #{node := Peer}} -> loop(came(Peer, Link, State));
        {handshake_over, Peer, Pid} -> loop(next(Peer, Pid, State));
        {{ended, Peer}, _, process, Pid, _} -> loop(next(Peer, Pid, State))
    end.

%% Nodes whose name this node gives them have none yet, and so nothing in common.
came(<<>>, Link, State) ->
    _ = offer(Link, State),
    State;
came(Peer, Link, #state{handshakes = Handshakes} = State) ->
    case Handshakes of
        #{Peer := {Pid, Before}} ->
            _ = [macula_nif:link_close(GivenUp) || {next, GivenUp} <- [Before]],
            be_patient(Peer, Pid),
            State#state{handshakes = Handshakes#{Peer := {Pid, {next, Link}}}};
        _ ->
            begin_handshake(Peer, Link, State)
    end.

next(Peer, Pid, #state{handshakes = Handshakes} = State) ->
    case Handshakes of
        #{Peer := {Pid, {next, Link}}} -> begin_handshake(Peer, Link, State);
        #{Peer := {Pid, none}} -> State#state{handshakes = maps:remove(Peer, Handshakes)};
        _ -> State
    end.

begin_handshake(Peer, Link, #state{handshakes = Handshakes} = State) ->
    Pid = offer(Link, State),
    _ = monitor(process, Pid, [{tag, {ended, Peer}}]),
    State#state{handshakes = Handshakes#{Peer => {Pid, none}}}.

be_patient(Peer, Pid) ->
    _ = erlang:send_after(?PATIENCE_MS, self(), {handshake_over, Peer, Pid}),
    ok.

offer(Link, #state{kernel = Kernel, family = Family, protocol = Protocol}) ->
    Kernel ! {accept, self(), macula_dist_socket:new(Link), Family, Protocol},
    receive
        {Kernel, controller, Pid} ->
            Pid ! {self(), controller},
            Pid;
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
