//! QUIC peers that are not ours: plain quinn, with any certificate, for tests and their helpers.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The protocol of links, for foreign peers that pretend to speak it.
pub const ALPN: &[u8] = b"macula-dist";

/// The protocol of attachments to relays.
pub const RELAY_ALPN: &[u8] = b"macula-relay";

fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::generate_simple_self_signed(vec!["foreign".to_string()]).unwrap();
    let der = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    (key.cert.der().clone(), der)
}

/// The only cryptography here.
pub fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A plain QUIC server that speaks the protocols `alpn`.
pub fn foreign_server(alpn: &[&[u8]]) -> (quinn::Endpoint, SocketAddr) {
    let server =
        quinn::Endpoint::server(server_config(alpn), "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = server.local_addr().unwrap();
    (server, address)
}

/// The parameters of a server that speaks the protocols `alpn`.
pub fn server_config(alpn: &[&[u8]]) -> quinn::ServerConfig {
    certified(server_tls().with_no_client_auth(), alpn)
}

/// The parameters of one that also wants to see who calls.
pub fn curious_server_config(alpn: &[&[u8]]) -> quinn::ServerConfig {
    certified(server_tls().with_client_cert_verifier(Arc::new(Credulous)), alpn)
}

fn server_tls() -> rustls::ConfigBuilder<rustls::ServerConfig, rustls::WantsVerifier> {
    rustls::ServerConfig::builder_with_provider(ring())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
}

fn certified(
    tls: rustls::ConfigBuilder<rustls::ServerConfig, rustls::server::WantsServerCert>,
    alpn: &[&[u8]],
) -> quinn::ServerConfig {
    let (certificate, key) = certificate();
    let mut tls = tls.with_single_cert(vec![certificate], key).unwrap();
    tls.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    let config = QuicServerConfig::try_from(tls).unwrap();
    quinn::ServerConfig::with_crypto(Arc::new(config))
}

/// A plain QUIC client that speaks the protocol of links, with a key as they ask for.
pub fn foreign_client() -> quinn::Endpoint {
    let mut client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    client.set_default_client_config(client_config(ALPN));
    client
}

/// The parameters of a client that speaks the protocol `alpn`, with a key of its own.
pub fn client_config(alpn: &[u8]) -> quinn::ClientConfig {
    client_config_with_id(alpn).0
}

/// The same, and the hash of its key, by which relays know it.
pub fn client_config_with_id(alpn: &[u8]) -> (quinn::ClientConfig, [u8; 32]) {
    let (certificate, key) = certificate();
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    let id = digest(&SHA256, parsed.public_key().raw).as_ref().try_into().unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(ring())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    tls.alpn_protocols = vec![alpn.to_vec()];
    (quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap())), id)
}

/// Believes whatever the other side shows, and nothing is asked of a client that shows nothing.
#[derive(Debug)]
pub struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Credulous {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
