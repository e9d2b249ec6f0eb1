%% @doc The options of join_mesh and start_relay: types, defaults, and errors
%% that name the bad key. Pure.
-module(macula_mesh_options).

-export([mesh/1, relay/1, relays/2]).

-export_type([mesh/0, relay/0, url/0]).

%% The whole, the host and the port.
-type url() :: {Text :: binary(), Host :: binary(), inet:port_number()}.
-type mesh() :: #{relays := [url(), ...], realm := binary(), identity := undefined | binary(),
                  token := binary(), verify := boolean(),
                  authorities := undefined | binary(),
                  certificate := undefined | {File :: binary(), KeyFile :: binary()},
                  timeout := pos_integer(), interval := pos_integer(),
                  attempts := non_neg_integer()}.
-type access() :: open | {tokens, [binary(), ...]} | {cacertfile, binary()}.
-type relay() :: #{port := undefined | inet:port_number(),
                   health := undefined | {inet:ip_address(), inet:port_number()},
                   certificate := undefined | {File :: binary(), KeyFile :: binary()},
                   realms := undefined | [{binary(), access()}],
                   peers := [url()],
                   nodes := pos_integer(),
                   nodes_per_realm := undefined | pos_integer(),
                   attachments_per_second := pos_integer(),
                   attachments_per_realm := undefined | pos_integer(),
                   memory := pos_integer(),
                   bytes_per_node := undefined | pos_integer(),
                   datagrams_per_node := undefined | pos_integer(),
                   bytes_per_realm := undefined | pos_integer(),
                   datagrams_per_realm := undefined | pos_integer()}.

-define(MESH_KEYS, [relays, realm, identity, token, tls_verify, cacertfile, certfile, keyfile,
                    timeout, reconnect_interval, reconnect_attempts]).
-define(LIMITS, [nodes_per_realm, attachments_per_realm, bytes_per_node, datagrams_per_node,
                 bytes_per_realm, datagrams_per_realm]).
-define(RELAY_KEYS, [port, health, certfile, keyfile, realms, peers, nodes, attachments_per_second, memory
                     | ?LIMITS]).

%% Where CAs are that this system trusts: Debian and its kin, Red Hat and its
%% kin, Alpine and the BSDs.
-define(SYSTEM_CAS, ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                     "/etc/ssl/cert.pem"]).
-define(DEFAULT_REALM, <<"io.macula">>).
-define(DEFAULT_TIMEOUT, 30_000).
-define(DEFAULT_INTERVAL, 2_000).
-define(DEFAULT_ATTEMPTS, 15).
-define(MAX_RELAYS, 64).
-define(MAX_NAME, 255).
-define(MAX_TOKEN, 1024).
%% Anybody can attach to an open relay, and each node takes memory of the VM:
%% several times the nodes a mesh is made for.
-define(DEFAULT_NODES, 4096).
%% What one core can take, and leave the half of its time to those who are
%% attached.
-define(DEFAULT_ATTACHMENTS, 500).
%% Bytes that wait for nodes which do not take them, at all nodes together: two
%% hundred with as much as one may have.
-define(DEFAULT_MEMORY, 256 * 1024 * 1024).

%% @doc The options of join_mesh, checked and completed.
-spec mesh(term()) -> {ok, mesh()} | {error, macula_config:bad_option()}.
mesh(Options) ->
    checked(fun() -> mesh_options(map(mesh, Options)) end).

%% @doc The options of start_relay, checked and completed.
-spec relay(term()) -> {ok, relay()} | {error, macula_config:bad_option()}.
relay(Options) ->
    checked(fun() -> relay_options(map(relay, Options)) end).

checked(Check) ->
    try
        {ok, Check()}
    catch
        throw:{bad_option, _, _, _} = Bad -> {error, Bad}
    end.

map(_, Options) when is_map(Options) -> Options;
map(Key, Options) -> bad(Key, map, Options).

mesh_options(Options) ->
    ok = macula_config:known_keys(Options, ?MESH_KEYS),
    Verify = option(tls_verify, Options, fun verify/2, false),
    #{relays => relays(relays, maps:get(relays, Options, [])),
      realm => option(realm, Options, fun realm/2, ?DEFAULT_REALM),
      identity => option(identity, Options, fun identity/2, undefined),
      token => option(token, Options, fun token/2, <<>>),
      verify => Verify,
      authorities => authorities(Verify, option(cacertfile, Options, fun file/2, undefined)),
      certificate => certificate(Options),
      timeout => option(timeout, Options, fun count/2, ?DEFAULT_TIMEOUT),
      interval => option(reconnect_interval, Options, fun count/2, ?DEFAULT_INTERVAL),
      attempts => option(reconnect_attempts, Options, fun count/2, ?DEFAULT_ATTEMPTS)}.

relay_options(Options) ->
    ok = macula_config:known_keys(Options, ?RELAY_KEYS),
    Limits = maps:from_list([{Key, option(Key, Options, fun count/2, undefined)}
                             || Key <- ?LIMITS]),
    Limits#{port => option(port, Options, fun port/2, undefined),
            health => option(health, Options, fun health/2, undefined),
            certificate => certificate(Options),
            realms => option(realms, Options, fun realms/2, undefined),
            peers => option(peers, Options, fun peers/2, []),
            nodes => option(nodes, Options, fun count/2, ?DEFAULT_NODES),
            attachments_per_second => option(attachments_per_second, Options, fun count/2,
                                             ?DEFAULT_ATTACHMENTS),
            memory => option(memory, Options, fun count/2, ?DEFAULT_MEMORY)}.

option(Key, Options, Check, Default) ->
    case Options of
        #{Key := Value} -> Check(Key, Value);
        _ -> Default
    end.

