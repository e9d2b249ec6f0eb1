//! An endpoint: one UDP port that dials and accepts links.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use macula_core::dist::memory::Memory;
use macula_core::hello::{ATOM_CACHE, BootId, Local, Peer, Refusal};
use macula_core::keys::{self, CookieKey};
use macula_core::path::select::Path;
use parking_lot::{Mutex, RwLock};
use quinn::VarInt;
use tokio::sync::{mpsc, oneshot, watch};

use crate::accept::{self, Door, Strangers};
use crate::certificate::{CertificateFault, CertificateFiles, FileError, KeyFiles};
use crate::congestion::Congestion;
use crate::cookies::{self, Cookie, CookieKeys};
use crate::courtesy::Courteous;
use crate::greet::Greeted;
use crate::identity::Identity;
use crate::link::{Link, LinkInfo};
use crate::mesh::{Attempts, JoinError, Mesh, MeshConfig, RelayInfo, State, TunnelInfo};
use crate::relay::{PeerInfo, PeerState, RelayConfig, RelayService};
use crate::renewal::{self, CertificateNews};
use crate::socket::{Counters, MeshSocket};
use crate::stand_in::{self, WellKnown};
use crate::tls::{Tls, TlsFailure};
use crate::transport::{self, Settings};
use crate::unreachable::Reports;
use crate::{mtu, paths, restart};

/// How long links may take to deliver what was sent when their endpoint closes. OTP gives all of
/// distribution one second to stop; what takes longer is killed, and would keep name and port.
const SHUT_DOWN: Duration = Duration::from_millis(600);

/// How often it is looked whether the links are closed.
const CLOSED_YET: Duration = Duration::from_millis(2);

/// How long the boot of a node may wait for the relays of its mesh, its own key aside: more than
/// one far away takes, and bearable when there is none.
const FIRST_ATTEMPTS: Duration = Duration::from_secs(3);

/// How long the goodbyes of connections may take that outlive [`SHUT_DOWN`].
const GOODBYE: Duration = Duration::from_millis(100);

/// Pause after an error of the queue of reports, which might come again at once.
const REPORT_AGAIN: Duration = Duration::from_millis(100);

/// How long a connected node has to show that it lives when another one comes under its name: the
/// pause of a busy VM is shorter, and a restarted node is to be let in within a second or two.
const RIVAL: Duration = Duration::from_millis(500);

/// Links that wait for the node to take them.
const BACKLOG: usize = 128;

/// Where and under what name to open an endpoint.
#[derive(Clone, Debug, Default)]
pub struct EndpointConfig {
    /// The address to bind; none: all of them.
    pub ip: Option<IpAddr>,
    /// Ports tried in order; 0 is any free one.
    pub ports: Vec<u16>,
    /// The node's name; empty: nobody can dial this endpoint by name.
    pub name: String,
    /// The directory of the node's key; none: a key for this life only.
    pub home: Option<PathBuf>,
    /// Certificates of a CA.
    pub certificates: CertificateFiles,
    /// The directory of this machine's [`crate::registry`]; none: nobody is sent to nodes in it.
    pub registry: Option<PathBuf>,
    /// A port that diallers try who know no other: when none of this machine's nodes has it,
    /// this one takes it as well, and sends everybody where they want to go. Needs a registry.
    pub well_known_port: Option<u16>,
    /// Lanes of a link at most, each way; 1 or 0: all frames go one after the other.
    pub lanes: u8,
    /// How much each link may hold.
    pub memory: Memory,
    /// How much may be under way, of all that this endpoint sends.
    pub congestion: Congestion,
    /// The keys of cookies, stretched so far; those of other endpoints here, or none.
    pub keys: CookieKeys,
}

impl EndpointConfig {
    fn settings(&self) -> Settings {
        let (congestion, memory) = (self.congestion, self.memory);
        Settings { congestion, memory, lanes: transport::lanes(self.lanes) }
    }
}

/// What went wrong with somebody who wanted to get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// This node refused it.
    Refused(Refusal),
    /// This node refused its certificate.
    Certificate(CertificateFault),
    /// It refused the certificate of this node.
    OwnCertificate(CertificateFault),
}

