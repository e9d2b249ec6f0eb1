%% Relays, and nodes that join them, on the hosts of a lab whose public host p is the relay's.
-module(macula_test_mesh).

-export([url/0, url/2, relay/2, relay/3, node_on/2, node_on/3, only_relays/0, join/2, joined/3, ping/2]).

-import(macula_test_node, [call/4, name/1, unique/1]).

%% @doc Where relay/2 is.
-spec url() -> binary().
url() -> url(p, 4433).

-spec url(atom(), inet:port_number()) -> binary().
url(Host, Port) ->
    iolist_to_binary(io_lib:format("https://~ts.lab:~b", [Host, Port])).

-spec relay(netlab:lab(), atom()) -> macula_test_node:server().
relay(Lab, Host) ->
    relay(Lab, Host, #{port => 4433}).

%% @doc A VM without distribution.
-spec relay(netlab:lab(), atom(), map()) -> macula_test_node:server().
relay(Lab, Host, Options) ->
    Relay = macula_test_node:start(unique("relay"), #{within => netlab:within(Lab, Host), domain => none}),
    ok = call(Relay, macula, start_relay, [Options]),
    Relay.

-spec node_on(netlab:lab(), atom()) -> macula_test_node:server().
node_on(Lab, Host) ->
    node_on(Lab, Host, #{}).

-spec node_on(netlab:lab(), atom(), macula_test_node:options()) -> macula_test_node:server().
node_on(Lab, Host, Options) ->
    Name = atom_to_list(Host),
    Here = #{within => netlab:within(Lab, Host), host => Name ++ ".lab", domain => longnames},
    macula_test_node:start(unique(Name), maps:merge(Here, Options)).

%% @doc For the environment of a node: other nodes by no other way.
-spec only_relays() -> [{string(), string()}].
only_relays() ->
    [{"MACULA_DIST_MODE", "relay"}].

-spec join(macula_test_node:server(), map()) -> ok | {error, term()}.
join(Node, Options) ->
    call(Node, macula, join_mesh, [maps:merge(#{relays => [url()]}, Options)]).

%% @doc A node on each host, in the mesh of relay/2.
-spec joined(netlab:lab(), [atom()], macula_test_node:options()) -> [macula_test_node:server()].
joined(Lab, Hosts, Options) ->
    Nodes = [node_on(Lab, Host, Options) || Host <- Hosts],
    [ok = join(Node, #{}) || Node <- Nodes],
    Nodes.

-spec ping(macula_test_node:server(), macula_test_node:server()) -> pong | pang.
ping(From, To) ->
    call(From, net_adm, ping, [name(To)]).
