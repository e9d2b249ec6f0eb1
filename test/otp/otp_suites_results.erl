%% Results of cases: read from Common Test's raw log, kept as lists, compared.
-module(otp_suites_results).

-export([of_log/2, tally/1]).
-export([read/1, write/2, padded/2, read_exceptions/1]).
-export([compare/3, second_attempt/2]).

-export_type([result/0, verdict/0, exceptions/0]).

%% group: cases of one name run in several; `none' stands outside of all.
-type result() :: #{suite := atom(), group := atom(), name := atom(),
                    result := ok | failed | skipped | hung, seconds := float()}.
-type verdict() :: #{suite := atom(), group := atom(), name := atom(),
                     expected := ok | failed | skipped | hung,
                     result := ok | failed | skipped | hung | missing,
                     verdict := same | better | excepted | second_attempt | failed,
                     why := string()}.
-type exceptions() :: #{{Suite :: atom(), Case :: atom()} => Reason :: string()}.

%%% From the log

%% @doc What became of each case, in the order they ran. One without an end was running when the
%% run was killed.
-spec of_log(module(), file:filename()) -> [result()].
of_log(Suite, Logs) ->
    Files = filelib:wildcard(filename:join([Logs, "ct_run*", "**", "suite.log"])),
    lists:append([cases(Suite, File) || File <- Files]).

cases(Suite, File) ->
    {ok, Text} = file:read_file(File),
    [_ | Parts] = string:split(["\n" | binary_to_list(Text)], "\n=case ", all),
    {Results, _} = lists:foldl(fun(Part, So) -> part(Suite, string:split(Part, "\n", all), So) end,
                               {[], []}, Parts),
    lists:reverse(Results).

%% What stands between the begin and the end of groups belongs to the innermost.
part(Suite, [First | Fields], {Results, Groups}) ->
    case string:split(string:trim(First), ":") of
        [_, "init_per_group"] -> {Results, [group(Fields) | Groups]};
        [_, "end_per_group"] -> {Results, Groups -- [group(Fields)]};
        [_, "init_per_suite"] -> {Results, Groups};
        [_, "end_per_suite"] -> {Results, Groups};
        [_, Name] -> {[result(Suite, hd(Groups ++ [none]), Name, Fields) | Results], Groups}
    end.

%% The first of the properties, which are a term, but perhaps an unreadable one.
group(Fields) ->
    {match, [Name]} = re:run(field("=group_props", Fields), "{name,'?([^',}]+)'?}",
                             [{capture, all_but_first, list}]),
    list_to_atom(Name).

result(Suite, Group, Name, Fields) ->
    #{suite => Suite, group => Group, name => list_to_atom(Name),
      result => outcome(field("=result", Fields)), seconds => seconds(field("=elapsed", Fields))}.

field(Name, Fields) ->
    case [string:trim(Value) || Field <- Fields,
                                Value <- [string:prefix(Field, Name)], Value =/= nomatch] of
        [Value | _] -> Value;
        [] -> none
    end.

outcome(none) -> hung;
outcome("ok" ++ _) -> ok;
outcome("skipped" ++ _) -> skipped;
outcome("auto_skipped" ++ _) -> skipped;
outcome("failed" ++ _) -> failed.

seconds(none) -> 0.0;
seconds(Text) ->
    case string:to_float(Text) of
        {error, no_float} -> float(element(1, string:to_integer(Text)));
        {Seconds, _} -> Seconds
    end.

%% @doc How many of each.
-spec tally([result()]) -> iolist().
tally(Results) ->
    Counted = [{Kind, length([R || #{result := K} = R <- Results, K =:= Kind])}
               || Kind <- [ok, failed, skipped, hung]],
    lists:join(", ", [io_lib:format("~b ~ts", [N, Kind]) || {Kind, N} <- Counted, N > 0]).

%%% Lists in files

%% @doc A list that write/2 has written: suite, group, case, result, seconds.
-spec read(file:filename()) -> [result()].
read(File) ->
    [#{suite => list_to_atom(Suite), group => list_to_atom(Group), name => list_to_atom(Name),
       result => list_to_atom(Result), seconds => seconds(Seconds)}
     || [Suite, Group, Name, Result, Seconds] <- [string:lexemes(Line, " ") || Line <- lines(File)]].

-spec write(file:filename(), [result()]) -> ok.
write(File, Results) ->
    Head = "# OTP's suites over inet_tcp, written by test/otp/run.sh baseline: suite, group, case, "
           "result, seconds\n",
    Lines = [io_lib:format("~ts ~ts ~ts ~-8ts ~.1f~n",
                           [padded(Suite, 24), padded(Group, 18), padded(Name, 44), Result, Seconds])
             || #{suite := Suite, group := Group, name := Name, result := Result,
                  seconds := Seconds} <- Results],
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, [Head | Lines]).

%% @doc In a column of this width, or wider.
-spec padded(atom(), pos_integer()) -> iolist().
padded(Atom, Width) ->
    string:pad(atom_to_list(Atom), Width).

%% @doc Cases that are not run over macula: `suite case reason' a line.
-spec read_exceptions(file:filename()) -> exceptions().
read_exceptions(File) ->
    maps:from_list([begin
                        [Suite, Rest] = string:split(Line, " "),
                        [Name, Reason] = string:split(string:trim(Rest), " "),
                        {{list_to_atom(Suite), list_to_atom(Name)}, string:trim(Reason)}
                    end || Line <- lines(File)]).

lines(File) ->
    {ok, Text} = file:read_file(File),
    [Line || Line <- string:lexemes(unicode:characters_to_list(Text), "\n"), hd(Line) =/= $#].

%%% Comparing

%% @doc Each case beside what it gave over inet_tcp: whatever passes there must pass here.
-spec compare([result()], [result()], exceptions()) -> [verdict()].
compare(Expected, Results, Exceptions) ->
    Found = by_case(Results),
    [judge(Wanted, maps:get(key(Wanted), Found, missing), Exceptions) || Wanted <- Expected].

judge(#{suite := Suite, name := Name, result := Wanted} = Expected, Found, Exceptions) ->
    Result = result(Found),
    {Verdict, Why} = verdict(Wanted, Result, maps:get({Suite, Name}, Exceptions, none)),
    (maps:with([suite, group, name], Expected))#{expected => Wanted, result => Result,
                                               verdict => Verdict, why => Why}.

result(missing) -> missing;
result(#{result := Result}) -> Result.

verdict(_, _, Exception) when Exception =/= none -> {excepted, Exception};
verdict(Same, Same, none) -> {same, ""};
verdict(_, ok, none) -> {better, ""};
verdict(ok, _, none) -> {failed, ""};
verdict(_, _, none) -> {same, ""}.

%% @doc The verdicts, where what failed has been run again.
-spec second_attempt([verdict()], [result()]) -> [verdict()].
second_attempt(Verdicts, Results) ->
    Found = by_case(Results),
    [case {Verdict, result(maps:get(key(V), Found, missing))} of
         {failed, ok} -> V#{verdict => second_attempt};
         _ -> V
     end || #{verdict := Verdict} = V <- Verdicts].

by_case(Results) ->
    maps:from_list([{key(Result), Result} || Result <- Results]).

key(#{group := Group, name := Name}) ->
    {Group, Name}.
