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
%% Needs root on Linux: {@link requires/0} says what is missing.
-module(netlab).
-behaviour(gen_server).

-export([requires/0, scenarios/0, start/1, start/2, stop/1, stop_all/0]).
-export([exec/3, within/2, hosts/1, address/2, address/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([lab/0]).

-type lab() :: pid().
-type host() :: netlab_scenario:name().

-define(SCOPE, netlab).
-define(KEEPER_MS, 60_000).

-record(state, {id :: string(),
                plan :: netlab_scenario:plan(),
                keeper :: port()}).

%%% For the users of a lab

%% @doc Whether labs can run here, else why not: for `{skip, Why}' in a test suite.
-spec requires() -> ok | {skip, string()}.
requires() ->
    Missing = [Tool || Tool <- ["ip", "nft", "sysctl"], os:find_executable(Tool) =:= false],
    case {os:type(), string:trim(os:cmd("id -u")), Missing} of
        {{unix, linux}, "0", []} -> ok;
        {{unix, linux}, "0", _} -> {skip, "the network lab needs " ++ lists:join(", ", Missing) ++ ": ./dev setup"};
        {{unix, linux}, _, _} -> {skip, "the network lab needs root"};
        {_, _, _} -> {skip, "the network lab needs Linux"}
    end.

%% @doc The scenarios there are, each with a line about it.
-spec scenarios() -> [{atom(), string()}].
scenarios() ->
    netlab_scenario:names().

-spec start(atom() | netlab_scenario:scenario()) -> lab().
start(Scenario) ->
    start(Scenario, #{}).

%% @doc Builds a lab: a named scenario with its options, or one of your own. Fails when it cannot.
-spec start(atom() | netlab_scenario:scenario(), map()) -> lab().
start(Scenario, Options) ->
    Plan = plan(Scenario, Options),
    _ = pg:start(?SCOPE),
    case gen_server:start(?MODULE, Plan, []) of
        {ok, Lab} -> Lab;
        {error, Reason} -> error({lab_did_not_start, Reason})
    end.

plan(Name, Options) when is_atom(Name) ->
    {ok, Scenario} = checked(netlab_scenario:read(Name, Options)),
    plan(Scenario, Options);
plan(Scenario, _) ->
    {ok, Plan} = checked(netlab_scenario:plan(Scenario)),
    Plan.

checked({ok, _} = Ok) -> Ok;
checked({error, Reason}) -> error(Reason).

%% @doc Removes the lab, and kills every process in it.
-spec stop(lab()) -> ok.
stop(Lab) ->
    gen_server:stop(Lab, normal, ?KEEPER_MS).

%% @doc For end_per_testcase.
-spec stop_all() -> ok.
stop_all() ->
    _ = pg:start(?SCOPE),
    lists:foreach(fun stop/1, pg:get_local_members(?SCOPE, labs)).

%% @doc Runs a command on a host to its end.
-spec exec(lab(), host(), Command :: [string()]) -> {Status :: integer(), Output :: binary()}.
exec(Lab, Host, Command) ->
    netlab_os:try_run(within(Lab, Host) ++ Command).

%% @doc What to put before a command so that it runs on that host.
-spec within(lab(), host()) -> [string()].
within(Lab, Host) ->
    ask(Lab, {within, Host}).

%% @doc The hosts of the lab, without its routers.
-spec hosts(lab()) -> [host()].
hosts(Lab) ->
    ask(Lab, hosts).

-spec address(lab(), host()) -> inet:ip4_address().
address(Lab, Host) ->
    address(Lab, Host, inet).

%% @doc The address of a host's first interface.
-spec address(lab(), host(), inet | inet6) -> inet:ip_address() | none.
address(Lab, Host, Family) ->
    ask(Lab, {address, Host, Family}).

ask(Lab, Request) ->
    case gen_server:call(Lab, Request, infinity) of
        {ok, Answer} -> Answer;
        {error, Reason} -> error(Reason)
    end.

%%% The process that owns a lab

init(Plan) ->
    process_flag(trap_exit, true),
    Id = id(),
    State = #state{id = Id, plan = Plan, keeper = start_keeper(Id)},
    try netlab_build:build(Id, Plan) of
        ok ->
            ok = pg:join(?SCOPE, labs, self()),
            {ok, State}
    catch
        error:Reason:Stack ->
            ok = remove(State),
            {stop, {Reason, Stack}}
    end.

%% keeper.sh takes it apart again.
id() ->
    OsPid = os:getpid(),
    lists:append(lists:join("-", ["netlab", OsPid, netlab_os:start_time(OsPid),
                                  integer_to_list(erlang:unique_integer([positive]))])).

start_keeper(Id) ->
    Source = proplists:get_value(source, ?MODULE:module_info(compile)),
    Script = filename:join(filename:dirname(Source), "keeper.sh"),
    Keeper = open_port({spawn_executable, os:find_executable("sh")},
                       [{args, [Script, "keep", Id]}, {line, 1024}, exit_status, stderr_to_stdout, hide]),
    receive
        {Keeper, {data, {eol, "ready"}}} -> Keeper;
        {Keeper, Other} -> error({keeper_did_not_start, Other})
    after ?KEEPER_MS ->
        error(keeper_did_not_start)
    end.

handle_call({within, Host}, _, State) ->
    {reply, with_host(Host, State, fun(_) -> netlab_build:exec(State#state.id, Host) end), State};
handle_call({address, Host, Family}, _, State) ->
    {reply, with_host(Host, State, fun(Machine) -> first_address(Machine, Family) end), State};
handle_call(hosts, _, #state{plan = #{machines := Machines}} = State) ->
    {reply, {ok, [Name || #{name := Name, nat := no_router} <- maps:values(Machines)]}, State}.

with_host(Host, #state{plan = #{machines := Machines}}, Fun) ->
    case Machines of
        #{Host := Machine} -> {ok, Fun(Machine)};
        _ -> {error, {no_such_host, Host, maps:keys(Machines)}}
    end.

first_address(#{links := [#{address := Address} | _]}, inet) -> Address;
first_address(#{links := [#{address6 := Address} | _]}, inet6) -> Address.

handle_cast(_, State) ->
    {noreply, State}.

handle_info({Keeper, {exit_status, Status}}, #state{keeper = Keeper} = State) ->
    {stop, {keeper_ended, Status}, State};
handle_info(_, State) ->
    {noreply, State}.

terminate(_, State) ->
    remove(State).

remove(#state{keeper = Keeper}) ->
    _ = catch port_command(Keeper, "done\n"),
    receive
        {Keeper, {exit_status, 0}} -> ok
    after ?KEEPER_MS ->
        error(keeper_did_not_finish)
    end.
