//! Peers of a relay: it calls those it was told of, again and again, and answers those that call it.
//! Once connected both sides do the same: they tell each other what is held at them, forward
//! datagrams, and show that they are there.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use macula_core::keys::LEN;
use macula_core::mesh::retry::{Pace, Retry};
use macula_core::relay::between::Between;
use macula_core::relay::limits::Bucket;
use macula_core::relay::message::{MAX_MESSAGE, Refusal, ToNode, ToRelay, VERSIONS};
use macula_core::relay::peering::{Learned, Peering};
use macula_core::relay::table::{Heard, Id, Stranger};
use parking_lot::{Mutex, RwLock};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::leg::Leg;
use super::{AGAIN, Counted, EXPORTER, PATIENCE, RelayService};
use crate::endpoint::Shared;
use crate::mesh::{RelayError, RelayUrl, attachment};
use crate::probe::Probe;
use crate::socket::from_label;
use crate::{framing, tls, transport};

/// How often a peer is asked for a sign of life.
const PING: Duration = Duration::from_millis(500);

/// How often it is asked until its connection bears the largest datagrams.
const EAGER: Duration = Duration::from_millis(50);

/// How long QUIC may take to find out that it does: some round trips. Where it never does, small ones
/// are worth passing on.
const SETTLED: Duration = Duration::from_secs(2);

/// A peer that has not answered as many of these questions is spared what is for it until it does:
/// that is a second, more than any way between relays takes.
const UNANSWERED: u64 = 2;

/// A peer that said nothing for this long, though it was asked, is lost.
const SILENCE: Duration = Duration::from_secs(4);

/// How long a relay that is called may take to become a peer.
const CALL: Duration = Duration::from_secs(5);

/// Messages that wait for a peer beside its announcements: answers to its questions, and a few
/// questions. A peer that takes them more slowly than it asks is let go.
const WAITING: usize = 1024;

/// Messages a second that are read from a peer. Each may cost the check of a signature: at most a
/// tenth of a core.
const MESSAGES: u64 = 1000;

/// Announcements written at once.
const BATCH: usize = 64;

/// The close code of a side that ends a peering by its word: what it said counts no more.
const FAREWELL: VarInt = VarInt::from_u32(0x201);

/// How a relay stands with a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Connected.
    Up {
        /// Where the peer is.
        address: SocketAddr,
    },
    /// Not connected.
    Down(RelayError),
}

/// What is told of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its URL; of one that has called, its address.
    pub name: String,
    /// Whether it has called.
    pub called: bool,
    /// How this relay stands with it.
    pub state: PeerState,
}

/// The peers of a relay, as the shell knows them.
pub(super) struct Table {
    /// Those to call, and how it went.
    listed: Mutex<Vec<(RelayUrl, PeerState)>>,
    connected: RwLock<HashMap<Id, Connected>>,
}

struct Connected {
    leg: Arc<Leg>,
    messages: mpsc::Sender<Between>,
    wake: Arc<Notify>,
    has_called: bool,
}

impl Table {
    pub(super) fn new(urls: &[RelayUrl]) -> Table {
        let down = |url: &RelayUrl| (url.clone(), PeerState::Down(RelayError::Trying));
        Table { listed: Mutex::new(urls.iter().map(down).collect()), connected: RwLock::default() }
    }

    /// Whether there are peers, or are to be.
    pub(super) fn has_any(&self) -> bool {
        !self.listed.lock().is_empty() || !self.connected.read().is_empty()
    }

    pub(super) fn leg(&self, id: Id) -> Option<Arc<Leg>> {
        self.connected.read().get(&id).map(|peer| peer.leg.clone())
    }

    pub(super) fn tell(&self, id: Id, message: Between) {
        if let Some(peer) = self.connected.read().get(&id)
            && peer.messages.try_send(message).is_err()
        {
            peer.leg.connection.close(VarInt::from_u32(0), b"slow");
        }
    }

    pub(super) fn wake(&self, id: Id) {
        if let Some(peer) = self.connected.read().get(&id) {
            peer.wake.notify_one();
        }
    }

    pub(super) fn hang_up(&self) {
        for peer in self.connected.read().values() {
            peer.leg.connection.close(FAREWELL, b"stopped");
        }
    }

