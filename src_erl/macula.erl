%% @doc The face of the library: what a user calls. Every function works
%% whether or not the application, or distribution over macula, is running.
-module(macula).

-export([join_mesh/1, leave_mesh/0, mesh_nodes/0, relays/0]).
-export([start_relay/1, stop_relay/0, relay_stats/0, relay_peers/0]).
-export([links/0, config/0, renew_certificates/0, diagnose/1, diagnose/2]).
-export([set_select/1, carrier/1]).
-export([ensure_distributed/0, get_cookie/0, set_cookie/1, set_cookie/2, monitor_nodes/0,
         unmonitor_nodes/0]).

-export_type([link_info/0]).

-type link_info() ::
        #{node := node(), path := direct | relay, relay => binary(),
          address := macula_nif:address(),
          tls := binary(), rtt_us := non_neg_integer(), mtu := pos_integer(),
          bytes_in := non_neg_integer(), bytes_out := non_neg_integer(),
          msgs_in := non_neg_integer(), msgs_out := non_neg_integer(),
          queue := non_neg_integer()}.

%% @doc Every established distribution link of this node that runs over macula.
%% `address' is where its datagrams go: to the node, or to the relay on the
%% way, whose URL is then in `relay'; `mtu' is how many bytes they have at most.
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

%% @doc Says why a node can or cannot be reached, stage by stage.
-spec diagnose(node()) -> [macula_diagnosis:finding()].
diagnose(Node) ->
    diagnose(Node, #{}).

%% @doc The same, with options: `print' (false) prints a report as well;
%% `timeout' (3000) is how many ms looking up may take, and each address;
%% `connect' (true) connects the nodes when all else is well, as a ping would.
-spec diagnose(node(), macula_diagnose:options()) ->
          [macula_diagnosis:finding()] | {error, macula_config:bad_option()}.
diagnose(Node, Options) when is_atom(Node), is_map(Options) ->
    macula_diagnose:run(Node, Options).

%% @doc Takes the certificates now in their files into use, without a restart.
%% That happens by itself within ten seconds of a change, too. Links that are
%% open stay so. When a file cannot be used, the former certificates stay.
-spec renew_certificates() -> ok | {error, not_running | macula_nif:bad_file()}.
renew_certificates() ->
    macula_dist_endpoint:renew_certificates().

%% @doc Joins the mesh of these relays: from now on the nodes that joined it
%% too are reached by name, through NATs and firewalls, as long as they share
%% cookie and realm. Answers `ok' once a relay has accepted this node.
%%
%% Options, with their defaults: `relays' (required, a list of URLs), `realm'
%% (<<"io.macula">>), `identity' (another name to be found under), `token'
%% (where the relay asks for one), `tls_verify' (none), `cacertfile',
%% `certfile', `keyfile', `timeout' (30000 ms), `reconnect_interval' (2000 ms),
%% `reconnect_attempts' (15; then more slowly, for ever).
%%
%% Errors: {bad_option, Key, Expected, Got}; {not_a_macula_relay, Url};
%% {relays_unreachable, [{Url, Reason}]}; {name_taken, Name}: a live node has
%% it; {bad_file, File, Why}; {no_endpoint, Reason}: this VM does not run
%% macula's distribution.
-spec join_mesh(map()) -> ok | {error, macula_mesh:error()}.
join_mesh(Options) ->
    macula_mesh:join(Options).

%% @doc Leaves the mesh. Links through relays end, others stay.
-spec leave_mesh() -> ok.
leave_mesh() ->
    macula_mesh:leave().

%% @doc The names of the nodes of this node's realm that share its cookie.
-spec mesh_nodes() -> [binary()].
mesh_nodes() ->
    macula_mesh:nodes().

%% @doc How this node stands with each relay; `undefined': no mesh is joined.
-spec relays() -> undefined | [{Url :: binary(), macula_mesh:relay_state()}].
relays() ->
    macula_mesh:relays().

%% @doc Makes this VM a relay, with or without distribution. It forwards what
%% it cannot read.
%%
%% Options: `port' (default: the node's own, else 4433), `certfile' and
%% `keyfile' (default: the node's, else self-signed), `realms'
%% (#{Realm => open | {tokens, [Binary]} | {cacertfile, Path}}; default: all
%% realms, openly, with a warning), `peers' (the URLs of other relays: their
%% nodes and this one's reach each other; default: none), `health' (where
%% GET /health is answered, "ADDRESS:PORT"; default: nowhere), and limits: `nodes'
%% (default: 4096), `attachments_per_second' (default: 500), `memory' (bytes
%% that wait for all nodes; default: 256 MiB) and `nodes_per_realm',
%% `attachments_per_realm' (a second), `bytes_per_node', `datagrams_per_node', `bytes_per_realm',
%% `datagrams_per_realm' (a second; default: none).
%%
%% Errors: {bad_option, Key, Expected, Got}; {port_in_use, Port};
%% {bad_file, File, Why}; already_started.
-spec start_relay(map()) -> ok | {error, term()}.
start_relay(Options) ->
    macula_relay:start(Options).

%% @doc Stops the relay of this VM.
-spec stop_relay() -> ok.
stop_relay() ->
    macula_relay:stop().

%% @doc What the relay of this VM has forwarded and dropped, by reason, and how
%% many nodes are attached; `undefined': there is none.
-spec relay_stats() -> undefined | #{atom() => non_neg_integer()}.
relay_stats() ->
    macula_relay:stats().

