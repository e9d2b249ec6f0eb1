%% @doc The connecting half of a strategy's server: carries out what
%% `macula_cluster_policy' decides. The server holds one of these, tells it
%% what it learns of nodes, and passes on the messages that are not its own.
%%
%% Each call to a node is a process of its own, so that one that does not
%% answer holds up nothing. When trust is `open', that is, when anyone on the
%% network can name a node, a cookie that could be guessed keeps us from
%% calling: whoever is called gets a proof to try guesses against.
-module(macula_cluster_members).

-export([start_link/3, new/2, keep/2, heard/2, bye/2, forget/2, handle/2, peers/1, connected/1]).
-export([is_leaving/1, goodbye/1, departed/1]).

-export_type([members/0, trust/0]).

%% What says that a node is one of ours: the configuration, which also says
%% how often missing ones are called; a proof; nothing.
-type trust() :: {configured, IntervalMs :: pos_integer()} | authentic | open.

%% A lost connection is tried again at once, and then as often as the node is
%% heard of after a silence. Meanwhile this is enough.
-define(FIRST_PAUSE_MS, 500).
-define(MAX_PAUSE_MS, 15_000).
%% Nodes that never were connected may be another cluster's.
-define(STRANGER_PAUSE_MS, 60_000).

%% How long a node that goes waits for its peers to hear of it.
-define(GOODBYE_MS, 1_000).
%% Strategies of peers that are to hear of it.
-define(SERVERS, [macula_cluster_gossip, macula_cluster_static, macula_cluster_mdns]).

-record(members, {policy :: macula_cluster_policy:policy(),
                  trust :: trust(),
                  watcher :: none | pid(),
                  calls = #{} :: #{reference() => node()},
                  timer = none :: none | reference(),
                  told = [] :: [node()],
                  warned = false :: boolean()}).

-opaque members() :: #members{}.

%% @doc Starts a strategy's server under its module's name, with its options
%% checked and complete.
-spec start_link(module(), gossip | static | mdns, macula_cluster_options:given()) ->
          {ok, pid()} | {error, term()}.
start_link(Module, Part, Options) ->
    case macula_cluster_options:read(Options, macula_cluster_options:keys(Part)) of
        {ok, Config} -> started(gen_server:start_link({local, Module}, Module, Config, []));
        {error, _} = Error -> Error
    end.

started({ok, Pid}) -> {ok, Pid};
started({error, Reason}) -> {error, Reason}.

