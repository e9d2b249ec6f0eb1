%% One run of ct_run over one carrier: with its flags for every node that a case starts, a time
%% limit, and nothing of it left behind.
-module(otp_suites_run).

-export([run/1]).

-export_type([options/0, carrier/0]).

%% relay: macula, where every node reaches others through a relay only.
-type carrier() :: inet_tcp | macula | relay.
-type options() :: #{carrier := carrier(), ebin := file:filename(), suite := module(),
                     cases := all | [{Group :: atom(), Case :: atom()}],
                     paths := [file:filename()], skip := [atom()],
                     examples := [file:filename()], logs := file:filename(), seconds := pos_integer()}.

%% Twice the encryption and four times the packets, on the same processors.
-define(RELAY_PATIENCE, 3).

%% In the environment of every process of the run, whatever session or process group it moves to.
-define(MARK, "MACULA_OTP_SUITES_RUN").

%% @doc Runs a suite until it ends or its time is over, and says which.
-spec run(options()) -> string().
run(#{logs := Logs, seconds := Seconds} = Options) ->
    ok = fresh(Logs),
    Mark = os:getpid() ++ "." ++ integer_to_list(erlang:unique_integer([positive])),
    Relay = relay(Mark, Options),
    Port = open_port({spawn_executable, os:find_executable("ct_run")},
                     [{args, args(Options)}, {env, env(Mark, Options) ++ through(Relay)}, {cd, Logs},
                      exit_status, stderr_to_stdout, binary, hide]),
    {ok, Output} = file:open(filename:join(Logs, "output"), [write, raw, delayed_write]),
    Started = erlang:monotonic_time(second),
    Limit = Seconds * patience(Options) * 1_000,
    Ended = follow(Port, Output, erlang:start_timer(Limit, self(), over)),
    ok = file:close(Output),
    Took = erlang:monotonic_time(second) - Started,
    Carried = carried(Relay),
    kill_marked(Mark),
    io_lib:format("~ts after ~b s~ts", [Ended, Took, Carried]).

relay(Mark, #{carrier := relay, ebin := Ebin} = Options) ->
    otp_suites_relay:start(Ebin, env(Mark, Options));
relay(_, _) ->
    none.

%% Joined before the first dial, and no other way even to nodes beside it.
through(none) -> [{"MACULA_RELAYS", false}, {"MACULA_DIST_MODE", false}];
through(Relay) -> [{"MACULA_RELAYS", otp_suites_relay:url(Relay)}, {"MACULA_DIST_MODE", "relay"}].

carried(none) -> "";
carried(Relay) -> [", through the relay: ", otp_suites_relay:stop(Relay)].

fresh(Dir) ->
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    ok = file:del_dir_r(Dir),
    filelib:ensure_dir(filename:join([Dir, "home", "x"])).

%% A specification, since only there cases can be left out.
args(#{paths := Paths, logs := Logs} = Options) ->
    Spec = filename:join(Logs, "suite.spec"),
    Terms = [{multiply_timetraps, patience(Options)} | spec(Options)],
    ok = file:write_file(Spec, [io_lib:format("~tp.~n", [Term]) || Term <- Terms]),
    ["-noinput", "-no_auto_compile", "-logdir", Logs, "-spec", Spec, "-pa" | Paths].

%% Cases that send as much as they can have time limits made for a direct connection.
patience(#{carrier := relay}) -> ?RELAY_PATIENCE;
patience(_) -> 1.

spec(#{suite := Suite, cases := all, skip := Skip, paths := Paths}) ->
    Dir = lists:last(Paths),
    [{suites, Dir, Suite}
     | [{skip_cases, Dir, Suite, Skip, "test/otp/exceptions"} || Skip =/= []]];
spec(#{suite := Suite, cases := Cases, paths := Paths}) ->
    [case Group of
         none -> {cases, lists:last(Paths), Suite, Case};
         _ -> {groups, lists:last(Paths), Suite, Group, {cases, [Case]}}
     end || {Group, Case} <- Cases].

%% A home, and with it a cookie, keys and a registry of nodes, of its own. So has epmd a port: what
%% asks for it over macula finds none, so nothing can pass over TCP by mistake.
env(Mark, #{logs := Logs} = Options) ->
    Home = filename:join(Logs, "home"),
    [{?MARK, Mark}, {"HOME", Home}, {"XDG_RUNTIME_DIR", Home}, {"XDG_CONFIG_HOME", false},
     {"MACULA_HOME", false}, {"MACULA_DIST_PORT", false}, {"ERL_LIBS", false},
     {"ERL_FLAGS", false}, {"ERL_ZFLAGS", false}, {"ERL_CRASH_DUMP_SECONDS", "0"},
     {"ERL_EPMD_PORT", integer_to_list(free_port())}, {"ERL_AFLAGS", flags(Options)}].

%% The suites make distribution messages of their own, good ones and bad ones (macula_dist_inject),
%% and start nodes with OTP's examples of carriers.
flags(#{carrier := inet_tcp, examples := Examples}) ->
    lists:flatten(["-pa" | [[$\s, Dir] || Dir <- Examples]]);
flags(#{ebin := Ebin}) ->
    "-proto_dist macula -no_epmd -start_epmd false -macula_dist_inject true -pa " ++ Ebin.

free_port() ->
    {ok, Socket} = gen_tcp:listen(0, []),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.

follow(Port, Output, Timer) ->
    receive
        {Port, {data, Data}} ->
            ok = file:write(Output, Data),
            follow(Port, Output, Timer);
        {Port, {exit_status, _}} ->
            _ = erlang:cancel_timer(Timer),
            "ended";
        {timeout, Timer, over} ->
            "KILLED"
    end.

%% By the mark, since nodes that are started detached leave every process group.
kill_marked(Mark) ->
    Wanted = <<?MARK, "=", (list_to_binary(Mark))/binary, 0>>,
    Pids = [filename:basename(filename:dirname(File))
            || File <- filelib:wildcard("/proc/[0-9]*/environ"), has(Wanted, File)],
    Pids =:= [] orelse begin
        _ = os:cmd(lists:flatten(lists:join(" ", ["kill -9" | Pids]))),
        %% One of them may have started another meanwhile.
        timer:sleep(100),
        kill_marked(Mark)
    end,
    ok.

has(Wanted, File) ->
    case file:read_file(File) of
        {ok, Environment} -> binary:match(Environment, Wanted) =/= nomatch;
        {error, _} -> false
    end.
