//! A line: an attachment with nothing behind it but the load. What goes over it is not sealed, which
//! a relay cannot tell; so the relay has as much to do as with a node, and the load has little.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use macula_core::keys::{self, LEN};
use macula_core::mesh::claim::{ClaimKey, Tag};
use macula_core::mesh::key::MeshKey;
use macula_core::mesh::packet::{self, Packet};
use macula_core::relay::message::{MAX_MESSAGE, Refusal, ToNode, ToRelay};
use macula_core::secret::Secret;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::time::timeout;

use crate::node::address;
use crate::{COOKIE, Error, REALM};

/// How long a relay may take for an answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Bytes of datagrams that wait on either side of a line.
const QUEUE: usize = 1024 * 1024;

/// What lines need: ports, each at an address of its own, and the key of their cookie.
pub struct Lines {
    ports: Vec<Endpoint>,
    key: MeshKey,
}

/// Why a line is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unattached {
    /// The relay said so.
    Refused(Refusal),
    /// Not even a connection.
    Lost,
}

/// An attachment.
pub struct Line {
    /// Its connection.
    pub connection: Connection,
    /// The tag it holds, once it claimed one.
    pub tag: Tag,
    send: SendStream,
    receive: RecvStream,
}

impl Lines {
    /// Opens `count` ports, the first at the address of the node with this number.
    ///
    /// # Errors
    /// The system refuses one.
    pub fn open(first: usize, count: usize) -> Result<Lines, Error> {
        let port = |n| Endpoint::client(SocketAddr::new(address(first + n), 0));
        let ports = (0..count).map(port).collect::<Result<_, _>>()?;
        let key = MeshKey::stretch(&keys::base(COOKIE), REALM).map_err(|e| e.to_string())?;
        Ok(Lines { ports, key })
    }

    /// The key with which the `n`th line claims.
    pub fn claim_key(&self, n: usize) -> ClaimKey {
        self.key.claim(&format!("line{n}"))
    }

    /// A connection to a relay, with a key of its own, that has said nothing yet.
    ///
    /// # Errors
    /// There is none.
    pub async fn connect(&self, n: usize, relay: SocketAddr) -> Result<Connection, Unattached> {
        let port = self.ports.get(n % self.ports.len().max(1)).ok_or(Unattached::Lost)?;
        let config = config().map_err(|_| Unattached::Lost)?;
        let connecting = port.connect_with(config, relay, "relay").map_err(|_| Unattached::Lost)?;
        connecting.await.map_err(|_| Unattached::Lost)
    }

    /// The `n`th line, which holds its tag.
    ///
    /// # Errors
    /// The relay does not take it.
    pub async fn attach(&self, n: usize, relay: SocketAddr) -> Result<Line, Unattached> {
        let connection = self.connect(n, relay).await?;
        let attaching = async {
            let (send, receive) = connection.accept_bi().await.map_err(|_| Unattached::Lost)?;
            let mut line = Line { connection, tag: Tag([0; 16]), send, receive };
            line.attach().await?;
            line.claim(&self.claim_key(n)).await?;
            Ok(line)
        };
        timeout(ANSWER, attaching).await.unwrap_or(Err(Unattached::Lost))
    }
}

impl Line {
    async fn attach(&mut self) -> Result<(), Unattached> {
        self.hear().await?;
        let (realm, token) = (REALM.into(), Secret::default());
        self.say(&ToRelay::Attach { version: 1, features: 0, realm, token }).await?;
        match self.hear().await? {
            ToNode::Attached { .. } => Ok(()),
            ToNode::Refused(refusal) => Err(Unattached::Refused(refusal)),
            _ => Err(Unattached::Lost),
        }
    }

    async fn claim(&mut self, key: &ClaimKey) -> Result<(), Unattached> {
        let mut exporter = [0; LEN];
        let label = b"EXPORTER-macula-relay-v1";
        let exported = self.connection.export_keying_material(&mut exporter, label, b"");
        exported.map_err(|_| Unattached::Lost)?;
        let claim = key.claim(REALM, &exporter);
        self.say(&ToRelay::Claim { claim, sealed: Vec::new() }).await?;
        self.tag = key.tag();
        match self.hear().await? {
            ToNode::Held(tag) if tag == self.tag => Ok(()),
            _ => Err(Unattached::Lost),
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn say(&mut self, message: &ToRelay) -> Result<(), Unattached> {
        self.send.write_all(&message.encode()).await.map_err(|_| Unattached::Lost)
    }

    /// The next thing that the relay says, of what is known.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn hear(&mut self) -> Result<ToNode, Unattached> {
        loop {
            let mut len = [0; 2];
            self.receive.read_exact(&mut len).await.map_err(|_| Unattached::Lost)?;
            let mut message = vec![0; usize::from(u16::from_be_bytes(len)).min(MAX_MESSAGE)];
            self.receive.read_exact(&mut message).await.map_err(|_| Unattached::Lost)?;
            if let Some(message) = ToNode::decode(&message).map_err(|_| Unattached::Lost)? {
                return Ok(message);
            }
        }
    }

    /// A datagram for `to`, of `size` bytes in all.
    pub fn datagram(&self, to: &Tag, number: u64, size: usize) -> Bytes {
        let mut datagram = BytesMut::with_capacity(size);
        datagram.put_slice(&packet::header(to, &self.tag));
        datagram.put_u64(number);
        datagram.resize(size.max(datagram.len()), 0);
        datagram.freeze()
    }

    /// Sends a datagram once there is room for it: as fast as the way to the relay is.
    pub async fn send(&self, datagram: Bytes) -> bool {
        self.connection.send_datagram_wait(datagram).await.is_ok()
    }

    /// The number of the next datagram that came; none: the connection ended.
    pub async fn receive(&self) -> Option<(u64, usize)> {
        loop {
            let datagram = self.connection.read_datagram().await.ok()?;
            if let Some(Packet::Data { sealed, .. }) = Packet::decode(&datagram)
                && let Some(number) = sealed.first_chunk()
            {
                return Some((u64::from_be_bytes(*number), datagram.len()));
            }
        }
    }
}

/// The parameters of one line, which has a key of its own.
pub(crate) fn config() -> Result<quinn::ClientConfig, Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let certificate = CertificateParams::new(vec!["line".to_string()])?.self_signed(&key)?;
    let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyRelay))
        .with_client_auth_cert(vec![certificate.der().clone()], der)?;
    tls.alpn_protocols = vec![b"macula-relay".to_vec()];
    tls.enable_sni = false;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let largest = macula_net::mtu::USUAL;
    let mut transport =
        macula_net::transport::parameters(1, macula_net::Congestion::Cubic, largest);
    transport.datagram_receive_buffer_size(Some(QUEUE)).datagram_send_buffer_size(QUEUE);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Whom a line comes to was decided by who gave the address.
#[derive(Debug)]
struct AnyRelay;

impl ServerCertVerifier for AnyRelay {
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
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
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
        provider().signature_verification_algorithms.supported_schemes()
    }
}
