%% @doc Which carrier takes a node, where a VM has several: a list of patterns
%% of node names, of which the first that matches decides.
%%
%% net_kernel asks one carrier after the other and never comes back to one that
%% said no, and it waits for the answer. So nothing is looked up for it: the
%% rule is in a table, compiled.
-module(macula_dist_select).

-export([init/0, configure/0, use/1, carrier/1]).
-export([compile/2, decide/2, carriers/0, carriers/1]).

-export_type([rule/0, carrier/0, compiled/0]).

-type carrier() :: atom().
%% As the user writes it: `{"*@*.paris.example.org", inet_tcp}'.
-type rule() :: [{Pattern :: node() | string() | binary(), carrier()}].
%% A pattern is what stands between its stars.
-opaque compiled() :: [{[string(), ...], carrier()}].

%% @doc Makes the table; its owner is the endpoint process.
-spec init() -> ok.
init() ->
    _ = ets:new(?MODULE, [named_table, public, set, {read_concurrency, true}]),
    _ = is_asked_first(proto_dist())
        orelse macula_dist_log:note(not_asked_first, proto_dist()),
    ok = macula_config:load(),
    configure().

%% @doc Takes the rule of the configuration. A bad one is not used, and told by
%% whatever reads the configuration next: listening and dialling do.
-spec configure() -> ok.
configure() ->
    case macula_config:read(default) of
        {ok, #{select := {Rule, _}}} -> use(Rule);
        {error, _} -> ok
    end.

%% @doc From now on this rule decides. Without the endpoint process there is
%% nothing to decide, and it reads its configuration when it starts.
-spec use(rule()) -> ok.
use(Rule) ->
    try
        true = ets:insert(?MODULE, {rule, compile(Rule, carriers())}),
        ok
    catch
        error:badarg -> ok
    end.

%% @doc The carrier that this node dials Node with.
-spec carrier(node()) -> carrier().
carrier(Node) ->
    try ets:lookup(?MODULE, rule) of
        [{rule, Compiled}] -> decide(Node, Compiled);
        [] -> macula
    catch
        error:badarg -> macula
    end.

%% @doc A carrier that is not among these cannot dial: then it is macula, so
%% that a rule may outlive the carrier it names.
-spec compile(rule(), [carrier(), ...]) -> compiled().
compile(Rule, Carriers) ->
    [{macula_dist_name:fields(text(Pattern), $*), present(Carrier, Carriers)}
     || {Pattern, Carrier} <- Rule].

text(Pattern) when is_atom(Pattern) -> atom_to_list(Pattern);
text(Pattern) -> unicode:characters_to_list(Pattern).

present(Carrier, Carriers) ->
    case lists:member(Carrier, Carriers) of
        true -> Carrier;
        false -> macula
    end.

%% @doc The first pattern that matches decides; what none matches is macula's.
-spec decide(node(), compiled()) -> carrier().
decide(Node, Compiled) ->
    Name = atom_to_list(Node),
    case lists:search(fun({Pieces, _}) -> matches(Pieces, Name) end, Compiled) of
        {value, {_, Carrier}} -> Carrier;
        false -> macula
    end.

%% The first piece stands at the beginning and the last one at the end. Those
%% between are taken where they first occur, which leaves most to the others.
matches([Whole], Name) ->
    Whole =:= Name;
matches([First | Others], Name) ->
    case lists:prefix(First, Name) of
        true -> follow(Others, lists:nthtail(length(First), Name));
        false -> false
    end.

follow([Last], Name) ->
    lists:suffix(Last, Name);
follow([Piece | Others], Name) ->
    case behind(Piece, Name) of
        none -> false;
        Left -> follow(Others, Left)
    end.

%% What stands behind the first occurrence.
behind(Piece, Name) ->
    case {lists:prefix(Piece, Name), Name} of
        {true, _} -> lists:nthtail(length(Piece), Name);
        {false, [_ | Left]} -> behind(Piece, Left);
        {false, []} -> none
    end.

%% @doc What a rule can name: macula, and the carrier that is asked after it.
-spec carriers() -> [carrier(), ...].
carriers() ->
    carriers(proto_dist()).

%% @doc The same for these arguments of `-proto_dist', of which net_kernel asks
%% the last one first.
-spec carriers([string()]) -> [carrier(), ...].
carriers(Given) ->
    case lists:dropwhile(fun(Name) -> Name =/= "macula" end, lists:reverse(Given)) of
        ["macula", Next | _] -> [macula, list_to_atom(Next)];
        _ -> [macula]
    end.

is_asked_first([]) -> true;
is_asked_first(Given) -> lists:last(Given) =:= "macula".

proto_dist() ->
    case init:get_argument(proto_dist) of
        {ok, [First | _]} -> First;
        error -> []
    end.
