%% @doc Takes a node name apart into name, host and port, and says whether it
%% is legal under long or short names. Pure.
-module(macula_dist_name).

-export([split/1, check/2, format_error/1]).
-export([default_port/0, fields/2]).

-export_type([parts/0, error/0]).

%% `text' is all that stands behind the `@', as the user wrote it.
-type parts() :: #{name := string(), text := string(),
                   host := string() | inet:ip_address(),
                   port := default | inet:port_number()}.
-type error() :: no_at_sign | many_at_signs | empty_name | empty_host
               | {bad_port, string()} | {bad_host, string()}
               | {dot_in_short_name, string()}.

%% @doc The port of a node that says nothing else.
-spec default_port() -> inet:port_number().
default_port() -> 4433.

-spec split(node() | string()) -> {ok, parts()} | {error, error()}.
split(Node) when is_atom(Node) ->
    split(atom_to_list(Node));
split(Node) ->
    case fields(Node, $@) of
        [_] -> {error, no_at_sign};
        ["", _] -> {error, empty_name};
        [_, ""] -> {error, empty_host};
        [Name, Text] -> parts(Name, Text, host_and_port(Text));
        _ -> {error, many_at_signs}
    end.

%% @doc As OTP does: with short names a host has no dots. With long names it
%% need not have any, `mynode@myhost' is fine.
-spec check(node() | string(), longnames | shortnames) -> {ok, parts()} | {error, error()}.
check(Node, Domain) ->
    case split(Node) of
        {ok, #{text := Text} = Parts} -> check_domain(Domain, lists:member($., Text), Parts);
        {error, _} = Error -> Error
    end.

check_domain(shortnames, true, #{text := Text}) -> {error, {dot_in_short_name, Text}};
check_domain(_, _, Parts) -> {ok, Parts}.

parts(Name, Text, {ok, Host, Port}) ->
    {ok, #{name => Name, text => Text, host => Host, port => Port}};
parts(_, _, {error, _} = Error) ->
    Error.

%% Two colons make an IPv6 literal; it needs brackets only to carry a port.
host_and_port("[" ++ Rest) ->
    case fields(Rest, $]) of
        [Literal, ""] -> literal(Literal, default);
        [Literal, ":" ++ Port] -> with_port(literal(Literal, default), Port);
        _ -> {error, {bad_host, "[" ++ Rest}}
    end;
host_and_port(Text) ->
    case fields(Text, $:) of
        [Host] -> {ok, host(Host), default};
        ["", _] -> {error, empty_host};
        [Host, Port] -> with_port({ok, host(Host), default}, Port);
        [_, _ | _] -> literal_or_name(literal(Text, default), Text)
    end.

%% Six groups and no `::' make no address, but OTP takes them for the name of a
%% host, which this machine's registry can still know.
literal_or_name({ok, _, _} = Literal, _) ->
    Literal;
literal_or_name({error, _} = Error, Text) ->
    case lists:all(fun is_of_literal/1, Text) of
        true -> {ok, Text, default};
        false -> Error
    end.

is_of_literal(Char) ->
    lists:member(Char, "0123456789abcdefABCDEF:").

host(Text) ->
    case inet:parse_strict_address(Text) of
        {ok, Ip} -> Ip;
        {error, _} -> Text
    end.

literal(Text, Port) ->
    case inet:parse_ipv6strict_address(Text) of
        {ok, Ip} -> {ok, Ip, Port};
        {error, _} -> {error, {bad_host, Text}}
    end.

with_port({ok, Host, _}, Text) ->
    case port(Text) of
        {ok, Port} -> {ok, Host, Port};
        error -> {error, {bad_port, Text}}
    end;
with_port({error, _} = Error, _) ->
    Error.

%% Digits alone: a sign is none.
port([Digit | _] = Text) when Digit >= $0, Digit =< $9 ->
    case string:to_integer(Text) of
        {Port, ""} when Port > 0, Port < 65536 -> {ok, Port};
        _ -> error
    end;
port(_) ->
    error.

%% @doc What stands between the separators, by code points. string:split/3 goes
%% by what a reader takes for one character, so that an accent after the `@'
%% would hide it.
-spec fields(string(), char()) -> [string(), ...].
fields(Text, Separator) ->
    case lists:splitwith(fun(Char) -> Char =/= Separator end, Text) of
        {Field, [_ | Rest]} -> [Field | fields(Rest, Separator)];
        {Field, []} -> [Field]
    end.

-spec format_error(error()) -> iolist().
format_error(no_at_sign) -> "it has no '@'";
format_error(many_at_signs) -> "it has more than one '@'";
format_error(empty_name) -> "nothing stands before the '@'";
format_error(empty_host) -> "it names no host";
format_error({bad_port, Text}) -> io_lib:format("~ts is not a port", [Text]);
format_error({bad_host, Text}) ->
    io_lib:format("~ts is neither a host, host:port nor [ipv6]:port", [Text]);
format_error({dot_in_short_name, Host}) ->
    io_lib:format("this node uses short names (-sname), and the host ~ts has a dot in it", [Host]).
