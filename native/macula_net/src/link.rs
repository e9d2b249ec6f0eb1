//! A link: one QUIC connection to another node, carrying one distribution connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use macula_core::dist::brake::Taken;
use macula_core::dist::frame::Piece;
use macula_core::dist::lanes::Flow;
use macula_core::dist::memory::Shares;
use macula_core::dist::signal::Sender;
use macula_core::hello::{ATOM_CACHE, Peer};
use macula_core::path::liveness::{Liveness, Verdict};
use macula_core::path::select::Path;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, VarInt};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::greet::Greeted;
use crate::intake::Intake;
use crate::mesh::is_label;
use crate::outlet::{self, Batch, Outlet, Stream};
use crate::paths::LinkPaths;
use crate::reader::{self, Command, Inbox, PacketWaiter};
use crate::restart::Doubt;
use crate::socket::{MeshSocket, from_label, to_label};
use crate::unreachable::Watch;
use crate::{tls, transport};

/// How long what was sent may take to be acknowledged when a link closes. A peer that is gone must
/// not keep a closed link for longer.
const DRAIN: Duration = Duration::from_secs(2);

/// How often a doubtful peer is judged.
const JUDGE: Duration = Duration::from_millis(50);

/// How often a peer that was asked is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Why a link is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// This node closed it.
    Local,
    /// The peer closed it.
    Peer,
    /// The peer's port is closed and nothing comes from it any more.
    Unreachable,
    /// The peer started again; this link was to its former life.
    Replaced,
    /// The connection failed.
    Lost(String),
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Closed {
        match error {
            ConnectionError::ApplicationClosed(_) | ConnectionError::Reset => Closed::Peer,
            ConnectionError::LocallyClosed => Closed::Local,
            other => Closed::Lost(other.to_string()),
        }
    }
}

/// Who is told of a link's changes.
pub trait Owner: Send + 'static {
    /// A paused producer may go on.
    fn writable(&self);

    /// These processes may go on, which were to be suspended.
    fn resume(&self, senders: Vec<Sender>);

    /// The link is closed. Not called once frames flow: then the inbox hears of it, after them.
    fn closed(&self, reason: &Closed);
}

/// Whether the producer may go on after a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendState {
    /// Yes.
    Ready,
    /// Only after [`Owner::writable`].
    Wait,
    /// The link is closed; nothing was taken.
    Closed,
}

/// What is known of a link.
#[derive(Clone, Debug)]
pub struct LinkInfo {
    /// The node at the other end.
    pub node: String,
    /// Where its datagrams go: to the node, or to the relay.
    pub address: SocketAddr,
    /// The relay they go through; none: straight to the node.
    pub relay: Option<String>,
    /// The TLS cipher suite.
    pub suite: &'static str,
    /// Round-trip time, as QUIC estimates it.
    pub rtt: Duration,
    /// Bytes of the largest datagrams that QUIC has found to arrive.
    pub mtu: u16,
    /// Stream bytes received.
    pub bytes_in: u64,
    /// Stream bytes sent.
    pub bytes_out: u64,
    /// Frames received, without ticks.
    pub msgs_in: u64,
    /// Frames sent, ticks included.
    pub msgs_out: u64,
    /// Bytes that wait to be sent.
    pub queue: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_in: AtomicU64,
    pub(crate) msgs_in: AtomicU64,
    /// Receipts that show the peer's emulator to be alive.
    pub(crate) life_in: AtomicU64,
    pub(crate) msgs_out: AtomicU64,
}

/// How far a link has come to its end.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    /// It is to close or has closed.
    ended: bool,
    /// What it received is of no use any more.
    abandoned: bool,
}

/// What a link's tasks share with it.
pub(crate) struct LinkState {
    connection: Connection,
    pub(crate) outlet: Outlet,
    pub(crate) intake: Intake,
    pub(crate) counters: Counters,
    reason: OnceLock<Closed>,
    ending: watch::Sender<Ending>,
    owner: Mutex<Option<Box<dyn Owner>>>,
    established: OnceLock<String>,
}

/// What a look at a link has found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Nothing was sent lately.
    pub(crate) idle: bool,
    /// The peer, spoken to, says so little that it may have started again.
    pub(crate) doubtful: bool,
}

/// One link. Dropping it closes it.
pub struct Link {
    id: u64,
    peer: Peer,
    socket: Arc<MeshSocket>,
    paths: Option<Arc<LinkPaths>>,
    /// The path it was last known to take.
    known: Mutex<Path>,
    doubt: Doubt,
    state: Arc<LinkState>,
    commands: mpsc::UnboundedSender<Command>,
}

