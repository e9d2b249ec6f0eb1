//! The paths of links: carries out what `macula_core::path::select` decides.
//!
//! Every link is known here by its label, with the path its datagrams take at present and the last
//! of them. All of it is on the path of every datagram: nothing here waits for anything.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use macula_core::path::control::{self, Control, ControlSeal, LinkId, PACKET};
use macula_core::path::select::{Action, Path, Selector};
use macula_core::path::table::LabelTable;
use parking_lot::{Mutex, RwLock};
use quinn::udp::Transmit;
use quinn::{Connection, Side};
use tokio::time::sleep;

use crate::congestion::Epoch;
use crate::endpoint::Shared;
use crate::mesh::is_label;
use crate::tls;

/// The label of the keying material of control packets (RFC 8446, 7.5).
const EXPORTER: &[u8] = b"EXPORTER-macula-path-v1";

/// How often links are looked at: part of the time that a dead path goes unnoticed.
const LOOK: Duration = Duration::from_millis(200);

/// The same when all of them are idle: a machine that does nothing is to be left asleep.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Datagrams of a link that are kept to be repeated: when the path they took is dead, these are what
/// QUIC sent last to find out, two of them each time (RFC 9002, 6.2.4).
const RECENT: usize = 4;

/// The bit that tells a handshake's packets from those of an established connection (RFC 9000, 17).
const LONG_HEADER: u8 = 0x80;

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
    recent: Mutex<Recent>,
    epoch: Epoch,
    unrepaired: bool,
}

#[derive(Debug)]
struct Deciding {
    selector: Selector,
    seal: ControlSeal,
}

/// The last datagrams sent to a label: the link's own, and those of connections beside it that ask
/// whether the peer has started anew, the latest first.
#[derive(Debug, Default)]
struct Recent(Vec<Sent>);

/// The last datagrams of one connection, of each batch its last one.
#[derive(Debug)]
struct Sent {
    connection: ConnectionId,
    datagrams: [Vec<u8>; RECENT],
    next: usize,
}

/// What the peer calls a connection: of this length, as every endpoint of ours chooses it.
type ConnectionId = [u8; 8];

/// Connections whose datagrams are kept.
const CONNECTIONS: usize = 3;

/// Something to send.
#[derive(Debug)]
pub(crate) enum Output {
    /// To find out about this path.
    Control(Path, [u8; PACKET]),
    /// Once more, on the path in use.
    Again(Vec<u8>),
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
            recent: Mutex::default(),
            epoch: Epoch::of(connection),
            unrepaired: self.unrepaired.load(Relaxed),
        });
        self.links.write().insert(link.link, link.clone());
        self.labels.write().insert(label, link.clone());
        Some(link)
    }

    /// Links that come to be from now on repeat no datagrams, and keep what their congestion control
    /// knows, when they take another path. To measure what these are worth.
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

    /// Remembers what is sent.
    pub(crate) fn note(&self, transmit: &Transmit<'_>) {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let Some(last) = transmit.contents.chunks(size).next_back() else {
            return;
        };
        self.recent.lock().note(last);
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
                Action::Repeat if self.unrepaired => {}
                Action::Repeat => {
                    self.epoch.advance();
                    outputs.extend(self.recent().into_iter().map(Output::Again));
                }
            }
        }
        outputs
    }

    /// The last datagrams, oldest first.
    fn recent(&self) -> Vec<Vec<u8>> {
        let recent = self.recent.lock();
        recent.0.iter().flat_map(Sent::in_order).cloned().collect()
    }
}

impl Recent {
    fn note(&mut self, datagram: &[u8]) {
        let Some((first, rest)) = datagram.split_first() else {
            return;
        };
        // What belongs to a handshake is repeated by who makes it.
        let Some(connection) = rest.first_chunk().filter(|_| first & LONG_HEADER == 0) else {
            return;
        };
        let known = self.0.iter().position(|sent| sent.connection == *connection);
        match known {
            Some(0) => {}
            Some(at) => self.0[..=at].rotate_right(1),
            None => {
                self.0.truncate(CONNECTIONS - 1);
                self.0.insert(0, Sent::new(*connection));
            }
        }
        if let Some(sent) = self.0.first_mut() {
            let slot = &mut sent.datagrams[sent.next];
            sent.next = (sent.next + 1) % RECENT;
            slot.clear();
            slot.extend_from_slice(datagram);
        }
    }
}

impl Sent {
    fn new(connection: ConnectionId) -> Sent {
        Sent { connection, datagrams: Default::default(), next: 0 }
    }

    /// Oldest first.
    fn in_order(&self) -> impl Iterator<Item = &Vec<u8>> {
        let (newer, older) = self.datagrams.split_at(self.next);
        older.iter().chain(newer).filter(|datagram| !datagram.is_empty())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(connection: u8, number: u8) -> Vec<u8> {
        [&[0x40][..], &[connection; 8], &[number]].concat()
    }

    fn numbers(recent: &Recent) -> Vec<u8> {
        recent.0.iter().flat_map(Sent::in_order).map(|datagram| datagram[9]).collect()
    }

    #[test]
    fn the_last_datagrams_of_each_connection_are_kept() {
        let mut recent = Recent::default();
        (1..=6).for_each(|number| recent.note(&datagram(1, number)));
        assert_eq!(numbers(&recent), [3, 4, 5, 6]);
        recent.note(&[[0xc0].as_slice(), &[9; 30]].concat());
        recent.note(&datagram(2, 7));
        recent.note(&datagram(3, 8));
        recent.note(&datagram(1, 9));
        assert_eq!(numbers(&recent), [4, 5, 6, 9, 8, 7]);
        recent.note(&datagram(4, 10));
        assert_eq!(numbers(&recent), [10, 4, 5, 6, 9, 8]);
    }
}
