%% @doc What gossip says on the wire, to bytes and back. Pure; makes no atom.
%%
%% A node that is here says so in two datagrams:
%%
%%   MACULA_GOSSIP:Node              or  MACULA_GOSSIP:Node|Hmac
%%   MACULA_GOSSIP/2:Node|Fields     or  MACULA_GOSSIP/2:Node|Fields|Hmac
%%
%% The hmac, there when a secret is shared, is HMAC-SHA256 of all before its
%% bar, in 64 uppercase hex digits. The first form, *plain*, is all that older
%% and foreign receivers know. What they do with anything behind the hmac is
%% theirs to say, so nothing is put there: what is newer has a datagram of its
%% own, *dated*, whose first word they do not know and pass over.
%%
%% Fields are Key=Value with commas between: t, the time of the sender in
%% milliseconds, which rises with each datagram; k, hello or bye; p, the port
%% of its distribution; a, an address of it, any number of times. Unknown keys
%% are passed over, so that more can follow.
-module(macula_gossip_packet).

-export([plain/2, dated/2, decode/2]).

-export_type([announcement/0, secret/0, error/0]).

%% In a fun it shows in no report of a crash.
-type secret() :: none | binary() | fun(() -> binary()).
-type announcement() :: #{name := binary(),
                          form := plain | dated,
                          kind := hello | bye,
                          time => non_neg_integer(),
                          port => inet:port_number(),
                          addresses => [inet:ip_address()]}.
-type error() :: not_gossip | too_long | malformed | invalid_hmac.

-define(PLAIN, "MACULA_GOSSIP:").
-define(DATED, "MACULA_GOSSIP/2:").
-define(HMAC_DIGITS, 64).
%% A node name of full length and every field fit; a datagram that needs
%% fragments would arrive less often.
-define(MAX_BYTES, 1_200).
%% More than a host has on one LAN, few enough to be dialled at once.
-define(MAX_ADDRESSES, 8).
-define(MAX_FIELDS, 32).
%% Milliseconds since 1970 have 13 digits until the year 2286.
-define(MAX_DIGITS, 15).

%% @doc That a node is here, for receivers of any age.
-spec plain(binary(), secret()) -> binary().
plain(Name, Secret) ->
    signed(<<?PLAIN, Name/binary>>, Secret).

%% @doc The same with time, kind, port and addresses.
-spec dated(announcement(), secret()) -> binary().
dated(#{name := Name} = Announcement, Secret) ->
    Fields = lists:join($,, fields(Announcement)),
    signed(iolist_to_binary([?DATED, Name, $|, Fields]), Secret).

fields(#{kind := Kind, time := Time} = Announcement) ->
    [["t=", integer_to_list(Time)], ["k=", atom_to_list(Kind)]]
        ++ [["p=", integer_to_list(Port)] || #{port := Port} <- [Announcement]]
        ++ [["a=", inet:ntoa(Ip)]
            || Ip <- lists:sublist(maps:get(addresses, Announcement, []), ?MAX_ADDRESSES)].

signed(Text, none) -> Text;
signed(Text, Secret) -> <<Text/binary, $|, (hmac(Text, Secret))/binary>>.

hmac(Text, Secret) ->
    try
        binary:encode_hex(crypto:mac(hmac, sha256, revealed(Secret), Text))
    catch
        %% The stack of what went wrong holds the secret.
        error:_ -> erlang:raise(error, crypto_failed, [])
    end.

revealed(Secret) when is_function(Secret, 0) -> Secret();
revealed(Secret) -> Secret.

%% @doc What a datagram says. With a secret only what its hmac proves;
%% without one, whatever is well formed, and any hmac is passed over.
-spec decode(binary(), secret()) -> {ok, announcement()} | {error, error()}.
decode(<<?PLAIN, _/binary>> = Packet, Secret) ->
    decode(plain, Packet, Secret);
decode(<<?DATED, _/binary>> = Packet, Secret) ->
    decode(dated, Packet, Secret);
decode(_, _) ->
    {error, not_gossip}.

decode(_, Packet, _) when byte_size(Packet) > ?MAX_BYTES ->
    {error, too_long};
decode(Form, Packet, Secret) ->
    case authentic(Form, Packet, Secret) of
        {ok, Text} -> announcement(Form, Text);
        error -> {error, invalid_hmac}
    end.

%% The text with the hmac taken off.
authentic(plain, Packet, none) ->
    [Text | _] = binary:split(Packet, <<"|">>),
    {ok, Text};
authentic(dated, Packet, none) ->
    {ok, Packet};
authentic(_, Packet, Secret) ->
    TextSize = byte_size(Packet) - ?HMAC_DIGITS - 1,
    case Packet of
        <<Text:TextSize/binary, $|, Hmac:?HMAC_DIGITS/binary>> ->
            proved(crypto:hash_equals(Hmac, hmac(Text, Secret)), Text);
        _ ->
            error
    end.

proved(true, Text) -> {ok, Text};
proved(false, _) -> error.

announcement(plain, <<?PLAIN, Name/binary>>) ->
    checked(#{name => Name, form => plain, kind => hello});
announcement(dated, <<?DATED, Rest/binary>>) ->
    case binary:split(Rest, <<"|">>, [global]) of
        [Name, Fields | _] -> checked(read_fields(Fields, #{name => Name, form => dated}));
        [_] -> {error, malformed}
    end.

checked(#{form := dated} = Announcement) when not is_map_key(time, Announcement);
                                              not is_map_key(kind, Announcement) ->
    {error, malformed};
checked(#{name := Name} = Announcement) ->
    case macula_cluster_names:is_node_name(Name) of
        true -> {ok, Announcement};
        false -> {error, malformed}
    end;
checked(error) ->
    {error, malformed}.

read_fields(Text, Announcement) ->
    case binary:split(Text, <<",">>, [global]) of
        Fields when length(Fields) =< ?MAX_FIELDS ->
            lists:foldl(fun read_field/2, Announcement, Fields);
        _ ->
            error
    end.

read_field(_, error) ->
    error;
read_field(<<"t=", Digits/binary>>, Announcement) ->
    put_number(time, Digits, Announcement);
read_field(<<"p=", Digits/binary>>, Announcement) ->
    case put_number(port, Digits, Announcement) of
        #{port := Port} = Read when Port > 0, Port < 65536 -> Read;
        _ -> error
    end;
read_field(<<"k=hello">>, Announcement) ->
    Announcement#{kind => hello};
read_field(<<"k=bye">>, Announcement) ->
    Announcement#{kind => bye};
read_field(<<"a=", Text/binary>>, Announcement) ->
    put_address(inet:parse_strict_address(binary_to_list(Text)), Announcement);
read_field(_, Announcement) ->
    Announcement.

put_number(Key, Digits, Announcement) when byte_size(Digits) =< ?MAX_DIGITS ->
    try binary_to_integer(Digits) of
        Number when Number >= 0 -> Announcement#{Key => Number};
        _ -> error
    catch
        error:badarg -> error
    end;
put_number(_, _, _) ->
    error.

put_address({ok, Ip}, Announcement) ->
    Known = maps:get(addresses, Announcement, []),
    case length(Known) < ?MAX_ADDRESSES of
        true -> Announcement#{addresses => Known ++ [Ip]};
        false -> Announcement
    end;
put_address({error, _}, _) ->
    error.
