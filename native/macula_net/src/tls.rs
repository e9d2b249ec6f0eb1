//! TLS 1.3 for links: both sides show a key, one strong cipher suite, our own ALPN.
//!
//! In the handshake any key is accepted. Who may be whom is decided right after it: by a CA where
//! one is configured (`certificate`), by the hello, and by OTP's own handshake on top of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use macula_core::keys::LEN;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::{CertificateFiles, Credentials, FileError, KeyFiles, Own, Validity};
use crate::identity::Identity;

/// The only cipher suite spoken after the QUIC Initial packets.
pub const SUITE: &str = "TLS_AES_256_GCM_SHA384";

/// The protocol of a distribution link; its own version is settled in the hello.
pub(crate) const LINK: &[u8] = b"macula-dist";

/// The protocol of an attachment to a relay; its own version is settled in its first messages.
pub(crate) const RELAY: &[u8] = b"macula-relay";

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no TLS.
pub(crate) enum TlsFailure {
    /// A file cannot be used.
    File(FileError),
    /// The library refused.
    Other(Error),
}

/// Everything made from one reading of the certificates. A new reading makes all of it anew, so
/// that no session can be resumed that was opened under the former one.
pub(crate) struct Tls {
    pub(crate) credentials: Credentials,
    /// The certificate that the relay here shows, where it is another one than the node's.
    relay: Option<Own>,
    pub(crate) client: Arc<QuicClientConfig>,
    pub(crate) relay_client: Arc<QuicClientConfig>,
    /// With what the relay here shows.
    pub(crate) peer_client: Arc<QuicClientConfig>,
    pub(crate) server: Arc<QuicServerConfig>,
}

impl Tls {
    /// `relay`: what is shown to those who come to the relay here, else the same as to nodes.
    /// `handshakes` counts the full ones, in which a peer's key was checked anew.
    pub(crate) fn load(
        files: &CertificateFiles,
        relay: Option<&KeyFiles>,
        identity: &Identity,
        handshakes: &Arc<AtomicU64>,
    ) -> Result<Tls, TlsFailure> {
        let provider = Arc::new(strong());
        let credentials =
            Credentials::load(files, identity, &provider).map_err(TlsFailure::File)?;
        let relay = relay.map(|files| Own::load(files, &provider));
        let relay = relay.transpose().map_err(TlsFailure::File)?;
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Arc::new(AnyKey { algorithms, handshakes: handshakes.clone() });
        let client = |own, alpn| {
            let client = client(own, provider.clone(), verifier.clone(), alpn);
            client.map(Arc::new).map_err(TlsFailure::Other)
        };
        let own = &credentials.own;
        let (links, relays) = (client(own, LINK)?, client(own, RELAY)?);
        let peers = client(relay.as_ref().unwrap_or(own), RELAY)?;
        let server = server(&credentials.own, relay.as_ref(), provider.clone(), verifier.clone());
        Ok(Tls {
            client: links,
            relay_client: relays,
            peer_client: peers,
            server: Arc::new(server.map_err(TlsFailure::Other)?),
            credentials,
            relay,
        })
    }

    /// The hash of the key that the relay here shows.
    pub(crate) fn relay_id(&self) -> [u8; 32] {
        self.relay.as_ref().map_or(self.credentials.own.node_id, |own| own.node_id)
    }

    /// Of the certificate shown here that ends first.
    pub(crate) fn validity(&self) -> Option<Validity> {
        let relay = self.relay.as_ref().and_then(|own| own.validity);
        Validity::shorter(self.credentials.own.validity, relay)
    }
}

/// The only cryptography spoken.
pub(crate) fn strong() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![provider::cipher_suite::TLS13_AES_256_GCM_SHA384],
        ..provider::default_provider()
    }
}

/// QUIC protects its Initial packets with AES-128-GCM whatever the suite (RFC 9001, 5.2).
fn initial_suite() -> Result<rustls::quic::Suite, Error> {
    provider::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .and_then(rustls::Tls13CipherSuite::quic_suite)
        .ok_or_else(|| "the crypto provider lacks AES-128-GCM for QUIC Initial packets".into())
}

