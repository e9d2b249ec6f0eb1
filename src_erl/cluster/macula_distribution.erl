%% @doc Makes a node of a VM that is none yet, over the carrier that it was
%% started with. Works without the application.
-module(macula_distribution).

-export([ensure/0, hostname/0]).

-define(NAME, "macula_host").
%% Names taken by others of this machine; with random suffixes the second is free.
-define(ATTEMPTS, 3).
%% Until a daemon that was just started answers.
-define(EPMD_WAIT_MS, 50).
-define(EPMD_ATTEMPTS, 40).

%% @doc See `macula:ensure_distributed/0'.
-spec ensure() -> ok | {error, {distribution_failed, term()}}.
ensure() ->
    case is_alive() of
        true -> ok;
        false -> start(carrier())
    end.

%% @doc This host's name.
-spec hostname() -> string().
hostname() ->
    {ok, Host} = inet:gethostname(),
    Host.

carrier() ->
    case init:get_argument(proto_dist) of
        {ok, Given} -> carrier(lists:append(Given));
        error -> other
    end.

carrier(["macula"]) -> macula;
carrier(_) -> other.

start(Carrier) ->
    case ready(Carrier) of
        ok -> start_named(name(Carrier), ?ATTEMPTS);
        {error, Reason} -> {error, {distribution_failed, Reason}}
    end.

%% The cookie file must be there before OTP looks for it: it would make one
%% that is easier to guess.
start_named(Name, Attempts) ->
    Cookie = own_cookie(),
    case net_kernel:start([list_to_atom(Name ++ "@" ++ hostname()), domain()]) of
        {ok, _} ->
            set_cookie(Cookie);
        {error, {already_started, _}} ->
            ok;
        {error, Reason} when Attempts =< 1 ->
            {error, {distribution_failed, Reason}};
        {error, _} ->
            start_named(suffixed(), Attempts - 1)
    end.

%% A cookie of the command line is OTP's to set.
own_cookie() ->
    case init:get_argument(setcookie) of
        {ok, _} -> given;
        error -> macula_cookie:get()
    end.

set_cookie(given) ->
    ok;
set_cookie(Cookie) ->
    true = erlang:set_cookie(node(), Cookie),
    ok.

domain() ->
    case lists:member($., hostname()) of
        true -> longnames;
        false -> shortnames
    end.

name(Carrier) ->
    case lists:member(?NAME, taken(Carrier)) of
        true -> suffixed();
        false -> ?NAME
    end.

suffixed() ->
    Suffix = binary:encode_hex(crypto:strong_rand_bytes(4)),
    ?NAME ++ "_" ++ string:lowercase(binary_to_list(Suffix)).

taken(macula) ->
    case macula_dist_registry:list() of
        {ok, Nodes} -> [hd(string:split(binary_to_list(Node), "@")) || {Node, _} <- Nodes];
        {error, _} -> []
    end;
taken(other) ->
    case erl_epmd:names() of
        {ok, Names} -> [Name || {Name, _} <- Names];
        {error, _} -> []
    end.

%% The classic carriers need epmd, which `erl' starts only together with a
%% name. So do we, unless the user said no.
ready(macula) ->
    ok;
ready(other) ->
    case {erl_epmd:names(), init:get_argument(start_epmd), init:get_argument(epmd_module)} of
        {{ok, _}, _, _} -> ok;
        {_, {ok, [["false"] | _]}, _} -> ok;
        {_, _, {ok, _}} -> ok;
        _ -> start_epmd(epmd())
    end.

epmd() ->
    Places = [os:getenv("BINDIR", ""),
              filename:join(code:root_dir(), "erts-" ++ erlang:system_info(version) ++ "/bin")],
    case [Path || Dir <- Places, Path <- [os:find_executable("epmd", Dir)], Path =/= false] of
        [Path | _] -> Path;
        [] -> os:find_executable("epmd")
    end.

start_epmd(false) ->
    {error, epmd_not_found};
start_epmd(Path) ->
    Port = open_port({spawn_executable, Path}, [{args, ["-daemon" | port()]}, exit_status, hide]),
    receive
        {Port, {exit_status, _}} -> await_epmd(?EPMD_ATTEMPTS)
    after ?EPMD_WAIT_MS * ?EPMD_ATTEMPTS ->
        {error, epmd_not_started}
    end.

port() ->
    case init:get_argument(epmd_port) of
        {ok, [[Port | _] | _]} -> ["-port", Port];
        _ -> []
    end.

await_epmd(0) ->
    {error, epmd_not_started};
await_epmd(Attempts) ->
    case erl_epmd:names() of
        {ok, _} ->
            ok;
        {error, _} ->
            receive
            after ?EPMD_WAIT_MS -> await_epmd(Attempts - 1)
            end
    end.
