%% Whom a node lets in by the certificates of a CA, what either side says of one it does not, and how
%% nodes of one machine share the well-known port.
-module(macula_trust_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, end_per_testcase/2]).
-export([good_certificates/1, bad_certificates/1, files_that_are_wrong/1, renewed_while_running/1,
         expired_is_said/1]).
-export([sent_to_a_node_beside/1, another_stands_in/1]).

-import(macula_test_node, [start/1, start/2, try_start/2, call/2, call/4, name/1, wait_until/1, unique/1]).

-define(HANG, 60_000).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [{group, certificates}, {group, well_known_port}].

groups() ->
    [{certificates, [good_certificates, bad_certificates, files_that_are_wrong, renewed_while_running,
                     expired_is_said]},
     {well_known_port, [sent_to_a_node_beside, another_stands_in]}].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%%% Certificates

%% For the host, and for the node by its name.
good_certificates(Config) ->
    Ca = ca(Config, "good"),
    A = start(unique("a"), shows(Ca, issue(Ca, "a", host("localhost")))),
    Name = unique("b"),
    B = start(Name, shows(Ca, issue(Ca, "b", node_name(Name ++ "@localhost")))),
    ?assertEqual(pong, ping(A, B)),
    ?assertEqual({ok, "verify_peer"}, tls_verify(A)).

