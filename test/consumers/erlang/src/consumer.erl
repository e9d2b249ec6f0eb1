-module(consumer).

-export([serve/0, ping/1]).

serve() ->
    {ok, _} = application:ensure_all_started(consumer),
    io:format("consumer: ~p is up~n", [node()]).

ping([Peer]) ->
    {ok, _} = application:ensure_all_started(consumer),
    pong = net_adm:ping(Peer),
    Peer = erpc:call(Peer, erlang, node, []),
    io:format("consumer: pong from ~p~n", [Peer]),
    halt(0).
