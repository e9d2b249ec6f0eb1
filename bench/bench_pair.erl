%% @doc Two nodes of one carrier, each a process of the operating system, and
%% a way to have node A do things. Both get what a user would give them: no
%% tuning. They end when their standard input closes, so with this VM.
-module(bench_pair).

-export([start/3, ask/3, stop/1]).
-export_type([carrier/0, pair/0, settings/0]).

-type carrier() :: inet_tcp | inet_tls | macula.
-type settings() :: #{ebin := file:filename(), macula_ebin := file:filename(), tls_options := file:filename()}.
-type pair() :: #{a := port(), b := port(), os_pids := [integer()]}.

-define(START_MS, 20_000).
-define(STOP_MS, 5_000).
-define(MARK, "bench:").

-spec start(carrier(), bench_place:place(), settings()) -> {ok, pair()} | {error, string()}.
start(Carrier, Place, Settings) ->
    #{address_a := AddressA, address_b := AddressB, prefix_a := PrefixA, prefix_b := PrefixB} = Place,
    Cookie = integer_to_list(binary:decode_unsigned(crypto:strong_rand_bytes(16)), 36),
    Start = fun(Name, Prefix) -> start_node(Name, Prefix, Carrier, Cookie, Place, Settings) end,
    B = Start(name("b", AddressB), PrefixB),
    A = Start(name("a", AddressA), PrefixA),
    Pair = #{a => A, b => B, os_pids => [os_pid(A), os_pid(B)]},
    case {answer(B, ?START_MS), answer(A, ?START_MS)} of
        {{ok, up}, {ok, up}} -> connect(Pair, list_to_atom(name("b", AddressB)));
        {{error, Reason}, _} -> failed_start(Pair, Reason);
        {_, {error, Reason}} -> failed_start(Pair, Reason)
    end.

connect(#{os_pids := OsPids} = Pair, NodeB) ->
    case ask(Pair, {peer, NodeB, OsPids}, ?START_MS) of
        {ok, ok} -> {ok, Pair};
        {error, Reason} -> failed_start(Pair, Reason)
    end.

failed_start(Pair, Reason) ->
    stop(Pair),
    {error, Reason}.

%% @doc Has node A do what bench_node understands.
-spec ask(pair(), term(), timeout()) -> {ok, term()} | {error, string()}.
ask(#{a := A}, Request, Limit) ->
    true = port_command(A, [base64:encode(term_to_binary(Request)), $\n]),
    answer(A, Limit).

%% What else a node says is log lines, of use only when it fails.
answer(Port, Limit) ->
    Timer = erlang:send_after(Limit, self(), {time_is_up, Port}),
    Answer = answer_line(Port, [], []),
    _ = erlang:cancel_timer(Timer),
    receive {time_is_up, Port} -> ok after 0 -> ok end,
    Answer.

answer_line(Port, Part, Said) ->
    receive
        {Port, {data, {noeol, Text}}} -> answer_line(Port, [Part, Text], Said);
        {Port, {data, {eol, Text}}} ->
            case lists:flatten([Part, Text]) of
                ?MARK ++ Encoded -> decode(Encoded);
                Line -> answer_line(Port, [], [Line | Said])
            end;
        {Port, {exit_status, Status}} ->
            {error, told(io_lib:format("a node ended with status ~b", [Status]), Said)};
        {time_is_up, Port} ->
            {error, told("no answer in time", Said)}
    end.

decode(Encoded) ->
    case binary_to_term(base64:decode(Encoded)) of
        {ok, _} = Ok -> Ok;
        {error, Reason} -> {error, lists:flatten(io_lib:format("~0tp", [Reason]))}
    end.

told(Reason, Said) ->
    lists:flatten([Reason | [[": ", Line] || Line <- lists:reverse(lists:sublist(Said, 5))]]).

-spec stop(pair()) -> ok.
stop(#{a := A, b := B}) ->
    [stop_node(Port) || Port <- [A, B]],
    ok.

stop_node(Port) ->
    OsPid = os_pid(Port),
    catch port_command(Port, "halt\n"),
    receive
        {Port, {exit_status, _}} -> ok
    after ?STOP_MS ->
        kill(OsPid)
    end,
    catch port_close(Port),
    drop_rest(Port).

%% A wedged node must not take the processor from those measured next.
kill(undefined) -> ok;
kill(OsPid) -> os:cmd("kill -9 " ++ integer_to_list(OsPid)).

drop_rest(Port) ->
    receive {Port, _} -> drop_rest(Port) after 0 -> ok end.

start_node(Name, Prefix, Carrier, Cookie, #{name := PlaceName, epmd_port := EpmdPort}, Settings) ->
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    [Command | Args] = Prefix ++ [Erl, "-noshell", "+Bd", "-name", Name, "-setcookie", Cookie, "-start_epmd", "false",
                                  "-pa", maps:get(ebin, Settings), "-run", "bench_node", "start"]
                              ++ flags(Carrier, Settings) ++ congestion(Carrier, PlaceName),
    open_port({spawn_executable, Command},
              [{args, Args}, {line, 65536}, exit_status, stderr_to_stdout,
               {env, [{"ERL_EPMD_PORT", integer_to_list(EpmdPort)}, {"ERL_CRASH_DUMP_SECONDS", "0"}]}]).

flags(inet_tcp, _) ->
    [];
flags(inet_tls, #{tls_options := File}) ->
    ["-proto_dist", "inet_tls", "-ssl_dist_optfile", File];
flags(macula, #{macula_ebin := Ebin}) ->
    ["-proto_dist", "macula", "-no_epmd", "-pa", Ebin].

%% QUIC here uses cubic, so the headline has TCP use it too. By socket option
%% and not by the namespace's setting: that one is limited to what the host
%% allows everybody, which is the host's to say. TCP_CONGESTION is 13.
congestion(macula, _) -> [];
congestion(_, loopback) -> [];
congestion(_, veth) ->
    Options = "[{raw,6,13,<<\"cubic\">>}]",
    ["-kernel", "inet_dist_listen_options", Options, "inet_dist_connect_options", Options].

name(Role, Address) ->
    "macula_bench_" ++ os:getpid() ++ Role ++ "@" ++ Address.

os_pid(Port) ->
    case erlang:port_info(Port, os_pid) of
        {os_pid, OsPid} -> OsPid;
        undefined -> undefined
    end.
