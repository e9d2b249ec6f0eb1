%% @doc One measured node, a process of the operating system that runs
%% bench_node. It ends when its standard input closes, so with this VM.
-module(bench_vm).

-export([start/4, name/2, cookie/0, ask/3, answer/2, os_pid/1, stop/1]).
-export_type([settings/0, options/0]).

-type settings() :: #{ebin := file:filename(), macula_ebin := file:filename(), measured_ebin := file:filename(),
                      tls_options := file:filename(), bare := file:filename()}.
%% prefix: what is put before the command. flags: further ones of the emulator.
%% Without a name it is no node.
-type options() :: #{name := string() | none, cookie := string(), prefix := [string()], flags => [string()],
                     env => [{string(), string()}]}.

-define(STOP_MS, 5_000).
-define(MARK, "bench:").

%% @doc What a user would give a node of that carrier, and no tuning. Its first
%% answer is `up'.
-spec start(bench_contender:contender(), bench_place:place(), settings(), options()) -> port().
start(#{carrier := Carrier} = Contender, #{epmd_port := EpmdPort}, #{ebin := Ebin} = Settings, Options) ->
    #{name := Name, cookie := Cookie, prefix := Prefix} = Options,
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    [Command | Args] = Prefix ++ [Erl, "-noshell", "+Bd", "-pa", Ebin, "-run", "bench_node", "start"]
                              ++ named(Name, Cookie) ++ flags(Carrier, maps:merge(Settings, maps:with([macula_ebin], Contender))) ++ congestion(Contender)
                              ++ maps:get(flags, Contender, []) ++ maps:get(flags, Options, []),
    open_port({spawn_executable, Command},
              [{args, Args}, {line, 65536}, exit_status, stderr_to_stdout,
               {env, [{"ERL_EPMD_PORT", integer_to_list(EpmdPort)}, {"ERL_CRASH_DUMP_SECONDS", "0"}
                      | maps:get(env, Options, [])]}]).

named(none, _) -> [];
named(Name, Cookie) -> ["-name", Name, "-setcookie", Cookie, "-start_epmd", "false"].

flags(inet_tcp, _) ->
    [];
flags(inet_tls, #{tls_options := File}) ->
    ["-proto_dist", "inet_tls", "-ssl_dist_optfile", File];
flags(relay, #{macula_ebin := Ebin}) ->
    ["-pa", Ebin];
flags(Carrier, #{macula_ebin := Ebin}) when Carrier =:= macula; Carrier =:= relayed ->
    ["-proto_dist", "macula", "-no_epmd", "-pa", Ebin].

%% By socket option and not by the namespace's setting: that one is limited to
%% what the host allows everybody, which is the host's to say. TCP_CONGESTION is 13.
congestion(#{congestion := undefined}) -> [];
congestion(#{congestion := Name}) ->
    Options = lists:concat(["[{raw,6,13,<<\"", Name, "\">>}]"]),
    ["-kernel", "inet_dist_listen_options", Options, "inet_dist_connect_options", Options].

%% @doc A node's name, of this run.
-spec name(string(), string()) -> string().
name(Role, Address) ->
    "macula_bench_" ++ os:getpid() ++ Role ++ "@" ++ Address.

-spec cookie() -> string().
cookie() ->
    integer_to_list(binary:decode_unsigned(crypto:strong_rand_bytes(16)), 36).

%% @doc Has the node do what bench_node understands.
-spec ask(port(), term(), timeout()) -> {ok, term()} | {error, string()}.
ask(Vm, Request, Limit) ->
    true = port_command(Vm, [base64:encode(term_to_binary(Request)), $\n]),
    answer(Vm, Limit).

%% @doc What the node says next. What else it says is log lines, of use only
%% when it fails.
-spec answer(port(), timeout()) -> {ok, term()} | {error, string()}.
answer(Vm, Limit) ->
    Timer = erlang:send_after(Limit, self(), {time_is_up, Vm}),
    Answer = answer_line(Vm, [], []),
    _ = erlang:cancel_timer(Timer),
    receive {time_is_up, Vm} -> ok after 0 -> ok end,
    Answer.

answer_line(Vm, Part, Said) ->
    receive
        {Vm, {data, {noeol, Text}}} -> answer_line(Vm, [Part, Text], Said);
        {Vm, {data, {eol, Text}}} ->
            case lists:flatten([Part, Text]) of
                ?MARK ++ Encoded -> decode(Encoded);
                Line -> answer_line(Vm, [], [Line | Said])
            end;
        {Vm, {exit_status, Status}} ->
            {error, told(io_lib:format("a node ended with status ~b", [Status]), Said)};
        {time_is_up, Vm} ->
            {error, told("no answer in time", Said)}
    end.

decode(Encoded) ->
    case binary_to_term(base64:decode(Encoded)) of
        {ok, _} = Ok -> Ok;
        {error, Reason} -> {error, lists:flatten(io_lib:format("~0tp", [Reason]))}
    end.

told(Reason, Said) ->
    lists:flatten([Reason | [[": ", Line] || Line <- lists:reverse(lists:sublist(Said, 5))]]).

-spec os_pid(port()) -> integer() | undefined.
os_pid(Vm) ->
    case erlang:port_info(Vm, os_pid) of
        {os_pid, OsPid} -> OsPid;
        undefined -> undefined
    end.

%% @doc Ends the node for good, however it does.
-spec stop(port()) -> ok.
stop(Vm) ->
    OsPid = os_pid(Vm),
    catch port_command(Vm, "halt\n"),
    receive
        {Vm, {exit_status, _}} -> ok
    after ?STOP_MS ->
        kill(OsPid)
    end,
    catch port_close(Vm),
    drop_rest(Vm).

%% A wedged node must not take the processor from those measured next.
kill(undefined) -> ok;
kill(OsPid) -> os:cmd("kill -9 " ++ integer_to_list(OsPid)).

drop_rest(Vm) ->
    receive {Vm, _} -> drop_rest(Vm) after 0 -> ok end.
