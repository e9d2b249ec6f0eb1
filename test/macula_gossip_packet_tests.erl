-module(macula_gossip_packet_tests).

-include_lib("proper/include/proper.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(macula_property, [holds/1]).
-import(macula_gossip_packet, [plain/2, dated/2, decode/2]).

-define(SECRET, <<"s3cret">>).

%% The wire format is a contract with receivers that are not ours: written out, not computed.
plain_format_test_() ->
    [?_assertEqual(<<"MACULA_GOSSIP:a@h">>, plain(<<"a@h">>, none)),
     %% printf %s 'MACULA_GOSSIP:a@h' | openssl dgst -sha256 -hmac s3cret
     ?_assertEqual(<<"MACULA_GOSSIP:a@h|C8F683F304682CDACDDF6CE5D984781BEECC5D2AD73C0C52CF602817B442C05C">>,
                   plain(<<"a@h">>, ?SECRET)),
     ?_assertEqual(<<"MACULA_GOSSIP/2:a@h|t=17,k=bye,p=4433,a=192.0.2.7,a=2001:db8::1">>,
                   dated(#{name => <<"a@h">>, form => dated, kind => bye, time => 17, port => 4433,
                           addresses => [{192, 0, 2, 7}, {16#2001, 16#db8, 0, 0, 0, 0, 0, 1}]}, none))].

%% Without a secret a suffix is passed over, whatever it is.
suffix_test_() ->
    [?_assertMatch({ok, #{name := <<"a@h">>, form := plain, kind := hello}}, decode(Packet, none))
     || Packet <- [<<"MACULA_GOSSIP:a@h">>, <<"MACULA_GOSSIP:a@h|">>, <<"MACULA_GOSSIP:a@h|zz|zz">>,
                   plain(<<"a@h">>, ?SECRET)]].

%% With one, only what verifies counts, and what is no hex is no crash.
secret_test_() ->
    Good = plain(<<"a@h">>, ?SECRET),
    Lower = string:lowercase(Good),
    [?_assertMatch({ok, #{name := <<"a@h">>}}, decode(Good, ?SECRET))]
        ++ [?_assertEqual({error, invalid_hmac}, decode(Packet, ?SECRET))
            || Packet <- [<<"MACULA_GOSSIP:a@h">>, <<"MACULA_GOSSIP:a@h|">>, <<"MACULA_GOSSIP:a@h|not hex">>,
                          <<"MACULA_GOSSIP:a@h|", (binary:copy(<<"ZZ">>, 32))/binary>>,
                          <<"MACULA_GOSSIP:a@h|", (binary:copy(<<"00">>, 32))/binary>>,
                          plain(<<"a@h">>, <<"other">>),
                          binary:replace(Good, <<"a@h">>, <<"b@h">>),
                          <<"MACULA_GOSSIP:", (binary:part(Lower, 14, byte_size(Lower) - 14))/binary>>,
                          <<Good/binary, "x">>]].

malformed_test_() ->
    [?_assertEqual({error, Error}, decode(Packet, none))
     || {Error, Packet} <-
            [{not_gossip, <<>>}, {not_gossip, <<"MACULA_GOSSIP">>}, {not_gossip, <<255, 254>>},
             {malformed, <<"MACULA_GOSSIP:">>}, {malformed, <<"MACULA_GOSSIP:a">>},
             {malformed, <<"MACULA_GOSSIP:@h">>}, {malformed, <<"MACULA_GOSSIP:a@">>},
             {malformed, <<"MACULA_GOSSIP:a@b@c">>}, {malformed, <<"MACULA_GOSSIP:a b@h">>},
             {malformed, <<"MACULA_GOSSIP:a@h\n">>}, {malformed, <<"MACULA_GOSSIP:a@h", 0>>},
             {malformed, <<"MACULA_GOSSIP:a@", 195, 164>>},
             {malformed, <<"MACULA_GOSSIP:a@", (binary:copy(<<"h">>, 254))/binary>>},
             {malformed, <<"MACULA_GOSSIP/2:a@h">>}, {malformed, <<"MACULA_GOSSIP/2:a@h|">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=1">>}, {malformed, <<"MACULA_GOSSIP/2:a@h|k=hello">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=-1,k=hello">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=1x,k=hello">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=", (binary:copy(<<"9">>, 900))/binary, ",k=hello">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=1,k=hello,p=0">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=1,k=hello,p=65536">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=1,k=hello,a=nowhere">>},
             {malformed, <<"MACULA_GOSSIP/2:a@h|t=1,k=hello", (binary:copy(<<",x=1">>, 40))/binary>>},
             {too_long, <<"MACULA_GOSSIP:a@h|", (binary:copy(<<"x">>, 2_000))/binary>>}]].

%% Whatever goes wrong, the secret is not in the stack of it.
hidden_secret_test() ->
    ?assertEqual(plain(<<"a@h">>, ?SECRET), plain(<<"a@h">>, fun() -> ?SECRET end)),
    try plain(<<"a@h">>, fun() -> {no_binary, hush} end) of
        _ -> error(no_error)
    catch
        error:Reason:Stack ->
            ?assertEqual(nomatch, string:find(io_lib:format("~0p", [{Reason, Stack}]), "hush"))
    end.

%% What later versions add is passed over.
unknown_fields_test() ->
    ?assertMatch({ok, #{time := 1, kind := hello}}, decode(<<"MACULA_GOSSIP/2:a@h|t=1,zz=9,k=hello,?">>, none)).

%% Many addresses: the first eight count.
too_many_addresses_test() ->
    Ips = [{192, 0, 2, N} || N <- lists:seq(1, 20)],
    Packet = dated((hello())#{addresses => Ips}, none),
    {ok, #{addresses := Read}} = decode(Packet, none),
    ?assertEqual(lists:sublist(Ips, 8), Read),
    {ok, #{addresses := Most}} = decode(<<Packet/binary, ",a=192.0.2.99">>, none),
    ?assertEqual(8, length(Most)).

properties_test_() ->
    [macula_property:test(round_trip, prop_round_trip(), 500),
     macula_property:test(any_bytes, prop_any_bytes(), 2_000),
     macula_property:test(any_change, prop_any_change(), 500)].

%% What is said is what is heard, with and without a secret.
prop_round_trip() ->
    ?FORALL({Announcement, Secret}, {announcement(), secret()},
            holds(fun() ->
                          #{name := Name} = Announcement,
                          {ok, Announcement} =:= decode(dated(Announcement, Secret), Secret)
                              andalso {ok, #{name => Name, form => plain, kind => hello}}
                                          =:= decode(plain(Name, Secret), Secret)
                  end)).

%% Whatever arrives: an answer, no crash and no new atom.
prop_any_bytes() ->
    ?FORALL({Prefix, Bytes, Secret},
            {oneof([<<>>, <<"MACULA_GOSSIP:">>, <<"MACULA_GOSSIP/2:">>, <<"MACULA_GOSSIP/2:a@h|t=1,k=hello,">>]),
             binary(), secret()},
            holds(fun() ->
                          Atoms = erlang:system_info(atom_count),
                          Answer = decode(<<Prefix/binary, Bytes/binary>>, Secret),
                          is_known(Answer) andalso erlang:system_info(atom_count) =:= Atoms
                  end)).

is_known({ok, #{name := Name, form := _, kind := _}}) -> byte_size(Name) =< 255;
is_known({error, Error}) -> lists:member(Error, [not_gossip, too_long, malformed, invalid_hmac]).

%% A signed packet with any one byte changed is nothing.
prop_any_change() ->
    ?FORALL({Announcement, Place, Change}, {announcement(), non_neg_integer(), integer(1, 255)},
            holds(fun() ->
                          Packet = dated(Announcement, ?SECRET),
                          At = Place rem byte_size(Packet),
                          <<Before:At/binary, Byte, After/binary>> = Packet,
                          {error, _} = decode(<<Before/binary, (Byte bxor Change), After/binary>>, ?SECRET),
                          true
                  end)).

announcement() ->
    ?LET({Name, Kind, Time, More}, {name(), oneof([hello, bye]), integer(0, 9_999_999_999_999), more()},
         maps:merge(More, #{name => Name, form => dated, kind => Kind, time => Time})).

more() ->
    oneof([#{}, ?LET({Port, Ips}, {integer(1, 65535), ips()}, #{port => Port, addresses => Ips})]).

ips() ->
    ?LET(Ips, non_empty(list(oneof([{byte(), byte(), byte(), byte()}, ip6()]))), lists:sublist(Ips, 8)).

ip6() ->
    ?LET(Words, vector(8, integer(0, 65535)), list_to_tuple(Words)).

name() ->
    ?LET({Name, Host}, {non_empty(list(oneof(lists:seq($a, $z) ++ "_-0123456789"))),
                        non_empty(list(oneof(lists:seq($a, $z) ++ ".-:[]0123456789")))},
         list_to_binary(lists:sublist(Name, 100) ++ "@" ++ lists:sublist(Host, 100))).

secret() ->
    oneof([none, ?SECRET, non_empty(binary())]).

hello() ->
    #{name => <<"a@h">>, form => dated, kind => hello, time => 1, port => 4433}.
