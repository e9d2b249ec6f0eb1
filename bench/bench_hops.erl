%% @doc Where a round trip's time goes: the hops of small messages from `!' to
%% the mailbox and back, as a waterfall. `./dev bench hops'.
%%
%% Both nodes run on this machine and read the same clock. The library is one
%% that notes the hops, which the one that users get does not; what that costs
%% is shown by measuring both.
-module(bench_hops).

-export([main/0, measure/2, echo/0]).

-define(DIR, "_build/bench").
-define(ROUND_TRIPS, 2_000).
-define(LOAD_MS, 1_000).
-define(LIMIT_MS, 60_000).
%% Characters of the longest bar.
-define(BAR, 40).

%% What ends with the hop that it stands beside.
-define(WAY, [{bridge_woken, "the controller is woken"},
              {called, "takes the frame from the emulator"},
              {queued, "terms become bytes"},
              {writing, "a native thread is woken"},
              {socket_out, "quinn makes the datagram"},
              {socket_in, "kernel; the other thread is woken"},
              {reading, "quinn opens the datagram"},
              {posted, "the bytes wait"},
              {input_woken, "the input handler is woken"},
              {received, "decoded; the receiver is woken"}]).

-type trip() :: [There :: stamps() | Back :: stamps()].
-type stamps() :: [{macula_nif:hop(), Ns :: non_neg_integer()}].

-spec main() -> no_return().
main() ->
    Path = fun(File) -> filename:absname(filename:join(?DIR, File)) end,
    {ok, Place} = bench_place:open(loopback, "bench/place.sh"),
    Plain = round_trip(Place, Path("macula/ebin")),
    {Stamped, Trips} = with_pair(Place, Path("hops/ebin"),
                                 fun(Pair) ->
                                     Time = time(Pair),
                                     {ok, Trips} = bench_pair:ask(Pair, {hops, ?ROUND_TRIPS}, ?LIMIT_MS),
                                     {Time, Trips}
                                 end),
    bench_place:close(Place),
    Text = report(Plain, Stamped, Trips),
    ok = file:write_file(?DIR ++ "/hops.md", ["```text\n", Text, "```\n"]),
    io:put_chars(Text),
    halt(0).

round_trip(Place, Ebin) ->
    with_pair(Place, Ebin, fun time/1).

with_pair(Place, Ebin, Do) ->
    Macula = bench_contender:of_name(macula, bench_contender:all(loopback)),
    Settings = #{ebin => filename:absname(?DIR), macula_ebin => Ebin},
    {ok, Pair} = bench_pair:start(Macula, Place, Settings),
    Result = Do(Pair),
    bench_pair:stop(Pair),
    Result.

time(Pair) ->
    {ok, #{round_trip_p50 := Us}} = bench_pair:load(Pair, {round_trip, ?LOAD_MS}, ?LIMIT_MS),
    Us.

%%% In node A

%% @doc So many round trips to a node, as the times of their hops there and
%% back; those that cannot be told apart are left out.
-spec measure(node(), pos_integer()) -> [trip()].
measure(Node, Count) ->
    Echo = spawn_link(Node, ?MODULE, echo, []),
    round_trips(Echo, Count div 5),
    _ = {macula_nif:hops(), erpc:call(Node, macula_nif, hops, [])},
    round_trips(Echo, Count),
    Here = by_hop(macula_nif:hops()),
    There = by_hop(erpc:call(Node, macula_nif, hops, [])),
    unlink(Echo),
    Echo ! stop,
    trips(maps:get(sent, Here), maps:get(received, Here), Here, There).

round_trips(_, 0) ->
    ok;
round_trips(Echo, Count) ->
    ok = macula_nif:hop(sent),
    Echo ! {self(), Count},
    receive {Echo, Count} -> ok = macula_nif:hop(received) end,
    round_trips(Echo, Count - 1).

-spec echo() -> ok.
echo() ->
    receive
        {From, Token} ->
            ok = macula_nif:hop(received),
            ok = macula_nif:hop(sent),
            From ! {self(), Token},
            echo();
        stop -> ok
    end.

-spec by_hop(stamps()) -> #{macula_nif:hop() => [non_neg_integer()]}.
by_hop(Stamps) ->
    maps:map(fun(_, Times) -> lists:sort(Times) end, maps:groups_from_list(fun({Hop, _}) -> Hop end,
                                                                            fun({_, Ns}) -> Ns end, Stamps)).

%% Acknowledgements pass the sockets as well: of the times of a hop, the first
%% one after the hop before is the message's.
trips([Sent | Later], [End | Ends], Here, There) ->
    Trip = trip([{Here, There}, {There, Here}], Sent, End),
    [Trip || Trip =/= broken] ++ trips(Later, Ends, since(End, Here), since(Sent, There));
trips(_, _, _, _) ->
    [].

trip([], _, _) ->
    [];
trip([{From, To} | Ways], Start, End) ->
    Hops = [{From, Hop} || Hop <- [sent, bridge_woken, called, queued, writing, socket_out], is_map_key(Hop, From)]
        ++ [{To, Hop} || Hop <- [socket_in, reading, posted, input_woken, received], is_map_key(Hop, To)],
    case way(Hops, Start, End) of
        broken -> broken;
        Way -> followed(Way, trip(Ways, element(2, lists:last(Way)), End))
    end.

followed(_, broken) -> broken;
followed(Way, Ways) -> [Way | Ways].

way([], _, _) ->
    [];
way([{Side, Hop} | Hops], Last, End) ->
    case first_since(Last, maps:get(Hop, Side)) of
        Time when is_integer(Time), Time =< End -> followed({Hop, Time}, way(Hops, Time, End));
        _ -> broken
    end.

first_since(Start, Times) ->
    case lists:dropwhile(fun(Time) -> Time < Start end, Times) of
        [Time | _] -> Time;
        [] -> none
    end.

since(Start, Side) ->
    maps:map(fun(_, Times) -> lists:dropwhile(fun(Time) -> Time < Start end, Times) end, Side).

%%% The waterfall

report(Plain, Stamped, Trips) ->
    Steps = lists:append([steps(Way, [lists:nth(N, Trip) || Trip <- Trips])
                          || {N, Way} <- [{1, "there"}, {2, "back "}]]),
    Longest = lists:max([Median || {_, _, Median, _} <- Steps]),
    {Lines, _} = lists:mapfoldl(fun(Step, At) -> line(Step, At, Longest) end, 0, Steps),
    Wholes = [time_of(lists:last(lists:last(Trip))) - time_of(hd(hd(Trip))) || Trip <- Trips],
    [io_lib:format("A small message there and back over loopback, medians of ~b round trips (of ~b), in us~n~n"
                   "    at   takes     p99~n", [length(Trips), ?ROUND_TRIPS]),
     Lines,
     io_lib:format("~n~ts in all; p50 of the bench's own round trip: ~ts while hops are noted, ~ts when they are not~n",
                   [us(bench_stats:median(Wholes)), bench_table:number(Stamped), bench_table:number(Plain)])].

%% What lies between a hop and the one before.
steps(Direction, [First | _] = Ways) ->
    [begin
         Took = [time_of(lists:nth(N, Way)) - time_of(lists:nth(N - 1, Way)) || Way <- Ways],
         {Direction, proplists:get_value(Hop, ?WAY), bench_stats:median(Took), bench_stats:percentile(99, Took)}
     end || {N, {Hop, _}} <- lists:enumerate(First), N > 1].

time_of({_, Ns}) -> Ns.

line({Direction, What, Median, P99}, At, Longest) ->
    Bar = lists:duplicate(max(1, round(?BAR * Median / Longest)), $#),
    Cells = [us(At), us(Median), us(P99), Direction, What, Bar],
    {io_lib:format("~6ts  ~6ts  ~6ts  ~ts  ~-34ts ~ts~n", Cells), At + Median}.

us(Ns) -> io_lib:format("~.1f", [Ns / 1000]).