%% @doc A list of relay URLs, or text with commas between them.
-spec relays(term(), term()) -> [url(), ...].
relays(Key, [Char | _] = Text) when is_integer(Char) ->
    relays(Key, unicode:characters_to_binary(Text));
relays(Key, Text) when is_binary(Text) ->
    relays(Key, binary:split(Text, <<",">>, [global, trim_all]));
relays(Key, [_ | _] = Relays) when length(Relays) =< ?MAX_RELAYS ->
    [url(Key, Relay) || Relay <- Relays];
relays(Key, Got) ->
    bad(Key, relay_urls, Got).

url(Key, Given) ->
    Text = string:trim(text(Key, relay_url, Given)),
    case uri_string:parse(Text) of
        #{scheme := <<"https">>, host := Host} = Uri when Host =/= <<>> ->
            {Text, bare(Host), url_port(Key, maps:get(port, Uri, 443), Given)};
        #{scheme := <<"quic">>, host := Host} = Uri when Host =/= <<>> ->
            Default = macula_dist_name:default_port(),
            {Text, bare(Host), url_port(Key, maps:get(port, Uri, Default), Given)};
        _ ->
            bad(Key, relay_url, Given)
    end.

url_port(_, Port, _) when is_integer(Port), Port > 0, Port < 65536 -> Port;
url_port(Key, _, Given) -> bad(Key, relay_url, Given).

%% An IPv6 address stands in brackets in a URL.
bare(<<"[", Rest/binary>>) -> binary:part(Rest, 0, byte_size(Rest) - 1);
bare(Host) -> Host.

verify(_, none) -> false;
verify(_, verify_peer) -> true;
verify(Key, Got) -> bad(Key, {one_of, [none, verify_peer]}, Got).

authorities(true, undefined) ->
    case lists:filter(fun filelib:is_regular/1, ?SYSTEM_CAS) of
        [File | _] -> list_to_binary(File);
        [] -> bad(cacertfile, {needed_for, {tls_verify, verify_peer}}, undefined)
    end;
authorities(false, File) when File =/= undefined ->
    %% A CA that is not asked for would look like protection that is not there.
    bad(cacertfile, {only_with, {tls_verify, verify_peer}}, File);
authorities(_, File) ->
    File.

certificate(#{certfile := Certificate, keyfile := Key}) ->
    {file(certfile, Certificate), file(keyfile, Key)};
certificate(#{certfile := _}) ->
    bad(keyfile, {needed_for, certfile}, undefined);
certificate(#{keyfile := _}) ->
    bad(certfile, {needed_for, keyfile}, undefined);
certificate(_) ->
    undefined.

realm(Key, Given) -> name(Key, realm, Given).

identity(Key, Given) -> name(Key, identity, Given).

name(Key, Expected, Given) ->
    case text(Key, Expected, Given) of
        Name when Name =/= <<>>, byte_size(Name) =< ?MAX_NAME -> Name;
        _ -> bad(Key, Expected, Given)
    end.

realms(_, Realms) when is_map(Realms), map_size(Realms) > 0 ->
    [{realm(realms, Realm), access(Realm, Access)} || {Realm, Access} <- maps:to_list(Realms)];
realms(Key, Got) ->
    bad(Key, map, Got).

access(_, open) -> open;
access(_, {tokens, [_ | _] = Tokens}) -> {tokens, [token(realms, Token) || Token <- Tokens]};
access(_, {cacertfile, File}) -> {cacertfile, file(realms, File)};
access(Realm, Got) -> bad({realms, Realm}, realm_access, Got).

token(Key, Given) ->
    case text(Key, token, Given) of
        Token when Token =/= <<>>, byte_size(Token) =< ?MAX_TOKEN -> Token;
        _ -> bad(Key, token, secret)
    end.

file(Key, Given) ->
    case text(Key, file_name, Given) of
        <<>> -> bad(Key, file_name, Given);
        File -> File
    end.

peers(_, []) -> [];
peers(Key, Given) -> relays(Key, Given).

port(_, Port) when is_integer(Port), Port > 0, Port =< 65535 -> Port;
port(Key, Got) -> bad(Key, {integer, 1, 65535}, Got).

%% ADDRESS:PORT, or a port of this machine only.
health(_, Port) when is_integer(Port), Port > 0, Port < 65536 -> {{127, 0, 0, 1}, Port};
health(Key, Given) ->
    Text = binary_to_list(text(Key, health_address, Given)),
    case string:split(Text, ":", trailing) of
        [Ip, Port] -> {health_ip(Key, string:trim(Ip, both, "[]"), Given), health_port(Key, Port, Given)};
        [Port] -> {{127, 0, 0, 1}, health_port(Key, Port, Given)}
    end.

health_ip(Key, Text, Given) ->
    case inet:parse_strict_address(Text) of
        {ok, Ip} -> Ip;
        {error, _} -> bad(Key, health_address, Given)
    end.

health_port(Key, Text, Given) ->
    case string:to_integer(Text) of
        {Port, ""} when Port > 0, Port < 65536 -> Port;
        _ -> bad(Key, health_address, Given)
    end.

%% What fits any counter of the native side.
count(_, N) when is_integer(N), N > 0, N < 1 bsl 31 -> N;
count(Key, Got) -> bad(Key, {integer, 1, 1 bsl 31 - 1}, Got).

text(_, _, Atom) when is_atom(Atom), Atom =/= undefined -> atom_to_binary(Atom);
text(Key, Expected, Given) ->
    try unicode:characters_to_binary(Given) of
        Text when is_binary(Text) -> Text;
        _ -> bad(Key, Expected, Given)
    catch
        error:badarg -> bad(Key, Expected, Given)
    end.

-spec bad(term(), term(), term()) -> no_return().
bad(Key, Expected, Got) ->
    throw({bad_option, Key, Expected, Got}).
