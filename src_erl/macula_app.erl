%% @doc The macula application: starts its supervision tree. The carrier does
%% not need it; distribution boots before any application does.
-module(macula_app).

-behaviour(application).

-export([start/2, stop/1]).

-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    ok = macula_dist_select:configure(),
    ok = tell_late(macula_dist_endpoint:late_options()),
    macula_sup:start_link().

%% Configuration that is computed at boot, as in Mix's runtime.exs, is there only
%% now. Whoever sets tls_verify in it must not believe in vain that it counts.
tell_late({ok, []}) -> ok;
tell_late({ok, Keys}) -> macula_dist_log:note(late_options, Keys);
tell_late({error, not_running}) -> ok;
tell_late({error, Bad}) -> macula_dist_log:note(late_options_unread, Bad).

-spec stop(term()) -> ok.
stop(_State) ->
    ok.
