%% The native library under hard use: wrong arguments, owners that die, reloading and halting under
%% traffic, a receiver that does not receive.
-module(macula_nif_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, end_per_testcase/2]).
-export([bad_arguments/1, wrong_resources/1, bad_frames/1, bad_options/1, after_close/1]).
-export([packets_both_ways/1, owner_killed/1, new_owner/1, endpoint_owner_killed/1,
         forgotten_endpoint_frees_its_port/1, dial_cancelled/1, registrations/1]).
-export([hot_reload_is_refused/1, purge_and_load_under_traffic/1, purge_and_load_repeatedly/1,
         purge_and_restart/1, restart_under_traffic/1]).
-export([halt_under_traffic/1, stop_under_traffic/1]).
-export([receiver_that_does_not_receive/1, calls_are_recorded/1]).

-import(macula_test_node, [start/1, start/2, call/2, call/4, name/1, connect/2, wait_until/1, unique/1]).

-define(HANG, 60_000).

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [{group, arguments}, {group, life}, {group, loading}, {group, ending}, {group, load}].

groups() ->
    [{arguments, [bad_arguments, wrong_resources, bad_frames, bad_options, after_close]},
     {life, [packets_both_ways, owner_killed, new_owner, endpoint_owner_killed,
             forgotten_endpoint_frees_its_port, dial_cancelled, registrations]},
     {loading, [hot_reload_is_refused, purge_and_load_under_traffic, purge_and_load_repeatedly,
               purge_and_restart, restart_under_traffic]},
     {ending, [halt_under_traffic, stop_under_traffic]},
     {load, [receiver_that_does_not_receive, calls_are_recorded]}].

end_per_testcase(_, _) ->
    macula_test_node:stop_all().

%%% Arguments

%% Terms that are never right, in every place of every native function: badarg, and the VM lives.
bad_arguments(_) ->
    A = nameless(),
    Bad = [none, 1.5, -1, 1 bsl 100, <<1:3>>, "text", [a | b], {}, #{}, self(), make_ref(), fun erlang:abs/1,
           [<<255>>], {<<"x">>, 1}],
    Called = call(A, fun() ->
                         [{Function, Arity, Term}
                          || {Function, Arity} <- natives(), Arity > 0, Term <- Bad,
                             badarg =/= class(fun() -> apply(macula_nif, Function, lists:duplicate(Arity, Term)) end)]
                     end),
    ?assertEqual([], Called),
    ?assert(call(A, fun() -> length(natives()) end) >= 24).

natives() ->
    ok = macula_nif:load(),
    macula_nif:module_info(nifs).

class(Fun) ->
    try Fun() of
        Result -> {returned, Result}
    catch
        error:badarg -> badarg;
        Class:Reason -> {Class, Reason}
    end.

%% A resource of one kind in the place of another.
wrong_resources(_) ->
    A = nameless(),
    Wrong = call(A, fun() ->
                        {Endpoint, Dial, Link, _} = linked(),
                        [{Function, Index}
                         || {Function, Arity} <- natives(), Arity > 0,
                            {Index, Resource} <- [{endpoint, Endpoint}, {dial, Dial}, {link, Link}],
                            is_wrong(Function, Index),
                            badarg =/= class(fun() -> apply(macula_nif, Function, [Resource | right_rest(Function, Arity)]) end)]
                    end),
    ?assertEqual([], Wrong).

is_wrong(endpoint_open, _) -> true;
is_wrong(dial, Kind) -> Kind =/= endpoint;
is_wrong(dial_cancel, Kind) -> Kind =/= dial;
is_wrong(Function, Kind) ->
    [Prefix | _] = string:split(atom_to_list(Function), "_"),
    taken_by(Prefix) =/= atom_to_list(Kind).

%% The mesh and the relay are those of an endpoint.
taken_by(Prefix) when Prefix =:= "mesh"; Prefix =:= "relay" -> "endpoint";
taken_by(Prefix) -> Prefix.

