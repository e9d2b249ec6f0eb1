%% @doc A self-signed certificate for inet_tls, and its options: TLS 1.3 with
%% AES-256-GCM and no verification, which is what macula does today.
-module(bench_cert).

-export([write/1]).

%% @doc Returns the file for `-ssl_dist_optfile'.
-spec write(file:filename()) -> file:filename().
write(Dir) ->
    #{cert := Cert, key := Key} =
        public_key:pkix_test_root_cert("macula bench", [{digest, sha256}, {key, {namedCurve, secp256r1}}]),
    CertFile = filename:join(Dir, "cert.pem"),
    KeyFile = filename:join(Dir, "key.pem"),
    OptionsFile = filename:join(Dir, "inet_tls.conf"),
    write_pem(CertFile, {'Certificate', Cert, not_encrypted}),
    write_pem(KeyFile, public_key:pem_entry_encode('ECPrivateKey', Key)),
    Common = [{versions, ['tlsv1.3']}, {ciphers, ["TLS_AES_256_GCM_SHA384"]}, {verify, verify_none}],
    Options = [{server, [{certfile, CertFile}, {keyfile, KeyFile} | Common]}, {client, Common}],
    ok = file:write_file(OptionsFile, io_lib:format("~p.~n", [Options])),
    OptionsFile.

write_pem(File, Entry) ->
    ok = file:write_file(File, public_key:pem_encode([Entry])).
