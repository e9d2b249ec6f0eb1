%% @doc Distribution through relays: whether there is any, and what it carried.
-module(macula_dist_relay).

-export([is_relay_mode/0, get_tunnel_metrics/0]).

-export_type([tunnel_id/0, metrics/0]).

%% The first bytes of the peer's tag, in hexadecimal digits: a relay knows no
%% more of it.
-type tunnel_id() :: binary().
%% Bytes and datagrams carried; datagrams that were not sealed by that peer or
%% were changed on the way, and those that came twice.
-type metrics() :: #{bytes_out := non_neg_integer(), bytes_in := non_neg_integer(),
                     msgs_out := non_neg_integer(), msgs_in := non_neg_integer(),
                     decrypt_failed := non_neg_integer(), replayed := non_neg_integer()}.

%% @doc Whether this node has joined a mesh.
-spec is_relay_mode() -> boolean().
is_relay_mode() ->
    case macula_dist_endpoint:opened() of
        {ok, Endpoint} -> macula_mesh:is_joined(Endpoint);
        {error, _} -> false
    end.

%% @doc What each tunnel has carried since it was made.
-spec get_tunnel_metrics() -> [{tunnel_id(), metrics()}].
get_tunnel_metrics() ->
    case macula_dist_endpoint:opened() of
        {ok, Endpoint} ->
            [{binary:encode_hex(Id), Metrics}
             || {Id, Metrics} <- macula_nif:mesh_tunnels(Endpoint)];
        {error, _} ->
            []
    end.
