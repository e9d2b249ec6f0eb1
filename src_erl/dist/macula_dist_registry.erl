%% @doc The registry of the nodes that run on this machine: where it lives, and
%% the few things asked of it. One per user and per network namespace, since
%% an address is good only inside the namespace it was bound in.
-module(macula_dist_registry).

-include_lib("kernel/include/file.hrl").

-export([directory/0, publish/2, withdraw/1, find/1, list/0]).

%% @doc File information is read raw: the file server is not up yet when
%% distribution boots.
-spec directory() -> binary().
directory() ->
    unicode:characters_to_binary(filename:join(base(), "nodes" ++ namespace())).

-spec publish(binary(), macula_nif:address()) ->
          {ok, macula_nif:registration()} | {error, taken | {io, binary()}}.
publish(Name, Address) ->
    macula_nif:registry_publish(directory(), Name, reachable(Address)).

-spec withdraw(macula_nif:registration()) -> ok.
withdraw(Registration) ->
    macula_nif:registry_withdraw(Registration).

-spec find(binary()) -> {ok, macula_nif:address()} | {error, not_found | {io, binary()}}.
find(Name) ->
    macula_nif:registry_find(directory(), Name).

-spec list() -> {ok, [{binary(), macula_nif:address()}]} | {error, {io, binary()}}.
list() ->
    macula_nif:registry_list(directory()).

%% Bound to every address means: nearest by loopback.
reachable({{0, 0, 0, 0}, Port}) -> {{127, 0, 0, 1}, Port};
reachable({{0, 0, 0, 0, 0, 0, 0, 0}, Port}) -> {{127, 0, 0, 1}, Port};
reachable(Address) -> Address.

base() ->
    case os:getenv("XDG_RUNTIME_DIR") of
        Dir when is_list(Dir), Dir =/= "" -> filename:join(Dir, "macula");
        _ -> "/tmp/macula-" ++ user()
    end.

user() ->
    case info("/proc/self") of
        {ok, #file_info{uid = Uid}} -> integer_to_list(Uid);
        {error, _} -> home_owner()
    end.

home_owner() ->
    case info(os:getenv("HOME", "/")) of
        {ok, #file_info{uid = Uid}} -> integer_to_list(Uid);
        {error, _} -> os:getenv("USER", "unknown")
    end.

%% The inode behind this link names the network namespace.
namespace() ->
    case info("/proc/self/ns/net") of
        {ok, #file_info{inode = Inode}} -> [$- | integer_to_list(Inode)];
        {error, _} -> ""
    end.

info(Path) ->
    file:read_file_info(Path, [raw]).