fn client(
    own: &Own,
    provider: Arc<CryptoProvider>,
    verifier: Arc<AnyKey>,
    alpn: &[u8],
) -> Result<QuicClientConfig, Error> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(own.chain.clone(), own.key.clone_key())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    // Nodes are named in the hello, which nobody else can read.
    config.enable_sni = false;
    Ok(QuicClientConfig::with_initial(Arc::new(config), initial_suite()?)?)
}

fn server(
    own: &Own,
    relay: Option<&Own>,
    provider: Arc<CryptoProvider>,
    verifier: Arc<AnyKey>,
) -> Result<QuicServerConfig, Error> {
    let links = certified(own, &provider)?;
    let attachments = match relay {
        Some(relay) => certified(relay, &provider)?,
        None => links.clone(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(ByProtocol { links, attachments }));
    config.alpn_protocols = vec![LINK.to_vec(), RELAY.to_vec()];
    // Sessions are kept by those who resume them: strangers cannot push out those of nodes.
    config.ticketer = provider::Ticketer::new()?;
    Ok(QuicServerConfig::with_initial(Arc::new(config), initial_suite()?)?)
}

fn certified(own: &Own, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, rustls::Error> {
    Ok(Arc::new(CertifiedKey::from_der(own.chain.clone(), own.key.clone_key(), provider)?))
}

/// What is shown to whom, told by what they want to speak.
#[derive(Debug)]
struct ByProtocol {
    links: Arc<CertifiedKey>,
    attachments: Arc<CertifiedKey>,
}

impl ResolvesServerCert for ByProtocol {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let speaks = |wanted| hello.alpn().is_some_and(|mut spoken| spoken.any(|p| p == wanted));
        // Whoever speaks both is taken for a node.
        let key = if speaks(RELAY) && !speaks(LINK) { &self.attachments } else { &self.links };
        Some(key.clone())
    }
}

/// The name by which TLS keeps sessions with the node `target`. It goes nowhere else.
pub(crate) fn session_name(target: &str) -> String {
    let hash = digest::digest(&digest::SHA256, target.as_bytes());
    let digits = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}"));
    // A letter first, or it might look like an address.
    std::iter::once("n".to_string()).chain(digits).collect()
}

/// The protocol that was settled on.
pub(crate) fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    data.protocol
}

/// The chain that the other side has shown, in the session this one resumes at the latest.
pub(crate) fn shown(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let chain = connection.peer_identity().and_then(|identity| identity.downcast().ok());
    chain.map_or_else(Vec::new, |chain| *chain)
}

/// Keying material that the two ends of a connection alone share, under a label of what it is for
/// (RFC 8446, 7.5). None: TLS gives none.
pub(crate) fn exporter(connection: &quinn::Connection, label: &[u8]) -> Option<[u8; LEN]> {
    let mut exporter = [0; LEN];
    connection.export_keying_material(&mut exporter, label, b"").ok()?;
    Some(exporter)
}

/// The id of the node that has shown this chain: SHA-256 of its public key
/// (SubjectPublicKeyInfo, DER).
pub(crate) fn node_id(shown: &[CertificateDer<'_>]) -> Option<[u8; 32]> {
    let (_, leaf) = X509Certificate::from_der(shown.first()?).ok()?;
    digest::digest(&digest::SHA256, leaf.public_key().raw).as_ref().try_into().ok()
}

/// Accepts any certificate whose key the peer really holds.
#[derive(Debug)]
struct AnyKey {
    algorithms: WebPkiSupportedAlgorithms,
    handshakes: Arc<AtomicU64>,
}

impl AnyKey {
    fn holds_key(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.handshakes.fetch_add(1, Relaxed);
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn tls12_is_off() -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }
}

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::tls12_is_off()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.holds_key(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Self::tls12_is_off()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.holds_key(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
