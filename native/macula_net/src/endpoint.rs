//! An endpoint: one UDP port that dials and accepts links.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use macula_core::hello::{BootId, Failure, Local, Peer, Refusal};
use macula_core::keys::{self, CookieKey};
use parking_lot::Mutex;
use quinn::{AckFrequencyConfig, TransportConfig, VarInt};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::cookies::{self, Cookie, CookieKeys};
use crate::greet::{self, GreetError, Greeted};
use crate::identity::Identity;
use crate::link::{Link, LinkInfo};
use crate::socket::{Counters, MeshSocket, from_label};
use crate::tls;
use crate::unreachable::Reports;

/// How long a stranger may take from its first packet to the end of its hello.
const ADMISSION: Duration = Duration::from_secs(10);

/// Strangers in admission at once; the next ones are refused until a place is free.
const STRANGERS: usize = 256;

/// How long links may take to deliver what was sent when their endpoint closes. OTP gives all of
/// distribution one second to stop; what takes longer is killed, and would keep name and port.
const SHUT_DOWN: Duration = Duration::from_millis(600);

/// How long the goodbyes of connections may take that outlive [`SHUT_DOWN`].
const GOODBYE: Duration = Duration::from_millis(100);

/// Pause after an error of the queue of reports, which might come again at once.
const REPORT_AGAIN: Duration = Duration::from_millis(100);

/// How long a connected node has to show that it lives when another one comes under its name: the
/// pause of a busy VM is shorter, and a restarted node is to be let in within a second or two.
const RIVAL: Duration = Duration::from_millis(500);

/// Links that wait for the node to take them.
const BACKLOG: usize = 128;

/// Distribution streams of a link.
const STREAMS: u8 = 1;

/// How often a silent link is checked: NAT bindings live 30 s and more, and a peer killed on a
/// host that still answers is noticed within this time.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The first guess of a round trip. A third of a second (RFC 9002's default) would make the first
/// lost packet of a LAN handshake cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Bytes of one stream the peer may have under way: 40 ms at 200 MB/s.
const STREAM_WINDOW: u32 = 8 * 1024 * 1024;

/// Bytes handed to QUIC and not yet acknowledged, at most. More would only make a small message
/// wait longer behind a large one.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;

/// Packets received before an acknowledgement is due. Every second one, the default, spends a
/// third of the CPU on acknowledgements when both ends share a machine.
const ACK_EVERY: u32 = 20;

/// Where and under what name to open an endpoint.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// The address to bind; none: all of them.
    pub ip: Option<IpAddr>,
    /// Ports tried in order; 0 is any free one.
    pub ports: Vec<u16>,
    /// The node's name; empty: nobody can dial this endpoint by name.
    pub name: String,
    /// The directory of the node's key; none: a key for this life only.
    pub home: Option<PathBuf>,
}

/// What an endpoint asks of the node it belongs to, and tells it.
pub trait Node: Send + Sync + 'static {
    /// The cookie shared with the node `name` (empty: one that is to be named).
    fn cookie(&self, name: &str) -> oneshot::Receiver<Cookie>;

    /// The stranger at `address` that claims to be `name` was refused.
    fn refused(&self, address: SocketAddr, name: &str, why: Refusal);
}

/// Why no endpoint could be opened.
#[derive(Debug)]
pub enum BindError {
    /// Every port is in use.
    InUse,
    /// The system refused, or TLS could not be set up.
    Failed(String),
}

/// One UDP port with its links.
pub struct Endpoint {
    pub(crate) shared: Arc<Shared>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Arc<Link>>>,
}

pub(crate) struct Shared {
    pub(crate) quinn: quinn::Endpoint,
    pub(crate) socket: Arc<MeshSocket>,
    pub(crate) reports: Arc<Reports>,
    name: Mutex<String>,
    boot_id: BootId,
    identity: Identity,
    node: Arc<dyn Node>,
    pub(crate) keys: CookieKeys,
    links: Mutex<HashMap<u64, Weak<Link>>>,
    pub(crate) closed: watch::Sender<bool>,
    pub(crate) refused: AtomicU64,
    pub(crate) failed: AtomicU64,
}

