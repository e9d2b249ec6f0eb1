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
-define(MAX_TRYING, 96).
-define(MAX_RETRYING, 32).
-define(MAX_DOUBLINGS, 20).

%% due counts while the peer is not connected, not being called and not gone.
-record(peer, {due :: time(),
               heard :: time(),
               calling = false :: boolean(),
               gone = false :: false | time(),
               kept = false :: boolean(),
               was_up = false :: boolean(),
               failures = 0 :: non_neg_integer()}).

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
    change(Node, Now, fun(Peer) -> (back(Peer, Now))#peer{kept = true} end, Policy).

back(#peer{gone = false} = Peer, _) -> Peer;
back(Peer, Now) -> at_once(Peer, Now).

at_once(Peer, Now) ->
    Peer#peer{due = Now, gone = false, failures = 0}.

%% @doc A node said that it is here.
-spec heard(node(), time(), policy()) -> policy().
heard(Node, Now, Policy) ->
    change(Node, Now, fun(Peer) -> heard_again(Peer, Now) end, make_room(Node, Policy)).

heard_again(#peer{gone = Then} = Peer, Now) when is_integer(Then), Now - Then < ?BYE_MS ->
    Peer;
heard_again(#peer{gone = false, heard = Heard} = Peer, Now) when Now - Heard =< ?SILENCE_MS ->
    Peer#peer{heard = Now};
heard_again(Peer, Now) ->
    (at_once(Peer, Now))#peer{heard = Now}.

%% @doc A node said goodbye. Remembered of any node: what it said before may
%% arrive after it.
-spec bye(node(), time(), policy()) -> policy().
bye(Node, Now, Policy) ->
    change(Node, Now, fun(Peer) -> Peer#peer{gone = Now} end, make_room(Node, Policy)).

%% @doc No peer any more.
-spec forget(node(), policy()) -> policy().
forget(Node, #policy{peers = Peers} = Policy) ->
    Policy#policy{peers = maps:remove(Node, Peers)}.

%% @doc Any node is connected now.
-spec up(node(), time(), policy()) -> policy().
up(Node, Now, #policy{up = Up} = Policy) ->
    IsUp = fun(Peer) -> (at_once(Peer, Now))#peer{was_up = true} end,
    change_known(Node, IsUp, Policy#policy{up = Up#{Node => []}}).

%% @doc A node is not connected any more.
-spec down(node(), time(), policy()) -> policy().
down(Node, Now, #policy{up = Up} = Policy) ->
    later(Node, Now, Policy#policy{up = maps:remove(Node, Up)}).

%% @doc The call that `due/2' asked for is over. Whether it succeeded shows
%% in `up/3'; until then the next is planned.
-spec ended(node(), time(), policy()) -> policy().
ended(Node, Now, #policy{up = Up} = Policy) ->
    Failed = case is_map_key(Node, Up) of
                 true -> 0;
                 false -> 1
             end,
    Over = fun(#peer{failures = N} = Peer) -> Peer#peer{calling = false, failures = N + Failed} end,
    later(Node, Now, change_known(Node, Over, Policy)).

%% @doc The nodes to call now. Each is to be told of by `ended/3'.
-spec due(time(), policy()) -> {[node()], policy()}.
due(Now, Policy) ->
    Tidy = drop_silent(Now, Policy),
    {Again, New} = lists:partition(fun is_retry/1, lists:sort(waiting(Now, Tidy))),
    {Retrying, Trying} = lists:partition(fun is_retry/1, calling(Tidy)),
    Chosen = first(?MAX_RETRYING - length(Retrying), Again)
        ++ first(?MAX_TRYING - length(Trying), New),
    Nodes = [Node || {_, Node, _} <- Chosen],
    {Nodes, lists:foldl(fun call/2, Tidy, Nodes)}.

waiting(Now, Policy) ->
    [{Due, Node, Failures}
     || {Node, #peer{due = Due, failures = Failures}} <- idle(Policy), Due =< Now].

calling(#policy{peers = Peers}) ->
    [{Due, Node, Failures}
     || {Node, #peer{calling = true, due = Due, failures = Failures}} <- maps:to_list(Peers)].

idle(#policy{peers = Peers, up = Up}) ->
    [{Node, Peer} || {Node, #peer{calling = false, gone = false} = Peer} <- maps:to_list(Peers),
                     not is_map_key(Node, Up)].

is_retry({_, _, Failures}) -> Failures > 0.

first(Count, List) ->
    lists:sublist(List, max(0, Count)).

call(Node, Policy) ->
    change_known(Node, fun(Peer) -> Peer#peer{calling = true} end, Policy).

%% @doc When `due/2' has something to say next, unless something happens
%% before. What it left waiting now waits for a call to end.
-spec next(time(), policy()) -> time() | infinity.
next(Now, Policy) ->
    lists:min([infinity | [Due || {_, #peer{due = Due}} <- idle(Policy), Due > Now]]).

%% @doc All that are configured, or here by what was heard last.
-spec peers(policy()) -> [node()].
peers(#policy{peers = Peers}) ->
    maps:keys(maps:filter(fun(_, Peer) -> not is_gone(Peer) end, Peers)).

is_gone(#peer{gone = Gone, kept = IsKept}) -> is_integer(Gone) andalso not IsKept.

%% @doc The peers that are connected.
-spec connected(policy()) -> [node()].
connected(#policy{peers = Peers, up = Up}) ->
    maps:keys(maps:with(maps:keys(Up), Peers)).

%% @doc Whether this is a connected peer.
-spec is_up(node(), policy()) -> boolean().
is_up(Node, #policy{peers = Peers, up = Up}) ->
    is_map_key(Node, Peers) andalso is_map_key(Node, Up).

%% Changes a peer, or makes it.
change(Node, Now, Fun, #policy{peers = Peers} = Policy) ->
    Peer = maps:get(Node, Peers, new_peer(Node, Now, Policy)),
    Policy#policy{peers = Peers#{Node => Fun(Peer)}}.

change_known(Node, Fun, #policy{peers = Peers} = Policy) ->
    case Peers of
        #{Node := Peer} -> Policy#policy{peers = Peers#{Node := Fun(Peer)}};
        _ -> Policy
    end.

new_peer(Node, Now, #policy{up = Up} = Policy) ->
    #peer{due = Now + courtesy(Node, Policy), heard = Now, was_up = is_map_key(Node, Up)}.

courtesy(Node, #policy{options = #{own := Own}}) when Own < Node -> 0;
courtesy(_, _) -> ?COURTESY_MS.

later(Node, Now, #policy{peers = Peers} = Policy) ->
    case Peers of
        #{Node := Peer} ->
            {Pause, New} = pause(Peer, Policy),
            change_known(Node, fun(P) -> P#peer{due = Now + Pause} end, New);
        _ ->
            Policy
    end.

%% Between half of it and all of it, so that many nodes that lost one do not
%% all call it together when it is back.
pause(#peer{failures = Failures} = Peer, Policy) ->
    #policy{options = #{first := First}, rand = Rand} = Policy,
    Full = min(max_pause(Peer, Policy), First bsl min(Failures, ?MAX_DOUBLINGS)),
    {Random, NewRand} = rand:uniform_s(Full div 2 + 1, Rand),
    {Full - Random + 1, Policy#policy{rand = NewRand}}.

max_pause(#peer{kept = false, was_up = false}, #policy{options = #{stranger_max := Max}}) -> Max;
max_pause(_, #policy{options = #{max := Max}}) -> Max.

drop_silent(Now, #policy{peers = Peers, up = Up} = Policy) ->
    IsStaying = fun(Node, Peer) -> is_map_key(Node, Up) orelse not is_dropped(Now, Peer) end,
    Policy#policy{peers = maps:filter(IsStaying, Peers)}.

is_dropped(Now, #peer{gone = Then, kept = false}) when is_integer(Then) ->
    Now - Then > ?FORGET_MS;
is_dropped(Now, #peer{calling = false, kept = false, was_up = false, heard = Heard}) ->
    Now - Heard > ?FORGET_MS;
is_dropped(_, _) ->
    false.

%% For one more: what was never connected goes first, then what is longest silent.
make_room(Node, #policy{peers = Peers} = Policy)
  when map_size(Peers) < ?MAX_PEERS; is_map_key(Node, Peers) ->
    Policy;
make_room(_, #policy{peers = Peers, up = Up} = Policy) ->
    Spare = [{Peer#peer.was_up, Peer#peer.heard, Node}
             || {Node, #peer{kept = false, calling = false} = Peer} <- maps:to_list(Peers),
                not is_map_key(Node, Up)],
    case Spare of
        [] -> Policy;
        _ -> forget(element(3, lists:min(Spare)), Policy)
    end.
