%% @doc Where the nodes of a pair live: loopback, two network namespaces with a
%% veth pair between them, or two hosts of the network lab with a long and
%% lossy line. With a relay between them: loopback, or three hosts of the lab at
%% a switch. bench/place.sh and the lab's keeper make and remove it, and outlive
%% this VM for that.
-module(bench_place).

-export([open/2, close/1, possible/1]).
-export_type([name/0, place/0]).

-type name() :: loopback | veth | wan | relay_loopback | switch.
-type place() :: #{name := name(), keeper := port() | netlab:lab(), epmd_port := inet:port_number(),
                   address_a := string(), address_b := string(),
                   prefix_a := [string()], prefix_b := [string()],
                   address_relay => string(), prefix_relay => [string()],
                   facts := #{binary() => binary()}}.

-define(LIMIT_MS, 10_000).
%% 20 ms and 1 % each way. With a rate, so that who fills the line meets its
%% queue (100 ms) and not the limits of this machine.
-define(WAN, #{delay => 20, loss => 0.01, rate => 100}).

%% @doc Namespaces need root and `ip'.
-spec possible(name()) -> yes | {no, string()}.
possible(Name) when Name =:= loopback; Name =:= relay_loopback ->
    yes;
possible(veth) ->
    case {os:find_executable("ip"), string:trim(os:cmd("id -u"))} of
        {false, _} -> {no, "ip (iproute2) is not installed"};
        {_, "0"} -> yes;
        {_, _} -> {no, "network namespaces need root"}
    end;
possible(Name) when Name =:= wan; Name =:= switch ->
    case netlab:requires() of
        ok -> yes;
        {skip, Why} -> {no, Why}
    end.

-spec open(name(), file:filename()) -> {ok, place()} | {error, string()}.
open(wan, _) ->
    open_wan(netlab:start(wan, ?WAN));
open(switch, _) ->
    {ok, open_switch(netlab:start(lan, #{hosts => 3}))};
open(relay_loopback, Script) ->
    case open(loopback, Script) of
        {ok, Place} ->
            {ok, Place#{name := relay_loopback, address_relay => "127.0.0.1", prefix_relay => []}};
        {error, _} = Error ->
            Error
    end;
open(Name, Script) ->
    EpmdPort = epmd_port(Name),
    Keeper = open_port({spawn_executable, os:find_executable("sh")},
                       [{args, [Script, atom_to_list(Name), integer_to_list(EpmdPort)]},
                        {line, 1024}, binary, exit_status, stderr_to_stdout]),
    case await_ready(Keeper, []) of
        {ok, Facts} -> {ok, place(Name, Keeper, EpmdPort, Facts)};
        {error, _} = Error -> Error
    end.

open_wan(Lab) ->
    {Prefixes, Addresses} = lists:unzip([{netlab:within(Lab, Host), netlab:address(Lab, Host)} || Host <- [a, b]]),
    [PrefixA, PrefixB] = Prefixes,
    [AddressA, AddressB] = [inet:ntoa(Address) || Address <- Addresses],
    EpmdPort = epmd_port(wan),
    %% They end with the lab.
    lists:foreach(fun(Prefix) -> start_epmd(Prefix, EpmdPort) end, Prefixes),
    #{delay := Delay, loss := Loss, rate := Rate} = ?WAN,
    Line = io_lib:format("~b ms there and back, ~tp % loss each way, ~b Mbit/s", [2 * Delay, 100 * Loss, Rate]),
    {ok, #{name => wan, keeper => Lab, epmd_port => EpmdPort,
           facts => #{<<"mtu">> => <<"1500">>, <<"line">> => iolist_to_binary(Line)},
           address_a => AddressA, address_b => AddressB, prefix_a => PrefixA, prefix_b => PrefixB}}.

%% Nobody needs epmd there.
open_switch(Lab) ->
    [{AddressA, PrefixA}, {AddressB, PrefixB}, {AddressRelay, PrefixRelay}] =
        [{inet:ntoa(netlab:address(Lab, Host)), netlab:within(Lab, Host)} || Host <- netlab:hosts(Lab)],
    #{name => switch, keeper => Lab, epmd_port => epmd_port(switch), facts => #{<<"mtu">> => <<"1500">>},
      address_a => AddressA, address_b => AddressB, prefix_a => PrefixA, prefix_b => PrefixB,
      address_relay => AddressRelay, prefix_relay => PrefixRelay}.

start_epmd([Command | Args], Port) ->
    open_port({spawn_executable, Command},
              [{args, Args ++ [os:find_executable("epmd"), "-port", integer_to_list(Port)]}, stderr_to_stdout]).

-spec close(place()) -> ok.
close(#{name := Name, keeper := Lab}) when Name =:= wan; Name =:= switch ->
    netlab:stop(Lab);
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
epmd_port(Name) when Name =/= loopback ->
    4369;
epmd_port(loopback) ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.