    pub(super) fn info(&self) -> Vec<PeerInfo> {
        let listed = self.listed.lock().clone();
        let listed = listed.into_iter();
        let listed = listed.map(|(url, state)| PeerInfo { name: url.text, called: false, state });
        let connected = self.connected.read();
        let callers = connected.values().filter(|peer| peer.has_called).map(|peer| {
            let address = from_label(peer.leg.connection.remote_address());
            PeerInfo { name: address.to_string(), called: true, state: PeerState::Up { address } }
        });
        listed.chain(callers).collect()
    }
}

/// Calls the relay with this number, again and again, for as long as there is a relay here.
pub(super) async fn run(
    service: Weak<RelayService>,
    shared: Weak<Shared>,
    number: usize,
    url: RelayUrl,
) {
    let mut retry = Retry::default();
    loop {
        let (Some(relay), Some(endpoint)) = (service.upgrade(), shared.upgrade()) else {
            return;
        };
        let (began, pace) = (Instant::now(), Pace::default());
        let (error, up) = relay.call(&endpoint, number, &url).await;
        let refusal = match error {
            RelayError::Refused(refusal) => Some(refusal),
            _ => None,
        };
        relay.set_state(&endpoint, number, PeerState::Down(error));
        drop((relay, endpoint));
        if refusal == Some(Refusal::Itself) {
            // One list for all relays names each of them, too.
            return;
        }
        // A relay that lets this one in and out again is not to be called without a pause.
        if refusal.is_none() && up.is_some_and(|up| up >= pace.interval) {
            retry.succeeded();
        }
        let pause = retry.pause(pace, attachment::random(), true);
        // Where nothing answers, the attempt itself was the pause.
        let waited = if up.is_none() { began.elapsed() } else { Duration::ZERO };
        sleep(pause.saturating_sub(waited)).await;
    }
}

impl RelayService {
    fn set_state(&self, shared: &Shared, number: usize, state: PeerState) {
        let mut listed = self.peers.listed.lock();
        if let Some((url, known)) = listed.get_mut(number) {
            let is_new = *known != state;
            known.clone_from(&state);
            let name = url.text.clone();
            drop(listed);
            if is_new {
                shared.node.peer(&name, &state);
            }
        }
    }

    /// Calls a relay and serves the peering until it ends; gives the reason, and how long it was up.
    async fn call(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        number: usize,
        url: &RelayUrl,
    ) -> (RelayError, Option<Duration>) {
        let called = timeout(CALL, self.become_peer(shared, url)).await;
        let (connection, peering, streams) = match called {
            Ok(Ok(called)) => called,
            Ok(Err(error)) => return (error, None),
            Err(_) => return (RelayError::Timeout, None),
        };
        let _counted = Counted::new(&self.connections);
        let address = from_label(connection.remote_address());
        let began = Instant::now();
        let up = || self.set_state(shared, number, PeerState::Up { address });
        let error = self.keep(self.new_id(), &connection, peering, streams, up).await;
        (error, Some(began.elapsed()))
    }

    async fn become_peer(
        &self,
        shared: &Arc<Shared>,
        url: &RelayUrl,
    ) -> Result<(Connection, Peering, (SendStream, RecvStream)), RelayError> {
        let tls = shared.tls();
        let config = transport::attachment(&tls.peer_client, shared.settings().congestion);
        let connection = attachment::connect(shared, &config, url, |_| ()).await?;
        attachment::is_relay(&connection)?;
        let peering = self.peering(&connection, tls.relay_id(), true);
        let peering =
            peering.ok_or_else(|| RelayError::Lost("TLS gave no keying material".into()))?;
        if peering.relay == peering.own {
            connection.close(FAREWELL, b"itself");
            return Err(RelayError::Refused(Refusal::Itself));
        }
        let (mut send, mut receive) = attachment::open(&connection).await?;
        let version = attachment::version(&connection, &mut receive).await?;
        let peer = ToRelay::Peer { version, features: 0 }.encode();
        let sent = send.write_all(&peer).await;
        sent.map_err(|error| attachment::lost(&connection, error))?;
        match attachment::read(&connection, &mut receive).await? {
            Some(ToNode::Peered { .. }) => Ok((connection, peering, (send, receive))),
            Some(ToNode::Refused(refusal)) => Err(RelayError::Refused(refusal)),
            _ => Err(RelayError::NotARelay("its answer cannot be read".into())),
        }
    }

