%% @doc Holds this node's native endpoint and its entry in the machine's
%% registry. Opened by listen, or by the first dial of a node that does not
%% listen (-dist_listen false, -remsh, dynamic names).
%%
%% It runs under net_sup, where a crash would halt the VM: whatever can fail
%% is an answer here.
-module(macula_dist_endpoint).

-behaviour(gen_server).

-export([start_link/0, listen/2, accept/2, close/1, dialling/0, named/1, address/0, identity/0,
         links/0, stats/0, renew_certificates/0, late_options/0, opened/0, open_unnamed/0,
         await_mesh/0, mesh_joined/0, cookies_changed/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([handle/0]).

%% What net_kernel holds as the listening socket.
-type handle() :: {macula_listen, reference()}.

%% The native side answers sooner: within 3 s, and the time it takes to stretch
%% the cookie, which on a machine where many nodes boot at once is some seconds.
-define(JOIN_MS, 15_000).

%% How often to look for another cookie of this node, of which OTP tells nobody,
%% while the mesh has to find this node under it.
-define(COOKIES_MS, 1_000).

-record(open, {endpoint :: macula_nif:endpoint(),
               name :: binary(),
               advertise :: undefined | macula_config:target(),
               node_port :: default | inet:port_number(),
               config :: macula_config:config(),
               handle :: handle() | undefined,
               registration :: macula_nif:registration() | undefined,
               mesh :: joining() | tried,
               watch :: undefined | reference()}).

%% Who waits for the first attempts to join the mesh.
-type joining() :: {joining, [gen_server:from()]}.
-type state() :: closed | #open{}.

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    case gen_server:start_link({local, ?MODULE}, ?MODULE, [], []) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% @doc Opens the endpoint under this name. An endpoint that is open already,
%% from an earlier name of this node, is closed with all its links.
-spec listen(node(), macula_dist_name:parts()) ->
          {ok, handle(), macula_nif:address() | macula_config:target()} | {error, term()}.
listen(Node, Parts) ->
    call({listen, Node, Parts}).

%% @doc From now on `Pid' gets the incoming links.
-spec accept(handle(), pid()) -> ok | {error, closed}.
accept(Handle, Pid) ->
    case call({accept, Handle, Pid}) of
        ok -> ok;
        {error, _} -> {error, closed}
    end.

%% @doc Closes what `listen' opened, unless it was replaced since.
-spec close(handle()) -> ok.
close(Handle) ->
    _ = call({close, Handle}),
    ok.

%% @doc The endpoint to dial from; opened now if need be.
-spec dialling() -> {ok, macula_nif:endpoint()} | {error, term()}.
dialling() ->
    call(dialling).

%% @doc The endpoint, if one is open.
-spec opened() -> {ok, macula_nif:endpoint()} | {error, not_running}.
opened() ->
    call(opened).

%% @doc The peer that was dialled first gave this node its name.
-spec named(node()) -> ok.
named(Node) ->
    gen_server:cast(?MODULE, {named, Node}).

%% @doc Where this node says it is, once it listens.
-spec address() -> {ok, macula_nif:address() | macula_config:target()}
              | {error, not_listening | not_running}.
address() ->
    call(address).

%% @doc The id of this node's key.
-spec identity() -> {ok, NodeId :: <<_:256>>} | {error, not_listening | not_running}.
identity() ->
    call(identity).

%% @doc The established links, by the native side's count.
-spec links() -> [#{node := binary(), atom() => term()}].
links() ->
    case call(links) of
        {error, _} -> [];
        Links -> Links
    end.

%% @doc Counters of the native side.
-spec stats() -> #{atom() => integer()}.
stats() ->
    case call(stats) of
        {error, _} -> #{};
        Stats -> Stats
    end.

%% @doc Takes the certificates now in their files into use.
-spec renew_certificates() -> ok | {error, not_running | macula_nif:bad_file()}.
renew_certificates() ->
    call(renew_certificates).

%% @doc The options that are configured otherwise now than when the endpoint was
%% opened, of those that it cannot change while it is open.
-spec late_options() -> {ok, [atom()]} | {error, not_running | macula_config:bad_option()}.
late_options() ->
    call(late_options).

%% @doc An endpoint of the caller's own, to dial from where there is no other.
-spec open_unnamed() -> {ok, macula_nif:endpoint()} | {error, term()}.
open_unnamed() ->
    case open(<<>>, #{port => default}) of
        {ok, #open{endpoint = Endpoint}} -> {ok, Endpoint};
        {error, _} = Error -> Error
    end.

%% @doc Returns when the configured mesh, if there is one, is joined, or the
%% first attempts have failed or take long. Before that nobody can
%% reach this node through it, and this node nobody.
-spec await_mesh() -> ok.
await_mesh() ->
    try
        gen_server:call(?MODULE, await_mesh, ?JOIN_MS)
    catch
        exit:_ -> ok
    end.

%% @doc This node is in a mesh now, which is to find it under each cookie that
%% it has for somebody.
-spec mesh_joined() -> ok.
mesh_joined() ->
    gen_server:cast(?MODULE, watch_cookies).

%% @doc A cookie was set.
-spec cookies_changed() -> ok.
cookies_changed() ->
    gen_server:cast(?MODULE, cookies).

%% Without the carrier, or while it stops, there is just no endpoint.
call(Request) ->
    try
        gen_server:call(?MODULE, Request, infinity)
    catch
        exit:_ -> {error, not_running}
    end.

-spec init([]) -> {ok, state()}.
init([]) ->
    process_flag(trap_exit, true),
    ok = macula_dist_log:init(),
    ok = macula_dist_select:init(),
    {ok, closed}.

-spec handle_call(term(), gen_server:from(), state()) ->
          {reply, term(), state()} | {noreply, state()}.
handle_call(await_mesh, From, #open{mesh = {joining, Waiting}} = State) ->
    {noreply, State#open{mesh = {joining, [From | Waiting]}}};
handle_call(await_mesh, _From, State) ->
    {reply, ok, State};
handle_call(Request, _From, State) ->
    try
        {Reply, NewState} = answer(Request, State),
        {reply, Reply, NewState}
    catch
        Class:Reason:Stack ->
            macula_dist_log:note(endpoint_error, {Class, Reason, Stack}),
            {reply, {error, Reason}, after_error(Request, State)}
    end.

%% Listening begins by closing what was open.
after_error({listen, _, _}, _) -> closed;
after_error(_, State) -> State.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast({named, Node}, #open{name = <<>>, endpoint = Endpoint} = State) ->
    Name = atom_to_binary(Node, utf8),
    ok = macula_nif:endpoint_rename(Endpoint, Name),
    {noreply, State#open{name = Name}};
handle_cast(cookies, State) ->
    ok = tell_cookies(State),
    {noreply, State};
handle_cast(watch_cookies, State) ->
    {noreply, watch_cookies(State)};
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({macula_cookie, Question, Name}, #open{endpoint = Endpoint} = State) ->
    try
        ok = macula_nif:endpoint_cookie(Endpoint, Question, macula_dist_cookie:with_name(Name))
    catch
        %% auth is stopping; without an answer the hello runs into its bound.
        _:_ -> ok
    end,
    {noreply, State};
handle_info({macula_refused, Address, Name, Reason}, State) ->
    macula_dist_log:refused(Address, Name, Reason),
    {noreply, State};
handle_info({macula_relay, _, Relay}, #open{handle = undefined} = State)
  when Relay =:= draining; element(1, Relay) =:= attached ->
    %% A tool, such as a release's rpc: scripts read its output, and want the
    %% answer there, not how it was got.
    {noreply, State};
handle_info({macula_relay, Url, Relay}, State) ->
    macula_dist_log:relay(Url, Relay),
    {noreply, State};
handle_info({macula_peer, Url, Peer}, State) ->
    macula_dist_log:peer(Url, Peer),
    {noreply, State};
handle_info({macula_moved, Name, Relay, Address}, State) ->
    macula_dist_log:moved(Name, Relay, Address),
    {noreply, State};
handle_info({macula_forged, Count}, State) ->
    macula_dist_log:forged(Count),
    {noreply, State};
handle_info({macula_mesh, _, Result}, State) ->
    note_mesh(Result),
    {noreply, watch_cookies(tried(State))};
handle_info({timeout, Timer, cookies}, #open{watch = Timer} = State) ->
    {noreply, watch_cookies(State)};
handle_info({macula_certificate, News}, State) ->
    macula_dist_log:certificate(News),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

-spec terminate(term(), state()) -> ok.
terminate(_Reason, State) ->
    shut(State).

answer({listen, Node, Parts}, State) ->
    shut(State),
    listening(open(atom_to_binary(Node, utf8), Parts));
answer({accept, Handle, Pid}, #open{handle = Handle, endpoint = Endpoint} = State) ->
    {macula_nif:endpoint_accept(Endpoint, Pid), State};
answer({accept, _, _}, State) ->
    {{error, closed}, State};
answer({close, Handle}, #open{handle = Handle} = State) ->
    shut(State),
    {ok, closed};
answer({close, _}, State) ->
    {ok, State};
answer(dialling, #open{endpoint = Endpoint} = State) ->
    {{ok, Endpoint}, State};
answer(dialling, closed) ->
    dial_only(open(<<>>, #{port => default}));
answer(opened, #open{endpoint = Endpoint} = State) ->
    {{ok, Endpoint}, State};
answer(opened, closed) ->
    {{error, not_running}, closed};
answer(address, #open{endpoint = Endpoint, advertise = Advertise, handle = Handle} = State)
  when Handle =/= undefined ->
    {{ok, told(Advertise, macula_nif:endpoint_address(Endpoint))}, State};
answer(identity, #open{endpoint = Endpoint} = State) ->
    {NodeId, _} = macula_nif:endpoint_identity(Endpoint),
    {{ok, NodeId}, State};
answer(Which, State) when Which =:= address; Which =:= identity ->
    {{error, not_listening}, State};
answer(links, #open{endpoint = Endpoint} = State) ->
    {macula_nif:endpoint_links(Endpoint), State};
answer(links, closed) ->
    {[], closed};
answer(stats, #open{endpoint = Endpoint} = State) ->
    {macula_nif:endpoint_stats(Endpoint), State};
answer(stats, closed) ->
    {#{}, closed};
answer(late_options, #open{node_port = NodePort, config = Config} = State) ->
    {late(Config, macula_config:read(NodePort)), State};
answer(late_options, closed) ->
    {{ok, []}, closed};
answer(renew_certificates, #open{endpoint = Endpoint} = State) ->
    {macula_nif:endpoint_renew(Endpoint), State};
answer(renew_certificates, closed) ->
    {{error, not_running}, closed}.

late(_, {error, _} = Error) ->
    Error;
late(Opened, {ok, Now}) ->
    Fixed = maps:without([peers, select], Opened),
    {ok, [Key || {Key, {Value, _}} <- lists:sort(maps:to_list(Fixed)),
                 element(1, maps:get(Key, Now)) =/= Value]}.

listening({error, _} = Error) ->
    {Error, closed};
listening({ok, #open{endpoint = Endpoint, name = Name} = Open}) ->
    Address = macula_nif:endpoint_address(Endpoint),
    case macula_dist_registry:publish(Name, Address) of
        {error, taken} ->
            shut(Open),
            {{error, duplicate_name}, closed};
        {error, Reason} ->
            %% Others on this machine then need a port in the name or a peer
            %% table; that is no reason not to run.
            macula_dist_log:note(registry_unusable, Reason),
            listens(Open, Address);
        {ok, Registration} ->
            listens(Open#open{registration = Registration}, Address)
    end.

listens(#open{advertise = Advertise} = Open, Address) ->
    Handle = {macula_listen, make_ref()},
    {{ok, Handle, told(Advertise, Address)}, Open#open{handle = Handle}}.

%% What this node says its address is; behind a port forwarding it cannot know.
told(undefined, Address) -> Address;
told(Advertise, _) -> Advertise.

dial_only({error, _} = Error) -> {Error, closed};
dial_only({ok, #open{endpoint = Endpoint} = Open}) -> {{ok, Endpoint}, Open}.

open(Name, #{port := NodePort}) ->
    case macula_nif:load() of
        ok ->
            ok = macula_config:load(),
            configured(Name, NodePort, macula_config:read(NodePort));
        {error, _} = Error ->
            Error
    end.

configured(_, _, {error, _} = Error) ->
    Error;
configured(Name, NodePort, {ok, #{port := {Choice, Origin}} = Config}) ->
    #{interface := {Ip, _}, threads := {Threads, _}, dist_streams := {Streams, _}, advertise := {Advertise, _},
      link_memory := {Memory, _}, congestion := {Congestion, _}, cacertfile := {Authorities, _}, mesh := {Mesh, _}} = Config,
    Ports = ports(Name, Choice),
    case macula_nif:endpoint_open(#{owner => self(), ip => Ip, ports => Ports,
                                    name => Name, threads => Threads,
                                    home => macula_dist_home:directory(Name),
                                    authorities => Authorities,
                                    certificate => certificate(Config),
                                    registry => macula_dist_registry:directory(),
                                    well_known_port => well_known_port(Name, Origin),
                                    dist_streams => Streams, link_memory => Memory,
                                    congestion => Congestion}) of
        {ok, Endpoint} ->
            note_identity(macula_nif:endpoint_identity(Endpoint)),
            {ok, #open{endpoint = Endpoint, name = Name, advertise = Advertise,
                       node_port = NodePort, config = Config,
                       mesh = joining(macula_mesh:enter(Endpoint, Mesh))}};
        {error, eaddrinuse} -> {error, {ports_in_use, Ports, Origin}};
        {error, _} = Error -> Error
    end.

joining(none) -> tried;
joining(joining) -> {joining, []}.

note_mesh(ok) -> ok;
note_mesh({error, Reason}) -> macula_dist_log:note(mesh_not_joined, Reason).

tried(#open{mesh = {joining, Waiting}} = State) ->
    lists:foreach(fun(From) -> gen_server:reply(From, ok) end, Waiting),
    State#open{mesh = tried};
tried(State) ->
    State.

%% Until the mesh is left.
watch_cookies(#open{endpoint = Endpoint, watch = Former} = State) ->
    _ = Former =:= undefined orelse erlang:cancel_timer(Former),
    case macula_mesh:is_joined(Endpoint) of
        true ->
            ok = tell_cookies(State),
            State#open{watch = erlang:start_timer(?COOKIES_MS, self(), cookies)};
        false ->
            State#open{watch = undefined}
    end;
watch_cookies(closed) ->
    closed.

tell_cookies(#open{endpoint = Endpoint}) ->
    try
        macula_nif:mesh_cookies(Endpoint, macula_dist_cookie:in_use())
    catch
        %% auth is stopping.
        _:_ -> ok
    end;
tell_cookies(closed) ->
    ok.

note_identity({_, {ephemeral, Why}}) -> macula_dist_log:note(key_not_kept, {io, Why});
note_identity(_) -> ok.

certificate(#{certfile := {undefined, _}}) -> undefined;
certificate(#{certfile := {Certificate, _}, keyfile := {Key, _}}) -> {Certificate, Key}.

%% A node that would have liked the well-known port looks after it.
well_known_port(<<>>, _) -> undefined;
well_known_port(_, default) -> macula_dist_name:default_port();
well_known_port(_, _) -> undefined.

%% What cannot be dialled needs no port of its own, and must not take the one
%% that a node beside it was configured with: a release's tools share its
%% environment.
ports(<<>>, _) -> [0];
ports(_, Choice) -> macula_config:ports(Choice).

shut(closed) ->
    ok;
shut(#open{endpoint = Endpoint, registration = Registration} = Open) ->
    _ = tried(Open),
    withdraw(Registration),
    ok = macula_nif:endpoint_close(Endpoint).

withdraw(undefined) -> ok;
withdraw(Registration) -> macula_dist_registry:withdraw(Registration).
