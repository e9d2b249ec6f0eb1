%% @doc Makes what a plan says out of network namespaces: one for each machine, one with a bridge for
%% each switch. All interfaces are made inside them, so that nothing of a lab is seen elsewhere, and
%% all of it goes when they go.
-module(netlab_build).

-export([build/2, namespace/2, exec/2]).

-type id() :: string().

-define(BRIDGE, "br-switch").
%% Hosts have names in a domain of their own, for whoever wants a dot in a host name.
-define(DOMAIN, ".lab").

-spec build(id(), netlab_scenario:plan()) -> ok.
build(Id, #{nets := Nets, machines := Machines} = Plan) ->
    Switches = [Net || #{type := switch} = Net <- maps:values(Nets)],
    ok = batch(Id, none, [["netns add ", namespace(Id, Name)] || Name <- maps:keys(Machines)]
                   ++ [["netns add ", namespace(Id, switch_name(Net))] || Net <- Switches]),
    lists:foreach(fun(Machine) -> prepare(Id, Machine, Plan) end, maps:values(Machines)),
    lists:foreach(fun(Net) -> build_switch(Id, Net) end, Switches),
    ok = batch(Id, none, lists:append([wiring(Id, Net, Plan) || Net <- maps:values(Nets)])),
    lists:foreach(fun(Net) -> raise_switch(Id, Net, Plan) end, Switches),
    lists:foreach(fun(Machine) -> configure(Id, Machine, Plan) end, maps:values(Machines)).

%% @doc The network namespace of a machine.
-spec namespace(id(), atom()) -> string().
namespace(Id, Name) ->
    Id ++ "-" ++ atom_to_list(Name).

%% @doc What to put before a command so that it runs there.
-spec exec(id(), atom()) -> [string()].
exec(Id, Name) ->
    [os:find_executable("ip"), "netns", "exec", namespace(Id, Name)].

%% Not a name that a machine can have.
switch_name(#{name := Name}) ->
    list_to_atom("net-" ++ atom_to_list(Name)).

%%% Switches and wires

build_switch(Id, Net) ->
    batch(Id, switch_name(Net), [["link add ", ?BRIDGE, " type bridge mcast_snooping 0 forward_delay 0"]]).

wiring(Id, #{type := switch, name := Name} = Net, Plan) ->
    [["link add ", Interface, " netns ", namespace(Id, Machine), " type veth peer name ",
      atom_to_list(Machine), " netns ", namespace(Id, switch_name(Net))]
     || {Machine, #{interface := Interface}} <- members(Name, Plan)];
wiring(Id, #{type := wire, name := Name}, Plan) ->
    [{A, #{interface := InterfaceA}}, {B, #{interface := InterfaceB}}] = members(Name, Plan),
    [["link add ", InterfaceA, " netns ", namespace(Id, A), " type veth peer name ", InterfaceB,
      " netns ", namespace(Id, B)]].

raise_switch(Id, #{name := Name, mtu := Mtu} = Net, Plan) ->
    batch(Id, switch_name(Net),
          [["link set dev ", ?BRIDGE, " mtu ", integer_to_list(Mtu), " up"]
           | [["link set dev ", atom_to_list(Machine), " mtu ", integer_to_list(Mtu), " master ", ?BRIDGE, " up"]
              || {Machine, _} <- members(Name, Plan)]]).

members(Net, #{machines := Machines}) ->
    [{Name, Link} || #{name := Name, links := Links} <- maps:values(Machines), #{net := N} = Link <- Links,
                     N =:= Net].

%%% Machines

%% Before the first interface: an address that waits for duplicate detection cannot be used for a
%% second or two.
prepare(Id, #{name := Name} = Machine, Plan) ->
    _ = netlab_os:run(exec(Id, Name) ++ ["sysctl", "-q", "-w", "net.ipv6.conf.all.accept_dad=0",
                                         "net.ipv6.conf.default.accept_dad=0"]),
    write_hosts(Id, Machine, Plan).

%% `ip netns exec' shows this to whoever runs there as /etc/hosts.
write_hosts(Id, #{name := Name}, #{machines := Machines}) ->
    File = filename:join(["/etc/netns", namespace(Id, Name), "hosts"]),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, ["127.0.0.1 localhost\n::1 localhost\n"
                                | [host_lines(Machine) || Machine <- maps:values(Machines)]]).

host_lines(#{name := Name, links := Links}) ->
    Text = atom_to_list(Name),
    [[inet:ntoa(Address), " ", Text, ?DOMAIN, " ", Text, "\n"]
     || #{address := V4, address6 := V6} <- Links, Address <- [V4, V6], Address =/= none].

configure(Id, #{name := Name, links := Links} = Machine, #{nets := Nets}) ->
    batch(Id, Name, ["link set lo up"]
          ++ lists:append([raise(Link, maps:get(Net, Nets)) || #{net := Net} = Link <- Links])
          ++ routes(Machine)).

raise(#{interface := Interface, address := V4, address6 := V6},
      #{mtu := Mtu, subnet := {_, Bits}, subnet6 := Subnet6}) ->
    [["link set dev ", Interface, " mtu ", integer_to_list(Mtu), " up"],
     ["address add ", inet:ntoa(V4), "/", integer_to_list(Bits), " dev ", Interface]]
        ++ [["address add ", inet:ntoa(V6), "/", integer_to_list(Bits6), " dev ", Interface]
            || {_, Bits6} <- [Subnet6]].

%% Without a way out there is still one for multicast.
routes(#{gateway := none, links := [#{interface := Interface} | _]}) ->
    [["route add 224.0.0.0/4 dev ", Interface]].

%%% Help

%% Many commands of `ip' in one process; the first that fails ends the batch and is named.
batch(_, _, []) ->
    ok;
batch(Id, Where, Lines) ->
    File = filename:join(["/run/netlab", Id, "batch"]),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, lists:join("\n", Lines)),
    In = case Where of
             none -> [];
             Name -> ["-n", namespace(Id, Name)]
         end,
    case netlab_os:try_run(["ip"] ++ In ++ ["-batch", File]) of
        {0, _} -> ok;
        {_, Output} -> error({ip_failed, Where, Output, unicode:characters_to_list(lists:join("\n", Lines))})
    end.