impl LinkState {
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Has QUIC take so many bytes more ahead than it did lately while something is written.
    pub(crate) fn with_reserve<T>(&self, bytes: u64, write: impl FnOnce() -> T) -> T {
        self.outlet.ahead.with_reserve(self.connection(), bytes, write)
    }

    /// So many bytes of a flow were written to its lane, or to the control stream.
    pub(crate) fn written(&self, flow: Option<Flow>, bytes: usize) {
        let Taken { resume, go_on } = self.outlet.written(flow, bytes);
        if !resume.is_empty() {
            self.tell_owner(|owner| owner.resume(resume.clone()));
        }
        if go_on {
            self.tell_owner(|owner| owner.writable());
        }
    }

    /// Resolves when the link is to close or has closed.
    async fn closing(&self) {
        // Fails only when the sender is dropped, which `self` owns.
        let _ = self.ending.subscribe().wait_for(|ending| ending.ended).await;
    }

    /// Resolves when nobody wants to read on. The peer's goodbye is no such end: what it sent
    /// before may still wait to be read, and the stream ends by itself after it.
    pub(crate) async fn abandoned(&self) {
        let _ = self.ending.subscribe().wait_for(|ending| ending.abandoned).await;
    }

    /// Records the link's end and returns the reason given first.
    pub(crate) fn ended(&self, reason: Closed) -> Closed {
        let ours = reason != Closed::Peer;
        let reason = self.reason.get_or_init(|| reason).clone();
        // In OTP's handshake the last packet explains the goodbye (nok, not_allowed): it may be
        // asked for after the controller has let go of the link.
        let explained = reason == Closed::Peer && self.established.get().is_none();
        let abandoned = ours && !explained;
        self.outlet.close();
        self.ending.send_modify(|ending| {
            ending.ended = true;
            ending.abandoned |= abandoned;
        });
        reason
    }

    /// Sends something that a living peer acknowledges. In OTP's handshake, where a tick would be
    /// no packet, quinn repeats what is unanswered, and net_kernel's timer decides.
    fn ask_for_life(&self) {
        if self.established.get().is_some() {
            self.outlet.tick();
        }
    }

    pub(crate) fn tell_owner(&self, tell: impl Fn(&dyn Owner)) {
        if let Some(owner) = &*self.owner.lock() {
            tell(&**owner);
        }
    }
}

impl Link {
    /// Takes over a connection whose hello is done; it may hold so much.
    pub(crate) fn new(
        id: u64,
        connection: Connection,
        greeted: Greeted,
        shares: &Shares,
        socket: Arc<MeshSocket>,
        reports: Watch,
    ) -> Arc<Link> {
        let Greeted { send, receive, peer } = greeted;
        let (commands, requests) = mpsc::unbounded_channel();
        let lanes = transport::lanes(peer.streams);
        let state = Arc::new(LinkState {
            connection,
            outlet: Outlet::new(lanes, shares),
            intake: Intake::new(lanes, shares),
            counters: Counters::default(),
            reason: OnceLock::new(),
            ending: watch::Sender::default(),
            owner: Mutex::new(None),
            established: OnceLock::new(),
        });
        tokio::spawn(reader::run(state.clone(), receive, requests));
        tokio::spawn(write(state.clone(), send));
        tokio::spawn(supervise(state.clone(), reports));
        let paths = socket.enter(&state.connection);
        if let Some(paths) = &paths {
            tokio::spawn(leave(state.clone(), socket.clone(), paths.clone()));
        }
        let label = state.connection.remote_address();
        let known = Mutex::new(paths.as_ref().map_or(Path::Direct(label), |paths| paths.current()));
        let doubt = Doubt::new();
        Arc::new(Link { id, peer, socket, paths, known, doubt, state, commands })
    }

    /// A number no other link of this VM has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What the hello told of the node at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Where the peer's datagrams go.
    pub fn address(&self) -> SocketAddr {
        let address = match self.path() {
            Path::Direct(address) => address,
            Path::Relay(relay) => self.socket.tunnels.relay_address(relay).unwrap_or(self.label()),
        };
        from_label(address)
    }

    /// How the peer's datagrams go.
    pub(crate) fn path(&self) -> Path {
        match (&self.paths, self.label()) {
            (Some(paths), _) => paths.current(),
            (None, label) if is_label(&label) => {
                Path::Relay(self.socket.tunnels.relay_of(&label).unwrap_or(usize::MAX))
            }
            (None, label) => Path::Direct(label),
        }
    }

    /// Whether relays are needed for it.
    pub(crate) fn is_relayed(&self) -> bool {
        is_label(&self.label()) || matches!(self.path(), Path::Relay(_))
    }

