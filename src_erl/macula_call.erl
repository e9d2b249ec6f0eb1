%% @doc The tool macula_call: calls a function on a running node, or evaluates
%% expressions there, and prints the result. It is a node of its own without a
%% name, that does not listen, keeps nothing and is gone afterwards.
-module(macula_call).

-export([main/0]).
-export([parse/1]).

-export_type([request/0]).

-type action() :: ping | {call, module(), atom(), [term()]} | {eval, [erl_parse:abstract_expr()]}
                | {eval, standard_input}.
-type request() :: #{node := node(), action := action(),
                     cookie := undefined | atom(), timeout := pos_integer() | infinity,
                     %% How erl_call shows what expressions give.
                     tagged := boolean()}.

-define(OK, 0).
-define(RAISED, 1).
-define(USAGE, 2).
-define(UNREACHABLE, 3).
-define(TIMEOUT, 4).

%% For the call; a script that waits for ever helps nobody.
-define(DEFAULT_TIMEOUT_S, 60).
%% OTP's own bound on reaching a node.
-define(SETUP_S, 7).
-define(CHUNK, 65_536).

%% @doc Does what the command line says and ends this VM.
-spec main() -> no_return().
main() ->
    [ok = io:setopts(Device, [{encoding, unicode}]) || Device <- [standard_io, standard_error]],
    ok = log_to_standard_error(),
    Status = run(parse(init:get_plain_arguments())),
    %% What was logged is written by a process of its own, which halt/1 does not wait for.
    ok = logger_std_h:filesync(default),
    halt(Status).

%% Standard output is for the result alone.
log_to_standard_error() ->
    _ = logger:remove_handler(default),
    logger:add_handler(default, logger_std_h,
                       #{config => #{type => standard_error},
                         formatter => {logger_formatter, #{single_line => true,
                                                           template => [msg, "\n"]}}}).

run(help) ->
    io:put_chars(usage()),
    ?OK;
run({error, Why}) ->
    complain([Why, "; macula_call -help says more"]),
    ?USAGE;
