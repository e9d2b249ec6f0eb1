%% macula:diagnose/1,2: each thing that can be wrong with a node is named at its stage, with what to do.
-module(macula_diagnose_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, end_per_testcase/2]).
-export([reachable/1, without_connecting/1, itself/1, printed/1, bad_options/1]).
-export([not_distributed/1, other_carrier/1, bad_configuration/1]).
-export([illegal_name/1, dot_in_short_name/1, unknown_host/1, closed_port/1, silent_port/1, garbage_port/1,
         other_quic/1, http3_server/1, later_version/1, silent_server/1, wrong_name/1, wrong_cookie/1,
         name_taken/1, unknown_authority/1, expired_certificate/1, refused_by_otp/1]).

-import(macula_test_node, [start/1, start/2, call/4, name/1, unique/1]).

-define(HANG, 60_000).
-define(STAGES, [node, name, address, port, version, tls, cookie, handshake]).
-define(COOKIE_OF_TESTS, list_to_binary(macula_test_node:cookie())).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [{group, Group} || {Group, _} <- groups()].

groups() ->
    [{well, [reachable, without_connecting, itself, printed, bad_options]},
     {here, [not_distributed, other_carrier, bad_configuration]},
     {there, [illegal_name, dot_in_short_name, unknown_host, closed_port, silent_port, garbage_port, other_quic,
              http3_server, later_version, silent_server, wrong_name, wrong_cookie, name_taken, unknown_authority,
              expired_certificate, refused_by_otp]}].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%%% Nothing is wrong

