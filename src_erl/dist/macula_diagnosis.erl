%% @doc Why a node can or cannot be reached, stage by stage, out of what was
%% observed. Pure: macula_diagnose observes.
-module(macula_diagnosis).

-export([findings/1, format/2]).

-export_type([finding/0, stage/0, result/0, observed/0, carrier/0, look_up/0, attempt/0]).

%% In the order they are needed in, as they are told; `mesh' where one is
%% joined. There may be more one day.
-type stage() :: node | name | address | mesh | port | version | tls | cookie | handshake.
%% skipped: it could not be looked at, since something before it is missing.
-type result() :: ok | failed | skipped.
%% `text' says what was found, `advice' what to do about it where it failed.
-type finding() :: {stage(), result(), #{text := unicode:chardata(),
                                         advice => unicode:chardata(), atom() => term()}}.

%% What this VM has to reach others with.
-type carrier() :: {macula, node(), Listens :: term()}
                 | {not_distributed | other_carrier, node()}
                 | {unusable, Reason :: term()}.
-type look_up() :: #{source := atom(), found := {ok, [macula_nif:candidate()]} | {error, term()}}.
-type attempt() :: #{address := macula_nif:candidate(), result := ok | {error, term()}}.

%% How this node stands with its relays, and how many datagrams came through
%% them, while the node was called, that nobody with this cookie had sealed.
-type mesh() :: not_joined | #{relays := [{Url :: binary(), macula_mesh:relay_state()}],
                               forged := non_neg_integer()}.

-type observed() :: #{node := node(), carrier := carrier(), mesh := mesh(),
                      name := {ok, macula_dist_name:parts()} | {error, macula_dist_name:error()},
                      link := none | map(),
                      look_ups := [look_up()], attempts := [attempt()],
                      handshake := ok | failed | not_tried | impossible}.

-define(AFTER_ADDRESS, [port, version, tls, cookie, handshake]).

