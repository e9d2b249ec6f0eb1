%% Signals of thousands of processes between two nodes, and whether each receiver gets those of each sender in the order
%% they were sent: messages to its pid, its name and its alias, exit signals, links, monitors, group leaders, and the ends of
%% processes. All that is random comes of one seed.
-module(macula_test_order).

-export([run/4]).
-export([receivers/1, senders/2, child/2, stand/0]).
-export([is_linked/1, monitors/1]).

%% What each sender does before it ends.
-define(STEPS, 30).
%% Every so manieth message is a large one, which goes in fragments.
-define(LARGE_ONE_IN, 4000).
-define(LARGE_FROM, 100_000).
-define(LARGE_TIMES, 20).
%% Signals of each child: those that its parent's spawn_reply must precede.
-define(CHILD_SIGNALS, 5).
%% Each sender has three receivers, each receiver three senders.
-define(NEIGHBOURS, [0, 1, 7]).
%% What takes longer hangs.
-define(HANG_MS, 120_000).
%% What a node may take to tell what its processes do.
-define(ASK_MS, 10_000).

-type address() :: {pid(), Name :: atom(), Alias :: reference()}.

%% A receiver, as its sender knows it.
-record(to, {pid :: pid(),
             name :: atom(),
             alias :: reference(),
             %% Only one of its senders changes its group leader.
             leads :: boolean(),
             leader = none :: pid() | none,
             sent = 0 :: non_neg_integer(),
             linked = false :: boolean(),
             %% Whether it may not have heard yet of an unlink.
             unlinking = false :: boolean(),
             monitors = [] :: [reference()]}).

%% A sender, as its receiver knows it.
-record(from, {got = 0 :: non_neg_integer(),
               %% Signals of its end that have not come, which may come after its last message only.
               owed :: [term()],
               ending = false :: boolean()}).

%% @doc Waves of so many senders and receivers on this node and on its peer, one wave after the other until the time is
%% over. How many signals were checked in each, and how many ms it took; fails when one was not in order, or did not come.
-spec run(node(), term(), pos_integer(), non_neg_integer()) -> [{Signals :: pos_integer(), Ms :: non_neg_integer()}, ...].
run(Peer, Seed, Processes, Seconds) ->
    waves(Peer, Seed, Processes, now_ms() + 1000 * Seconds, []).

waves(Peer, Seed, Processes, Until, Waves) ->
    Began = now_ms(),
    Signals = wave(Peer, {Seed, length(Waves) + 1}, Processes),
    Ended = now_ms(),
    All = [{Signals, Ended - Began} | Waves],
    case Ended < Until of
        true -> waves(Peer, Seed, Processes, Until, All);
        false -> All
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).

wave(Peer, Seed, Processes) ->
    Here = receivers(Processes),
    There = erpc:call(Peer, ?MODULE, receivers, [Processes]),
    Receivers = [monitor(process, Pid) || {Pid, _, _} <- Here ++ There],
    Senders = senders({Seed, here}, There) ++ erpc:call(Peer, ?MODULE, senders, [{Seed, there}, Here]),
    await(Seed, maps:from_keys(Receivers ++ [monitor(process, Pid) || Pid <- Senders], left), 0).

await(_, Left, Signals) when map_size(Left) =:= 0 ->
    Signals;
await(Seed, Left, Signals) ->
    receive
        {'DOWN', Monitor, process, Pid, Reason} when is_map_key(Monitor, Left) ->
            await(Seed, maps:remove(Monitor, Left), Signals + checked(Seed, Pid, Reason))
    after ?HANG_MS ->
        error({stands_still, Seed, map_size(Left), stands()})
    end.

checked(_, _, {checked, Signals}) -> Signals;
checked(_, _, {last, _}) -> 0;
checked(_, _, noproc) -> 0;
checked(Seed, Pid, Reason) -> error({out_of_order, Seed, Pid, Reason, stands()}).

