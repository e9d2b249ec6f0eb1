//! The paths of links: carries out what `macula_core::path::select` decides.
//!
//! Every link is known here by its label, with the path its datagrams take at present. All of it is
//! on the path of every datagram: nothing here waits for anything.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use macula_core::path::control::{self, Control, ControlSeal, LinkId, PACKET};
use macula_core::path::select::{Action, Path, Selector};
use macula_core::path::table::LabelTable;
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, Side};
use tokio::time::sleep;

use crate::endpoint::Shared;
use crate::mesh::{ANY_LEG, is_label};
use crate::probe::Probe;
use crate::tls;

/// The label of the keying material of control packets (RFC 8446, 7.5).
const EXPORTER: &[u8] = b"EXPORTER-macula-path-v1";

/// How often links are looked at: part of the time that a dead path goes unnoticed.
const LOOK: Duration = Duration::from_millis(200);

/// The same when all of them are idle: a machine that does nothing is to be left asleep.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// How long nothing travels in one piece that some leg may not carry, once a link has probed its
/// path: the attachments on it may be new, and take some round trips to find out what they carry.
const NEW: Duration = Duration::from_secs(1);

/// All links that have a path.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    links: RwLock<HashMap<LinkId, Arc<LinkPaths>>>,
    labels: RwLock<HashMap<SocketAddr, Arc<LinkPaths>>>,
    /// Sources of links that are not their labels.
    sources: RwLock<LabelTable>,
    /// Links from now on do not repair what a dead path did: see [`Paths::leave_unrepaired`].
    unrepaired: AtomicBool,
}

/// The paths of one link.
#[derive(Debug)]
pub(crate) struct LinkPaths {
    link: LinkId,
    label: SocketAddr,
    began: Instant,
    current: RwLock<Path>,
    /// The label of the tunnel to the peer.
    tunnel: RwLock<Option<SocketAddr>>,
    deciding: Mutex<Deciding>,
    probe: Probe,
    /// Until when nothing long travels in one piece, in ms since the link began.
    new_until: AtomicU64,
    unrepaired: bool,
}

#[derive(Debug)]
struct Deciding {
    selector: Selector,
    seal: ControlSeal,
}

/// Something to send.
#[derive(Debug)]
pub(crate) enum Output {
    /// To find out about this path.
    Control(Path, [u8; PACKET]),
    /// What QUIC takes for under way, and is lost, on the path in use.
    Probe,
}

impl Paths {
    /// The link that quinn knows by `label`.
    pub(crate) fn of(&self, label: &SocketAddr) -> Option<Arc<LinkPaths>> {
        self.labels.read().get(label).cloned()
    }

    /// The link that a control packet is about.
    pub(crate) fn of_control(&self, packet: &[u8]) -> Option<Arc<LinkPaths>> {
        self.links.read().get(&control::link_of(packet)?).cloned()
    }

    /// Under which label quinn knows what came from `source`.
    pub(crate) fn label(&self, source: SocketAddr) -> SocketAddr {
        self.sources.read().label(source)
    }

    /// The same for many sources. Of those that are not their own label, the address here is
    /// cleared as well: quinn keeps the first one for good, which would be wrong on another path.
    pub(crate) fn relabel<'a>(
        &self,
        sources: impl Iterator<Item = (&'a mut SocketAddr, &'a mut Option<IpAddr>)>,
    ) {
        let table = self.sources.read();
        if table.is_empty() {
            return;
        }
        for (source, here) in sources {
            let label = table.label(*source);
            if label != *source {
                (*source, *here) = (label, None);
            }
        }
    }

    /// Takes what comes from `source` as coming from the link's peer. Sources that are no paths of
    /// the link any more are forgotten.
    pub(crate) fn alias(&self, source: SocketAddr, link: &LinkPaths) {
        if self.label(source) == link.label {
            return;
        }
        let (paths, tunnel) = (link.paths(), link.tunnel());
        let mut sources = self.sources.write();
        sources.retain(link.label, |source| {
            paths.contains(&Path::Direct(*source)) || tunnel == Some(*source)
        });
        sources.alias(source, link.label);
    }

    /// All links.
    pub(crate) fn all(&self) -> Vec<Arc<LinkPaths>> {
        self.links.read().values().cloned().collect()
    }

    /// A link on this connection, whose datagrams take `path` at first. None: it has no keys.
    pub(crate) fn insert(&self, connection: &Connection, path: Path) -> Option<Arc<LinkPaths>> {
        let exporter = tls::exporter(connection, EXPORTER)?;
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).ok()?;
        let dialled = connection.side() == Side::Client;
        let (seal, label) = (ControlSeal::new(&exporter, dialled)?, connection.remote_address());
        let link = Arc::new(LinkPaths {
            link: seal.link(),
            label,
            began: Instant::now(),
            current: RwLock::new(path),
            tunnel: RwLock::new(is_label(&label).then_some(label)),
            deciding: Mutex::new(Deciding {
                selector: Selector::new(dialled, path, u64::from_ne_bytes(seed)),
                seal,
            }),
            probe: Probe::new(connection.clone()),
            new_until: AtomicU64::new(0),
            unrepaired: self.unrepaired.load(Relaxed),
        });
        self.links.write().insert(link.link, link.clone());
        self.labels.write().insert(label, link.clone());
        Some(link)
    }

    /// Links that come to be from now on leave it to QUIC to find out that another path is there, and
    /// keep what their congestion control knows of the former one. To measure what that costs.
    pub(crate) fn leave_unrepaired(&self) {
        self.unrepaired.store(true, Relaxed);
    }

    /// Leaves the links at `label` there: it is also that of a connection that must not go through
    /// another one.
    pub(crate) fn pin(&self, label: &SocketAddr) {
        if let Some(link) = self.of(label) {
            link.pin();
        }
    }

    /// A link has ended: what comes from its peer is another link's now, if there is one. Its own
    /// last words still go their way.
    pub(crate) fn release(&self, link: &LinkPaths) {
        self.links.write().remove(&link.link);
        self.sources.write().retain(link.label, |_| false);
        if let Some(tunnel) = link.tunnel() {
            let of_tunnel = |other: &&Arc<LinkPaths>| other.tunnel() == Some(tunnel);
            if let Some(other) = self.all().iter().find(of_tunnel) {
                self.alias(tunnel, other);
            }
        }
    }

    /// Forgets all links. Each keeps its connection, and that keeps the port.
    pub(crate) fn clear(&self) {
        self.links.write().clear();
        self.labels.write().clear();
    }

    /// Forgets a link.
    pub(crate) fn remove(&self, link: &LinkPaths) {
        self.release(link);
        let mut labels = self.labels.write();
        // Another link may have the label by now.
        if labels.get(&link.label).is_some_and(|known| known.link == link.link) {
            labels.remove(&link.label);
        }
    }
}

