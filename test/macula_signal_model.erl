%% Erlang's promise of order as a model: what one process sends another takes effect in the order it was sent, by whatever
%% signal, however addressed. PropEr makes up programs of signals; processes on two nodes carry them out, all senders at
%% once; and what each receiver went through must be what the model says of each of its senders.
-module(macula_signal_model).

-include_lib("proper/include/proper.hrl").

-export([prop_order/1]).
-export([receiver/1]).

-import(macula_test_order, [is_linked/1, monitors/1]).

-define(SENDERS, 3).
-define(RECEIVERS, 2).
%% Some bytes, so that what follows goes in other packets; and so many that they go in fragments.
-define(SMALL, 1000).
-define(LARGE, 150_000).
-define(CHILD_SIGNALS, 3).
%% What takes longer hangs.
-define(HANG_MS, 60_000).

-type operation() :: {send, pid | name | alias, small | large}
                   | exit | link | unlink | monitor | demonitor | lead | compare | spawn.
%% The number of a step is its place in the program, and what its signal carries.
-type step() :: {Sender :: pos_integer(), Receiver :: pos_integer(), operation()}.

%% What a receiver must find of a sender: links, monitors, and its group leader as far as that sender decides.
-record(relation, {linked = false :: boolean(),
                   monitors = 0 :: non_neg_integer(),
                   leads = false :: boolean()}).

%% A receiver, as a sender knows it.
-record(to, {pid :: pid(),
             name :: atom(),
             alias :: reference(),
             monitors = [] :: [reference()]}).