impl Endpoint {
    /// Opens an endpoint. Must be called within a tokio runtime, which it uses from then on.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn open(config: &EndpointConfig, node: Arc<dyn Node>) -> Result<Endpoint, BindError> {
        let identity = Identity::of(config.home.as_deref()).map_err(failed)?;
        let boot_id = random().map_err(failed)?;
        let socket = bind(config.ip, &config.ports)?;
        let quinn = quinn_endpoint(&identity, socket.clone()).map_err(failed)?;
        let shared = Arc::new(Shared {
            quinn,
            socket,
            reports: Arc::default(),
            name: Mutex::new(config.name.clone()),
            boot_id,
            identity,
            node,
            keys: CookieKeys::default(),
            links: Mutex::default(),
            closed: watch::Sender::new(false),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let (accepted, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(accept(shared.clone(), accepted));
        tokio::spawn(cookies::prepare(shared.clone()));
        let (socket, reports) = (shared.socket.clone(), shared.reports.clone());
        tokio::spawn(pass_reports(socket, reports, shared.closed.subscribe()));
        Ok(Endpoint { shared, accepted: tokio::sync::Mutex::new(receiver) })
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// The address bound.
    pub fn address(&self) -> SocketAddr {
        self.shared.socket.bound()
    }

    /// Gives a node that started without a name the one it was told.
    pub fn rename(&self, name: String) {
        *self.shared.name.lock() = name;
    }

    /// The next link that another node opened and chose; none when the endpoint is closed.
    pub async fn accept(&self) -> Option<Arc<Link>> {
        self.accepted.lock().await.recv().await
    }

    /// The established links.
    pub fn links(&self) -> Vec<LinkInfo> {
        self.shared.open_links().iter().filter_map(|link| link.info()).collect()
    }

    /// Sends the datagrams of the peer first known at `label` along `path` from now on.
    pub fn attach_path(&self, label: SocketAddr, path: SocketAddr) {
        self.shared.socket.attach(label, path);
    }

    /// Lets the datagrams of `label` go there again.
    pub fn detach_path(&self, label: SocketAddr) {
        self.shared.socket.detach(label);
    }

    /// Counts of what the port received and refused.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { send_errors, receive_errors, stun, sealed, unknown, unreachable } =
            &self.shared.socket.counters;
        let counters = [
            ("send_errors", send_errors),
            ("receive_errors", receive_errors),
            ("stun", stun),
            ("sealed", sealed),
            ("unknown", unknown),
            ("unreachable", unreachable),
            ("refused", &self.shared.refused),
            ("failed_hellos", &self.shared.failed),
        ];
        counters.map(|(name, count)| (name, count.load(Relaxed))).to_vec()
    }

    /// Closes every link and then the port, and returns when the port is free again. What was sent
    /// is still delivered, within a bound.
    pub async fn shut_down(&self) {
        self.shared.quinn.set_server_config(None);
        self.shared.open_links().iter().for_each(|link| link.close());
        let _ = tokio::time::timeout(SHUT_DOWN, self.shared.quinn.wait_idle()).await;
        self.shared.quinn.close(VarInt::from_u32(0), b"closed");
        // What did not end by itself still sends its goodbye.
        let _ = tokio::time::timeout(GOODBYE, self.shared.quinn.wait_idle()).await;
        self.shared.closed.send_replace(true);
        // Whoever reads reports holds the port; it lets go of its receiver last.
        self.shared.closed.closed().await;
        self.shared.socket.close();
    }

    /// Closes every connection at once, without waiting for anything to be delivered, and returns
    /// when the goodbyes are sent or `bound` has passed. For the end of the VM.
    pub async fn hang_up(&self, bound: Duration) {
        self.shared.quinn.close(VarInt::from_u32(0), b"halted");
        let _ = tokio::time::timeout(bound, self.shared.quinn.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.quinn.close(VarInt::from_u32(0), b"closed");
        self.shared.closed.send_replace(true);
    }
}

impl Shared {
    /// What this node, called `name`, brings to a hello on the connection with this `exporter`.
    pub(crate) fn local(
        &self,
        name: String,
        exporter: [u8; keys::LEN],
    ) -> Result<Local, getrandom::Error> {
        let nonce = random()?;
        Ok(Local { name, boot_id: self.boot_id, features: 0, streams: STREAMS, nonce, exporter })
    }

    /// The key of the cookie shared with the node `name`.
    pub(crate) async fn key_shared_with(&self, name: &str) -> Result<Arc<CookieKey>, String> {
        let cookie = self.node.cookie(name).await.map_err(|_| "the node gave no cookie")?;
        self.keys.key(&cookie).await
    }

    /// Whether `peer` may take its name: not when another life of it is connected and answers. One
    /// that does not is the former life of a node that has started again, and its link ends here.
    pub(crate) async fn is_free(&self, peer: &Peer) -> bool {
        let former = self.open_links().into_iter().filter(|link| {
            let of_name = !peer.name.is_empty() && link.peer().name == peer.name;
            of_name && link.peer().boot_id != peer.boot_id && link.info().is_some()
        });
        for link in former.collect::<Vec<_>>() {
            if link.answers(RIVAL).await {
                return false;
            }
            link.replace();
        }
        true
    }

    /// Makes a link of a connection whose hello is done.
    pub(crate) fn link(&self, connection: quinn::Connection, greeted: Greeted) -> Arc<Link> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Relaxed);
        let reports = self.reports.watch(connection.remote_address());
        let link = Link::new(id, connection, greeted, self.socket.clone(), reports);
        let mut links = self.links.lock();
        links.retain(|_, link| link.strong_count() > 0);
        links.insert(id, Arc::downgrade(&link));
        link
    }

    fn open_links(&self) -> Vec<Arc<Link>> {
        self.links.lock().values().filter_map(Weak::upgrade).collect()
    }
}

fn failed(error: impl std::fmt::Display) -> BindError {
    BindError::Failed(error.to_string())
}

fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn bind(ip: Option<IpAddr>, ports: &[u16]) -> Result<Arc<MeshSocket>, BindError> {
    for port in ports {
        match MeshSocket::bind(ip, *port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed(error)),
            Ok(socket) => return Ok(socket),
        }
    }
    Err(BindError::InUse)
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn quinn_endpoint(identity: &Identity, socket: Arc<MeshSocket>) -> Result<quinn::Endpoint, Error> {
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::server(identity)?));
    // The socket moves links between addresses; QUIC must not do so on its own.
    server.migration(false);
    server.max_incoming(STRANGERS);
    server.transport_config(Arc::new(transport(0)));
    let mut client = quinn::ClientConfig::new(Arc::new(tls::client(identity)?));
    client.transport_config(Arc::new(transport(u32::from(STREAMS))));
    let mut config = identity.quic();
    // A greased fixed bit would make QUIC packets look like something else on our port.
    config.grease_quic_bit(false);
    let runtime = Arc::new(quinn::TokioRuntime);
    let mut endpoint =
        quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, runtime)?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// `streams`: how many the other side may open. The acceptor opens them, as it speaks first.
