%% Makes a node of the VM that runs EUnit, for as long as a test lasts: over the classic carrier,
%% since rebar3 decides how that VM was started, and with a cookie of its own. What the test starts
%% of macula goes with it.
-module(macula_test_distribution).

-export([with/1]).

-spec with(fun(() -> Result)) -> Result.
with(Fun) ->
    Cookie = binary_to_list(binary:encode_hex(crypto:strong_rand_bytes(20))),
    Before = {os:getenv("MACULA_COOKIE"), is_alive(), is_started()},
    os:putenv("MACULA_COOKIE", Cookie),
    try
        Fun()
    after
        restore(Before)
    end.

restore({Cookie, WasAlive, WasStarted}) ->
    _ = WasStarted orelse application:stop(macula),
    case Cookie of
        false -> os:unsetenv("MACULA_COOKIE");
        _ -> os:putenv("MACULA_COOKIE", Cookie)
    end,
    _ = not WasAlive andalso is_alive() andalso net_kernel:stop(),
    ok.

is_started() ->
    lists:keymember(macula, 1, application:which_applications()).
