%% Results of cases: read from Common Test's raw log, kept as lists, compared.
-module(otp_suites_results).

-export([of_log/2, tally/1]).
-export([read/1, write/2, read_exceptions/1]).
-export([compare/3, second_attempt/2]).

-export_type([result/0, verdict/0, exceptions/0]).

%% nth: cases of one name run in several groups.
-type result() :: #{suite := atom(), name := atom(), nth := pos_integer(),
                    result := ok | failed | skipped | hung, seconds := float()}.
-type verdict() :: #{suite := atom(), name := atom(), nth := pos_integer(),
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
    number(lists:append([cases(Suite, File) || File <- Files])).

cases(Suite, File) ->
    {ok, Text} = file:read_file(File),
    Prefix = atom_to_list(Suite) ++ ":",
    [result(Suite, list_to_atom(Name), Fields)
     || Part <- tl(string:split(["\n" | binary_to_list(Text)], "\n=case", all)),
        [First | Fields] <- [string:split(Part, "\n", all)],
        Name <- [string:prefix(string:trim(First), Prefix)],
        Name =/= nomatch,
        not lists:member(Name, ["init_per_suite", "end_per_suite", "init_per_group",
                                "end_per_group"])].

result(Suite, Name, Fields) ->
    #{suite => Suite, name => Name,
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

number(Results) ->
    {Numbered, _} = lists:mapfoldl(fun(#{name := Name} = Result, Seen) ->
                                           Nth = maps:get(Name, Seen, 0) + 1,
                                           {Result#{nth => Nth}, Seen#{Name => Nth}}
                                   end, #{}, Results),
    Numbered.

%% @doc How many of each.
-spec tally([result()]) -> iolist().
tally(Results) ->
    Counted = [{Kind, length([R || #{result := K} = R <- Results, K =:= Kind])}
               || Kind <- [ok, failed, skipped, hung]],
    lists:join(", ", [io_lib:format("~b ~ts", [N, Kind]) || {Kind, N} <- Counted, N > 0]).

%%% Lists in files

%% @doc A list that write/2 has written: suite, case, which of that name, result, seconds.
-spec read(file:filename()) -> [result()].
read(File) ->
    [#{suite => list_to_atom(Suite), name => list_to_atom(Name), nth => list_to_integer(Nth),
       result => list_to_atom(Result), seconds => seconds(Seconds)}
     || [Suite, Name, Nth, Result, Seconds] <- [string:lexemes(Line, " ") || Line <- lines(File)]].

-spec write(file:filename(), [result()]) -> ok.
write(File, Results) ->
    Head = "# OTP's suites over inet_tcp, written by test/otp/run.sh baseline: suite, case, which of "
           "that name, result, seconds\n",
    Lines = [io_lib:format("~-24ts ~-44ts ~b ~-8ts ~.1f~n", [Suite, Name, Nth, Result, Seconds])
             || #{suite := Suite, name := Name, nth := Nth, result := Result,
                  seconds := Seconds} <- Results],
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, [Head | Lines]).

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
    (maps:with([suite, name, nth], Expected))#{expected => Wanted, result => Result,
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

key(#{name := Name, nth := Nth}) ->
    {Name, Nth}.
