%% @doc This VM's relay: on the node's own port, or on one of its own, which
%% is also how a VM without distribution has one.
-module(macula_relay).

-behaviour(gen_server).

-export([start/1, stop/0, stats/0, peers/0]).
-export([configured/0, start_link/1, start_configured/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([peer_state/0]).

-include_lib("kernel/include/logger.hrl").

%% A peer that this relay called, or that called it, and where it is.
-type peer_state() :: {peered | called, macula_nif:address()} | {down, term()}.

%% A health answer that broke is there again after this.
-define(HEALTH_MS, 1_000).
%% How long nodes have to turn to other relays when this one stops.
-define(GRACE_MS, 1_000).
%% The node's endpoint is another one after net_kernel was stopped and started.
-define(LOOK_MS, 1_000).

-record(state, {options :: macula_mesh_options:relay(),
                own :: undefined | macula_nif:endpoint(),
                health :: undefined | pid()}).

%% @doc Starts the relay, and the application with it.
-spec start(map()) -> ok | {error, term()}.
start(Options) ->
    case macula_mesh_options:relay(Options) of
        {ok, Relay} -> start_checked(Relay);
        {error, _} = Error -> Error
    end.

start_checked(Relay) ->
    case application:ensure_all_started(macula) of
        {ok, _} -> start_child(Relay);
        {error, _} = Error -> Error
    end.

%% @doc What the application starts by itself: the relay that is configured.
-spec configured() -> [supervisor:child_spec()].
configured() ->
    case macula_relay_config:read() of
        none -> [];
        _ -> [child({?MODULE, start_configured, []})]
    end.

child(Start) ->
    #{id => ?MODULE, start => Start}.

%% @private What is configured may be wrong, and who starts a release reads its
%% log.
-spec start_configured() -> {ok, pid()} | {error, term()}.
start_configured() ->
    case configured_relay() of
        {ok, Pid} ->
            {ok, Pid};
        {error, Reason} ->
            ?LOG_ERROR("macula: the relay cannot start: ~ts", [macula_relay_config:format_error(bare(Reason))],
                       #{domain => [macula, relay]}),
            {error, Reason}
    end.

configured_relay() ->
    case macula_relay_config:read() of
        {ok, Options} -> with_options(macula_mesh_options:relay(Options));
        {error, _} = Error -> Error;
        none -> {error, not_configured}
    end.

with_options({ok, Relay}) -> start_link(Relay);
with_options({error, _} = Error) -> Error.

bare({shutdown, Reason}) -> Reason;
bare(Reason) -> Reason.

start_child(Relay) ->
    Spec = child({?MODULE, start_link, [Relay]}),
    case supervisor:start_child(macula_sup, Spec) of
        {ok, _} -> ok;
        {error, {already_started, _}} -> {error, already_started};
        {error, {{shutdown, Reason}, _}} -> {error, Reason};
        {error, {Reason, _}} -> {error, Reason};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Stops the relay. Its nodes turn to others, if they have any.
-spec stop() -> ok.
stop() ->
    case whereis(macula_sup) of
        undefined ->
            ok;
        Supervisor ->
            _ = supervisor:terminate_child(Supervisor, ?MODULE),
            _ = supervisor:delete_child(Supervisor, ?MODULE),
            ok
    end.

%% @doc What the relay did, and how many nodes are attached.
-spec stats() -> undefined | #{atom() => non_neg_integer()}.
stats() ->
    ask(stats).

%% @doc How the relay stands with its peers.
-spec peers() -> undefined | [{Name :: binary(), peer_state()}].
peers() ->
    ask(peers).

ask(Question) ->
    try
        gen_server:call(?MODULE, Question)
    catch
        exit:_ -> undefined
    end.

%% @private
-spec start_link(macula_mesh_options:relay()) -> {ok, pid()} | {error, term()}.
start_link(Relay) ->
    case gen_server:start_link({local, ?MODULE}, ?MODULE, Relay, []) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason};
        ignore -> {error, ignore}
    end.

-spec init(macula_mesh_options:relay()) -> {ok, #state{}} | {stop, term()}.
init(Relay) ->
    process_flag(trap_exit, true),
    case open(Relay, macula_dist_endpoint:address()) of
        {ok, State} ->
            macula_dist_log:let_through(),
            warn_if_open(Relay),
            _ = erlang:send_after(?LOOK_MS, self(), look),
            with_health(State);
        {error, Reason} ->
            {stop, {shutdown, Reason}}
    end.

with_health(State) ->
    case health(State) of
        {ok, Pid} ->
            {ok, State#state{health = Pid}};
        {error, Reason} ->
            ok = terminate(Reason, State),
            {stop, {shutdown, Reason}}
    end.

health(#state{options = #{health := undefined}}) ->
    {ok, undefined};
health(#state{options = #{health := Address}} = State) ->
    Relay = with_endpoint(State, fun macula_nif:endpoint_address/1),
    macula_relay_health:start_link(Address, fun stats/0, on_loopback(Relay)).

%% An address that stands for all of them is no place to send to.
on_loopback({Ip, Port}) when Ip =:= {0, 0, 0, 0}; Ip =:= {0, 0, 0, 0, 0, 0, 0, 0} -> {{127, 0, 0, 1}, Port};
on_loopback(Address) -> Address.

-spec handle_call(stats | peers, gen_server:from(), #state{}) -> {reply, term(), #state{}}.
handle_call(stats, _From, State) ->
    {reply, with_endpoint(State, fun macula_nif:relay_stats/1), State};
handle_call(peers, _From, State) ->
    {reply, with_endpoint(State, fun macula_nif:relay_peers/1), State}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(look, #state{options = Relay} = State) ->
    _ = erlang:send_after(?LOOK_MS, self(), look),
    Look = fun(Endpoint) ->
                   macula_nif:relay_stats(Endpoint) =/= undefined
                       orelse macula_nif:relay_start(Endpoint, native(Relay))
           end,
    _ = with_endpoint(State, Look),
    {noreply, State};
handle_info({'EXIT', Health, _}, #state{health = Health} = State) when is_pid(Health) ->
    _ = erlang:send_after(?HEALTH_MS, self(), health),
    {noreply, State#state{health = undefined}};
handle_info(health, State) ->
    case health(State) of
        {ok, Pid} ->
            {noreply, State#state{health = Pid}};
        {error, _} ->
            _ = erlang:send_after(?HEALTH_MS, self(), health),
            {noreply, State}
    end;
handle_info({macula_peer, Url, Peer}, State) ->
    macula_dist_log:peer(Url, Peer),
    {noreply, State};
handle_info(_, State) ->
    %% What an endpoint tells its owner about links concerns a node; a port
    %% of the relay's own is none.
    {noreply, State}.

-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, #state{own = undefined} = State) ->
    Stop = fun(Endpoint) -> macula_nif:relay_stop(Endpoint, ?GRACE_MS) end,
    _ = with_endpoint(State, Stop),
    ok;
terminate(_Reason, #state{own = Endpoint}) ->
    %% Its port goes with it, but not before nodes had their time to turn to others.
    _ = macula_nif:relay_stop(Endpoint, ?GRACE_MS),
    timer:sleep(?GRACE_MS),
    ok = macula_nif:endpoint_close(Endpoint).

%% The node's own port serves as well, when it is the one asked for.
open(#{port := Port} = Relay, {ok, {_, NodePort}}) when Port =:= undefined; Port =:= NodePort ->
    on_node_port(Relay);
open(Relay, _) ->
    on_own_port(Relay).

on_node_port(Relay) ->
    case macula_dist_endpoint:dialling() of
        {ok, Endpoint} -> serve(Endpoint, Relay, #state{options = Relay});
        {error, _} = Error -> Error
    end.

on_own_port(Relay) ->
    case macula_config:read(default) of
        {ok, #{congestion := {Congestion, _}, link_memory := {Memory, _}}} ->
            on_own_port(Relay, #{congestion => Congestion, link_memory => Memory});
        {error, _} = Error -> Error
    end.

on_own_port(#{port := Given, certificate := Certificate} = Relay, Settings) ->
    Port = case Given of
               undefined -> macula_dist_name:default_port();
               _ -> Given
           end,
    Options = Settings#{owner => self(), ip => any, ports => [Port], name => <<>>, threads => 1,
                        home => macula_dist_home:directory(<<"relay">>), authorities => undefined,
                        certificate => Certificate, registry => undefined, well_known_port => undefined,
                        dist_streams => 1},
    case macula_nif:endpoint_open(Options) of
        {ok, Endpoint} ->
            %% The certificate is that of the whole port.
            OnPort = Relay#{certificate := undefined},
            serve(Endpoint, OnPort, #state{options = OnPort, own = Endpoint});
        {error, eaddrinuse} -> {error, {port_in_use, Port}};
        {error, _} = Error -> Error
    end.

serve(Endpoint, Relay, State) ->
    case macula_nif:relay_start(Endpoint, native(Relay)) of
        ok -> {ok, State};
        {error, _} = Error -> Error
    end.

with_endpoint(#state{own = undefined}, Do) ->
    case macula_dist_endpoint:opened() of
        {ok, Endpoint} -> Do(Endpoint);
        {error, _} -> undefined
    end;
with_endpoint(#state{own = Endpoint}, Do) ->
    Do(Endpoint).

native(Relay) ->
    maps:without([port, health], Relay).

%% Whoever reaches an open relay can have it carry traffic.
warn_if_open(#{realms := undefined}) ->
    ?LOG_WARNING("macula: this relay is open: every node may attach, to any realm. "
                 "Name the realms and who may attach: start_relay(#{realms => "
                 "#{<<\"io.macula\">> => {tokens, [Token]}}})",
                 #{domain => [macula, relay]});
warn_if_open(_) ->
    ok.
