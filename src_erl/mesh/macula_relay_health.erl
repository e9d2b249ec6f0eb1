%% @doc Says whether the relay is well, to whoever asks over HTTP: a container's
%% health check, a load balancer, a person. `GET /health' is answered 200 when
%% the relay answers on its UDP port, and 503 when it does not; either way with
%% its counters as JSON.
-module(macula_relay_health).

-export([start_link/3]).

-type check() :: fun(() -> undefined | #{atom() => non_neg_integer()}).

%% Those who are answered at the same time. Others wait in the system's queue.
-define(AT_ONCE, 8).
%% How long somebody may take for a question.
-define(ASK_MS, 2_000).
%% How long the relay may take for an answer: nobody is far away on loopback.
-define(STUN_MS, 1_000).
%% An error of the socket might come again at once.
-define(AGAIN_MS, 200).
%% The longest line of a request.
-define(LONGEST, 2_048).
-define(COOKIE, 16#2112A442).

%% @doc Answers at this address. `Stats' gives the counters; the relay itself is
%% at `Relay'.
-spec start_link({inet:ip_address(), inet:port_number()}, check(), macula_nif:address()) ->
          {ok, pid()} | {error, term()}.
start_link({Ip, Port}, Stats, Relay) ->
    Options = [binary, {ip, Ip}, {active, false}, {packet, http_bin}, {packet_size, ?LONGEST}, {reuseaddr, true},
               {backlog, 64}, {send_timeout, ?ASK_MS}],
    case gen_tcp:listen(Port, Options) of
        {ok, Socket} ->
            Pid = spawn_link(fun() -> process_flag(trap_exit, true), serve(Socket, Stats, Relay) end),
            ok = gen_tcp:controlling_process(Socket, Pid),
            {ok, Pid};
        {error, eaddrinuse} ->
            {error, {port_in_use, Port}};
        {error, Reason} ->
            {error, {health, Reason}}
    end.

%% Workers accept by themselves; one that ends is replaced.
serve(Socket, Stats, Relay) ->
    Worker = fun() -> spawn_link(fun() -> answer(Socket, Stats, Relay) end) end,
    Workers = [Worker() || _ <- lists:seq(1, ?AT_ONCE)],
    replace(Workers, Worker).

replace(Workers, Worker) ->
    receive
        {'EXIT', Pid, Reason} ->
            case lists:member(Pid, Workers) of
                true ->
                    _ = [timer:sleep(?AGAIN_MS) || Reason =/= normal],
                    replace([Worker() | lists:delete(Pid, Workers)], Worker);
                false ->
                    exit(Reason)
            end
    end.

answer(Listening, Stats, Relay) ->
    case gen_tcp:accept(Listening) of
        {ok, Socket} ->
            _ = gen_tcp:send(Socket, reply(gen_tcp:recv(Socket, 0, ?ASK_MS), Stats, Relay)),
            _ = gen_tcp:shutdown(Socket, write),
            gen_tcp:close(Socket);
        {error, Reason} ->
            exit(Reason)
    end.

reply({ok, {http_request, 'GET', {abs_path, <<"/health">>}, _}}, Stats, Relay) ->
    Counters = Stats(),
    case is_map(Counters) andalso answers_stun(Relay) of
        true -> response("200 OK", body(<<"ok">>, Counters));
        false -> response("503 Service Unavailable", body(<<"failing">>, Counters))
    end;
reply({ok, {http_request, _, _, _}}, _, _) ->
    response("404 Not Found", <<"{\"error\":\"there is only GET /health\"}\n">>);
reply(_, _, _) ->
    response("400 Bad Request", <<"{\"error\":\"this is no HTTP request\"}\n">>).

response(Status, Body) ->
    ["HTTP/1.1 ", Status, "\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ",
     integer_to_list(iolist_size(Body)), "\r\n\r\n", Body].

body(Status, Counters) ->
    Pairs = lists:sort(maps:to_list(case Counters of undefined -> #{}; _ -> Counters end)),
    Shown = [[",\"", atom_to_list(Name), "\":", integer_to_list(Count)] || {Name, Count} <- Pairs],
    ["{\"status\":\"", Status, $", Shown, "}\n"].

%% A binding request (RFC 8489, 5), which goes the way that datagrams of nodes go.
answers_stun({Ip, Port}) ->
    Family = case tuple_size(Ip) of 4 -> inet; 8 -> inet6 end,
    {ok, Socket} = gen_udp:open(0, [binary, Family, {active, false}]),
    Id = crypto:strong_rand_bytes(12),
    _ = gen_udp:send(Socket, Ip, Port, <<1:16, 0:16, ?COOKIE:32, Id/binary>>),
    Answer = gen_udp:recv(Socket, 0, ?STUN_MS),
    gen_udp:close(Socket),
    case Answer of
        {ok, {_, _, <<16#0101:16, _:16, ?COOKIE:32, Id:12/binary, _/binary>>}} -> true;
        _ -> false
    end.
