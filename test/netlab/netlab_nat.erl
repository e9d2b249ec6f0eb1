%% @doc The rules that make a router a NAT of a given kind, in the terms of RFC 4787: text for nft.
%%
%% The kinds differ in two things. *Mapping*: whether one inner socket has one outer port whomever
%% it sends to (endpoint-independent), or another for each (address and port-dependent).
%% *Filtering*: who may send to that outer port.
-module(netlab_nat).

-export([rules/3]).

%% The ports of the generation: a NAT whose mappings are forgotten may not give them again.
-define(PORTS, 1000).
-define(LOWEST, 20_000).
-define(GENERATIONS, 40).

%% @doc Generation 0 keeps a socket's port where it can, as most routers do; each later one has
%% ports of its own. Loading these rules replaces those of the former generation.
-spec rules(netlab_scenario:nat(), Generation :: non_neg_integer(), Seconds :: pos_integer()) ->
          iolist().
rules(none, _, _) ->
    [];
rules(Nat, Generation, Timeout) ->
    [fresh_table("nat", nat(Nat, ports(Generation), Timeout)),
     fresh_table("flt", [strangers_end_here(), filtering(Nat, Timeout)])].

fresh_table(Name, Content) ->
    ["table ip ", Name, "\ndelete table ip ", Name, "\ntable ip ", Name, " {\n", Content, "}\n"].

ports(0) ->
    "";
ports(Generation) ->
    First = ?LOWEST + ?PORTS * (Generation rem ?GENERATIONS),
    io_lib:format(" to :~b-~b", [First, First + ?PORTS - 1]).

%% Where filtering is wider than what connection tracking lets in by itself, `cone' keeps what is
%% behind each outer port, as learnt from what leaves, whichever side began.
nat(Nat, Ports, Timeout) when Nat =:= full_cone; Nat =:= address_restricted ->
    ["map cone { type inet_service : ipv4_addr . inet_service; ", expiring(Timeout), " }\n"
     "chain prerouting {\n"
     "  type nat hook prerouting priority dstnat;\n"
     "  iifname wan meta l4proto udp dnat ip to udp dport map @cone\n"
     "}\n",
     masquerade(Ports, ""),
     "chain learn {\n"
     "  type filter hook postrouting priority srcnat + 50;\n"
     "  oifname wan meta l4proto udp ct direction original"
     " update @cone { udp sport : ct original ip saddr . ct original proto-src }\n"
     "  oifname wan meta l4proto udp ct direction reply"
     " update @cone { udp sport : ct reply ip saddr . ct reply proto-src }\n"
     "}\n"];
nat(symmetric, Ports, _) ->
    [untouched_inwards(), masquerade(Ports, " fully-random")];
nat(_, Ports, _) ->
    [untouched_inwards(), masquerade(Ports, "")].

%% Answers are only translated back where there is a chain for it, even an empty one.
untouched_inwards() ->
    "chain prerouting { type nat hook prerouting priority dstnat; }\n".

masquerade(Ports, How) ->
    ["chain postrouting {\n"
     "  type nat hook postrouting priority srcnat;\n"
     "  oifname wan meta l4proto udp masquerade", Ports, How, "\n"
     "  oifname wan masquerade\n"
     "}\n"].

%% Else a stranger's datagram, taken for one to the router itself, makes an entry that occupies the
%% port, and the inner socket gets another one.
strangers_end_here() ->
    "chain input {\n"
    "  type filter hook input priority filter;\n"
    "  iifname wan meta l4proto udp ct state new drop\n"
    "}\n".

filtering(full_cone, _) ->
    [];
filtering(address_restricted, Timeout) ->
    ["set seen { type ipv4_addr . inet_service . ipv4_addr; ", expiring(Timeout), " }\n",
     forward(["  oifname wan meta l4proto udp update @seen { ip saddr . udp sport . ip daddr }\n"
              "  iifname wan meta l4proto udp ip daddr . udp dport . ip saddr @seen accept\n",
              only_answers()])];
filtering(udp_blocked, _) ->
    forward(["  iifname lan meta l4proto udp udp dport != 53 drop\n", only_answers()]);
filtering(_, _) ->
    forward(only_answers()).

forward(Rules) ->
    ["chain forward {\n  type filter hook forward priority filter;\n", Rules, "}\n"].

only_answers() ->
    "  iifname wan ct state established,related accept\n"
    "  iifname wan drop\n".

expiring(Timeout) ->
    io_lib:format("flags dynamic,timeout; timeout ~bs; size 65536;", [Timeout]).
