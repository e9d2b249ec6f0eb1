%% @doc The macula application: starts its supervision tree. The carrier does
%% not need it; distribution boots before any application does.
-module(macula_app).

-behaviour(application).

-export([start/2, stop/1]).

-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    macula_sup:start_link().

-spec stop(term()) -> ok.
stop(_State) ->
    ok.
