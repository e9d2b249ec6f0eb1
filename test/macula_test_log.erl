%% Catches what is logged while a test does something.
-module(macula_test_log).

-export([during/1, log/2]).

%% @doc The lines of macula's own domain that are logged meanwhile.
-spec during(fun(() -> term())) -> [binary()].
during(Fun) ->
    Table = ets:new(?MODULE, [public, ordered_set]),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => Table, level => all}),
    try
        _ = Fun(),
        [Line || {_, Line} <- ets:tab2list(Table)]
    after
        ok = logger:remove_handler(?MODULE),
        ets:delete(Table)
    end.

%% @doc A callback of logger.
-spec log(logger:log_event(), logger:handler_config()) -> ok.
log(#{msg := Message, meta := Meta}, #{config := Table}) ->
    true = ets:insert(Table, {erlang:unique_integer([monotonic]), line(Message, Meta)}),
    ok.

line({report, Report}, #{report_cb := Format}) when is_function(Format, 1) ->
    {Text, Args} = Format(Report),
    unicode:characters_to_binary(io_lib:format(Text, Args));
line({string, Text}, _) ->
    unicode:characters_to_binary(Text);
line({report, Report}, _) ->
    unicode:characters_to_binary(io_lib:format("~0tp", [Report]));
line({Text, Args}, _) ->
    unicode:characters_to_binary(io_lib:format(Text, Args)).
