%% @doc Where a node may be: every source of addresses asked in a process of
%% its own, so that a slow one does not hold up the others.
-module(macula_dist_resolver).

-export([start/4]).

-export_type([source/0]).

-type source() :: peers | registry | discovery | name | dns | dns6 | mesh.
-type found() :: {ok, [macula_nif:address() | mesh]} | {error, term()}.

%% A way through a relay is there at once and costs more for as long as the link
%% lives: what is within reach should be reached directly. As for the families
%% of addresses in RFC 8305, 5.
-define(HEAD_START_MS, 250).

%% @doc Starts the resolvers, linked to the caller, which gets from each
%% {candidates, Resolver, found()} once.
-spec start(macula_nif:endpoint(), node(), macula_dist_name:parts(), timeout()) ->
          #{pid() => source()}.
start(Endpoint, Node, Parts, Timeout) ->
    Sources = sources(mode(), macula_mesh:is_joined(Endpoint), Node, Parts, Timeout),
    maps:from_list([{ask(self(), Ask), Source} || {Source, Ask} <- Sources]).

mode() ->
    case macula_config:read(default) of
        {ok, #{dist_mode := {Mode, _}}} -> Mode;
        {error, _} -> all
    end.

ask(Caller, Ask) ->
    spawn_link(fun() -> Caller ! {candidates, self(), attempt(Ask)} end).

%% Whatever a source runs into, the others go on.
-spec attempt(fun(() -> found())) -> found().
attempt(Ask) ->
    try
        Ask()
    catch
        Class:Reason -> {error, {Class, Reason}}
    end.

sources(relay, _, _, _, _) ->
    %% The user wants no other way, joined or not.
    mesh(0);
sources(all, true, Node, Parts, Timeout) ->
    mesh(?HEAD_START_MS) ++ addresses(Node, Parts, Timeout);
sources(all, false, Node, Parts, Timeout) ->
    addresses(Node, Parts, Timeout).

mesh(After) ->
    [{mesh, fun() -> timer:sleep(After), {ok, [mesh]} end}].

addresses(Node, Parts, Timeout) ->
    configured(Node, Timeout)
        ++ [{registry, fun() -> registered(Node) end}]
        ++ discovered(macula_dist_discovery:addresses(Node))
        ++ by_host(Parts, Timeout).

configured(Node, Timeout) ->
    case macula_config:read(default) of
        {ok, #{peers := {#{Node := {Host, Port}}, _}}} -> at(peers, peers, Host, Port, Timeout);
        {ok, _} -> [];
        {error, Bad} -> [{peers, fun() -> {error, Bad} end}]
    end.

registered(Node) ->
    case macula_dist_registry:find(atom_to_binary(Node, utf8)) of
        {ok, Address} -> {ok, [Address]};
        {error, _} = Error -> Error
    end.

discovered([]) -> [];
discovered(Addresses) -> [{discovery, fun() -> {ok, Addresses} end}].

%% A port in the node name says where it is; else the well-known one.
by_host(#{host := Host, port := default}, Timeout) ->
    at(dns, dns6, Host, macula_dist_name:default_port(), Timeout);
by_host(#{host := Host, port := Port}, Timeout) ->
    at(name, name, Host, Port, Timeout).

at(Source, _, Ip, Port, _) when is_tuple(Ip) ->
    [{Source, fun() -> {ok, [{Ip, Port}]} end}];
at(Source, Source6, Host, Port, Timeout) ->
    [{Source, fun() -> look_up(Host, inet, Port, Timeout) end},
     {Source6, fun() -> look_up(Host, inet6, Port, Timeout) end}].

look_up(Host, Family, Port, Timeout) ->
    case inet:getaddrs(Host, Family, Timeout) of
        {ok, Ips} -> found([{Ip, Port} || Ip <- lists:usort(Ips), not is_mapped(Ip)]);
        {error, Reason} -> {error, Reason}
    end.

found([]) -> {error, nxdomain};
found(Addresses) -> {ok, Addresses}.

%% An IPv4 address in IPv6 clothes is what the other family finds by itself.
is_mapped({0, 0, 0, 0, 0, 16#ffff, _, _}) -> true;
is_mapped(_) -> false.