/// What an endpoint asks of the node it belongs to, and tells it.
pub trait Node: Send + Sync + 'static {
    /// The cookie shared with the node `name` (empty: one that is to be named).
    fn cookie(&self, name: &str) -> oneshot::Receiver<Cookie>;

    /// The stranger at `address` that claims to be `name` (empty: it said nothing yet) did not
    /// get in.
    fn refused(&self, address: SocketAddr, name: &str, why: Incident);

    /// There is something to know about this node's certificates.
    fn certificate(&self, news: CertificateNews);

    /// This node stands with the relay `url` in another way now.
    fn relay(&self, url: &str, state: &State);

    /// This relay stands with its peer `name`, a URL, in another way now.
    fn peer(&self, _name: &str, _state: &PeerState) {}

    /// The datagrams of the link with the node `name` take another path now: through the relay with
    /// this URL, or straight to this address.
    fn moved(&self, _name: &str, _relay: Option<&str>, _address: SocketAddr) {}

    /// So many datagrams came through relays, in the last seconds, that nobody who holds the cookie
    /// had sealed so.
    fn forged(&self, _count: u64) {}
}

/// Why no endpoint could be opened.
#[derive(Debug)]
pub enum BindError {
    /// Every port is in use.
    InUse,
    /// A file of certificates or keys cannot be used.
    File(FileError),
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
    config: EndpointConfig,
    name: Mutex<String>,
    boot_id: BootId,
    identity: Identity,
    tls: RwLock<Arc<Tls>>,
    /// The certificate of the relay here, if it has one of its own. Locked while `tls` is renewed.
    relay_certificate: Mutex<Option<KeyFiles>>,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) strangers: Mutex<Strangers>,
    pub(crate) well_known: WellKnown,
    mesh: RwLock<Option<Arc<Mesh>>>,
    relay: RwLock<Option<Arc<RelayService>>>,
    links: Mutex<HashMap<u64, Weak<Link>>>,
    began: Instant,
    closing: AtomicBool,
    pub(crate) closed: watch::Sender<bool>,
    /// Strangers asked to show that what is sent to their address reaches them.
    pub(crate) validated: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) failed: AtomicU64,
    handshakes: Arc<AtomicU64>,
}

impl Endpoint {
    /// Opens an endpoint. Must be called within a tokio runtime, which it uses from then on.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn open(config: &EndpointConfig, node: Arc<dyn Node>) -> Result<Endpoint, BindError> {
        let identity = Identity::of(config.home.as_deref()).map_err(failed)?;
        let boot_id = random().map_err(failed)?;
        let handshakes = Arc::default();
        let tls = Tls::load(&config.certificates, None, &identity, &handshakes)?;
        let socket = bind(config)?;
        let quinn =
            quinn_endpoint(&identity, &tls, &config.settings(), socket.clone()).map_err(failed)?;
        let shared = Arc::new(Shared {
            quinn,
            socket,
            reports: Arc::default(),
            config: config.clone(),
            name: Mutex::new(config.name.clone()),
            boot_id,
            identity,
            tls: RwLock::new(Arc::new(tls)),
            relay_certificate: Mutex::default(),
            node,
            strangers: Mutex::default(),
            well_known: WellKnown::default(),
            mesh: RwLock::default(),
            relay: RwLock::default(),
            links: Mutex::default(),
            began: Instant::now(),
            closing: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            validated: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            handshakes,
        });
        let (accepted, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(accept::run(shared.clone(), shared.quinn.clone(), Door::Own(accepted)));
        tokio::spawn(cookies::prepare(shared.clone(), shared.closed.subscribe()));
        tokio::spawn(paths::watch(Arc::downgrade(&shared)));
        let (socket, reports) = (shared.socket.clone(), shared.reports.clone());
        tokio::spawn(pass_reports(socket, reports, shared.closed.subscribe()));
        tokio::spawn(renewal::watch(Arc::downgrade(&shared)));
        let bound = shared.socket.bound().port();
        let well_known = config.well_known_port.filter(|port| *port != bound);
        if let (Some(port), Some(registry)) = (well_known, &config.registry) {
            tokio::spawn(stand_in::run(Arc::downgrade(&shared), port, registry.clone()));
        }
        Ok(Endpoint { shared, accepted: tokio::sync::Mutex::new(receiver) })
    }

