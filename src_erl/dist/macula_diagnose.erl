%% @doc Tries to reach a node and observes how far that goes, for
%% macula_diagnosis to judge. Works in any VM: where there is no endpoint to
%% dial from, one is opened for the time it takes.
-module(macula_diagnose).

-export([run/2]).

-export_type([options/0]).

%% timeout: for looking up, and again for each address. connect: whether the
%% nodes are connected when all else is well, as a ping would. print: whether
%% the report is printed as well.
-type options() :: #{timeout => pos_integer(), connect => boolean(), print => boolean()}.

-define(TIMEOUT_MS, 3_000).

%% @doc See macula:diagnose/2.
-spec run(node(), options()) ->
          [macula_diagnosis:finding()] | {error, macula_config:bad_option()}.
run(Node, Options) ->
    case checked(Options) of
        {ok, Checked} -> diagnosed(Node, Checked);
        {error, _} = Error -> Error
    end.

checked(Options) ->
    Known = #{timeout => ?TIMEOUT_MS, connect => true, print => false},
    Bad = [bad_option(Key, Value, maps:keys(Known))
           || {Key, Value} <- lists:sort(maps:to_list(Options)), not is_good(Key, Value)],
    case Bad of
        [] -> {ok, maps:merge(Known, Options)};
        [First | _] -> {error, First}
    end.

is_good(timeout, Value) -> is_integer(Value) andalso Value > 0;
is_good(Key, Value) when Key =:= connect; Key =:= print -> is_boolean(Value);
is_good(_, _) -> false.

bad_option(timeout, Value, _) -> {bad_option, timeout, pos_integer, Value};
bad_option(Key, Value, Known) ->
    case lists:member(Key, Known) of
        true -> {bad_option, Key, boolean, Value};
        false -> {bad_option, Key, {did_you_mean, macula_config:nearest(Key, Known)}, Value}
    end.

