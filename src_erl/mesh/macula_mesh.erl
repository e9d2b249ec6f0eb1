%% @doc This node in a mesh: joined by a call, or by configuration when its
%% endpoint opens.
-module(macula_mesh).

-export([join/1, leave/0, nodes/0, relays/0, is_joined/1, enter/2, format_error/1]).

-export_type([error/0, relay_state/0]).

-type relay_state() :: {attached, macula_nif:address()} | draining | {down, term()}.
-type error() :: macula_config:bad_option()
               | {not_a_macula_relay, Url :: binary()}
               | {relays_unreachable, [{Url :: binary(), term()}]}
               | {name_taken, binary()}
               | macula_nif:bad_file()
               | {no_endpoint, term()}
               | term().

%% The native side answers in time; this is for the message's way.
-define(MARGIN_MS, 2_000).
%% Links have a second to deliver what was sent.
-define(LEAVE_MS, 5_000).
%% The directory takes at most two seconds.
-define(NODES_MS, 5_000).

%% @doc Joins the mesh that these relays are of. Answers `ok' when one of them
%% has accepted this node; the others are tried on.
-spec join(map()) -> ok | {error, error()}.
join(Options) ->
    case macula_mesh_options:mesh(Options) of
        {ok, Mesh} -> join(Options, Mesh, macula_dist_endpoint:dialling());
        {error, _} = Error -> Error
    end.

join(_, _, {error, Reason}) ->
    {error, {no_endpoint, Reason}};
join(Options, #{timeout := Timeout} = Mesh, {ok, Endpoint}) ->
    Ask = fun(Id) -> macula_nif:mesh_join(Endpoint, Mesh#{id => Id, keep => false}) end,
    case ask(macula_mesh, Ask, Timeout + ?MARGIN_MS) of
        {ok, ok} ->
            %% An endpoint that opens later, under another name, joins as well.
            ok = application:set_env(macula, mesh, Options, [{persistent, true}]),
            macula_dist_endpoint:mesh_joined();
        {ok, {error, Reason}} ->
            {error, reason(Reason)};
        {error, Reason} ->
            {error, {no_endpoint, Reason}}
    end.

%% @doc Leaves the mesh. Links through it end.
-spec leave() -> ok.
leave() ->
    ok = application:unset_env(macula, mesh, [{persistent, true}]),
    case macula_dist_endpoint:opened() of
        {ok, Endpoint} ->
            _ = ask(macula_mesh, fun(Id) -> macula_nif:mesh_leave(Endpoint, Id) end, ?LEAVE_MS),
            ok;
        {error, _} ->
            ok
    end.

%% @doc The nodes of the realm that share this node's cookie, itself included.
-spec nodes() -> [binary()].
nodes() ->
    case macula_dist_endpoint:opened() of
        {ok, Endpoint} ->
            Ask = fun(Id) -> macula_nif:mesh_nodes(Endpoint, Id) end,
            case ask(macula_mesh_nodes, Ask, ?NODES_MS) of
                {ok, Names} when is_list(Names) -> Names;
                _ -> []
            end;
        {error, _} ->
            []
    end.

%% @doc How this node stands with each relay; `undefined': no mesh is joined.
-spec relays() -> undefined | [{Url :: binary(), relay_state()}].
relays() ->
    case macula_dist_endpoint:opened() of
        {ok, Endpoint} -> macula_nif:mesh_relays(Endpoint);
        {error, _} -> undefined
    end.

%% @doc Whether this endpoint is part of a mesh.
-spec is_joined(macula_nif:endpoint()) -> boolean().
is_joined(Endpoint) ->
    macula_nif:mesh_relays(Endpoint) =/= undefined.

%% @doc Joins by configuration, when an endpoint has opened. It goes on trying
%% for ever; the caller gets {macula_mesh, 0, Result} of the first attempts.
-spec enter(macula_nif:endpoint(), undefined | macula_mesh_options:mesh()) -> joining | none.
enter(_, undefined) ->
    none;
enter(Endpoint, Mesh) ->
    case macula_nif:mesh_join(Endpoint, Mesh#{id => 0, keep => true}) of
        ok -> joining;
        {error, _} -> none
    end.

%% An answer that comes too late ends with the process that asked.
ask(Tag, Ask, Timeout) ->
    Caller = self(),
    {Pid, Monitor} = spawn_monitor(fun() -> Caller ! {self(), answer(Tag, Ask, Timeout)} end),
    receive
        {Pid, Answer} ->
            demonitor(Monitor, [flush]),
            Answer;
        {'DOWN', Monitor, process, Pid, Reason} ->
            {error, Reason}
    end.

answer(Tag, Ask, Timeout) ->
    Id = erlang:unique_integer([positive]),
    case Ask(Id) of
        ok ->
            receive
                {Tag, Id, Answer} -> {ok, Answer}
            after Timeout ->
                {error, timeout}
            end;
        {error, _} = Error ->
            Error
    end.

%% What is no relay is the user's mistake, and named as that.
reason({relays, Relays}) ->
    case [Url || {Url, {not_a_relay, _}} <- Relays] of
        [Url | _] -> {not_a_macula_relay, Url};
        [] -> {relays_unreachable, Relays}
    end;
reason(Reason) ->
    Reason.

%% @doc Why a mesh was not joined, in one line that says what to do.
-spec format_error(error()) -> iolist().
format_error({not_a_macula_relay, Url}) ->
    [Url, " is no macula relay: check the address, or start one there with macula:start_relay/1"];
format_error({relays_unreachable, Relays}) ->
    lists:join("; ", [[Url, ": ", macula_dist_log:relay_reason(Why)] || {Url, Why} <- Relays]);
format_error({name_taken, Name}) ->
    ["another node called ", Name, " is in this realm, and alive: give one of them another name"];
format_error({no_endpoint, not_running}) ->
    "this node runs without macula's distribution: start it with -proto_dist macula and a name";
format_error({no_endpoint, Reason}) ->
    io_lib:format("this node has no endpoint: ~tp", [Reason]);
format_error({bad_option, _, _, _} = Bad) ->
    macula_config:format_error(Bad);
format_error({bad_file, File, Why}) ->
    [File, ": ", Why];
format_error(Other) ->
    io_lib:format("~tp", [Other]).
