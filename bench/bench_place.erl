%% @doc Where the nodes of a pair live: loopback, or two network namespaces
%% with a veth pair between them. bench/place.sh makes and removes it, and
%% outlives this VM for that.
-module(bench_place).

-export([open/2, close/1, possible/1]).
-export_type([name/0, place/0]).

-type name() :: loopback | veth.
-type place() :: #{name := name(), keeper := port(), epmd_port := inet:port_number(),
                   address_a := string(), address_b := string(),
                   prefix_a := [string()], prefix_b := [string()],
                   facts := #{binary() => binary()}}.

-define(LIMIT_MS, 10_000).

%% @doc Namespaces need root and `ip'.
-spec possible(name()) -> yes | {no, string()}.
possible(loopback) ->
    yes;
possible(veth) ->
    case {os:find_executable("ip"), string:trim(os:cmd("id -u"))} of
        {false, _} -> {no, "ip (iproute2) is not installed"};
        {_, "0"} -> yes;
        {_, _} -> {no, "network namespaces need root"}
    end.

-spec open(name(), file:filename()) -> {ok, place()} | {error, string()}.
open(Name, Script) ->
    EpmdPort = epmd_port(Name),
    Keeper = open_port({spawn_executable, os:find_executable("sh")},
                       [{args, [Script, atom_to_list(Name), integer_to_list(EpmdPort)]},
                        {line, 1024}, binary, exit_status, stderr_to_stdout]),
    case await_ready(Keeper, []) of
        {ok, Facts} -> {ok, place(Name, Keeper, EpmdPort, Facts)};
        {error, _} = Error -> Error
    end.

-spec close(place()) -> ok.
close(#{keeper := Keeper}) ->
    true = port_command(Keeper, "done\n"),
    receive
        {Keeper, {exit_status, _}} -> ok
    after ?LIMIT_MS ->
        true = port_close(Keeper),
        ok
    end.

await_ready(Keeper, Said) ->
    receive
        {Keeper, {data, {_, <<"ready">>}}} -> {ok, facts(Said)};
        {Keeper, {data, {_, Line}}} -> await_ready(Keeper, [Line | Said]);
        {Keeper, {exit_status, _}} -> {error, told(Said)}
    after ?LIMIT_MS ->
        port_close(Keeper),
        {error, "place.sh was not ready in time: " ++ told(Said)}
    end.

facts(Lines) ->
    maps:from_list([{Key, Value} || Line <- Lines, [Key, Value] <- [binary:split(Line, <<" ">>)]]).

told(Said) ->
    unicode:characters_to_list(lists:join("; ", lists:reverse(Said))).

place(loopback, Keeper, EpmdPort, Facts) ->
    #{name => loopback, keeper => Keeper, epmd_port => EpmdPort, facts => Facts,
      address_a => "127.0.0.1", address_b => "127.0.0.1", prefix_a => [], prefix_b => []};
place(veth, Keeper, EpmdPort, #{<<"namespace_a">> := A, <<"namespace_b">> := B} = Facts) ->
    #{name => veth, keeper => Keeper, epmd_port => EpmdPort,
      facts => maps:without([<<"namespace_a">>, <<"namespace_b">>], Facts),
      address_a => "192.0.2.1", address_b => "192.0.2.2",
      prefix_a => in_namespace(A), prefix_b => in_namespace(B)}.

in_namespace(Namespace) ->
    [os:find_executable("ip"), "netns", "exec", binary_to_list(Namespace)].

%% A namespace has every port to itself. Elsewhere the machine's own epmd, if
%% it has one, is to be left alone.
epmd_port(veth) ->
    4369;
epmd_port(loopback) ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.
