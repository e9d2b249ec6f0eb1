//! A relay: nodes attach to it and reach each other through it by tag, and through its peers. It
//! forwards what it cannot read; `macula_core::relay` decides where.

mod forward;
mod leg;
mod peer;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use macula_core::keys::LEN;
use macula_core::relay::between::Between;
use macula_core::relay::limits::{Bucket, Limits};
use macula_core::relay::message::{MAX_MESSAGE, Refusal, ToNode, ToRelay};
use macula_core::relay::pressure::Rates;
use macula_core::relay::table::{self, Access, Action, Clock, Id, Relay, Stranger, Token};
use macula_core::secret::Secret;
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::certificate::{Authorities, FileError, KeyFiles};
use crate::endpoint::Shared;
use crate::framing;
use crate::mesh::RelayUrl;
use crate::socket::from_label;
use crate::{tls, transport};
use leg::Leg;

pub use peer::{PeerInfo, PeerState};

/// The label of the keying material that claims are bound to (RFC 8446, 7.5).
pub(crate) const EXPORTER: &[u8] = b"EXPORTER-macula-relay-v1";

/// The close code of a node that is no relay.
pub(crate) const NOT_A_RELAY: VarInt = VarInt::from_u32(0x200);

/// Messages that wait for a node: a whole directory and some. A node that takes its messages more
/// slowly than they come is not served.
const WAITING: usize = 8 * 1024;

/// How long a node may take its last message, or a first one may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Messages a second that are read from a node, and as many at once: a node that comes back claims
/// all its tags, and then has little to say. Each may cost the check of a signature.
const MESSAGES: u64 = 200;

/// How often to look whether a node or a peer may speak again.
const AGAIN: Duration = Duration::from_millis(10);

/// How often it is looked what has ended.
const EXPIRE: Duration = Duration::from_secs(1);

/// Who may attach to a realm.
#[derive(Clone, Debug)]
pub enum RealmAccess {
    /// Everybody.
    Open,
    /// Who shows one of these tokens.
    Tokens(Vec<Secret>),
    /// Who shows a certificate of the CAs in this PEM file.
    Authority(std::path::PathBuf),
}

/// How to run a relay.
#[derive(Clone, Debug, Default)]
pub struct RelayConfig {
    /// What the relay shows; none: what the endpoint shows to nodes.
    pub certificate: Option<KeyFiles>,
    /// The realms served; none: all, openly.
    pub realms: Option<HashMap<String, RealmAccess>>,
    /// Nodes, at most.
    pub nodes: Option<usize>,
    /// Nodes of a realm, at most.
    pub nodes_per_realm: Option<usize>,
    /// Nodes that may attach in a second; others are told when to come again.
    pub attachments: Rates,
    /// Bytes of datagrams that may wait for all nodes together. None: no limit but that of each.
    pub memory: Option<u64>,
    /// What a node may send.
    pub per_node: Limits,
    /// What the nodes of a realm may send together.
    pub per_realm: Limits,
    /// The relays to call, and to call again, so that they are peers of this one.
    pub peers: Vec<RelayUrl>,
}

/// What happened at a relay; datagrams, unless said otherwise.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) forwarded: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Dropped: the queue of the node they were for was full.
    pub(crate) full: AtomicU64,
    /// Dropped: nobody held the tag.
    pub(crate) nobody: AtomicU64,
    /// Dropped: over a limit.
    pub(crate) slowed: AtomicU64,
    /// Dropped: unreadable, or under a tag the sender does not hold.
    pub(crate) invalid: AtomicU64,
    /// Dropped: too large for the way to the node.
    pub(crate) too_large: AtomicU64,
    /// Dropped: the peer they were for did not answer.
    pub(crate) silent: AtomicU64,
    /// Passed on to peers; counted among those forwarded, too.
    pub(crate) to_peers: AtomicU64,
    /// Passed on for peers.
    pub(crate) from_peers: AtomicU64,
    /// Attachments and peerings refused.
    pub(crate) refused: AtomicU64,
    /// Nodes told to come again, as many came; counted among those refused, too.
    pub(crate) told_to_wait: AtomicU64,
    /// Peerings that broke.
    pub(crate) peers_lost: AtomicU64,
    /// Records of peers that did not count.
    pub(crate) records_refused: AtomicU64,
}