%% What the processes of both nodes do, and their links.
stands() ->
    [stand(Node) || Node <- [node() | nodes()]].

stand(Node) ->
    try
        {Node, erpc:call(Node, ?MODULE, stand, [], ?ASK_MS)}
    catch
        error:{erpc, Reason} -> {Node, Reason}
    end.

%% @doc Of this node: what its senders and receivers are doing and how many do so, whom its links have wait, and these.
-spec stand() -> #{doing := #{term() => pos_integer()}, suspended := [term()], links := [map()]}.
stand() ->
    Doing = [Does || Pid <- processes(), {true, Does} <- [doing(Pid)]],
    Bridges = [Pid || {_, Pid, _, _} <- supervisor:which_children(macula_dist_bridge_sup)],
    #{doing => maps:map(fun(_, Alike) -> length(Alike) end, maps:groups_from_list(fun(Does) -> Does end, Doing)),
      suspended => [process_info(Bridge, suspending) || Bridge <- Bridges],
      links => macula:links()}.

doing(Pid) ->
    case process_info(Pid, [status, message_queue_len, current_stacktrace]) of
        [{status, Status}, {message_queue_len, Messages}, {current_stacktrace, Stack}] ->
            Calls = [Function || {?MODULE, Function, _, _} <- Stack],
            {Calls =/= [] andalso Pid =/= self(), {Status, Messages, Calls}};
        undefined ->
            false
    end.

%% @doc Starts so many receivers on this node.
-spec receivers(pos_integer()) -> [address()].
receivers(Processes) ->
    [start_receiver(Index) || Index <- lists:seq(1, Processes)].

