//! A relay: nodes attach to it and reach each other through it by tag. It forwards what it cannot
//! read; `macula_core::relay` decides where.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use macula_core::keys::LEN;
use macula_core::mesh::packet;
use macula_core::relay::limits::{Bucket, Limits};
use macula_core::relay::message::{MAX_MESSAGE, ToNode, ToRelay};
use macula_core::relay::table::{self, Access, Action, Forward, Id, Relay, Stranger, Token};
use macula_core::secret::Secret;
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::certificate::{Authorities, FileError, KeyFiles};
use crate::framing;
use crate::socket::from_label;
use crate::{tls, transport};

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

/// How often to look whether a node may speak again.
const AGAIN: Duration = Duration::from_millis(10);

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
    /// What a node may send.
    pub per_node: Limits,
    /// What the nodes of a realm may send together.
    pub per_realm: Limits,
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
    /// Attachments refused.
    pub(crate) refused: AtomicU64,
}

/// The relay of an endpoint.
pub(crate) struct RelayService {
    relay: Mutex<Relay>,
    attached: RwLock<HashMap<Id, Attached>>,
    authorities: HashMap<String, Authorities>,
    began: Instant,
    last_id: AtomicU64,
    pub(crate) counters: Counters,
}

/// A connected node.
struct Attached {
    connection: Connection,
    messages: mpsc::Sender<Outgoing>,
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
            per_node: config.per_node,
            per_realm: config.per_realm,
        });
        Ok(RelayService {
            relay: Mutex::new(relay),
            attached: RwLock::default(),
            authorities,
            began: Instant::now(),
            last_id: AtomicU64::new(0),
            counters: Counters::default(),
        })
    }

    /// Connections, attached or not.
    pub(crate) fn connections(&self) -> usize {
        self.attached.read().len()
    }

    /// What it did, and whom it serves.
    pub(crate) fn figures(&self) -> Vec<(&'static str, u64)> {
        let Counters { forwarded, bytes, full, nobody, slowed, invalid, too_large, refused } =
            &self.counters;
        let counters = [
            ("forwarded", forwarded),
            ("bytes", bytes),
            ("dropped_full", full),
            ("dropped_nobody", nobody),
            ("dropped_slowed", slowed),
            ("dropped_invalid", invalid),
            ("dropped_too_large", too_large),
            ("refused", refused),
        ];
        let mut figures = counters.map(|(name, count)| (name, count.load(Relaxed))).to_vec();
        figures.push(("nodes", self.relay.lock().nodes() as u64));
        figures
    }

    /// Tells everybody that the relay goes, so that they turn to others.
    pub(crate) fn restarting(self: &Arc<Self>) {
        let actions = self.relay.lock().restarting();
        self.carry_out(actions);
    }

    /// Ends all attachments.
    pub(crate) fn hang_up(&self) {
        for (_, attached) in self.attached.write().drain() {
            attached.connection.close(VarInt::from_u32(0), b"stopped");
        }
    }

    /// Serves a connection until it ends. `welcome` is called once it is attached.
    pub(crate) async fn serve(self: Arc<Self>, connection: Connection, welcome: impl FnOnce()) {
        let id = self.last_id.fetch_add(1, Relaxed) + 1;
        if self.talk(id, &connection, welcome).await.is_none() {
            self.counters.refused.fetch_add(1, Relaxed);
        }
        self.relay.lock().gone(id);
        self.attached.write().remove(&id);
        connection.close(VarInt::from_u32(0), b"ended");
    }

    /// None: it was never attached.
    async fn talk(
        self: &Arc<Self>,
        id: Id,
        connection: &Connection,
        welcome: impl FnOnce(),
    ) -> Option<()> {
        let shown = tls::shown(connection);
        let mut exporter = [0; LEN];
        connection.export_keying_material(&mut exporter, EXPORTER, b"").ok()?;
        // A node need not let a relay open any stream.
        let (send, mut receive) = timeout(PATIENCE, connection.open_bi()).await.ok()?.ok()?;
        let (messages, outgoing) = mpsc::channel(WAITING);
        let attached = Attached { connection: connection.clone(), messages };
        self.attached.write().insert(id, attached);
        let writer = tokio::spawn(write(connection.clone(), send, outgoing));
        let stranger = Stranger {
            node_id: tls::node_id(&shown).unwrap_or(exporter),
            exporter,
            address: from_label(connection.remote_address()),
        };
        let offer = self.relay.lock().connected(id, stranger);
        self.carry_out(offer);
        let first = timeout(PATIENCE, self.read(id, &mut receive, &shown)).await.ok()??;
        let welcomed = matches!(first[..], [Action::Send(_, ToNode::Attached { .. })]);
        self.carry_out(first);
        if welcomed {
            welcome();
            self.attend(id, connection, receive, &shown).await;
        }
        // The last message may still be on its way; with this there will be none after it.
        self.attached.write().remove(&id);
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
        let vouched = |realm: &str| {
            self.authorities.get(realm).is_some_and(|authorities| authorities.judge(shown).is_ok())
        };
        let now = self.began.elapsed();
        match ToRelay::decode(&message) {
            Ok(Some(message)) => Some(self.relay.lock().receive(now, id, message, vouched)),
            Ok(None) => Some(Vec::new()),
            Err(_) => Some(self.relay.lock().malformed(id)),
        }
    }

    async fn forward(&self, id: Id, connection: &Connection) {
        while let Ok(datagram) = connection.read_datagram().await {
            let decision = self.relay.lock().forward(self.began.elapsed(), id, &datagram);
            match decision {
                Forward::To(holder) => self.pass_on(holder, datagram),
                Forward::Nobody(tag) => {
                    self.counters.nobody.fetch_add(1, Relaxed);
                    let answer = Bytes::copy_from_slice(&packet::nobody(&tag));
                    let _ = connection.send_datagram(answer);
                }
                Forward::Slow(tell) => {
                    self.counters.slowed.fetch_add(1, Relaxed);
                    if tell {
                        self.say(id, Outgoing::Message(ToNode::Slowed));
                    }
                }
                Forward::Invalid => drop(self.counters.invalid.fetch_add(1, Relaxed)),
            }
        }
    }

    fn pass_on(&self, holder: Id, datagram: Bytes) {
        let attached = self.attached.read();
        let Some(Attached { connection, .. }) = attached.get(&holder) else {
            return;
        };
        let bytes = datagram.len();
        // The oldest of the node's queue make room then; its newest are worth more.
        if connection.datagram_send_buffer_space() < bytes {
            self.counters.full.fetch_add(1, Relaxed);
        }
        match connection.send_datagram(datagram) {
            Ok(()) => {
                self.counters.forwarded.fetch_add(1, Relaxed);
                self.counters.bytes.fetch_add(bytes as u64, Relaxed);
            }
            Err(_) => drop(self.counters.too_large.fetch_add(1, Relaxed)),
        }
    }

    /// Ends the trials that begin with these actions in time.
    fn watch_trials(self: &Arc<Self>, actions: &[Action]) {
        let asks = |action: &Action| matches!(action, Action::Send(_, ToNode::Ping(_)));
        if !actions.iter().any(asks) {
            return;
        }
        let service = self.clone();
        tokio::spawn(async move {
            sleep(table::TRIAL).await;
            let now = service.began.elapsed();
            let actions = service.relay.lock().expire(now);
            service.carry_out(actions);
        });
    }

    fn carry_out(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(id, message) => self.say(id, Outgoing::Message(message)),
                Action::Close(id, message) => self.say(id, Outgoing::Last(message)),
            }
        }
    }

    fn say(&self, id: Id, message: Outgoing) {
        if let Some(attached) = self.attached.read().get(&id)
            && attached.messages.try_send(message).is_err()
        {
            attached.connection.close(VarInt::from_u32(0), b"slow");
        }
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
