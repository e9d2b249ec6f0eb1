%% A certificate authority for the suites: certificates in PEM files, good ones and flawed ones.
-module(macula_test_ca).

-include_lib("public_key/include/public_key.hrl").

-export([new/2, issue/3, file/1]).

-export_type([ca/0, options/0]).

-type ca() :: #{directory := file:filename(), root := map()}.
%% san: what the certificate is given out for. validity: {From, To}, each {Year, Month, Day}.
-type options() :: #{san := [{dNSName | rfc822Name, string()}],
                     validity => {calendar:date(), calendar:date()}}.

%% These have no parameters: those of ECDSA are where they do not belong when public_key of OTP 25
%% signs, and those of RSA are not where they do when that of OTP 29 does.
-define(KEY, [{key, {namedCurve, ed25519}}]).

%% @doc A CA called so, whose files are in the directory.
-spec new(file:filename(), string()) -> ca().
new(Directory, Name) ->
    Root = #{cert := Cert} = public_key:pkix_test_root_cert(Name, ?KEY),
    Ca = #{directory => filename:join(Directory, Name), root => Root},
    write(file(Ca), [{'Certificate', Cert, not_encrypted}]),
    Ca.

%% @doc The file that says whom to trust.
-spec file(ca()) -> file:filename().
file(#{directory := Directory}) ->
    filename:join(Directory, "ca.pem").

%% @doc Gives out a certificate: its file and that of its key.
-spec issue(ca(), string(), options()) -> {file:filename(), file:filename()}.
issue(#{directory := Directory, root := Root}, Name, #{san := San} = Options) ->
    Extension = #'Extension'{extnID = ?'id-ce-subjectAltName', extnValue = San, critical = false},
    Validity = [{validity, V} || {ok, V} <- [maps:find(validity, Options)]],
    Peer = [{extensions, [Extension]} | Validity] ++ ?KEY,
    Chain = #{root => Root, intermediates => [], peer => Peer},
    #{server_config := Config} = public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
    {KeyType, Der} = proplists:get_value(key, Config),
    Key = public_key:pem_entry_encode('PrivateKeyInfo', public_key:der_decode(KeyType, Der)),
    [File, KeyFile] = [filename:join(Directory, Name ++ Kind) || Kind <- [".crt", ".key"]],
    write(File, [{'Certificate', proplists:get_value(cert, Config), not_encrypted}]),
    write(KeyFile, [Key]),
    {File, KeyFile}.

write(File, Entries) ->
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, public_key:pem_encode(Entries)).