start_receiver(Index) ->
    Starter = self(),
    Name = name("receiver", Index),
    Pid = spawn(fun() ->
                    process_flag(trap_exit, true),
                    true = register(Name, self()),
                    Starter ! {self(), alias()},
                    receiver(#{}, 0)
                end),
    receive
        {Pid, Alias} -> {Pid, Name, Alias}
    end.

%% @doc Starts a sender for each of the receivers of the other node.
-spec senders(term(), [address()]) -> [pid()].
senders(Seed, Receivers) ->
    All = list_to_tuple(Receivers),
    [spawn(fun() -> sender(Seed, Index, All) end) || Index <- lists:seq(1, tuple_size(All))].

name(What, Index) ->
    list_to_atom("macula_test_" ++ What ++ "_" ++ integer_to_list(Index)).

%%% Sending

sender(Seed, Index, Receivers) ->
    process_flag(trap_exit, true),
    _ = rand:seed(exsss, erlang:phash2({Seed, Index})),
    Name = name("sender", Index),
    true = register(Name, self()),
    To = [to(element(1 + (Index + Next) rem tuple_size(Receivers), Receivers), Next =:= 0) || Next <- ?NEIGHBOURS],
    Known = [send(pid, {hello, Name}, Each) || Each <- To],
    Ended = [send(any_address(), {last, Each#to.linked}, Each) || Each <- steps(?STEPS, Known)],
    exit({last, lists:sum([Each#to.sent || Each <- Ended])}).

to({Pid, Name, Alias}, Leads) ->
    #to{pid = Pid, name = Name, alias = Alias, leads = Leads}.

steps(0, To) ->
    To;
steps(Left, [First | Others]) ->
    Changed = step(operation(rand:uniform(100)), First),
    steps(Left - 1, shuffled([Changed | Others])).

shuffled(List) ->
    [Each || {_, Each} <- lists:sort([{rand:uniform(), Each} || Each <- List])].

%% Out of a hundred.
operation(N) when N =< 64 -> message;
operation(N) when N =< 70 -> exit;
operation(N) when N =< 75 -> link;
operation(N) when N =< 80 -> unlink;
operation(N) when N =< 85 -> monitor;
operation(N) when N =< 89 -> demonitor;
operation(N) when N =< 91 -> leader;
operation(N) when N =< 94 -> compare;
operation(N) when N =< 95 -> spawn;
operation(N) when N =< 97 -> priority;
operation(N) when N =< 98 -> async;
operation(_) -> yield.

step(message, To) ->
    send(any_address(), data(), To);
step(exit, To) ->
    send(exit, data(), To);
%% OTP 25 to 29 forget a link that is made again before the receiver has acknowledged the unlink, when the connection is busy
%% (link/1 returns early, to yield); over inet_tcp as well. See docs/testing.md.
step(link, #to{unlinking = true} = To) ->
    step(link, compare(To));
step(link, To) ->
    true = link(To#to.pid),
    To#to{linked = true};
step(unlink, To) ->
    true = unlink(To#to.pid),
    To#to{linked = false, unlinking = true};
step(monitor, #to{monitors = Monitors} = To) ->
    To#to{monitors = [monitor(process, monitored(rand:uniform(2), To)) | Monitors]};
step(demonitor, #to{monitors = [Monitor | Others]} = To) ->
    true = demonitor(Monitor),
    To#to{monitors = Others};
step(leader, #to{leads = true, pid = Pid} = To) ->
    Leader = lists:nth(rand:uniform(2), [self(), Pid]),
    true = group_leader(Leader, Pid),
    compare(To#to{leader = Leader});
step(compare, To) ->
    compare(To);
step(spawn, To) ->
    spawn_child(To);
step(priority, To) ->
    _ = process_flag(priority, lists:nth(rand:uniform(3), [low, normal, high])),
    To;
step(async, To) ->
    _ = try process_flag(async_dist, rand:uniform(2) =:= 1) catch error:badarg -> not_in_this_release end,
    To;
step(_, To) ->
    true = erlang:yield(),
    To.

monitored(1, #to{pid = Pid}) -> Pid;
monitored(2, #to{pid = Pid, name = Name}) -> {Name, node(Pid)}.

any_address() ->
    lists:nth(rand:uniform(5), [pid, pid, name, alias, nosuspend]).

data() ->
    Bytes = rand:bytes(payload(rand:uniform(?LARGE_ONE_IN))),
    {data, erlang:crc32(Bytes), Bytes}.

%% As many of 200 kB as of 2 MB.
payload(1) -> round(?LARGE_FROM * math:pow(?LARGE_TIMES, rand:uniform()));
payload(_) -> rand:uniform(200).

send(Address, What, #to{sent = Sent} = To) ->
    _ = emit(Address, {signal, self(), Sent + 1, What}, To),
    To#to{sent = Sent + 1}.

emit(pid, Signal, #to{pid = Pid}) -> Pid ! Signal;
emit(name, Signal, #to{pid = Pid, name = Name}) -> {Name, node(Pid)} ! Signal;
emit(alias, Signal, #to{alias = Alias}) -> Alias ! Signal;
emit(exit, Signal, #to{pid = Pid}) -> exit(Pid, Signal);
emit(nosuspend, Signal, #to{pid = Pid} = To) ->
    case erlang:send(Pid, Signal, [nosuspend]) of
        ok -> ok;
        nosuspend -> emit(pid, Signal, To)
    end.

%% What was done to the receiver so far has been done when it gets this, and nothing follows before it has answered.
compare(#to{pid = Pid, linked = Linked, monitors = Monitors, leader = Leader} = To) ->
    Compared = send(any_address(), {compare, Linked, length(Monitors), Leader}, To),
    {compared, Pid} = next(),
    Compared#to{unlinking = false}.

spawn_child(#to{pid = Pid} = To) ->
    Request = spawn_request(node(Pid), ?MODULE, child, [self(), ?CHILD_SIGNALS], [link, monitor]),
    Sent = send(any_address(), data(), send(any_address(), data(), To)),
    {spawn_reply, Request, ok, Child} = next(),
    [{Child, Number} = next() || Number <- lists:seq(1, ?CHILD_SIGNALS)],
    [{'EXIT', Child, over}, {'DOWN', Request, process, Child, over}] = lists:sort([next(), next()]),
    Sent.

%% @doc What the senders spawn on the other node.
-spec child(pid(), pos_integer()) -> no_return().
child(Parent, Signals) ->
    [Parent ! {self(), Number} || Number <- lists:seq(1, Signals)],
    exit(over).

%% Whatever it is: a sender gets nothing that it did not ask for. That nothing comes nobody expects either, and a receiver
%% ends with what it has had.
next() ->
    receive
        Any -> Any
    after ?HANG_MS ->
        nothing_comes
    end.

%%% Receiving

receiver(Senders, Signals) ->
    case is_over(Senders) of
        true ->
            receive
                Late -> exit({not_owed, Late})
            after 0 ->
                exit({checked, Signals})
            end;
        false ->
            receiver(take(next(), Senders), Signals + 1)
    end.

is_over(Senders) ->
    map_size(Senders) =:= length(?NEIGHBOURS)
        andalso lists:all(fun(#from{ending = Ending, owed = Owed}) -> Ending andalso Owed =:= [] end,
                          maps:values(Senders)).

take({signal, Pid, 1, {hello, Name}}, Senders) when not is_map_key(Pid, Senders) ->
    ByName = {Name, node(Pid)},
    Owed = [{down, monitor(process, Pid), Pid}, {down, monitor(process, ByName), ByName}],
    Senders#{Pid => #from{got = 1, owed = Owed}};
take({signal, Pid, Number, What}, Senders) ->
    signal(Pid, Number, What, Senders);
take({'EXIT', Pid, {signal, Pid, Number, What}}, Senders) ->
    signal(Pid, Number, What, Senders);
take({'EXIT', Pid, {last, _}}, Senders) ->
    ended(Pid, exit, Senders);
take({'DOWN', Monitor, process, Who, Reason}, Senders) when Reason =/= noconnection ->
    [Pid] = [Pid || {Pid, #from{owed = Owed}} <- maps:to_list(Senders), lists:member({down, Monitor, Who}, Owed)],
    ended(Pid, {down, Monitor, Who}, Senders);
take(Other, Senders) ->
    exit({not_expected, Other, Senders}).

signal(Pid, Number, What, Senders) ->
    case Senders of
        #{Pid := #from{got = Got, ending = false} = From} when Number =:= Got + 1 ->
            Senders#{Pid := content(What, Pid, From#from{got = Number})};
        #{} ->
            exit({wrong_number, Pid, Number, maps:get(Pid, Senders, none)})
    end.

content({data, Sum, Bytes}, _, From) ->
    Sum = erlang:crc32(Bytes),
    From;
content({last, true}, _, #from{owed = Owed} = From) ->
    From#from{ending = true, owed = [exit | Owed]};
content({last, false}, _, From) ->
    From#from{ending = true};
content({compare, _, _, Leader} = Expected, Pid, From) ->
    case {compare, is_linked(Pid), monitors(Pid), leader(Leader)} of
        Expected -> Pid ! {compared, self()};
        Found -> exit({state_differs, Pid, Expected, Found})
    end,
    From.

%% @doc Whether this process has a link to `Pid'.
-spec is_linked(pid()) -> boolean().
is_linked(Pid) ->
    {links, Links} = process_info(self(), links),
    lists:member(Pid, Links).

%% @doc How many monitors `Pid' has on this process.
-spec monitors(pid()) -> non_neg_integer().
monitors(Pid) ->
    {monitored_by, By} = process_info(self(), monitored_by),
    length([Each || Each <- By, Each =:= Pid]).

leader(none) -> none;
leader(_) -> group_leader().

ended(Pid, How, Senders) ->
    case Senders of
        #{Pid := #from{ending = true, owed = Owed} = From} ->
            lists:member(How, Owed) orelse exit({not_owed, Pid, How}),
            Senders#{Pid := From#from{owed = lists:delete(How, Owed)}};
        #{} ->
            exit({ended_before_its_last_signal, Pid, How, maps:get(Pid, Senders, none)})
    end.
