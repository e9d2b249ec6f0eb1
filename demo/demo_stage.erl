%% Where the demo plays: in network namespaces, with a NAT around each node; without root on this one host, where the nodes
%% are told to use nothing but the relay.
-module(demo_stage).

-export([set/0, strike/0]).

%% within: what stands before a command to run it where that role is. env: what nodes are told beside it.
-type role() :: relay | alice | bob.
-type stage() :: #{picture := unicode:chardata(), url := string(), names := #{role() => node()},
                   within := #{role() => [string()]}, env := [{string(), string()}]}.

-spec set() -> stage().
set() ->
    case netlab:requires() of
        ok -> behind_nats(netlab:start(two_nats, #{nat => symmetric}));
        {skip, Why} -> on_one_host(Why)
    end.

-spec strike() -> ok.
strike() ->
    case netlab:requires() of
        ok -> netlab:stop_all();
        {skip, _} -> ok
    end.

behind_nats(Lab) ->
    Hosts = #{relay => p, alice => a, bob => b},
    Addresses = maps:map(fun(_, Host) -> inet:ntoa(netlab:address(Lab, Host)) end, Hosts),
    #{picture => picture(Addresses), url => "https://p.lab:4433", env => [],
      names => #{alice => 'alice@a.lab', bob => 'bob@b.lab'},
      within => maps:map(fun(_, Host) -> netlab:within(Lab, Host) end, Hosts)}.

picture(#{alice := Alice, bob := Bob, relay := Relay}) ->
    Left = io_lib:format("  alice@a.lab ~ts --- NAT ---", [Alice]),
    Beside = lists:duplicate(string:length(Left), $\s),
    ["Two Erlang nodes, each behind a router that lets nobody in (a symmetric NAT: no hole can be punched), and a\n"
     "relay in public; all in network namespaces of this machine:\n\n",
     Left, "+--- NAT --- ", Bob, " bob@b.lab\n",
     Beside, "|\n",
     Beside, "relay p.lab ", Relay, "\n"].

on_one_host(Why) ->
    {ok, Socket} = gen_udp:open(0),
    {ok, Port} = inet:port(Socket),
    ok = gen_udp:close(Socket),
    Picture = io_lib:format(
                "Two Erlang nodes and a relay, all on this host, because ~ts:~n"
                "MACULA_DIST_MODE=relay keeps the nodes from reaching each other in any other way.~n", [Why]),
    #{picture => Picture, url => "https://localhost:" ++ integer_to_list(Port),
      env => [{"MACULA_DIST_MODE", "relay"}],
      names => #{alice => 'alice@localhost.local', bob => 'bob@localhost.local'},
      within => #{relay => [], alice => [], bob => []}}.
