//! This node at one relay: it connects, attaches, claims its tags, and does so again for as long
//! as the mesh is joined.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use macula_core::mesh::claim::Tag;
use macula_core::mesh::packet::Packet;
use macula_core::mesh::record;
use macula_core::mesh::retry::{self, Retry};
use macula_core::path::silence::Silence;
use macula_core::relay::message::{MAX_MESSAGE, Refusal, ToNode, ToRelay, VERSIONS};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at, sleep, timeout, timeout_at};
use zeroize::Zeroizing;

use super::{Mesh, RelayError, RelayUrl, State};
use crate::answers::{Answer, NOT_IN_QUIC};
use crate::certificate::CertificateFault;
use crate::dial::{self, DialError};
use crate::endpoint::Shared;
use crate::framing::{self, NoMessage};
use crate::probe::Probe;
use crate::{relay, tls, transport};

/// How long a relay may take from its name to the attachment.
const ATTACH: Duration = Duration::from_secs(5);

/// How long a relay's only address may take: less than the whole, so that what came back instead of
/// QUIC can still be told.
const ALONE: Duration = Duration::from_secs(3);

/// How long one address of a relay may take when there are others to try.
const ADDRESS: Duration = Duration::from_millis(1500);

/// How long the last words of a refused connection may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How often it is looked whether what was sent is acknowledged.
const LOOK: Duration = Duration::from_millis(200);

/// How long the first attempt may take beside an attachment on which nothing is acknowledged: the
/// pauses between QUIC's first packets grow, and a relay that is back must not wait for the next one.
/// Each further one may take twice as long: a relay to which all its nodes come back is slow.
const INSIST: Duration = Duration::from_millis(1500);

/// When to come again to a relay that did not even say when: its waiting room is empty by then.
const CROWDED_MS: u32 = 1000;

/// A directory: tags, and the sealed names of those who hold them.
pub(super) type Entries = Vec<(Tag, Arc<[u8]>)>;

/// What an attachment is asked to do.
pub(super) enum Order {
    /// Claim what was added to the node's own tags.
    Claim,
    /// Fetch the directory.
    List(oneshot::Sender<Entries>),
}

/// Attaches to the relay with this number, again and again.
pub(super) async fn run(mesh: Arc<Mesh>, relay: usize, mut orders: mpsc::Receiver<Order>) {
    let mut retry = Retry::default();
    let attachment = Attachment { mesh: &mesh, relay };
    let mut next = None;
    loop {
        let began = Instant::now();
        let attached = match next.take() {
            Some(attached) => Ok(attached),
            None => attachment.attempt(ATTACH).await,
        };
        let error = match attached {
            Ok(attached) => match attachment.live(attached, &mut orders).await {
                Ended::Replaced(other) => {
                    next = Some(other);
                    continue;
                }
                Ended::Lost(error) => {
                    // One that lets the node in and out again is not to be tried without a pause.
                    if began.elapsed() >= mesh.config.pace.interval {
                        retry.succeeded();
                    }
                    error
                }
            },
            Err(error) => error,
        };
        mesh.relay_down(relay);
        let again = error.come_again();
        mesh.set_state(relay, State::Down(error));
        let pause = retry.pause(mesh.config.pace, random(), mesh.has_links());
        // The time of an attempt that nothing came of counts.
        let over = match again {
            Some(again) => Instant::now() + retry::told(again, random()),
            None => (began + pause).max(Instant::now() + retry::jitter(random())),
        };
        // Nobody waits for an answer from a relay that is away.
        while let Ok(order) = timeout_at(over, orders.recv()).await {
            if order.is_none() {
                return;
            }
        }
    }
}

pub(crate) fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness nodes only come back more in step.
    let _ = getrandom::fill(&mut bytes);
    u32::from_be_bytes(bytes)
}

/// The time by the clock of a relay.
struct RelayClock {
    said: u64,
    heard: Instant,
}

impl RelayClock {
    fn now(&self) -> u64 {
        self.said.saturating_add(self.heard.elapsed().as_millis() as u64)
    }
}

struct Attachment<'a> {
    mesh: &'a Arc<Mesh>,
    relay: usize,
}

/// A relay has taken this node.
struct Attached {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    observed: SocketAddr,
    clock: RelayClock,
}

/// How an attachment ends.
enum Ended {
    /// There is another one to the same relay, in its place.
    Replaced(Attached),
    /// For this reason.
    Lost(RelayError),
}