%% @doc For the calling server, which gets the messages of all this.
-spec new(trust(), Watcher :: none | pid()) -> members().
new(Trust, Watcher) ->
    ok = net_kernel:monitor_nodes(true),
    Policy = macula_cluster_policy:new((pauses(Trust))#{own => node()}, erlang:unique_integer()),
    Up = fun(Node, P) -> macula_cluster_policy:up(Node, now_ms(), P) end,
    #members{policy = lists:foldl(Up, Policy, nodes()), trust = Trust, watcher = Watcher}.

pauses({configured, Interval}) ->
    #{first => Interval, max => Interval, stranger_max => Interval};
pauses(_) ->
    #{first => ?FIRST_PAUSE_MS, max => ?MAX_PAUSE_MS, stranger_max => ?STRANGER_PAUSE_MS}.

%% @doc A node by configuration.
-spec keep(node(), members()) -> members().
keep(Node, Members) when Node =:= node() -> Members;
keep(Node, Members) -> update(fun macula_cluster_policy:keep/3, Node, Members).

%% @doc A node said that it is here.
-spec heard(node(), members()) -> members().
heard(Node, Members) when Node =:= node() -> Members;
heard(Node, #members{policy = Policy} = Members) ->
    %% Most of what is heard are connected nodes: nothing to do for them.
    Heard = Members#members{policy = macula_cluster_policy:heard(Node, now_ms(), Policy)},
    case macula_cluster_policy:is_up(Node, Policy) of
        true -> Heard;
        false -> act(Heard)
    end.

%% @doc A node said goodbye.
-spec bye(node(), members()) -> members().
bye(Node, Members) ->
    update(fun macula_cluster_policy:bye/3, Node, Members).

%% @doc No peer any more.
-spec forget(node(), members()) -> members().
forget(Node, #members{policy = Policy} = Members) ->
    act(Members#members{policy = macula_cluster_policy:forget(Node, Policy)}).

-spec peers(members()) -> [node()].
peers(#members{policy = Policy}) ->
    macula_cluster_policy:peers(Policy).

-spec connected(members()) -> [node()].
connected(#members{policy = Policy}) ->
    macula_cluster_policy:connected(Policy).

%% @doc For `handle_info': a message that may be meant for the members.
-spec handle(term(), members()) -> {ok, members()} | not_mine.
handle({nodeup, Node}, Members) ->
    {ok, update(fun macula_cluster_policy:up/3, Node, Members)};
handle({nodedown, Node}, Members) ->
    {ok, update(fun macula_cluster_policy:down/3, Node, Members)};
handle({macula_departed, Node}, Members) ->
    {ok, bye(Node, Members)};
handle({timeout, Timer, ?MODULE}, #members{timer = Timer} = Members) ->
    {ok, act(Members#members{timer = none})};
handle({timeout, _, ?MODULE}, Members) ->
    {ok, Members};
handle({'DOWN', Call, process, _, How}, #members{calls = Calls} = Members)
  when is_map_key(Call, Calls) ->
    {Node, Left} = maps:take(Call, Calls),
    Ended = warn(How, Node, Members#members{calls = Left}),
    {ok, update(fun macula_cluster_policy:ended/3, Node, Ended)};
handle(_, _) ->
    not_mine.

update(Fun, Node, #members{policy = Policy} = Members) ->
    act(Members#members{policy = Fun(Node, now_ms(), Policy)}).

%% Calls whom it is time to call, and comes back when there is more to do.
act(#members{policy = Policy, trust = Trust, calls = Calls} = Members) ->
    Now = now_ms(),
    {Nodes, Waiting} = macula_cluster_policy:due(Now, Policy),
    NewCalls = maps:from_list([{call(Node, Trust), Node} || Node <- Nodes]),
    Next = macula_cluster_policy:next(Now, Waiting),
    tell(Members#members{policy = Waiting, calls = maps:merge(Calls, NewCalls),
                         timer = rearm(Members#members.timer, Next, Now)}).

rearm(Timer, Next, Now) ->
    _ = Timer =:= none orelse erlang:cancel_timer(Timer, [{async, true}, {info, false}]),
    case Next of
        infinity -> none;
        _ -> erlang:start_timer(Next - Now, self(), ?MODULE)
    end.

call(Node, Trust) ->
    {_, Monitor} = spawn_monitor(fun() -> reach(Node, Trust) end),
    Monitor.

reach(Node, Trust) ->
    IsSafe = Trust =/= open orelse macula_cookie:is_strong(auth:get_cookie(Node)),
    _ = IsSafe orelse exit(weak_cookie),
    net_kernel:connect_node(Node).

warn(weak_cookie, Node, #members{warned = false} = Members) ->
    macula_cluster_log:weak_cookie(Node),
    Members#members{warned = true};
warn(_, _, Members) ->
    Members.

%% The watcher hears once of each change.
tell(#members{watcher = none} = Members) ->
    Members;
tell(#members{watcher = Watcher, told = Told} = Members) ->
    Connected = connected(Members),
    _ = [Watcher ! {?MODULE, connected, Node} || Node <- Connected -- Told],
    _ = [Watcher ! {?MODULE, disconnected, Node} || Node <- Told -- Connected],
    Members#members{told = Connected}.

%% @doc Whether a strategy that ends for this reason does so because its node
%% goes: it was told to leave, or the VM stops in good order.
-spec is_leaving(Reason :: term()) -> boolean().
is_leaving({shutdown, leave}) -> true;
is_leaving(shutdown) -> element(1, init:get_status()) =:= stopping;
is_leaving(_) -> false.

%% @doc For a strategy that ends for this reason: if its node goes, tells the
%% strategies of all connected nodes, so that they do not call it back. Waits,
%% but not long, since the connections may end right after.
-spec goodbye(Reason :: term()) -> ok.
goodbye(Reason) ->
    _ = is_leaving(Reason) andalso
        erpc:multicall(nodes(), ?MODULE, departed, [node()], ?GOODBYE_MS),
    ok.

%% @doc On a peer of a node that goes.
-spec departed(node()) -> ok.
departed(Node) ->
    lists:foreach(fun(Server) -> tell_server(whereis(Server), Node) end, ?SERVERS).

tell_server(undefined, _) -> ok;
tell_server(Pid, Node) -> Pid ! {macula_departed, Node}.

now_ms() ->
    erlang:monotonic_time(millisecond).
