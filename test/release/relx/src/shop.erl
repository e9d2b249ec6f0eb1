%% Tells on standard output what a node of the release sees.
-module(shop).
-behaviour(application).
-behaviour(gen_server).

-export([start/2, stop/1]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2]).

start(_Type, _Args) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, os:getenv("SHOP_PEER"), []).

stop(_State) ->
    ok.

init(Peer) ->
    {ok, Peer, {continue, tell}}.

handle_continue(tell, false) ->
    io:format("shop: ~p is up, code loading is ~p~n", [node(), code:get_mode()]),
    {noreply, false};
handle_continue(tell, Peer) ->
    Node = list_to_atom(Peer),
    io:format("shop: ping ~p~n", [net_adm:ping(Node)]),
    io:format("shop: call ~p~n", [gen_server:call({?MODULE, Node}, code_mode)]),
    {noreply, Peer}.

handle_call(code_mode, _From, State) ->
    {reply, code:get_mode(), State}.

handle_cast(_, State) ->
    {noreply, State}.
