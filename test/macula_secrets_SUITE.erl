%% No secret shows: whatever the tools of the VM can see of two nodes that have been through a good deal,
%% and whatever these nodes have logged at every level, neither the cookie is in it nor a key.
%%
%% OTP itself keeps the cookie where these tools see it. Those places are named below, each with its
%% reason; anywhere else it is a leak. What is derived from the cookie and the node's key exists in
%% native memory alone.
-module(macula_secrets_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, end_per_testcase/2]).
-export([nothing_shows/1, searching_finds/1]).
-export([everything/0]).

-import(macula_test_node, [start/2, call/2, call/4, name/1, connect/2, wait_until/1, unique/1]).

-define(HANG, 60_000).

%% Whole and in the clear.
-define(COOKIE, "a_cookie_that_is_long_enough_to_be_found").
-define(OTHER_COOKIE, "another_cookie_for_one_peer_alone").

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [searching_finds, nothing_shows].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

nothing_shows(Config) ->
    Home = macula_test_node:scratch(Config),
    Options = #{cookie => ?COOKIE, env => [{"MACULA_HOME", Home}], args => ["-kernel", "logger_level", "debug"]},
    {A, B} = {start(unique("a"), Options), start(unique("b"), Options)},
    C = start(unique("c"), Options#{cookie => ?OTHER_COOKIE}),
    Nodes = [A, B],
    Secrets = secrets(Home, Nodes),
    live(A, B, C),
    [shows_nothing(Node, Secrets) || Node <- Nodes],
    crash(A, B),
    end_of(B),
    [no_secret({output, name(Node)}, macula_test_node:output(Node), Secrets) || Node <- Nodes],
    ?assertMatch({_, _}, binary:match(macula_test_node:output(B), <<"boom">>)).

%% All that a node does with cookies and keys.
live(A, B, C) ->
    connect(A, B),
    ?assertEqual(name(B), call(A, erpc, call, [name(B), erlang, node, []])),
    %% Refused by and refusing one that has another cookie, then let in with a cookie of its own.
    ?assertEqual(pang, call(A, net_adm, ping, [name(C)])),
    ?assertEqual(pang, call(C, net_adm, ping, [name(A)])),
    true = call(A, erlang, set_cookie, [name(C), list_to_atom(?OTHER_COOKIE)]),
    ?assertEqual(pong, call(A, net_adm, ping, [name(C)])),
    ?assertEqual(pang, call(A, net_adm, ping, ['nobody@localhost'])),
    %% One that is being dialled while we look.
    {ok, Silent} = gen_udp:open(0),
    {ok, Port} = inet:port(Silent),
    _ = macula_test_node:cast(A, net_adm, ping, [list_to_atom("x@localhost:" ++ integer_to_list(Port))]),
    ok.

%% What falls over leaves a report, with its state and what it was called with.
crash(A, B) ->
    %% A dial through an endpoint that is none: whoever dials goes with it.
    _ = call(A, fun() ->
                    {Pid, Monitor} = spawn_monitor(fun dial_nowhere/0),
                    receive {'DOWN', Monitor, process, Pid, Reason} -> Reason after ?HANG -> error(hangs) end
                end),
    %% Every process of a link, in every way.
    [begin
         [call(A, fun() -> Kill(Pid) end) || Pid <- call(A, fun link_processes/0)],
         wait_until(fun() -> call(A, net_adm, ping, [name(B)]) =:= pong end)
     end || Kill <- [fun(Pid) -> exit(Pid, boom) end,
                     fun(Pid) -> exit(Pid, kill) end,
                     fun(Pid) -> tried(sys, terminate, [Pid, boom, 1_000]) end]].

dial_nowhere() ->
    Node = 'x@127.0.0.1',
    {ok, Parts} = macula_dist_name:split(Node),
    macula_dist_dialler:connect(#{endpoint => make_ref(), node => Node, parts => Parts, own_name => <<"a@b">>,
                                  timeout => 1_000},
                                fun(Link) -> Link end).

link_processes() ->
    Bridges = [Pid || {_, Pid, _, _} <- supervisor:which_children(macula_dist_bridge_sup)],
    Linked = lists:append([Links || Pid <- Bridges, {links, Links} <- [process_info(Pid, links)]]),
    lists:usort([Pid || Pid <- Bridges ++ Linked, is_pid(Pid), process_info(Pid, registered_name) =:= []]).

%% The endpoint's own end is the VM's: a gen_server that is terminated reports its state.
end_of(B) ->
    _ = tried(macula_test_node, call, [B, sys, terminate, [macula_dist_endpoint, boom]]),
    _ = macula_test_node:exit_status(B, ?HANG).

%%% Searching

shows_nothing(Server, Secrets) ->
    Seen = call(Server, ?MODULE, everything, []),
    ct:log("~b places of ~p", [length(Seen), name(Server)]),
    ?assert(length(Seen) > 100),
    Leaks = lists:usort([{Where, Secret} || {Where, Term} <- Seen, {Secret, _} <- found(Term, Secrets),
                                            not is_otp_own(Where, Secret)]),
    ?assertEqual([], Leaks).

no_secret(Where, Term, Secrets) ->
    ?assertEqual([], [{Where, Secret} || {Secret, _} <- found(Term, Secrets)]).