impl Attachment<'_> {
    async fn attempt(&self, limit: Duration) -> Result<Attached, RelayError> {
        let Some(shared) = self.mesh.shared.upgrade() else {
            return Err(RelayError::Lost("the endpoint is closed".into()));
        };
        timeout(limit, self.attach(&shared)).await.unwrap_or(Err(RelayError::Timeout))
    }

    /// Serves an attachment until it ends.
    async fn live(&self, attached: Attached, orders: &mut mpsc::Receiver<Order>) -> Ended {
        let Attached { connection, send, receive, observed, clock } = attached;
        self.mesh.relay_up(self.relay, connection.clone());
        self.mesh.set_state(self.relay, State::Attached { observed });
        let datagrams = pass_datagrams(self.mesh.clone(), self.relay, connection.clone());
        let ended = tokio::select! {
            error = self.converse(&connection, send, receive, clock, orders) => Ended::Lost(error),
            error = datagrams => Ended::Lost(error),
            other = self.replace(&connection) => Ended::Replaced(other),
        };
        connection.close(0u32.into(), b"left");
        ended
    }

    /// Resolves when nothing is acknowledged any more, but the relay answers on a connection of its
    /// own: this node's address has changed, as the relay sees it, or the relay has started anew, or
    /// stood still for so long that QUIC hardly tries any more.
    async fn replace(&self, connection: &Connection) -> Attached {
        let (began, mut silence) = (Instant::now(), Silence::default());
        let probe = Probe::new(connection.clone());
        let acknowledged = || connection.stats().frame_rx.acks;
        loop {
            sleep(LOOK).await;
            let stats = connection.stats();
            let sent = transport::asking(&stats);
            if !silence.look(began.elapsed(), sent, stats.frame_rx.acks) {
                continue;
            }
            let mut limit = INSIST;
            while acknowledged() == stats.frame_rx.acks {
                let attempted = tokio::select! {
                    attempted = self.attempt(limit) => attempted,
                    never = probe.insist(LOOK) => never,
                };
                let pause = match attempted {
                    Ok(attached) => return attached,
                    Err(error) => error.come_again(),
                };
                limit = (2 * limit).min(ATTACH);
                sleep(retry::told(pause.unwrap_or_default(), random())).await;
            }
        }
    }

    async fn attach(&self, shared: &Arc<Shared>) -> Result<Attached, RelayError> {
        let url = &self.mesh.config.relays[self.relay];
        let config =
            transport::attachment(&self.mesh.tls().relay_client, shared.settings().congestion);
        let dials = |answer: &_| self.mesh.dials(self.relay, answer);
        let connection = connect(shared, &config, url, dials).await?;
        self.judge(&connection, url)?;
        let (mut send, mut receive) = open(&connection).await?;
        let version = version(&connection, &mut receive).await?;
        let (realm, token) = (self.mesh.config.realm.clone(), self.mesh.config.token.clone());
        let attach = ToRelay::Attach { version, features: 0, realm, token };
        send.write_all(&Zeroizing::new(attach.encode()))
            .await
            .map_err(|error| lost(&connection, error))?;
        match read(&connection, &mut receive).await? {
            Some(ToNode::Attached { observed, time, .. }) => {
                let clock = RelayClock { said: time, heard: Instant::now() };
                Ok(Attached { connection, send, receive, observed, clock })
            }
            Some(ToNode::Refused(refusal)) => Err(RelayError::Refused(refusal)),
            _ => Err(RelayError::NotARelay("its answer cannot be read".into())),
        }
    }

    /// Whether the relay's certificate is one to trust.
    fn judge(&self, connection: &Connection, url: &RelayUrl) -> Result<(), RelayError> {
        is_relay(connection)?;
        if !self.mesh.config.verify {
            return Ok(());
        }
        let (tls, shown) = (self.mesh.tls(), tls::shown(connection));
        let judged = tls.credentials.judge(&shown);
        judged.and_then(|()| tls.credentials.judge_host(&shown, &url.host)).map_err(|fault| {
            connection.close(fault.code(), b"certificate");
            RelayError::Certificate(fault)
        })
    }

    /// Claims the node's tags and answers the relay and the node, until the attachment ends.
    async fn converse(
        &self,
        connection: &Connection,
        mut send: SendStream,
        receive: RecvStream,
        clock: RelayClock,
        orders: &mut mpsc::Receiver<Order>,
    ) -> RelayError {
        let Some(exporter) = tls::exporter(connection, relay::EXPORTER) else {
            return RelayError::Lost("TLS gave no keying material".into());
        };
        let (sender, mut messages) = mpsc::channel(1);
        let reader = read_on(connection.clone(), receive, sender);
        tokio::pin!(reader);
        let at = record::Attachment {
            node: self.mesh.tls().credentials.own.node_id,
            relay: tls::node_id(&tls::shown(connection)).unwrap_or(exporter),
        };
        // Of each tag that was claimed: the newest record elsewhere that the relay told of.
        let mut claimed: HashMap<Tag, u64> = HashMap::new();
        let mut renewal = interval_at(Instant::now() + record::RENEWAL, record::RENEWAL);
        let mut listing = Listing::default();
        loop {
            let is_new = |tag: &Tag| claimed.insert(*tag, 0).is_none();
            let claims = self.mesh.claims(&exporter, (&at, clock.now()), is_new);
            let released = claimed.extract_if(|tag, _| !self.mesh.claims_tag(tag));
            let released: Vec<_> = released.map(|(tag, _)| ToRelay::Release(tag)).collect();
            for message in released.iter().chain(&claims) {
                if let Err(error) = send.write_all(&message.encode()).await {
                    return lost(connection, error);
                }
            }
            let answer = tokio::select! {
                error = &mut reader => return error,
                message = messages.recv() => match message {
                    Some(ToNode::Refused(refusal)) => return RelayError::Refused(refusal),
                    Some(ToNode::Stale { tag, newest }) => {
                        claimed.get_mut(&tag).and_then(|known| {
                            *known = newest.max(*known);
                            self.mesh.record(&tag, &at, clock.now(), *known)
                        })
                    }
                    Some(message) => self.answer(message, &mut listing),
                    None => continue,
                },
                _ = renewal.tick() => {
                    for (tag, newest) in &claimed {
                        let record = self.mesh.record(tag, &at, clock.now(), *newest);
                        let record = record.map(|record| record.encode()).unwrap_or_default();
                        if let Err(error) = send.write_all(&record).await {
                            return lost(connection, error);
                        }
                    }
                    None
                }
                order = orders.recv() => match order {
                    Some(Order::Claim) => None,
                    Some(Order::List(asker)) => listing.ask(asker),
                    None => return RelayError::Lost("left".into()),
                },
            };
            if let Some(answer) = answer
                && let Err(error) = send.write_all(&answer.encode()).await
            {
                return lost(connection, error);
            }
        }
    }

    fn answer(&self, message: ToNode, listing: &mut Listing) -> Option<ToRelay> {
        match message {
            ToNode::Ping(token) => return Some(ToRelay::Pong(token)),
            ToNode::Held(tag) => self.mesh.held(self.relay, tag),
            ToNode::Taken(tag) => self.mesh.taken(self.relay, tag),
            ToNode::Entry { tag, sealed } => listing.add(tag, sealed),
            ToNode::Listed => listing.finish(),
            ToNode::Slowed => self.mesh.tunnels.slowed(),
            ToNode::Restarting => self.mesh.draining(self.relay),
            ToNode::Pong(_) | ToNode::Offer { .. } | ToNode::Attached { .. } => {}
            ToNode::Refused(_) | ToNode::Peered { .. } | ToNode::Stale { .. } => {}
        }
        None
    }
}