/// The relay of an endpoint.
pub(crate) struct RelayService {
    relay: Mutex<Relay>,
    attached: RwLock<HashMap<Id, Attached>>,
    peers: peer::Table,
    /// Bytes of datagrams that may wait for all nodes.
    memory: Option<u64>,
    /// As many do, as was seen when each of the queues was looked at last.
    waiting: Arc<AtomicU64>,
    authorities: HashMap<String, Authorities>,
    began: Instant,
    last_id: AtomicU64,
    /// Connections, whatever they turn out to be.
    connections: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
    pub(crate) counters: Counters,
}

/// An attached node.
struct Attached {
    leg: Arc<Leg>,
    messages: mpsc::Sender<Outgoing>,
}

impl Attached {
    fn say(&self, message: Outgoing) {
        if self.messages.try_send(message).is_err() {
            self.leg.connection.close(VarInt::from_u32(0), b"slow");
        }
    }
}

enum Outgoing {
    Message(ToNode),
    Last(ToNode),
}

impl RelayService {
    /// A relay that nobody is attached to.
    ///
    /// # Errors
    /// A file of a CA cannot be used.
    pub(crate) fn new(config: RelayConfig) -> Result<RelayService, FileError> {
        let mut authorities = HashMap::new();
        let mut realms = config.realms.as_ref().map(|_| HashMap::new());
        for (realm, access) in config.realms.iter().flatten() {
            let access = match access {
                RealmAccess::Open => Access::Open,
                RealmAccess::Tokens(tokens) => {
                    Access::Tokens(tokens.iter().map(|token| Token::new(token)).collect())
                }
                RealmAccess::Authority(file) => {
                    let read = Authorities::load(file, &Arc::new(tls::strong()))?;
                    authorities.insert(realm.clone(), read);
                    Access::Authority
                }
            };
            if let Some(realms) = &mut realms {
                realms.insert(realm.clone(), access);
            }
        }
        let relay = Relay::new(table::Config {
            realms,
            nodes: config.nodes,
            nodes_per_realm: config.nodes_per_realm,
            attachments: config.attachments,
            per_node: config.per_node,
            per_realm: config.per_realm,
        });
        Ok(RelayService {
            relay: Mutex::new(relay),
            attached: RwLock::default(),
            peers: peer::Table::new(&config.peers),
            memory: config.memory,
            waiting: Arc::default(),
            authorities,
            began: Instant::now(),
            last_id: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            tasks: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Calls the relays that are to be peers, and keeps the time. Must be called within a tokio
    /// runtime.
    pub(crate) fn begin(self: &Arc<Self>, shared: &Arc<Shared>, peers: &[RelayUrl]) {
        let mut tasks = self.tasks.lock();
        for (number, url) in peers.iter().enumerate() {
            let (service, shared) = (Arc::downgrade(self), Arc::downgrade(shared));
            tasks.spawn(peer::run(service, shared, number, url.clone()));
        }
        let service = Arc::downgrade(self);
        tasks.spawn(async move {
            while let Some(service) = service.upgrade() {
                service.expire();
                drop(service);
                sleep(EXPIRE).await;
            }
        });
    }

    /// Connections, attached or not.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// How the relay stands with its peers.
    pub(crate) fn peers(&self) -> Vec<PeerInfo> {
        self.peers.info()
    }

    /// What it did, and whom it serves.
    pub(crate) fn figures(&self) -> Vec<(&'static str, u64)> {
        let Counters { forwarded, bytes, full, nobody, slowed, invalid, too_large, .. } =
            &self.counters;
        let Counters {
            silent,
            to_peers,
            from_peers,
            refused,
            told_to_wait,
            peers_lost,
            records_refused,
            ..
        } = &self.counters;
        let counters = [
            ("forwarded", forwarded),
            ("bytes", bytes),
            ("dropped_full", full),
            ("dropped_nobody", nobody),
            ("dropped_slowed", slowed),
            ("dropped_invalid", invalid),
            ("dropped_too_large", too_large),
            ("dropped_silent", silent),
            ("to_peers", to_peers),
            ("from_peers", from_peers),
            ("refused", refused),
            ("told_to_wait", told_to_wait),
            ("peers_lost", peers_lost),
            ("records_refused", records_refused),
        ];
        let mut figures = counters.map(|(name, count)| (name, count.load(Relaxed))).to_vec();
        let relay = self.relay.lock();
        let now =
            [("nodes", relay.nodes()), ("peers", relay.peers()), ("records", relay.records())];
        figures.extend(now.map(|(name, count)| (name, count as u64)));
        figures.push(("waiting_bytes", self.waiting.load(Relaxed)));
        figures
    }

    /// Tells everybody that the relay goes, so that they turn to others.
    pub(crate) fn restarting(self: &Arc<Self>) {
        let actions = self.relay.lock().restarting();
        self.carry_out(actions);
    }

    /// Ends all attachments and peerings.
    pub(crate) fn hang_up(&self) {
        self.tasks.lock().abort_all();
        self.part();
    }

    /// From now on it shows another key. What nodes signed for the former one counts nowhere else any
    /// more: where there are peers, all come back and sign anew. Who only wants to be forwarded here
    /// need not.
    pub(crate) fn has_another_key(&self) {
        if self.peers.has_any() {
            self.part();
        }
    }

    /// Ends all attachments and peerings that are; nodes and peers come back.
    fn part(&self) {
        for (_, attached) in self.attached.write().drain() {
            attached.leg.connection.close(VarInt::from_u32(0), b"stopped");
        }
        self.peers.hang_up();
    }

    /// Serves a connection until it ends, to which this relay showed a key with the hash `own`.
    /// `welcome` is called once it is attached, or a peer.
    pub(crate) async fn serve(
        self: Arc<Self>,
        connection: Connection,
        own: [u8; LEN],
        welcome: impl FnOnce(),
    ) {
        let _counted = Counted::new(&self.connections);
        let id = self.new_id();
        if self.talk(id, &connection, own, welcome).await.is_none() {
            self.counters.refused.fetch_add(1, Relaxed);
        }
        let actions = self.relay.lock().gone(id);
        self.forget(id);
        self.carry_out(actions);
        connection.close(VarInt::from_u32(0), b"ended");
    }

    fn new_id(&self) -> Id {
        self.last_id.fetch_add(1, Relaxed) + 1
    }

    fn clock(&self) -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { now: self.began.elapsed(), wall: wall.as_millis() as u64 }
    }

    /// None: it was never attached, nor a peer.
    async fn talk(
        self: &Arc<Self>,
        id: Id,
        connection: &Connection,
        own: [u8; LEN],
        welcome: impl FnOnce(),
    ) -> Option<()> {
        let shown = tls::shown(connection);
        let exporter = tls::exporter(connection, EXPORTER)?;
        let stranger = Stranger {
            node_id: tls::node_id(&shown).unwrap_or(exporter),
            relay_id: own,
            exporter,
            address: from_label(connection.remote_address()),
        };
        // A node need not let a relay open any stream.
        let (mut send, mut receive) = timeout(PATIENCE, connection.open_bi()).await.ok()?.ok()?;
        let first = async {
            send.write_all(&Relay::offer().encode()).await.ok()?;
            framing::read(&mut receive, MAX_MESSAGE).await.ok()
        };
        let first = timeout(PATIENCE, first).await.ok()??;
        let first = ToRelay::decode(&first);
        if let Ok(Some(ToRelay::Peer { version, .. })) = first {
            let streams = (send, receive);
            return self.answer_peer(id, connection, stranger, version, streams, welcome).await;
        }
        let (messages, outgoing) = mpsc::channel(WAITING);
        transport::attached(connection);
        let leg = Leg::to_node(connection.clone(), self.waiting.clone()).into();
        self.attached.write().insert(id, Attached { leg, messages });
        let writer = tokio::spawn(write(connection.clone(), send, outgoing));
        self.relay.lock().connected(id, stranger);
        let first = self.take(id, first, &shown);
        let welcomed = matches!(first[..], [Action::Send(_, ToNode::Attached { .. })]);
        if let [Action::Close(_, ToNode::Refused(Refusal::Busy(_)))] = first[..] {
            self.counters.told_to_wait.fetch_add(1, Relaxed);
        }
        self.carry_out(first);
        if welcomed {
            welcome();
            self.attend(id, connection, receive, &shown).await;
        }
        // The last message may still be on its way; with this there will be none after it.
        self.forget(id);
        let _ = timeout(PATIENCE, writer).await;
        welcomed.then_some(())
    }

    /// Reads what a node says and forwards what it sends, until its connection ends.
    async fn attend(
        self: &Arc<Self>,
        id: Id,
        connection: &Connection,
        mut receive: RecvStream,
        shown: &[CertificateDer<'_>],
    ) {
        let reading = async {
            let ends = |action: &Action| matches!(action, Action::Close(whose, _) if *whose == id);
            let mut allowance = Bucket::new(MESSAGES, self.began.elapsed());
            while let Some(actions) = self.read(id, &mut receive, shown).await {
                let is_last = actions.iter().any(ends);
                self.watch_trials(&actions);
                self.carry_out(actions);
                if is_last {
                    return;
                }
                allowance.take(1);
                while !allowance.has(self.began.elapsed(), 1) {
                    sleep(AGAIN).await;
                }
            }
        };
        tokio::select! {
            () = reading => {}
            () = self.forward(id, connection) => {}
            () = silence(connection) => {}
        }
    }

    /// What follows from the next message; none: there is no other.
    async fn read(
        &self,
        id: Id,
        receive: &mut RecvStream,
        shown: &[CertificateDer<'_>],
    ) -> Option<Vec<Action>> {
        let message = framing::read(receive, MAX_MESSAGE).await.ok()?;
        Some(self.take(id, ToRelay::decode(&message), shown))
    }

    fn take(
        &self,
        id: Id,
        message: Result<Option<ToRelay>, Refusal>,
        shown: &[CertificateDer<'_>],
    ) -> Vec<Action> {
        let vouched = |realm: &str| self.vouches(realm, shown);
        match message {
            Ok(Some(message)) => self.relay.lock().receive(self.clock(), id, message, vouched),
            Ok(None) => Vec::new(),
            Err(_) => self.relay.lock().malformed(id),
        }
    }

    /// Whether the CA of a realm vouches for who has shown this chain.
    fn vouches(&self, realm: &str, shown: &[CertificateDer<'_>]) -> bool {
        self.authorities.get(realm).is_some_and(|authorities| authorities.judge(shown).is_ok())
    }

    /// There is nobody with this id any more.
    fn forget(&self, id: Id) {
        self.attached.write().remove(&id);
    }

    /// Ends the trials that begin with these actions in time.
    fn watch_trials(self: &Arc<Self>, actions: &[Action]) {
        let asks = |action: &Action| {
            matches!(
                action,
                Action::Send(_, ToNode::Ping(_)) | Action::Tell(_, Between::Probe { .. })
            )
        };
        if !actions.iter().any(asks) {
            return;
        }
        let service = self.clone();
        tokio::spawn(async move {
            sleep(table::TRIAL).await;
            service.expire();
        });
    }

    fn expire(&self) {
        let actions = self.relay.lock().expire(self.began.elapsed());
        self.carry_out(actions);
        self.attached.read().values().for_each(|attached| {
            attached.leg.look();
        });
    }

    fn carry_out(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(id, message) => self.say(id, Outgoing::Message(message)),
                Action::Close(id, message) => self.say(id, Outgoing::Last(message)),
                Action::Tell(id, message) => self.peers.tell(id, message),
                Action::Part(id, refusal) => self.peers.tell(id, Between::Ended(refusal)),
                Action::Wake(id) => self.peers.wake(id),
            }
        }
    }

    fn say(&self, id: Id, message: Outgoing) {
        if let Some(attached) = self.attached.read().get(&id) {
            attached.say(message);
        }
    }
}

/// Counts for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Counted<'a> {
        count.fetch_add(1, Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Resolves when nothing came from a node for a while, although it was asked (by keep-alives). What
/// a node says of its own patience in QUIC does not bind this side.
async fn silence(connection: &Connection) {
    let mut heard = None;
    loop {
        let now = connection.stats().udp_rx.datagrams;
        if heard.replace(now) == Some(now) {
            return;
        }
        sleep(transport::RELAY_SILENCE).await;
    }
}

/// Writes what a node is told, and closes the connection after its last message.
async fn write(
    connection: Connection,
    mut send: SendStream,
    mut messages: mpsc::Receiver<Outgoing>,
) {
    while let Some(message) = messages.recv().await {
        let (message, is_last) = match message {
            Outgoing::Message(message) => (message, false),
            Outgoing::Last(message) => (message, true),
        };
        if send.write_all(&message.encode()).await.is_err() {
            return;
        }
        if is_last {
            let _ = send.finish();
            let _ = timeout(PATIENCE, send.stopped()).await;
            connection.close(VarInt::from_u32(0), b"refused");
            return;
        }
    }
}
