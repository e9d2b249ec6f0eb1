%% @doc The cookie: where it comes from, where it is kept, and how hard it
%% would be to guess. Works without the application and without distribution.
%% No function here logs a cookie, or puts one into an error.
-module(macula_cookie).

-export([get/0, resolve/0, set/1, set/2, peers/0]).
-export([file_path/0, read_file/0]).
-export([strength/1, is_strong/1, strong_bits/0]).

-export_type([cookie/0, file_error/0]).

-type cookie() :: atom() | binary() | string().
-type file_error() :: empty_cookie | {cookie_file_read_failed, file:posix() | term()}.
-type bad_cookie() :: {bad_cookie, empty | too_long | not_printable | not_text}.

-define(OS_ENV, ["MACULA_COOKIE", "RELEASE_COOKIE", "ERLANG_COOKIE"]).
-define(FILE_NAME, ".erlang.cookie").
%% What an atom can hold.
-define(MAX_CHARS, 255).
-define(GENERATED_BYTES, 20).

%%% Where it comes from

%% @doc The cookie by configuration; one that is new, strong and kept for the
%% next time where there is none.
-spec get() -> atom().
get() ->
    case resolve() of
        {ok, Cookie} -> Cookie;
        {error, not_found} -> generate()
    end.

%% @doc The same, but never makes one. The first of: the application's
%% environment, the system's environment, the user's cookie file.
-spec resolve() -> {ok, atom()} | {error, not_found}.
resolve() ->
    Sources = [fun from_application/0 | [fun() -> from_os(Name) end || Name <- ?OS_ENV]]
        ++ [fun read_file/0],
    first(Sources).

first([]) ->
    {error, not_found};
first([Source | Others]) ->
    case Source() of
        {ok, Cookie} -> {ok, Cookie};
        {error, _} -> first(Others)
    end.

from_application() ->
    case application:get_env(macula, cookie) of
        {ok, Cookie} -> check(Cookie);
        undefined -> {error, not_found}
    end.

from_os(Name) ->
    check(os:getenv(Name, "")).

%% @doc The user's cookie file: the one that is there, else the one to make.
-spec file_path() -> file:filename().
file_path() ->
    InHome = filename:join(home(), ?FILE_NAME),
    InConfig = filename:join([config_home(), "erlang", ?FILE_NAME]),
    case not filelib:is_regular(InHome) andalso filelib:is_regular(InConfig) of
        true -> InConfig;
        false -> InHome
    end.

home() ->
    case {os:getenv("HOME"), init:get_argument(home)} of
        {Home, _} when is_list(Home), Home =/= "" -> Home;
        {_, {ok, [[Home]]}} -> Home;
        _ -> "/"
    end.

config_home() ->
    case os:getenv("XDG_CONFIG_HOME") of
        Dir when is_list(Dir), Dir =/= "" -> Dir;
        _ -> filename:join(home(), ".config")
    end.

-spec read_file() -> {ok, atom()} | {error, file_error()}.
read_file() ->
    case file:read_file(file_path()) of
        {ok, Content} -> cookie_in(Content);
        {error, Reason} -> {error, {cookie_file_read_failed, Reason}}
    end.

cookie_in(Content) ->
    case check(string:trim(Content)) of
        {ok, Cookie} -> {ok, Cookie};
        {error, {bad_cookie, empty}} -> {error, empty_cookie};
        {error, Bad} -> {error, {cookie_file_read_failed, Bad}}
    end.

%%% Where it goes

%% @doc Sets it for this node, now or when it becomes one, and keeps it in the
%% user's cookie file.
-spec set(cookie()) -> ok | {error, bad_cookie() | {cookie_file_write_failed, file:posix()}}.
set(Given) ->
    case check(Given) of
        {ok, Cookie} -> set_checked(Cookie);
        {error, _} = Error -> Error
    end.

set_checked(Cookie) ->
    ok = application:set_env(macula, cookie, Cookie),
    _ = is_alive() andalso erlang:set_cookie(node(), Cookie),
    ok = macula_dist_endpoint:cookies_changed(),
    case write(file_path(), Cookie, fun file:rename/2) of
        ok -> ok;
        {error, Reason} -> {error, {cookie_file_write_failed, Reason}}
    end.

