%% Starts nodes for the Common Test suites, each in an operating system process of its own, and ends
%% them. The tests' own node is not distributed: it commands a node over a Unix socket, so that
%% nothing a test does to distribution, or to the node's network, gets between them.
-module(macula_test_node).

-export([start/1, start/2, try_start/2, stop/1, stop_all/0]).
-export([call/2, call/3, call/4, cast/2, cast/4]).
-export([name/1, os_pid/1, output/1, has_said/2, await_said/3, exit_status/2, kill/1, signal/2]).
-export([os_status/2]).
-export([wait_until/1, wait_until/2, unique/1, scratch/1, full/2, free_port/0, free_port/1]).
-export([connect/2, ebins/0, flags/0, cookie/0, erl/0, home/0]).
-export([agent/1]).

-export_type([server/0, options/0]).

-type server() :: pid().
%% name: what stands before the `@', made unique by unique/1. host: what stands behind it. domain:
%% none leaves the node without a name. flags replaces `-proto_dist macula' and its company. within
%% is put before the command: netlab:within/2 puts the node on a host of a lab.
-type options() :: #{name => string(), host => string(), domain => shortnames | longnames | none,
                     args => [string()], env => [{string(), string() | false}],
                     cookie => string() | none, agent => boolean(), flags => [string()],
                     within => [string()]}.

-define(BOOT_MS, 60_000).
-define(CALL_MS, 120_000).
-define(SCOPE, macula_test_nodes).

-record(state, {port :: port() | undefined,
                os_pid :: integer(),
                listen :: gen_tcp:socket() | undefined,
                path :: file:filename(),
                socket :: gen_tcp:socket() | undefined,
                name :: node(),
                said = [] :: [binary()],
                status :: integer() | undefined,
                calls = #{} :: #{reference() => pid()},
                waiters = [] :: [{pid(), reference()}]}).

%%% For the suites

