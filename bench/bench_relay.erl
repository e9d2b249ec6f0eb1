%% @doc The relay between two measured nodes: a VM without distribution, on a
%% host of its own where the place has one.
-module(bench_relay).

-export([start/2, url/1, os_pid/1, stop/1]).
-export_type([relay/0]).

-type relay() :: {port(), url()}.
-type url() :: string().

-define(START_MS, 20_000).
%% Of the place, which has all ports to itself; on loopback above what nodes take by themselves.
-define(PORT, 44_330).

-spec start(bench_place:place(), bench_vm:settings()) -> {ok, relay()} | {error, string()}.
start(#{address_relay := Address, prefix_relay := Prefix} = Place, Settings) ->
    Vm = bench_vm:start(relay(), Place, Settings, #{name => none, cookie => bench_vm:cookie(), prefix => Prefix}),
    case bench_vm:answer(Vm, ?START_MS) of
        {ok, up} -> serving(Vm, Address, bench_vm:ask(Vm, {relay, ?PORT}, ?START_MS));
        {error, Reason} -> failed(Vm, Reason)
    end.

serving(Vm, Address, {ok, ok}) -> {ok, {Vm, lists:concat(["https://", Address, ":", ?PORT])}};
serving(Vm, _, {ok, {error, Reason}}) -> failed(Vm, lists:flatten(io_lib:format("~tp", [Reason])));
serving(Vm, _, {error, Reason}) -> failed(Vm, Reason).

failed(Vm, Reason) ->
    bench_vm:stop(Vm),
    {error, "relay: " ++ Reason}.

relay() ->
    #{name => relay, title => "relay", carrier => relay, congestion => undefined, part => shown}.

%% @doc Where nodes attach.
-spec url(relay()) -> url().
url({_, Url}) -> Url.

-spec os_pid(relay()) -> integer().
os_pid({Vm, _}) -> bench_vm:os_pid(Vm).

-spec stop(relay()) -> ok.
stop({Vm, _}) -> bench_vm:stop(Vm).