fn transport(streams: u32) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        // net_ticktime decides about an established link; before that, bounds of our own.
        .max_idle_timeout(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(VarInt::from_u32(2 * STREAM_WINDOW))
        .send_window(SEND_WINDOW)
        .ack_frequency_config(Some(acks));
    transport
}

/// Admits strangers, so many at once, until the endpoint is closed.
async fn accept(shared: Arc<Shared>, accepted: mpsc::Sender<Arc<Link>>) {
    let places = Arc::new(Semaphore::new(STRANGERS));
    while let Some(incoming) = shared.quinn.accept().await {
        let crowded = places.available_permits() < STRANGERS / 2;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            // Costs a forged source its place, and an honest one a round trip (RFC 9000, 8.1.2).
            // It fails only for those that may not retry.
            let _ = incoming.retry();
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            shared.refused.fetch_add(1, Relaxed);
            incoming.refuse();
            continue;
        };
        let (shared, accepted) = (shared.clone(), accepted.clone());
        tokio::spawn(async move {
            let admitted = tokio::time::timeout(ADMISSION, admit(&shared, incoming)).await;
            drop(place);
            match admitted {
                Ok(Some(link)) => drop(accepted.send(link).await),
                _ => drop(shared.failed.fetch_add(1, Relaxed)),
            }
        });
    }
}

async fn admit(shared: &Shared, incoming: quinn::Incoming) -> Option<Arc<Link>> {
    let connection = incoming.accept().ok()?.await.ok()?;
    let name = shared.name.lock().clone();
    match greet::accept(&connection, shared, name).await {
        Ok(greeted) => Some(shared.link(connection, greeted)),
        Err(GreetError::Hello(Failure::Refusing(why), claimed)) => {
            shared.node.refused(from_label(connection.remote_address()), &claimed, why);
            None
        }
        Err(_) => None,
    }
}

/// Passes "port unreachable" reports to the links they concern until the endpoint is closed.
async fn pass_reports(
    socket: Arc<MeshSocket>,
    reports: Arc<Reports>,
    mut closed: watch::Receiver<bool>,
) {
    loop {
        let report = tokio::select! {
            report = socket.unreachable() => report,
            _ = closed.changed() => return,
        };
        match report {
            Ok(label) => reports.report(label),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
            // Whatever else the queue says, later reports may still be good.
            Err(_) => tokio::time::sleep(REPORT_AGAIN).await,
        }
    }
}
