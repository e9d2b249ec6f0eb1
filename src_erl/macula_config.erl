%% @doc Every option: its type, its default, and where its value came from.
%% `resolve/1' is pure; the other functions feed it what this VM was given.
-module(macula_config).

-export([load/0, read/1, set/2, settings/0, ports/1, format_error/1]).
-export([resolve/1, parse_address/1, known_keys/2, nearest/2]).

-export_type([sources/0, config/0, origin/0, setting/0, bad_option/0, target/0]).

-type origin() :: default | node_name | {os_env, string()}
                | {app_env, kernel | macula, term()}.
-type expected() :: {did_you_mean, atom()} | atom() | tuple().
-type bad_option() :: {bad_option, Key :: term(), expected(), Got :: term()}.
-type port_choice() :: inet:port_number()
                     | {inet:port_number(), inet:port_number()}
                     | [inet:port_number()].
%% Where a peer is: a host name is looked up only when it is dialled.
-type target() :: {inet:ip_address() | string(), inet:port_number()}.
-type config() :: #{port := {port_choice(), origin()},
                    interface := {any | inet:ip_address(), origin()},
                    advertise := {undefined | target(), origin()},
                    threads := {pos_integer(), origin()},
                    dist_streams := {1..255, origin()},
                    link_memory := {pos_integer(), origin()},
                    congestion := {cubic | bbr, origin()},
                    tls_verify := {none | verify_peer, origin()},
                    cacertfile := {undefined | binary(), origin()},
                    certfile := {undefined | binary(), origin()},
                    keyfile := {undefined | binary(), origin()},
                    mesh := {undefined | macula_mesh_options:mesh(), origin()},
                    dist_mode := {all | relay, origin()},
                    peers := {#{node() => target()}, origin()},
                    select := {macula_dist_select:rule(), origin()}}.
-type setting() :: #{key := atom(), value := term(), origin := origin()}.
-type sources() :: #{node_port := default | inet:port_number(),
                     os_env := #{string() => string()},
                     kernel := #{atom() => term()},
                     macula := #{atom() => term()},
                     carriers := [macula_dist_select:carrier(), ...]}.

-define(OS_ENV, ["MACULA_DIST_PORT", "MACULA_RELAYS", "MACULA_DIST_MODE", "MACULA_CONGESTION"]).
-define(KERNEL_ENV, [macula_dist_port, inet_dist_use_interface,
                     inet_dist_listen_min, inet_dist_listen_max]).
-define(MACULA_ENV, [peers, dist, dist_streams, link_memory, congestion, select, cookie, cluster, mesh, relay]).
-define(DIST_KEYS, [port, port_range, interface, advertise, threads,
                    tls_verify, cacertfile, certfile, keyfile]).

%% The well-known port, else any free one.
-define(DEFAULT_PORTS, [4433, 0]).
%% One native thread carries about what four busy schedulers produce. More of
%% them raise the ceiling over many links, and cost each link a little latency.
-define(SCHEDULERS_PER_THREAD, 4).
-define(MAX_DEFAULT_THREADS, 8).
%% Processes spawned one after the other are on streams of their own when they are
%% fewer than this. An unused stream costs nothing, a used one some 5 kB.
-define(DEFAULT_STREAMS, 64).
%% Bytes, as macula_core::dist::memory has them, where they are shared out.
-define(LEAST_LINK_MEMORY, (4 bsl 20)).
-define(MOST_LINK_MEMORY, (2 bsl 30)).
-define(DEFAULT_LINK_MEMORY, (195 bsl 20)).

%% @doc Makes sys.config's and the command line's values for macula visible.
%% They become so when the application is loaded, which in a release happens
%% before distribution boots, but not in a plain `erl'. Loading it here takes
%% only the application controller, which is free at that point.
-spec load() -> ok.
load() ->
    _ = application:load(macula),
    ok.

%% @doc The configuration of a node with this port in its name.
-spec read(default | inet:port_number()) -> {ok, config()} | {error, bad_option()}.
read(NodePort) ->
    resolve(#{node_port => NodePort,
              os_env => os_env(),
              kernel => kernel_env(),
              macula => maps:from_list(application:get_all_env(macula)),
              carriers => macula_dist_select:carriers()}).

