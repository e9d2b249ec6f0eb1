%% @doc Who is measured in a place: carriers of Erlang distribution, and bare
%% QUIC as the limit of what one over QUIC can reach.
-module(bench_contender).

-export([all/1, start/3, load/3, stop/1, of_name/2]).
-export_type([contender/0, running/0]).

%% congestion: what TCP is told to use; undefined leaves the host's choice.
%% compared: macula's figures are also shown as ratios to this one's.
-type contender() :: #{name := atom(), title := string(), carrier := carrier(),
                       congestion := cubic | bbr | undefined, compared := boolean()}.
-type carrier() :: bench_pair:carrier() | quinn.
-type running() :: {bench_pair, bench_pair:pair()} | {bench_bare, bench_bare:pair()}.

%% @doc The contenders of a place. QUIC uses cubic, so where TCP's choice is
%% the bench's, that is what is compared with.
-spec all(bench_place:name()) -> [contender()].
all(loopback) ->
    [tcp(inet_tcp, undefined), tcp(inet_tls, undefined) | quic()];
all(veth) ->
    [tcp(inet_tcp, cubic), tcp(inet_tls, cubic) | quic()];
all(wan) ->
    [titled(tcp(Carrier, Congestion)) || Carrier <- [inet_tcp, inet_tls], Congestion <- [cubic, bbr]] ++ quic().

tcp(Carrier, Congestion) ->
    #{name => Carrier, title => atom_to_list(Carrier), carrier => Carrier, congestion => Congestion, compared => true}.

titled(#{carrier := Carrier, congestion := Congestion} = Contender) ->
    Contender#{name => list_to_atom(lists:concat([Carrier, "_", Congestion])),
               title => lists:concat([Carrier, " ", Congestion]), compared => Congestion =:= cubic}.

quic() ->
    [#{name => macula, title => "macula", carrier => macula, congestion => undefined, compared => false},
     #{name => quinn, title => "bare quinn", carrier => quinn, congestion => undefined, compared => true}].

%% @doc Finds one by its name, with whatever is known of it.
-spec of_name(atom(), [Contender]) -> Contender when Contender :: #{name := atom(), atom() => term()}.
of_name(Name, Contenders) ->
    [Contender] = [C || #{name := N} = C <- Contenders, N =:= Name],
    Contender.

-spec start(contender(), bench_place:place(), bench_vm:settings()) -> {ok, running()} | {error, string()}.
start(#{carrier := quinn}, Place, Settings) -> running(bench_bare, bench_bare:start(Place, Settings));
start(Contender, Place, Settings) -> running(bench_pair, bench_pair:start(Contender, Place, Settings)).

running(Module, {ok, Pair}) -> {ok, {Module, Pair}};
running(_, {error, _} = Error) -> Error.

%% @doc Runs a load; `none' is one that this contender does not know.
-spec load(running(), bench_load:load(), timeout()) ->
          {ok, #{bench_figures:key() => number()} | none} | {error, string()}.
load({Module, Pair}, Load, Limit) -> Module:load(Pair, Load, Limit).

-spec stop(running()) -> ok.
stop({Module, Pair}) -> Module:stop(Pair).
