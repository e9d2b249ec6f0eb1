%% Who plays in the demo, each in an operating system process of its own: the relay forwards; alice does everything and
%% tells the truth about each result; bob is called,
%% watched, and halted.
-module(demo_roles).
-behaviour(gen_server).

-export([relay/1, alice/1, bob/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(LIMIT_MS, 60_000).
%% How bob ends, and nobody who failed.
-define(HALTED, 42).

%%% relay: a VM that is no node of anything

-spec relay([string()]) -> no_return().
relay([Url, _]) ->
    ok = logger:set_primary_config(level, error),
    {match, [Port]} = re:run(Url, ":([0-9]+)$", [{capture, all_but_first, list}]),
    Options = #{port => list_to_integer(Port)},
    show("relay", "macula:start_relay(~0p) -> ~0p", [Options, expect(ok, macula:start_relay(Options))]),
    say("ready"),
    serve_stdin().

%% Reports when it is asked to; ends when main/1 does, however that ends.
serve_stdin() ->
    case io:get_line("") of
        "report\n" ->
            Stats = maps:with([forwarded, bytes, dropped_nobody], macula:relay_stats()),
            show("relay", "macula:relay_stats() -> ~0p", [Stats]),
            say("ready"),
            serve_stdin();
        Line when is_list(Line) ->
            serve_stdin();
        _ ->
            halt(0)
    end.

%%% bob: a server that counts, and a member of a group

-spec bob([string()]) -> ok.
bob([Url, _]) ->
    end_with_stdin(),
    join("bob", Url),
    {ok, Counter} = gen_server:start({local, counter}, ?MODULE, 0, []),
    {ok, _} = pg:start_link(),
    ok = pg:join(counters, Counter),
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

%%% alice: does it

-spec alice([string()]) -> no_return().
alice([Url, Name]) ->
    Bob = list_to_atom(Name),
    end_with_stdin(),
    try
        %% What the log says of it is not the demo's.
        ok = logger:set_primary_config(level, none),
        ping(Bob, pang),
        ok = logger:set_primary_config(level, notice),
        join("alice", Url),
        ping(Bob, pong),
        call(Bob),
        Counter = group(),
        rpc_call(Bob),
        Monitor = watch(Counter),
        links(Bob),
        kill(Counter, Monitor),
        halt_node(Bob)
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

ping(Bob, Expected) ->
    Before = now_ms(),
    Answer = net_adm:ping(Bob),
    tell("net_adm:ping('~ts') -> ~0p, after ~b ms", [Bob, Answer, now_ms() - Before]),
    expect(Expected, Answer).

call(Bob) ->
    Answer = gen_server:call({counter, Bob}, {add, 42}),
    tell("gen_server:call({counter, '~ts'}, {add, 42}) -> ~0p", [Bob, Answer]),
    expect({42, Bob}, Answer).

%% Groups are told as soon as nodes know of each other, and not before.
group() ->
    {ok, _} = pg:start_link(),
    [Counter] = await(fun() -> pg:get_members(counters) end, [], now_ms() + ?LIMIT_MS),
    tell("pg:get_members(counters) -> [~0p]", [Counter]),
    Counter.

await(Ask, Not, Deadline) ->
    case Ask() of
        Not ->
            now_ms() < Deadline orelse fail("still ~0p after ~b s", [Not, ?LIMIT_MS div 1000]),
            timer:sleep(10),
            await(Ask, Not, Deadline);
        Answer ->
            Answer
    end.

rpc_call(Bob) ->
    Answer = rpc:call(Bob, erlang, node, []),
    tell("rpc:call('~ts', erlang, node, []) -> ~0p", [Bob, Answer]),
    expect(Bob, Answer).

watch(Counter) ->
    Monitor = erlang:monitor(process, Counter),
    tell("erlang:monitor(process, ~0p) -> ~0p", [Counter, Monitor]),
    Monitor.

links(Bob) ->
    Links = macula:links(),
    tell("macula:links() ->~n~ts", [lists:join("\n", [io_lib:format("           ~0p", [Link]) || Link <- Links])]),
    [#{node := Node, path := Path}] = Links,
    expect({Bob, relay}, {Node, Path}).

kill(Counter, Monitor) ->
    true = exit(Counter, kill),
    tell("exit(~0p, kill)", [Counter]),
    Before = now_ms(),
    receive
        {'DOWN', Monitor, process, Counter, Reason} = Down ->
            tell("received ~0p, after ~b ms", [Down, now_ms() - Before]),
            expect(killed, Reason)
    after ?LIMIT_MS ->
        fail("no DOWN message", [])
    end.

halt_node(Bob) ->
    true = monitor_node(Bob, true),
    Before = now_ms(),
    true = rpc:cast(Bob, erlang, halt, [?HALTED]),
    tell("rpc:cast('~ts', erlang, halt, [~b])", [Bob, ?HALTED]),
    receive
        {nodedown, Bob} -> tell("received ~0p, after ~b ms", [{nodedown, Bob}, now_ms() - Before])
    after ?LIMIT_MS ->
        fail("no nodedown message", [])
    end,
    tell("nodes() -> ~0p", [nodes()]),
    expect([], nodes()),
    ok.

%%% for all of them

join(Who, Url) ->
    Options = #{relays => [list_to_binary(Url)]},
    Before = now_ms(),
    Answer = macula:join_mesh(Options),
    show(Who, "macula:join_mesh(~0p) -> ~0p, after ~b ms", [Options, Answer, now_ms() - Before]),
    expect(ok, Answer).

%% A node's standard input closes when main/1 ends, however it ends: by Ctrl-C, by kill -9.
end_with_stdin() ->
    spawn(fun Read() ->
              case io:get_line("") of
                  Line when is_list(Line); is_binary(Line) -> Read();
                  _ -> halt(1)
              end
          end).

expect(Wanted, Wanted) -> Wanted;
expect(Wanted, Got) -> fail("expected ~0p, got ~0p", [Wanted, Got]).

-spec fail(io:format(), [term()]) -> no_return().
fail(Format, Args) -> throw({failed, Format, Args}).

tell(Format, Args) -> show("alice", Format, Args).

show(Who, Format, Args) -> say("~ts> " ++ Format, [Who | Args]).

say(Format) -> say(Format, []).

say(Format, Args) -> io:format(Format ++ "~n", Args).

now_ms() -> erlang:monotonic_time(millisecond).