reachable(_) ->
    {A, B} = {start(unique("a")), start(unique("b"))},
    Findings = call(A, macula, diagnose, [name(B)]),
    ?assertEqual([{Stage, ok} || Stage <- ?STAGES], results(Findings)),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    %% And again, now that they are connected: by what the link itself says.
    Again = call(A, macula, diagnose, [name(B)]),
    ?assertEqual([{Stage, ok} || Stage <- ?STAGES], results(Again)),
    ?assertMatch({handshake, ok, #{address := _, rtt_us := _}}, lists:keyfind(handshake, 1, Again)),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])).

%% The other node hears of nothing but a connection that goes again.
without_connecting(_) ->
    {A, B} = {start(unique("a")), start(unique("b"))},
    Findings = call(A, macula, diagnose, [name(B), #{connect => false}]),
    ?assertEqual([{Stage, ok} || Stage <- lists:droplast(?STAGES)] ++ [{handshake, skipped}], results(Findings)),
    timer:sleep(500),
    ?assertEqual([[], []], [call(Node, erlang, nodes, []) || Node <- [A, B]]),
    ?assertEqual(<<>>, macula_test_node:output(B)),
    ?assertEqual(pong, call(A, net_adm, ping, [name(B)])).

itself(_) ->
    A = start(unique("a")),
    Findings = call(A, macula, diagnose, [name(A)]),
    ?assertEqual([{node, ok}, {name, ok}], lists:sublist(results(Findings), 2)),
    ?assertMatch({address, skipped, #{text := <<"it is this node itself">>}}, lists:keyfind(address, 1, Findings)).

%% A report for people, of the same findings.
printed(_) ->
    A = start(unique("a")),
    Port = integer_to_list(macula_test_node:free_port()),
    Findings = call(A, macula, diagnose, [node_at(Port), #{print => true}]),
    macula_test_node:await_said(A, "cannot be reached: port", ?HANG),
    Said = macula_test_node:output(A),
    [begin
         macula_test_node:await_said(A, Text, ?HANG),
         ?assertNotEqual(nomatch, string:find(Said, atom_to_list(Stage)))
     end || {Stage, _, #{text := Text}} <- Findings],
    ?assertMatch({match, _}, re:run(Said, "port +FAILED +127\\.0\\.0\\.1:" ++ Port ++ " nothing listens there")).

bad_options(_) ->
    A = start(unique("a")),
    [?assertEqual({error, Expected}, call(A, macula, diagnose, ['b@localhost', Options]))
     || {Options, Expected} <-
            [{#{timeout => 0}, {bad_option, timeout, pos_integer, 0}},
             {#{print => yes}, {bad_option, print, boolean, yes}},
             {#{conect => true}, {bad_option, conect, {did_you_mean, connect}, true}}]].

%%% Something is wrong here

%% It says so, and looks all the same: with the cookie that this VM would have.
not_distributed(_) ->
    {A, B} = {start(unique("a"), #{domain => none}), start(unique("b"))},
    Findings = call(A, macula, diagnose, [name(B)]),
    ?assertEqual([{node, failed} | [{Stage, ok} || Stage <- tl(lists:droplast(?STAGES))]] ++ [{handshake, skipped}],
                 results(Findings)),
    says(node, Findings, ["no node of any cluster", "-proto_dist macula", "ensure_distributed"]),
    %% What was opened for it is gone.
    ?assertEqual({error, not_running}, call(A, macula_dist_endpoint, address, [])),
    ?assertEqual([], call(B, erlang, nodes, [connected])).

%% A node of classic distribution.
other_carrier(_) ->
    B = start(unique("b")),
    A = start(unique("a"), #{flags => ["-start_epmd", "false", "-erl_epmd_port", integer_to_list(macula_test_node:free_port())],
                             args => ["-dist_listen", "false"]}),
    Findings = call(A, macula, diagnose, [name(B)]),
    says(node, Findings, ["over another carrier"]),
    ?assertMatch({_, ok, _}, lists:keyfind(cookie, 1, Findings)).

%% Options that were changed to nonsense while the node ran.
bad_configuration(_) ->
    A = start(unique("a"), #{domain => none}),
    ok = call(A, application, set_env, [macula, dist, #{prot => 1}]),
    Findings = call(A, macula, diagnose, ['b@localhost']),
    says(node, Findings, ["unknown option prot, did you mean port?"]),
    ?assertMatch({port, skipped, _}, lists:keyfind(port, 1, Findings)).

%%% Something is wrong there

illegal_name(_) ->
    fails(start(unique("a")), 'x@localhost:99999', name, ["99999 is not a port", "name@host:port"]).

dot_in_short_name(_) ->
    fails(start(unique("a")), 'x@host.example', name, ["short names", "-name instead of -sname"]).

unknown_host(_) ->
    fails(start(unique("a"), #{domain => longnames}), 'x@does-not-exist.invalid', address, ["no such host", "peers"]).

closed_port(_) ->
    Port = integer_to_list(macula_test_node:free_port()),
    fails(start(unique("a")), node_at(Port), port, [Port, "nothing listens there", "-proto_dist macula"]).

silent_port(_) ->
    meets(macula_test_service:silent(), port, ["did not answer in time", "firewall"]).

garbage_port(_) ->
    meets(macula_test_service:garbage(), version, ["not in QUIC", "Another program has that port"]).

other_quic(_) ->
    meets(macula_test_service:other_quic(), version, ["another version of QUIC", "Another program has that port"]).

http3_server(_) ->
    meets(macula_test_service:foreign(["h3"]), version, ["QUIC server of another protocol"]).

%% TLS has been spoken by then.
later_version(_) ->
    {Port, Close} = macula_test_service:foreign(["offers", "7", "9"]),
    Findings = call(start(unique("a")), macula, diagnose, [node_at(Port)]),
    says(version, Findings, ["speaks versions 7 to 9", "same version of macula"]),
    ?assertMatch({tls, ok, _}, lists:keyfind(tls, 1, Findings)),
    ?assertMatch({cookie, skipped, _}, lists:keyfind(cookie, 1, Findings)),
    Close().

%% It completes TLS as a node does, and then has nothing to say.
silent_server(_) ->
    {Port, Close} = macula_test_service:foreign(["silent"]),
    Findings = call(start(unique("a")), macula, diagnose, [node_at(Port)]),
    says(handshake, Findings, ["connected, but did not answer", "hangs"]),
    ?assertMatch({tls, ok, _}, lists:keyfind(tls, 1, Findings)),
    Close().

wrong_name(_) ->
    Port = integer_to_list(macula_test_node:free_port()),
    _ = start(unique("b"), #{host => "localhost:" ++ Port}),
    fails(start(unique("a")), node_at(Port), handshake, ["another node lives there", "its name and port"]).

wrong_cookie(_) ->
    {A, B} = {start(unique("a")), start(unique("b"), #{cookie => "another_one"})},
    Findings = fails(A, name(B), cookie, ["its cookie is another one", "erlang:get_cookie()"]),
    %% Neither cookie is in it.
    [?assertEqual(nomatch, binary:match(term_to_binary(Findings), Cookie)) || Cookie <- [?COOKIE_OF_TESTS, <<"another_one">>]].

%% Another node runs under this one's name, and is connected there.
name_taken(Config) ->
    Name = unique("b"),
    {A, First} = {start(unique("a")), start(Name)},
    macula_test_node:connect(A, First),
    Elsewhere = [{"XDG_RUNTIME_DIR", macula_test_node:scratch(Config)}, {"MACULA_HOME", macula_test_node:scratch(Config)}],
    {ok, {_, Port}} = call(A, macula_dist_registry, find, [atom_to_binary(name(A))]),
    Peers = lists:flatten(io_lib:format("#{'~s' => \"127.0.0.1:~b\"}", [name(A), Port])),
    Second = start(Name, #{env => Elsewhere, args => ["-macula", "peers", Peers]}),
    fails(Second, name(A), handshake, ["a live node of that name", "no other node runs under this node's name"]).

unknown_authority(Config) ->
    {Ca, Other} = {ca(Config, "known"), ca(Config, "unknown")},
    A = start(unique("a"), shows(Ca, issue(Ca, "a", #{}))),
    B = start(unique("b"), shows(Ca, issue(Other, "b", #{}))),
    fails(A, name(B), tls, ["does not come from a CA of the cacertfile", "cacertfile here"]),
    fails(B, name(A), tls, ["it refuses this node's certificate", "certfile here"]).

expired_certificate(Config) ->
    Ca = ca(Config, "expiring"),
    A = start(unique("a"), shows(Ca, issue(Ca, "a", #{}))),
    B = start(unique("b"), shows(Ca, issue(Ca, "b", #{validity => {{2001, 1, 1}, {2002, 1, 1}}}))),
    fails(A, name(B), tls, ["has expired", "certfile"]).

%% What only OTP's own handshake tells: that node allows others only.
refused_by_otp(_) ->
    {A, B} = {start(unique("a")), start(unique("b"))},
    ok = call(B, net_kernel, allow, [['somebody@else']]),
    fails(A, name(B), handshake, ["OTP's own handshake", "net_kernel:allow/1"]).

%%% Help

meets({Port, Close}, Stage, Texts) ->
    fails(start(unique("a")), node_at(Port), Stage, [Port | Texts]),
    Close().

%% Just that stage fails: those before it are well, and those after it could not be looked at.
fails(A, Node, Stage, Texts) ->
    Findings = call(A, macula, diagnose, [Node]),
    {Before, [Stage | After]} = lists:splitwith(fun(S) -> S =/= Stage end, ?STAGES),
    ?assertEqual([{S, ok} || S <- Before] ++ [{Stage, failed}] ++ [{S, skipped} || S <- After], results(Findings)),
    says(Stage, Findings, Texts),
    Findings.

says(Stage, Findings, Texts) ->
    {Stage, failed, #{text := Text, advice := Advice}} = lists:keyfind(Stage, 1, Findings),
    ct:log("~ts: ~ts~n~ts", [Stage, Text, Advice]),
    [?assertNotEqual(nomatch, string:find([Text, " ", Advice], Said), {Said, Text, Advice}) || Said <- Texts].

results(Findings) ->
    [{Stage, Result} || {Stage, Result, #{text := <<_, _/binary>>}} <- Findings].

node_at(Port) ->
    list_to_atom("x@localhost:" ++ Port).

ca(Config, Name) ->
    macula_test_ca:new(macula_test_node:scratch(Config), Name).

issue(Ca, Name, Options) ->
    macula_test_ca:issue(Ca, Name, Options#{san => [{dNSName, "localhost"}]}).

shows(Ca, {Cert, Key}) ->
    Options = #{tls_verify => verify_peer, cacertfile => macula_test_ca:file(Ca), certfile => Cert, keyfile => Key},
    #{domain => longnames, host => "localhost", args => ["-macula", "dist", lists:flatten(io_lib:format("~0p", [Options]))]}.
