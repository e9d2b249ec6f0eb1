%% @doc The network lab: hosts, switches, routers and bad links as a scenario describes them, in
%% network namespaces of this machine. Several labs may run at once, and each is removed when it is
%% stopped, or when the VM that started it ends, however it ends.
%%
%% ```
%% Lab = netlab:start(lan, #{hosts => 5}),
%% {0, _} = netlab:exec(Lab, a, ["ping", "-c", "1", "b"]),
%% ok = netlab:stop(Lab).
%% '''
%%
%% Needs root on Linux: {@link requires/0} says what is missing. docs/lab.md says more.
-module(netlab).
-behaviour(gen_server).

-export([requires/0, scenarios/0, start/1, start/2, stop/1, stop_all/0, stop_all/1]).
-export([id/1, hosts/1, routers/1, address/2, address/3, within/2, exec/3, netns/2]).
-export([change/2, counters/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([lab/0, change/0, options/0]).

-type lab() :: pid().
-type name() :: netlab_scenario:name().
%% A machine stands for its first link; a router's first link is its outer one.
-type link() :: name() | {name(), Net :: name()}.
-type change() :: {cut | heal, link()}
                | {set, link(), netlab_scenario:impairment()}
                | {readdress, link()}
                | {rebind, Router :: name()}
                | {pause | resume, name()}.
%% The scenario's own, and: seed, which decides what bad links do (1); capture, a folder for packet
%% captures, which stop_all/1 keeps when the test has failed.
-type options() :: #{seed => term(), capture => file:filename(), atom() => term()}.

-define(SCOPE, netlab).
-define(KEEPER_MS, 60_000).
-define(TOOLS, ["ip", "nft", "conntrack", "sysctl", "tcpdump", "unshare"]).

-record(state, {id :: string(),
                keeper :: port(),
                plan :: netlab_scenario:plan(),
                bad_wires = #{} :: #{{name(), name()} => netlab_link:wire()},
                generations = #{} :: #{name() => pos_integer()},
                capture :: file:filename() | undefined}).

%%% For the users of a lab

%% @doc Whether labs can run here, else why not: for `{skip, Why}' in a test suite.
-spec requires() -> ok | {skip, string()}.
requires() ->
    case [Why || {Why, Has} <- requirements(), not Has()] of
        [] -> ok;
        [Why | _] -> {skip, "the network lab needs " ++ Why}
    end.

requirements() ->
    [{"Linux", fun() -> os:type() =:= {unix, linux} end},
     {"root", fun() -> string:trim(os:cmd("id -u")) =:= "0" end}]
        ++ [{Tool ++ " (./dev setup)", fun() -> netlab_os:is_installed(Tool) end} || Tool <- ?TOOLS]
        ++ [{"cargo", fun netlab_os:has_rust_programs/0}]
        %% In a container root may have neither.
        ++ [{"network namespaces", fun() -> succeeds(["unshare", "-n", "true"]) end},
            {"/dev/net/tun", fun() -> succeeds(["test", "-c", "/dev/net/tun"]) end}].

succeeds(Command) ->
    {Status, _} = netlab_os:try_run(Command),
    Status =:= 0.

%% @doc The scenarios there are, each with some lines about it.
-spec scenarios() -> [{name(), [string()]}].
scenarios() ->
    netlab_scenario:names().