    /// Where to dial the peer again, in the same way.
    pub(crate) fn dialled(&self) -> SocketAddr {
        let tunnel = self.paths.as_ref().and_then(|paths| paths.tunnel());
        match self.path() {
            Path::Direct(address) => address,
            Path::Relay(_) => tunnel.unwrap_or(self.label()),
        }
    }

    /// The peer may be at this address as well.
    pub fn offer(&self, address: SocketAddr) {
        if let Some(paths) = &self.paths {
            self.socket.carry_out(paths, paths.offer(Path::Direct(to_label(address))));
        }
    }

    /// The peer can be reached through this tunnel as well.
    pub(crate) fn attach_tunnel(&self, tunnel: SocketAddr) {
        if let Some(paths) = &self.paths {
            self.socket.attach_tunnel(paths, tunnel);
        }
    }

    /// Whether it takes another path than when this was last asked.
    pub(crate) fn has_moved(&self) -> bool {
        let (Some(paths), mut known) = (&self.paths, self.known.lock()) else {
            return false;
        };
        let path = paths.current();
        std::mem::replace(&mut *known, path) != path
    }

    /// Finds out whether what was sent arrives, and takes another path if it does not.
    pub(crate) fn look(&self) -> Seen {
        if self.state.reason.get().is_some() {
            return Seen { idle: true, doubtful: false };
        }
        let stats = self.state.connection.stats();
        let sent = transport::asking(&stats);
        // A peer without a name could not be asked.
        let named = !self.peer.name.is_empty();
        let doubtful = named && self.doubt.look(sent, stats.udp_rx.datagrams);
        let Some(paths) = &self.paths else {
            return Seen { idle: true, doubtful };
        };
        self.socket.carry_out(paths, paths.look(sent, stats.frame_rx.acks, stats.path.rtt));
        Seen { idle: paths.is_idle(), doubtful }
    }

    /// What quinn knows the peer by.
    pub(crate) fn label(&self) -> SocketAddr {
        self.state.connection.remote_address()
    }

    /// Sets who hears of the link; at once, when it is closed already.
    pub fn set_owner(&self, owner: Box<dyn Owner>) {
        let mut slot = self.state.owner.lock();
        if let Some(reason) = self.state.reason.get() {
            owner.closed(reason);
        }
        *slot = Some(owner);
    }

    /// Sends bytes as they are, before frames flow.
    pub fn send_packet(&self, packet: Bytes) -> SendState {
        self.send([packet], 1)
    }

    /// Asks for the next handshake packet.
    pub fn receive_packet(&self, waiter: Box<dyn PacketWaiter>) {
        self.command(Command::Packet(waiter));
    }

    /// The node `name` is up: from now on `inbox` hears of frames.
    pub fn establish(&self, name: String, inbox: impl Inbox) {
        if self.state.established.set(name).is_ok() {
            self.command(Command::Start(Box::new(inbox)));
        }
    }

    /// Sends `count` whole frames, headers included, on a link without lanes.
    pub fn send(&self, frames: impl IntoIterator<Item = Bytes>, count: u64) -> SendState {
        self.state.counters.msgs_out.fetch_add(count, Relaxed);
        self.state.outlet.push(frames)
    }