%% @doc Changes an option of this running node, of those that can be changed.
-spec set(select, term()) -> ok | {error, bad_option()}.
set(select, Rule) ->
    ok = load(),
    try rule(select, Rule, macula_dist_select:carriers()) of
        Rule ->
            ok = application:set_env(macula, select, Rule),
            macula_dist_select:use(Rule)
    catch
        throw:{bad_option, _, _, _} = Bad -> {error, Bad}
    end.

%% @doc The same, as a list to look at.
-spec settings() -> [setting()] | {error, bad_option()}.
settings() ->
    ok = load(),
    case read(own_port()) of
        {ok, Config} ->
            [#{key => Key, value => Value, origin => Origin}
             || {Key, {Value, Origin}} <- lists:sort(maps:to_list(Config))];
        {error, _} = Error ->
            Error
    end.

own_port() ->
    case macula_dist_name:split(node()) of
        {ok, #{port := Port}} -> Port;
        {error, _} -> default
    end.

os_env() ->
    maps:from_list([{Name, Value} || Name <- ?OS_ENV, Value <- [os:getenv(Name)],
                                     Value =/= false, Value =/= ""]).

kernel_env() ->
    maps:from_list([{Key, Value} || Key <- ?KERNEL_ENV,
                                    {ok, Value} <- [application:get_env(kernel, Key)]]).

%% @doc The ports to try, in order.
-spec ports(port_choice()) -> [inet:port_number()].
ports({Min, Max}) -> lists:seq(Min, Max);
ports(Port) when is_integer(Port) -> [Port];
ports(Ports) -> Ports.

%% @doc Sources to configuration. The first bad option is the answer.
-spec resolve(sources()) -> {ok, config()} | {error, bad_option()}.
resolve(Sources) ->
    try
        {ok, resolve_all(Sources, dist(Sources))}
    catch
        throw:{bad_option, _, _, _} = Bad -> {error, Bad}
    end.

resolve_all(#{macula := Env, carriers := Carriers} = Sources, Dist) ->
    %% included_applications is OTP's own entry in every environment.
    ok = known_keys(maps:without([included_applications], Env), ?MACULA_ENV),
    ok = known_keys(Dist, ?DIST_KEYS),
    ok = together(Dist),
    #{port => port(Sources, Dist),
      interface => first([{Dist, interface, dist}, {kernel(Sources), inet_dist_use_interface, kernel}],
                         fun interface/2, any),
      advertise => first([{Dist, advertise, dist}], fun address/2, undefined),
      threads => first([{Dist, threads, dist}], fun threads/2, default_threads()),
      dist_streams => first([{Env, dist_streams, macula}], fun dist_streams/2, ?DEFAULT_STREAMS),
      link_memory => first([{Env, link_memory, macula}], fun link_memory/2, ?DEFAULT_LINK_MEMORY),
      congestion => congestion(Sources),
      peers => first([{Env, peers, macula}], fun peers/2, #{}),
      select => first([{Env, select, macula}],
                      fun(Key, Rule) -> rule(Key, Rule, Carriers) end, []),
      tls_verify => first([{Dist, tls_verify, dist}], fun tls_verify/2, none),
      cacertfile => first([{Dist, cacertfile, dist}], fun file_name/2, undefined),
      certfile => first([{Dist, certfile, dist}], fun file_name/2, undefined),
      keyfile => first([{Dist, keyfile, dist}], fun file_name/2, undefined),
      mesh => mesh(Sources),
      dist_mode => first([{os(Sources), "MACULA_DIST_MODE", os}], fun dist_mode/2, all)}.

%% Options that mean nothing alone. A CA without verify_peer would look like
%% protection that is not there.
together(#{tls_verify := verify_peer} = Dist) when not is_map_key(cacertfile, Dist) ->
    throw({bad_option, cacertfile, {needed_for, {tls_verify, verify_peer}}, undefined});
together(#{cacertfile := File} = Dist) when not is_map_key(tls_verify, Dist);
                                            map_get(tls_verify, Dist) =:= none ->
    throw({bad_option, cacertfile, {only_with, {tls_verify, verify_peer}}, File});
together(#{certfile := _} = Dist) when not is_map_key(keyfile, Dist) ->
    throw({bad_option, keyfile, {needed_for, certfile}, undefined});
together(#{keyfile := _} = Dist) when not is_map_key(certfile, Dist) ->
    throw({bad_option, certfile, {needed_for, keyfile}, undefined});
together(_) ->
    ok.

dist(#{macula := #{dist := Dist}}) when is_map(Dist) -> Dist;
dist(#{macula := #{dist := Dist}}) -> throw({bad_option, dist, map, Dist});
dist(_) -> #{}.

kernel(#{kernel := Env}) -> Env.

os(#{os_env := Env}) -> Env.

%% A port given by name outranks ranges, wherever each was given. Every source
%% is checked, so that a typo in one that is overruled is still found.
port(#{node_port := NodePort, os_env := Os} = Sources, Dist) ->
    Kernel = kernel(Sources),
    Given = [{NodePort, node_name} || NodePort =/= default]
        ++ given([{Os, "MACULA_DIST_PORT", os}], fun port_text/2)
        ++ given([{Kernel, macula_dist_port, kernel}, {Dist, port, dist}], fun port_number/2)
        ++ given([{Dist, port_range, dist}], fun port_range/2)
        ++ kernel_range(Kernel)
        ++ [{?DEFAULT_PORTS, default}],
    hd(Given).

kernel_range(#{inet_dist_listen_min := Min} = Kernel) ->
    Max = maps:get(inet_dist_listen_max, Kernel, Min),
    [{port_range(inet_dist_listen_min, {Min, Max}), {app_env, kernel, inet_dist_listen_min}}];
kernel_range(_) ->
    [].

%% The host knows best what line it is on; so the environment goes first.
congestion(#{macula := Env} = Sources) ->
    hd(given([{os(Sources), "MACULA_CONGESTION", os}], fun congestion_text/2)
       ++ given([{Env, congestion, macula}], fun congestion/2)
       ++ [{cubic, default}]).

first(Places, Check, Default) ->
    hd(given(Places, Check) ++ [{Default, default}]).

given(Places, Check) ->
    [{Check(Key, maps:get(Key, Env)), origin(Kind, Key)}
     || {Env, Key, Kind} <- Places, maps:is_key(Key, Env)].

origin(os, Key) -> {os_env, Key};
origin(kernel, Key) -> {app_env, kernel, Key};
origin(macula, Key) -> {app_env, macula, Key};
origin(dist, Key) -> {app_env, macula, {dist, Key}}.

%% The relays of the environment take the place of those in sys.config: who
%% deploys a release knows where they are.
mesh(#{os_env := #{"MACULA_RELAYS" := Text}, macula := Env}) ->
    Relays = macula_mesh_options:relays("MACULA_RELAYS", Text),
    Urls = [Url || {Url, _, _} <- Relays],
    {mesh(mesh, (maps:get(mesh, Env, #{}))#{relays => Urls}), {os_env, "MACULA_RELAYS"}};
mesh(#{macula := Env}) ->
    first([{Env, mesh, macula}], fun mesh/2, undefined).

mesh(_, Options) ->
    case macula_mesh_options:mesh(Options) of
        {ok, Mesh} -> Mesh;
        {error, Bad} -> throw(Bad)
    end.

dist_mode(_, "relay") -> relay;
dist_mode(Key, Got) -> throw({bad_option, Key, {one_of, ["relay"]}, Got}).

%% Types.

port_text(Key, Text) ->
    case string:to_integer(Text) of
        {Port, ""} when Port >= 0, Port =< 65535 -> Port;
        _ -> throw({bad_option, Key, {integer, 0, 65535}, Text})
    end.

port_number(_, Port) when is_integer(Port), Port >= 0, Port =< 65535 -> Port;
port_number(Key, Got) -> throw({bad_option, Key, {integer, 0, 65535}, Got}).

port_range(_, {Min, Max}) when is_integer(Min), is_integer(Max),
                               Min > 0, Min =< Max, Max =< 65535 ->
    {Min, Max};
port_range(Key, Got) ->
    throw({bad_option, Key, {range, 1, 65535}, Got}).

interface(Key, Got) ->
    case ip(Got) of
        {ok, Ip} -> Ip;
        error -> throw({bad_option, Key, ip_address, Got})
    end.

default_threads() ->
    Schedulers = erlang:system_info(schedulers_online),
    max(1, min(?MAX_DEFAULT_THREADS, Schedulers div ?SCHEDULERS_PER_THREAD)).

threads(_, N) when is_integer(N), N >= 1, N =< 1024 -> N;
threads(Key, Got) -> throw({bad_option, Key, {integer, 1, 1024}, Got}).

dist_streams(_, N) when is_integer(N), N >= 1, N =< 255 -> N;
dist_streams(Key, Got) -> throw({bad_option, Key, {integer, 1, 255}, Got}).

link_memory(_, Bytes) when is_integer(Bytes), Bytes >= ?LEAST_LINK_MEMORY, Bytes =< ?MOST_LINK_MEMORY -> Bytes;
link_memory(Key, Got) -> throw({bad_option, Key, {integer, ?LEAST_LINK_MEMORY, ?MOST_LINK_MEMORY}, Got}).

congestion(_, Congestion) when Congestion =:= cubic; Congestion =:= bbr -> Congestion;
congestion(Key, Got) -> throw({bad_option, Key, {one_of, [cubic, bbr]}, Got}).

congestion_text(_, "cubic") -> cubic;
congestion_text(_, "bbr") -> bbr;
congestion_text(Key, Got) -> throw({bad_option, Key, {one_of, ["cubic", "bbr"]}, Got}).

tls_verify(_, Verify) when Verify =:= none; Verify =:= verify_peer -> Verify;
tls_verify(Key, Got) -> throw({bad_option, Key, {one_of, [none, verify_peer]}, Got}).

file_name(Key, Got) ->
    try unicode:characters_to_binary(Got) of
        <<_, _/binary>> = File -> File;
        _ -> throw({bad_option, Key, file_name, Got})
    catch
        error:badarg -> throw({bad_option, Key, file_name, Got})
    end.

address(Key, Got) ->
    case parse_address(Got) of
        {ok, Address} -> Address;
        error -> throw({bad_option, Key, address, Got})
    end.

peers(_, Peers) when is_map(Peers) -> maps:map(fun peer/2, Peers);
peers(Key, Got) -> throw({bad_option, Key, map, Got}).

peer(Node, Address) when is_atom(Node) ->
    case macula_dist_name:split(Node) of
        {ok, _} -> address({peers, Node}, Address);
        {error, _} -> throw({bad_option, peers, node_name, Node})
    end;
peer(Node, _) ->
    throw({bad_option, peers, node_name, Node}).

rule(Key, [{Pattern, Carrier} | Others], Carriers) ->
    ok = pattern(Key, Pattern),
    ok = carrier({Key, Pattern}, Carrier, Carriers),
    [{Pattern, Carrier} | rule(Key, Others, Carriers)];
rule(_, [], _) ->
    [];
rule(Key, [Got | _], _) ->
    throw({bad_option, Key, pattern_and_carrier, Got});
rule(Key, Got, _) ->
    throw({bad_option, Key, rule, Got}).

%% Without an `@' only a star can be the name of a node.
pattern(Key, Got) ->
    case pattern_text(Got) of
        {ok, "*"} -> ok;
        {ok, Text} -> at_sign(lists:member($@, Text), Key, Got);
        error -> throw({bad_option, Key, pattern, Got})
    end.

at_sign(true, _, _) -> ok;
at_sign(false, Key, Got) -> throw({bad_option, Key, pattern, Got}).

pattern_text(Atom) when is_atom(Atom) ->
    {ok, atom_to_list(Atom)};
pattern_text(Got) ->
    try unicode:characters_to_list(Got) of
        [_ | _] = Text -> {ok, Text};
        _ -> error
    catch
        error:badarg -> error
    end.

%% With one carrier there is nothing to choose: a rule may stay in the
%% configuration when the other one is gone.
carrier(_, Carrier, [macula]) when is_atom(Carrier) ->
    ok;
carrier(Key, Got, Carriers) ->
    case lists:member(Got, Carriers) of
        true -> ok;
        false -> throw({bad_option, Key, {one_of, Carriers}, Got})
    end.

%% @doc "192.0.2.7:4433", "[2001:db8::1]:4433", "host:4433" or {Ip, Port}.
-spec parse_address(term()) -> {ok, target()} | error.
parse_address({Ip, Port}) when is_integer(Port), Port > 0, Port < 65536, is_tuple(Ip) ->
    case ip(Ip) of
        {ok, _} -> {ok, {Ip, Port}};
        error -> error
    end;
parse_address(Text) ->
    case text(Text) of
        {ok, String} -> parse_text(String);
        error -> error
    end.

%% What may stand behind the `@' of a node name is just what an address is.
parse_text(String) ->
    case macula_dist_name:split("x@" ++ String) of
        {ok, #{host := Host, port := Port}} when is_integer(Port) -> {ok, {Host, Port}};
        _ -> error
    end.

ip(Ip) when is_tuple(Ip) ->
    case inet:ntoa(Ip) of
        {error, _} -> error;
        _ -> {ok, Ip}
    end;
ip(Text) ->
    case text(Text) of
        {ok, String} -> parse_ip(String);
        error -> error
    end.

parse_ip(String) ->
    case inet:parse_strict_address(String) of
        {ok, Ip} -> {ok, Ip};
        {error, _} -> error
    end.

text(Binary) when is_binary(Binary) ->
    {ok, binary_to_list(Binary)};
text([_ | _] = List) ->
    case io_lib:latin1_char_list(List) of
        true -> {ok, List};
        false -> error
    end;
text(_) ->
    error.

%% Unknown keys name the nearest known one.

%% @doc Throws the first key that is none of these.
-spec known_keys(#{term() => term()}, [atom(), ...]) -> ok.
known_keys(Env, Known) ->
    case maps:to_list(maps:without(Known, Env)) of
        [] -> ok;
        [{Key, Value} | _] -> throw({bad_option, Key, {did_you_mean, nearest(Key, Known)}, Value})
    end.

%% @doc The known key that is spelled most like this one.
-spec nearest(term(), [atom(), ...]) -> atom().
nearest(Key, Known) ->
    Text = lists:flatten(io_lib:format("~tp", [Key])),
    {_, Nearest} = lists:min([{distance(Text, atom_to_list(K)), K} || K <- Known]),
    Nearest.

%% Edit distance, row by row.
distance(From, To) ->
    lists:last(lists:foldl(fun(Char, Row) -> next_row(Char, To, Row) end,
                           lists:seq(0, length(To)), From)).

next_row(Char, To, [Corner | Above]) ->
    next_row(Char, To, Corner, Above, Corner + 1, [Corner + 1]).

next_row(_, [], _, [], _, Row) ->
    lists:reverse(Row);
next_row(Char, [T | To], Corner, [Up | Above], Left, Row) ->
    Cost = case Char of T -> 0; _ -> 1 end,
    Cell = lists:min([Corner + Cost, Up + 1, Left + 1]),
    next_row(Char, To, Up, Above, Cell, [Cell | Row]).

%% @doc A bad option in one readable line.
-spec format_error(bad_option()) -> iolist().
format_error({bad_option, Key, {did_you_mean, Nearest}, _}) ->
    io_lib:format("unknown option ~tp, did you mean ~tp?", [Key, Nearest]);
format_error({bad_option, Key, {needed_for, Other}, _}) ->
    io_lib:format("option ~tp is missing, which ~ts needs", [Key, setting(Other)]);
format_error({bad_option, Key, {only_with, Other}, _}) ->
    io_lib:format("option ~tp has a meaning only with ~ts", [Key, setting(Other)]);
format_error({bad_option, Key, Expected, Got}) ->
    io_lib:format("option ~tp should be ~ts, but is ~tp", [Key, expected(Expected), Got]).

expected({integer, Min, Max}) -> io_lib:format("an integer from ~b to ~b", [Min, Max]);
expected({range, Min, Max}) -> io_lib:format("{Min, Max} within ~b to ~b", [Min, Max]);
expected(ip_address) -> "an IP address, such as \"192.0.2.7\"";
expected(address) -> "an address, such as \"192.0.2.7:4433\"";
expected(node_name) -> "a node name";
expected(file_name) -> "the name of a file";
expected({one_of, Values}) -> io_lib:format("one of ~tp", [Values]);
expected(map) -> "a map";
expected(relay_urls) -> "a list of relay URLs, such as [<<\"https://relay.example.org:4433\">>]";
expected(relay_url) -> "a relay URL, such as <<\"https://relay.example.org:4433\">>";
expected(health_address) -> "ADDRESS:PORT, such as <<\"0.0.0.0:4480\">>, or a port of this machine only";
expected(realm_access) -> "open, {tokens, [Token]} or {cacertfile, File}";
expected(rule) -> "a list of {Pattern, Carrier}";
expected(pattern_and_carrier) ->
    "made of {Pattern, Carrier}, such as {\"*@*.example.org\", macula}";
expected(pattern) ->
    "given by patterns of node names, such as \"*@*.example.org\"";
expected(Other) -> io_lib:format("~tp", [Other]).

setting(port) -> "a port of the relay's own, port => Port";
setting({Key, Value}) -> io_lib:format("~tp => ~tp", [Key, Value]);
setting(Key) -> io_lib:format("~tp", [Key]).
