%% @doc What a lab is to look like: a scenario, as a person writes it, is checked and worked out into
%% a plan that names every address and route. Pure, but for reading the file.
-module(netlab_scenario).

-export([names/0, read/2, plan/1, address/3]).

-export_type([scenario/0, plan/0, net/0, machine/0, link/0, name/0, impairment/0]).

-type name() :: atom().
%% delay, jitter and reorder_by in ms; loss and reorder as shares of 1; rate in Mbit/s.
-type impairment() :: #{delay => number(), jitter => number(), loss => number(),
                        reorder => number(), reorder_by => number(), rate => number() | infinity}.
-type attachment() :: name() | {name(), impairment()}.
-type scenario() :: #{nets := #{name() => map()},
                      hosts := #{name() => attachment() | [attachment()]},
                      routers => #{name() => map()}}.

-type net() :: #{name := name(), type := switch | wire, mtu := pos_integer(),
                 subnet := subnet(), subnet6 := subnet() | none}.
-type subnet() :: {inet:ip_address(), Bits :: pos_integer()}.
-type link() :: #{net := name(), interface := string(),
                  address := inet:ip4_address(), address6 := inet:ip6_address() | none,
                  impairment := impairment() | none}.
-type machine() :: #{name := name(), nat := none | nat() | no_router, links := [link()],
                     gateway := inet:ip4_address() | none}.
-type nat() :: full_cone | address_restricted | port_restricted | symmetric | udp_blocked.
-type plan() :: #{nets := #{name() => net()}, machines := #{name() => machine()}}.

%% An interface of a switch is called like the machine behind it, and Linux allows 15 characters.
-define(MAX_NAME, 15).
-define(FIRST_HOST, 11).
%% What IPv6 asks of every link.
-define(MIN_MTU, 1280).
-define(MAX_MTU, 65_535).

%%% Files

%% @doc The scenarios there are, each with its first line of explanation.
-spec names() -> [{name(), string()}].
names() ->
    [{list_to_atom(filename:basename(File, ".scenario")), explanation(File)}
     || File <- lists:sort(filelib:wildcard(filename:join(folder(), "*.scenario")))].

explanation(File) ->
    {ok, Text} = file:read_file(File),
    string:trim(hd(binary:split(Text, <<"\n">>)), leading, "% ").