run({ok, #{action := {eval, standard_input}} = Request}) ->
    case expressions(standard_input()) of
        {ok, Expressions} -> run({ok, Request#{action := {eval, Expressions}}});
        {error, _} = Error -> run(Error)
    end;
run({ok, #{cookie := undefined} = Request}) ->
    ok = macula_config:load(),
    case macula_cookie:resolve() of
        {ok, Cookie} -> connected(connect(Request#{cookie := Cookie}), Request);
        {error, not_found} -> run({error, "there is no cookie: set MACULA_COOKIE, or give -c"})
    end;
run({ok, Request}) ->
    connected(connect(Request), Request).

%% Why a node could not be reached is in the carrier's own log line.
connect(#{node := Node, cookie := Cookie, timeout := Timeout}) ->
    ok = application:set_env(kernel, net_setuptime, setup_time(Timeout)),
    case net_kernel:start(nameless(), #{name_domain => domain(Node)}) of
        {ok, _} ->
            true = erlang:set_cookie(Cookie),
            net_kernel:hidden_connect_node(Node);
        {error, Reason} ->
            complain(io_lib:format("distribution does not start: ~0tp", [Reason])),
            false
    end.

%% The node called gives the name. With the host, for which OTP would else want a
%% domain under long names.
nameless() ->
    list_to_atom("undefined@" ++ macula_distribution:hostname()).

setup_time(infinity) -> ?SETUP_S;
setup_time(Timeout) -> max(1, min(?SETUP_S, Timeout div 1000)).

domain(Node) ->
    case lists:member($., atom_to_list(Node)) of
        true -> longnames;
        false -> shortnames
    end.

connected(true, #{action := ping}) ->
    io:put_chars("pong\n"),
    ?OK;
connected(true, #{node := Node, action := Action, timeout := Timeout, tagged := Tagged}) ->
    %% What the function prints is not its result.
    true = group_leader(whereis(standard_error), self()),
    call(Node, Action, Timeout, Tagged);
connected(_, #{node := Node, action := Action}) ->
    _ = [io:put_chars("pang\n") || Action =:= ping],
    complain(io_lib:format("~ts cannot be reached", [Node])),
    ?UNREACHABLE.

call(Node, Action, Timeout, Tagged) ->
    {M, F, A} = mfa(Action),
    try erpc:call(Node, M, F, A, Timeout) of
        Result -> answer(Action, Result, Tagged)
    catch
        error:{erpc, noconnection} ->
            complain(io_lib:format("the connection to ~ts was lost during the call", [Node])),
            ?UNREACHABLE;
        error:{erpc, timeout} ->
            complain(io_lib:format("~ts did not answer within ~b s", [Node, Timeout div 1000])),
            ?TIMEOUT;
        error:{exception, Reason, Stack} ->
            raised(Node, error, Reason, Stack);
        exit:{exception, Reason} ->
            raised(Node, exit, Reason, []);
        exit:{signal, Reason} ->
            raised(Node, exit, Reason, []);
        throw:Thrown ->
            raised(Node, throw, Thrown, [])
    end.

mfa({call, M, F, A}) -> {M, F, A};
mfa({eval, Expressions}) -> {erl_eval, exprs, [Expressions, []]}.

answer({call, _, _, _}, Result, _) -> print(Result);
answer({eval, _}, {value, Result, _}, true) -> print({ok, Result});
answer({eval, _}, {value, Result, _}, false) -> print(Result).

%% One line that file:consult/1 and the like can read, but for the full stop.
print(Result) ->
    io:format(standard_io(), "~0tp~n", [Result]),
    ?OK.

%% By now it is no longer our group leader.
standard_io() ->
    whereis(user).

raised(Node, Class, Reason, Stack) ->
    Lines = erl_error:format_exception(Class, Reason, Stack),
    complain(io_lib:format("on ~ts, ~ts", [Node, Lines])),
    ?RAISED.

complain(Why) ->
    io:format(standard_error, "macula_call: ~ts~n", [Why]).

%%% The command line

%% @doc What is asked for; the atoms it makes are those of our own user.
-spec parse([string()]) -> {ok, request()} | help | {error, iolist()}.
parse(Arguments) ->
    try
        {ok, options(Arguments, #{cookie => undefined, timeout => ?DEFAULT_TIMEOUT_S * 1000,
                                  tagged => false})}
    catch
        throw:help -> help;
        throw:{usage, Why} -> {error, Why}
    end.

options([Help | _], _) when Help =:= "-help"; Help =:= "--help" -> throw(help);
options(["-c", Cookie | Others], Request) ->
    options(Others, Request#{cookie := atom("a cookie", Cookie)});
options(["-setcookie" | Others], Request) ->
    options(["-c" | Others], Request);
options(["-timeout", Seconds | Others], Request) ->
    options(Others, Request#{timeout := timeout(Seconds)});
%% As erl_call has it, so that scripts made for it need no change.
options([Name, Node | Others], Request) when Name =:= "-n"; Name =:= "-name"; Name =:= "-sname" ->
    options(Others, Request#{node => node_name(Node)});
options([Dynamic | Others], Request) when Dynamic =:= "-R"; Dynamic =:= "-r" ->
    options(Others, Request);
options(["-a", Text], #{node := _} = Request) ->
    Request#{action => apply_text(Text)};
options(["-e"], #{node := _} = Request) ->
    Request#{action => {eval, standard_input}, tagged := true};
options(["-" ++ _ = Option | _], _) ->
    usage("~ts is no option, or something is missing behind it", [Option]);
options(["ping", Node], Request) ->
    Request#{node => node_name(Node), action => ping};
options(["eval", Node, "-"], Request) ->
    Request#{node => node_name(Node), action => {eval, standard_input}};
options(["eval", Node, Text], Request) ->
    Request#{node => node_name(Node), action => eval_text(Text)};
options([Node, Module, Function | Arguments], Request) ->
    Request#{node => node_name(Node),
             action => {call, atom("a module", Module), atom("a function", Function),
                        [term(Argument) || Argument <- Arguments]}};
options(_, _) ->
    usage("a node, a module and a function are needed", []).

%% A typo must not be looked for on the network.
node_name(Text) ->
    case macula_dist_name:split(Text) of
        {ok, _} -> atom("a node name", Text);
        {error, Why} ->
            usage("~ts is no node name: ~ts", [Text, macula_dist_name:format_error(Why)])
    end.

%% Not shown: it may be the cookie.
atom(_, [_ | _] = Text) when length(Text) =< 255 -> list_to_atom(Text);
atom(What, _) -> usage("~ts has 1 to 255 characters", [What]).

timeout("infinity") ->
    infinity;
timeout(Text) ->
    case string:to_integer(Text) of
        {Seconds, ""} when Seconds > 0, Seconds =< 1_000_000 -> Seconds * 1000;
        _ -> usage("-timeout ~ts: seconds are needed, or infinity", [Text])
    end.

term(Text) ->
    case parsed(Text, fun erl_parse:parse_term/1) of
        {ok, Term} -> Term;
        {error, Why} -> usage("~ts is no Erlang term: ~ts", [Text, Why])
    end.

%% `module function [Argument,...]' in one; the last two may be left out.
apply_text(Text) ->
    case lists:map(fun string:trim/1, string:split(string:trim(Text), " ")) of
        [Module] -> {call, atom("a module", Module), start, []};
        [Module, More] -> apply_text(atom("a module", Module), string:split(More, " "))
    end.

apply_text(Module, [Function]) -> {call, Module, atom("a function", Function), []};
apply_text(Module, [Function, Text]) ->
    Arguments = term(Text),
    is_list(Arguments) orelse usage("~ts is no list of arguments", [Text]),
    {call, Module, atom("a function", Function), Arguments}.

eval_text(Text) ->
    case expressions(Text) of
        {ok, Expressions} -> {eval, Expressions};
        {error, Why} -> usage("~ts", [Why])
    end.

expressions(Text) ->
    case parsed(Text, fun erl_parse:parse_exprs/1) of
        {ok, Expressions} -> {ok, Expressions};
        {error, Why} -> {error, io_lib:format("the expressions cannot be read: ~ts", [Why])}
    end.

parsed(Text, Parse) ->
    case erl_scan:string(Text) of
        {ok, Tokens, End} -> described(Parse(ended(Tokens, End)));
        {error, Info, _} -> described({error, Info})
    end.

%% The full stop may be left out.
ended([], End) ->
    [{dot, End}];
ended(Tokens, End) ->
    case lists:last(Tokens) of
        {dot, _} -> Tokens;
        _ -> Tokens ++ [{dot, End}]
    end.

described({ok, _} = Parsed) -> Parsed;
described({error, {_, Module, Description}}) -> {error, Module:format_error(Description)}.

standard_input() ->
    case io:get_chars(standard_io, "", ?CHUNK) of
        Chars when is_list(Chars) -> Chars ++ standard_input();
        _ -> ""
    end.

-spec usage(io:format(), [term()]) -> no_return().
usage(Format, Arguments) ->
    throw({usage, io_lib:format(Format, Arguments)}).

usage() ->
    "macula_call [OPTION...] NODE MODULE FUNCTION [ARGUMENT...]\n"
    "macula_call [OPTION...] eval NODE EXPRESSIONS\n"
    "macula_call [OPTION...] ping NODE\n"
    "macula_call [OPTION...] -sname NODE -a 'MODULE [FUNCTION [LIST]]', or -e: as erl_call does\n"
    "\n"
    "Calls a function on a running node, over macula. Each argument is an Erlang term. The\n"
    "result is printed as an Erlang term in one line; what the function itself prints goes to\n"
    "standard error. EXPRESSIONS are - when they come from standard input.\n"
    "\n"
    "  -c COOKIE, -setcookie COOKIE    seen by all in the list of processes: better leave it to\n"
    "                                  MACULA_COOKIE, RELEASE_COOKIE, ERLANG_COOKIE or\n"
    "                                  ~/.erlang.cookie\n"
    "  -timeout SECONDS                how long the call may take, or infinity; 60\n"
    "\n"
    "Exit status: 0 done, 1 the call raised, 2 wrong usage or no cookie, 3 the node was not\n"
    "reached or was lost, 4 no answer in time.\n".
