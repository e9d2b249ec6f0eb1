%% @doc What a lab is to look like: a scenario, as a person writes it, is checked and worked out
%% into a plan that names every address and route. Pure, but for reading the file. docs/lab.md
%% describes the format.
-module(netlab_scenario).

-export([names/0, read/2, plan/1, impairment/2, readdress/3, visible/2, machines/1,
         members/2]).

-export_type([scenario/0, plan/0, net/0, machine/0, link/0, name/0, nat/0, impairment/0]).

-type name() :: atom().
-type attachment() :: name() | {name(), impairment()}.
%% options: those that a scenario file understands.
-type scenario() :: #{options => [atom()],
                      nets := #{name() => map()},
                      hosts := #{name() => attachment() | [attachment()]},
                      routers => #{name() => map()}}.

%% What a link does to packets, as written. Times in ms, shares of 1, rate in Mbit/s. `up' is what
%% leaves the machine, `down' what reaches it; what is said outside of them holds for both.
-type impairment() :: #{delay => number(), jitter => number(), loss => number(),
                        reorder => number(), reorder_by => number(), rate => number(),
                        queue => number(), up => impairment(), down => impairment()}.
-type net() :: #{name := name(), type := switch | wire, mtu := pos_integer(),
                 tcp := system | string(), subnet := subnet(), subnet6 := subnet() | none}.
-type subnet() :: {inet:ip_address(), Bits :: pos_integer()}.
-type link() :: #{net := name(), interface := string(),
                  address := inet:ip4_address(), address6 := inet:ip6_address() | none,
                  impairment := #{up := map(), down := map()} | none}.
-type nat() :: none | full_cone | address_restricted | port_restricted | symmetric | udp_blocked.
-type route() :: {subnet(), Via :: inet:ip_address()}.
-type machine() :: #{name := name(), kind := host | router, links := [link()],
                     routes := [route()], nat => nat(), mapping_timeout => pos_integer()}.
-type plan() :: #{nets := #{name() => net()}, machines := #{name() => machine()},
                  used := #{name() => pos_integer()}}.

%% An interface of a switch is called like the machine behind it, and Linux allows 15 characters.
-define(MAX_MACHINE_NAME, 15).
-define(MAX_NET_NAME, 30).
-define(ROUTER_NUMBER, 1).
-define(FIRST_NUMBER, 11).
%% What IPv6 asks of every link, and what an IP packet can hold.
-define(MIN_MTU, 1280).
-define(MAX_MTU, 65_535).
-define(EVERYWHERE, {{0, 0, 0, 0}, 0}).
-define(EVERYWHERE6, {{0, 0, 0, 0, 0, 0, 0, 0}, 0}).
%% RFC 4787 asks for 2 minutes at least, in seconds.
-define(MAPPING_TIMEOUT, 120).
-define(NATS, [none, full_cone, address_restricted, port_restricted, symmetric, udp_blocked]).
-define(GOOD, #{delay => 0, jitter => 0, loss => 0, reorder => 0, reorder_by => 5, rate => infinity,
                queue => 100}).

%%% Files

%% @doc The scenarios there are, each with what it says about itself.
-spec names() -> [{name(), [string()]}].
names() ->
    [{list_to_atom(filename:basename(File, ".scenario")), explanation(File)}
     || File <- lists:sort(filelib:wildcard(filename:join(folder(), "*.scenario")))].

%% The comment it begins with.
explanation(File) ->
    {ok, Text} = file:read_file(File),
    Lines = string:split(unicode:characters_to_list(Text), "\n", all),
    [string:trim(Line, leading, "% ")
     || Line <- lists:takewhile(fun(Line) -> lists:prefix("%", Line) end, Lines)].