impl LinkPaths {
    /// Has the link take no other path than straight to its label.
    pub(crate) fn pin(&self) {
        let path = Path::Direct(self.label);
        self.deciding.lock().selector.pin(path);
        *self.current.write() = path;
    }

    /// What quinn knows the peer by.
    pub(crate) fn label(&self) -> SocketAddr {
        self.label
    }

    /// The path the link's datagrams take.
    pub(crate) fn current(&self) -> Path {
        *self.current.read()
    }

    fn paths(&self) -> Vec<Path> {
        self.deciding.lock().selector.paths().collect()
    }

    /// The label of the tunnel to the peer, if there is one.
    pub(crate) fn tunnel(&self) -> Option<SocketAddr> {
        *self.tunnel.read()
    }

    /// The tunnel to the peer, for a link that was not dialled through it.
    pub(crate) fn set_tunnel(&self, tunnel: SocketAddr) {
        *self.tunnel.write() = Some(tunnel);
    }

    /// Has QUIC send again what is lost.
    pub(crate) fn probe(&self) {
        self.new_until.store(self.age() + NEW.as_millis() as u64, Relaxed);
        self.probe.send();
    }

    /// The longest datagram of the link that may travel in one piece.
    pub(crate) fn longest(&self) -> usize {
        if self.age() < self.new_until.load(Relaxed) { ANY_LEG } else { usize::MAX }
    }

    fn age(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// There is a path to the peer.
    pub(crate) fn offer(&self, path: Path) -> Vec<Output> {
        self.decide(|selector, now| selector.offer(now, path))
    }

    /// A path is there no more.
    pub(crate) fn withdraw(&self, path: Path) -> Vec<Output> {
        self.decide(|selector, now| selector.withdraw(now, path))
    }

    /// Looks at the link's traffic: see [`Selector::look`].
    pub(crate) fn look(&self, sent: u64, acked: u64, rtt: Duration) -> Vec<Output> {
        self.decide(|selector, now| selector.look(now, sent, acked, rtt))
    }

    /// Whether the link has sent nothing lately.
    pub(crate) fn is_idle(&self) -> bool {
        self.deciding.lock().selector.is_idle()
    }

    /// A control packet came on `path`. None: it is not genuine.
    pub(crate) fn control(&self, path: Path, packet: &[u8]) -> Option<Vec<Output>> {
        let control = self.deciding.lock().seal.open(packet)?;
        Some(self.decide(|selector, now| match control {
            Control::Ping { token, in_use } => selector.ping(now, path, token, in_use),
            Control::Pong { token } => selector.pong(now, path, token),
        }))
    }

    fn decide(&self, decide: impl FnOnce(&mut Selector, Duration) -> Vec<Action>) -> Vec<Output> {
        let mut deciding = self.deciding.lock();
        let actions = decide(&mut deciding.selector, self.began.elapsed());
        let mut outputs = Vec::new();
        for action in actions {
            match action {
                Action::Ping(path, token, in_use) => {
                    let sealed = deciding.seal.seal(Control::Ping { token, in_use });
                    outputs.extend(sealed.map(|packet| Output::Control(path, packet)));
                }
                Action::Pong(path, token) => {
                    let sealed = deciding.seal.seal(Control::Pong { token });
                    outputs.extend(sealed.map(|packet| Output::Control(path, packet)));
                }
                Action::Use(path) => *self.current.write() = path,
                Action::Probe if self.unrepaired => {}
                Action::Probe => outputs.push(Output::Probe),
            }
        }
        outputs
    }
}

/// Looks at the links of an endpoint, again and again, until it is closed.
pub(crate) async fn watch(shared: Weak<Shared>) {
    let mut pause = LOOK;
    loop {
        sleep(pause).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        pause = if shared.look_at_links() { IDLE_LOOK } else { LOOK };
    }
}