%% @doc A scenario file is Erlang that ends in a scenario, and finds its options in `Options'.
-spec read(name(), map()) -> {ok, scenario()} | {error, term()}.
read(Name, Options) ->
    File = filename:join(folder(), atom_to_list(Name) ++ ".scenario"),
    case file:script(File, [{'Options', Options}]) of
        {ok, Scenario} -> {ok, Scenario};
        {error, enoent} -> {error, {no_such_scenario, Name, [Known || {Known, _} <- names()]}};
        {error, Reason} -> {error, {bad_scenario, Name, Reason}}
    end.

%% Beside the source, wherever the beam lies.
folder() ->
    Source = proplists:get_value(source, ?MODULE:module_info(compile)),
    filename:join(filename:dirname(Source), "scenarios").

%%% Plans

%% @doc Works out who has which address on which net, and the way out of each.
-spec plan(scenario()) -> {ok, plan()} | {error, {bad_scenario, Where :: term(), Why :: term()}}.
plan(Scenario) ->
    try
        {ok, work_out(Scenario)}
    catch
        throw:{bad_scenario, _, _} = Bad -> {error, Bad}
    end.

work_out(Scenario) ->
    ok = known_keys(scenario, Scenario, [nets, hosts, routers]),
    Nets = nets(maps:get(nets, Scenario, #{})),
    Wanted = hosts(maps:get(hosts, Scenario, #{})),
    Machines = numbered(Wanted, Nets),
    #{nets => Nets, machines => maps:from_list([{Name, M} || #{name := Name} = M <- Machines])}.

nets(Nets) ->
    Numbered = lists:zip(lists:seq(0, maps:size(Nets) - 1), lists:sort(maps:to_list(Nets))),
    maps:from_list([{Name, net(Number, name(Name), Net)} || {Number, {Name, Net}} <- Numbered]).

net(Number, Name, Net) ->
    ok = known_keys({net, Name}, Net, [type, mtu, subnet, subnet6]),
    #{name => Name,
      type => one_of({net, Name, type}, maps:get(type, Net, switch), [switch, wire]),
      mtu => integer({net, Name, mtu}, maps:get(mtu, Net, 1500), ?MIN_MTU, ?MAX_MTU),
      subnet => subnet({net, Name}, maps:get(subnet, Net, {{10, Number, 0, 0}, 24})),
      subnet6 => subnet6({net, Name}, maps:get(subnet6, Net, {{16#fd00, Number, 0, 0, 0, 0, 0, 0}, 64}))}.

subnet6(_, none) -> none;
subnet6(Where, Subnet) -> subnet(Where, Subnet).

subnet(Where, Text) when is_list(Text) ->
    case string:split(Text, "/") of
        [Address, Bits] -> subnet(Where, {parse(Where, Address), list_to_integer(Bits)});
        _ -> bad(Where, {subnet_expected, Text})
    end;
subnet(_, {Address, Bits}) when is_tuple(Address), is_integer(Bits) -> {Address, Bits};
subnet(Where, Other) -> bad(Where, {subnet_expected, Other}).

parse(Where, Text) ->
    case inet:parse_strict_address(Text) of
        {ok, Address} -> Address;
        {error, _} -> bad(Where, {address_expected, Text})
    end.

%% Each machine with the nets it wants to be on.
hosts(Hosts) ->
    [#{name => name(Name), nat => no_router, attachments => attachments(Name, Given)}
     || {Name, Given} <- lists:sort(maps:to_list(Hosts))].

attachments(Name, Given) when is_list(Given) ->
    [attachment(Name, Number, One) || {Number, One} <- lists:zip(lists:seq(0, length(Given) - 1), Given)];
attachments(Name, Given) ->
    attachments(Name, [Given]).

attachment(_, Number, Net) when is_atom(Net) ->
    #{interface => "eth" ++ integer_to_list(Number), net => Net, impairment => none};
attachment(Name, _, Other) ->
    bad({host, Name}, {net_expected, Other}).

%% The n-th machine of a net has the n-th address.
numbered(Machines, Nets) ->
    {Numbered, _} = lists:mapfoldl(fun(Machine, Used) -> numbered(Machine, Nets, Used) end, #{}, Machines),
    Numbered.

numbered(#{attachments := Attachments} = Machine, Nets, Used) ->
    {Links, Used2} = lists:mapfoldl(fun(Attachment, U) -> link(Machine, Attachment, Nets, U) end,
                                    Used, Attachments),
    {(maps:remove(attachments, Machine))#{links => Links, gateway => none}, Used2}.

link(#{name := Name}, #{net := NetName} = Attachment, Nets, Used) ->
    is_map_key(NetName, Nets) orelse bad({machine, Name}, {no_such_net, NetName}),
    Net = maps:get(NetName, Nets),
    Number = maps:get(NetName, Used, ?FIRST_HOST),
    {Attachment#{address => address(Net, inet, Number), address6 => address(Net, inet6, Number)},
     Used#{NetName => Number + 1}}.

%% @doc The address of that number in the net.
-spec address(net(), inet | inet6, pos_integer()) -> inet:ip_address() | none.
address(#{subnet := {{A, B, C, D}, _}}, inet, Number) -> {A, B, C, D + Number};
address(#{subnet6 := none}, inet6, _) -> none;
address(#{subnet6 := {Base, _}}, inet6, Number) -> setelement(8, Base, element(8, Base) + Number).

%%% Checks

name(Name) when is_atom(Name) ->
    Text = atom_to_list(Name),
    case re:run(Text, "^[a-z][a-z0-9_]*$") of
        {match, _} when length(Text) =< ?MAX_NAME -> Name;
        _ -> bad(Name, {name_expected, "a-z, 0-9 and _, up to 15 characters"})
    end;
name(Other) ->
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

integer(_, Value, Min, Max) when is_integer(Value), Value >= Min, Value =< Max -> Value;
integer(Where, Value, Min, Max) -> bad(Where, {integer, Min, Max, got, Value}).

-spec bad(term(), term()) -> no_return().
bad(Where, Why) ->
    throw({bad_scenario, Where, Why}).