diagnosed(Node, #{print := Print} = Options) ->
    Findings = [readable(Finding) || Finding <- macula_diagnosis:findings(observe(Node, Options))],
    _ = Print andalso io:put_chars(macula_diagnosis:format(Node, Findings)),
    Findings.

%% Texts as binaries: a shell shows those as text.
readable({Stage, Result, Details}) ->
    Texts = maps:map(fun(_, Text) -> unicode:characters_to_binary(Text) end,
                     maps:with([text, advice], Details)),
    {Stage, Result, maps:merge(Details, Texts)}.

%% In a process of its own: its links and late answers end with it.
observe(Node, Options) ->
    Caller = self(),
    {Pid, Monitor} = spawn_monitor(fun() -> Caller ! {self(), observed(Node, Options)} end),
    receive
        {Pid, Observed} ->
            demonitor(Monitor, [flush]),
            Observed;
        {'DOWN', Monitor, process, Pid, Reason} ->
            error(Reason)
    end.

observed(Node, #{connect := Connect} = Options) ->
    {Carrier, Endpoint} = endpoint(),
    Observed = #{node => Node, carrier => Carrier, name => name(Node), link => link_to(Node),
                 look_ups => [], mesh => not_joined, attempts => [], handshake => not_tried},
    reached(explored(Observed, Endpoint, Options), Connect).

%%% This VM

endpoint() ->
    case macula_dist_endpoint:dialling() of
        {ok, Endpoint} ->
            {{macula, node(), macula_dist_endpoint:address()}, {ok, Endpoint, none}};
        {error, not_running} ->
            Carrier = case is_alive() of
                          true -> other_carrier;
                          false -> not_distributed
                      end,
            temporary({Carrier, node()}, macula_dist_endpoint:open_unnamed());
        {error, Reason} ->
            {{unusable, Reason}, none}
    end.

temporary(Carrier, {ok, Endpoint}) -> {Carrier, {ok, Endpoint, temporary}};
temporary(_, {error, Reason}) -> {{unusable, Reason}, none}.

%% Without distribution there are no short or long names to tell apart.
name(Node) ->
    case net_kernel:longnames() of
        true -> macula_dist_name:check(Node, longnames);
        false -> macula_dist_name:check(Node, shortnames);
        ignored -> macula_dist_name:split(Node)
    end.

link_to(Node) ->
    case [Link || #{node := Connected} = Link <- macula:links(), Connected =:= Node] of
        [Link | _] -> Link;
        [] -> none
    end.

%%% The other one

explored(#{node := Node, carrier := {macula, Node, _}} = Observed, _, _) ->
    Observed;
explored(#{link := none, node := Node, name := {ok, Parts}} = Observed, {ok, Endpoint, Kind},
         #{timeout := Timeout}) ->
    LookUps = look_up(Endpoint, Node, Parts, Timeout),
    Addresses = lists:usort([A || #{found := {ok, Told}} <- LookUps, A <- Told]),
    Forged = forged(Endpoint),
    Attempts = knock(Endpoint, Node, Addresses, Timeout),
    Mesh = mesh(macula_nif:mesh_relays(Endpoint), Endpoint, Forged),
    _ = Kind =:= temporary andalso macula_nif:endpoint_close(Endpoint),
    Observed#{look_ups => LookUps, attempts => Attempts, mesh => Mesh};
explored(Observed, {ok, Endpoint, temporary}, _) ->
    ok = macula_nif:endpoint_close(Endpoint),
    Observed;
explored(Observed, _, _) ->
    Observed.

look_up(Endpoint, Node, Parts, Timeout) ->
    Asked = macula_dist_resolver:start(Endpoint, Node, Parts, Timeout),
    TooLate = erlang:start_timer(Timeout, self(), too_late),
    look_ups(Asked, TooLate, []).

look_ups(Asked, _, Found) when map_size(Asked) =:= 0 ->
    lists:sort(Found);
look_ups(Asked, TooLate, Found) ->
    receive
        {candidates, Pid, Result} ->
            {Source, Left} = maps:take(Pid, Asked),
            look_ups(Left, TooLate, [#{source => Source, found => Result} | Found]);
        {timeout, TooLate, _} ->
            Missing = maps:values(Asked),
            lists:sort([#{source => S, found => {error, timeout}} || S <- Missing] ++ Found)
    end.

mesh(undefined, _, _) -> not_joined;
mesh(Relays, Endpoint, Before) -> #{relays => Relays, forged => forged(Endpoint) - Before}.

forged(Endpoint) ->
    lists:sum([Count || {_, #{decrypt_failed := Count}} <- macula_nif:mesh_tunnels(Endpoint)]).

%% Each address by itself, all at once, up to the end of the hello.
knock(Endpoint, Node, Addresses, Timeout) ->
    Cookie = cookie(Node),
    ok = macula_dist_cookie:prepare(Endpoint, Cookie),
    Dials = [{Address, dial(Endpoint, Node, Cookie, Address, Timeout)} || Address <- Addresses],
    [#{address => Address, result => answer(Dial)} || {Address, Dial} <- Dials].

%% A crash here would be reported with its arguments, and so with the cookie.
dial(Endpoint, Node, Cookie, Address, Timeout) ->
    Id = erlang:unique_integer([positive]),
    try
        {ok, Dial} = macula_nif:dial(Endpoint, #{id => Id, addresses => [Address],
                                                 target => atom_to_binary(Node),
                                                 name => macula_dist:own_name(),
                                                 cookie => Cookie, timeout => Timeout}),
        {Id, Dial}
    catch
        error:_ -> not_running
    end.

%% A dial always ends by its own time-out; forgetting it would end it at once.
answer(not_running) ->
    {error, not_running};
answer({Id, Dial}) ->
    receive
        {macula_dial, Id, {ok, Link}} -> macula_nif:link_close(Link);
        {macula_dial, Id, {error, [{_, Reason} | _]}} when is_reference(Dial) -> {error, Reason}
    end.

%% Without distribution there is none yet; then the one this VM would have.
cookie(Node) ->
    case {is_alive(), init:get_argument(setcookie)} of
        {true, _} -> macula_dist_cookie:with(Node);
        {false, {ok, [[Cookie | _] | _]}} -> unicode:characters_to_binary(Cookie);
        {false, _} -> configured_cookie(macula_cookie:resolve())
    end.

configured_cookie({ok, Cookie}) -> atom_to_binary(Cookie);
configured_cookie({error, _}) -> <<>>.

%%% All the way

reached(#{attempts := Attempts, carrier := Carrier, node := Node} = Observed, Connect) ->
    IsWell = lists:any(fun(#{result := Result}) -> Result =:= ok end, Attempts),
    case {IsWell, Carrier} of
        {true, {macula, _, _}} when Connect -> Observed#{handshake => connect(Node)};
        {true, {macula, _, _}} -> Observed;
        {true, _} -> Observed#{handshake => impossible};
        {false, _} -> Observed
    end.

connect(Node) ->
    case net_kernel:connect_node(Node) of
        true -> ok;
        _ -> failed
    end.
