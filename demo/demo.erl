%% Two Erlang nodes that cannot reach each other, a relay that both can reach, and one cluster: `./dev demo'.
%%
%% main/1 sets the stage, starts the three, shows what they say and sees to it that nothing outlives the demo. What they
%% do is in demo_roles.
-module(demo).

-export([main/1]).

-define(LIMIT_MS, 120_000).
%% As demo_roles has alice end bob.
-define(HALTED, 42).

-spec main(file:filename()) -> no_return().
main(Ebin) ->
    Started = now_ms(),
    _ = erlang:send_after(?LIMIT_MS, self(), time_is_up),
    %% Long enough not to be guessed: whoever has the cookie owns the node.
    Cookie = integer_to_list(binary:decode_unsigned(crypto:strong_rand_bytes(16)), 36),
    try
        Stage = demo_stage:set(),
        say("~ts", [maps:get(picture, Stage)]),
        Relay = start(Stage, relay, [], Ebin),
        ready(Relay, relay),
        say("~n  erl -proto_dist macula -no_epmd -start_epmd false -name NAME -setcookie COOKIE~n"),
        Bob = start(Stage, bob, node_flags(Stage, bob, Cookie), Ebin),
        ready(Bob, bob),
        Alice = start(Stage, alice, node_flags(Stage, alice, Cookie), Ebin),
        show(Alice, Bob, Relay),
        %% The relay can say what it forwarded, and nothing about what that was.
        true = port_command(Relay, "report\n"),
        ready(Relay, relay)
    of
        ok ->
            say("All of this really happened, in ~b ms.", [now_ms() - Started]),
            finish(0)
    catch
        throw:{failed, Format, Args} ->
            say("DEMO FAILED: " ++ Format, Args),
            finish(1)
    end.

%% Nodes end with their standard input; one that hangs is killed.
finish(Status) ->
    [os:cmd("kill -9 " ++ integer_to_list(OsPid)) || {{os_pid, Port}, OsPid} <- get(),
                                                     erlang:port_info(Port) =/= undefined],
    ok = demo_stage:strike(),
    halt(Status).

node_flags(#{names := Names}, Role, Cookie) ->
    ["-proto_dist", "macula", "-no_epmd", "-start_epmd", "false",
     "-name", atom_to_list(maps:get(Role, Names)), "-setcookie", Cookie].

start(#{within := Within, env := Env, url := Url, names := #{bob := Bob}}, Role, Flags, Ebin) ->
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    [Program | Args] = maps:get(Role, Within) ++ [Erl, "-noshell", "+Bd"] ++ Flags
        ++ ["-pa", Ebin, filename:dirname(code:which(?MODULE)),
            "-run", "demo_roles", atom_to_list(Role), Url, atom_to_list(Bob)],
    Port = open_port({spawn_executable, os:find_executable(Program)},
                     [{args, Args}, {env, [{"ERL_CRASH_DUMP_SECONDS", "0"} | Env]},
                      {line, 4096}, exit_status, stderr_to_stdout]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    put({os_pid, Port}, OsPid),
    Port.

%% Shows what one of them says until it is ready.
ready(Port, Role) ->
    receive
        {Port, {data, {_, "ready"}}} -> ok;
        {Port, {data, {_, Line}}} -> say("~ts", [Line]), ready(Port, Role);
        {Port, {exit_status, Status}} -> fail("~ts ended with status ~b before it was ready", [Role, Status]);
        time_is_up -> fail("~ts was not ready after ~b s", [Role, ?LIMIT_MS div 1000])
    end.

%% Done when alice has ended well and bob was halted by her.
show(Alice, Bob, Relay) ->
    show(Alice, Bob, Relay, running, running).

show(_, _, _, {ended, 0}, {ended, ?HALTED}) ->
    ok;
show(_, _, _, {ended, Status}, _) when Status =/= 0 ->
    fail("alice ended with status ~b", [Status]);
show(_, _, _, _, {ended, Status}) when Status =/= ?HALTED ->
    fail("bob ended with status ~b, he was not halted", [Status]);
show(Alice, Bob, Relay, AliceIs, BobIs) ->
    receive
        {Port, {data, {_, Line}}} when Port =:= Alice; Port =:= Bob; Port =:= Relay ->
            say("~ts", [Line]),
            show(Alice, Bob, Relay, AliceIs, BobIs);
        {Alice, {exit_status, Status}} ->
            show(Alice, Bob, Relay, {ended, Status}, BobIs);
        {Bob, {exit_status, Status}} ->
            erase({os_pid, Bob}),
            show(Alice, Bob, Relay, AliceIs, {ended, Status});
        {Relay, {exit_status, Status}} ->
            fail("the relay ended with status ~b", [Status]);
        time_is_up ->
            fail("not finished after ~b s", [?LIMIT_MS div 1000])
    end.

-spec fail(io:format(), [term()]) -> no_return().
fail(Format, Args) -> throw({failed, Format, Args}).

say(Format) -> say(Format, []).

say(Format, Args) -> io:format(Format ++ "~n", Args).

now_ms() -> erlang:monotonic_time(millisecond).
