%% @doc Tells what was just said from what was recorded and is said again.
%% Pure: the time is passed in. Only for what a secret authenticated.
%%
%% A dated announcement is good once: its time must be near ours, and above
%% the last one of the same name. What a restarted receiver forgot is covered
%% by the first rule alone, that is, for WINDOW_MS. A plain announcement says
%% no time; it counts only from a name that never said one, and under
%% `strict' not at all.
-module(macula_gossip_replay).

-export([new/1, judge/3]).

-export_type([replay/0, verdict/0]).

%% Machines without a common clock are rarely further apart; a longer window
%% gives a recording more time after a restart.
-define(WINDOW_MS, 60_000).
%% Names cost memory, although only holders of the secret can bring them.
-define(MAX_NAMES, 10_000).

-record(replay, {strict :: boolean(),
                 latest = #{} :: #{binary() => integer()}}).

-opaque replay() :: #replay{}.
%% repeated: an echo over a second interface, or a recording.
-type verdict() :: fresh | repeated | undated | {clock, AheadMs :: integer()}.

-spec new(Strict :: boolean()) -> replay().
new(Strict) ->
    #replay{strict = Strict}.

-spec judge(macula_gossip_packet:announcement(), Now :: integer(), replay()) ->
          {verdict(), replay()}.
judge(#{form := plain, name := Name}, _, #replay{strict = Strict, latest = Latest} = Replay) ->
    case Strict orelse is_map_key(Name, Latest) of
        true -> {undated, Replay};
        false -> {fresh, Replay}
    end;
judge(#{form := dated, time := Time}, Now, Replay) when abs(Time - Now) > ?WINDOW_MS ->
    {{clock, Time - Now}, Replay};
judge(#{form := dated, time := Time, name := Name}, _, #replay{latest = Latest} = Replay) ->
    case Latest of
        #{Name := Last} when Time =< Last -> {repeated, Replay};
        _ -> {fresh, Replay#replay{latest = remember(Name, Time, Latest)}}
    end.

remember(Name, Time, Latest) when is_map_key(Name, Latest); map_size(Latest) < ?MAX_NAMES ->
    Latest#{Name => Time};
remember(Name, Time, Latest) ->
    {_, Oldest} = lists:min([{T, N} || {N, T} <- maps:to_list(Latest)]),
    (maps:remove(Oldest, Latest))#{Name => Time}.