/// Entries of a directory remembered at most, whatever a relay sends.
const MAX_ENTRIES: usize = 4096;

/// Those who wait for the directory, and what came of it.
#[derive(Default)]
struct Listing {
    askers: Vec<oneshot::Sender<Entries>>,
    entries: Entries,
}

impl Listing {
    /// What to ask the relay, unless that was done for somebody who still waits.
    fn ask(&mut self, asker: oneshot::Sender<Entries>) -> Option<ToRelay> {
        self.askers.retain(|asker| !asker.is_closed());
        if self.askers.is_empty() {
            self.entries.clear();
        }
        self.askers.push(asker);
        (self.askers.len() == 1).then_some(ToRelay::List)
    }

    fn add(&mut self, tag: Tag, sealed: Arc<[u8]>) {
        if !self.askers.is_empty() && self.entries.len() < MAX_ENTRIES {
            self.entries.push((tag, sealed));
        }
    }

    fn finish(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        for asker in self.askers.drain(..) {
            // An asker that has gone needs no answer.
            let _ = asker.send(entries.clone());
        }
    }
}

/// A connection to the relay at the first of its addresses that answers. `dials` is told of each.
pub(crate) async fn connect(
    shared: &Arc<Shared>,
    config: &quinn::ClientConfig,
    url: &RelayUrl,
    dials: impl Fn(&Arc<Answer>),
) -> Result<Connection, RelayError> {
    let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await;
    let addresses: Vec<_> = found.map_err(|error| RelayError::Name(error.to_string()))?.collect();
    let mut last = RelayError::Name("no address".into());
    for (n, address) in addresses.iter().enumerate() {
        let alone = n + 1 == addresses.len();
        let limit = if alone { ALONE } else { ADDRESS };
        let answer = Arc::new(shared.socket.answers.expect(crate::socket::to_label(*address)));
        dials(&answer);
        match timeout(limit, dial::connect(shared, *address, config.clone(), &url.text)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = error.into(),
            Err(_) if answer.is_foreign() => last = RelayError::NotARelay(NOT_IN_QUIC.into()),
            Err(_) => last = RelayError::Timeout,
        }
    }
    Err(last)
}