%% @doc A scenario file is Erlang that ends in a scenario, and finds its options in `Options'.
-spec read(name(), map()) -> {ok, scenario()} | {error, term()}.
read(Name, Options) ->
    File = filename:join(folder(), atom_to_list(Name) ++ ".scenario"),
    case file:script(File, [{'Options', Options}]) of
        {ok, Scenario} -> checked(fun() -> with_known_options(Name, Options, Scenario) end);
        {error, enoent} -> {error, {no_such_scenario, Name, [Known || {Known, _} <- names()]}};
        {error, Reason} -> {error, {bad_scenario, Name, Reason}}
    end.

with_known_options(Name, Options, Scenario) ->
    ok = known_keys({options, Name}, Options, maps:get(options, Scenario, [])),
    Scenario.

folder() ->
    filename:join(netlab_os:source_folder(), "scenarios").

%%% Plans

%% @doc Works out who has which address on which net, and the ways from each.
-spec plan(scenario()) -> {ok, plan()} | {error, {bad_scenario, Where :: term(), Why :: term()}}.
plan(Scenario) ->
    checked(fun() -> work_out(Scenario) end).

%% @doc An impairment with nothing left out.
-spec impairment(Where :: term(), impairment()) ->
          {ok, #{up := map(), down := map()}} | {error, {bad_scenario, term(), term()}}.
impairment(Where, Impairment) ->
    checked(fun() -> both_ways(Where, Impairment) end).

checked(Fun) ->
    try
        {ok, Fun()}
    catch
        throw:{bad_scenario, _, _} = Bad -> {error, Bad}
    end.

work_out(Scenario) ->
    ok = known_keys(scenario, Scenario, [options, nets, hosts, routers]),
    Nets = nets(map(nets, Scenario)),
    Wanted = hosts(map(hosts, Scenario)) ++ routers(map(routers, Scenario)),
    ok = once([Name || #{name := Name} <- Wanted]),
    {Numbered, Used} = lists:mapfoldl(fun(Machine, U) -> numbered(Machine, Nets, U) end,
                                      #{}, Wanted),
    Machines = maps:from_list([{Name, Machine} || #{name := Name} = Machine <- Numbered]),
    Plan = #{nets => Nets, machines => Machines, used => Used},
    ok = lists:foreach(fun(Net) -> wire_has_two_ends(Net, Plan) end, maps:values(Nets)),
    Routed = fun(_, Machine) -> Machine#{routes := routes(Machine, Plan)} end,
    Plan#{machines := maps:map(Routed, Machines)}.

map(Key, Scenario) ->
    case maps:get(Key, Scenario, #{}) of
        Map when is_map(Map) -> Map;
        Other -> bad(Key, {map_expected, Other})
    end.

once(Names) ->
    case Names -- lists:usort(Names) of
        [] -> ok;
        Twice -> bad(Twice, {name_expected, "one that no other machine has"})
    end.

wire_has_two_ends(#{type := switch}, _) ->
    ok;
wire_has_two_ends(#{type := wire, name := Name}, Plan) ->
    case members(Name, Plan) of
        [{_, #{impairment := none}}, _] -> ok;
        [_, {_, #{impairment := none}}] -> ok;
        [_, _] -> bad({net, Name}, {impaired_at_one_end_expected, "a wire has one impairment"});
        Other -> bad({net, Name}, {two_machines_expected, [Machine || {Machine, _} <- Other]})
    end.

%% @doc In the order of their names, since a map has none that one could rely on.
-spec machines(plan()) -> [machine()].
machines(#{machines := Machines}) ->
    [Machine || {_, Machine} <- lists:sort(maps:to_list(Machines))].

%% @doc The machines on a net, each with its link to it.
-spec members(name(), plan()) -> [{name(), link()}].
members(Net, Plan) ->
    [{Name, Link} || #{name := Name, links := Links} <- machines(Plan),
                     #{net := N} = Link <- Links, N =:= Net].

%%% Nets

nets(Nets) ->
    Numbered = lists:zip(lists:seq(0, maps:size(Nets) - 1), lists:sort(maps:to_list(Nets))),
    maps:from_list([{Name, net(Number, name(Name, ?MAX_NET_NAME), Net)}
                    || {Number, {Name, Net}} <- Numbered]).

net(Number, Name, Net) ->
    ok = known_keys({net, Name}, Net, [type, mtu, tcp, subnet, subnet6]),
    Get = fun(Key, Default) -> maps:get(Key, Net, Default) end,
    Own6 = {{16#fd00, Number, 0, 0, 0, 0, 0, 0}, 64},
    #{name => Name,
      type => one_of({net, Name, type}, Get(type, switch), [switch, wire]),
      mtu => number({net, Name, mtu}, Get(mtu, 1500), ?MIN_MTU, ?MAX_MTU),
      tcp => one_of({net, Name, tcp}, Get(tcp, system), [system, cubic, reno, bbr]),
      subnet => subnet({net, Name, subnet}, Get(subnet, {{10, Number, 0, 0}, 24})),
      subnet6 => subnet6({net, Name, subnet6}, Get(subnet6, Own6))}.

subnet6(_, none) -> none;
subnet6(Where, Subnet) -> subnet(Where, Subnet).

subnet(_, {Address, Bits}) when is_tuple(Address), is_integer(Bits) ->
    {Address, Bits};
subnet(Where, Text) ->
    try
        [Address, Bits] = string:split(Text, "/"),
        {ok, Parsed} = inet:parse_strict_address(Address),
        {Parsed, list_to_integer(Bits)}
    catch
        error:_ -> bad(Where, {subnet_expected, "such as \"192.0.2.0/24\"", Text})
    end.

%%% Machines, each with the nets it wants to be on

hosts(Hosts) ->
    [#{name => name(Name, ?MAX_MACHINE_NAME), kind => host,
       attachments => host_attachments(Name, Given)}
     || {Name, Given} <- lists:sort(maps:to_list(Hosts))].

host_attachments(Name, Given) when is_list(Given), Given =/= [] ->
    [attachment(Name, "eth" ++ integer_to_list(Number), first_free, One)
     || {Number, One} <- lists:zip(lists:seq(0, length(Given) - 1), Given)];
host_attachments(Name, Given) ->
    host_attachments(Name, [Given]).

routers(Routers) ->
    [router(name(Name, ?MAX_MACHINE_NAME), Given)
     || {Name, Given} <- lists:sort(maps:to_list(Routers))].

%% The interfaces are called what the rules of netlab_nat call them.
router(Name, Given) ->
    ok = known_keys({router, Name}, Given, [inside, outside, nat, mapping_timeout]),
    #{name => Name, kind => router,
      nat => one_of({router, Name, nat}, maps:get(nat, Given, none), ?NATS),
      mapping_timeout => number({router, Name, mapping_timeout},
                                maps:get(mapping_timeout, Given, ?MAPPING_TIMEOUT), 1, 86_400),
      attachments => [attachment(Name, "lan", ?ROUTER_NUMBER, maps:get(inside, Given, none)),
                      attachment(Name, "wan", first_free, maps:get(outside, Given, none))]}.

attachment(Name, Interface, Number, {Net, Impairment}) when is_atom(Net) ->
    #{interface => Interface, net => Net, number => Number,
      impairment => both_ways({Name, Net}, Impairment)};
attachment(_, Interface, Number, Net) when is_atom(Net) ->
    #{interface => Interface, net => Net, number => Number, impairment => none};
attachment(Name, _, _, Other) ->
    bad({machine, Name}, {net_expected, Other}).

numbered(#{attachments := Attachments} = Machine, Nets, Used) ->
    {Links, Used2} = lists:mapfoldl(fun(Attachment, U) -> link(Machine, Attachment, Nets, U) end,
                                    Used, Attachments),
    {(maps:remove(attachments, Machine))#{links => Links, routes => []}, Used2}.

link(#{name := Name}, #{net := NetName, number := Number} = Attachment, Nets, Used) ->
    is_map_key(NetName, Nets) orelse bad({machine, Name}, {no_such_net, NetName}),
    {Given, Used2} = number_of(Number, NetName, Used),
    {addressed(maps:remove(number, Attachment), maps:get(NetName, Nets), Given), Used2}.

number_of(first_free, Net, Used) ->
    Number = maps:get(Net, Used, ?FIRST_NUMBER),
    {Number, Used#{Net => Number + 1}};
number_of(Number, _, Used) ->
    {Number, Used}.

addressed(Link, #{subnet := {{A, B, C, D}, _}, subnet6 := Subnet6}, Number) ->
    Link#{address => {A, B, C, D + Number}, address6 => address6(Subnet6, Number)}.

address6(none, _) -> none;
address6({Base, _}, Number) -> setelement(8, Base, element(8, Base) + Number).

%% @doc The same plan, with another address for the machine on that net.
-spec readdress(name(), name(), plan()) -> plan().
readdress(Name, NetName, #{nets := Nets, machines := Machines, used := Used} = Plan) ->
    #{Name := #{links := Links} = Machine} = Machines,
    {Number, Used2} = number_of(first_free, NetName, Used),
    Changed = [case Link of
                   #{net := NetName} -> addressed(Link, maps:get(NetName, Nets), Number);
                   _ -> Link
               end || Link <- Links],
    Plan#{machines := Machines#{Name := Machine#{links := Changed}}, used := Used2}.

%%% Ways

%% Out through the router that has this machine inside, and to what plain routers have inside.
routes(#{name := Name} = Machine, #{nets := Nets} = Plan) ->
    Outwards = outward_nets(Machine),
    Others = [Other || #{name := N, kind := router} = Other <- machines(Plan), N =/= Name],
    Out = [ways_out(Router) || Router <- Others, lists:member(net(inside, Router), Outwards)],
    In = [ways_in(Router, maps:get(net(inside, Router), Nets))
          || #{nat := none} = Router <- Others, lists:member(net(outside, Router), Outwards)],
    lists:append(Out ++ In).

outward_nets(#{kind := host, links := Links}) -> [Net || #{net := Net} <- Links];
outward_nets(#{kind := router} = Router) -> [net(outside, Router)].

%% No NAT here translates IPv6.
ways_out(#{nat := none, links := [#{address := V4, address6 := V6}, _]}) ->
    [{?EVERYWHERE, V4} | [{?EVERYWHERE6, V6} || V6 =/= none]];
ways_out(#{links := [#{address := V4}, _]}) ->
    [{?EVERYWHERE, V4}].

ways_in(#{links := [_, #{address := V4, address6 := V6}]},
        #{subnet := Subnet, subnet6 := Subnet6}) ->
    [{Subnet, V4} | [{Subnet6, V6} || Subnet6 =/= none, V6 =/= none]].

net(inside, #{links := [#{net := Net}, _]}) -> Net;
net(outside, #{links := [_, #{net := Net}]}) -> Net.

%% @doc The nets from which a machine can be called: its names are known there, and only there.
-spec visible(name(), plan()) -> [name()].
visible(Name, #{machines := Machines} = Plan) ->
    #{links := Links} = maps:get(Name, Machines),
    visible_from(lists:usort([Net || #{net := Net} <- Links]), Plan).

visible_from(Known, Plan) ->
    Further = [To || #{kind := router} = Router <- machines(Plan),
                     {From, To} <- leads(Router), lists:member(From, Known)],
    case lists:usort(Known ++ Further) of
        Known -> Known;
        More -> visible_from(More, Plan)
    end.

leads(#{nat := none} = Router) ->
    {Inside, Outside} = {net(inside, Router), net(outside, Router)},
    [{Inside, Outside}, {Outside, Inside}];
leads(Router) ->
    [{net(inside, Router), net(outside, Router)}].

%%% Impairments

both_ways(Where, Impairment) ->
    ok = known_keys(Where, Impairment, [up, down | maps:keys(?GOOD)]),
    Both = maps:without([up, down], Impairment),
    #{up => one_way(Where, maps:merge(Both, maps:get(up, Impairment, #{}))),
      down => one_way(Where, maps:merge(Both, maps:get(down, Impairment, #{})))}.

one_way(Where, Impairment) ->
    ok = known_keys(Where, Impairment, maps:keys(?GOOD)),
    maps:map(fun(Key, Value) -> value(Where, Key, Value) end, maps:merge(?GOOD, Impairment)).

value(_, rate, infinity) -> infinity;
value(Where, rate, Value) -> number({Where, rate}, Value, 0.001, 1_000_000);
value(Where, Key, Value) when Key =:= loss; Key =:= reorder -> number({Where, Key}, Value, 0, 1);
value(Where, Key, Value) -> number({Where, Key}, Value, 0, 60_000).

%%% Checks

name(Name, Max) when is_atom(Name) ->
    Text = atom_to_list(Name),
    case re:run(Text, "^[a-z][a-z0-9_]*$") of
        {match, _} when length(Text) =< Max -> Name;
        _ -> bad(Name, {name_expected, "a-z, 0-9 and _", {at_most, Max}})
    end;
name(Other, _) ->
    bad(Other, {name_expected, "an atom"}).

known_keys(Where, Map, Known) when is_map(Map) ->
    case maps:keys(maps:without(Known, Map)) of
        [] -> ok;
        Unknown -> bad(Where, {unknown_keys, Unknown, {known, Known}})
    end;
known_keys(Where, Other, _) ->
    bad(Where, {map_expected, Other}).

one_of(Where, Value, Choices) ->
    case lists:member(Value, Choices) of
        true -> Value;
        false -> bad(Where, {one_of, Choices, got, Value})
    end.

number(_, Value, Min, Max) when is_number(Value), Value >= Min, Value =< Max -> Value;
number(Where, Value, Min, Max) -> bad(Where, {number, Min, Max, got, Value}).

-spec bad(term(), term()) -> no_return().
bad(Where, Why) ->
    throw({bad_scenario, Where, Why}).
