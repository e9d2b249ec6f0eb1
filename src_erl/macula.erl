%% @doc The face of the library: what a user calls. Every function works
%% whether or not the application, or distribution over macula, is running.
-module(macula).

-export([links/0, config/0, renew_certificates/0]).

-export_type([link_info/0]).

-type link_info() ::
        #{node := node(), path := direct, address := macula_nif:address(),
          tls := binary(), rtt_us := non_neg_integer(),
          bytes_in := non_neg_integer(), bytes_out := non_neg_integer(),
          msgs_in := non_neg_integer(), msgs_out := non_neg_integer(),
          queue := non_neg_integer()}.

%% @doc Every established distribution link of this node that runs over macula.
-spec links() -> [link_info()].
links() ->
    lists:filtermap(fun with_node/1, macula_dist_endpoint:links()).

%% A link is listed only once its node is connected, so the atom exists; if it
%% does not, the link is on its way up or down.
with_node(#{node := Name} = Link) ->
    try
        {true, Link#{node := binary_to_existing_atom(Name, utf8)}}
    catch
        error:badarg -> false
    end.

%% @doc Every option with its value and where that value came from.
-spec config() -> [macula_config:setting()] | {error, macula_config:bad_option()}.
config() ->
    macula_config:settings().

%% @doc Takes the certificates now in their files into use, without a restart.
%% That happens by itself within ten seconds of a change, too. Links that are
%% open stay so. When a file cannot be used, the former certificates stay.
-spec renew_certificates() -> ok | {error, not_running | macula_nif:bad_file()}.
renew_certificates() ->
    macula_dist_endpoint:renew_certificates().
