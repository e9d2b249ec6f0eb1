%% @doc What clustering says in the log: one readable line for each event, as
%% a structured report in the domain [macula, cluster]. Never a secret.
-module(macula_cluster_log).

-include_lib("kernel/include/logger.hrl").

-export([warning/1, notice/1, weak_cookie/1, format/1]).

-spec warning(map()) -> ok.
warning(Report) ->
    ?LOG_WARNING(Report, metadata()).

-spec notice(map()) -> ok.
notice(Report) ->
    ?LOG_NOTICE(Report, metadata()).

%% @doc A node that anyone can have named is not called with this cookie.
-spec weak_cookie(node()) -> ok.
weak_cookie(Node) ->
    warning(#{event => weak_cookie, node => Node}).

metadata() ->
    macula_dist_log:let_through(),
    #{domain => [macula, cluster], report_cb => fun ?MODULE:format/1}.

%% @doc A report of this module as one line.
-spec format(map()) -> {io:format(), [term()]}.
format(#{event := weak_cookie, node := Node}) ->
    {"macula: found ~ts, but does not call it: the cookie could be guessed, and anyone on this "
     "network can pretend to be a node. Set the same secret on all nodes (the option secret, or "
     "CLUSTER_SECRET), or a cookie of at least ~b bits, such as one that macula:get_cookie/0 made.",
     [Node, macula_cookie:strong_bits()]};
format(#{event := invalid_hmac, address := Ip}) ->
    {"[macula_cluster_gossip] Invalid HMAC from ~ts (authentication failed)", [inet:ntoa(Ip)]};
format(#{event := clock, name := Name, ahead_ms := Ahead}) ->
    {"[macula_cluster_gossip] the clock of ~ts is ~b s off ours, its announcements do not count: "
     "set both", [Name, Ahead div 1000]};
format(#{event := too_many_names}) ->
    {"[macula_cluster_gossip] more new node names than a cluster has: only names that are known "
     "already count now. Set a secret to keep strangers out", []};
format(#{event := no_interface, wanted := Wanted}) ->
    {"[macula_cluster_gossip] there is no interface ~ts to announce this node on; trying again",
     [wanted(Wanted)]};
format(#{event := interfaces_lost, names := Names}) ->
    {"[macula_cluster_gossip] lost interface ~ts; looking for it to come back",
     [lists:join(", ", Names)]};
format(#{event := interfaces, names := Names}) ->
    {"[macula_cluster_gossip] announcing this node on ~ts", [lists:join(", ", Names)]};
format(#{event := send_failed, reason := Reason}) ->
    {"[macula_cluster_gossip] cannot send: ~ts; trying again", [inet:format_error(Reason)]};
format(#{event := seed_unknown, seed := Seed, reason := Reason}) ->
    {"[macula_cluster_gossip] seed ~ts: ~ts", [Seed, inet:format_error(Reason)]};
format(#{event := callback_failed, reason := Reason}) ->
    {"[macula_cluster] the callback failed: ~tp", [Reason]};
format(#{event := strategy_failed, strategy := Strategy, reason := Reason, again_ms := Pause}) ->
    {"[macula_cluster] strategy ~tp failed and starts again in ~b ms: ~tp",
     [Strategy, Pause, Reason]};
format(#{event := cookie_not_kept, path := Path, reason := Reason}) ->
    {"macula: the new cookie is good for this run only, ~ts cannot be written: ~ts",
     [Path, file:format_error(Reason)]}.

wanted(any) -> "with an address";
wanted(Ip) when is_tuple(Ip) -> inet:ntoa(Ip);
wanted(Name) -> Name.