found(Term, Secrets) ->
    Bytes = term_to_binary(Term),
    %% What is printed may be broken into lines.
    Joined = re:replace(Bytes, "\\s", "", [global, {return, binary}]),
    [{Secret, Form} || {Secret, Form} <- Secrets, Text <- [Bytes, Joined], binary:match(Text, Form) =/= nomatch].

%% Each secret in the forms in which it might be printed.
secrets(Home, Nodes) ->
    Keys = [{{key, name(Node)}, seed(Home, Node)} || Node <- Nodes],
    Bases = [{{base, Cookie}, crypto:hash(sha256, ["macula-dist-tunnel:", Cookie])} || Cookie <- [?COOKIE, ?OTHER_COOKIE]],
    [{cookie, <<?COOKIE>>}, {other_cookie, <<?OTHER_COOKIE>>}]
        ++ [{Name, Form} || {Name, Secret} <- Keys ++ Bases, Form <- forms(Secret)].

forms(Secret) ->
    Hex = binary:encode_hex(Secret),
    %% As the elements of a binary or a list are printed.
    Numbers = iolist_to_binary(lists:join(",", [integer_to_list(Byte) || <<Byte>> <= binary:part(Secret, 0, 16)])),
    [Secret, Hex, string:lowercase(Hex), base64:encode(Secret), Numbers].

%% The private key: the octet string in the PKCS#8 file (RFC 8410, 7).
seed(Home, Node) ->
    [File] = filelib:wildcard(filename:join([Home, "nodes", atom_to_list(name(Node)), "node.key"])),
    {ok, Der} = file:read_file(File),
    [_, <<Seed:32/binary, _/binary>>] = binary:split(Der, <<16#04, 16#22, 16#04, 16#20>>),
    Seed.

%% Where OTP keeps the cookie, by its own design.
is_otp_own({_, auth, _}, _) -> true;              % Its server: the state, and a table of cookies by node.
is_otp_own({_, init, _}, cookie) -> true;         % The command line (-setcookie).
is_otp_own(_, _) -> false.

%% The search itself: it finds a secret in any of its forms, wherever it is put.
searching_finds(_) ->
    Secret = crypto:strong_rand_bytes(32),
    Secrets = [{it, Form} || Form <- forms(Secret)],
    [?assertMatch([_ | _], found(Term, Secrets))
     || Term <- [Secret, {a, [#{b => Secret}]}, binary_to_list(Secret), fun() -> Secret end,
                 iolist_to_binary(io_lib:format("~p", [{some, [Secret]}])), iolist_to_binary(io_lib:format("~w", [Secret])),
                 base64:encode_to_string(Secret), binary:encode_hex(Secret)]],
    ?assertEqual([], found(crypto:strong_rand_bytes(32), Secrets)).

%%% On the node

%% @doc All that can be seen from inside, as {Where, Term}.
everything() ->
    lists:append([[{{process, named(Pid), Item}, Info}
                   || Pid <- processes(), Pid =/= self(),
                      Item <- [dictionary, messages, current_stacktrace, initial_call, backtrace, links, monitors],
                      {_, Info} <- [process_info(Pid, Item)]],
                  [{{status, named(Pid), get_status}, Status}
                   || Pid <- supervised(), Status <- [tried(sys, get_status, [Pid, 1_000])]],
                  [{{table, named(ets:info(Table, owner)), Table}, Rows}
                   || Table <- ets:all(), ets:info(Table, protection) =/= private,
                      Rows <- [tried(ets, tab2list, [Table])]],
                  [{{terms, persistent_term, Key}, Value} || {Key, Value} <- persistent_term:get()],
                  [{{env, App, all}, application:get_all_env(App)} || {App, _, _} <- application:loaded_applications()],
                  [{{call, Module, Function}, tried(Module, Function, Args)}
                   || {Module, Function, Args} <- calls()]]).

%% What a failing call says, secrets may be in, too.
tried(Module, Function, Args) ->
    try
        apply(Module, Function, Args)
    catch
        Class:Reason:Stack -> {Class, Reason, Stack}
    end.

%% What observer, etop and our own functions tell.
calls() ->
    [{observer_backend, sys_info, []},
     {observer_backend, get_table_list, [ets, [{sys_hidden, false}, {unread_hidden, false}]]},
     {observer_backend, get_port_list, []},
     {logger, get_config, []},
     {net_kernel, nodes_info, []},
     {macula, links, []},
     {macula, config, []},
     {macula_dist_endpoint, stats, []},
     {macula_dist_registry, list, []}].

%% A process by its name, or by what it runs.
named(Pid) ->
    case process_info(Pid, registered_name) of
        {registered_name, Name} -> Name;
        _ -> proc_lib:translate_initial_call(Pid)
    end.

%% Everything under a supervisor that may hold something of ours, and OTP's own beside it.
supervised() ->
    Roots = [kernel_sup, net_sup, macula_sup, macula_dist_bridge_sup],
    lists:usort(lists:append([[whereis(Root) | children(Root)] || Root <- Roots, whereis(Root) =/= undefined])).

children(Supervisor) ->
    lists:append([below(Pid, Type) || {_, Pid, Type, _} <- supervisor:which_children(Supervisor), is_pid(Pid)]).

below(Pid, supervisor) -> [Pid | children(Pid)];
below(Pid, worker) -> [Pid].
