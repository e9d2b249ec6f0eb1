%% @doc The accept process of the carrier: offers each incoming link to
%% net_kernel, one after the other, as net_kernel expects it.
-module(macula_dist_acceptor).

-export([start_link/3]).
-export([init/4]).

%% @doc Called by net_kernel, which restarts this process when it dies.
-spec start_link(macula_dist_endpoint:handle(), Family :: atom(), Protocol :: atom()) -> pid().
start_link(Handle, Family, Protocol) ->
    spawn_opt(?MODULE, init, [self(), Handle, Family, Protocol], [link, {priority, max}]).

-spec init(pid(), macula_dist_endpoint:handle(), atom(), atom()) -> no_return().
init(Kernel, Handle, Family, Protocol) ->
    case macula_dist_endpoint:accept(Handle, self()) of
        ok -> loop(Kernel, Family, Protocol);
        {error, closed} -> await_end()
    end.

%% Links wait in the mailbox, bounded by the native side, and stay ours until
%% the connection's own process has put a bridge on them.
loop(Kernel, Family, Protocol) ->
    receive
        {macula_accept, Link, _Info} ->
            offer(Kernel, macula_dist_socket:new(Link), Family, Protocol),
            loop(Kernel, Family, Protocol)
    end.

offer(Kernel, Socket, Family, Protocol) ->
    Kernel ! {accept, self(), Socket, Family, Protocol},
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