%% @doc The promise holds for senders here and receivers on `Node'.
-spec prop_order(node()) -> proper:outer_test().
prop_order(Node) ->
    ?FORALL(Program, program(),
            macula_property:holds(fun() -> run(Node, Program) =:= model(Program) end)).

%%% Programs

program() ->
    ?LET(Steps, list({range(1, ?SENDERS), range(1, ?RECEIVERS), operation()}), Steps).

operation() ->
    frequency([{12, {send, oneof([pid, name, alias]), frequency([{9, small}, {1, large}])}},
               {2, exit}, {2, link}, {2, unlink}, {2, monitor}, {2, demonitor}, {1, lead}, {3, compare}, {1, spawn}]).

numbered(Program) ->
    lists:zip(lists:seq(1, length(Program)), Program).

%%% The model

%% What each receiver goes through, by its senders.
-spec model([step()]) -> [[[term()]]].
model(Program) ->
    Steps = numbered(Program),
    [[account([{N, Operation} || {N, {S, R, Operation}} <- Steps, S =:= Sender, R =:= Receiver], #relation{}, Sender)
      || Sender <- lists:seq(1, ?SENDERS)]
     || Receiver <- lists:seq(1, ?RECEIVERS)].

account([], #relation{linked = true}, _) ->
    [[down, exit]];
account([], #relation{linked = false}, _) ->
    [[down]];
account([{N, Operation} | Later], Relation, Sender) ->
    Changed = change(Operation, Sender, Relation),
    account_of(Operation, N, Changed) ++ account(Later, Changed, Sender).

change(link, _, Relation) -> Relation#relation{linked = true};
change(unlink, _, Relation) -> Relation#relation{linked = false};
change(monitor, _, #relation{monitors = Monitors} = Relation) -> Relation#relation{monitors = Monitors + 1};
change(demonitor, _, #relation{monitors = Monitors} = Relation) -> Relation#relation{monitors = max(0, Monitors - 1)};
change(lead, 1, Relation) -> Relation#relation{leads = true};
change(_, _, Relation) -> Relation.

account_of({send, _, _}, N, _) -> [{message, N}];
account_of(exit, N, _) -> [{exit, N}];
account_of(compare, N, Relation) -> [{found, N, Relation}];
account_of(_, _, _) -> [].

%%% The real thing

run(Node, Program) ->
    Steps = numbered(Program),
    Senders = [spawn_sender([{N, R, Operation} || {N, {S, R, Operation}} <- Steps, S =:= Sender], Sender)
               || Sender <- lists:seq(1, ?SENDERS)],
    Receivers = [spawn(Node, ?MODULE, receiver, [{self(), Senders}]) || _ <- lists:seq(1, ?RECEIVERS)],
    To = list_to_tuple([begin {Pid, ready, Name, Alias} = next(Pid), #to{pid = Pid, name = Name, alias = Alias} end
                        || Pid <- Receivers]),
    [Sender ! {self(), go, To} || Sender <- Senders],
    [done = element(3, next(Sender)) || Sender <- Senders],
    [element(2, next(Receiver)) || Receiver <- Receivers].

%% The next message of this process: what others have to say waits.
next(Pid) ->
    receive
        Message when element(1, Message) =:= Pid -> Message
    after ?HANG_MS ->
        error({nothing_from, Pid, process_info(self(), messages)})
    end.

next() ->
    receive
        Any -> Any
    after ?HANG_MS ->
        exit(nothing_comes)
    end.

%%% A sender

spawn_sender(Steps, Number) ->
    Runner = self(),
    spawn(fun() ->
              Reason = try sender(Runner, Steps, Number) catch exit:Wrong -> Wrong end,
              Runner ! {self(), ended, Reason},
              exit(Reason)
          end).

sender(Runner, Steps, Number) ->
    process_flag(trap_exit, true),
    %% Each receiver has a monitor on this process by then.
    _ = [receive watched -> ok end || _ <- lists:seq(1, ?RECEIVERS)],
    {Runner, go, Receivers} = receive {Runner, go, _} = Go -> Go end,
    _ = lists:foldl(fun({N, R, Operation}, To) ->
                            setelement(R, To, step(Operation, N, element(R, To), Number))
                    end, Receivers, Steps),
    done.

step({send, Address, Size}, N, To, _) ->
    _ = address(Address, To) ! {message, self(), N, payload(Size)},
    To;
step(exit, N, To, _) ->
    true = exit(To#to.pid, {sent, self(), N}),
    To;
step(link, _, To, _) ->
    true = link(To#to.pid),
    To;
step(unlink, _, To, _) ->
    true = unlink(To#to.pid),
    To;
step(monitor, _, #to{monitors = Monitors} = To, _) ->
    To#to{monitors = [monitor(process, To#to.pid) | Monitors]};
step(demonitor, _, #to{monitors = [Monitor | Others]} = To, _) ->
    true = demonitor(Monitor),
    To#to{monitors = Others};
%% One sender leads: the promise says nothing of what two of them do.
step(lead, _, To, 1) ->
    true = group_leader(self(), To#to.pid),
    To;
%% Nothing may follow before it has looked.
step(compare, N, #to{pid = Pid} = To, _) ->
    To#to.pid ! {compare, self(), N},
    receive {compared, Pid, N} -> To end;
step(spawn, _, To, _) ->
    watch_child(To),
    To;
step(_, _, To, _) ->
    To.

address(pid, #to{pid = Pid}) -> Pid;
address(name, #to{pid = Pid, name = Name}) -> {Name, node(Pid)};
address(alias, #to{alias = Alias}) -> Alias.

payload(small) -> <<0:?SMALL/unit:8>>;
payload(large) -> <<0:?LARGE/unit:8>>.

%% That it is there comes before what it says, and that it has ended after it.
watch_child(#to{pid = Pid}) ->
    Parent = self(),
    Child = fun() -> [Parent ! {said, self(), N} || N <- lists:seq(1, ?CHILD_SIGNALS)] end,
    Request = spawn_request(node(Pid), Child, [monitor]),
    {spawn_reply, Request, ok, New} = next(),
    [{said, New, N} = next() || N <- lists:seq(1, ?CHILD_SIGNALS)],
    {'DOWN', Request, process, New, normal} = next().

%%% A receiver

%% @doc What the property starts on the other node: it goes through whatever comes until all senders have ended.
-spec receiver({Runner :: pid(), Senders :: [pid()]}) -> term().
receiver({Runner, Senders}) ->
    process_flag(trap_exit, true),
    Name = list_to_atom(?MODULE_STRING ++ pid_to_list(self())),
    true = register(Name, self()),
    Monitors = [monitor(process, Sender) || Sender <- Senders],
    [Sender ! watched || Sender <- Senders],
    Runner ! {self(), ready, Name, alias()},
    Accounts = go_through(Monitors, maps:from_keys(Senders, [])),
    Runner ! {self(), [in_order(maps:get(Sender, Accounts)) || Sender <- Senders]}.

go_through([], Accounts) ->
    %% A link to a sender that has ended may tell so a moment later.
    case lists:any(fun macula_test_order:is_linked/1, maps:keys(Accounts)) of
        true -> go_through([], took(next(), Accounts));
        false -> late(Accounts)
    end;
go_through(Monitors, Accounts) ->
    case next() of
        {'DOWN', Monitor, process, Sender, _} ->
            go_through(lists:delete(Monitor, Monitors), note(Sender, down, Accounts));
        Other ->
            go_through(Monitors, took(Other, Accounts))
    end.

late(Accounts) ->
    receive
        Any -> late(took(Any, Accounts))
    after 0 ->
        Accounts
    end.

took({message, Sender, N, _}, Accounts) ->
    note(Sender, {message, N}, Accounts);
took({'EXIT', Sender, {sent, Sender, N}}, Accounts) ->
    note(Sender, {exit, N}, Accounts);
took({'EXIT', Sender, _}, Accounts) ->
    note(Sender, exit, Accounts);
took({compare, Sender, N}, Accounts) ->
    Found = {found, N, #relation{linked = is_linked(Sender), monitors = monitors(Sender), leads = leads(Sender)}},
    Sender ! {compared, self(), N},
    note(Sender, Found, Accounts).

note(Sender, What, Accounts) ->
    maps:update_with(Sender, fun(Before) -> [What | Before] end, Accounts).

leads(Pid) ->
    group_leader() =:= Pid.

%% Both tell that the sender has ended, and either may come first.
in_order([down, exit | Before]) -> lists:reverse([[down, exit] | Before]);
in_order([exit, down | Before]) -> lists:reverse([[down, exit] | Before]);
in_order([down | Before]) -> lists:reverse([[down] | Before]);
in_order(Account) -> lists:reverse(Account).