    /// The frames that go next, to be placed and sent.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.state)
    }

    /// Lanes beside the control stream, each way; none: all goes there.
    pub fn lanes(&self) -> Option<u16> {
        transport::lanes(self.peer.streams)
    }

    /// Whether the emulators may use their atom cache: on one stream, or with a peer that knows how to on several.
    pub fn has_atom_cache(&self) -> bool {
        self.lanes().is_none() || self.peer.features & ATOM_CACHE != 0
    }

    /// Sends a tick, ahead of what waits. False when the link is closed.
    pub fn tick(&self) -> bool {
        self.state.counters.msgs_out.fetch_add(1, Relaxed);
        self.state.outlet.tick()
    }

    /// Takes at most about `most` bytes of what was received, piece by piece; true when there are
    /// more. Frames of different streams may be begun at the same time, so each piece comes with its
    /// stream. One caller at a time.
    pub fn receive(&self, most: usize, mut piece: impl FnMut(Stream, Piece<'_>)) -> bool {
        let mut frames = 0;
        let more = self.state.intake.take(most, |stream, next| {
            frames += u64::from(next == Piece::End);
            piece(stream, next);
        });
        self.state.counters.msgs_in.fetch_add(frames, Relaxed);
        if let Some(violation) = self.state.intake.violation() {
            self.state.ended(Closed::Lost(violation.to_string()));
        }
        more
    }

    /// Signs of life received, frames and ticks sent, bytes that wait; none when closed.
    pub fn stat(&self) -> Option<(u64, u64, usize)> {
        if self.state.reason.get().is_some() {
            return None;
        }
        let counters = &self.state.counters;
        let (life, sent) = (counters.life_in.load(Relaxed), counters.msgs_out.load(Relaxed));
        Some((life, sent, self.state.outlet.waiting()))
    }

    /// Closes the link once what was sent is acknowledged, or a bound has passed.
    pub fn close(&self) {
        self.state.ended(Closed::Local);
    }

    /// Closes the link without waiting for anything, for the end of the VM.
    pub(crate) fn hang_up(&self) {
        self.state.connection.close(VarInt::from_u32(0), b"halted");
    }

    /// Returns when the link's connection is closed.
    pub(crate) async fn closed(&self) {
        self.state.connection.closed().await;
    }

    /// Whether anything comes from the peer within `limit` of being asked.
    pub(crate) async fn answers(&self, limit: Duration) -> bool {
        let received = || self.state.connection.stats().udp_rx.datagrams;
        let before = received();
        self.tick();
        let asked = Instant::now();
        while asked.elapsed() < limit {
            tokio::time::sleep(LOOK).await;
            if received() != before {
                return true;
            }
        }
        false
    }

    /// Ends the link: its peer has started again.
    pub(crate) fn replace(&self) {
        self.state.ended(Closed::Replaced);
    }

    /// What is known of the link; none unless it is established and open.
    pub fn info(&self) -> Option<LinkInfo> {
        let node = self.state.established.get()?.clone();
        if self.state.reason.get().is_some() {
            return None;
        }
        let (counters, path) = (&self.state.counters, self.state.connection.stats().path);
        Some(LinkInfo {
            node,
            address: self.address(),
            relay: None,
            suite: tls::SUITE,
            rtt: path.rtt,
            mtu: path.current_mtu,
            bytes_in: counters.bytes_in.load(Relaxed),
            bytes_out: self.state.outlet.bytes_out.load(Relaxed),
            msgs_in: counters.msgs_in.load(Relaxed),
            msgs_out: counters.msgs_out.load(Relaxed),
            queue: self.state.outlet.waiting(),
        })
    }

    /// A command that comes too late answers its asker: the reader is gone only after the end.
    fn command(&self, command: Command) {
        if let Err(mpsc::error::SendError(Command::Packet(waiter))) = self.commands.send(command) {
            waiter.closed(&self.state.ended(Closed::Local));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// Writes what is queued; when the link closes, lets the peer acknowledge it all, then closes the
/// connection.
async fn write(state: Arc<LinkState>, mut stream: quinn::SendStream) {
    outlet::write(&state, &mut stream, DRAIN).await;
    state.connection.close(VarInt::from_u32(0), b"closed");
}

/// Forgets the paths of a link once its connection is closed, and its last words are said.
async fn leave(state: Arc<LinkState>, socket: Arc<MeshSocket>, paths: Arc<LinkPaths>) {
    // The peer's probes, which nobody else reads; it ends with the connection.
    while state.connection.read_datagram().await.is_ok() {}
    socket.paths.release(&paths);
    sleep(DRAIN).await;
    socket.paths.remove(&paths);
}

/// Watches a link until it ends, and tells its owner when nobody reads frames yet.
async fn supervise(state: Arc<LinkState>, reports: Watch) {
    let reason = tokio::select! {
        error = state.connection.closed() => error.into(),
        () = gone(&state, &reports) => Closed::Unreachable,
        () = state.closing() => Closed::Local,
    };
    let reason = state.ended(reason);
    if reason == Closed::Unreachable {
        // Nobody will acknowledge anything: no drain.
        state.connection.close(VarInt::from_u32(0), b"unreachable");
    }
    if state.established.get().is_none() {
        state.tell_owner(|owner| owner.closed(&reason));
    }
}

/// Resolves when the peer is gone: see `macula_core::path::liveness`.
async fn gone(state: &LinkState, reports: &Watch) {
    let began = Instant::now();
    let received = || state.connection.stats().udp_rx.datagrams;
    let mut liveness = Liveness::default();
    loop {
        reports.next().await;
        liveness.unreachable(began.elapsed(), received());
        loop {
            match liveness.verdict(began.elapsed(), received(), state.connection.rtt()) {
                Verdict::Alive => break,
                Verdict::Gone => return,
                Verdict::Doubtful => state.ask_for_life(),
            }
            tokio::select! {
                () = reports.next() => liveness.unreachable(began.elapsed(), received()),
                () = tokio::time::sleep(JUDGE) => {}
            }
        }
    }
}
