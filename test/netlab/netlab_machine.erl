%% @doc Hosts and routers: their addresses, routes, names and rules, each in its namespace.
-module(netlab_machine).

-export([prepare/3, configure/3, readdress/4, load_rules/3]).

-type id() :: netlab_space:id().
-type machine() :: netlab_scenario:machine().
-type plan() :: netlab_scenario:plan().

%% Hosts have names in a domain of their own, for whoever wants a dot in a host name.
-define(DOMAIN, ".lab").

%% @doc Before the first interface: an address that waits for duplicate detection cannot be used for
%% a second or two. Promoted secondaries let an address go without the one that came after it.
-spec prepare(id(), machine(), plan()) -> ok.
prepare(Id, #{name := Name} = Machine, Plan) ->
    set(Id, Name, ["net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
                   "net.ipv4.conf.all.promote_secondaries=1" | forwarding(Machine)]),
    write_hosts(Id, Name, Plan).

forwarding(#{kind := host}) -> [];
forwarding(#{nat := none}) -> ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
forwarding(_) -> ["net.ipv4.ip_forward=1"].

%% `ip netns exec' shows this to whoever runs there as /etc/hosts.
write_hosts(Id, Name, #{machines := Machines} = Plan) ->
    File = filename:join(["/etc/netns", netlab_space:namespace(Id, Name), "hosts"]),
    Visible = netlab_scenario:visible(Name, Plan),
    ok = filelib:ensure_dir(File),
    Lines = [host_lines(Machine, Visible) || Machine <- maps:values(Machines)],
    ok = file:write_file(File, ["127.0.0.1 localhost\n::1 localhost\n" | Lines]).

host_lines(#{name := Name, links := Links}, Visible) ->
    Text = atom_to_list(Name),
    [[inet:ntoa(Address), " ", Text, ?DOMAIN, " ", Text, "\n"]
     || #{net := Net, address := V4, address6 := V6} <- Links, lists:member(Net, Visible),
        Address <- [V4, V6], Address =/= none].

-spec configure(id(), machine(), plan()) -> ok.
configure(Id, #{name := Name, links := Links} = Machine, #{nets := Nets}) ->
    Raised = [raise(Link, maps:get(Net, Nets)) || #{net := Net} = Link <- Links],
    netlab_space:batch(Id, Name, ["link set dev lo up" | lists:append(Raised)]
                       ++ routes(Machine, Nets)).

raise(#{interface := Interface} = Link, #{mtu := Mtu} = Net) ->
    [["link set dev ", Interface, " mtu ", integer_to_list(Mtu), " up"]
     | [["address add ", Address, " dev ", Interface] || Address <- addresses(Link, Net)]].

addresses(#{address := V4}, #{subnet := {_, Bits}, subnet6 := none}) ->
    [subnet({V4, Bits})];
addresses(#{address6 := V6} = Link, #{subnet6 := {_, Bits}} = Net) ->
    addresses(Link, Net#{subnet6 := none}) ++ [subnet({V6, Bits})].

subnet({Address, Bits}) ->
    inet:ntoa(Address) ++ "/" ++ integer_to_list(Bits).

routes(#{routes := Routes, links := [#{interface := Interface, net := Net} | _] = Links}, Nets) ->
    Tcp = tcp(maps:get(Net, Nets)),
    [["route replace ", subnet(To), " via ", inet:ntoa(Via), Tcp] || {To, Via} <- Routes]
        ++ lists:append([own_route(Link, maps:get(N, Nets)) || #{net := N} = Link <- Links])
        ++ ["route replace 224.0.0.0/4 dev " ++ Interface || not has_default(Routes)].

%% Without a way out there is still one for multicast.
has_default(Routes) ->
    lists:any(fun({{_, Bits}, _}) -> Bits =:= 0 end, Routes).

%% A namespace cannot choose TCP's congestion control where the system restricts it; a route can.
own_route(_, #{tcp := system}) ->
    [];
own_route(#{interface := Interface, address := Address}, #{subnet := Subnet} = Net) ->
    [["route replace ", subnet(Subnet), " dev ", Interface, " src ", inet:ntoa(Address), tcp(Net)]].

tcp(#{tcp := system}) -> "";
tcp(#{tcp := Tcp}) -> [" congctl ", atom_to_list(Tcp)].

%% @doc Gives the machine the addresses that the plan has for it on that net, in place of those it
%% had, and its routes anew. Names stay as they are, like those of a slow DNS.
-spec readdress(id(), machine(), Net :: atom(), plan()) -> ok.
readdress(Id, #{name := Name, links := Links} = Machine, NetName, #{nets := Nets}) ->
    [#{interface := Interface} = Link] = [Link || #{net := Net} = Link <- Links, Net =:= NetName],
    New = addresses(Link, maps:get(NetName, Nets)),
    Old = addresses_now(Id, Name, Interface) -- New,
    netlab_space:batch(Id, Name,
                       [["address add ", Address, " dev ", Interface] || Address <- New]
                       ++ [["address delete ", Address, " dev ", Interface] || Address <- Old]
                       ++ routes(Machine, Nets)).

addresses_now(Id, Name, Interface) ->
    Show = ["ip", "-o", "address", "show", "dev", Interface, "scope", "global"],
    Shown = netlab_space:run(Id, Name, Show),
    {match, Found} = re:run(Shown, "inet6? ([^ ]+)", [global, {capture, all_but_first, list}]),
    lists:append(Found).

%% @doc Makes a router the NAT it is; what mappings it had are forgotten.
-spec load_rules(id(), machine(), Generation :: non_neg_integer()) -> ok.
load_rules(_, #{kind := host}, _) ->
    ok;
load_rules(_, #{nat := none}, _) ->
    ok;
load_rules(Id, #{name := Name, nat := Nat, mapping_timeout := Timeout}, Generation) ->
    File = filename:join(netlab_space:folder(Id), "nat"),
    ok = file:write_file(File, netlab_nat:rules(Nat, Generation, Timeout)),
    _ = netlab_space:run(Id, Name, ["nft", "-f", File]),
    Seconds = integer_to_list(Timeout),
    set(Id, Name, ["net.netfilter.nf_conntrack_udp_timeout=" ++ Seconds,
                   "net.netfilter.nf_conntrack_udp_timeout_stream=" ++ Seconds]),
    _ = netlab_space:run(Id, Name, ["conntrack", "-F"]),
    ok.

set(Id, Name, Variables) ->
    _ = netlab_space:run(Id, Name, ["sysctl", "-q", "-w" | Variables]),
    ok.
