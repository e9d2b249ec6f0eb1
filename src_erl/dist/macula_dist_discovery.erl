%% @doc The nodes that were found on the LAN, and where: a table that
%% strategies fill, the dialler reads, and others may follow.
-module(macula_dist_discovery).

-behaviour(gen_server).

-export([start_link/0, start_link/1, register_node/2, unregister_node/1, lookup_node/1,
         lookup_node/2, addresses/1, list_nodes/0, subscribe/1, unsubscribe/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([name/0, where/0]).

-type name() :: node() | string() | binary().
%% A port alone is one of this machine.
-type where() :: inet:port_number() | macula_nif:address() | [macula_nif:address()].

-define(LOOPBACK, {127, 0, 0, 1}).

%% Who follows: pid to monitor.
-type state() :: #{pid() => reference()}.

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    start_link(#{}).

%% @doc There are no options yet.
-spec start_link(#{}) -> {ok, pid()} | {error, term()}.
start_link(Options) when map_size(Options) =:= 0 ->
    case gen_server:start_link({local, ?MODULE}, ?MODULE, [], []) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% @doc A node is there, and no longer where it was said to be before.
-spec register_node(name(), where()) -> ok | {error, not_running | bad_address | bad_name}.
register_node(Name, Where) ->
    case {to_node(Name), addresses_of(Where)} of
        {error, _} -> {error, bad_name};
        {_, error} -> {error, bad_address};
        {Node, Addresses} -> call({register, Node, Addresses})
    end.

-spec unregister_node(name()) -> ok | {error, not_running | bad_name}.
unregister_node(Name) ->
    case to_node(Name) of
        error -> {error, bad_name};
        Node -> call({unregister, Node})
    end.

%% @doc Where a node is; the first of several addresses.
-spec lookup_node(name()) -> {ok, macula_nif:address()} | {error, not_found}.
lookup_node(Name) ->
    case addresses(Name) of
        [Address | _] -> {ok, Address};
        [] -> {error, not_found}
    end.

%% @doc The same, waiting for the node to be found.
-spec lookup_node(name(), timeout()) -> {ok, macula_nif:address()} | {error, not_found}.
lookup_node(Name, Timeout) ->
    %% In a process of its own: what comes too late must not stay with the caller.
    Caller = self(),
    {Pid, Monitor} = spawn_monitor(fun() -> Caller ! {self(), await(Name, Timeout)} end),
    receive
        {Pid, Result} ->
            demonitor(Monitor, [flush]),
            Result;
        {'DOWN', Monitor, process, Pid, _} ->
            {error, not_found}
    end.

await(Name, Timeout) ->
    _ = subscribe(self()),
    _ = Timeout =:= infinity orelse erlang:send_after(Timeout, self(), too_late),
    await(Name).

await(Name) ->
    case lookup_node(Name) of
        {ok, _} = Found ->
            Found;
        {error, not_found} ->
            receive
                too_late -> {error, not_found};
                _ -> await(Name)
            end
    end.

%% @doc All addresses of a node. Only reads a table; there is none without the
%% application.
-spec addresses(name()) -> [macula_nif:address()].
addresses(Name) ->
    try ets:lookup(?MODULE, known_node(Name)) of
        [{_, Addresses}] -> Addresses;
        [] -> []
    catch
        error:badarg -> []
    end.

-spec list_nodes() -> [{node(), inet:ip_address(), inet:port_number()}].
list_nodes() ->
    try
        [{Node, Ip, Port} || {Node, [{Ip, Port} | _]} <- lists:sort(ets:tab2list(?MODULE))]
    catch
        error:badarg -> []
    end.

%% @doc From now on `Pid' gets {node_discovered, Node, Ip, Port} when a node is
%% found or is somewhere else, and {node_lost, Node}.
-spec subscribe(pid()) -> ok | {error, not_running}.
subscribe(Pid) ->
    call({subscribe, Pid}).

-spec unsubscribe(pid()) -> ok | {error, not_running}.
unsubscribe(Pid) ->
    call({unsubscribe, Pid}).

call(Request) ->
    try
        gen_server:call(?MODULE, Request)
    catch
        exit:_ -> {error, not_running}
    end.

to_node(Node) when is_atom(Node) ->
    Node;
to_node(Text) ->
    try
        binary_to_atom(unicode:characters_to_binary(Text))
    catch
        error:_ -> error
    end.

%% A name that is looked up makes no atom.
known_node(Node) when is_atom(Node) -> Node;
known_node(Text) -> binary_to_existing_atom(unicode:characters_to_binary(Text)).

addresses_of(Port) when is_integer(Port) -> addresses_of([{?LOOPBACK, Port}]);
addresses_of({_, _} = Address) -> addresses_of([Address]);
addresses_of([_ | _] = Addresses) ->
    case lists:all(fun is_address/1, Addresses) of
        true -> Addresses;
        false -> error
    end;
addresses_of(_) -> error.

is_address({Ip, Port}) ->
    is_integer(Port) andalso Port > 0 andalso Port < 65536 andalso inet:is_ip_address(Ip);
is_address(_) ->
    false.

-spec init([]) -> {ok, state()}.
init([]) ->
    _ = ets:new(?MODULE, [named_table, protected, {read_concurrency, true}]),
    {ok, #{}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call({register, Node, Addresses}, _, Followers) ->
    IsNews = lists:sort(addresses(Node)) =/= lists:sort(Addresses),
    true = ets:insert(?MODULE, {Node, Addresses}),
    {Ip, Port} = hd(Addresses),
    _ = IsNews andalso tell({node_discovered, Node, Ip, Port}, Followers),
    {reply, ok, Followers};
handle_call({unregister, Node}, _, Followers) ->
    _ = ets:take(?MODULE, Node) =/= [] andalso tell({node_lost, Node}, Followers),
    {reply, ok, Followers};
handle_call({subscribe, Pid}, _, Followers) when is_map_key(Pid, Followers) ->
    {reply, ok, Followers};
handle_call({subscribe, Pid}, _, Followers) when is_pid(Pid) ->
    {reply, ok, Followers#{Pid => monitor(process, Pid)}};
handle_call({unsubscribe, Pid}, _, Followers) ->
    {reply, ok, dropped(Pid, Followers)};
handle_call(_, _, Followers) ->
    {reply, {error, unknown_call}, Followers}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_, Followers) ->
    {noreply, Followers}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({'DOWN', _, process, Pid, _}, Followers) ->
    {noreply, dropped(Pid, Followers)};
handle_info(_, Followers) ->
    {noreply, Followers}.

dropped(Pid, Followers) ->
    case maps:take(Pid, Followers) of
        {Monitor, Left} ->
            demonitor(Monitor, [flush]),
            Left;
        error ->
            Followers
    end.

tell(Event, Followers) ->
    [Pid ! Event || Pid <- maps:keys(Followers)].
