%% Writes relay.pem and relay.key, by a CA that is made for it and goes to NAME.pem.
-module(certify).

-export([files/1]).

files(Name) ->
    Ca = macula_test_ca:new(filename:absname("cas"), Name),
    {Certificate, Key} = macula_test_ca:issue(Ca, "relay", #{san => [{dNSName, "localhost"}]}),
    copy(macula_test_ca:file(Ca), Name ++ ".pem"),
    %% The key first: until its certificate is there, the pair cannot be used, and the former one is.
    copy(Key, "relay.key"),
    copy(Certificate, "relay.pem").

%% Aside first: whoever watches it reads a whole file.
copy(From, To) ->
    {ok, _} = file:copy(From, To ++ ".new"),
    ok = file:rename(To ++ ".new", To).