    /// Where this node's key comes from.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// The node's id: SHA-256 of the public key it shows (SubjectPublicKeyInfo, DER).
    pub fn node_id(&self) -> [u8; 32] {
        self.shared.tls().credentials.own.node_id
    }

    /// Reads the certificates anew. Links that are open stay so; later ones, those that resume a
    /// session included, go by the new certificates.
    ///
    /// # Errors
    /// The file that cannot be used: the former certificates stay in use.
    pub fn renew_certificates(&self) -> Result<(), FileError> {
        self.shared.renew()
    }

    /// The address bound.
    pub fn address(&self) -> SocketAddr {
        self.shared.socket.bound()
    }

    /// Gives a node that started without a name the one it was told.
    pub fn rename(&self, name: String) {
        *self.shared.name.lock() = name;
    }

    /// Returns when the key of `cookie` is known, which takes a while the first time.
    pub async fn prepare(&self, cookie: &Cookie) {
        // What goes wrong goes wrong again, and is told, when the key is needed.
        let _ = self.shared.keys().link(cookie).await;
    }

    /// The next link that another node opened and chose; none when the endpoint is closed.
    pub async fn accept(&self) -> Option<Arc<Link>> {
        self.accepted.lock().await.recv().await
    }

    /// The established links.
    pub fn links(&self) -> Vec<LinkInfo> {
        let info = |link: &Arc<Link>| self.shared.link_info(link);
        self.shared.open_links().iter().filter_map(info).collect()
    }

