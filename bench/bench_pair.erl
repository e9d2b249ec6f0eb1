%% @doc Two nodes of one carrier, with a relay between them where that is what
%% is measured, and a way to have node A do things to node B.
-module(bench_pair).

-export([start/3, load/3, ask/3, stop/1]).
-export_type([carrier/0, pair/0]).

%% relayed: macula, and no other way than through a relay.
-type carrier() :: inet_tcp | inet_tls | macula | relayed.
-type pair() :: #{a := port(), b := port(), relay := bench_relay:relay() | none}.

-define(START_MS, 20_000).

-spec start(bench_contender:contender(), bench_place:place(), bench_vm:settings()) -> {ok, pair()} | {error, string()}.
start(#{carrier := relayed} = Contender, Place, Settings) ->
    case bench_relay:start(Place, Settings) of
        {ok, Relay} ->
            Env = [{"MACULA_RELAYS", bench_relay:url(Relay)}, {"MACULA_DIST_MODE", "relay"}],
            nodes(Contender, Place, Settings, Relay, Env);
        {error, _} = Error ->
            Error
    end;
start(Contender, Place, Settings) ->
    nodes(Contender, Place, Settings, none, []).

nodes(Contender, #{address_a := AddressA, address_b := AddressB} = Place, Settings, Relay, Env) ->
    #{prefix_a := PrefixA, prefix_b := PrefixB} = Place,
    Cookie = bench_vm:cookie(),
    Start = fun(Name, Prefix) ->
                    Options = #{name => Name, cookie => Cookie, prefix => Prefix, env => Env},
                    bench_vm:start(Contender, Place, Settings, Options)
            end,
    %% Those of other contenders are up as well.
    %% A commit can be called what no node can: HEAD~1.
    Of = [C || C <- atom_to_list(maps:get(name, Contender)), C =/= $~, C =/= $^, C =/= $@, C =/= $/],
    NameB = bench_vm:name("_b_" ++ Of, AddressB ++ port(Contender)),
    B = Start(NameB, PrefixB),
    A = Start(bench_vm:name("_a_" ++ Of, AddressA ++ port(Contender)), PrefixA),
    connected(#{a => A, b => B, relay => Relay}, [bench_vm:answer(Vm, ?START_MS) || Vm <- [B, A]], list_to_atom(NameB)).

port(#{port := Port}) -> ":" ++ integer_to_list(Port);
port(_) -> "".

connected(Pair, [{ok, up}, {ok, up}], NodeB) ->
    case ask(Pair, {peer, NodeB, os_pids(Pair)}, ?START_MS) of
        {ok, ok} -> {ok, Pair};
        {error, Reason} -> failed(Pair, Reason)
    end;
connected(Pair, Answers, _) ->
    failed(Pair, lists:append(lists:join("; ", [Reason || {error, Reason} <- Answers]))).

os_pids(#{a := A, b := B, relay := Relay}) ->
    Nodes = #{nodes => [bench_vm:os_pid(Vm) || Vm <- [A, B]]},
    case Relay of
        none -> Nodes;
        _ -> Nodes#{relay => [bench_relay:os_pid(Relay)]}
    end.

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
stop(#{a := A, b := B, relay := Relay}) ->
    lists:foreach(fun bench_vm:stop/1, [A, B]),
    Relay =:= none orelse bench_relay:stop(Relay),
    ok.
