%% @doc The wires of a lab: from each machine to the switch of its net, or to the machine at the
%% other end. A good one is a pair of interfaces of the kernel's, a bad one has netlab_link in the
%% middle.
-module(netlab_wiring).

-export([switches/1, add_switches/2, raise_switches/2, find/3, connect/3, cut/2, heal/2]).

-export_type([wire/0]).

-type side() :: {Where :: atom(), Interface :: string()}.
%% `machine' and `net' say whose wire it is; the first side is the machine's.
-type wire() :: #{machine := atom(), net := atom(), sides := [side()],
                  impairment := #{up := map(), down := map()} | none}.

-define(BRIDGE, "br-switch").
%% Frames that may wait for the program in the middle, where the kernel would hold 1000: a burst of
%% some ms at full rate.
-define(BAD_WIRE_QUEUE, 10_000).

%%% Switches: a namespace with a bridge each

%% @doc The namespaces of the switches.
-spec switches(netlab_scenario:plan()) -> [atom()].
switches(#{nets := Nets}) ->
    [switch(Net) || #{type := switch, name := Net} <- maps:values(Nets)].

%% Not a name that a machine can have.
switch(Net) ->
    list_to_atom("net-" ++ atom_to_list(Net)).

%% @doc Multicast goes to every member: there is no querier that could tell who wants it.
-spec add_switches(netlab_space:id(), netlab_scenario:plan()) -> ok.
add_switches(Id, Plan) ->
    Bridge = ["link add ", ?BRIDGE, " type bridge mcast_snooping 0"],
    lists:foreach(fun(Switch) -> ok = netlab_space:batch(Id, Switch, [Bridge]) end, switches(Plan)).

%% @doc Puts the wires into the switches and switches them on.
-spec raise_switches(netlab_space:id(), netlab_scenario:plan()) -> ok.
raise_switches(Id, #{nets := Nets} = Plan) ->
    lists:foreach(fun(Net) -> raise_switch(Id, Net, Plan) end,
                  [Net || #{type := switch} = Net <- maps:values(Nets)]).

raise_switch(Id, #{name := Net, mtu := Mtu}, Plan) ->
    Ports = [Port || #{net := N, sides := [_, {_, Port}]} <- wires(Plan), N =:= Net],
    Joining = [" mtu ", integer_to_list(Mtu), " master ", ?BRIDGE, " up"],
    netlab_space:batch(Id, switch(Net), [["link set dev ", ?BRIDGE, " up"]
                                         | [["link set dev ", Port, Joining] || Port <- Ports]]).

%%% Wires

wires(#{nets := Nets} = Plan) ->
    lists:append([wires(Net, netlab_scenario:members(Name, Plan))
                  || {Name, Net} <- lists:sort(maps:to_list(Nets))]).

wires(#{type := switch, name := Net}, Members) ->
    [wire(Net, Member, {switch(Net), atom_to_list(Name)}) || {Name, _} = Member <- Members];
wires(#{type := wire, name := Net}, Members) ->
    [First, {Other, #{interface := Interface}}] = bad_first(Members),
    [wire(Net, First, {Other, Interface})].

bad_first([{_, #{impairment := none}} = Good, Bad]) -> [Bad, Good];
bad_first(Members) -> Members.

wire(Net, {Name, #{interface := Interface, impairment := Impairment}}, Other) ->
    #{machine => Name, net => Net, sides => [{Name, Interface}, Other], impairment => Impairment}.

%% @doc The wire by which a machine is on a net.
-spec find(atom(), atom(), netlab_scenario:plan()) -> wire().
find(Machine, Net, Plan) ->
    [Wire] = [Wire || #{net := N, sides := Sides} = Wire <- wires(Plan), N =:= Net,
                      lists:keymember(Machine, 1, Sides)],
    Wire.

%% @doc Makes all wires; the bad ones belong to the caller.
-spec connect(netlab_space:id(), netlab_scenario:plan(), Seed :: term()) ->
          #{{Machine :: atom(), Net :: atom()} => netlab_link:wire()}.
connect(Id, Plan, Seed) ->
    Wires = wires(Plan),
    ok = netlab_space:batch(Id, [add(Id, Good) || #{impairment := none} = Good <- Wires]),
    maps:from_list([{{Name, Net}, start(Id, Bad, Seed)}
                    || #{machine := Name, net := Net, impairment := Impairment} = Bad <- Wires,
                       Impairment =/= none]).

add(Id, #{sides := [{Name, Interface}, {Other, OtherInterface}]}) ->
    ["link add ", Interface, " netns ", netlab_space:namespace(Id, Name), " type veth peer name ",
     OtherInterface, " netns ", netlab_space:namespace(Id, Other)].

start(Id, #{sides := Sides, impairment := Impairment}, Seed) ->
    [A, B] = [{netlab_space:namespace(Id, Name), Interface} || {Name, Interface} <- Sides],
    Link = netlab_link:start(A, B, erlang:phash2({Seed, Sides})),
    ok = netlab_link:set(Link, Impairment),
    Queue = [" txqueuelen ", integer_to_list(?BAD_WIRE_QUEUE)],
    [ok = netlab_space:batch(Id, Name, [["link set dev ", Interface, Queue]])
     || {Name, Interface} <- Sides],
    Link.

%%% Cutting

%% @doc Cuts the wire where nobody sees it: the interfaces stay up, and nothing arrives.
-spec cut(netlab_space:id(), wire()) -> ok.
cut(Id, #{sides := Sides}) ->
    lists:foreach(fun({Name, Interface}) ->
                      load(Id, Name, [no_cut(Interface), a_cut(Interface)])
                  end, Sides).

-spec heal(netlab_space:id(), wire()) -> ok.
heal(Id, #{sides := Sides}) ->
    lists:foreach(fun({Name, Interface}) -> load(Id, Name, no_cut(Interface)) end, Sides).

load(Id, Name, Rules) ->
    File = filename:join(netlab_space:folder(Id), "cut"),
    ok = file:write_file(File, Rules),
    _ = netlab_space:run(Id, Name, ["nft", "-f", File]),
    ok.

%% Adding first makes deleting right in any state.
no_cut(Interface) ->
    ["table netdev cut_", Interface, "\ndelete table netdev cut_", Interface, "\n"].

a_cut(Interface) ->
    ["table netdev cut_", Interface, " {\n"
     "  chain ingress {\n"
     "    type filter hook ingress device ", Interface, " priority filter; policy drop;\n"
     "  }\n"
     "}\n"].
