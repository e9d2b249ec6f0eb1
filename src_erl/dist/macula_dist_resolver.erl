%% @doc Where a node may be: every source of addresses asked in a process of
%% its own, so that a slow one does not hold up the others.
-module(macula_dist_resolver).

-export([start/4, other_family/1]).

-export_type([source/0]).

-type source() :: peers | registry | discovery | name | srv | dns | dns6 | mesh.
-type found() :: {ok, [macula_nif:candidate()]} | {error, term()}.

%% What DNS may take to tell of a service. Most hosts have none, and a name
%% server that says nothing must not keep everyone waiting for that.
-define(SRV_MS, 2_000).

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

%% @doc The source that looks the same host up in the other family of addresses.
-spec other_family(source()) -> dns | dns6 | name | peers | none.
other_family(dns) -> dns6;
other_family(dns6) -> dns;
other_family(Source) when Source =:= name; Source =:= peers -> Source;
other_family(_) -> none.

ask(Caller, Ask) ->
    spawn_link(fun() -> Caller ! {candidates, self(), on_links(attempt(Ask))} end).

%% An address that means something only on a link does not say on which: it may
%% be any of ours.
on_links({ok, Addresses}) -> {ok, lists:append([on_link(Address) || Address <- Addresses])};
on_links({error, _} = Error) -> Error.

on_link(mesh) ->
    [mesh];
on_link({Ip, Port} = Address) ->
    case is_of_link(Ip) of
        true -> [{Ip, Port, Index} || Index <- links()];
        false -> [Address]
    end.

%% Where IPv6 runs every interface has an address of its link.
links() ->
    {ok, Interfaces} = inet:getifaddrs(),
    [Index || {Name, Options} <- Interfaces,
              lists:any(fun is_of_link/1, proplists:get_all_values(addr, Options)),
              {ok, Index} <- [net:if_name2index(Name)]].

is_of_link({First, _, _, _, _, _, _, _}) -> First band 16#ffc0 =:= 16#fe80;
is_of_link(_) -> false.

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
    service(Host, min(Timeout, ?SRV_MS))
        ++ at(dns, dns6, Host, macula_dist_name:default_port(), Timeout);
by_host(#{host := Host, port := Port}, Timeout) ->
    at(name, name, Host, Port, Timeout).

%% DNS knows nothing of this machine or of bare addresses.
service("localhost", _) -> [];
service(Host, Timeout) when is_list(Host) -> [{srv, fun() -> look_up_service(Host, Timeout) end}];
service(_, _) -> [].

look_up_service(Host, Timeout) ->
    Id = erlang:unique_integer([positive]),
    case macula_nif:srv_lookup(Id, unicode:characters_to_binary(Host), Timeout) of
        ok ->
            receive
                {macula_srv, Id, Found} -> Found
            end;
        {error, _} = Error ->
            Error
    end.

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
