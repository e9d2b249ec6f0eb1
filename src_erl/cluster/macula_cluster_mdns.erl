%% @doc The strategy `mdns': shows this node to the link as a service of type
%% _macula._udp, and connects to the others it finds there. The service can be
%% seen with any browser of such (avahi-browse, dns-sd). TXT: `node', its
%% name; `id', that of its key; `realm', a tag of the realm it is in.
%%
%% Multicast DNS proves nothing, so trust is `open' in `macula_cluster_members',
%% and only addresses on our own links count.
-module(macula_cluster_mdns).

-behaviour(gen_server).

-export([start_link/0, start_link/1, stop/0, stop/1, get_discovered/0, get_discovered/1,
         get_connected/0, get_connected/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-type server() :: gen_server:server_ref().

%% How soon another name or port of this node shows. Also how often those that
%% are still shown count as heard of, which is below what counts as a silence.
-define(CHECK_MS, 5_000).
-define(DEFAULT_REALM, <<"io.macula">>).
%% What strangers can make us remember.
-define(MAX_FOUND, 1_000).

-record(state, {interface :: any | string() | inet:ip_address(),
                %% For the names of a node that has no key.
                run_id :: binary(),
                shown = nothing :: nothing | {presence(), macula_nif:mdns()},
                names :: macula_cluster_names:names(),
                found = #{} :: #{Instance :: binary() => node()},
                members :: macula_cluster_members:members()}).

-type state() :: #state{}.
-type presence() :: {node(), macula_nif:address() | none}.

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    start_link(#{}).

%% @doc Options: interface, callback; see docs/configuration.md.
-spec start_link(macula_cluster_options:given()) -> {ok, pid()} | {error, term()}.
start_link(Options) ->
    macula_cluster_members:start_link(?MODULE, mdns, Options).

-spec stop() -> ok.
stop() ->
    stop(?MODULE).

-spec stop(server()) -> ok.
stop(Server) ->
    gen_server:stop(Server).

%% @doc The nodes that are shown on this link.
-spec get_discovered() -> [node()].
get_discovered() ->
    get_discovered(?MODULE).

-spec get_discovered(server()) -> [node()].
get_discovered(Server) ->
    gen_server:call(Server, get_discovered).

%% @doc Those of them that are connected.
-spec get_connected() -> [node()].
get_connected() ->
    get_connected(?MODULE).

-spec get_connected(server()) -> [node()].
get_connected(Server) ->
    gen_server:call(Server, get_connected).

-spec init(macula_cluster_options:config()) -> {ok, state()} | {stop, term()}.
init(#{interface := Interface, callback := Callback, watcher := Watcher}) ->
    process_flag(trap_exit, true),
    Members = macula_cluster_members:new(open, Watcher),
    State = #state{interface = Interface, run_id = crypto:strong_rand_bytes(32),
                   names = macula_cluster_names:new(open), members = Members},
    case show(State) of
        {ok, Shown} ->
            _ = macula_cluster_callback:start_link(Callback),
            erlang:send_after(?CHECK_MS, self(), check),
            {ok, Shown};
        {error, Reason} ->
            {stop, {mdns_failed, Reason}}
    end.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call(get_discovered, _, #state{found = Found} = State) ->
    {reply, lists:usort(maps:values(Found)), State};
handle_call(get_connected, _, #state{members = Members} = State) ->
    {reply, macula_cluster_members:connected(Members), State};
handle_call(_, _, State) ->
    {reply, {error, unknown_call}, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()} | {stop, term(), state()}.
handle_info({macula_mdns, found, Instance, Port, Ips, Properties}, State) ->
    {noreply, found(Instance, Port, Ips, maps:from_list(Properties), State)};
handle_info({macula_mdns, lost, Instance}, State) ->
    {noreply, lost(Instance, State)};
handle_info(check, State) ->
    erlang:send_after(?CHECK_MS, self(), check),
    case show(State) of
        {ok, Shown} -> {noreply, hear_again(Shown)};
        {error, Reason} -> {stop, {mdns_failed, Reason}, State#state{shown = nothing}}
    end;
handle_info({'EXIT', _, Reason}, State) when Reason =/= normal ->
    {stop, Reason, State};
handle_info({macula_departed, Node} = Message, State) ->
    {noreply, pass_on(Message, departed(Node, State))};
handle_info(Message, State) ->
    {noreply, pass_on(Message, State)}.

pass_on(Message, #state{members = Members} = State) ->
    case macula_cluster_members:handle(Message, Members) of
        {ok, New} -> State#state{members = New};
        not_mine -> State
    end.

-spec terminate(term(), state()) -> ok.
terminate(Reason, #state{found = Found} = State) ->
    hide(State),
    lists:foreach(fun macula_dist_discovery:unregister_node/1, maps:values(Found)),
    macula_cluster_members:goodbye(Reason).

%%% This node

%% Shows what this node is now, if that is not what is shown.
show(#state{shown = Shown} = State) ->
    case {presence(), Shown} of
        {Same, {Same, _}} ->
            {ok, State};
        {{nonode@nohost, _}, _} ->
            hide(State),
            {ok, State#state{shown = nothing}};
        {Presence, _} ->
            hide(State),
            shown(Presence, macula_nif:mdns_start(service(Presence, State)), State)
    end.

shown(Presence, {ok, Mdns}, State) -> {ok, State#state{shown = {Presence, Mdns}}};
shown(_, {error, Text}, _) -> {error, Text}.

hide(#state{shown = nothing}) -> ok;
hide(#state{shown = {_, Mdns}}) -> macula_nif:mdns_stop(Mdns).

presence() ->
    case macula_dist_endpoint:address() of
        {ok, Address} -> {node(), Address};
        %% Over another carrier the name says all there is to say.
        {error, _} -> {node(), none}
    end.

service({Node, Address}, #state{interface = Interface, run_id = RunId}) ->
    Name = atom_to_binary(Node),
    Id = node_id(RunId),
    #{owner => self(), instance => Name, host => <<"macula-", (binary:part(Id, 0, 16))/binary>>,
      port => port(Address), addresses => bound_to(Address), interface => as_binary(Interface),
      properties => [{<<"node">>, Name}, {<<"id">>, Id}, {<<"realm">>, realm_tag()}]}.

node_id(RunId) ->
    Bytes = case macula_dist_endpoint:identity() of
                {ok, NodeId} -> NodeId;
                {error, _} -> RunId
            end,
    string:lowercase(binary:encode_hex(Bytes)).

port(none) -> 0;
port({_, Port}) -> Port.

%% None: all that the host has, as it changes.
bound_to({Ip, _}) when is_tuple(Ip), Ip =/= {0, 0, 0, 0}, Ip =/= {0, 0, 0, 0, 0, 0, 0, 0} -> [Ip];
bound_to(_) -> [].

as_binary(Name) when is_list(Name) -> unicode:characters_to_binary(Name);
as_binary(Other) -> Other.

%% Nodes of other realms are told apart without naming realms to the link.
realm_tag() ->
    Realm = case application:get_env(macula, mesh) of
                {ok, #{realm := Given}} -> Given;
                _ -> ?DEFAULT_REALM
            end,
    Tag = crypto:hash(sha256, ["macula-realm:", Realm]),
    string:lowercase(binary:encode_hex(binary:part(Tag, 0, 8))).

%%% The others

found(Instance, Port, Ips, #{<<"node">> := Name} = Properties, State) ->
    IsOurs = maps:get(<<"realm">>, Properties, realm_tag()) =:= realm_tag(),
    case IsOurs andalso macula_cluster_names:is_node_name(Name) of
        true -> found_node(Instance, Name, Port, Ips, State);
        false -> State
    end;
found(_, _, _, _, State) ->
    State.

found_node(Instance, _, _, _, #state{found = Found} = State)
  when map_size(Found) >= ?MAX_FOUND, not is_map_key(Instance, Found) ->
    State;
found_node(Instance, Name, Port, Ips, #state{names = Names} = State) ->
    case macula_cluster_names:to_node(Name, Names) of
        {Node, Made} when Node =/= too_many, Node =/= node() ->
            register_addresses(Node, Port, Ips),
            #state{found = Found} = State,
            hear(Node, State#state{names = Made, found = Found#{Instance => Node}});
        {_, Made} ->
            State#state{names = Made}
    end.

register_addresses(Node, Port, Ips) ->
    Interfaces = macula_gossip_interfaces:scan(),
    case [{Ip, Port} || Port > 0, Ip <- Ips, macula_gossip_interfaces:is_on_link(Ip, Interfaces)] of
        [] -> ok;
        Addresses -> macula_dist_discovery:register_node(Node, Addresses)
    end.

lost(Instance, #state{found = Found} = State) ->
    case maps:take(Instance, Found) of
        {Node, Left} ->
            _ = macula_dist_discovery:unregister_node(Node),
            State#state{found = Left};
        error ->
            State
    end.

%% It has said so over its connection. What it shows goes with one datagram, which may be lost, and then stays for an hour.
departed(Node, #state{found = Found} = State) ->
    lists:foldl(fun lost/2, State, [Instance || {Instance, Shown} <- maps:to_list(Found), Shown =:= Node]).

%% What is shown is told once, however long it stays.
hear_again(#state{found = Found} = State) ->
    lists:foldl(fun hear/2, State, lists:usort(maps:values(Found))).

hear(Node, #state{members = Members} = State) ->
    State#state{members = macula_cluster_members:heard(Node, Members)}.