%% @doc What to make of it: every stage once.
-spec findings(observed()) -> [finding()].
findings(#{node := Node, carrier := {macula, Node, _} = Carrier, name := Name}) ->
    [carrier(Carrier), name(Node, Name)
     | skipped([address | ?AFTER_ADDRESS], "it is this node itself")];
findings(#{node := Node, carrier := Carrier, name := {error, _} = Name}) ->
    [carrier(Carrier), name(Node, Name)
     | skipped([address | ?AFTER_ADDRESS], "there is no such node to look for")];
findings(#{node := Node, carrier := {unusable, _} = Carrier, name := Name}) ->
    [carrier(Carrier), name(Node, Name)
     | skipped([address | ?AFTER_ADDRESS], "nothing can be dialled from here")];
findings(#{node := Node, carrier := Carrier, name := Name, link := #{} = Link}) ->
    Connected = Link#{text => ["connected, ", link_path(Link)]},
    [carrier(Carrier), name(Node, Name)
     | [{Stage, ok, Connected} || Stage <- [address | ?AFTER_ADDRESS]]];
findings(#{node := Node, carrier := Carrier, name := Name, look_ups := LookUps} = Observed) ->
    Address = address(Node, LookUps),
    [carrier(Carrier), name(Node, Name), Address | mesh(Observed) ++ answers(Address, Observed)].

link_path(#{path := relay, relay := Url}) -> ["through ", Url];
link_path(#{address := Address}) -> ["at ", macula_dist_log:address(Address)].

%%% This VM

carrier({macula, nonode@nohost, _}) ->
    {node, ok, #{text => "this VM runs macula, and gets a name from the first node it reaches"}};
carrier({macula, Own, {error, _}}) ->
    {node, ok, #{text => io_lib:format("~ts runs macula, and does not listen", [Own])}};
carrier({macula, Own, {ok, {Host, Port} = Address}}) when is_list(Host) ->
    {node, ok, #{text => io_lib:format("~ts listens at ~ts:~b", [Own, Host, Port]),
                 listens => Address}};
carrier({macula, Own, {ok, Address}}) ->
    Text = io_lib:format("~ts listens at ~ts", [Own, macula_dist_log:address(Address)]),
    {node, ok, #{text => Text, listens => Address}};
carrier({not_distributed, _}) ->
    {node, failed, #{text => "this VM is no node of any cluster",
                     advice => "Start it with -proto_dist macula -no_epmd -start_epmd false and a "
                               "name, -name or -sname; or call macula:ensure_distributed()."}};
carrier({other_carrier, Own}) ->
    {node, failed, #{text => io_lib:format("~ts is a node over another carrier than macula", [Own]),
                     advice => "Start it with -proto_dist macula -no_epmd -start_epmd false."}};
carrier({unusable, Reason}) ->
    {node, failed, #{text => macula_dist_log:reason(Reason), reason => Reason,
                     advice => "Nothing can be dialled from here until this is put right."}}.

%%% Its name

name(Node, {ok, #{host := Host, port := Port}}) ->
    {name, ok, #{text => io_lib:format("~ts is on ~ts, ~ts", [Node, host(Host), port_text(Port)]),
                 host => Host, port => Port}};
name(Node, {error, Error}) ->
    Text = io_lib:format("~ts is no name of a node that can be reached from here: ~ts",
                         [Node, macula_dist_name:format_error(Error)]),
    {name, failed, #{text => Text, reason => Error, advice => name_advice(Error)}}.

host(Ip) when is_tuple(Ip) -> ["the address ", inet:ntoa(Ip)];
host(Name) -> ["the host ", Name].

port_text(default) -> "at whatever port it has";
port_text(Port) -> io_lib:format("at port ~b", [Port]).

name_advice({dot_in_short_name, _}) ->
    "Start this node with -name instead of -sname, as that one.";
name_advice(_) ->
    "A node is called name@host, name@host:port or name@[ipv6]:port.".

%%% Where it may be

address(Node, LookUps) ->
    Told = lists:usort([A || #{found := {ok, Addresses}} <- LookUps, A <- Addresses]),
    Text = lists:join("; ", [look_up(L) || L <- LookUps]),
    case Told of
        [] -> {address, failed, #{text => Text, sources => LookUps,
                                  advice => address_advice(Node, LookUps)}};
        _ -> {address, ok, #{text => Text, sources => LookUps, addresses => Told}}
    end.

look_up(#{source := Source, found := {ok, Addresses}}) ->
    [source(Source), " ", lists:join(", ", [macula_dist_log:address(A) || A <- Addresses])];
look_up(#{source := Source, found := {error, Reason}}) ->
    [source(Source), " ", macula_dist_log:reason(Reason)].

source(peers) -> "peer table:";
source(registry) -> "this machine's registry:";
source(discovery) -> "discovery:";
source(name) -> "the name itself:";
source(srv) -> "DNS, SRV _macula._udp:";
source(dns) -> "the host's IPv4 addresses:";
source(dns6) -> "the host's IPv6 addresses:";
source(mesh) -> "by way of";
source(Other) -> io_lib:format("~tp:", [Other]).

address_advice(Node, LookUps) ->
    Elsewhere = [" Or say where it is: ", peers_entry(Node), "."],
    case [Reason || #{source := srv, found := {error, Reason}} <- LookUps] of
        [timeout] -> ["No name server answers: check /etc/resolv.conf, and that UDP port 53 is "
                      "open to the servers named there.", Elsewhere];
        [{dns, _}] -> ["DNS fails: check /etc/resolv.conf and the servers named there.", Elsewhere];
        _ -> ["Check how the host is spelt, and that DNS or /etc/hosts knows it.", Elsewhere]
    end.

%%% The mesh

mesh(#{mesh := not_joined, attempts := Attempts}) ->
    [{mesh, failed, #{text => "only the mesh may be used, and none is joined", reason => no_mesh,
                      advice => "Join one, macula:join_mesh(#{relays => [Url]}), or let direct ways "
                                "be tried too: MACULA_DIST_MODE."}}
     || #{result := {error, no_mesh}} <- Attempts];
mesh(#{mesh := #{relays := Relays} = Mesh} = Observed) ->
    Text = lists:join("; ", [[Url, ": ", relay(State)] || {Url, State} <- Relays]),
    Attached = [Url || {Url, {attached, _}} <- Relays],
    [in_mesh(Attached, is_reached_directly(Observed), Text, Mesh)].

relay({attached, Observed}) -> ["attached, as ", macula_dist_log:address(Observed)];
relay(draining) -> "about to go";
relay({down, Reason}) -> ["not attached: ", macula_dist_log:relay_reason(Reason)].

in_mesh(_, true, Text, #{relays := Relays}) ->
    {mesh, ok, #{text => [Text, "; not needed for this node"], relays => Relays}};
in_mesh([], false, Text, #{relays := Relays}) ->
    {mesh, failed, #{text => Text, relays => Relays, reason => not_attached,
                     advice => "Check the relay's URL and that it runs, that UDP to its port is let "
                               "through, and the realm's token or certificate."}};
in_mesh(_, false, Text, #{relays := Relays, forged := Forged}) when Forged > 0 ->
    More = io_lib:format("; ~b datagrams came that nobody with this cookie had sealed", [Forged]),
    {mesh, failed, #{text => [Text, More], relays => Relays, reason => decrypt_failed,
                     advice => "Something between the nodes changes what they send: use another "
                               "relay, and ask who runs this one."}};
in_mesh(_, false, Text, #{relays := Relays}) ->
    {mesh, ok, #{text => Text, relays => Relays}}.

is_reached_directly(#{attempts := Attempts}) ->
    lists:any(fun(#{address := Way, result := Result}) -> Way =/= mesh andalso Result =:= ok end,
              Attempts).

%%% What answers there

answers({address, failed, _}, _) ->
    skipped(?AFTER_ADDRESS, "no address is known");
answers(_, #{attempts := []}) ->
    skipped(?AFTER_ADDRESS, "no address could be tried");
answers(_, #{attempts := Attempts} = Observed) ->
    Furthest = furthest(Attempts),
    {Failed, Passed} = progress(Furthest),
    [answer(Stage, judge(Stage, Failed, Passed), Furthest, Observed) || Stage <- ?AFTER_ADDRESS].

judge(Stage, Stage, _) ->
    failed;
judge(Stage, Failed, Passed) ->
    case lists:member(Stage, Passed) of
        true -> ok;
        false -> {skipped, Failed}
    end.

answer(Stage, failed, Attempt, #{node := Node, attempts := Attempts}) ->
    #{address := Address, result := {error, Reason}} = Attempt,
    {Stage, failed, #{text => tried(Attempts), attempts => Attempts, address => Address,
                      reason => Reason, advice => advice(Stage, Reason, Node)}};
answer(Stage, {skipped, Failed}, _, _) ->
    hd(skipped([Stage], ["it did not get that far: ", atom_to_list(Failed), " failed"]));
answer(port, ok, #{address := Address}, #{attempts := Attempts}) ->
    Text = tried([if_port_answers(Attempt) || Attempt <- Attempts]),
    {port, ok, #{text => Text, attempts => Attempts, address => Address}};
answer(handshake, ok, _, #{node := Node, handshake := Handshake}) ->
    handshake(Handshake, Node);
answer(Stage, ok, #{address := Address}, _) ->
    {Stage, ok, #{text => passed(Stage), address => Address}}.

%% The attempt that got on most tells most about the node.
furthest(Attempts) ->
    Ranked = [{length(element(2, progress(Attempt))), Attempt} || Attempt <- Attempts],
    {_, Furthest} = hd(lists:reverse(lists:keysort(1, Ranked))),
    Furthest.

%% At which stage an attempt ended, and which ones it had behind it.
progress(#{result := ok}) -> {none, [port, version, tls, cookie, handshake]};
progress(#{address := mesh, result := {error, Reason}}) ->
    {Stage, Passed} = ended(Reason),
    %% What the mesh says is worth more than the silence of an address.
    {Stage, [mesh | Passed]};
progress(#{result := {error, Reason}}) -> ended(Reason).

ended({not_macula, _}) -> {version, [port]};
ended(busy) -> {handshake, [port]};
ended({tls, _}) -> {tls, [port, version]};
ended({certificate, _}) -> {tls, [port, version]};
ended({own_certificate, _}) -> {tls, [port, version]};
ended({version_mismatch, _, _}) -> {version, [port, tls]};
ended({refused, version_mismatch}) -> {version, [port, tls]};
ended({refused, malformed}) -> {version, [port, tls]};
ended(no_hello) -> {handshake, [port, version, tls]};
ended({refused, proof}) -> {cookie, [port, version, tls]};
ended({refused, _}) -> {handshake, [port, version, tls, cookie]};
ended(_) -> {port, []}.

if_port_answers(Attempt) ->
    {_, Passed} = progress(Attempt),
    case lists:member(port, Passed) of
        true -> Attempt#{result := ok};
        false -> Attempt
    end.

tried(Attempts) ->
    lists:join("; ", [[macula_dist_log:address(Address), " ", ending(Result)]
                      || #{address := Address, result := Result} <- Attempts]).

ending(ok) -> "answers";
ending({error, Reason}) -> macula_dist_log:reason(Reason).

passed(version) -> "it speaks macula, in a version that is spoken here";
passed(tls) -> "both certificates are accepted";
passed(cookie) -> "both nodes hold the same cookie".

handshake(ok, _) ->
    {handshake, ok, #{text => "the nodes are connected"}};
handshake(failed, Node) ->
    Text = io_lib:format("~ts answers, and OTP's own handshake with it fails", [Node]),
    {handshake, failed, #{text => Text, reason => otp_handshake,
                          advice => "Check net_kernel:allow/1 and the log on that node, and "
                                    "kernel's dist_auto_connect here."}};
handshake(not_tried, _) ->
    hd(skipped([handshake], "all before it is well; connecting was not asked for"));
handshake(impossible, _) ->
    hd(skipped([handshake], "all before it is well; this VM is no node that could connect")).

%%% What to do

advice(Stage, Reason, Node) ->
    case macula_dist_log:check(Reason) of
        [Check | _] -> Check;
        [] -> todo(Stage, Reason, Node)
    end.

todo(port, port_closed, Node) ->
    io_lib:format("Start ~ts there with -proto_dist macula; or, if it runs at another port, say "
                  "which: ~ts.", [Node, peers_entry(Node)]);
todo(port, no_mesh, _) ->
    "Join a mesh: macula:join_mesh(#{relays => [Url]}).";
todo(port, timeout, Node) ->
    io_lib:format("Check that ~ts runs, and that no firewall on the way or on either host drops "
                  "UDP to that port.", [Node]);
todo(port, _, _) ->
    "Check this host's network: routes, interfaces, and dist's interface option.";
todo(version, _, _) ->
    "Another program has that port. Give the node one of its own, in its name or by "
    "MACULA_DIST_PORT, or enter its address into the peer table.";
todo(tls, _, _) ->
    "Check both nodes' certfile, keyfile and cacertfile, and that nothing on the way takes TLS "
    "apart.";
todo(handshake, busy, _) ->
    "It is shutting down, or many strangers are knocking: try again in a moment, and see its log.";
todo(handshake, no_hello, _) ->
    "It accepts connections and says nothing: see whether that node hangs, and its log.";
todo(handshake, {refused, wrong_name}, Node) ->
    io_lib:format("Another node has that address. Check that ~ts runs, and its name and port.",
                  [Node]);
todo(_, _, _) ->
    "See the log of that node.".

peers_entry(Node) ->
    io_lib:format("{macula, [{peers, #{'~ts' => \"Ip:Port\"}}]}", [Node]).

skipped(Stages, Why) ->
    [{Stage, skipped, #{text => Why}} || Stage <- Stages].

%%% To read

%% @doc The findings as lines of text, the upshot first.
-spec format(node(), [finding()]) -> unicode:chardata().
format(Node, Findings) ->
    [upshot(Node, Findings), [line(Finding) || Finding <- Findings]].

upshot(Node, Findings) ->
    case [Stage || {Stage, failed, _} <- Findings] of
        [] -> io_lib:format("~ts: nothing is wrong~n", [Node]);
        [Stage | _] -> io_lib:format("~ts cannot be reached: ~ts~n", [Node, Stage])
    end.

line({Stage, Result, #{text := Text} = Details}) ->
    [io_lib:format("  ~-10ts ~-8ts ~ts~n", [Stage, sign(Result), Text])
     | [io_lib:format("~22c~ts~n", [$\s, Advice]) || #{advice := Advice} <- [Details]]].

sign(failed) -> "FAILED";
sign(Result) -> atom_to_list(Result).
