%% @doc A relay that is started by configuration: with the options of
%% `macula:start_relay/1', from the application environment
%% (`{macula, [{relay, Options}]}'), a file that `MACULA_RELAY_CONFIG' names, and
%% `MACULA_RELAY_*' of the operating system's environment. What comes later
%% in this list counts more.
-module(macula_relay_config).

-export([read/0, read/3, format_error/1]).

-export_type([error/0]).

-type error() :: {relay_config, File :: string(), term()} | {relay_env, Name :: string(), Value :: string()}.

-define(CONFIG, "MACULA_RELAY_CONFIG").
-define(PREFIX, "MACULA_RELAY_").

%% What of the environment stands for which option.
-define(TEXTS, [{"CERTFILE", certfile}, {"KEYFILE", keyfile}, {"PEERS", peers}, {"HEALTH", health}]).
-define(NUMBERS, [{"PORT", port}, {"NODES", nodes}, {"NODES_PER_REALM", nodes_per_realm},
                  {"ATTACHMENTS_PER_SECOND", attachments_per_second},
                  {"ATTACHMENTS_PER_REALM", attachments_per_realm}, {"MEMORY", memory},
                  {"BYTES_PER_NODE", bytes_per_node}, {"DATAGRAMS_PER_NODE", datagrams_per_node},
                  {"BYTES_PER_REALM", bytes_per_realm}, {"DATAGRAMS_PER_REALM", datagrams_per_realm}]).
-define(REALMS, ?PREFIX ++ "REALMS").

%% @doc The options of the relay that is configured; none: there is to be none.
-spec read() -> none | {ok, map()} | {error, error()}.
read() ->
    read(application:get_env(macula, relay, none), fun os:getenv/1, fun file:consult/1).

%% @private
-spec read(none | map(), fun((string()) -> false | string()),
           fun((string()) -> {ok, [term()]} | {error, term()})) -> none | {ok, map()} | {error, error()}.
read(Options, Env, Consult) ->
    try merged([Options, of_file(Env(?CONFIG), Consult), of_env(Env)]) of
        [] -> none;
        Given -> {ok, lists:foldl(fun(More, All) -> maps:merge(All, More) end, #{}, Given)}
    catch
        throw:{error, _} = Error -> Error
    end.

merged(Sources) ->
    [Source || Source <- Sources, Source =/= none].

of_file(false, _) ->
    none;
of_file("", _) ->
    none;
of_file(File, Consult) ->
    case Consult(File) of
        {ok, [Options]} when is_map(Options) -> Options;
        {ok, _} -> throw({error, {relay_config, File, no_map}});
        {error, Reason} -> throw({error, {relay_config, File, Reason}})
    end.

of_env(Env) ->
    Texts = [{Option, Text} || {Name, Option} <- ?TEXTS, Text <- given(Env, ?PREFIX ++ Name)],
    Numbers = [{Option, number(?PREFIX ++ Name, Text)} || {Name, Option} <- ?NUMBERS,
                                                          Text <- given(Env, ?PREFIX ++ Name)],
    Realms = [{realms, realms(Text)} || Text <- given(Env, ?REALMS)],
    case Texts ++ Numbers ++ Realms of
        [] -> none;
        Options -> maps:from_list(Options)
    end.

given(Env, Name) ->
    [Text || Text <- [Env(Name)], Text =/= false, Text =/= ""].

number(Name, Text) ->
    try
        list_to_integer(string:trim(Text))
    catch
        error:badarg -> throw({error, {relay_env, Name, Text}})
    end.

%% REALM=open or REALM=TOKEN, with commas between them; a realm may have several
%% tokens. For anything else there is the file.
realms(Text) ->
    Pairs = [string:split(string:trim(Pair), "=") || Pair <- string:lexemes(Text, ",")],
    lists:foldl(fun realm/2, #{}, Pairs).

realm([Realm, "open"], Realms) when Realm =/= "" ->
    Realms#{list_to_binary(Realm) => open};
realm([Realm, Token], Realms) when Realm =/= "", Token =/= "" ->
    Name = list_to_binary(Realm),
    More = unicode:characters_to_binary(Token),
    case Realms of
        #{Name := {tokens, Tokens}} -> Realms#{Name := {tokens, Tokens ++ [More]}};
        _ -> Realms#{Name => {tokens, [More]}}
    end;
realm(_, _) ->
    %% It may hold a token, and so is not shown.
    throw({error, {relay_env, ?REALMS, "..."}}).

%% @doc The error in one line that names the offending thing.
-spec format_error(term()) -> iolist().
format_error({relay_config, File, no_map}) ->
    [File, ": it must hold one map of options, and a full stop: #{port => 4433}."];
%% Any string in that file may be a token, and what is said here ends up in logs.
format_error({relay_config, File, {Line, erl_scan, _}}) ->
    io_lib:format("~ts: ~b: what begins here has no end, or should not be here: is there a quotation mark too few?", [File, Line]);
format_error({relay_config, File, {Line, erl_parse, [_, [$" | _]]}}) ->
    io_lib:format("~ts: ~b: syntax error before a string", [File, Line]);
format_error({relay_config, File, Reason}) ->
    [File, ": ", file:format_error(Reason)];
format_error({relay_env, ?REALMS, _}) ->
    [?REALMS, " must be REALM=open or REALM=TOKEN, with commas between them"];
format_error({relay_env, Name, Value}) ->
    [Name, "=", Value, " is no number"];
format_error({bad_option, _, _, _} = Bad) ->
    macula_config:format_error(Bad);
format_error({bad_file, File, Why}) ->
    [File, ": ", Why];
format_error({port_in_use, Port}) ->
    io_lib:format("port ~b is in use", [Port]);
format_error(Reason) ->
    io_lib:format("~tp", [Reason]).
