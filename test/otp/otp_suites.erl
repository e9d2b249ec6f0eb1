%% What `./dev test otp' runs: which of OTP's suites, in which order, and what is said about them in
%% the end. See run.sh for where the suites come from.
-module(otp_suites).

-export([main/0]).

%% Suite, folder, and seconds: several times what it takes, beyond which something hangs.
-define(SUITES,
        [{pg_SUITE, "lib/kernel/test", 300},
         {rpc_SUITE, "lib/kernel/test", 1_200},
         {erpc_SUITE, "lib/kernel/test", 600},
         {erl_link_SUITE, "erts/emulator/test", 300},
         {monitor_SUITE, "erts/emulator/test", 300},
         {signal_SUITE, "erts/emulator/test", 300},
         {node_container_SUITE, "erts/emulator/test", 600},
         {peer_SUITE, "lib/stdlib/test", 300},
         {gen_server_SUITE, "lib/stdlib/test", 600},
         {seq_trace_SUITE, "lib/kernel/test", 300},
         {erl_boot_server_SUITE, "lib/kernel/test", 300},
         {global_group_SUITE, "lib/kernel/test", 600},
         {distribution_SUITE, "erts/emulator/test", 1_200},
         {erl_distribution_SUITE, "lib/kernel/test", 1_800},
         {erl_distribution_wb_SUITE, "lib/kernel/test", 300},
         {global_SUITE, "lib/kernel/test", 1_800}]).

%% What is also run through a relay: how messages, signals and groups behave, whatever carries them.
-define(THROUGH_RELAY, ["pg_SUITE", "distribution_SUITE"]).

%% Modules that suites use, of the folder they are in.
-define(HELPERS,
        [{"erts/emulator/test", [erts_test_utils, literal_area_collector_test]},
         {"erts/emulator/test/distribution_SUITE_data", [run]},
         {"lib/stdlib/test", [dummy_via, error_logger_forwarder]},
         {"lib/common_test/test_server", [ts_install_cth, ts_lib]},
         {"lib/kernel/test", [kernel_test_lib, kernel_test_global_sys_monitor,
                              kernel_test_sys_monitor]}]).

%% Carriers that come with OTP as examples.
-define(EXAMPLES,
        [{"lib/kernel/examples/gen_tcp_dist/src", [gen_tcp_dist]},
         {"lib/kernel/examples/erl_uds_dist/src", [erl_uds_dist]}]).

-record(place, {here :: file:filename(),
                work :: file:filename(),
                ebin :: file:filename()}).

-spec main() -> no_return().
main() ->
    [Here, Work, Ebin | Args] = init:get_plain_arguments(),
    Place = #place{here = Here, work = Work, ebin = Ebin},
    halt(try
             run(Args, Place)
         catch
             throw:{stop, Format, Values} ->
                 io:format(standard_error, "otp suites: " ++ Format ++ "~n", Values),
                 2
         end).

run(["baseline" | Names], Place) ->
    Suites = suites(Names),
    compile_all(inet_tcp, Suites, Place),
    Results = lists:append([suite(inet_tcp, Suite, all, [], Place) || Suite <- Suites]),
    File = baseline_file(Place),
    Rest = [Result || #{suite := Name} = Result <- baseline(Place),
                      not lists:keymember(Name, 1, Suites)],
    otp_suites_results:write(File, Rest ++ Results),
    io:format("~nwritten to ~ts~n", [File]),
    0;
run(["relay"], Place) ->
    compared(relay, suites(?THROUGH_RELAY), Place);
run(["relay" | Names], Place) ->
    compared(relay, suites(Names), Place);
run(Names, Place) ->
    compared(macula, suites(Names), Place).

compared(Carrier, Suites, Place) ->
    compile_all(Carrier, Suites, Place),
    Exceptions = otp_suites_results:read_exceptions(filename:join(Place#place.here, "exceptions")),
    Baseline = baseline(Place),
    {Comparable, NotRun} = lists:partition(fun({Name, _, _}) -> of_suite(Name, Baseline) =/= [] end,
                                           Suites),
    Verdicts = [verdicts(Carrier, Suite, Baseline, Exceptions, Place) || Suite <- Comparable],
    [io:format("~nnot run: ~ts, which is not in ~ts~n", [Name, baseline_file(Place)])
     || {Name, _, _} <- NotRun],
    report(lists:append(Verdicts)).

suites([]) ->
    ?SUITES;
suites(Names) ->
    [case [Suite || {Known, _, _} = Suite <- ?SUITES, atom_to_list(Known) =:= Name] of
         [Suite] -> Suite;
         [] -> throw({stop, "there is no suite ~ts; known are: ~ts",
                      [Name, lists:join(" ", [atom_to_list(S) || {S, _, _} <- ?SUITES])]})
     end || Name <- Names].

%%% Compiling

compile_all(Carrier, Suites, Place) ->
    Modules = ?HELPERS ++ ?EXAMPLES ++ [{Dir, [Suite]} || {Suite, Dir, _} <- Suites],
    [compile(Name, source(Carrier, Dir, Place), source(Carrier, "lib/kernel/test", Place))
     || {Dir, Names} <- Modules, Name <- Names].

%% The suites are of another house: their warnings are not ours to read.
compile(Module, Dir, Include) ->
    File = filename:join(Dir, Module),
    Options = [{outdir, Dir}, {i, Dir}, {i, Include}, debug_info, return_errors],
    IsNew = filelib:last_modified(File ++ ".beam") >= filelib:last_modified(File ++ ".erl"),
    case IsNew orelse compile:file(File, Options) of
        true -> ok;
        {ok, _} -> ok;
        {ok, _, _} -> ok;
        {error, Errors, _} -> throw({stop, "~ts does not compile: ~tp", [File, Errors]})
    end.

source(Carrier, Dir, #place{work = Work}) ->
    filename:join([Work, "source", changed_for(Carrier), Dir]).

changed_for(relay) -> macula;
changed_for(Carrier) -> Carrier.

%%% Running

%% One suite over a carrier of ours. What went differently is tried once more: many of these cases have time
%% limits made for a machine that does nothing else.
verdicts(Carrier, {Name, _, _} = Suite, Baseline, Exceptions, Place) ->
    Expected = of_suite(Name, Baseline),
    Skip = [Case || {S, Case} <- maps:keys(Exceptions), S =:= Name],
    Results = suite(Carrier, Suite, all, Skip, Place),
    Verdicts = otp_suites_results:compare(Expected, Results, Exceptions),
    case [{Group, Case} || #{group := Group, name := Case, verdict := failed, result := Result}
                               <- Verdicts, Result =/= hung] of
        [] ->
            Verdicts;
        Cases ->
            Again = suite(Carrier, Suite, Cases, [], Place),
            otp_suites_results:second_attempt(Verdicts, Again)
    end.

of_suite(Name, Results) ->
    [Result || #{suite := Suite} = Result <- Results, Suite =:= Name].

suite(Carrier, {Name, Dir, Limit}, Cases, Skip, #place{work = Work, ebin = Ebin} = Place) ->
    io:format("~n== ~ts over ~ts~ts~n", [Name, Carrier, again(Cases)]),
    Logs = filename:join([Work, "logs", Carrier, [atom_to_list(Name), attempt(Cases)]]),
    Helpers = [Helper || {Helper, _} <- ?HELPERS, Helper =/= Dir],
    Paths = [source(Carrier, Path, Place) || Path <- Helpers ++ [Dir]],
    Ended = otp_suites_run:run(#{carrier => Carrier, ebin => Ebin, suite => Name, cases => Cases,
                                 skip => Skip, paths => Paths, logs => Logs, seconds => Limit,
                                 examples => [source(Carrier, Path, Place)
                                              || {Path, _} <- ?EXAMPLES]}),
    Results = otp_suites_results:of_log(Name, Logs),
    io:format("~ts: ~ts~n", [Ended, otp_suites_results:tally(Results)]),
    Results.

attempt(all) -> "";
attempt(_) -> ".again".

again(all) -> "";
again(Cases) -> [", once more:", [[$\s, atom_to_list(Case)] || {_, Case} <- Cases]].

baseline_file(#place{here = Here}) ->
    Release = erlang:system_info(otp_release),
    filename:join([Here, "baseline", "OTP" ++ Release ++ ".txt"]).

baseline(Place) ->
    File = baseline_file(Place),
    case filelib:is_regular(File) of
        true -> otp_suites_results:read(File);
        false -> []
    end.

%%% Telling

report(Verdicts) ->
    io:format("~n== differences from the same suites over inet_tcp~n", []),
    Different = [V || #{verdict := Verdict} = V <- Verdicts, Verdict =/= same],
    lists:foreach(fun say/1, Different),
    Different =:= [] andalso io:format("none~n"),
    Count = fun(Wanted) -> length([V || #{verdict := V} <- Verdicts, V =:= Wanted]) end,
    io:format("~n~b cases: ~b as over inet_tcp, ~b excepted by name, ~b passed at the second "
              "attempt, ~b better, ~b FAILED~n",
              [length(Verdicts), Count(same), Count(excepted), Count(second_attempt),
               Count(better), Count(failed)]),
    case Count(failed) of
        0 -> 0;
        _ -> 1
    end.

say(#{suite := Suite, group := Group, name := Name, expected := Expected, result := Result, verdict := Verdict,
      why := Why}) ->
    Padded = fun otp_suites_results:padded/2,
    io:format("~ts ~ts ~ts ~-8ts -> ~-8ts ~-15ts ~ts~n",
              [Padded(Suite, 24), Padded(Group, 12), Padded(Name, 40),
               Expected, Result, label(Verdict), Why]).

label(failed) -> "FAILED";
label(second_attempt) -> "second attempt";
label(Verdict) -> atom_to_list(Verdict).
