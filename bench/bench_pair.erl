%% @doc Two nodes of one carrier, and a way to have node A do things to node B.
-module(bench_pair).

-export([start/3, load/3, ask/3, stop/1]).
-export_type([carrier/0, pair/0]).

-type carrier() :: inet_tcp | inet_tls | macula.
-type pair() :: #{a := port(), b := port()}.

-define(START_MS, 20_000).

-spec start(bench_contender:contender(), bench_place:place(), bench_vm:settings()) -> {ok, pair()} | {error, string()}.
start(Contender, #{address_a := AddressA, address_b := AddressB} = Place, Settings) ->
    #{prefix_a := PrefixA, prefix_b := PrefixB} = Place,
    Cookie = bench_vm:cookie(),
    Start = fun(Name, Prefix) ->
                    bench_vm:start(Contender, Place, Settings, #{name => Name, cookie => Cookie, prefix => Prefix})
            end,
    NameB = bench_vm:name("b", AddressB),
    B = Start(NameB, PrefixB),
    A = Start(bench_vm:name("a", AddressA), PrefixA),
    connected(#{a => A, b => B}, [bench_vm:answer(Vm, ?START_MS) || Vm <- [B, A]], list_to_atom(NameB)).

connected(#{a := A, b := B} = Pair, [{ok, up}, {ok, up}], NodeB) ->
    OsPids = [bench_vm:os_pid(Vm) || Vm <- [A, B]],
    case ask(Pair, {peer, NodeB, OsPids}, ?START_MS) of
        {ok, ok} -> {ok, Pair};
        {error, Reason} -> failed(Pair, Reason)
    end;
connected(Pair, Answers, _) ->
    failed(Pair, lists:append(lists:join("; ", [Reason || {error, Reason} <- Answers]))).

failed(Pair, Reason) ->
    stop(Pair),
    {error, Reason}.

%% @doc Runs a load of bench_load.
-spec load(pair(), bench_load:load(), timeout()) -> {ok, #{bench_figures:key() => number()}} | {error, string()}.
load(Pair, Load, Limit) ->
    ask(Pair, {load, Load}, Limit).

%% @doc Has node A do what bench_node understands.
-spec ask(pair(), term(), timeout()) -> {ok, term()} | {error, string()}.
ask(#{a := A}, Request, Limit) ->
    bench_vm:ask(A, Request, Limit).

-spec stop(pair()) -> ok.
stop(#{a := A, b := B}) ->
    lists:foreach(fun bench_vm:stop/1, [A, B]).