    fn peering(&self, connection: &Connection, own: [u8; LEN], called: bool) -> Option<Peering> {
        let shown = tls::shown(connection);
        let exporter = tls::exporter(connection, EXPORTER)?;
        let relay = tls::node_id(&shown).unwrap_or(exporter);
        let realms: Vec<_> = self.relay.lock().authorities().cloned().collect();
        let vouched = realms.into_iter().filter(|realm| self.vouches(realm, &shown)).collect();
        Some(Peering { relay, own, exporter, called, vouched })
    }

    /// Answers a relay that wants to be a peer. None: it does not become one.
    pub(super) async fn answer_peer(
        self: &Arc<Self>,
        id: Id,
        connection: &Connection,
        stranger: Stranger,
        version: u8,
        (mut send, receive): (SendStream, RecvStream),
        welcome: impl FnOnce(),
    ) -> Option<()> {
        let peering = self.peering(connection, stranger.relay_id, false)?;
        if !(VERSIONS.0..=VERSIONS.1).contains(&version) {
            farewell(connection, &mut send, ToNode::Refused(Refusal::Version).encode()).await;
            return None;
        }
        let peered = ToNode::Peered { features: 0 }.encode();
        timeout(PATIENCE, send.write_all(&peered)).await.ok()?.ok()?;
        let mut welcomed = false;
        let up = || {
            welcomed = true;
            welcome();
        };
        self.keep(id, connection, peering, (send, receive), up).await;
        welcomed.then_some(())
    }

    /// Serves a peering until it ends; gives the reason. `up` is called once it has begun.
    async fn keep(
        self: &Arc<Self>,
        id: Id,
        connection: &Connection,
        peering: Peering,
        (mut send, receive): (SendStream, RecvStream),
        up: impl FnOnce(),
    ) -> RelayError {
        let (messages, outgoing) = mpsc::channel(WAITING);
        let (wake, relay) = (Arc::new(Notify::new()), peering.relay);
        let connected = Connected {
            leg: Leg::to_peer(connection.clone()).into(),
            messages,
            wake: wake.clone(),
            has_called: !peering.called,
        };
        self.peers.connected.write().insert(id, connected);
        let peered = {
            let mut relay = self.relay.lock();
            let peered = relay.peered(self.began.elapsed(), id, peering);
            // Until it has answered, and what is for it fits.
            relay.doubt(id, true);
            peered
        };
        let pulse = Pulse::default();
        let ended = match peered {
            Ok(actions) => {
                self.carry_out(actions);
                up();
                tokio::select! {
                    ended = self.hear_peer(id, connection, receive, relay, &pulse) => ended,
                    ended = self.tell_peer(id, connection, &mut send, outgoing, &wake, &pulse) => ended,
                    () = self.forward_here(id, connection) => Ended::Lost,
                }
            }
            Err(refusal) => Ended::Here(refusal),
        };
        self.peers.connected.write().remove(&id);
        let error = match ended {
            Ended::Here(refusal) => {
                farewell(connection, &mut send, Between::Ended(refusal).encode()).await;
                RelayError::Refused(refusal)
            }
            Ended::There(refusal) => RelayError::Refused(refusal),
            Ended::Silent => RelayError::Timeout,
            Ended::Lost => attachment::lost(connection, "the peering broke"),
        };
        let broke = ended.broke(connection);
        if broke {
            self.counters.peers_lost.fetch_add(1, Relaxed);
        }
        self.relay.lock().parted(self.began.elapsed(), id, broke);
        connection.close(VarInt::from_u32(0), b"ended");
        error
    }