    /// Joins a mesh: returns when a relay has taken this node, which from then on stays attached
    /// to all of them that can be reached; or, with `keep`, when the first attempts have failed or
    /// take long. A mesh joined before is left.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join_mesh(&self, config: MeshConfig, limit: Duration) -> Result<(), JoinError> {
        self.leave_mesh().await;
        let no_cookie = |_| JoinError::Key("the node gave no cookie".into());
        let cookie = self.shared.node.cookie("").await.map_err(no_cookie)?;
        let (keep, deadline) = (config.keep, tokio::time::Instant::now() + limit);
        let mesh = Mesh::enter(&self.shared, config, cookie).await?;
        let former = self.shared.mesh.write().replace(mesh.clone());
        if let Some(former) = former {
            // Somebody else joined meanwhile.
            former.leave();
        }
        for link in self.shared.open_links() {
            tokio::spawn(mesh.clone().attach_tunnel(link));
        }
        let joined = if keep {
            // Whoever goes on trying hears how the first attempts ended.
            let soon = tokio::time::Instant::now() + FIRST_ATTEMPTS;
            mesh.wait_until_held(Attempts::First, deadline.min(soon)).await
        } else {
            mesh.wait_until_held(Attempts::All, deadline).await
        };
        if joined.is_err() && !keep {
            self.leave_mesh().await;
        }
        joined
    }

    /// Leaves the mesh, if one is joined. Links through it close: what was sent is still
    /// delivered, within a bound.
    pub async fn leave_mesh(&self) {
        let mesh = self.shared.mesh.write().take();
        if let Some(mesh) = mesh {
            let _ = tokio::time::timeout(SHUT_DOWN, self.shared.close_relayed_links()).await;
            mesh.leave();
        }
    }

    /// The cookies in use from now on, this node's own first and then those of peers: under each
    /// of them the mesh finds this node.
    ///
    /// # Errors
    /// A key could not be made, or there are too many.
    pub async fn use_cookies(&self, cookies: &[Cookie]) -> Result<(), String> {
        match self.shared.mesh() {
            Some(mesh) => mesh.use_cookies(cookies).await,
            None => Ok(()),
        }
    }

    /// How this node stands with each relay; none: no mesh is joined.
    pub fn relays(&self) -> Option<Vec<RelayInfo>> {
        Some(self.shared.mesh()?.relays())
    }

    /// The nodes of the realm, as far as they share this node's cookie.
    pub async fn mesh_nodes(&self) -> Option<Vec<String>> {
        Some(self.shared.mesh()?.nodes().await)
    }

    /// What the tunnels through relays have carried.
    pub fn tunnels(&self) -> Vec<TunnelInfo> {
        self.shared.socket.tunnels.info()
    }

    /// Makes this endpoint a relay. One that it is already goes on with the nodes it has until
    /// these come back to the new one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn start_relay(&self, config: RelayConfig) -> Result<(), FileError> {
        let (certificate, peers) = (config.certificate.clone(), config.peers.clone());
        let relay = Arc::new(RelayService::new(config)?);
        self.shared.show_at_relay(certificate)?;
        relay.begin(&self.shared, &peers);
        self.shared.socket.answers_stun.store(true, Relaxed);
        if let Some(former) = self.shared.relay.write().replace(relay) {
            former.hang_up();
        }
        Ok(())
    }

    /// Stops being a relay: tells its nodes, and ends their attachments after `grace`.
    pub async fn stop_relay(&self, grace: Duration) {
        let Some(relay) = self.shared.relay() else {
            return;
        };
        relay.restarting();
        tokio::time::sleep(grace).await;
        let goes = |current: &mut Arc<RelayService>| Arc::ptr_eq(current, &relay);
        // Another one may have been started meanwhile, which then took the place of this one.
        if self.shared.relay.write().take_if(goes).is_some() {
            self.shared.socket.answers_stun.store(false, Relaxed);
            relay.hang_up();
        }
    }

    /// Counts of what the relay here did; none: it is no relay.
    pub fn relay_counters(&self) -> Option<Vec<(&'static str, u64)>> {
        Some(self.shared.relay()?.figures())
    }

    /// How the relay here stands with its peers; none: it is no relay.
    pub fn relay_peers(&self) -> Option<Vec<PeerInfo>> {
        Some(self.shared.relay()?.peers())
    }

    /// For measurements: links that come to be from now on do nothing to make up for the time that
    /// their path was dead.
    pub fn leave_paths_unrepaired(&self) {
        self.shared.socket.paths.leave_unrepaired();
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
            ("validated", &self.shared.validated),
            ("refused", &self.shared.refused),
            ("failed_hellos", &self.shared.failed),
            ("full_handshakes", &self.shared.handshakes),
        ];
        let port = counters.map(|(name, count)| (name, count.load(Relaxed)));
        port.into_iter().chain(self.shared.socket.tunnels.figures()).collect()
    }

    /// For measurements: closes the port without a word to anybody, as the system does when a VM is
    /// killed.
    pub fn vanish(&self) {
        self.shared.socket.close();
    }

    /// Closes every link and then the port, and returns when the port is free again. What was sent
    /// is still delivered, within a bound.
    pub async fn shut_down(&self) {
        self.shared.closing.store(true, Relaxed);
        self.shared.quinn.set_server_config(None);
        self.shared.well_known.close().await;
        self.shared.open_links().iter().for_each(|link| link.close());
        let _ = tokio::time::timeout(SHUT_DOWN, self.shared.links_closed()).await;
        self.leave_mesh().await;
        if let Some(relay) = self.shared.relay.write().take() {
            relay.hang_up();
        }
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
        let relayed = self.shared.relayed_links();
        if !relayed.is_empty() {
            // These goodbyes need the attachments, which therefore go last.
            relayed.iter().for_each(|link| link.hang_up());
            let _ = tokio::time::timeout(bound / 2, self.shared.relayed_sent()).await;
        }
        self.shared.quinn.close(VarInt::from_u32(0), b"halted");
        let _ = tokio::time::timeout(bound, self.shared.quinn.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.closing.store(true, Relaxed);
        self.shared.well_known.hang_up();
        if let Some(mesh) = self.shared.mesh.write().take() {
            mesh.leave();
        }
        self.shared.quinn.close(VarInt::from_u32(0), b"closed");
        self.shared.closed.send_replace(true);
    }
}

impl Shared {
    /// This node's name; empty as long as it has none.
    pub(crate) fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// The directory of this machine's registry.
    pub(crate) fn registry(&self) -> Option<&PathBuf> {
        self.config.registry.as_ref()
    }

    /// The interface bound; none: all.
    pub(crate) fn interface(&self) -> Option<IpAddr> {
        self.config.ip
    }

    /// The name under which the mesh knows this node. One that is yet to be named has one for this
    /// life, which nobody else asks for.
    pub(crate) fn mesh_name(&self) -> String {
        let name = self.name();
        if !name.is_empty() {
            return name;
        }
        hex(&self.boot_id)
    }

