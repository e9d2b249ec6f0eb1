%% @doc Gossip's side to the network: says that this node is here, and passes
%% on to its owner what others say, once that is authentic and new.
%%
%% All that strangers can send ends in this process, which runs at low
%% priority: however much it is, the owner answers its callers.
%%
%% The owner gets {macula_gossip, Announcement, Addresses}: where the node can
%% be dialled. Without a secret anyone could name anyone's address there, so
%% that only addresses on our own links count.
-module(macula_gossip_socket).

-behaviour(gen_server).

-export([start_link/1, announce/1, goodbye/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, format_status/1]).

%% As many datagrams are taken before the scheduler sees us again.
-define(BATCH, 64).
%% More than the longest announcement, so that one cut short is too long still.
-define(BUFFER_BYTES, 2_048).
%% gen_udp's own is 8 KiB, which a score of nodes that speak together fill.
-define(KERNEL_BUFFER_BYTES, 262_144).
%% How soon a change of interfaces is seen.
-define(SCAN_MS, 2_000).
%% Names of seeds are looked up as often.
-define(RESOLVE_MS, 30_000).
%% The same address's false hmacs are logged once in so long, and no more
%% addresses than that.
-define(LOG_MS, 30_000).
-define(MAX_LOGGED, 16).
%% What strangers may say to the owner each second when nothing needs a proof:
%% a thousand nodes with the usual interval say less.
-define(MAX_OPEN, 1_500).
-define(SECOND_MS, 1_000).
%% A node that goes waits for this.
-define(GOODBYE_MS, 1_000).
-define(GOODBYES, 3).
%% Linux's SO_REUSEPORT: other software on this port may have set it, and then
%% wants it of everyone.
-define(SOL_SOCKET, 1).
-define(SO_REUSEPORT, 15).

-define(IPPROTO_IPV6, 41).

-record(state, {owner :: pid(),
                config :: macula_cluster_options:config(),
                secret :: macula_gossip_packet:secret(),
                v4 = none :: none | gen_udp:socket(),
                v6 = none :: none | gen_udp:socket(),
                interfaces = unknown :: unknown | [macula_gossip_interfaces:interface()],
                joined = [] :: [membership()],
                seeds = [] :: [macula_nif:address()],
                replay :: macula_gossip_replay:replay(),
                last_time = 0 :: integer(),
                said = #{} :: #{term() => integer()},
                open = {0, 0} :: {Second :: integer(), Count :: non_neg_integer()},
                send_works = true :: boolean()}).

-type membership() :: {v4 | v6, gen_udp:socket(), Group :: inet:ip_address(),
                       On :: inet:ip_address() | non_neg_integer(), Index :: non_neg_integer()}.
-type state() :: #state{}.

%% @doc The owner is the caller.
-spec start_link(macula_cluster_options:config()) -> {ok, pid()} | {error, term()}.
start_link(Config) ->
    case gen_server:start_link(?MODULE, {self(), Config}, []) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Says that this node is here.
-spec announce(pid()) -> ok.
announce(Socket) ->
    gen_server:cast(Socket, announce).

%% @doc Says that this node goes; it is said when this returns.
-spec goodbye(pid()) -> ok.
goodbye(Socket) ->
    try
        gen_server:call(Socket, goodbye, ?GOODBYE_MS)
    catch
        exit:_ -> ok
    end.

-spec init({pid(), macula_cluster_options:config()}) -> {ok, state()} | {stop, term()}.
init({Owner, Config}) ->
    process_flag(priority, low),
    #{strict := Strict, secret := Secret} = Config,
    State = #state{owner = Owner, config = Config, secret = Secret,
                   replay = macula_gossip_replay:new(Strict)},
    case open_sockets(State) of
        {ok, Open} ->
            self() ! resolve,
            {ok, scan(Open)};
        {error, Reason} ->
            {stop, {socket_open_failed, Reason}}
    end.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call(goodbye, _, State) ->
    {reply, ok, lists:foldl(fun(_, S) -> say(bye, S) end, State, lists:seq(1, ?GOODBYES))};
