%% @doc The network interfaces gossip can use, out of what the system has.
-module(macula_gossip_interfaces).

-export([scan/0, read/2, usable/2, names/1, addresses/1, is_link_local/1, is_on_link/2]).

-export_type([interface/0, wanted/0]).

%% The index tells an interface from an earlier one of the same name.
-type interface() :: #{name := string(), index := non_neg_integer(), loopback := boolean(),
                       v4 := [address()], v6 := [address()], broadcast := [inet:ip4_address()]}.
-type address() :: {inet:ip_address(), Netmask :: inet:ip_address()}.
%% By name, or by an address that it has.
-type wanted() :: any | string() | inet:ip_address().

%% @doc All interfaces that are up.
-spec scan() -> [interface()].
scan() ->
    case inet:getifaddrs() of
        {ok, All} -> lists:append([read(Name, Options) || {Name, Options} <- All]);
        {error, _} -> []
    end.

%% @doc One interface as the system tells it; nothing while it is down. Names
%% with a colon are further addresses of the one before it.
-spec read(string(), [{atom(), term()}]) -> [interface()].
read(Name, Options) ->
    Flags = proplists:get_value(flags, Options, []),
    case lists:member(up, Flags) of
        true ->
            Addresses = with_masks(Options),
            [#{name => Name, index => index(Name), loopback => lists:member(loopback, Flags),
               v4 => [A || {Ip, _} = A <- Addresses, tuple_size(Ip) =:= 4],
               v6 => [A || {Ip, _} = A <- Addresses, tuple_size(Ip) =:= 8],
               broadcast => [broadcast(A) || {Ip, _} = A <- Addresses, tuple_size(Ip) =:= 4,
                                             lists:member(broadcast, Flags)]}];
        false ->
            []
    end.

with_masks([{addr, Ip}, {netmask, Mask} | Options]) -> [{Ip, Mask} | with_masks(Options)];
with_masks([_ | Options]) -> with_masks(Options);
with_masks([]) -> [].

%% Computed: the system tells the address itself where none was set.
broadcast({Ip, Mask}) ->
    Parts = lists:zip(tuple_to_list(Ip), tuple_to_list(Mask)),
    list_to_tuple([I bor (M bxor 255) || {I, M} <- Parts]).

index(Name) ->
    case net:if_name2index(hd(string:split(Name, ":"))) of
        {ok, Index} -> Index;
        {error, _} -> 0
    end.

%% @doc Those that were asked for and have an address.
-spec usable(wanted(), [interface()]) -> [interface()].
usable(Wanted, Interfaces) ->
    [Interface || #{v4 := V4, v6 := V6} = Interface <- Interfaces,
                  V4 ++ V6 =/= [], is_wanted(Wanted, Interface)].

is_wanted(any, _) -> true;
is_wanted(Ip, #{v4 := V4, v6 := V6}) when is_tuple(Ip) -> lists:keymember(Ip, 1, V4 ++ V6);
is_wanted(Name, #{name := Name}) -> true;
is_wanted(_, _) -> false.

-spec names([interface()]) -> [string()].
names(Interfaces) ->
    lists:usort([Name || #{name := Name} <- Interfaces]).

%% @doc Where others reach this host: not by loopback, unless there is nothing
%% else, and not by addresses that need to be told a link: those show in where
%% an announcement comes from.
-spec addresses([interface()]) -> [inet:ip_address()].
addresses(Interfaces) ->
    {Loopback, Others} = lists:partition(fun(#{loopback := Is}) -> Is end, Interfaces),
    case Others of
        [] -> global(Loopback);
        _ -> global(Others)
    end.

global(Interfaces) ->
    [Ip || #{v4 := V4, v6 := V6} <- Interfaces, {Ip, _} <- V4 ++ V6, not is_link_local(Ip)].

%% @doc Whether an address means something only together with a link.
-spec is_link_local(inet:ip_address()) -> boolean().
is_link_local({169, 254, _, _}) -> true;
is_link_local({First, _, _, _, _, _, _, _}) -> First band 16#ffc0 =:= 16#fe80;
is_link_local(_) -> false.

%% @doc Whether an address is one that this host reaches without a router.
-spec is_on_link(inet:ip_address(), [interface()]) -> boolean().
is_on_link(Ip, Interfaces) ->
    Bits = bits(Ip),
    lists:any(fun({Own, Mask}) ->
                      tuple_size(Own) =:= tuple_size(Ip)
                          andalso bits(Own) band bits(Mask) =:= Bits band bits(Mask)
              end,
              [A || #{v4 := V4, v6 := V6} <- Interfaces, A <- V4 ++ V6]).

bits(Ip) when tuple_size(Ip) =:= 4 -> join(Ip, 8);
bits(Ip) -> join(Ip, 16).

join(Ip, Size) ->
    lists:foldl(fun(Part, Bits) -> Bits bsl Size bor Part end, 0, tuple_to_list(Ip)).
