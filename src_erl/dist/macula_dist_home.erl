%% @doc Where a node keeps what must outlive it: its key.
-module(macula_dist_home).

-export([directory/1]).

%% @doc The directory of the node of this name; none for a node that is to be
%% given one, which is another node each time.
-spec directory(binary()) -> undefined | binary().
directory(<<>>) ->
    undefined;
directory(Name) ->
    unicode:characters_to_binary(filename:join([base(), "nodes", escaped(Name)])).

base() ->
    case os:getenv("MACULA_HOME") of
        Dir when is_list(Dir), Dir =/= "" -> Dir;
        _ -> user_config()
    end.

%% HOME may be missing, in a container for instance: the key is then not kept.
user_config() ->
    try
        filename:basedir(user_config, "macula")
    catch
        _:_ -> "/nonexistent/macula"
    end.

%% A node name can hold what a file name cannot.
escaped(Name) ->
    [escaped_byte(Byte) || <<Byte>> <= Name].

escaped_byte(Byte) when Byte >= $a, Byte =< $z; Byte >= $A, Byte =< $Z; Byte >= $0, Byte =< $9;
                        Byte =:= $@; Byte =:= $-; Byte =:= $_; Byte =:= $. ->
    Byte;
escaped_byte(Byte) ->
    io_lib:format("%~2.16.0b", [Byte]).