tls_verify(Node) ->
    Settings = call(Node, macula, config, []),
    {value, #{value := Value}} = lists:search(fun(#{key := Key}) -> Key =:= tls_verify end, Settings),
    {ok, atom_to_list(Value)}.

%% Whoever shows a bad one, and whichever side dials: pang in time, and both sides say what is wrong.
bad_certificates(Config) ->
    Ca = ca(Config, "known"),
    Other = ca(Config, "unknown"),
    Good = shows(Ca, issue(Ca, "good", host("localhost"))),
    Bad = [{"does not come from a CA of the cacertfile", shows(Ca, issue(Other, "foreign", host("localhost")))},
           {"has expired", shows(Ca, issue(Ca, "old", (host("localhost"))#{validity => {{2001, 1, 1}, {2002, 1, 1}}}))},
           {"is not valid yet", shows(Ca, issue(Ca, "new", (host("localhost"))#{validity => {{2040, 1, 1}, {2041, 1, 1}}}))},
           {"names neither the node nor its host", shows(Ca, issue(Ca, "elsewhere", host("elsewhere")))}],
    A = start(unique("a"), Good),
    [begin
         B = start(unique("b"), Options),
         {Took, pang} = timed(fun() -> ping(A, B) end),
         ?assert(Took < 10_000),
         said(A, ["cannot reach " ++ atom_to_list(name(B)), "its certificate " ++ Fault]),
         said(B, ["was not let in by this node: it refuses this node's certificate, which " ++ Fault]),
         C = start(unique("c"), Options),
         ?assertEqual(pang, ping(C, A)),
         said(C, ["it refuses this node's certificate, which " ++ Fault]),
         wait_until(fun() -> macula_test_node:has_said(A, "refused 127.0.0.1") + macula_test_node:has_said(A, "refused [::1]") > 0 end),
         said(A, [atom_to_list(name(C))], Fault),
         [macula_test_node:stop(N) || N <- [B, C]]
     end || {Fault, Options} <- Bad].

%% The claimed name is known only of those whose chain is good.
said(_, _, Fault) when Fault =/= "names neither the node nor its host" -> ok;
said(Node, Texts, _) -> said(Node, Texts).

%% The node does not come up, and says which file and why.
files_that_are_wrong(Config) ->
    Ca = ca(Config, "files"),
    {Cert, Key} = issue(Ca, "a", host("localhost")),
    {_, OtherKey} = issue(Ca, "b", host("localhost")),
    Missing = filename:join(maps:get(directory, Ca), "missing.pem"),
    [begin
         {error, Said} = try_start(unique("a"), dist(Options)),
         [?assertMatch({_, _}, binary:match(Said, iolist_to_binary(Text)), {Text, Said}) || Text <- Texts]
     end
     || {Options, Texts} <-
            [{#{tls_verify => verify_peer, cacertfile => Missing}, [Missing, "No such file"]},
             {#{certfile => Cert, keyfile => OtherKey}, [OtherKey, "not the key of the certificate in", Cert]},
             {#{certfile => Key, keyfile => Key}, [Key, "no certificate"]},
             {#{certfile => Cert}, ["option keyfile is missing, which certfile needs"]},
             {#{tls_verify => verify_peer}, ["option cacertfile is missing, which tls_verify => verify_peer needs"]},
             {#{cacertfile => macula_test_ca:file(Ca)}, ["cacertfile has a meaning only with tls_verify => verify_peer"]},
             {#{tls_verify => verify}, ["option tls_verify should be one of [none,verify_peer], but is verify"]}]].

%% New files are taken without a restart, when told and by itself; links that are up stay up.
renewed_while_running(Config) ->
    Ca = ca(Config, "renewed"),
    A = start(unique("a"), shows(Ca, issue(Ca, "a", host("localhost")))),
    B = start(unique("b"), shows(Ca, issue(Ca, "b", host("localhost")))),
    ?assertEqual(pong, ping(A, B)),
    _ = issue(Ca, "b", host("elsewhere")),
    ?assertEqual(ok, call(B, macula, renew_certificates, [])),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    true = call(A, erlang, disconnect_node, [name(B)]),
    wait_until(fun() -> call(B, erlang, nodes, []) =:= [] end),
    ?assertEqual(pang, ping(A, B)),
    said(A, ["names neither the node nor its host"]),
    _ = issue(Ca, "b", host("localhost")),
    said(B, ["new certificates are in use"]),
    ?assertEqual(pong, ping(A, B)),
    {File, _} = {filename:join(maps:get(directory, Ca), "b.crt"), key},
    ok = file:write_file(File, "nonsense"),
    ?assertMatch({error, {bad_file, _, _}}, call(B, macula, renew_certificates, [])),
    said(B, ["were changed and cannot be used", File]).

%% It runs, for nodes that do not check; and says so.
expired_is_said(Config) ->
    Ca = ca(Config, "expired"),
    {Cert, Key} = issue(Ca, "a", (host("localhost"))#{validity => {{2001, 1, 1}, {2002, 1, 1}}}),
    A = start(unique("a"), dist(#{certfile => Cert, keyfile => Key})),
    said(A, ["this node's certificate has expired"]),
    ?assertEqual(pong, ping(start(unique("b"), #{domain => longnames, host => "localhost"}), A)).

%%% The well-known port: who knows only the host of a node asks there

sent_to_a_node_beside(Config) ->
    with_well_known_port(
      fun(Owner) ->
              B = start(unique("b"), localhost()),
              Strangers = elsewhere(Config, "sent"),
              ?assertEqual(pong, ping(start(unique("a"), Strangers), B)),
              ?assertEqual([], call(Owner, erlang, nodes, [])),
              %% Without the cookie nobody learns that there is such a node.
              Other = start(unique("c"), Strangers#{cookie => "another_one"}),
              ?assertEqual(pang, ping(Other, B)),
              said(Other, ["its cookie is another one than here"])
      end).

another_stands_in(Config) ->
    with_well_known_port(
      fun(Owner) ->
              B = start(unique("b"), localhost()),
              %% With a port of its own: it is in the same network all the same, and would stand in.
              #{env := Env} = Elsewhere = elsewhere(Config, "stand_in"),
              OwnPort = {"MACULA_DIST_PORT", integer_to_list(macula_test_node:free_port())},
              A = start(unique("a"), Elsewhere#{env := [OwnPort | Env]}),
              macula_test_node:kill(Owner),
              {Took, _} = timed(fun() -> wait_until(fun() -> ping(A, B) =:= pong end) end),
              ct:log("reached again after ~b ms", [Took]),
              %% Who is told to use that port gets it, from the node that stands in.
              C = start(unique("c"), (localhost())#{env => [{"MACULA_DIST_PORT", "4433"}]}),
              ?assertEqual(pong, ping(start(unique("d"), elsewhere(Config, "back")), C)),
              ?assertEqual(pong, ping(start(unique("e"), elsewhere(Config, "again")), B))
      end).

%% The owner is the first node that is told nothing.
with_well_known_port(Fun) ->
    case gen_udp:open(4433) of
        {ok, Socket} ->
            ok = gen_udp:close(Socket),
            Fun(start(unique("owner"), localhost()));
        {error, eaddrinuse} ->
            {skip, "port 4433 is in use on this machine"}
    end.

localhost() ->
    #{domain => longnames, host => "localhost"}.

%% A node as if on another machine: without this one's registry.
elsewhere(Config, Name) ->
    Directory = filename:join(macula_test_node:scratch(Config), Name),
    ok = filelib:ensure_dir(filename:join(Directory, "x")),
    (localhost())#{env => [{"XDG_RUNTIME_DIR", Directory}]}.

%%% Help

ca(Config, Name) ->
    macula_test_ca:new(macula_test_node:scratch(Config), Name).

issue(Ca, Name, San) ->
    macula_test_ca:issue(Ca, Name, San).

host(Host) -> #{san => [{dNSName, Host}]}.

node_name(Name) -> #{san => [{rfc822Name, Name}]}.

%% Trusts a CA and shows this certificate.
shows(Ca, {Cert, Key}) ->
    dist(#{tls_verify => verify_peer, cacertfile => macula_test_ca:file(Ca), certfile => Cert, keyfile => Key}).

dist(Options) ->
    (localhost())#{args => ["-macula", "dist", lists:flatten(io_lib:format("~0p", [Options]))]}.

ping(From, To) ->
    call(From, net_adm, ping, [name(To)]).

said(Node, Texts) ->
    [macula_test_node:await_said(Node, Text, ?HANG) || Text <- Texts].

timed(Fun) ->
    Before = erlang:monotonic_time(millisecond),
    Result = Fun(),
    {erlang:monotonic_time(millisecond) - Before, Result}.