-spec start(name() | netlab_scenario:scenario()) -> lab().
start(Scenario) ->
    start(Scenario, #{}).

%% @doc Builds a lab: a named scenario with its options, or one of your own. Fails when it cannot.
-spec start(name() | netlab_scenario:scenario(), options()) -> lab().
start(Name, Options) when is_atom(Name) ->
    start(checked(netlab_scenario:read(Name, maps:without([seed, capture], Options))), Options);
start(Scenario, Options) ->
    Plan = checked(netlab_scenario:plan(Scenario)),
    _ = pg:start(?SCOPE),
    case gen_server:start(?MODULE, {Plan, Options}, [{timeout, infinity}]) of
        {ok, Lab} -> Lab;
        {error, Reason} -> error({lab_did_not_start, Reason})
    end.

checked({ok, Checked}) -> Checked;
checked({error, Reason}) -> error(Reason).

%% @doc Removes the lab, every process in it, and its captures.
-spec stop(lab()) -> ok.
stop(Lab) ->
    ok = gen_server:call(Lab, forget_captures, infinity),
    gen_server:stop(Lab, normal, infinity).

%% @doc Stops all labs of this VM.
-spec stop_all() -> ok.
stop_all() ->
    lists:foreach(fun stop/1, labs()).

%% @doc The same for end_per_testcase: the captures of a failed test are kept.
-spec stop_all(Config :: [tuple()]) -> ok.
stop_all(Config) ->
    case proplists:get_value(tc_status, Config, ok) of
        ok -> stop_all();
        _ -> lists:foreach(fun(Lab) -> gen_server:stop(Lab, normal, infinity) end, labs())
    end.

%% pg notices a little later that one has gone.
labs() ->
    _ = pg:start(?SCOPE),
    [Lab || Lab <- pg:get_local_members(?SCOPE, labs), is_process_alive(Lab)].

%% @doc What the names of the lab's namespaces begin with.
-spec id(lab()) -> string().
id(Lab) ->
    ask(Lab, id).

%% @doc The hosts of the lab, without its routers.
-spec hosts(lab()) -> [name()].
hosts(Lab) ->
    ask(Lab, {machines, host}).

-spec routers(lab()) -> [name()].
routers(Lab) ->
    ask(Lab, {machines, router}).

-spec address(lab(), link()) -> inet:ip4_address().
address(Lab, Link) ->
    address(Lab, Link, inet).

-spec address(lab(), link(), inet | inet6) -> inet:ip_address() | none.
address(Lab, Link, Family) ->
    ask(Lab, {address, Link, Family}).

%% @doc What to put before a command so that it runs on that machine.
-spec within(lab(), name()) -> [string()].
within(Lab, Name) ->
    ask(Lab, {within, Name}).

%% @doc Runs a command on a machine to its end.
-spec exec(lab(), name(), Command :: [string()]) -> {Status :: integer(), Output :: binary()}.
exec(Lab, Name, Command) ->
    netlab_os:try_run(within(Lab, Name) ++ Command).

%% @doc The option with which gen_udp and gen_tcp open a socket of this VM on that machine.
-spec netns(lab(), name()) -> {netns, file:filename()}.
netns(Lab, Name) ->
    ask(Lab, {netns, Name}).

%% @doc Changes the lab while it runs:
%% <dl>
%% <dt>`{cut, Link}', `{heal, Link}'</dt>
%% <dd>Nothing passes, and no interface shows it; all is well again.</dd>
%% <dt>`{set, Link, Impairment}'</dt>
%% <dd>Makes a link this bad from now on. Needs one whose scenario gives it an impairment, be it
%% `#{}'. Packets on their way stay as they were.</dd>
%% <dt>`{readdress, Link}'</dt>
%% <dd>A new address in place of the old one; a NAT forgets its mappings as well.</dd>
%% <dt>`{rebind, Router}'</dt>
%% <dd>A NAT forgets its mappings: each flow gets another outer port with its next packet.</dd>
%% <dt>`{pause, Name}', `{resume, Name}'</dt>
%% <dd>SIGSTOP and SIGCONT to all processes of that machine.</dd>
%% </dl>
-spec change(lab(), change()) -> ok.
change(Lab, Change) ->
    ask(Lab, {change, Change}).

%% @doc What a bad link did so far to packets from (`up') and to the machine.
-spec counters(lab(), link()) -> #{up := Counters, down := Counters}
              when Counters :: #{passed | lost | queue_full | late => non_neg_integer()}.
counters(Lab, Link) ->
    ask(Lab, {counters, Link}).

ask(Lab, Request) ->
    case gen_server:call(Lab, Request, infinity) of
        {ok, Answer} -> Answer;
        {error, Reason} -> error(Reason)
    end.

%%% The process that owns a lab

init({Plan, Options}) ->
    process_flag(trap_exit, true),
    Id = new_id(),
    State = #state{id = Id, keeper = start_keeper(Id), plan = Plan,
                   capture = maps:get(capture, Options, undefined)},
    try build(State, maps:get(seed, Options, 1)) of
        Built ->
            ok = pg:join(?SCOPE, labs, self()),
            {ok, Built}
    catch
        error:Reason:Stack ->
            ok = remove(State),
            {stop, {Reason, Stack}}
    end.

%% keeper.sh knows what it is made of.
new_id() ->
    OsPid = os:getpid(),
    Number = integer_to_list(erlang:unique_integer([positive])),
    lists:append(lists:join("-", ["netlab", OsPid, netlab_os:start_time(OsPid), Number])).

start_keeper(Id) ->
    Script = filename:join(netlab_os:source_folder(), "keeper.sh"),
    Keeper = open_port({spawn_executable, netlab_os:executable("sh")},
                       [{args, [Script, "keep", Id]}, {line, 1024}, exit_status, stderr_to_stdout,
                        hide]),
    receive
        {Keeper, {data, {eol, "ready"}}} -> Keeper;
        {Keeper, Other} -> error({keeper_did_not_start, Other})
    after ?KEEPER_MS ->
        error(keeper_did_not_start)
    end.

build(#state{id = Id, plan = #{machines := Machines} = Plan} = State, Seed) ->
    All = netlab_scenario:machines(Plan),
    ok = netlab_space:batch(Id, [["netns add ", netlab_space:namespace(Id, Name)]
                                 || Name <- maps:keys(Machines) ++ netlab_wiring:switches(Plan)]),
    ok = lists:foreach(fun(Machine) -> netlab_machine:prepare(Id, Machine, Plan) end, All),
    ok = netlab_wiring:add_switches(Id, Plan),
    BadWires = netlab_wiring:connect(Id, Plan, Seed),
    ok = netlab_wiring:raise_switches(Id, Plan),
    ok = lists:foreach(fun(Machine) -> netlab_machine:configure(Id, Machine, Plan) end, All),
    ok = lists:foreach(fun(Machine) -> netlab_machine:load_rules(Id, Machine, 0) end, All),
    ok = start_captures(State),
    State#state{bad_wires = BadWires}.

start_captures(#state{capture = undefined}) ->
    ok;
start_captures(#state{id = Id, capture = Folder, plan = #{machines := Machines}}) ->
    lists:foreach(fun(Name) -> netlab_capture:start(Id, Name, Folder) end, maps:keys(Machines)).

handle_call(forget_captures, _, #state{capture = undefined} = State) ->
    {reply, ok, State};
handle_call(forget_captures, _, #state{capture = Folder, plan = #{machines := Machines}} = State) ->
    ok = lists:foreach(fun(Name) -> netlab_capture:delete(Name, Folder) end, maps:keys(Machines)),
    {reply, ok, State};
handle_call(Request, _, State) ->
    try answer(Request, State) of
        {Answer, Changed} -> {reply, {ok, Answer}, Changed}
    catch
        throw:Reason -> {reply, {error, Reason}, State}
    end.

answer(id, State) ->
    {State#state.id, State};
answer({machines, Kind}, #state{plan = Plan} = State) ->
    {[Name || #{name := Name, kind := K} <- netlab_scenario:machines(Plan), K =:= Kind], State};
answer({within, Name}, State) ->
    #{} = machine(Name, State),
    {netlab_space:exec(State#state.id, Name), State};
answer({netns, Name}, State) ->
    #{} = machine(Name, State),
    {{netns, "/run/netns/" ++ netlab_space:namespace(State#state.id, Name)}, State};
answer({address, Link, Family}, State) ->
    {Name, Net} = attachment(Link, State),
    #{links := Links} = machine(Name, State),
    [Address] = [case Family of inet -> V4; inet6 -> V6 end
                 || #{net := N, address := V4, address6 := V6} <- Links, N =:= Net],
    {Address, State};
answer({counters, Link}, State) ->
    {netlab_link:counters(bad_wire(Link, State)), State};
answer({change, Change}, State) ->
    {ok, changed(Change, State)}.

changed({cut, Link}, State) ->
    ok = netlab_wiring:cut(State#state.id, wire(Link, State)),
    State;
changed({heal, Link}, State) ->
    ok = netlab_wiring:heal(State#state.id, wire(Link, State)),
    State;
changed({set, Link, Impairment}, State) ->
    Wire = bad_wire(Link, State),
    case netlab_scenario:impairment({set, Link}, Impairment) of
        {ok, Whole} -> ok = netlab_link:set(Wire, Whole);
        {error, Reason} -> throw(Reason)
    end,
    State;
changed({readdress, Link}, #state{id = Id, plan = Plan} = State) ->
    {Name, Net} = attachment(Link, State),
    Changed = State#state{plan = netlab_scenario:readdress(Name, Net, Plan)},
    ok = netlab_machine:readdress(Id, machine(Name, Changed), Net, Changed#state.plan),
    forget_mappings(Name, maps:get(Name, State#state.generations, 0), Changed);
changed({rebind, Name}, #state{generations = Generations} = State) ->
    case machine(Name, State) of
        #{kind := router, nat := Nat} when Nat =/= none -> ok;
        _ -> throw({not_a_nat, Name})
    end,
    forget_mappings(Name, maps:get(Name, Generations, 0) + 1, State);
changed({pause, Name}, State) ->
    signal("STOP", Name, State);
changed({resume, Name}, State) ->
    signal("CONT", Name, State);
changed(Other, _) ->
    throw({unknown_change, Other}).

forget_mappings(Name, Generation, #state{id = Id, generations = Generations} = State) ->
    ok = netlab_machine:load_rules(Id, machine(Name, State), Generation),
    State#state{generations = Generations#{Name => Generation}}.

signal(Signal, Name, #state{id = Id} = State) ->
    #{} = machine(Name, State),
    ok = signal_all(Signal, netlab_space:namespace(Id, Name), []),
    State.

%% Until no process is left that was started meanwhile. One that has ended meanwhile is no fault.
signal_all(Signal, Namespace, Done) ->
    Pids = string:lexemes(binary_to_list(netlab_os:run(["ip", "netns", "pids", Namespace])), "\n"),
    case Pids -- Done of
        [] ->
            ok;
        New ->
            _ = netlab_os:try_run(["kill", "-" ++ Signal | New]),
            signal_all(Signal, Namespace, Done ++ New)
    end.

machine(Name, #state{plan = #{machines := Machines}}) ->
    case Machines of
        #{Name := Machine} -> Machine;
        _ -> throw({no_such_machine, Name, maps:keys(Machines)})
    end.

attachment({Name, Net}, State) ->
    #{links := Links} = machine(Name, State),
    case [N || #{net := N} <- Links, N =:= Net] of
        [Net] -> {Name, Net};
        [] -> throw({no_such_link, Name, Net, [N || #{net := N} <- Links]})
    end;
attachment(Name, State) ->
    case machine(Name, State) of
        #{kind := host, links := [#{net := Net} | _]} -> {Name, Net};
        #{kind := router, links := [_, #{net := Net}]} -> {Name, Net}
    end.

wire(Link, #state{plan = Plan} = State) ->
    {Name, Net} = attachment(Link, State),
    netlab_wiring:find(Name, Net, Plan).

bad_wire(Link, #state{bad_wires = BadWires} = State) ->
    #{machine := Name, net := Net} = wire(Link, State),
    case BadWires of
        #{{Name, Net} := BadWire} -> BadWire;
        _ -> throw({not_impaired, Link, "give it an impairment in the scenario, #{} at least"})
    end.

handle_cast(_, State) ->
    {noreply, State}.

%% Without its links or its keeper there is no lab any more.
handle_info({Port, {exit_status, Status}}, #state{keeper = Keeper, bad_wires = BadWires} = State) ->
    case [Wire || {Wire, P} <- [{keeper, Keeper} | maps:to_list(BadWires)], P =:= Port] of
        [] -> {noreply, State};
        [Wire] -> {stop, {ended, Wire, Status}, State}
    end;
handle_info(_, State) ->
    {noreply, State}.

terminate(_, State) ->
    remove(State).

remove(#state{keeper = Keeper}) ->
    %% It may be gone already.
    try port_command(Keeper, "done\n") catch error:badarg -> true end,
    receive
        {Keeper, {exit_status, 0}} -> ok
    after ?KEEPER_MS ->
        error(keeper_did_not_finish)
    end.