/// Whether a relay is at the other end.
pub(crate) fn is_relay(connection: &Connection) -> Result<(), RelayError> {
    if tls::protocol(connection).as_deref() != Some(tls::RELAY) {
        connection.close(0u32.into(), b"protocol");
        return Err(RelayError::NotARelay("it speaks another protocol".into()));
    }
    Ok(())
}

/// The stream that a relay opens.
pub(crate) async fn open(connection: &Connection) -> Result<(SendStream, RecvStream), RelayError> {
    connection.accept_bi().await.map_err(|error| lost(connection, error))
}

/// The version to speak, by the first words of a relay.
pub(crate) async fn version(
    connection: &Connection,
    receive: &mut RecvStream,
) -> Result<u8, RelayError> {
    match read(connection, receive).await? {
        Some(ToNode::Offer { versions: (low, high), .. }) => {
            let version = high.min(VERSIONS.1);
            if version < low.max(VERSIONS.0) {
                return Err(RelayError::Version(low, high));
            }
            Ok(version)
        }
        _ => Err(RelayError::NotARelay("its first words cannot be read".into())),
    }
}

/// Passes what comes through the relay to the tunnels, for as long as the connection lives.
async fn pass_datagrams(mesh: Arc<Mesh>, relay: usize, connection: Connection) -> RelayError {
    let mut arena = BytesMut::new();
    loop {
        let datagram = match connection.read_datagram().await {
            Ok(datagram) => datagram,
            Err(error) => return lost(&connection, error),
        };
        match Packet::decode(&datagram) {
            Some(Packet::Data { to, from, sealed }) => {
                mesh.received(relay, to, from, sealed, &mut arena)
            }
            Some(Packet::Nobody(tag)) => mesh.nobody(relay, tag),
            None => mesh.tunnels.misdirected(),
        }
    }
}

/// Reads messages until the stream ends. Apart from whoever answers them, because a message must
/// be read to its end once begun.
async fn read_on(
    connection: Connection,
    mut receive: RecvStream,
    messages: mpsc::Sender<ToNode>,
) -> RelayError {
    loop {
        match read(&connection, &mut receive).await {
            Ok(Some(message)) => {
                if messages.send(message).await.is_err() {
                    return RelayError::Lost("left".into());
                }
            }
            Ok(None) => {}
            Err(error) => return error,
        }
    }
}

pub(crate) async fn read(
    connection: &Connection,
    receive: &mut RecvStream,
) -> Result<Option<ToNode>, RelayError> {
    match framing::read(receive, MAX_MESSAGE).await {
        Ok(message) => ToNode::decode(&message)
            .map_err(|_| RelayError::NotARelay("a message of its cannot be read".into())),
        Err(NoMessage::TooLong(len)) => {
            Err(RelayError::NotARelay(format!("a message of {len} bytes is none of a relay's")))
        }
        Err(NoMessage::Ended) => {
            // A close that comes at once ends the stream early; it tells more.
            let _ = timeout(LAST_WORDS, connection.closed()).await;
            Err(lost(connection, "its stream ended"))
        }
        Err(NoMessage::Lost(text)) => Err(lost(connection, text)),
    }
}

/// Why the connection ended, if that tells more than `error`.
pub(crate) fn lost(connection: &Connection, error: impl std::fmt::Display) -> RelayError {
    match connection.close_reason() {
        Some(quinn::ConnectionError::ApplicationClosed(close)) => {
            if close.error_code == relay::NOT_A_RELAY {
                return RelayError::NoRelayHere;
            }
            match CertificateFault::of_code(close.error_code) {
                Some(fault) => RelayError::OwnCertificate(fault),
                None => RelayError::Lost("the relay closed the connection".into()),
            }
        }
        Some(quinn::ConnectionError::TimedOut) => RelayError::Timeout,
        _ => RelayError::Lost(error.to_string()),
    }
}

impl From<DialError> for RelayError {
    fn from(error: DialError) -> RelayError {
        match error {
            DialError::Timeout => RelayError::Timeout,
            DialError::PortClosed => RelayError::PortClosed,
            DialError::NotMacula(text) => RelayError::NotARelay(text),
            DialError::Certificate(fault) => RelayError::Certificate(fault),
            DialError::OwnCertificate(fault) => RelayError::OwnCertificate(fault),
            DialError::Busy => RelayError::Refused(Refusal::Busy(CROWDED_MS)),
            DialError::Tls(text) | DialError::Io(text) => RelayError::Lost(text),
            other => RelayError::Lost(format!("{other:?}")),
        }
    }
}

/// For those who wait for an attachment to be made.
pub(super) async fn wait(mut states: tokio::sync::watch::Receiver<u64>) {
    // Fails only when the mesh is gone, which whoever waits sees itself.
    if states.changed().await.is_err() {
        sleep(LAST_WORDS).await;
    }
}