    /// The mesh that is joined.
    pub(crate) fn mesh(&self) -> Option<Arc<Mesh>> {
        self.mesh.read().clone()
    }

    /// The relay that this endpoint is.
    pub(crate) fn relay(&self) -> Option<Arc<RelayService>> {
        self.relay.read().clone()
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn handshakes(&self) -> &Arc<AtomicU64> {
        &self.handshakes
    }

    /// Whether a link goes through a relay.
    pub(crate) fn has_relayed_links(&self) -> bool {
        !self.relayed_links().is_empty()
    }

    fn relayed_links(&self) -> Vec<Arc<Link>> {
        let links = self.open_links().into_iter();
        links.filter(|link| link.is_relayed()).collect()
    }

    /// Closes the links that go through relays, and returns when their goodbyes are said.
    async fn close_relayed_links(&self) {
        let links = self.relayed_links();
        links.iter().for_each(|link| link.close());
        for link in links {
            link.closed().await;
        }
        self.relayed_sent().await;
    }

    /// Returns when what was given to connections through relays just now has left the
    /// attachments.
    async fn relayed_sent(&self) {
        // It gets there when quinn's driver of each has had its turn, which nothing tells.
        tokio::time::sleep(CLOSED_YET * 5).await;
        while self.socket.tunnels.has_unsent() {
            tokio::time::sleep(CLOSED_YET).await;
        }
    }

    /// Resolves when no connection is open but those that serve the mesh.
    async fn links_closed(&self) {
        let others = || {
            let attached = self.socket.tunnels.relays();
            let served = self.relay().map_or(0, |relay| relay.connections());
            self.quinn.open_connections().saturating_sub(attached + served)
        };
        while others() > 0 {
            tokio::time::sleep(CLOSED_YET).await;
        }
    }

    /// Whether it has begun to close.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// The time since the endpoint was opened.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The keys of cookies.
    pub(crate) fn keys(&self) -> &CookieKeys {
        &self.config.keys
    }

    /// What QUIC is told of all links here.
    pub(crate) fn settings(&self) -> Settings {
        self.config.settings()
    }

    /// Certificates and what was made of them.
    pub(crate) fn tls(&self) -> Arc<Tls> {
        self.tls.read().clone()
    }

    /// A QUIC endpoint of this node at another port.
    pub(crate) fn open_beside(&self, socket: Arc<MeshSocket>) -> io::Result<quinn::Endpoint> {
        quinn_endpoint(&self.identity, &self.tls(), &self.settings(), socket)
    }

    /// See [`Endpoint::renew_certificates`].
    pub(crate) fn renew(&self) -> Result<(), FileError> {
        let relay = self.relay_certificate.lock();
        self.read_certificates(relay.as_ref())
    }

    /// Shows this certificate to those who come to the relay here; none: the node's own.
    fn show_at_relay(&self, certificate: Option<KeyFiles>) -> Result<(), FileError> {
        let mut shown = self.relay_certificate.lock();
        if *shown != certificate {
            self.read_certificates(certificate.as_ref())?;
            *shown = certificate;
        }
        Ok(())
    }

    /// The files that certificates and keys come from.
    pub(crate) fn certificate_files(&self) -> Vec<PathBuf> {
        let CertificateFiles { authorities, own } = &self.config.certificates;
        let relay = self.relay_certificate.lock().clone();
        let pairs = own.iter().chain(&relay).flat_map(|(certificate, key)| [certificate, key]);
        authorities.iter().chain(pairs).cloned().collect()
    }

    fn read_certificates(&self, relay: Option<&KeyFiles>) -> Result<(), FileError> {
        let files = &self.config.certificates;
        let tls = Tls::load(files, relay, &self.identity, &self.handshakes).map_err(|failure| {
            let file = files.own.iter().map(|(certificate, _)| certificate.clone()).next();
            match failure {
                TlsFailure::File(error) => error,
                TlsFailure::Other(error) => {
                    FileError { file: file.unwrap_or_default(), why: error.to_string() }
                }
            }
        })?;
        let tls = Arc::new(tls);
        let former = std::mem::replace(&mut *self.tls.write(), tls.clone());
        if !self.is_closing() {
            let server = transport::server(&tls, &self.settings(), mtu::USUAL);
            self.quinn.set_server_config(Some(server.clone()));
            self.well_known.renew(server);
        }
        if former.relay_id() != tls.relay_id()
            && let Some(relay) = self.relay()
        {
            relay.has_another_key();
        }
        Ok(())
    }

    /// What this node, called `name`, brings to a hello on the connection with this `exporter`.
    pub(crate) fn local(
        &self,
        name: String,
        exporter: [u8; keys::LEN],
    ) -> Result<Local, getrandom::Error> {
        let nonce = random()?;
        let (boot_id, streams) = (self.boot_id, self.config.lanes.max(1));
        Ok(Local { name, boot_id, features: ATOM_CACHE, streams, nonce, exporter })
    }

    /// The key of the cookie shared with the node `name`.
    pub(crate) async fn key_shared_with(&self, name: &str) -> Result<Arc<CookieKey>, String> {
        let cookie = self.node.cookie(name).await.map_err(|_| "the node gave no cookie")?;
        self.keys().link(&cookie).await
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
    pub(crate) fn link(
        self: &Arc<Self>,
        connection: quinn::Connection,
        greeted: Greeted,
    ) -> Arc<Link> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Relaxed);
        let lanes = transport::lanes(greeted.peer.streams);
        let shares = self.config.memory.shares(lanes);
        transport::admit(&connection, lanes, &shares);
        let reports = self.reports.watch(connection.remote_address());
        let link = Link::new(id, connection, greeted, &shares, self.socket.clone(), reports);
        let mut links = self.links.lock();
        links.retain(|_, link| link.strong_count() > 0);
        links.insert(id, Arc::downgrade(&link));
        if let Some(mesh) = self.mesh() {
            tokio::spawn(mesh.attach_tunnel(link.clone()));
        }
        link
    }

