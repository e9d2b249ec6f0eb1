%% @doc Who is measured in a place: carriers of Erlang distribution, and bare
%% QUIC as the limit of what one over QUIC can reach.
-module(bench_contender).

-export([all/1, libraries/2, start/3, load/3, stop/1, of_name/2, subject/1]).
-export_type([contender/0, running/0]).

%% congestion: what TCP is told to use; undefined leaves the host's choice.
%% part: the figures of the `subject' are also shown as ratios to those of each
%% that is `compared'.
%% flags: further ones of the emulator.
%% port: of each of its nodes, as those of two clusters cannot both be where
%% others look first. macula_ebin: another one than that of the settings.
-type contender() :: #{name := atom(), title := string(), carrier := carrier(),
                       congestion := cubic | bbr | undefined, part := subject | compared | shown, flags => [string()],
                       port => inet:port_number(), macula_ebin => file:filename()}.
-type carrier() :: bench_pair:carrier() | quinn.
-type running() :: {bench_pair, bench_pair:pair()} | {bench_bare, bench_bare:pair()}.

%% @doc The contenders of a place. QUIC uses cubic, so where TCP's choice is
%% the bench's, that is what is compared with. Where packets get lost, so is
%% macula without lanes, in which everything waits for them; with BBR it is shown
%% beside TCP with BBR.
-spec all(bench_place:name()) -> [contender()].
all(loopback) ->
    [tcp(inet_tcp, undefined), tcp(inet_tls, undefined) | quic()];
all(veth) ->
    [tcp(inet_tcp, cubic), tcp(inet_tls, cubic) | quic()];
all(wan) ->
    [titled(tcp(Carrier, Congestion)) || Carrier <- [inet_tcp, inet_tls], Congestion <- [cubic, bbr]]
        ++ [one_stream(), bbr() | quic()];
all(Place) when Place =:= switch; Place =:= relay_loopback ->
    [(macula())#{part := compared, title := "direct"},
     (macula())#{name := relayed, title := "relayed", carrier := relayed}].

tcp(Carrier, Congestion) ->
    #{name => Carrier, title => atom_to_list(Carrier), carrier => Carrier, congestion => Congestion, part => compared}.

titled(#{carrier := Carrier, congestion := Congestion} = Contender) ->
    Contender#{name => list_to_atom(lists:concat([Carrier, "_", Congestion])),
               title => lists:concat([Carrier, " ", Congestion]), part => part(Congestion)}.

part(cubic) -> compared;
part(bbr) -> shown.

quic() ->
    [macula(), #{name => quinn, title => "bare quinn", carrier => quinn, congestion => undefined, part => compared}].

macula() ->
    #{name => macula, title => "macula", carrier => macula, congestion => undefined, part => subject}.

one_stream() ->
    (macula())#{name := one_stream, title := "one stream", part := compared, flags => ["-macula", "dist_streams", "1"],
                port => 4434}.

bbr() ->
    (macula())#{name := macula_bbr, title := "macula bbr", part := shown, flags => ["-macula", "congestion", "bbr"],
                port => 4435}.

%% @doc macula beside others, each of which has a name and a directory of modules.
-spec libraries(bench_place:name(), [{string(), file:filename()}]) -> [contender()].
libraries(Place, Libraries) ->
    [macula() | [other(Place, N, Library) || {N, Library} <- lists:enumerate(Libraries)]].

other(Place, N, {Name, Ebin}) ->
    Contender = (macula())#{name := list_to_atom(Name), title := Name, part := compared, macula_ebin => Ebin},
    %% Two nodes of one host cannot have one port.
    case Place of
        loopback -> Contender;
        _ -> Contender#{port => 4433 + N}
    end.

%% @doc Finds one by its name, with whatever is known of it.
-spec of_name(atom(), [Contender]) -> Contender when Contender :: #{name := atom(), atom() => term()}.
of_name(Name, Contenders) ->
    [Contender] = [C || #{name := N} = C <- Contenders, N =:= Name],
    Contender.

%% @doc The one whose figures are compared with those of others.
-spec subject([Contender]) -> Contender when Contender :: #{part := atom(), atom() => term()}.
subject(Contenders) ->
    [Contender] = [C || #{part := subject} = C <- Contenders],
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