    /// Hears a peer until that ends.
    async fn hear_peer(
        self: &Arc<Self>,
        id: Id,
        connection: &Connection,
        mut receive: RecvStream,
        relay: [u8; LEN],
        pulse: &Pulse,
    ) -> Ended {
        let began = Instant::now();
        let mut allowance = Bucket::new(MESSAGES, self.began.elapsed());
        loop {
            let message = match timeout(SILENCE, framing::read(&mut receive, MAX_MESSAGE)).await {
                Ok(Ok(message)) => message,
                Ok(Err(framing::NoMessage::TooLong(_))) => return Ended::Here(Refusal::Malformed),
                Ok(Err(_)) => {
                    // A close that comes at once ends the stream early; it tells more.
                    let _ = timeout(AGAIN, connection.closed()).await;
                    return Ended::Lost;
                }
                Err(_) => return Ended::Silent,
            };
            // Not under the lock: a signature takes its time.
            let heard = match Between::decode(&message) {
                Ok(None) => continue,
                Ok(Some(Between::Ended(refusal))) => return Ended::There(refusal),
                Ok(Some(Between::Pong(token))) => {
                    pulse.answered.fetch_max(token, Relaxed);
                    let fits = connection.max_datagram_size() >= Some(transport::RELAYED);
                    if fits || began.elapsed() >= SETTLED {
                        pulse.settled.store(true, Relaxed);
                        self.relay.lock().doubt(id, false);
                    }
                    Ok(Heard::Said(Between::Pong(token)))
                }
                Ok(Some(message)) => Heard::check(message, &relay),
                Err(refusal) => Err(refusal),
            };
            let (actions, learned) = match heard {
                Ok(heard) => self.relay.lock().hear(self.clock(), id, heard),
                Err(refusal) => return Ended::Here(refusal),
            };
            if learned == Learned::Refused {
                self.counters.records_refused.fetch_add(1, Relaxed);
            }
            self.watch_trials(&actions);
            self.carry_out(actions);
            allowance.take(1);
            while !allowance.has(self.began.elapsed(), 1) {
                sleep(AGAIN).await;
            }
        }
    }

    /// Tells a peer what it is to know, and asks it for signs of life.
    async fn tell_peer(
        &self,
        id: Id,
        connection: &Connection,
        send: &mut SendStream,
        mut messages: mpsc::Receiver<Between>,
        wake: &Notify,
        pulse: &Pulse,
    ) -> Ended {
        let (mut ping, mut token) = (Instant::now(), 0);
        let probe = Probe::new(connection.clone());
        loop {
            let (message, announces) = tokio::select! {
                biased;
                message = messages.recv() => (message, false),
                // Before a ping: who has answered one knows what was to be told before it.
                () = wake.notified() => (None, true),
                () = sleep_until(ping) => {
                    token += 1;
                    let settled = pulse.settled.load(Relaxed);
                    if settled && pulse.answered.load(Relaxed).saturating_add(UNANSWERED) < token {
                        self.relay.lock().doubt(id, true);
                        // What is lost must not keep the question from being sent.
                        probe.send();
                    }
                    ping = Instant::now() + if settled { PING } else { EAGER };
                    (Some(Between::Ping(token)), false)
                }
            };
            let written = match message {
                Some(Between::Ended(refusal)) => return Ended::Here(refusal),
                Some(message) => send.write_all(&message.encode()).await,
                None if announces => {
                    let batch = self.announcements(id);
                    if batch.1 {
                        wake.notify_one();
                    }
                    send.write_all(&batch.0).await
                }
                None => return Ended::Lost,
            };
            if written.is_err() {
                return Ended::Lost;
            }
        }
    }

    /// Some of what a peer is to be told, and whether there may be more.
    fn announcements(&self, id: Id) -> (Vec<u8>, bool) {
        let mut relay = self.relay.lock();
        let mut bytes = Vec::new();
        for _ in 0..BATCH {
            match relay.announcement(id) {
                Some(announcement) => bytes.extend(announcement.encode()),
                None => return (bytes, false),
            }
        }
        (bytes, true)
    }
}

/// The signs of life of a peer.
#[derive(Default)]
struct Pulse {
    /// The last question it has answered.
    answered: AtomicU64,
    /// Its connection bears what is passed on.
    settled: AtomicBool,
}

/// How a peering ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// This side ended it.
    Here(Refusal),
    /// The other side did.
    There(Refusal),
    /// The peer said nothing any more.
    Silent,
    /// The connection broke, or was closed.
    Lost,
}

impl Ended {
    /// Whether it broke without a word.
    fn broke(self, connection: &Connection) -> bool {
        let farewell = matches!(
            connection.close_reason(),
            Some(quinn::ConnectionError::ApplicationClosed(close)) if close.error_code == FAREWELL
        );
        matches!(self, Ended::Silent | Ended::Lost) && !farewell
    }
}

/// Says a last word and sees it off.
async fn farewell(connection: &Connection, send: &mut SendStream, last: Vec<u8>) {
    let saying = async {
        if send.write_all(&last).await.is_ok() && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    };
    let _ = timeout(PATIENCE, saying).await;
    connection.close(FAREWELL, b"refused");
}