%% @doc How the relay of this VM stands with its peers: first those that it
%% calls, by their URL, then those that have called it, by their address;
%% `undefined': there is no relay.
-spec relay_peers() -> undefined | [{Name :: binary(), macula_relay:peer_state()}].
relay_peers() ->
    macula_relay:peers().

%% @doc Says anew which of this VM's carriers dials which nodes, where it has
%% several (`-proto_dist inet_tcp macula'): `[{"*@*.paris.example.org", inet_tcp}]'.
%% The first pattern that matches decides, and what none matches is macula's. It
%% counts for connections to come; those that are up stay as they are. For the
%% next start put it into the configuration, `{macula, [{select, Rule}]}'.
-spec set_select(macula_dist_select:rule()) -> ok | {error, macula_config:bad_option()}.
set_select(Rule) ->
    macula_config:set(select, Rule).

%% @doc The carrier that this node would dial Node with: macula, inet_tcp, ...
-spec carrier(node()) -> macula_dist_select:carrier().
carrier(Node) ->
    macula_dist_select:carrier(Node).

%% @doc Makes this VM a node when it is none yet: macula_host@Host, or with a
%% suffix when that name is taken. Over macula when the VM was started with
%% `-proto_dist macula', else over the carrier it has.
-spec ensure_distributed() -> ok | {error, {distribution_failed, term()}}.
ensure_distributed() ->
    macula_cluster:ensure_distributed().

%% @doc The cookie: from the application's environment (`cookie'), from
%% MACULA_COOKIE, RELEASE_COOKIE or ERLANG_COOKIE, or from the user's cookie
%% file. Where there is none a strong one is made and put into that file.
-spec get_cookie() -> atom().
get_cookie() ->
    macula_cluster:get_cookie().

%% @doc Sets the cookie of this node and keeps it in the user's cookie file.
-spec set_cookie(macula_cookie:cookie()) -> ok | {error, term()}.
set_cookie(Cookie) ->
    macula_cluster:set_cookie(Cookie).

%% @doc Sets the cookie shared with one peer.
-spec set_cookie(node(), macula_cookie:cookie()) -> ok | {error, term()}.
set_cookie(Node, Cookie) ->
    macula_cluster:set_cookie(Node, Cookie).

%% @doc From now on the caller gets {nodeup, Node} and {nodedown, Node}.
-spec monitor_nodes() -> ok.
monitor_nodes() ->
    macula_cluster:monitor_nodes().

%% @doc Takes one `monitor_nodes/0' back.
-spec unmonitor_nodes() -> ok.
unmonitor_nodes() ->
    macula_cluster:unmonitor_nodes().
