%% @doc Reaches a node by racing every address its name resolves to: a batch
%% is dialled as soon as its source answers, and the first peer that proves to
%% be that node wins.
-module(macula_dist_dialler).

-export([connect/2, prepare/1]).

-export_type([request/0]).

-type request() :: #{endpoint := macula_nif:endpoint(), node := node(),
                     parts := macula_dist_name:parts(), own_name := binary(),
                     timeout := pos_integer()}.

%% The native side gives up this much before us, and so can tell each
%% address's own reason.
-define(REPORT_MS, 50).

%% Once the addresses of a host in one family of addresses are known, or that
%% there are none, those in the other one are worth this much waiting: some name
%% servers never answer to questions for IPv6.
-define(OTHER_FAMILY_MS, 2_000).

-record(race, {request :: request(),
               deadline :: integer(),
               resolvers :: #{pid() => macula_dist_resolver:source()},
               overdue = [] :: [pid()],
               dials = #{} :: #{integer() => {macula_nif:dial(), macula_dist_resolver:source()}},
               tried = [] :: [macula_nif:candidate()],
               failures = [] :: [macula_dist_log:attempt()]}).

%% @doc Returns when all is there that calling this node takes: the first time
%% the mesh and the key of the cookie shared with it. What is missing is told by
%% the dial.
-spec prepare(node()) -> ok.
prepare(Node) ->
    case macula_dist_endpoint:dialling() of
        {ok, Endpoint} ->
            ok = macula_dist_endpoint:await_mesh(),
            macula_dist_cookie:prepare(Endpoint, macula_dist_cookie:with(Node));
        {error, _} -> ok
    end.

%% @doc Races for a link and gives it to `Adopt', whose answer is the result.
%%
%% The race runs in a process of its own. What comes too late, a second link
%% or a slow resolver's answer, goes with it, instead of staying for good in
%% the mailbox of the caller, the connection's ticker. Until it is adopted the
%% link belongs to that process, which is why `Adopt' is called there.
-spec connect(request(), fun((macula_nif:link()) -> Result)) ->
          {ok, Result} | {error, [macula_dist_log:attempt()]}.
connect(Request, Adopt) ->
    Caller = self(),
    Race = spawn_link(fun() -> Caller ! {self(), run(Request, Adopt)} end),
    receive
        {Race, Result} -> Result
    end.

run(#{endpoint := Endpoint, node := Node, parts := Parts, timeout := Timeout} = Request, Adopt) ->
    Race = #race{request = Request,
                 deadline = now_ms() + Timeout,
                 resolvers = macula_dist_resolver:start(Endpoint, Node, Parts, Timeout)},
    case loop(Race) of
        {ok, Link} -> {ok, Adopt(Link)};
        {error, _} = Error -> Error
    end.

loop(#race{resolvers = Resolvers, overdue = Overdue, dials = Dials} = Race) ->
    case map_size(Dials) =:= 0 andalso maps:without(Overdue, Resolvers) =:= #{} of
        true -> given_up(Race);
        false -> await(Race)
    end.

await(#race{resolvers = Resolvers, overdue = Overdue, dials = Dials} = Race) ->
    receive
        {candidates, Pid, Found} ->
            {Source, Left} = maps:take(Pid, Resolvers),
            _ = expect_other_family(Source, Left),
            loop(candidates(Found, Source, Race#race{resolvers = Left}));
        {overdue, Pid} ->
            loop(Race#race{overdue = [Pid | Overdue]});
        {macula_dial, Id, Result} when is_map_key(Id, Dials) ->
            {{_, Source}, Left} = maps:take(Id, Dials),
            dialled(Result, Source, Race#race{dials = Left})
    after left(Race) ->
        given_up(Race)
    end.

given_up(#race{failures = Failures} = Race) ->
    {error, lists:reverse(Failures, unfinished(Race))}.

expect_other_family(Source, Resolvers) ->
    Other = macula_dist_resolver:other_family(Source),
    [erlang:send_after(?OTHER_FAMILY_MS, self(), {overdue, Pid})
     || {Pid, Asked} <- maps:to_list(Resolvers), Asked =:= Other].

dialled({ok, Link}, _, #race{dials = Others}) ->
    cancel(Others),
    {ok, Link};
dialled({error, Reasons}, Source, #race{failures = Failures} = Race) ->
    New = [failure(Source, Address, Reason) || {Address, Reason} <- Reasons],
    loop(Race#race{failures = lists:reverse(New, Failures)}).

failure(Source, mesh, Reason) -> #{source => Source, reason => Reason};
failure(Source, Address, Reason) -> #{source => Source, address => Address, reason => Reason}.

candidates({error, Reason}, Source, #race{failures = Failures} = Race) ->
    Race#race{failures = [#{source => Source, reason => Reason} | Failures]};
candidates({ok, Addresses}, Source, #race{tried = Tried} = Race) ->
    %% Two sources often name one address.
    dial(Addresses -- Tried, Source, Race).

dial([], _, Race) ->
    Race;
dial(Addresses, Source, #race{dials = Dials, tried = Tried, failures = Failures} = Race) ->
    Id = erlang:unique_integer([positive]),
    case start_dial(Id, Addresses, Race) of
        {ok, Dial} ->
            Race#race{dials = Dials#{Id => {Dial, Source}}, tried = Addresses ++ Tried};
        {error, Reason} ->
            Race#race{failures = [#{source => Source, reason => Reason} | Failures]}
    end.

%% A crash here would be reported with its arguments, and so with the cookie.
start_dial(Id, Addresses, #race{request = Request} = Race) ->
    #{endpoint := Endpoint, node := Node, own_name := OwnName} = Request,
    try
        macula_nif:dial(Endpoint, #{id => Id, addresses => Addresses,
                                    target => atom_to_binary(Node, utf8),
                                    name => OwnName,
                                    cookie => macula_dist_cookie:with(Node),
                                    timeout => max(1, left(Race) - ?REPORT_MS)})
    catch
        error:_ -> {error, not_running}
    end.

cancel(Dials) ->
    maps:foreach(fun(_, {Dial, _}) -> macula_nif:dial_cancel(Dial) end, Dials).

unfinished(#race{resolvers = Resolvers, dials = Dials}) ->
    Sources = maps:values(Resolvers) ++ [Source || {_, Source} <- maps:values(Dials)],
    [#{source => Source, reason => timeout} || Source <- Sources].

left(#race{deadline = Deadline}) ->
    max(0, Deadline - now_ms()).

now_ms() ->
    erlang:monotonic_time(millisecond).