%% @doc Sets it for one peer. Not kept: like all per-peer cookies of OTP it is
%% good for this run.
-spec set(node(), cookie()) -> ok | {error, bad_cookie() | not_distributed}.
set(Node, Given) when is_atom(Node) ->
    case {check(Given), is_alive()} of
        {{error, _} = Error, _} ->
            Error;
        {_, false} ->
            {error, not_distributed};
        {{ok, Cookie}, true} ->
            true = erlang:set_cookie(Node, Cookie),
            %% OTP can be asked for the cookie of a node, but not for the
            %% nodes. A key that is put once and never changed costs no
            %% global collection.
            persistent_term:put({?MODULE, Node}, []),
            macula_dist_endpoint:cookies_changed()
    end.

%% @doc The peers with a cookie of their own, as set by `set/2'.
-spec peers() -> [{node(), atom()}].
peers() ->
    [{Node, auth:get_cookie(Node)} || {{?MODULE, Node}, []} <- persistent_term:get()].

generate() ->
    New = binary_to_atom(binary:encode_hex(crypto:strong_rand_bytes(?GENERATED_BYTES))),
    Path = file_path(),
    case write(Path, New, fun file:make_link/2) of
        ok ->
            New;
        {error, eexist} ->
            %% Another node made one at the same moment, or what is there is no cookie.
            made_by_another(read_file(), New);
        {error, Reason} ->
            macula_cluster_log:warning(#{event => cookie_not_kept, path => Path, reason => Reason}),
            New
    end.

made_by_another({ok, Cookie}, _) ->
    Cookie;
made_by_another({error, _}, New) ->
    _ = set(New),
    New.

%% Under a name of its own and closed to others before anything is in it; then
%% put in place whole.
write(Path, Cookie, Place) ->
    Temporary = Path ++ "." ++ binary_to_list(binary:encode_hex(crypto:strong_rand_bytes(8))),
    _ = filelib:ensure_dir(Path),
    Written = write_new(Temporary, atom_to_binary(Cookie), fun() -> Place(Temporary, Path) end),
    _ = file:delete(Temporary),
    Written.

write_new(Path, Content, AndThen) ->
    case file:open(Path, [write, exclusive, raw]) of
        {ok, File} ->
            Steps = [fun() -> file:change_mode(Path, 8#600) end,
                     fun() -> file:write(File, Content) end,
                     fun() -> file:sync(File) end,
                     AndThen],
            Result = until_error(Steps),
            ok = file:close(File),
            Result;
        {error, _} = Error ->
            Error
    end.

until_error([]) -> ok;
until_error([Step | Others]) ->
    case Step() of
        ok -> until_error(Others);
        {error, _} = Error -> Error
    end.

%% A cookie goes to the cookie file and to command lines: one line of text.
check(Cookie) when is_atom(Cookie) ->
    check(atom_to_binary(Cookie));
check(Cookie) when is_binary(Cookie); is_list(Cookie) ->
    try unicode:characters_to_list(Cookie) of
        Chars when is_list(Chars) -> check_chars(Chars);
        _ -> {error, {bad_cookie, not_text}}
    catch
        error:_ -> {error, {bad_cookie, not_text}}
    end;
check(_) ->
    {error, {bad_cookie, not_text}}.

check_chars([]) -> {error, {bad_cookie, empty}};
check_chars(Chars) when length(Chars) > ?MAX_CHARS -> {error, {bad_cookie, too_long}};
check_chars(Chars) ->
    case lists:all(fun(Char) -> Char > 31 andalso Char =/= 127 end, Chars) of
        true -> {ok, list_to_atom(Chars)};
        false -> {error, {bad_cookie, not_printable}}
    end.

%%% How hard it is to guess

%% What an attacker with a recorded proof cannot search, whatever the price of a guess.
-define(STRONG_BITS, 80).
%% English has about two bits a letter, as far as it can be guessed by words.
-define(WORD_LETTER_BITS, 2.0).
%% Letters whose neighbours are so often among the commonest pairs are words:
%% in English text more than half are, of random letters one in ten.
-define(WORD_SHARE, 0.3).
-define(COMMON_PAIRS,
        ["th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of",
         "ed", "is", "it", "al", "ar", "st", "to", "nt", "ng", "se", "ha", "as", "ou", "io", "le",
         "ve", "co", "me", "de", "hi", "ri", "ro", "ic", "ne", "ea", "ra", "ce", "li", "ch", "ll",
         "be", "ma", "si", "om", "ur", "ec", "cr", "et", "du", "uc", "ct", "pr", "od", "oo",
         "ok", "ki", "ie", "my", "ss", "pa", "wo", "rd", "el", "la", "us", "lu", "cl"]).

%% @doc Bits of a guess at this cookie, estimated from its text alone: what is
%% left after repetitions counts log2 of the alphabet that its characters are
%% from, and letters that make words count two bits. So a random cookie keeps
%% its due, and a sentence does not pass for one. An estimate cannot know
%% where a text is from: a cookie that was published is worth nothing.
-spec strength(cookie()) -> float().
strength(Cookie) when is_atom(Cookie) ->
    strength(atom_to_list(Cookie));
strength(Cookie) ->
    Chars = once(unicode:characters_to_list(Cookie)),
    Telling = without_runs(Chars),
    case is_hex(Chars) of
        true -> 4.0 * length(without_dashes(Telling));
        false -> by_alphabet(Telling, looks_like_words(Chars))
    end.

-spec is_strong(cookie()) -> boolean().
is_strong(Cookie) ->
    strength(Cookie) >= ?STRONG_BITS.

%% @doc From how many bits on a cookie is strong.
-spec strong_bits() -> pos_integer().
strong_bits() -> ?STRONG_BITS.

%% A text that is another one several times over: that one.
once([]) ->
    [];
once(Chars) ->
    [_ | Shifted] = Chars ++ Chars,
    Period = string:length(Shifted) - string:length(string:find(Shifted, Chars)) + 1,
    lists:sublist(Chars, Period).

%% Characters that go on as the two before them did: aaa, abc, 321.
without_runs([A, B | Chars]) -> [A, B | without_runs(Chars, B - A, B)];
without_runs(Chars) -> Chars.

without_runs([], _, _) ->
    [];
without_runs([Char | Chars], Step, Last) when Char - Last =:= Step, abs(Step) =< 1 ->
    without_runs(Chars, Step, Char);
without_runs([Char | Chars], _, Last) ->
    [Char | without_runs(Chars, Char - Last, Char)].

%% UUIDs have dashes.
is_hex(Chars) ->
    Digits = without_dashes(Chars),
    lists:any(fun is_digit/1, Digits)
        andalso (lists:all(fun(C) -> is_digit(C) orelse C >= $a andalso C =< $f end, Digits)
                 orelse lists:all(fun(C) -> is_digit(C) orelse C >= $A andalso C =< $F end, Digits))
        andalso not lists:all(fun is_digit/1, Digits).

without_dashes(Chars) ->
    [Char || Char <- Chars, Char =/= $-].

by_alphabet(Chars, IsWords) ->
    Classes = lists:usort([class(Char) || Char <- Chars]),
    Bits = math:log2(max(2, lists:sum([size_of(Class) || Class <- Classes]))),
    lists:sum([0.0 | [char_bits(class(Char), Bits, IsWords) || Char <- Chars]]).

char_bits(Class, _, true) when Class =:= lower; Class =:= upper -> ?WORD_LETTER_BITS;
%% Between words stand separators and the digits of years and counters.
char_bits(digit, _, true) -> math:log2(10);
char_bits(_, _, true) -> 1.0;
char_bits(_, Bits, false) -> Bits.

class(Char) when Char >= $a, Char =< $z -> lower;
class(Char) when Char >= $A, Char =< $Z -> upper;
class(Char) when Char >= $0, Char =< $9 -> digit;
class(_) -> other.

size_of(lower) -> 26;
size_of(upper) -> 26;
size_of(digit) -> 10;
size_of(other) -> 33.

looks_like_words(Chars) ->
    Pairs = letter_pairs(string:lowercase(Chars)),
    Common = [Pair || Pair <- Pairs, lists:member(Pair, ?COMMON_PAIRS)],
    length(Common) > ?WORD_SHARE * length(Pairs).

letter_pairs([A, B | Chars]) when A >= $a, A =< $z, B >= $a, B =< $z ->
    [[A, B] | letter_pairs([B | Chars])];
letter_pairs([_ | Chars]) ->
    letter_pairs(Chars);
letter_pairs([]) ->
    [].

is_digit(Char) -> Char >= $0 andalso Char =< $9.