handle_call(_, _, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(announce, State) ->
    {noreply, say(hello, State)};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({udp, _, Ip, _, Packet}, State) ->
    {noreply, received(Packet, Ip, State)};
handle_info({udp_passive, Socket}, State) ->
    _ = inet:setopts(Socket, [{active, ?BATCH}]),
    {noreply, State};
handle_info(scan, State) ->
    {noreply, scan(State)};
handle_info(resolve, #state{config = #{seeds := []}} = State) ->
    {noreply, State};
handle_info(resolve, State) ->
    resolve_seeds(State),
    erlang:send_after(?RESOLVE_MS, self(), resolve),
    {noreply, State};
handle_info({resolved, Seeds}, State) ->
    {noreply, State#state{seeds = Seeds}};
handle_info(_, State) ->
    {noreply, State}.

%% The secret is in a fun, which shows nothing of it; still it is nobody's to take.
-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun without_secret/2, Status).

without_secret(state, #state{config = Config} = State) ->
    State#state{config = maps:remove(secret, Config), secret = none};
without_secret(_, Other) ->
    Other.

%%% Sockets

open_sockets(#state{config = #{port := Port} = Config} = State) ->
    case {gen_udp:open(Port, options(inet)), open_v6(Port, Config)} of
        {{ok, V4}, {ok, V6}} -> {ok, State#state{v4 = V4, v6 = V6}};
        {{ok, V4}, _} -> {ok, State#state{v4 = V4}};
        {{error, eafnosupport}, {ok, V6}} -> {ok, State#state{v6 = V6}};
        {{error, Reason}, _} -> {error, Reason}
    end.

%% A broadcast is IPv4's own. A system without IPv6 is no reason not to run.
open_v6(_, #{broadcast_only := true}) -> none;
open_v6(_, #{ipv6_group := none}) -> none;
open_v6(Port, _) -> gen_udp:open(Port, [{ipv6_v6only, true} | options(inet6)]).

options(Family) ->
    [Family, binary, {active, ?BATCH}, {recbuf, ?KERNEL_BUFFER_BYTES}, {buffer, ?BUFFER_BYTES},
     {broadcast, true}, {multicast_loop, true}, {reuseaddr, true} | reuse_port(os:type())].

reuse_port({unix, linux}) -> [{raw, ?SOL_SOCKET, ?SO_REUSEPORT, <<1:32/native>>}];
reuse_port(_) -> [].

%%% Interfaces come and go

scan(#state{config = #{interface := Wanted}, interfaces = Before} = State) ->
    erlang:send_after(?SCAN_MS, self(), scan),
    Now = macula_gossip_interfaces:usable(Wanted, macula_gossip_interfaces:scan()),
    tell_changes(names(Before), names(Now), Wanted),
    join(State#state{interfaces = Now}).

names(unknown) -> unknown;
names(Interfaces) -> macula_gossip_interfaces:names(Interfaces).

tell_changes(Same, Same, _) ->
    ok;
tell_changes(unknown, [], Wanted) ->
    macula_cluster_log:warning(#{event => no_interface, wanted => Wanted});
tell_changes(unknown, _, _) ->
    ok;
tell_changes(Before, Now, _) ->
    case Before -- Now of
        [] -> macula_cluster_log:notice(#{event => interfaces, names => Now});
        Lost -> macula_cluster_log:warning(#{event => interfaces_lost, names => Lost})
    end.

join(#state{joined = Joined} = State) ->
    Wanted = memberships(State),
    lists:foreach(fun(Old) -> member(drop_membership, Old) end, Joined -- Wanted),
    Joining = [New || New <- Wanted -- Joined, member(add_membership, New) =:= ok],
    State#state{joined = [Old || Old <- Joined, lists:member(Old, Wanted)] ++ Joining}.

memberships(#state{config = #{broadcast_only := true}}) ->
    [];
memberships(#state{config = Config, v4 = V4, v6 = V6, interfaces = Interfaces}) ->
    #{multicast_addr := Group4, ipv6_group := Group6} = Config,
    [{v4, V4, Group4, Ip, Index}
     || V4 =/= none, #{v4 := [{Ip, _} | _], index := Index} <- Interfaces]
        ++ [{v6, V6, Group6, Index, Index}
            || V6 =/= none, #{v6 := [_ | _], index := Index, loopback := false} <- Interfaces].

member(What, {v4, Socket, Group, Ip, _}) ->
    inet:setopts(Socket, [{What, {Group, Ip}}]);
member(What, {v6, Socket, Group, Index, _}) ->
    Words = << <<Word:16>> || Word <- tuple_to_list(Group) >>,
    inet:setopts(Socket, [ipv6_option(What, <<Words/binary, Index:32/native>>)]).

%% What inet takes for IPv6 and does nothing about, as the system's headers have it.
ipv6_option(What, Value) ->
    {raw, ?IPPROTO_IPV6, ipv6_option_number(What, os:type()), Value}.

ipv6_option_number(multicast_if, {unix, linux}) -> 17;
ipv6_option_number(add_membership, {unix, linux}) -> 20;
ipv6_option_number(drop_membership, {unix, linux}) -> 21;
ipv6_option_number(multicast_if, _) -> 9;
ipv6_option_number(add_membership, _) -> 12;
ipv6_option_number(drop_membership, _) -> 13.

%%% Announcing

%% Dated first: whoever has understood it has no use for the plain one.
say(Kind, State) when node() =/= nonode@nohost ->
    #state{config = #{strict := Strict}, secret = Secret, last_time = Last} = State,
    Time = max(erlang:system_time(millisecond), Last + 1),
    Name = atom_to_binary(node()),
    Dated = macula_gossip_packet:dated(announcement(Name, Kind, Time, State), Secret),
    Plain = [macula_gossip_packet:plain(Name, Secret) || Kind =:= hello, not Strict],
    send([Dated | Plain], State#state{last_time = Time});
say(_, State) ->
    State.

announcement(Name, Kind, Time, #state{interfaces = Interfaces}) ->
    Announcement = #{name => Name, form => dated, kind => Kind, time => Time},
    case macula_dist_endpoint:address() of
        {ok, {Ip, Port}} ->
            Announcement#{port => Port, addresses => announced(Ip, Interfaces)};
        %% Over another carrier the name says all there is to say.
        {error, _} ->
            Announcement
    end.

%% A host name that is advertised is in the peers' own configuration.
announced(Ip, Interfaces) when Ip =:= {0, 0, 0, 0}; Ip =:= {0, 0, 0, 0, 0, 0, 0, 0} ->
    macula_gossip_interfaces:addresses(Interfaces);
announced(Ip, _) when is_tuple(Ip) ->
    [Ip];
announced(_, _) ->
    [].

send(Packets, State) ->
    Results = [send_to(Target, Packet, State) || Target <- targets(State), Packet <- Packets],
    case [Reason || {error, Reason} <- Results] of
        [] -> State#state{send_works = true};
        [Reason | _] -> send_failed(Reason, State)
    end.

targets(#state{config = Config, interfaces = Interfaces, joined = Joined, seeds = Seeds} = State) ->
    #{broadcast_only := BroadcastOnly, port := Port} = Config,
    Joined ++ [{to, State#state.v4, Ip, Port}
               || BroadcastOnly, #{broadcast := Ips} <- Interfaces, Ip <- Ips]
        ++ [{to, socket_for(Ip, State), Ip, SeedPort} || {Ip, SeedPort} <- Seeds].

socket_for(Ip, #state{v4 = V4}) when tuple_size(Ip) =:= 4 -> V4;
socket_for(_, #state{v6 = V6}) -> V6.

send_to({to, none, _, _}, _, _) ->
    {error, eafnosupport};
send_to({to, Socket, Ip, Port}, Packet, _) ->
    gen_udp:send(Socket, Ip, Port, Packet);
send_to({Family, Socket, Group, On, _}, Packet, #state{config = #{port := Port} = Config}) ->
    case inet:setopts(Socket, outgoing(Family, On, Config)) of
        ok -> gen_udp:send(Socket, Group, Port, Packet);
        {error, _} = Error -> Error
    end.

%% The IPv6 group does not leave its link, whatever the hop limit.
outgoing(v4, Ip, #{multicast_ttl := Ttl}) -> [{multicast_if, Ip}, {multicast_ttl, Ttl}];
outgoing(v6, Index, _) -> [ipv6_option(multicast_if, <<Index:32/native>>)].

%% An interface that just went is seen by the next scan.
send_failed(Reason, #state{send_works = true} = State) ->
    macula_cluster_log:warning(#{event => send_failed, reason => Reason}),
    State#state{send_works = false};
send_failed(_, State) ->
    State.

%% Looking up may take long.
resolve_seeds(#state{config = #{seeds := Seeds, port := Port}}) ->
    Self = self(),
    _ = spawn_link(fun() -> Self ! {resolved, lists:append([resolve(S, Port) || S <- Seeds])} end),
    ok.

resolve({Host, default}, Port) ->
    resolve({Host, Port}, Port);
resolve({Ip, Port}, _) when is_tuple(Ip) ->
    [{Ip, Port}];
resolve({Host, Port}, _) ->
    case [Ip || Family <- [inet, inet6], {ok, Ips} <- [inet:getaddrs(Host, Family)], Ip <- Ips] of
        [] ->
            macula_cluster_log:warning(#{event => seed_unknown, seed => Host, reason => nxdomain}),
            [];
        Ips ->
            [{Ip, Port} || Ip <- Ips]
    end.

%%% Receiving

received(Packet, Ip, #state{secret = Secret} = State) ->
    case macula_gossip_packet:decode(Packet, Secret) of
        {ok, #{name := Name} = Announcement} ->
            case Name =:= atom_to_binary(node()) of
                true -> State;
                false -> judged(Announcement, Ip, Secret, State)
            end;
        {error, invalid_hmac} ->
            log_once({invalid_hmac, Ip}, #{event => invalid_hmac, address => Ip}, State);
        {error, _} ->
            State
    end.

judged(Announcement, Ip, none, State) ->
    allowed(Announcement, Ip, State);
judged(#{name := Name} = Announcement, Ip, _, #state{replay = Replay} = State) ->
    Now = erlang:system_time(millisecond),
    {Verdict, New} = macula_gossip_replay:judge(Announcement, Now, Replay),
    Judged = State#state{replay = New},
    case Verdict of
        fresh -> tell_owner(Announcement, Ip, Judged);
        {clock, Ahead} -> log_clock(Name, Ahead, Ip, Judged);
        repeated -> Judged;
        undated -> Judged
    end.

log_clock(Name, Ahead, Ip, State) ->
    log_once({clock, Ip}, #{event => clock, name => Name, ahead_ms => Ahead}, State).

%% What needs no proof is counted instead.
allowed(Announcement, Ip, #state{open = {Second, Count}} = State) ->
    case erlang:monotonic_time(millisecond) div ?SECOND_MS of
        Second when Count >= ?MAX_OPEN -> State;
        Second -> tell_owner(Announcement, Ip, State#state{open = {Second, Count + 1}});
        Later -> tell_owner(Announcement, Ip, State#state{open = {Later, 1}})
    end.

tell_owner(Announcement, Ip, #state{owner = Owner} = State) ->
    Owner ! {macula_gossip, Announcement, where(Announcement, Ip, State)},
    State.

where(#{port := Port} = Announcement, From, State) ->
    Told = maps:get(addresses, Announcement, []),
    Ips = case lists:member(From, Told) of
              true -> [From | lists:delete(From, Told)];
              false -> Told ++ [From]
          end,
    {OfLink, Others} = lists:partition(fun macula_gossip_interfaces:is_link_local/1,
                                       [Ip || Ip <- Ips, is_believed(Ip, State)]),
    %% An address that means something only on its link is for those that have no other.
    Dialled = case Others of
                  [] -> [Ip || Ip <- OfLink, tuple_size(Ip) =:= 8];
                  _ -> Others
              end,
    [{Ip, Port} || Ip <- Dialled];
where(_, _, _) ->
    [].

is_believed(Ip, #state{secret = Secret, interfaces = Interfaces}) ->
    Secret =/= none orelse macula_gossip_interfaces:is_on_link(Ip, Interfaces).

log_once(About, Report, #state{said = Said} = State) ->
    Now = erlang:monotonic_time(millisecond),
    Recent = maps:filter(fun(_, Then) -> Now - Then < ?LOG_MS end, Said),
    case is_map_key(About, Recent) orelse map_size(Recent) >= ?MAX_LOGGED of
        true ->
            State#state{said = Recent};
        false ->
            macula_cluster_log:warning(Report),
            State#state{said = Recent#{About => Now}}
    end.
