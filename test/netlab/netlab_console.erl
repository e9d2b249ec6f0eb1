%% @doc What stands behind `./dev lab': keeps a lab while a person is in it, and does what the
%% command `lab' asks for, a line each, with a line of answer each. Ends with its standard input.
-module(netlab_console).

-export([main/0]).

%% @doc Arguments: a scenario, and its options as key=value with terms for values; or none, which
%% lists the scenarios.
-spec main() -> no_return().
main() ->
    Status = case init:get_plain_arguments() of
                 [] -> list();
                 [Scenario | Options] -> keep(Scenario, Options)
             end,
    halt(Status).

list() ->
    [io:format("~-13s~ts~n", [Name, lists:join("\n" ++ lists:duplicate(13, $\s), About)])
     || {Name, About} <- netlab:scenarios()],
    0.

keep(Scenario, Options) ->
    case attempt(fun() -> open(list_to_atom(Scenario), options(Options)) end) of
        {ok, Lab} ->
            say(["ok ", netlab:id(Lab), [[" ", atom_to_list(Name)]
                                         || Name <- netlab:hosts(Lab) ++ netlab:routers(Lab)]]),
            serve(Lab),
            ok = netlab:stop(Lab),
            0;
        {error, Reason} ->
            say(["error ", Reason]),
            1
    end.

open(Scenario, Options) ->
    case netlab:requires() of
        ok -> netlab:start(Scenario, Options);
        {skip, Why} -> throw(Why)
    end.

serve(Lab) ->
    case io:get_line("") of
        Line when is_list(Line) ->
            case attempt(fun() -> obey(string:lexemes(Line, " \n"), Lab) end) of
                {ok, Answer} -> say(["ok ", Answer]);
                {error, Reason} -> say(["error ", Reason])
            end,
            serve(Lab);
        _ ->
            ok
    end.

obey(["address", Link], Lab) ->
    Both = [netlab:address(Lab, one_link(Link), Family) || Family <- [inet, inet6]],
    lists:join(" ", [inet:ntoa(Address) || Address <- Both, Address =/= none]);
obey(["counters", Link], Lab) ->
    io_lib:format("~0p", [netlab:counters(Lab, one_link(Link))]);
obey(["set", Link | Impairment], Lab) ->
    changed({set, one_link(Link), options(Impairment)}, Lab);
obey([Change, Link], Lab) ->
    changed({list_to_atom(Change), one_link(Link)}, Lab);
obey(_, _) ->
    throw("see 'lab help'").

changed(Change, Lab) ->
    ok = netlab:change(Lab, Change),
    "".

%% A machine, or one of its links as machine/net.
one_link(Text) ->
    case string:split(Text, "/") of
        [Name] -> list_to_atom(Name);
        [Name, Net] -> {list_to_atom(Name), list_to_atom(Net)}
    end.

options(Words) ->
    maps:from_list([option(string:split(Word, "=")) || Word <- Words]).

option([Key, Value]) ->
    {ok, Tokens, _} = erl_scan:string(Value ++ "."),
    case erl_parse:parse_term(Tokens) of
        {ok, Term} -> {list_to_atom(Key), Term};
        {error, _} -> throw(Key ++ "=" ++ Value ++ ": an Erlang term expected behind the =")
    end;
option([Word]) ->
    throw(Word ++ ": key=value expected").

attempt(Fun) ->
    try
        {ok, Fun()}
    catch
        throw:Text -> {error, Text};
        error:Reason -> {error, io_lib:format("~0p", [Reason])}
    end.

say(Line) ->
    io:put_chars([Line, "\n"]).
