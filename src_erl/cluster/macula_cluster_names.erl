%% @doc Names from the network to nodes. Atoms stay for good: when nothing
%% proves a name, only so many new ones are made.
-module(macula_cluster_names).

-export([new/1, to_node/2, is_node_name/1]).

-export_type([names/0]).

%% A cluster has fewer nodes, the table of atoms a hundred times as many places.
-define(MAX_MADE, 10_000).
%% What an atom can hold.
-define(MAX_BYTES, 255).

-record(names, {trust :: authentic | open,
                made = 0 :: non_neg_integer()}).

-opaque names() :: #names{}.

-spec new(authentic | open) -> names().
new(Trust) ->
    #names{trust = Trust}.

%% @doc The node of this name, which is known to be one.
-spec to_node(binary(), names()) -> {node() | too_many, names()}.
to_node(Name, #names{trust = authentic} = Names) ->
    {binary_to_atom(Name), Names};
to_node(Name, #names{trust = open, made = Made} = Names) ->
    try
        {binary_to_existing_atom(Name), Names}
    catch
        error:badarg when Made < ?MAX_MADE -> {binary_to_atom(Name), made(Names)};
        error:badarg -> {too_many, Names}
    end.

made(#names{made = Made} = Names) ->
    _ = Made + 1 =:= ?MAX_MADE andalso macula_cluster_log:warning(#{event => too_many_names}),
    Names#names{made = Made + 1}.

%% @doc As OTP has it: letters, digits, _ and - before the only @, a host after it.
-spec is_node_name(binary()) -> boolean().
is_node_name(Name) when byte_size(Name) =< ?MAX_BYTES ->
    re:run(Name, "^[0-9A-Za-z_-]+@[!-?A-{}~]+$", [dollar_endonly, {capture, none}]) =:= match;
is_node_name(_) ->
    false.
