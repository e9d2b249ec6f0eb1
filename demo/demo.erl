%% Two real Erlang nodes, two processes of the operating system, one QUIC link between them: `./dev demo'.
%%
%% One module, three parts. main/1 starts the nodes, shows what alice says and sees to it that nothing outlives the demo;
%% alice/0 does everything and tells the truth about each result; bob/0 is called, watched, and killed.
-module(demo).
-behaviour(gen_server).

-export([main/1, alice/0, bob/0]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(LIMIT_MS, 60_000).
-define(ALICE, "alice@localhost").
-define(BOB, "bob@localhost").

%%% main: starts, shows, cleans up

-spec main(file:filename()) -> no_return().
main(Ebin) ->
    Started = now_ms(),
    _ = erlang:send_after(?LIMIT_MS, self(), time_is_up),
    %% Long enough not to be guessed: whoever has the cookie owns the node.
    Cookie = integer_to_list(binary:decode_unsigned(crypto:strong_rand_bytes(16)), 36),
    try
        say("Two Erlang nodes on this machine, without epmd; each is told its name and the cookie, nothing else:"),
        say("  erl -proto_dist macula -no_epmd -start_epmd false -sname NAME -setcookie COOKIE"),
        Bob = start_node(?BOB, "bob", Cookie, Ebin),
        await_ready(Bob, []),
        Alice = start_node(?ALICE, "alice", Cookie, Ebin),
        show(Alice, Bob, running, running)
    of
        ok ->
            say("All of this really happened, in ~b ms.", [now_ms() - Started]),
            halt(0)
    catch
        throw:{failed, Format, Args} ->
            say("DEMO FAILED: " ++ Format, Args),
            kill_nodes(),
            halt(1)
    end.

start_node(Name, Role, Cookie, Ebin) ->
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Args = ["-noshell", "+Bd",
            "-proto_dist", "macula", "-no_epmd", "-start_epmd", "false",
            "-pa", Ebin, filename:dirname(code:which(?MODULE)),
            "-sname", Name, "-setcookie", Cookie,
            "-run", ?MODULE_STRING, Role],
    Port = open_port({spawn_executable, Erl},
                     [{args, Args}, {env, [{"ERL_CRASH_DUMP_SECONDS", "0"}]},
                      {line, 4096}, exit_status, stderr_to_stdout]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    put({os_pid, Port}, OsPid),
    say("~ts is started as operating system process ~b", [Name, OsPid]),
    Port.

await_ready(Bob, Said) ->
    receive
        {Bob, {data, {_, "ready"}}} -> ok;
        {Bob, {data, {_, Line}}} -> await_ready(Bob, [Line | Said]);
        {Bob, {exit_status, Status}} ->
            fail("bob ended with status ~b before he was ready:~n~ts", [Status, lines(Said)]);
        time_is_up ->
            fail("bob was not ready after ~b s:~n~ts", [?LIMIT_MS div 1000, lines(Said)])
    end.

%% Done when alice has ended well and bob was killed by a signal.
show(_, _, {ended, 0}, {ended, Status}) when Status > 128 ->
    ok;
show(_, _, {ended, Status}, _) when Status =/= 0 ->
    fail("alice ended with status ~b", [Status]);
show(_, _, _, {ended, Status}) when Status =< 128 ->
    fail("bob ended with status ~b, he was not killed", [Status]);
show(Alice, Bob, AliceIs, BobIs) ->
    receive
        {Alice, {data, {_, Line}}} ->
            io:format("~ts~n", [Line]),
            show(Alice, Bob, AliceIs, BobIs);
        {Bob, {data, {_, Line}}} ->
            say("  (bob: ~ts)", [Line]),
            show(Alice, Bob, AliceIs, BobIs);
        {Alice, {exit_status, Status}} ->
            show(Alice, Bob, {ended, Status}, BobIs);
        {Bob, {exit_status, Status}} ->
            erase({os_pid, Bob}),
            show(Alice, Bob, AliceIs, {ended, Status});
        time_is_up ->
            fail("not finished after ~b s", [?LIMIT_MS div 1000])
    end.

kill_nodes() ->
    [os:cmd("kill -9 " ++ integer_to_list(OsPid)) || {{os_pid, Port}, OsPid} <- get(),
                                                     erlang:port_info(Port) =/= undefined].

%%% alice: does it

-spec alice() -> no_return().
alice() ->
    end_with_stdin(),
    try
        ping(),
        call(),
        Monitor = monitor_counter(),
        links(),
        kill_and_wait(Monitor)
    of
        ok -> halt(0)
    catch
        throw:{failed, Format, Args} ->
            say("FAILED: " ++ Format, Args),
            halt(1);
        Class:Reason:Stack ->
            say("FAILED: ~0p", [{Class, Reason, Stack}]),
            halt(1)
    end.

ping() ->
    Before = now_ms(),
    Answer = net_adm:ping(bob_node()),
    step("net_adm:ping('~ts') -> ~0p, after ~b ms", [bob_node(), Answer, now_ms() - Before]),
    expect(pong, Answer),
    step("nodes() -> ~0p", [nodes()]),
    expect([bob_node()], nodes()).

call() ->
    Answer = gen_server:call({counter, bob_node()}, {add, 42}),
    step("gen_server:call({counter, '~ts'}, {add, 42}) -> ~0p", [bob_node(), Answer]),
    expect({42, bob_node()}, Answer).

monitor_counter() ->
    Counter = erpc:call(bob_node(), erlang, whereis, [counter]),
    step("erpc:call('~ts', erlang, whereis, [counter]) -> ~0p", [bob_node(), Counter]),
    is_pid(Counter) andalso node(Counter) =:= bob_node() orelse fail("~0p is not a process of bob", [Counter]),
    Monitor = erlang:monitor(process, Counter),
    step("erlang:monitor(process, ~0p) -> ~0p", [Counter, Monitor]),
    {Monitor, Counter}.

links() ->
    Links = macula:links(),
    step("macula:links() ->~n~ts", [lists:join("\n", [io_lib:format("           ~0p", [Link]) || Link <- Links])]),
    [#{node := Bob}] = Links,
    expect(bob_node(), Bob).

kill_and_wait({Monitor, Counter}) ->
    OsPid = erpc:call(bob_node(), os, getpid, []),
    step("kill -9 ~ts   (bob has no chance to say goodbye)", [OsPid]),
    Before = now_ms(),
    [] = os:cmd("kill -9 " ++ OsPid),
    receive
        {'DOWN', Monitor, process, Counter, Reason} = Down ->
            step("received ~0p, ~b ms after the kill", [Down, now_ms() - Before]),
            expect(noconnection, Reason)
    after ?LIMIT_MS ->
        fail("no DOWN message", [])
    end,
    step("nodes() -> ~0p", [nodes()]),
    expect([], nodes()).

%%% bob: a server that counts

-spec bob() -> ok.
bob() ->
    end_with_stdin(),
    {ok, _} = gen_server:start({local, counter}, ?MODULE, 0, []),
    say("ready").

-spec init(integer()) -> {ok, integer()}.
init(Count) ->
    {ok, Count}.

-spec handle_call({add, integer()}, gen_server:from(), integer()) -> {reply, {integer(), node()}, integer()}.
handle_call({add, N}, _From, Count) ->
    {reply, {Count + N, node()}, Count + N}.

-spec handle_cast(term(), integer()) -> {noreply, integer()}.
handle_cast(_, Count) ->
    {noreply, Count}.

%%% for all three

bob_node() ->
    list_to_atom(?BOB).

%% A node's standard input closes when main/1 ends, however it ends: by Ctrl-C, by kill -9.
end_with_stdin() ->
    spawn(fun Read() ->
              case io:get_line("") of
                  Line when is_list(Line); is_binary(Line) -> Read();
                  _ -> halt(1)
              end
          end).

expect(Wanted, Wanted) -> ok;
expect(Wanted, Got) -> fail("expected ~0p, got ~0p", [Wanted, Got]).

-spec fail(io:format(), [term()]) -> no_return().
fail(Format, Args) -> throw({failed, Format, Args}).

step(Format, Args) -> say("alice> " ++ Format, Args).

say(Format) -> say(Format, []).

say(Format, Args) -> io:format(Format ++ "~n", Args).

lines(Reversed) -> lists:join("\n", lists:reverse(Reversed)).

now_ms() -> erlang:monotonic_time(millisecond).
