%% @doc The options of clustering: their types, defaults and environment
%% variables. `resolve/3' is pure; `read/2' feeds it this VM's environment.
-module(macula_cluster_options).

-export([read/2, resolve/3, keys/1, hide/1]).

-export_type([given/0, config/0, strategy/0, bad_option/0]).

-type strategy() :: gossip | static | mdns.
%% What a user gives: a map, or a keyword list as Elixir has them.
-type given() :: #{atom() => term()} | [{atom(), term()} | atom()].
-type config() :: #{atom() => term()}.
-type bad_option() :: macula_config:bad_option().
-type check() :: fun((term()) -> {ok, term()} | error).

-define(STRATEGIES, [gossip, static, mdns]).
%% A timer of less would only make noise, one of more is a mistake in the unit.
-define(MIN_INTERVAL_MS, 50).
-define(MAX_INTERVAL_MS, 3_600_000).
%% Of the addresses for private use on one link, and not one with a name at IANA.
-define(IPV6_GROUP, {16#ff12, 0, 0, 0, 0, 0, 16#4d41, 16#4355}).

-record(option, {key :: atom(),
                 default :: term(),
                 env = [] :: [string()],
                 expected :: term(),
                 check :: check()}).

%% @doc Which options a part of clustering takes.
-spec keys(macula_cluster | gossip | static | mdns | strategy) -> [atom()].
keys(macula_cluster) ->
    [strategy | keys(gossip)] ++ (keys(static) -- keys(gossip));
keys(gossip) ->
    [secret, multicast_addr, port, broadcast_interval, multicast_ttl, interface, ipv6_group,
     broadcast_only, seeds, strict, callback, watcher];
keys(static) ->
    [nodes, reconnect_interval, callback, watcher];
keys(mdns) ->
    [interface, callback, watcher];
keys(strategy) ->
    [topology, config, callback_module].

%% @doc Options and environment to a full configuration.
-spec read(given(), [atom()]) -> {ok, config()} | {error, bad_option()}.
read(Given, Keys) ->
    resolve(Given, Keys, os_env()).

%% @doc The same options, with the secret where no report shows it.
-spec hide(given()) -> given().
hide(#{secret := Secret} = Given) -> Given#{secret := hidden(Secret)};
hide(Given) when is_list(Given) -> [hide_property(Property) || Property <- Given];
hide(Given) -> Given.

hide_property({secret, Secret}) -> {secret, hidden(Secret)};
hide_property(Property) -> Property.

hidden(Secret) when is_function(Secret, 0); Secret =:= none -> Secret;
hidden(Secret) -> fun() -> Secret end.

os_env() ->
    Names = lists:append([Env || #option{env = Env} <- options()]),
    maps:from_list([{Name, Value} || Name <- Names, Value <- [os:getenv(Name)],
                                     Value =/= false, Value =/= ""]).

-spec resolve(given(), [atom()], #{string() => string()}) -> {ok, config()} | {error, bad_option()}.
resolve(Given, Keys, Os) ->
    try
        Map = to_map(Given),
        ok = known(Map, Keys),
        Options = [Option || #option{key = Key} = Option <- options(), lists:member(Key, Keys)],
        Values = [{Option#option.key, value(Option, Map, Os)} || Option <- Options],
        {ok, consistent(maps:from_list(Values))}
    catch
        throw:{bad_option, _, _, _} = Bad -> {error, Bad}
    end.

to_map(Given) when is_map(Given) ->
    Given;
to_map(Given) when is_list(Given) ->
    case lists:all(fun is_property/1, Given) of
        true -> proplists:to_map(Given);
        false -> throw({bad_option, options, map, not_a_keyword_list})
    end;
to_map(_) ->
    throw({bad_option, options, map, not_a_map}).

is_property({Key, _}) -> is_atom(Key);
is_property(Key) -> is_atom(Key).

known(Map, Keys) ->
    case maps:to_list(maps:without(Keys, Map)) of
        [] -> ok;
        [{Key, Value} | _] ->
            Nearest = macula_config:nearest(Key, Keys -- [watcher]),
            throw({bad_option, Key, {did_you_mean, Nearest}, shown(Nearest, Value)})
    end.

%% A list that is empty is as good as none, so that the environment can fill it.
value(#option{key = Key, env = Env} = Option, Map, Os) ->
    case Map of
        #{Key := Value} when Value =/= [] -> checked(Key, Value, Option);
        _ -> from_env([{Name, Value} || Name <- Env, #{Name := Value} <- [Os]], Option)
    end.

from_env([], #option{default = Default}) -> Default;
from_env([{Name, Value} | _], Option) -> checked(Name, Value, Option).

checked(Name, Value, #option{key = Key, expected = Expected, check = Check}) ->
    case Check(Value) of
        {ok, Good} -> Good;
        error -> throw({bad_option, Name, Expected, shown(Key, Value)})
    end.

%% A secret never shows, not even one that is no good.
shown(secret, _) -> hidden;
shown(_, Value) -> Value.

consistent(#{strict := true, secret := none}) ->
    throw({bad_option, strict, {needs, secret}, true});
consistent(Config) ->
    Config.

options() ->
    [#option{key = strategy, default = gossip, env = ["CLUSTER_STRATEGY"],
             expected = {one_of, ?STRATEGIES}, check = fun strategy/1},
     #option{key = secret, default = none, env = ["CLUSTER_SECRET", "MACULA_GOSSIP_SECRET"],
             expected = {nonempty, binary}, check = fun secret/1},
     #option{key = nodes, default = [], env = ["CLUSTER_NODES"],
             expected = {list_of, node_name}, check = fun node_names/1},
     #option{key = reconnect_interval, default = 5_000,
             expected = {integer, ?MIN_INTERVAL_MS, ?MAX_INTERVAL_MS}, check = fun interval/1},
     #option{key = callback, default = none, expected = callback, check = fun callback/1},
     #option{key = watcher, default = none, expected = pid, check = fun callback/1},
     #option{key = multicast_addr, default = {230, 1, 1, 251}, env = ["MACULA_GOSSIP_ADDR"],
             expected = multicast_address, check = fun ipv4_group/1},
     #option{key = ipv6_group, default = ?IPV6_GROUP,
             expected = multicast_address, check = fun ipv6_group/1},
     #option{key = port, default = 45892, env = ["MACULA_GOSSIP_PORT"],
             expected = {integer, 1, 65535}, check = fun port/1},
     #option{key = broadcast_interval, default = 1_500,
             expected = {integer, ?MIN_INTERVAL_MS, ?MAX_INTERVAL_MS}, check = fun interval/1},
     #option{key = multicast_ttl, default = 1, expected = {integer, 0, 255}, check = fun ttl/1},
     #option{key = interface, default = any, expected = interface, check = fun interface/1},
     #option{key = broadcast_only, default = false, expected = boolean, check = fun boolean/1},
     #option{key = seeds, default = [], expected = {list_of, address}, check = fun seeds/1},
     #option{key = strict, default = false, expected = boolean, check = fun boolean/1},
     #option{key = topology, default = macula, expected = term, check = fun(Any) -> {ok, Any} end},
     #option{key = config, default = #{}, expected = map, check = fun config/1},
     #option{key = callback_module, default = none, expected = module, check = fun module_name/1}].

strategy(Strategy) when is_atom(Strategy) ->
    is_good(lists:member(Strategy, ?STRATEGIES), Strategy);
strategy(Text) ->
    case text(Text) of
        {ok, String} -> first([{ok, S} || S <- ?STRATEGIES, atom_to_list(S) =:= String]);
        error -> error
    end.

%% In a fun, so that no report of a supervisor or a crash shows it.
secret(none) ->
    {ok, none};
secret(Hidden) when is_function(Hidden, 0) ->
    secret(Hidden());
secret(Text) ->
    case text(Text) of
        {ok, String} ->
            Secret = unicode:characters_to_binary(String),
            {ok, fun() -> Secret end};
        error ->
            error
    end.

%% One text with commas, or a list of names.
node_names(Names) when is_list(Names) ->
    case text(Names) of
        {ok, Text} -> all(fun(Name) -> node_name(string:trim(Name)) end, string:split(Text, ",", all));
        error -> all(fun node_name/1, Names)
    end;
node_names(Text) when is_binary(Text) ->
    node_names(binary_to_list(Text));
node_names(_) ->
    error.

node_name(Node) when is_atom(Node) ->
    case macula_dist_name:split(Node) of
        {ok, _} -> {ok, Node};
        {error, _} -> error
    end;
node_name(Text) ->
    case text(Text) of
        {ok, String} when length(String) =< 255 -> node_name(list_to_atom(String));
        _ -> error
    end.

interval(Ms) -> in_range(Ms, ?MIN_INTERVAL_MS, ?MAX_INTERVAL_MS).

ttl(Ttl) -> in_range(Ttl, 0, 255).

port(Port) when is_integer(Port) ->
    in_range(Port, 1, 65535);
port(Text) ->
    case text(Text) of
        {ok, String} ->
            case string:to_integer(String) of
                {Port, ""} when is_integer(Port) -> port(Port);
                _ -> error
            end;
        error ->
            error
    end.

in_range(N, Min, Max) -> is_good(is_integer(N) andalso N >= Min andalso N =< Max, N).

boolean(Value) -> is_good(is_boolean(Value), Value).

callback(none) -> {ok, none};
callback(Pid) when is_pid(Pid) -> {ok, Pid};
callback({Module, Function}) when is_atom(Module), is_atom(Function) -> {ok, {Module, Function}};
callback(_) -> error.

ipv4_group(Given) ->
    case ip(Given) of
        {ok, {First, _, _, _} = Ip} when First >= 224, First =< 239 -> {ok, Ip};
        _ -> error
    end.

ipv6_group(none) ->
    {ok, none};
ipv6_group(Given) ->
    case ip(Given) of
        {ok, {First, _, _, _, _, _, _, _} = Ip} when First >= 16#ff00 -> {ok, Ip};
        _ -> error
    end.

%% By name, or by an address that it has.
interface(any) ->
    {ok, any};
interface(Ip) when is_tuple(Ip) ->
    ip(Ip);
interface(Text) ->
    case {ip(Text), text(Text)} of
        {{ok, Ip}, _} -> {ok, Ip};
        {error, Name} -> Name
    end.

seeds(Seeds) when is_list(Seeds) -> all(fun seed/1, Seeds);
seeds(_) -> error.

%% The port may be missing: it is then the one we gossip on.
seed({Host, Port} = Seed) when is_list(Host), Port =:= default orelse is_integer(Port) ->
    {ok, Seed};
seed({Ip, default} = Seed) ->
    is_good(inet:is_ip_address(Ip), Seed);
seed(Seed) ->
    case macula_config:parse_address(Seed) of
        {ok, Address} -> {ok, Address};
        error -> seed_without_port(ip(Seed), text(Seed))
    end.

seed_without_port({ok, Ip}, _) -> {ok, {Ip, default}};
seed_without_port(error, {ok, Text}) ->
    case macula_dist_name:split("x@" ++ Text) of
        {ok, #{host := Host, port := default}} -> {ok, {Host, default}};
        _ -> error
    end;
seed_without_port(error, error) -> error.

config(Map) when is_map(Map) -> {ok, Map};
config(List) when is_list(List) -> {ok, proplists:to_map(List)};
config(_) -> error.

module_name(Module) -> is_good(is_atom(Module), Module).

ip(Ip) when is_tuple(Ip) ->
    is_good(inet:is_ip_address(Ip), Ip);
ip(Text) ->
    case text(Text) of
        {ok, String} -> found(inet:parse_strict_address(String));
        error -> error
    end.

found({ok, Found}) -> {ok, Found};
found({error, _}) -> error.

%% Text that is not empty, as Erlang or as Elixir writes it.
text(<<>>) ->
    error;
text(Binary) when is_binary(Binary) ->
    case unicode:characters_to_list(Binary) of
        String when is_list(String) -> {ok, String};
        _ -> error
    end;
text([_ | _] = List) ->
    is_good(io_lib:char_list(List), List);
text(_) ->
    error.

all(Check, List) ->
    Checked = [Check(Element) || Element <- List],
    case lists:member(error, Checked) of
        true -> error;
        false -> {ok, [Good || {ok, Good} <- Checked]}
    end.

first([Found | _]) -> Found;
first([]) -> error.

is_good(true, Value) -> {ok, Value};
is_good(false, _) -> error.