-spec start(string()) -> server().
start(Name) ->
    start(Name, #{}).

%% @doc Starts a node and waits for it to be up; fails with all it said when it does not come up.
-spec start(string(), options()) -> server().
start(Name, Options) ->
    case try_start(Name, Options) of
        {ok, Server} -> Server;
        {error, Said} -> error({node_did_not_start, Name, Said})
    end.

%% @doc The same, for a node that may be right not to come up.
-spec try_start(string(), options()) -> {ok, server()} | {error, binary()}.
try_start(Name, Options) ->
    _ = pg:start(?SCOPE),
    Ref = make_ref(),
    Caller = self(),
    {Server, Monitor} = spawn_monitor(fun() -> init(Caller, Ref, Name, Options) end),
    receive
        {Ref, up} ->
            demonitor(Monitor, [flush]),
            {ok, Server};
        {'DOWN', Monitor, process, Server, {failed, Said}} ->
            {error, Said};
        {'DOWN', Monitor, process, Server, Reason} ->
            error(Reason)
    end.

%% @doc Ends a node for good, however it does. What it said is in the log of the test.
-spec stop(server()) -> ok.
stop(Server) ->
    Monitor = monitor(process, Server),
    Server ! stop,
    receive
        {'DOWN', Monitor, process, Server, _} -> ok
    end.

%% @doc For end_per_testcase.
-spec stop_all() -> ok.
stop_all() ->
    _ = pg:start(?SCOPE),
    lists:foreach(fun stop/1, pg:get_local_members(?SCOPE, nodes)).

%% @doc Runs Fun on the node, in a process of its own, and returns what it does.
-spec call(server(), fun(() -> Result)) -> Result.
call(Server, Fun) ->
    call(Server, Fun, ?CALL_MS).

-spec call(server(), fun(() -> Result), timeout()) -> Result.
call(Server, Fun, Timeout) ->
    call(Server, erlang, apply, [Fun, []], Timeout).

-spec call(server(), module(), atom(), [term()]) -> term().
call(Server, M, F, A) ->
    call(Server, M, F, A, ?CALL_MS).

call(Server, M, F, A, Timeout) ->
    case request(Server, {call, {M, F, A}}, Timeout) of
        {value, Value} -> Value;
        {raised, Class, Reason, Stack} -> erlang:raise(Class, Reason, Stack)
    end.

%% @doc Starts Fun on the node, where its process stays when the call is over.
-spec cast(server(), fun(() -> term())) -> pid().
cast(Server, Fun) ->
    cast(Server, erlang, apply, [Fun, []]).

-spec cast(server(), module(), atom(), [term()]) -> pid().
cast(Server, M, F, A) ->
    call(Server, erlang, spawn, [M, F, A]).

-spec name(server()) -> node().
name(Server) -> request(Server, name, ?CALL_MS).

-spec os_pid(server()) -> integer().
os_pid(Server) -> request(Server, os_pid, ?CALL_MS).

%% @doc A number that the system keeps of a process, or of one of its threads (`PID/task/TID'), in its status.
-spec os_status(string(), string()) -> {ok, integer()} | {error, gone}.
os_status(Process, Field) ->
    case file:read_file(filename:join(["/proc", Process, "status"])) of
        {ok, Status} ->
            {match, [Value]} = re:run(Status, "^" ++ Field ++ ":\\s*([0-9]+)", [multiline, {capture, all_but_first, list}]),
            {ok, list_to_integer(Value)};
        %% The second where it ends while it is read.
        {error, Reason} when Reason =:= enoent; Reason =:= esrch ->
            {error, gone}
    end.

%% @doc All that the node has printed.
-spec output(server()) -> binary().
output(Server) -> request(Server, output, ?CALL_MS).

%% @doc How often the node has said so.
-spec has_said(server(), string() | binary()) -> non_neg_integer().
has_said(Server, Text) ->
    length(binary:matches(output(Server), iolist_to_binary(Text))).

%% @doc Waits for the node to say so.
-spec await_said(server(), string() | binary(), timeout()) -> ok.
await_said(Server, Text, Timeout) ->
    wait_until(fun() -> has_said(Server, Text) > 0 end, Timeout).

%% @doc Waits for the node's end and returns the status it left.
-spec exit_status(server(), timeout()) -> integer().
exit_status(Server, Timeout) -> request(Server, exit_status, Timeout).

%% @doc kill -9: the node has no chance to say goodbye.
-spec kill(server()) -> ok.
kill(Server) ->
    signal(Server, "KILL"),
    _ = exit_status(Server, ?BOOT_MS),
    ok.

-spec signal(server(), string()) -> ok.
signal(Server, Signal) ->
    [] = os:cmd("kill -" ++ Signal ++ " " ++ integer_to_list(os_pid(Server))),
    ok.

-spec connect(server(), server()) -> ok.
connect(A, B) ->
    true = call(A, net_kernel, connect_node, [name(B)]),
    NameA = name(A),
    wait_until(fun() -> lists:member(NameA, call(B, erlang, nodes, [connected])) end).

-spec wait_until(fun(() -> boolean())) -> ok.
wait_until(Fun) ->
    wait_until(Fun, 30_000).

%% @doc A generous bound: what is waited for comes at once or never.
-spec wait_until(fun(() -> boolean()), timeout()) -> ok.
wait_until(Fun, Timeout) ->
    wait_until_(Fun, erlang:monotonic_time(millisecond) + Timeout).

wait_until_(Fun, Deadline) ->
    case Fun() of
        true ->
            ok;
        Other ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({still, Other}),
            timer:sleep(10),
            wait_until_(Fun, Deadline)
    end.

%% @doc A node name that no other case, and no other run on this machine, has.
-spec unique(string()) -> string().
unique(Name) ->
    Name ++ "_" ++ os:getpid() ++ "_" ++ integer_to_list(erlang:unique_integer([positive])).

%% @doc Counts are reduced unless MACULA_TEST_FULL=1.
-spec full(Full, Quick) -> Full | Quick.
full(Full, Quick) ->
    case os:getenv("MACULA_TEST_FULL") of
        "1" -> Full;
        _ -> Quick
    end.

%% @doc A folder of its own in the suite's private one.
-spec scratch(proplists:proplist()) -> file:filename().
scratch(Config) ->
    Dir = filename:join(proplists:get_value(priv_dir, Config), unique("scratch")),
    ok = file:make_dir(Dir),
    Dir.

%% @doc A UDP port that was free a moment ago.
-spec free_port() -> inet:port_number().
free_port() ->
    free_port(inet).

-spec free_port(inet | inet6) -> inet:port_number().
free_port(Family) ->
    {ok, Socket} = gen_udp:open(0, [Family]),
    {ok, Port} = inet:port(Socket),
    ok = gen_udp:close(Socket),
    Port.

-spec flags() -> [string()].
flags() ->
    ["-proto_dist", "macula", "-no_epmd", "-start_epmd", "false"].

-spec ebins() -> [string()].
ebins() ->
    ["-pa" | lists:usort([filename:dirname(code:which(M)) || M <- [macula_nif, ?MODULE, netlab]])].

-spec cookie() -> string().
cookie() -> "macula_test_" ++ os:getpid().

-spec erl() -> string().
erl() ->
    filename:join([code:root_dir(), "bin", "erl"]).

%% @doc Where the nodes of this run keep their keys and their registry: beside the logs.
-spec home() -> file:filename().
home() ->
    {ok, Dir} = file:get_cwd(),
    Home = filename:join(Dir, "macula_home"),
    ok = filelib:ensure_dir(filename:join(Home, "x")),
    Home.

request(Server, Request, Timeout) ->
    Monitor = monitor(process, Server),
    Server ! {self(), Monitor, Request},
    receive
        {Monitor, Reply} ->
            demonitor(Monitor, [flush]),
            Reply;
        {'DOWN', Monitor, process, Server, Reason} ->
            error({node_is_gone, Reason})
    after Timeout ->
        demonitor(Monitor, [flush]),
        error({no_answer, Request})
    end.

%%% The process that stands for a node

init(Caller, Ref, Name, Options) ->
    ok = pg:join(?SCOPE, nodes, self()),
    _ = monitor(process, Caller),
    HasAgent = maps:get(agent, Options, true),
    Path = agent_socket(),
    {ok, Listen} = gen_tcp:listen(0, [binary, {packet, 4}, {active, true}, {ifaddr, {local, Path}}]),
    Host = maps:get(host, Options, "localhost"),
    Node = Name ++ "@" ++ Host,
    Args = ["-noinput", "+Bd"]
        ++ maps:get(flags, Options, flags())
        ++ ebins()
        ++ domain(maps:get(domain, Options, shortnames), Node)
        ++ cookie(maps:get(cookie, Options, cookie()))
        ++ maps:get(args, Options, [])
        ++ ["-run", ?MODULE_STRING, "agent", Path],
    [Program | AllArgs] = maps:get(within, Options, []) ++ [erl() | Args],
    Port = open_port({spawn_executable, Program},
                     [{args, AllArgs}, {env, env(maps:get(env, Options, []))},
                      exit_status, stderr_to_stdout, binary, hide]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    State = #state{port = Port, os_pid = OsPid, listen = Listen, path = Path,
                   name = list_to_atom(Node)},
    {ok, Acceptor} = accept_later(Listen, HasAgent),
    boot(Caller, Ref, Acceptor, State).

%% Short, whatever the logs are called: the path of a Unix socket has 107 characters at most.
agent_socket() ->
    filename:join("/tmp", unique("macula_test") ++ ".sock").

%% Nothing of this user's own, and no dump of a node that is killed.
env(More) ->
    Home = home(),
    Default = [{"ERL_CRASH_DUMP_SECONDS", "0"}, {"MACULA_DIST_PORT", false},
               {"MACULA_HOME", Home}, {"XDG_RUNTIME_DIR", Home}],
    [Variable || {Name, _} = Variable <- Default, not lists:keymember(Name, 1, More)] ++ More.

cookie(none) -> [];
cookie(Cookie) -> ["-setcookie", Cookie].

domain(shortnames, Node) -> ["-sname", Node];
domain(longnames, Node) -> ["-name", Node];
domain(none, _) -> [].

accept_later(_, false) ->
    {ok, none};
accept_later(Listen, true) ->
    Self = self(),
    {ok, spawn_link(fun() ->
                       {ok, Socket} = gen_tcp:accept(Listen),
                       ok = gen_tcp:controlling_process(Socket, Self),
                       Self ! {connected, Socket}
               end)}.

boot(Caller, Ref, none, State) ->
    Caller ! {Ref, up},
    loop(State);
boot(Caller, Ref, Acceptor, #state{port = Port, said = Said} = State) ->
    receive
        {connected, Socket} ->
            ok = file:delete(State#state.path),
            Caller ! {Ref, up},
            loop(State#state{socket = Socket});
        {Port, {data, Data}} ->
            boot(Caller, Ref, Acceptor, State#state{said = [Data | Said]});
        {Port, {exit_status, _}} ->
            unlink(Acceptor),
            exit(Acceptor, kill),
            _ = file:delete(State#state.path),
            exit({failed, text(State)});
        {'DOWN', _, process, Caller, _} ->
            finish(State);
        stop ->
            finish(State)
    after ?BOOT_MS ->
        kill_process(State),
        exit({failed, <<"not up in time: ", (text(State))/binary>>})
    end.

loop(#state{port = Port, socket = Socket, said = Said, calls = Calls} = State) ->
    receive
        {tcp, Socket, Data} ->
            {IdText, Result} = binary_to_term(Data),
            Id = binary_to_term(IdText),
            case maps:take(Id, Calls) of
                {Pid, Left} ->
                    Pid ! {Id, Result},
                    loop(State#state{calls = Left});
                error ->
                    loop(State)
            end;
        {tcp_closed, Socket} ->
            loop(State);
        {tcp_error, Socket, _} ->
            loop(State);
        {Port, {data, Data}} ->
            loop(State#state{said = [Data | Said]});
        {Port, {exit_status, Status}} ->
            [Pid ! {Id, Status} || {Pid, Id} <- State#state.waiters],
            [Pid ! {Id, {raised, exit, node_ended, []}} || {Id, Pid} <- maps:to_list(Calls)],
            loop(State#state{status = Status, waiters = [], calls = #{}});
        {Pid, Id, {call, MFA}} when State#state.status =:= undefined ->
            %% As text: a node without a name would take our reference for its own.
            _ = gen_tcp:send(Socket, term_to_binary({term_to_binary(Id), MFA})),
            loop(State#state{calls = Calls#{Id => Pid}});
        {Pid, Id, {call, _}} ->
            Pid ! {Id, {raised, exit, node_ended, []}},
            loop(State);
        {Pid, Id, exit_status} when State#state.status =:= undefined ->
            loop(State#state{waiters = [{Pid, Id} | State#state.waiters]});
        {Pid, Id, exit_status} ->
            Pid ! {Id, State#state.status},
            loop(State);
        {Pid, Id, name} ->
            Pid ! {Id, State#state.name},
            loop(State);
        {Pid, Id, os_pid} ->
            Pid ! {Id, State#state.os_pid},
            loop(State);
        {Pid, Id, output} ->
            Pid ! {Id, text(State)},
            loop(State);
        {'DOWN', _, process, _, _} ->
            %% The test is over, and did not say so.
            finish(State);
        stop ->
            finish(State)
    end.

-spec finish(#state{}) -> no_return().
finish(State) ->
    kill_process(State),
    ct:log("~ts said:~n~ts", [State#state.name, text(State)]),
    exit(normal).

kill_process(#state{status = undefined, port = Port, os_pid = OsPid, path = Path}) ->
    _ = file:delete(Path),
    _ = os:cmd("kill -9 " ++ integer_to_list(OsPid)),
    receive
        {Port, {exit_status, _}} -> ok
    after 10_000 -> ok
    end;
kill_process(_) ->
    ok.

text(#state{said = Said}) ->
    iolist_to_binary(lists:reverse(Said)).

%%% On the node

%% @doc Does what the tests' node says, until that is gone.
-spec agent([string()]) -> ok.
agent([Path]) ->
    Self = self(),
    Agent = spawn(fun() -> agent_init(Self, Path) end),
    receive
        {Agent, ready} -> ok
    end.

agent_init(Starter, Path) ->
    register(?MODULE, self()),
    _ = erlang:system_monitor(self(), [{long_schedule, 50}]),
    {ok, Socket} = gen_tcp:connect({local, Path}, 0, [local, binary, {packet, 4}, {active, true}]),
    Starter ! {self(), ready},
    agent_loop(Socket).

agent_loop(Socket) ->
    receive
        {tcp, Socket, Data} ->
            {Id, MFA} = binary_to_term(Data),
            spawn(fun() -> agent_call(Socket, Id, MFA) end),
            agent_loop(Socket);
        {monitor, _, long_schedule, _} = Event ->
            note_long_schedule(Event),
            agent_loop(Socket);
        {tcp_closed, Socket} ->
            halt(1, [{flush, false}]);
        _ ->
            agent_loop(Socket)
    end.

agent_call(Socket, Id, {M, F, A}) ->
    Result = try
                 {value, apply(M, F, A)}
             catch
                 Class:Reason:Stack -> {raised, Class, Reason, Stack}
             end,
    gen_tcp:send(Socket, term_to_binary({Id, Result})).

%% In the node's own output, so in the log of the test, and beside the native call times.
note_long_schedule({monitor, Who, long_schedule, Info}) ->
    Event = io_lib:format("long_schedule ~0p ~0p~n", [Who, Info]),
    io:put_chars(user, Event),
    case os:getenv("MACULA_CALL_TIMES") of
        false -> ok;
        Dir -> file:write_file(filename:join(Dir, os:getpid() ++ ".long_schedule"), Event, [append])
    end.
