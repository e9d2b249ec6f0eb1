%% Any text at all as a node name, as it may come from a configuration, a peer or a guess: taken apart
%% soundly, or refused with a reason that can be read.
-module(macula_dist_name_prop_tests).

-include_lib("eunit/include/eunit.hrl").

%% Debian's PropEr comes without its header.
-import(proper, [forall/2]).
-import(proper_types, [add_constraint/3, frequency/1, list/1, non_empty/1, oneof/1, range/2]).

properties_test_() ->
    case code:which(proper) of
        non_existing -> {"skipped: there is no PropEr here (Debian: erlang-proper)", []};
        _ -> properties()
    end.

properties() ->
    [{atom_to_list(Name), {timeout, 60, ?_assertEqual(true, holds(Property))}}
     || {Name, Property} <- [{any_text, any_text()}, {whole_names, whole_names()}, {ports, ports()},
                             {atoms, atoms()}]].

%% True, or what it does not hold for.
holds(Property) ->
    proper:quickcheck(Property, [{numtests, 2_000}, quiet, long_result]).

%% Whatever it is, there is an answer; what is accepted has its parts, and what is not says why.
any_text() ->
    forall(text(), fun(Text) -> sound(Text, macula_dist_name:split(Text)) end).

sound(Text, {ok, #{name := Name, text := Rest, host := Host, port := Port}}) ->
    Name ++ "@" ++ Rest =:= Text
        andalso Name =/= "" andalso Rest =/= ""
        andalso not lists:member($@, Name ++ Rest)
        andalso (Port =:= default orelse Port > 0 andalso Port < 65_536)
        andalso (is_tuple(Host) orelse Host =/= "")
        andalso macula_dist_name:check(Text, longnames) =:= macula_dist_name:split(Text);
sound(Text, {error, Error}) ->
    macula_dist_name:check(Text, shortnames) =:= {error, Error}
        andalso is_list(unicode:characters_to_list(macula_dist_name:format_error(Error))).

%% Made of a name, a host and perhaps a port, it comes apart into these.
whole_names() ->
    forall({word(), word(), oneof([default, range(1, 65_535)])},
           fun({Name, Host, Port}) ->
                   Text = lists:append([Name, "@", Host | [":" ++ integer_to_list(Port) || Port =/= default]]),
                   {ok, #{name := N, host := H, port := P}} = macula_dist_name:split(Text),
                   {N, H, P} =:= {Name, Host, Port}
           end).

%% A port is digits, and nothing else is a port.
ports() ->
    forall(list(oneof([range($0, $9), oneof("+- .x_")])),
           fun(Text) ->
                   case macula_dist_name:split("a@h:" ++ Text) of
                       {ok, #{port := Port}} -> is_digits(Text) andalso Port =:= list_to_integer(Text);
                       {error, {bad_port, Text}} -> not is_digits(Text) orelse is_no_port(list_to_integer(Text))
                   end
           end).

is_digits(Text) ->
    Text =/= "" andalso lists:all(fun(Char) -> Char >= $0 andalso Char =< $9 end, Text).

is_no_port(Number) ->
    Number =:= 0 orelse Number > 65_535.

%% An atom and its text are the same name, and taking them apart makes no atom.
atoms() ->
    forall(text(),
           fun(Text) ->
                   %% The emulator takes no longer ones.
                   Short = lists:sublist(Text, 255),
                   Atom = list_to_atom(Short),
                   Before = erlang:system_info(atom_count),
                   macula_dist_name:split(Atom) =:= macula_dist_name:split(Short)
                       andalso erlang:system_info(atom_count) =:= Before
           end).

%% Mostly what names are made of, with whatever Unicode has between.
text() ->
    list(frequency([{10, oneof("ab@:.[]1-")}, {1, char_of_unicode()}])).

char_of_unicode() ->
    add_constraint(oneof([range(0, 16#10ffff), range(16#300, 16#36f), 16#200d, 16#d, 16#a]),
                   fun(C) -> C < 16#d800 orelse C > 16#dfff end, true).

word() ->
    non_empty(list(oneof([range($a, $z), range($0, $9), $-, $_]))).
