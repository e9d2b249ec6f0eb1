%% @doc What a link costs while nothing happens on it: one node gets links to
%% many others, which do nothing, and its memory is taken before and after.
%%
%% The library measured here counts the bytes it allocates, which the one that
%% users get does not; nothing else is different in it.
-module(bench_idle).

-export([measure/4]).

-define(START_MS, 60_000).
-define(MEASURE_MS, 120_000).
%% Nodes that start at once, so that each comes up in time on few processors.
-define(AT_ONCE, 8).
%% Links made before: whatever the first one loads and creates for good.
-define(WARM_UP, 2).

%% @doc The cost of each of `Count' links.
-spec measure(bench_contender:contender(), pos_integer(), bench_place:place(), bench_vm:settings()) ->
          {ok, #{bench_figures:key() => number()}} | {error, string()}.
measure(Contender, Count, Place, #{measured_ebin := Ebin} = Settings) ->
    Start = starter(Contender, Place, Settings#{macula_ebin := Ebin}, bench_vm:cookie()),
    {First, [up], _} = started(Start, ["a"]),
    {Others, Answers, Nodes} = started(Start, ["n" ++ integer_to_list(N) || N <- lists:seq(1, Count + ?WARM_UP)]),
    Answer = case [Reason || {error, Reason} <- Answers] of
                 [] -> bench_vm:ask(hd(First), {idle, lists:split(?WARM_UP, Nodes)}, ?MEASURE_MS);
                 [Reason | _] -> {error, Reason}
             end,
    lists:foreach(fun bench_vm:stop/1, First ++ Others),
    Answer.

%% Without connect_all they would all have links to each other.
starter(Contender, #{address_a := Address, prefix_a := Prefix} = Place, Settings, Cookie) ->
    fun(Role) ->
            Name = bench_vm:name(Role, Address),
            Options = #{name => Name, cookie => Cookie, prefix => Prefix,
                        flags => ["+S", "1:1", "-connect_all", "false"]},
            {bench_vm:start(Contender, Place, Settings, Options), list_to_atom(Name)}
    end.

started(Start, Roles) when length(Roles) > ?AT_ONCE ->
    {Now, Later} = lists:split(?AT_ONCE, Roles),
    {Vms, Answers, Nodes} = started(Start, Now),
    {MoreVms, MoreAnswers, MoreNodes} = started(Start, Later),
    {Vms ++ MoreVms, Answers ++ MoreAnswers, Nodes ++ MoreNodes};
started(Start, Roles) ->
    {Vms, Nodes} = lists:unzip(lists:map(Start, Roles)),
    {Vms, [up(bench_vm:answer(Vm, ?START_MS)) || Vm <- Vms], Nodes}.

up({ok, up}) -> up;
up({error, _} = Error) -> Error.