    /// Finds out for every link whether what was sent arrives, and whether its peer is the one that it was. True when
    /// all links are idle.
    pub(crate) fn look_at_links(self: &Arc<Self>) -> bool {
        let mut all_idle = true;
        for link in self.open_links() {
            let seen = link.look();
            all_idle &= seen.idle;
            if seen.doubtful {
                tokio::spawn(restart::ask(self.clone(), link.clone()));
            }
            if link.has_moved()
                && let Some(LinkInfo { node, relay, address, .. }) = self.link_info(&link)
            {
                self.node.moved(&node, relay.as_deref(), address);
            }
        }
        all_idle
    }

    /// What is known of a link; none unless it is established and open.
    fn link_info(&self, link: &Link) -> Option<LinkInfo> {
        let relay = match link.path() {
            Path::Relay(relay) => self.mesh().and_then(|mesh| mesh.url_of(relay)),
            Path::Direct(_) => None,
        };
        Some(LinkInfo { relay, ..link.info()? })
    }

    fn open_links(&self) -> Vec<Arc<Link>> {
        self.links.lock().values().filter_map(Weak::upgrade).collect()
    }
}

impl From<TlsFailure> for BindError {
    fn from(failure: TlsFailure) -> BindError {
        match failure {
            TlsFailure::File(error) => BindError::File(error),
            TlsFailure::Other(error) => failed(error),
        }
    }
}

/// Bytes as people write them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(error: impl std::fmt::Display) -> BindError {
    BindError::Failed(error.to_string())
}

fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn bind(config: &EndpointConfig) -> Result<Arc<MeshSocket>, BindError> {
    for port in &config.ports {
        match MeshSocket::bind(config.ip, *port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(failed(error)),
            Ok(socket) => return Ok(socket),
        }
        // Perhaps a node only stands in for the port's owner there.
        let registry = config.registry.as_ref();
        if let Some(socket) = registry.and_then(|dir| stand_in::ask_back(dir, config.ip, *port)) {
            return Ok(socket);
        }
    }
    Err(BindError::InUse)
}

fn quinn_endpoint(
    identity: &Identity,
    tls: &Tls,
    settings: &Settings,
    socket: Arc<MeshSocket>,
) -> io::Result<quinn::Endpoint> {
    let (config, server) =
        (transport::endpoint(identity), transport::server(tls, settings, mtu::USUAL));
    quinn::Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(Courteous))
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