%% The other arguments are as they should be.
right_rest(endpoint_rename, _) -> [<<"x@y">>];
right_rest(endpoint_cookie, _) -> [1, <<"cookie">>];
right_rest(dial, _) -> [dial_to({{127, 0, 0, 1}, 1})];
right_rest(link_send_packet, _) -> [<<"x">>];
right_rest(link_established, _) -> [<<"x@y">>, self()];
right_rest(Send, _) when Send =:= link_send; Send =:= link_send_large -> [[]];
right_rest(registry_publish, _) -> [<<"x@y">>, {{127, 0, 0, 1}, 1}];
right_rest(registry_find, _) -> [<<"x@y">>];
right_rest(_, Arity) -> lists:duplicate(Arity - 1, self()).

%% Frames that are none: nothing is sent, the link lives on.
bad_frames(_) ->
    A = nameless(),
    call(A, fun() ->
                {_, _, Link, Other} = linked(),
                [?assertEqual({Send, Frames, badarg},
                              {Send, Frames, class(fun() -> macula_nif:Send(Link, Frames) end)})
                 || Send <- [link_send, link_send_large],
                    Frames <- [[{1, <<1>>}], [{2, [<<1>>]}], [{0, [<<1>>]}], [{-1, []}], [{1 bsl 40, []}],
                               [{1, [1]}], [{1, [<<1:1>>]}], [{1, [<<1>>]} | bad], [{1, [<<1>>], x}],
                               [{1, [<<1>>]}, {1, []}], [{1, [<<1>> | <<2>>]}]]],
                ?assertMatch({error, _}, macula_nif:link_send_packet(Link, binary:copy(<<0>>, 65_536))),
                says(Link, Other, <<"still here">>)
            end).

