%% @doc Which nodes to connect to, and when. Pure: the time is passed in, the
%% randomness is seeded, and what to do comes out of `due/2'.
%%
%% A *peer* is a node that should be connected: because it is configured, or
%% because it was heard of. One that cannot be reached is tried for ever, with
%% growing pauses; one that is heard of again after a silence, at once; one
%% that said goodbye, not before it comes back by itself.
-module(macula_cluster_policy).

-export([new/2, keep/3, heard/3, bye/3, forget/2, up/3, down/3, ended/3]).
-export([due/2, next/2, peers/1, connected/1, is_up/2]).

-export_type([policy/0, options/0, time/0]).

-type time() :: integer().
%% first: the pause before the first repetition, doubled with each; max: where
%% that ends. stranger_max: the same for peers that never were connected and
%% may never be, nodes of another cookie for instance.
-type options() :: #{own := node(), first := pos_integer(), max := pos_integer(),
                     stranger_max := pos_integer()}.

%% Of two nodes that hear of each other together, the one with the smaller
%% name calls first: two calls that cross cost one of them.
-define(COURTESY_MS, 300).
%% Not heard for so long, and heard again: worth a try at once. Three of the
%% usual announcements may get lost.
-define(SILENCE_MS, 6_000).
%% What was said before a goodbye may arrive after it.
-define(BYE_MS, 3_000).
%% Peers only heard of, never connected and silent for so long, are dropped.
-define(FORGET_MS, 120_000).
%% What strangers can make us remember.
-define(MAX_PEERS, 1_000).
%% Calls at once. Peers that failed before wait for each other, so that those
%% that are only new never wait for them.
-define(MAX_TRYING, 128).
-define(MAX_RETRYING, 32).
-define(MAX_DOUBLINGS, 20).

-record(peer, {state :: up | trying | {due, time()} | {gone, time()},
               kept = false :: boolean(),
               was_up = false :: boolean(),
               failures = 0 :: non_neg_integer(),
               heard :: time()}).

-record(policy, {options :: options(),
                 rand :: rand:state(),
                 peers = #{} :: #{node() => #peer{}},
                 %% Every connected node, peer or not (yet).
                 up = #{} :: #{node() => []}}).

-opaque policy() :: #policy{}.

-spec new(options(), Seed :: integer()) -> policy().
new(Options, Seed) ->
    #policy{options = Options, rand = rand:seed_s(exsss, Seed)}.

%% @doc A peer by configuration, until it is forgotten.
-spec keep(node(), time(), policy()) -> policy().
keep(Node, Now, Policy) ->
    change(Node, Now, fun(Peer) -> kept(Peer, Now) end, Policy).

kept(#peer{state = {gone, _}} = Peer, Now) -> (at_once(Peer, Now))#peer{kept = true};
kept(Peer, _) -> Peer#peer{kept = true}.

%% @doc A node said that it is here.
-spec heard(node(), time(), policy()) -> policy().
heard(Node, Now, #policy{peers = Peers, up = Up} = Policy) ->
    case Peers of
        #{Node := Peer} -> store(Node, heard_again(Peer, is_map_key(Node, Up), Now), Policy);
        _ -> change(Node, Now, fun(Peer) -> Peer end, make_room(Policy))
    end.

heard_again(#peer{state = {gone, Then}} = Peer, _, Now) when Now - Then < ?BYE_MS ->
    Peer;
heard_again(Peer, true, Now) ->
    (is_up(Peer))#peer{heard = Now};
heard_again(#peer{state = {gone, _}} = Peer, false, Now) ->
    at_once(Peer, Now);
heard_again(#peer{state = {due, _}, heard = Heard} = Peer, false, Now) when Now - Heard > ?SILENCE_MS ->
    at_once(Peer, Now);
heard_again(Peer, false, Now) ->
    Peer#peer{heard = Now}.

at_once(Peer, Now) ->
    Peer#peer{state = {due, Now}, failures = 0, heard = Now}.

%% @doc A node said goodbye.
-spec bye(node(), time(), policy()) -> policy().
bye(Node, Now, #policy{peers = Peers} = Policy) ->
    case Peers of
        #{Node := Peer} -> store(Node, Peer#peer{state = {gone, Now}}, Policy);
        _ -> Policy
    end.

%% @doc No peer any more.
-spec forget(node(), policy()) -> policy().
forget(Node, #policy{peers = Peers} = Policy) ->
    Policy#policy{peers = maps:remove(Node, Peers)}.

%% @doc Any node is connected now.
-spec up(node(), time(), policy()) -> policy().
up(Node, _, #policy{up = Up, peers = Peers} = Policy) ->
    Connected = Policy#policy{up = Up#{Node => []}},
    case Peers of
        #{Node := Peer} -> store(Node, is_up(Peer), Connected);
        _ -> Connected
    end.

is_up(Peer) ->
    Peer#peer{state = up, was_up = true, failures = 0}.

%% @doc A node is not connected any more.
-spec down(node(), time(), policy()) -> policy().
down(Node, Now, #policy{up = Up, peers = Peers} = Policy) ->
    Lost = Policy#policy{up = maps:remove(Node, Up)},
    case Peers of
        #{Node := #peer{state = up} = Peer} -> later(Node, Peer, Now, Lost);
        _ -> Lost
    end.

%% @doc The call that `due/2' asked for is over. Whether it succeeded shows
%% in `up/3'; until then the next is planned.
-spec ended(node(), time(), policy()) -> policy().
ended(Node, Now, #policy{peers = Peers, up = Up} = Policy) ->
    case Peers of
        #{Node := #peer{state = trying} = Peer} when is_map_key(Node, Up) ->
            store(Node, is_up(Peer), Policy);
        #{Node := #peer{state = trying, failures = Failures} = Peer} ->
            later(Node, Peer#peer{failures = Failures + 1}, Now, Policy);
        _ ->
            Policy
    end.

%% @doc The nodes to call now. Each is to be told of by `ended/3'.
-spec due(time(), policy()) -> {[node()], policy()}.
due(Now, Policy) ->
    #policy{peers = Peers} = Tidy = drop_silent(Now, Policy),
    Waiting = lists:sort([{Due, Peer#peer.failures > 0, Node}
                          || {Node, #peer{state = {due, Due}} = Peer} <- maps:to_list(Peers), Due =< Now]),
    {Again, New} = lists:partition(fun({_, IsAgain, _}) -> IsAgain end, Waiting),
    Trying = [Peer || #peer{state = trying} = Peer <- maps:values(Peers)],
    Retrying = length([Peer || Peer <- Trying, Peer#peer.failures > 0]),
    Chosen = first(?MAX_RETRYING - Retrying, Again)
        ++ first(?MAX_TRYING - ?MAX_RETRYING - (length(Trying) - Retrying), New),
    Nodes = [Node || {_, _, Node} <- Chosen],
    {Nodes, lists:foldl(fun try_now/2, Tidy, Nodes)}.

first(Count, List) ->
    lists:sublist(List, max(0, Count)).

try_now(Node, #policy{peers = Peers} = Policy) ->
    #{Node := Peer} = Peers,
    store(Node, Peer#peer{state = trying}, Policy).

%% @doc When `due/2' has something to say next, unless something happens
%% before. What it left waiting now waits for a call to end.
-spec next(time(), policy()) -> time() | infinity.
next(Now, #policy{peers = Peers}) ->
    lists:min([infinity | [Due || #peer{state = {due, Due}} <- maps:values(Peers), Due > Now]]).

%% @doc All that are configured, or here by what was heard last.
-spec peers(policy()) -> [node()].
peers(#policy{peers = Peers}) ->
    maps:keys(maps:filter(fun(_, Peer) -> not is_gone(Peer) end, Peers)).

is_gone(#peer{state = {gone, _}, kept = IsKept}) -> not IsKept;
is_gone(_) -> false.

%% @doc The peers that are connected.
-spec connected(policy()) -> [node()].
connected(#policy{peers = Peers, up = Up}) ->
    maps:keys(maps:with(maps:keys(Up), Peers)).

%% @doc Whether this is a connected peer.
-spec is_up(node(), policy()) -> boolean().
is_up(Node, #policy{peers = Peers}) ->
    case Peers of
        #{Node := #peer{state = up}} -> true;
        _ -> false
    end.

%% Changes a peer, or makes it.
change(Node, Now, Fun, #policy{peers = Peers} = Policy) ->
    case Peers of
        #{Node := Peer} ->
            store(Node, Fun(Peer), Policy);
        _ ->
            store(Node, Fun(new_peer(Node, Now, Policy)), Policy)
    end.

new_peer(Node, Now, #policy{up = Up}) when is_map_key(Node, Up) ->
    #peer{state = up, was_up = true, heard = Now};
new_peer(Node, Now, Policy) ->
    #peer{state = {due, Now + courtesy(Node, Policy)}, heard = Now}.

courtesy(Node, #policy{options = #{own := Own}}) when Own < Node -> 0;
courtesy(_, _) -> ?COURTESY_MS.

store(Node, Peer, #policy{peers = Peers} = Policy) ->
    Policy#policy{peers = Peers#{Node => Peer}}.

later(Node, Peer, Now, Policy) ->
    {Pause, New} = pause(Peer, Policy),
    store(Node, Peer#peer{state = {due, Now + Pause}}, New).

%% Between half of it and all of it, so that many nodes that lost one do not
%% all call it together when it is back.
pause(#peer{failures = Failures} = Peer, #policy{options = #{first := First}, rand = Rand} = Policy) ->
    Full = min(max_pause(Peer, Policy), First bsl min(Failures, ?MAX_DOUBLINGS)),
    {Random, NewRand} = rand:uniform_s(Full div 2 + 1, Rand),
    {Full - Random + 1, Policy#policy{rand = NewRand}}.

max_pause(#peer{kept = false, was_up = false}, #policy{options = #{stranger_max := Max}}) -> Max;
max_pause(_, #policy{options = #{max := Max}}) -> Max.

drop_silent(Now, #policy{peers = Peers} = Policy) ->
    Policy#policy{peers = maps:filter(fun(_, Peer) -> not is_dropped(Now, Peer) end, Peers)}.

is_dropped(Now, #peer{state = {due, _}, kept = false, was_up = false, heard = Heard}) ->
    Now - Heard > ?FORGET_MS;
is_dropped(Now, #peer{state = {gone, Then}, kept = false}) ->
    Now - Then > ?FORGET_MS;
is_dropped(_, _) ->
    false.

%% For one more: what was never connected goes first, then what is longest silent.
make_room(#policy{peers = Peers} = Policy) when map_size(Peers) < ?MAX_PEERS ->
    Policy;
make_room(#policy{peers = Peers} = Policy) ->
    Idle = [{Peer#peer.was_up, Peer#peer.heard, Node}
            || {Node, #peer{state = State, kept = false} = Peer} <- maps:to_list(Peers),
               State =/= up, State =/= trying],
    case Idle of
        [] -> Policy;
        _ -> forget(element(3, lists:min(Idle)), Policy)
    end.
