%% @doc A bad link: the program in link/ that carries frames between two namespaces, and what it is
%% told.
-module(netlab_link).

-export([executable/0, start/3, set/2, counters/1]).

-export_type([wire/0]).

-type wire() :: port().
-type side() :: {Namespace :: string(), Interface :: string()}.

-define(ANSWER_MS, 10_000).

-spec executable() -> file:filename().
executable() ->
    Folder = filename:join(netlab_os:source_folder(), "link"),
    Target = filename:absname(filename:join([Folder, "..", "..", "..", "target", "netlab"])),
    netlab_os:rust_program(filename:join([Target, "release", "netlab_link"]),
                           ["--release", "--target-dir", Target,
                            "--manifest-path", filename:join(Folder, "Cargo.toml")]).

%% @doc Makes both interfaces, with a good link between them that belongs to the caller.
-spec start(side(), side(), Seed :: non_neg_integer()) -> wire().
start({NamespaceA, InterfaceA}, {NamespaceB, InterfaceB}, Seed) ->
    %% Before others, since what it does late looks like the link.
    Wire = open_port({spawn_executable, netlab_os:executable("nice")},
                     [{args, ["-n", "-15", executable(), "/run/netns/" ++ NamespaceA, InterfaceA,
                              "/run/netns/" ++ NamespaceB, InterfaceB, integer_to_list(Seed)]},
                      {line, 1024}, exit_status, hide]),
    ok = expect_ok(answer(Wire)),
    Wire.

%% @doc Makes it as bad as this from the next packet on.
-spec set(wire(), #{up := map(), down := map()}) -> ok.
set(Wire, #{up := Up, down := Down}) ->
    ok = expect_ok(ask(Wire, ["set up", words(Up)])),
    ok = expect_ok(ask(Wire, ["set down", words(Down)])).

words(#{delay := Delay, jitter := Jitter, loss := Loss, reorder := Reorder,
        reorder_by := ReorderBy, rate := Rate, queue := Queue}) ->
    [[" ", Key, $=, io_lib:print(Value)]
     || {Key, Value} <- [{"delay_us", micros(Delay)}, {"jitter_us", micros(Jitter)}, {"loss", Loss},
                         {"reorder", Reorder}, {"reorder_by_us", micros(ReorderBy)},
                         {"rate", bits(Rate)}, {"queue_us", micros(Queue)}]].

micros(Milliseconds) -> round(Milliseconds * 1000).

bits(infinity) -> 0;
bits(Megabits) -> round(Megabits * 1_000_000).

%% @doc What happened to the packets so far, each way.
-spec counters(wire()) -> #{up := #{atom() => integer()}, down := #{atom() => integer()}}.
counters(Wire) ->
    ["up" | Words] = string:lexemes(ask(Wire, "counters"), " "),
    {Up, ["down" | Down]} = lists:splitwith(fun(Word) -> Word =/= "down" end, Words),
    #{up => numbers(Up), down => numbers(Down)}.

numbers(Words) ->
    maps:from_list([{list_to_atom(Key), list_to_integer(Value)}
                    || Word <- Words, [Key, Value] <- [string:split(Word, "=")]]).

ask(Wire, Line) ->
    true = port_command(Wire, [Line, "\n"]),
    answer(Wire).

answer(Wire) ->
    receive
        {Wire, {data, {eol, Line}}} -> Line;
        {Wire, {exit_status, Status}} -> error({link_ended, Status})
    after ?ANSWER_MS ->
        error(link_does_not_answer)
    end.

expect_ok("ok") -> ok;
expect_ok("error " ++ Reason) -> error({link_failed, Reason}).
