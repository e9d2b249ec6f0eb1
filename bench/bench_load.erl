%% @doc The loads. Each runs in node A against node B for a given time, stops
%% by itself and returns the figures of bench_figures it measured.
-module(bench_load).

-export([run/3, names/0, echo/0, sink/0, timed_sink/3]).
-export_type([name/0, load/0, os_pids/0]).

-type name() :: round_trip | flood | stream_4k | stream_64k | stream_16m | erpc | mixed | mixed_4 | mixed_32 | paced
              | slow_stream | slow_streams | connect.
%% For so many ms, or as often.
-type load() :: {name(), pos_integer()}.
%% The processes of both nodes, and of the relay between them.
-type os_pids() :: #{nodes := [integer()], relay => [integer()]}.

-define(KIB, 1024).
-define(MIB, (1024 * 1024)).
-define(CALLERS, 16).
%% Of the streams of `slow_streams'.
-define(SENDERS, 32).
%% A call that is still waiting when the time is up may wait so many times longer.
-define(PATIENCE, 4).
-define(DRAIN_MS, 30_000).
-define(SETTLE_MS, 100).
%% Bulk has come to its rate by then; it may be measured for a lot longer.
-define(BULK_BEGINS_MS, 1_000).
%% Between two paced messages: often enough for a p99, too seldom to fill any line.
-define(PACE_MS, 5).
%% Between two calls beside a slow stream.
-define(CALL_MS, 20).

-spec names() -> [name()].
names() ->
    [round_trip, flood, stream_4k, stream_64k, stream_16m, erpc, mixed, mixed_4, mixed_32, paced, slow_stream, slow_streams,
     connect].

-spec run(load(), node(), os_pids()) -> #{bench_figures:key() => number()}.
run({round_trip, Ms}, Node, OsPids) ->
    Echo = spawn_link(Node, ?MODULE, echo, []),
    _ = round_trips(Echo, until(Ms div 5), []),
    {Times, Cpu} = with_cpu(OsPids, fun() -> round_trips(Echo, until(Ms), []) end),
    stop(Echo),
    maps:merge(#{round_trip_p50 => us(bench_stats:percentile(50, Times)),
                 round_trip_p99 => us(bench_stats:percentile(99, Times))},
               cpu(cpu_round_trip, relay_cpu_round_trip, Cpu, 1.0e6 / length(Times)));
run({flood, Ms}, Node, OsPids) ->
    {Count, Seconds, Cpu} = stream(Node, 32, Ms, OsPids),
    maps:put(flood, Count / Seconds, cpu(cpu_flood, relay_cpu_flood, Cpu, 1.0e6 / Count));
run({stream_4k, Ms}, Node, OsPids) ->
    stream(Node, 4 * ?KIB, Ms, OsPids, {stream_4k, cpu_4k, relay_cpu_4k});
run({stream_64k, Ms}, Node, OsPids) ->
    stream(Node, 64 * ?KIB, Ms, OsPids, {stream_64k, cpu_64k, relay_cpu_64k});
run({stream_16m, Ms}, Node, OsPids) ->
    stream(Node, 16 * ?MIB, Ms, OsPids, {stream_16m, cpu_16m, relay_cpu_16m});
run({erpc, Ms}, Node, _) ->
    _ = erpc_calls(Node, Ms div 5),
    #{erpc => erpc_calls(Node, Ms)};
run({mixed, Ms}, Node, _) ->
    {Times, Bulk} = mixed(Node, 1, Ms),
    #{mixed_p50 => ms(50, Times), mixed_p99 => ms(99, Times), mixed_max => ms(100, Times),
      mixed_bulk => Bulk, mixed_calls => length(Times)};
run({mixed_4, Ms}, Node, _) ->
    {Times, Bulk} = mixed(Node, 4, Ms),
    #{mixed_4_p50 => ms(50, Times), mixed_4_p99 => ms(99, Times), mixed_4_max => ms(100, Times),
      mixed_4_bulk => Bulk};
run({mixed_32, Ms}, Node, _) ->
    {Times, Bulk} = mixed(Node, 32, Ms),
    #{mixed_32_p50 => ms(50, Times), mixed_32_p99 => ms(99, Times), mixed_32_max => ms(100, Times),
      mixed_32_bulk => Bulk};
run({paced, Ms}, Node, _) ->
    Times = paced(Node, Ms div ?PACE_MS),
    #{paced_p50 => ms(50, Times), paced_p99 => ms(99, Times)};
run({slow_stream, Ms}, Node, _) ->
    {Rate, Times} = slow_streams(Node, 1, 64 * ?KIB, Ms),
    #{slow_stream => Rate, slow_p50 => ms(50, Times), slow_p99 => ms(99, Times)};
run({slow_streams, Ms}, Node, _) ->
    {Rate, Times} = slow_streams(Node, ?SENDERS, 4 * ?KIB, Ms),
    #{slow_streams => Rate, slow_32_p50 => ms(50, Times), slow_32_p99 => ms(99, Times)};
run({connect, Times}, Node, _) ->
    #{connect => us(bench_stats:median([connect(Node) || _ <- lists:seq(1, Times)])) / 1000}.

%%% Round trips

round_trips(Echo, Until, Times) ->
    Start = now_ns(),
    Echo ! {self(), Start},
    receive {Echo, Start} -> ok end,
    End = now_ns(),
    case End < Until of
        true -> round_trips(Echo, Until, [End - Start | Times]);
        false -> [End - Start | Times]
    end.

-spec echo() -> ok.
echo() ->
    receive
        {From, Token} -> From ! {self(), Token}, echo();
        stop -> ok
    end.

%%% Streams: one process sends, one counts, and the time ends with its count

stream(Node, Size, Ms, OsPids, {Rate, OfNodes, OfRelay}) ->
    {Count, Seconds, Cpu} = stream(Node, Size, Ms, OsPids),
    maps:put(Rate, mb(Count * Size / Seconds), cpu(OfNodes, OfRelay, Cpu, 1.0e9 / (Count * Size))).

stream(Node, Size, Ms, OsPids) ->
    Sink = spawn_link(Node, ?MODULE, sink, []),
    Message = binary:copy(<<"m">>, Size),
    _ = stream_for(Sink, Message, Ms div 5),
    {{Count, Seconds}, Cpu} = with_cpu(OsPids, fun() -> stream_for(Sink, Message, Ms) end),
    stop(Sink),
    {Count, Seconds, Cpu}.

stream_for(Sink, Message, Ms) ->
    Start = now_ns(),
    %% A look at the clock costs as much as a small message does.
    send_until(until(Ms), Sink, Message, max(1, 64 * ?KIB div byte_size(Message))),
    Count = count(Sink),
    {Count, (now_ns() - Start) / 1.0e9}.

send_until(Until, Sink, Message, Batch) ->
    send(Batch, Sink, Message),
    case now_ns() < Until of
        true -> send_until(Until, Sink, Message, Batch);
        false -> ok
    end.

send(0, _, _) -> ok;
send(N, Sink, Message) -> Sink ! Message, send(N - 1, Sink, Message).

count(Sink) ->
    Sink ! {count, self()},
    receive {Sink, Count} -> Count after ?DRAIN_MS -> error(no_count) end.

-spec sink() -> ok.
sink() -> sink(0).

sink(Count) ->
    receive
        Message when is_binary(Message) -> sink(Count + 1);
        {count, From} -> From ! {self(), Count}, sink(0);
        stop -> ok
    end.

%%% Many callers

erpc_calls(Node, Ms) ->
    Start = now_ns(),
    Caller = fun() -> exit({calls, call_until(Node, until(Ms), 0)}) end,
    Callers = [spawn_monitor(Caller) || _ <- lists:seq(1, ?CALLERS)],
    Calls = lists:sum([receive {'DOWN', Monitor, process, _, {calls, N}} -> N end || {_, Monitor} <- Callers]),
    Calls / ((now_ns() - Start) / 1.0e9).

call_until(Node, Until, Calls) ->
    _ = erpc:call(Node, erlang, node, []),
    case now_ns() < Until of
        true -> call_until(Node, Until, Calls + 1);
        false -> Calls + 1
    end.

%%% Small calls while other processes send as much as they can

%% The calls have a process of their own: over some carriers not even sending
%% comes to an end beside bulk. What is then still waiting counts with the
%% time it took, the end of the bulk included.
mixed(Node, Senders, Ms) ->
    Self = self(),
    Message = binary:copy(<<"m">>, 16 * ?MIB),
    Bulk = [spawn_link(fun() -> Self ! {self(), bulk(Node, Message)} end)
            || _ <- lists:seq(1, Senders)],
    Echo = spawn_link(Node, ?MODULE, echo, []),
    timer:sleep(min(?BULK_BEGINS_MS, Ms div 5)),
    Caller = spawn_link(fun() -> Self ! {self(), round_trips(Echo, until(Ms), [])} end),
    Early = receive {Caller, InTime} -> InTime after (1 + ?PATIENCE) * Ms -> late end,
    lists:foreach(fun(Sender) -> Sender ! stop end, Bulk),
    Rates = [receive {Sender, Rate} -> Rate after ?DRAIN_MS -> error(bulk_did_not_end) end
             || Sender <- Bulk],
    Times = times(Early, Caller),
    stop(Echo),
    {Times, mb(lists:sum(Rates))}.

ms(Percent, Times) -> us(bench_stats:percentile(Percent, Times)) / 1000.

times(late, Caller) -> receive {Caller, Times} -> Times after ?DRAIN_MS -> error(call_did_not_end) end;
times(Times, _) -> Times.

bulk(Node, Message) ->
    Sink = spawn_link(Node, ?MODULE, sink, []),
    Start = now_ns(),
    bulk_until_stopped(Sink, Message),
    Count = count(Sink),
    stop(Sink),
    Count * byte_size(Message) / ((now_ns() - Start) / 1.0e9).

bulk_until_stopped(Sink, Message) ->
    Sink ! Message,
    receive stop -> ok after 0 -> bulk_until_stopped(Sink, Message) end.

%%% Over a slow line

%% Sent at set times, whether or not the former ones have come back: what one
%% lost packet delays, it delays for several.
paced(Node, Count) ->
    Self = self(),
    Echo = spawn_link(Node, ?MODULE, echo, []),
    Start = erlang:monotonic_time(millisecond),
    Send = fun(N) -> send_at(Start + N * ?PACE_MS, Echo, Self) end,
    spawn_link(fun() -> lists:foreach(Send, lists:seq(1, Count)) end),
    Times = [receive {Echo, Sent} -> now_ns() - Sent after ?DRAIN_MS -> error(no_echo) end
             || _ <- lists:seq(1, Count)],
    stop(Echo),
    Times.

send_at(Time, Echo, From) ->
    timer:sleep(max(0, Time - erlang:monotonic_time(millisecond))),
    Echo ! {From, now_ns()}.

%% What stands in buffers at the end would take a slow line many seconds: so
%% the receiver has the clock, and the pair is of no use any more. A call that
%% has not come back by then counts with the time it has waited.
slow_streams(Node, Senders, Size, Ms) ->
    Self = self(),
    Sink = spawn_link(Node, ?MODULE, timed_sink, [Self, Ms div 5, Ms]),
    Echo = spawn_link(Node, ?MODULE, echo, []),
    Message = binary:copy(<<"m">>, Size),
    Bulk = [spawn(fun() -> bulk_until_stopped(Sink, Message) end) || _ <- lists:seq(1, Senders)],
    Caller = spawn(fun() -> calls(Echo, Self) end),
    Rate = receive {Sink, Bytes, Seconds} -> mb(Bytes / Seconds) after 2 * Ms + ?DRAIN_MS -> error(no_count) end,
    lists:foreach(fun(Pid) -> exit(Pid, kill) end, [Caller | Bulk]),
    {Rate, waited(Caller, [])}.

-spec timed_sink(pid(), non_neg_integer(), pos_integer()) -> ok.
timed_sink(From, WarmUpMs, Ms) ->
    _ = counted(until(WarmUpMs), 0),
    Start = now_ns(),
    Bytes = counted(until(Ms), 0),
    From ! {self(), Bytes, (now_ns() - Start) / 1.0e9},
    _ = counted(until(?DRAIN_MS), 0),
    ok.

counted(Until, Bytes) ->
    receive
        Message when is_binary(Message) ->
            case now_ns() < Until of
                true -> counted(Until, Bytes + byte_size(Message));
                false -> Bytes + byte_size(Message)
            end
    after max(0, (Until - now_ns()) div 1_000_000) ->
        Bytes
    end.

calls(Echo, Observer) ->
    Start = now_ns(),
    Observer ! {self(), called, Start},
    Echo ! {self(), Start},
    receive {Echo, Start} -> Observer ! {self(), answered, now_ns()} end,
    timer:sleep(?CALL_MS),
    calls(Echo, Observer).

waited(Caller, Times) ->
    receive
        {Caller, called, Start} ->
            receive
                {Caller, answered, End} -> waited(Caller, [End - Start | Times])
            after 0 ->
                [now_ns() - Start | Times]
            end
    after 0 ->
        Times
    end.

%%% Connecting

%% Time to settle before: what `global' still sends to a node that is gone
%% would connect again by itself. Time after: the other side has to have
%% noticed as well.
connect(Node) ->
    timer:sleep(?SETTLE_MS),
    true = monitor_node(Node, true),
    true = erlang:disconnect_node(Node),
    receive {nodedown, Node} -> ok after ?DRAIN_MS -> error(still_connected) end,
    timer:sleep(?SETTLE_MS),
    false = lists:member(Node, nodes()),
    Start = now_ns(),
    true = net_kernel:connect_node(Node),
    now_ns() - Start.

%%% For all

with_cpu(OsPids, Load) ->
    Seconds = fun() -> maps:map(fun(_, Group) -> bench_stats:cpu_seconds(Group) end, OsPids) end,
    Before = Seconds(),
    Result = Load(),
    {Result, maps:map(fun(Who, After) -> After - map_get(Who, Before) end, Seconds())}.

cpu(OfNodes, OfRelay, Cpu, Scale) ->
    maps:from_list([{Key, Scale * map_get(Who, Cpu)} || {Who, Key} <- [{nodes, OfNodes}, {relay, OfRelay}],
                                                        is_map_key(Who, Cpu)]).

stop(Pid) ->
    unlink(Pid),
    Pid ! stop.

until(Ms) -> now_ns() + Ms * 1_000_000.

now_ns() -> erlang:monotonic_time(nanosecond).

us(Ns) -> Ns / 1000.

mb(Bytes) -> Bytes / 1.0e6.
