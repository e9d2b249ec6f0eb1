%% @doc What an operator asks of a relay's release, beside running it: see
%% release/relay/relay.sh. Each ends the VM with a status.
-module(macula_relay_command).

-export([health/0, check/0]).

-define(ANSWER_MS, 5_000).

%% @doc Prints the health answer of the relay that is configured. Status 0: it is
%% well; 1: it is not, or does not answer.
-spec health() -> no_return().
health() ->
    case options() of
        {ok, #{health := undefined}} -> stop(1, "the option health is not set: nobody answers");
        {ok, #{health := Address}} -> healthy(ask(Address));
        {error, Reason} -> stop(1, macula_relay_config:format_error(Reason))
    end.

-spec healthy({ok, Status :: integer(), iodata()} | {error, inet:posix()}) -> no_return().
healthy({ok, 200, Body}) -> stop(0, Body);
healthy({ok, _, Body}) -> stop(1, Body);
healthy({error, Reason}) -> stop(1, ["the relay does not answer: ", inet:format_error(Reason)]).

ask({Ip, Port}) ->
    Options = [binary, {active, false}, {packet, http_bin}],
    case gen_tcp:connect(here(Ip), Port, Options, ?ANSWER_MS) of
        {ok, Socket} ->
            ok = gen_tcp:send(Socket, "GET /health HTTP/1.1\r\nHost: relay\r\n\r\n"),
            status(Socket, gen_tcp:recv(Socket, 0, ?ANSWER_MS));
        {error, _} = Error ->
            Error
    end.

%% Where a server listens on all addresses, one of them is this.
here({0, 0, 0, 0}) -> {127, 0, 0, 1};
here({0, 0, 0, 0, 0, 0, 0, 0}) -> {0, 0, 0, 0, 0, 0, 0, 1};
here(Ip) -> Ip.

status(Socket, {ok, {http_response, _, Status, _}}) -> headers(Socket, Status, gen_tcp:recv(Socket, 0, ?ANSWER_MS));
status(_, {ok, _}) -> {error, eproto};
status(_, {error, _} = Error) -> Error.

headers(Socket, Status, {ok, {http_header, _, _, _, _}}) ->
    headers(Socket, Status, gen_tcp:recv(Socket, 0, ?ANSWER_MS));
headers(Socket, Status, {ok, http_eoh}) ->
    ok = inet:setopts(Socket, [{packet, raw}]),
    {ok, Status, rest(Socket, gen_tcp:recv(Socket, 0, ?ANSWER_MS))};
headers(_, _, {ok, _}) ->
    {error, eproto};
headers(_, _, {error, _} = Error) ->
    Error.

rest(Socket, {ok, Some}) -> [Some | rest(Socket, gen_tcp:recv(Socket, 0, ?ANSWER_MS))];
rest(_, {error, _}) -> [].

%% @doc Says whether the configuration can be used, and what for. Status 0: it
%% can.
-spec check() -> no_return().
check() ->
    case options() of
        {ok, Relay} -> stop(0, described(Relay));
        {error, Reason} -> stop(1, macula_relay_config:format_error(Reason))
    end.

%% Tokens never show.
described(#{port := Port, realms := Realms, peers := Peers}) ->
    io_lib:format("a relay at port ~b, realms: ~ts, peers: ~ts",
                  [Port, listed(realms(Realms), "all, open to everybody"), listed([Url || {Url, _, _} <- Peers], "none")]).

realms(undefined) -> [];
realms(Realms) -> [[Realm, " (", access(Access), ")"] || {Realm, Access} <- Realms].

access(open) -> "open";
access({tokens, Tokens}) -> io_lib:format("~b token(s)", [length(Tokens)]);
access({cacertfile, File}) -> ["certificates of ", File].

listed([], Without) -> Without;
listed(Names, _) -> lists:join(", ", Names).

options() ->
    _ = application:load(macula),
    case macula_relay_config:read() of
        {ok, Options} -> macula_mesh_options:relay(Options);
        none -> {error, not_configured};
        {error, _} = Error -> Error
    end.

-spec stop(byte(), iodata()) -> no_return().
stop(Status, Text) ->
    Device = case Status of 0 -> standard_io; _ -> standard_error end,
    io:format(Device, "~ts~n", [string:trim(unicode:characters_to_binary(Text))]),
    halt(Status).
