%% @doc Which cookie this node shares with another, by OTP's own rules, for the
%% native side, which proves that both hold it.
-module(macula_dist_cookie).

-export([with/1, with_name/1, in_use/0, prepare/2]).

%% @doc The cookie for a node that is dialled. Asked anew each time: OTP tells
%% nobody when a cookie changes.
-spec with(node()) -> binary().
with(Node) ->
    text(auth:get_cookie(Node)).

%% @doc The cookie for a node that called and says this is its name. The name
%% comes from the network and so makes no atom: a node whose name is not known
%% here has no cookie of its own here either.
-spec with_name(binary()) -> binary().
with_name(Name) ->
    try binary_to_existing_atom(Name, utf8) of
        '' -> text(auth:get_cookie());
        Node -> with(Node)
    catch
        error:_ -> text(auth:get_cookie())
    end.

%% @doc This node's own cookie, and those it has for some peers. OTP does not
%% list these: they are the ones that macula was told.
-spec in_use() -> [binary(), ...].
in_use() ->
    Own = text(auth:get_cookie()),
    [Own | lists:delete(Own, lists:usort([text(Cookie) || {_, Cookie} <- macula_cookie:peers()]))].

%% @doc Returns when the native side knows the key of this cookie, which takes
%% it a while the first time. What is missing is told by the dial.
-spec prepare(macula_nif:endpoint(), binary()) -> ok.
prepare(Endpoint, Cookie) ->
    %% A crash here would be reported with its arguments, and so with the cookie.
    try
        macula_nif:endpoint_prepare(Endpoint, Cookie)
    catch
        error:_ -> ok
    end.

text(Cookie) ->
    atom_to_binary(Cookie, utf8).