%% Options that are missing or wrong, one at a time.
bad_options(_) ->
    A = nameless(),
    call(A, fun() ->
                Options = open_options(),
                Bad = [maps:remove(Key, Options) || Key <- maps:keys(Options)]
                    ++ [maps:merge(Options, Change)
                        || Change <- [#{owner => x}, #{ip => "127.0.0.1"}, #{ip => {1, 2, 3}}, #{ip => {256, 0, 0, 1}},
                                      #{ports => 1}, #{ports => [65_536]}, #{ports => [-1]}, #{name => "x@y"},
                                      #{name => <<255, 255>>}, #{threads => -1}, #{threads => x},
                                      #{congestion => reno}, #{congestion => 1}, #{link_memory => (4 bsl 20) - 1},
                                      #{link_memory => (2 bsl 30) + 1}, #{link_memory => -1}, #{link_memory => x},
                                      #{home => "text"}, #{home => 1}, #{authorities => x}, #{authorities => "f"},
                                      #{certificate => <<"f">>}, #{certificate => {<<"f">>, 1}}, #{registry => x},
                                      #{well_known_port => 65_536}, #{well_known_port => x}]],
                [?assertEqual({O, badarg}, {O, class(fun() -> macula_nif:endpoint_open(O) end)}) || O <- Bad],
                ?assertMatch({error, _}, macula_nif:endpoint_open(Options#{ip => {192, 0, 2, 1}})),
                ?assertMatch({error, _}, macula_nif:endpoint_open(Options#{ports => []})),
                {ok, Endpoint} = macula_nif:endpoint_open(Options),
                Request = dial_to({{127, 0, 0, 1}, 1}),
                [?assertEqual({R, badarg}, {R, class(fun() -> macula_nif:dial(Endpoint, R) end)})
                 || R <- [maps:remove(Key, Request) || Key <- maps:keys(Request)]
                        ++ [maps:merge(Request, Change)
                            || Change <- [#{id => x}, #{addresses => x}, #{addresses => [x]}, #{target => x}, #{cookie => x},
                                          #{addresses => [{{127, 0, 0, 1}, 70_000}]}, #{timeout => -1},
                                          #{timeout => infinity}]]],
                %% Extremes that are legal.
                {ok, _} = macula_nif:dial(Endpoint, Request#{addresses => []}),
                {ok, _} = macula_nif:dial(Endpoint, Request#{timeout => 1 bsl 63}),
                {ok, _} = macula_nif:dial(Endpoint, Request#{timeout => 0, target => <<>>}),
                {ok, _} = macula_nif:dial(Endpoint, Request#{target => binary:copy(<<"x">>, 100_000)}),
                ok = macula_nif:endpoint_close(Endpoint)
            end).

%% Everything may still be called on what is closed.
after_close(_) ->
    A = nameless(),
    call(A, fun() ->
                {Endpoint, Dial, Link, Other} = linked(),
                ok = macula_nif:link_close(Link),
                ok = macula_nif:link_close(Link),
                ?assertEqual({error, closed}, macula_nif:link_send(Link, [{1, [<<1>>]}])),
                ?assertEqual({error, closed}, macula_nif:link_send_large(Link, [{1, [<<1>>]}])),
                ?assertEqual({error, closed}, macula_nif:link_send_packet(Link, <<"x">>)),
                ?assertEqual({error, closed}, macula_nif:link_tick(Link)),
                ?assertEqual({error, closed}, macula_nif:link_stat(Link)),
                ok = macula_nif:link_recv_packet(Link),
                ?assertEqual({[], 0, none}, macula_nif:link_receive(Link)),
                Id = macula_nif:link_id(Other),
                receive {macula_link, Id, {closed, _}} -> ok after ?HANG -> error(hangs) end,
                ok = macula_nif:dial_cancel(Dial),
                ok = macula_nif:endpoint_close(Endpoint),
                ok = macula_nif:endpoint_close(Endpoint),
                ?assertEqual([], macula_nif:endpoint_links(Endpoint)),
                ?assert(is_map(macula_nif:endpoint_stats(Endpoint))),
                ok = macula_nif:endpoint_rename(Endpoint, <<"x@y">>),
                ok = macula_nif:endpoint_accept(Endpoint, self()),
                {ok, _} = macula_nif:dial(Endpoint, (dial_to({{127, 0, 0, 1}, 1}))#{id => 99}),
                receive {macula_dial, 99, {error, _}} -> ok after ?HANG -> error(hangs) end
            end).

%%% Owners

%% Packets sent before the other side asks are kept, in order.
packets_both_ways(_) ->
    A = nameless(),
    call(A, fun() ->
                {_, _, Link, Other} = linked(),
                Packets = [<<>>, <<"1">>, rand:bytes(65_535), <<"last">>],
                [ok = macula_nif:link_send_packet(Link, [Packet]) || Packet <- Packets],
                [ok = macula_nif:link_send_packet(Other, Packet) || Packet <- Packets],
                ?assertEqual(Packets, [packet(Other) || _ <- Packets]),
                ?assertEqual(Packets, [packet(Link) || _ <- Packets])
            end).

%% The owner of a link dies: the link closes, and the other side hears of it.
owner_killed(_) ->
    A = nameless(),
    call(A, fun() ->
                {_, _, Link, Other} = linked(),
                Id = macula_nif:link_id(Other),
                Owner = spawn(fun() -> receive never -> ok end end),
                ok = macula_nif:link_own(Link, Owner),
                says(Link, Other, <<"before">>),
                exit(Owner, kill),
                receive {macula_link, Id, {closed, _}} -> ok after ?HANG -> error(hangs) end,
                wait_until(fun() -> macula_nif:link_stat(Link) =:= {error, closed} end)
            end).

%% A former owner may die; a dead new owner closes the link.
new_owner(_) ->
    A = nameless(),
    call(A, fun() ->
                {_, _, Link, Other} = linked(),
                {Former, Monitor} = spawn_monitor(fun() -> receive never -> ok end end),
                ok = macula_nif:link_own(Link, Former),
                ok = macula_nif:link_own(Link, self()),
                exit(Former, kill),
                receive {'DOWN', Monitor, process, Former, _} -> ok end,
                timer:sleep(100),
                says(Link, Other, <<"still here">>),
                ok = macula_nif:link_own(Link, Former),
                Id = macula_nif:link_id(Other),
                receive {macula_link, Id, {closed, _}} -> ok after ?HANG -> error(hangs) end
            end).

%% The owner of an endpoint dies: its links close and its port is free.
endpoint_owner_killed(_) ->
    A = nameless(),
    call(A, fun() ->
                Self = self(),
                Owner = spawn(fun() ->
                                  {ok, Endpoint} = macula_nif:endpoint_open(open_options()),
                                  Self ! {opened, macula_nif:endpoint_address(Endpoint)},
                                  receive never -> Endpoint end
                              end),
                {_, Port} = receive {opened, Address} -> Address after ?HANG -> error(hangs) end,
                ?assertEqual({error, eaddrinuse}, macula_nif:endpoint_open((open_options())#{ports => [Port]})),
                exit(Owner, kill),
                wait_until(fun() -> is_free(Port) end)
            end).

%% An endpoint that nobody refers to any more closes.
forgotten_endpoint_frees_its_port(_) ->
    A = nameless(),
    call(A, fun() ->
                {ok, Endpoint} = macula_nif:endpoint_open(open_options()),
                {_, Port} = macula_nif:endpoint_address(Endpoint),
                ?assertNot(is_free(Port)),
                %% Referred to until here, whenever the process collects its garbage.
                ?assertEqual(Port, element(2, macula_nif:endpoint_address(Endpoint)))
            end),
    Ports = call(A, fun() ->
                        [begin
                             {ok, Endpoint} = macula_nif:endpoint_open(open_options()),
                             element(2, macula_nif:endpoint_address(Endpoint))
                         end || _ <- lists:seq(1, 20)]
                    end),
    wait_until(fun() -> call(A, fun() -> [garbage_collect(P) || P <- processes()], lists:all(fun is_free/1, Ports) end) end).

is_free(Port) ->
    case gen_udp:open(Port, [{ip, {127, 0, 0, 1}}]) of
        {ok, Socket} -> ok =:= gen_udp:close(Socket);
        {error, eaddrinuse} -> false
    end.

%% A dial that is cancelled, or forgotten, says nothing.
dial_cancelled(_) ->
    A = nameless(),
    call(A, fun() ->
                {ok, Silent} = gen_udp:open(0, [{ip, {127, 0, 0, 1}}]),
                {ok, Port} = inet:port(Silent),
                {ok, Endpoint} = macula_nif:endpoint_open(open_options()),
                Request = (dial_to({{127, 0, 0, 1}, Port}))#{timeout => 1_000},
                {ok, Dial} = macula_nif:dial(Endpoint, Request#{id => 1}),
                ok = macula_nif:dial_cancel(Dial),
                ok = macula_nif:dial_cancel(Dial),
                {ok, _Kept} = macula_nif:dial(Endpoint, Request#{id => 2}),
                receive {macula_dial, Id, {error, [{_, timeout}]}} -> ?assertEqual(2, Id) after ?HANG -> error(hangs) end,
                receive {macula_dial, 1, _} = Late -> error(Late) after 200 -> ok end
            end).

%% A name has one holder at a time, whether it withdraws, is forgotten or dies.
registrations(Config) ->
    Folder = macula_test_node:scratch(Config),
    ok = file:change_mode(Folder, 8#700),
    Dir = unicode:characters_to_binary(Folder),
    A = nameless(),
    B = nameless(),
    Publish = fun() -> macula_nif:registry_publish(Dir, <<"x@y">>, {{127, 0, 0, 1}, 7}) end,
    Keeper = fun(Node) ->
                 macula_test_node:cast(Node, fun() ->
                     {ok, Registration} = Publish(),
                     register(keeper, self()),
                     receive withdraw -> ok = macula_nif:registry_withdraw(Registration) end
                 end),
                 wait_until(fun() -> call(Node, erlang, whereis, [keeper]) =/= undefined end)
             end,
    Keeper(A),
    ?assertEqual({error, taken}, call(B, Publish)),
    ?assertEqual({error, taken}, call(A, Publish)),
    ?assertEqual({ok, {{127, 0, 0, 1}, 7}}, call(B, macula_nif, registry_find, [Dir, <<"x@y">>])),
    ?assertEqual({ok, [{<<"x@y">>, {{127, 0, 0, 1}, 7}}]}, call(B, macula_nif, registry_list, [Dir])),
    withdraw = call(A, fun() -> keeper ! withdraw end),
    wait_until(fun() -> call(B, macula_nif, registry_find, [Dir, <<"x@y">>]) =:= {error, not_found} end),
    Keeper(B),
    macula_test_node:kill(B),
    ?assertEqual({error, not_found}, call(A, macula_nif, registry_find, [Dir, <<"x@y">>])),
    ?assertMatch({ok, _}, call(A, Publish)).

%%% Loading

%% Loading the module again is refused, and traffic goes on.
hot_reload_is_refused(_) ->
    {A, B} = pair(),
    Sink = traffic(A, B),
    ?assertEqual({error, sticky_directory}, call(A, code, load_file, [macula_nif])),
    ?assertEqual(ok, call(A, macula_nif, load, [])),
    goes_on(B, Sink),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])).

%% The module is forced out and in again under traffic: the VM neither crashes nor hangs, and a
%% ping answers. The links went with the old library; the next case shows what brings them back.
purge_and_load_under_traffic(_) ->
    {A, B} = pair(),
    _ = traffic(A, B),
    _ = traffic(B, A),
    reload(A),
    ?assert(lists:member(call(A, net_adm, ping, [name(B)]), [pong, pang])),
    ?assertEqual(3, call(A, erlang, '+', [1, 2])),
    ?assertEqual(3, call(B, erlang, '+', [1, 2])).

%% Again and again, at both ends, each time with distribution stopped and started after it.
purge_and_load_repeatedly(_) ->
    {A, B} = restartable_pair(),
    [begin
         _ = traffic(A, B),
         reload(Node),
         restart(Node),
         talks_again(A, B),
         talks_again(B, A)
     end || _ <- lists:seq(1, macula_test_node:full(20, 5)), Node <- [A, B]].

%% After a reload distribution can also be stopped and started.
purge_and_restart(_) ->
    {A, B} = restartable_pair(),
    _ = traffic(A, B),
    reload(A),
    restart(A),
    talks_again(A, B).

%% Distribution is stopped and started under traffic in both directions.
restart_under_traffic(_) ->
    {A, B} = restartable_pair(),
    [begin
         _ = traffic(A, B, rand:bytes(500_000)),
         _ = traffic(B, A, rand:bytes(500_000)),
         restart(Node),
         talks_again(A, B),
         talks_again(B, A)
     end || _ <- lists:seq(1, macula_test_node:full(20, 4)), Node <- [A, B]].

%% Of the old library nothing is left that could be called, so all of its links are gone. A process
%% that calls in between loads it first; then what it loaded must go as well.
reload(Node) ->
    call(Node, fun() -> wait_until(fun() -> reload() =:= ok end), true = is_integer(macula_nif:memory()) end).

%% The one who loaded it in between also made it sticky again.
reload() ->
    code:unstick_mod(macula_nif),
    _ = code:delete(macula_nif),
    _ = code:purge(macula_nif),
    case code:load_file(macula_nif) of
        {module, macula_nif} -> macula_nif:load();
        {error, sticky_directory} = Error -> Error
    end.

%% Only what was started at run time can be stopped.
restartable_pair() ->
    Nodes = {A, B} = {nameless(), nameless()},
    start_distribution(A),
    start_distribution(B),
    connect(A, B),
    Nodes.

restart(Node) ->
    ok = call(Node, net_kernel, stop, []),
    start_distribution(Node).

start_distribution(Node) ->
    {ok, _} = call(Node, net_kernel, start, [[name(Node), shortnames]]),
    true = call(Node, erlang, set_cookie, [list_to_atom(macula_test_node:cookie())]).

talks_again(A, B) ->
    NodeB = name(B),
    wait_until(fun() -> call(A, net_adm, ping, [NodeB]) =:= pong end),
    wait_until(fun() -> NodeB =:= call(A, rpc, call, [NodeB, erlang, node, []]) end).

%%% Ending

%% halt() while data pours in both directions: status 0, no dump, and the other node goes on.
halt_under_traffic(Config) ->
    A = start(unique("a")),
    [begin
         Dump = filename:join(macula_test_node:scratch(Config), "dump"),
         B = start(unique("b"), #{env => [{"ERL_CRASH_DUMP_SECONDS", "-1"}, {"ERL_CRASH_DUMP", Dump}]}),
         connect(A, B),
         pours(A, B, Round),
         macula_test_node:cast(B, erlang, halt, []),
         ?assertEqual({Round, 0}, {Round, macula_test_node:exit_status(B, ?HANG)}),
         ?assertNot(filelib:is_file(Dump)),
         ?assertEqual(<<>>, without_logs(macula_test_node:output(B))),
         wait_until(fun() -> call(A, erlang, nodes, []) =:= [] end)
     end || Round <- lists:seq(1, 20)].

%% init:stop() likewise.
stop_under_traffic(_) ->
    A = start(unique("a")),
    [begin
         B = start(unique("b")),
         connect(A, B),
         pours(A, B, Round),
         ok = call(B, init, stop, []),
         ?assertEqual({Round, 0}, {Round, macula_test_node:exit_status(B, ?HANG)}),
         wait_until(fun() -> call(A, erlang, nodes, []) =:= [] end)
     end || Round <- lists:seq(1, macula_test_node:full(20, 5))].

pours(A, B, Round) ->
    [_ = traffic(From, To, rand:bytes(Size)) || {From, To} <- [{A, B}, {B, A}], Size <- [10, 10_000, 200_000]],
    %% Not always at the same point.
    timer:sleep(50 + 13 * Round rem 100).

%% What a library that aborts would have said; a long_schedule event may stand there.
without_logs(Said) ->
    Lines = [Line || Line <- binary:split(Said, <<"\n">>, [global]), Line =/= <<>>],
    iolist_to_binary([[Line, $\n] || Line <- Lines, not is_harmless(Line)]).

is_harmless(<<"long_schedule", _/binary>>) -> true;
is_harmless(_) -> false.

%%% Load

%% The input handler of B is suspended: A's queue and memory stay bounded, its senders wait, and all
%% arrives once it goes on.
receiver_that_does_not_receive(_) ->
    {A, B} = pair(),
    NodeB = name(B),
    Count = 300,
    Size = 1_000_000,
    macula_test_node:cast(B, fun() -> register(sink, self()), sink(0, 0) end),
    wait_until(fun() -> call(B, erlang, whereis, [sink]) =/= undefined end),
    Suspender = macula_test_node:cast(B, fun() ->
        [Input] = [P || P <- processes(), {macula_dist_input, init, 2} =:= initial_call(P)],
        true = erlang:suspend_process(Input),
        register(suspender, self()),
        receive go_on -> true = erlang:resume_process(Input) end,
        receive never -> ok end
    end),
    ?assert(is_pid(Suspender)),
    wait_until(fun() -> call(B, erlang, whereis, [suspender]) =/= undefined end),
    Before = rss(A),
    macula_test_node:cast(A, fun() ->
        register(sender, self()),
        put(sent, 0),
        [begin
             {sink, NodeB} ! {data, N, fresh(N, Size)},
             put(sent, N),
             garbage_collect()
         end || N <- lists:seq(1, Count)],
        receive never -> ok end
    end),
    Stalled = stalled(A, 0, 0),
    [#{queue := Queue}] = call(A, macula, links, []),
    After = rss(A),
    ct:log("sent ~b of ~b MB before the sender waits; queue ~b bytes; RSS ~b kB, then ~b kB",
           [Stalled, Count, Queue, Before, After]),
    ?assert(Stalled < 30),
    ?assert(Queue < 16_000_000),
    ?assert(After - Before < 100_000),
    go_on = call(B, fun() -> suspender ! go_on end),
    wait_until(fun() -> {Count, Count * Size} =:= call(B, fun() -> sunk() end) end),
    ?assertEqual([NodeB], call(A, erlang, nodes, [])).

initial_call(Pid) ->
    case process_info(Pid, initial_call) of
        {initial_call, Call} -> Call;
        undefined -> gone
    end.

%% How much was sent once that has not changed for two seconds.
stalled(_, Sent, 20) ->
    Sent;
stalled(A, Sent, Times) ->
    timer:sleep(100),
    case call(A, fun() -> sent() end) of
        Sent when Sent > 0 -> stalled(A, Sent, Times + 1);
        More -> stalled(A, More, 0)
    end.

sent() ->
    case whereis(sender) of
        undefined -> 0;
        Pid -> proplists:get_value(sent, element(2, process_info(Pid, dictionary)), 0)
    end.

%% Pages that were not touched would not count.
fresh(N, Size) ->
    binary:copy(<<N:32>>, Size div 4).

%% In order, and with the content that was sent.
sink(Count, Bytes) ->
    receive
        {data, N, <<N:32, _/binary>> = Data} when N =:= Count + 1 ->
            Same = fresh(N, byte_size(Data)),
            Same = Data,
            sink(N, Bytes + byte_size(Data));
        {From, how_much} ->
            From ! {sunk, Count, Bytes},
            sink(Count, Bytes)
    end.

sunk() ->
    sink ! {self(), how_much},
    receive {sunk, Count, Bytes} -> {Count, Bytes} after ?HANG -> error(hangs) end.

rss(Node) ->
    {ok, Kb} = macula_test_node:os_status(integer_to_list(macula_test_node:os_pid(Node)), "VmRSS"),
    Kb.

%% The library under test measures itself, or nothing here would be judged.
calls_are_recorded(_) ->
    {A, B} = pair(),
    goes_on(B, traffic(A, B)),
    Times = call(A, macula_nif, call_times, []),
    ?assertNotEqual(not_recorded, Times),
    ct:log("~p", [Times]),
    ?assertMatch({link_send, Calls, Max, false} when Calls > 0 andalso Max > 0, lists:keyfind(link_send, 1, Times)),
    ?assert(is_integer(call(A, macula_nif, memory, []))).

%%% Help

nameless() ->
    start(unique("vm"), #{domain => none}).

pair() ->
    A = start(unique("a")),
    B = start(unique("b")),
    connect(A, B),
    {A, B}.

%% Sends without end to a process on the other node, which counts.
traffic(From, To) ->
    traffic(From, To, rand:bytes(2_000)).

traffic(From, To, Data) ->
    Node = name(To),
    Name = list_to_atom(unique("sink")),
    macula_test_node:cast(To, fun() -> register(Name, self()), count(0) end),
    wait_until(fun() -> call(To, erlang, whereis, [Name]) =/= undefined end),
    macula_test_node:cast(From, fun() -> true = monitor_node(Node, true), pour({Name, Node}, Data) end),
    Name.

pour({_, Node} = Sink, Data) ->
    Sink ! Data,
    receive
        {nodedown, Node} -> ok
    after 0 -> pour(Sink, Data)
    end.

count(N) ->
    receive
        {From, count} -> From ! {count, N}, count(N);
        Data when is_binary(Data) -> count(N + 1)
    end.

goes_on(To, Name) ->
    Count = fun() -> call(To, fun() -> Name ! {self(), count}, receive {count, N} -> N after ?HANG -> error(hangs) end end) end,
    Now = Count(),
    wait_until(fun() -> Count() > Now + 100 end).

open_options() ->
    #{owner => self(), ip => {127, 0, 0, 1}, ports => [0], name => <<"me@localhost">>, threads => 1,
      home => undefined, authorities => undefined, certificate => undefined, registry => undefined,
      well_known_port => undefined, dist_streams => 64, link_memory => 4 bsl 20, congestion => cubic}.

dial_to(Address) ->
    #{id => 1, addresses => [Address], target => <<"me@localhost">>, name => <<"you@localhost">>,
      cookie => <<"cookie">>, timeout => 5_000}.

%% Two endpoints of this VM, and a link between them, both ends of it ours.
linked() ->
    {ok, Server} = macula_nif:endpoint_open(open_options()),
    {ok, Client} = macula_nif:endpoint_open((open_options())#{name => <<"you@localhost">>}),
    ok = macula_nif:endpoint_accept(Server, self()),
    {ok, Dial} = macula_nif:dial(Client, dial_to(macula_nif:endpoint_address(Server))),
    receive
        {macula_cookie, Question, <<"you@localhost">>} -> ok = macula_nif:endpoint_cookie(Server, Question, <<"cookie">>)
    after ?HANG -> error(no_question)
    end,
    Link = receive {macula_dial, 1, {ok, L}} -> L after ?HANG -> error(no_link) end,
    Other = receive {macula_accept, O, #{node := <<"you@localhost">>}} -> O after ?HANG -> error(no_link) end,
    ok = macula_nif:link_own(Link, self()),
    ok = macula_nif:link_own(Other, self()),
    %% The endpoints go when nobody refers to them.
    put({endpoints, Link}, {Server, Client}),
    {Client, Dial, Link, Other}.

says(From, To, Packet) ->
    ok = macula_nif:link_send_packet(From, Packet),
    Packet = packet(To).

packet(Link) ->
    Id = macula_nif:link_id(Link),
    ok = macula_nif:link_recv_packet(Link),
    receive
        {macula_link, Id, {packet, Packet}} -> Packet;
        {macula_link, Id, {closed, _} = Closed} -> error(Closed)
    after ?HANG ->
        error(no_packet)
    end.
