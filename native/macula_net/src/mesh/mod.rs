//! This node in a mesh: attached to relays, reachable through them by name, for those who share
//! its cookie and realm.

pub(crate) mod attachment;
mod inbound;
mod tunnels;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use macula_core::keys::{self, LEN};
use macula_core::mesh::claim::{ClaimKey, Tag};
use macula_core::mesh::key::MeshKey;
use macula_core::mesh::record::Attachment;
use macula_core::mesh::retry::Pace;
use macula_core::mesh::seal;
use macula_core::path::select::Path;
use macula_core::relay::message::{Refusal, ToRelay};
use macula_core::relay::table::MAX_CLAIMS;
use macula_core::secret::Secret;
use parking_lot::Mutex;
use quinn::Connection;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use zeroize::Zeroizing;

use crate::answers::{Answer, NOT_IN_QUIC};
use crate::certificate::{CertificateFault, CertificateFiles};
use crate::cookies::{Cookie, CookieKeys};
use crate::endpoint::{BindError, Shared, hex};
use crate::link::Link;
use crate::tls::Tls;
use attachment::Order;

pub use tunnels::TunnelInfo;
pub(crate) use tunnels::{ANY_LEG, Tunnels, is_label};

/// Orders that wait for an attachment. Whoever gives more waits.
const ORDERS: usize = 16;

/// How long a relay may take to tell its directory, or to grant a tag.
const ANSWER: Duration = Duration::from_secs(2);

/// How often the node is told of datagrams that cannot be opened, at most.
const TELL_FORGED: Duration = Duration::from_secs(5);

/// A relay, as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayUrl {
    /// The whole, for messages.
    pub text: String,
    /// Its host: a name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// How to join a mesh.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The relays.
    pub relays: Vec<RelayUrl>,
    /// The realm.
    pub realm: String,
    /// A name under which other nodes find this one, beside its own.
    pub identity: Option<String>,
    /// What lets it in, where the realm asks for a token; else empty.
    pub token: Secret,
    /// Whether the relays' certificates must be of a trusted CA.
    pub verify: bool,
    /// Certificates for this.
    pub certificates: CertificateFiles,
    /// How relays are tried again.
    pub pace: Pace,
    /// Whether to go on trying when no relay took this node in time.
    pub keep: bool,
}

/// Why this node is not attached to a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayError {
    /// Its host cannot be resolved.
    Name(String),
    /// Nothing answered in time.
    Timeout,
    /// Nothing listens on its port.
    PortClosed,
    /// What answers is no relay of ours.
    NotARelay(String),
    /// What answers is a node of ours, on which no relay was started.
    NoRelayHere,
    /// It speaks these versions only.
    Version(u8, u8),
    /// Its certificate was refused here.
    Certificate(CertificateFault),
    /// It refused the certificate of this node.
    OwnCertificate(CertificateFault),
    /// It refused this node.
    Refused(Refusal),
    /// The attachment broke off.
    Lost(String),
    /// No attempt has ended yet.
    Trying,
}

impl RelayError {
    /// Whether trying again could help.
    fn is_final(&self) -> bool {
        match self {
            RelayError::NotARelay(_)
            | RelayError::NoRelayHere
            | RelayError::Version(..)
            | RelayError::Certificate(_)
            | RelayError::OwnCertificate(_) => true,
            RelayError::Refused(refusal) => {
                let may_pass = matches!(refusal, Refusal::Full | Refusal::Busy(_));
                !may_pass && !matches!(refusal, Refusal::Replaced | Refusal::Other(_))
            }
            _ => false,
        }
    }

    /// When the relay wants to be tried again, if it said so.
    fn come_again(&self) -> Option<Duration> {
        match self {
            RelayError::Refused(Refusal::Busy(ms)) => Some(Duration::from_millis((*ms).into())),
            _ => None,
        }
    }
}

/// Why a mesh was not joined.
#[derive(Debug)]
pub enum JoinError {
    /// A file of certificates or keys cannot be used, or TLS could not be set up.
    Certificates(BindError),
    /// The key of the mesh could not be made.
    Key(String),
    /// Another node of this name is in the realm, and alive.
    NameTaken(String),
    /// No relay took this node: the reason of each.
    Relays(Vec<(RelayUrl, RelayError)>),
}

/// How long to hope for a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempts {
    /// Until the first attempt at each relay has ended.
    First,
    /// As long as trying again could help.
    All,
}

/// How this node stands with a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not attached.
    Down(RelayError),
    /// Attached.
    Attached {
        /// Where the relay sees this node.
        observed: SocketAddr,
    },
    /// Attached to a relay that is about to go.
    Draining,
}

/// What is told of a relay.
#[derive(Clone, Debug)]
pub struct RelayInfo {
    /// Which.
    pub url: String,
    /// How this node stands with it.
    pub state: State,
}

/// This node's part in a mesh.
pub(crate) struct Mesh {
    shared: Weak<Shared>,
    config: MeshConfig,
    tls: Arc<Tls>,
    pub(crate) tunnels: Arc<Tunnels>,
    keys: CookieKeys,
    own: Mutex<Vec<Own>>,
    /// The tags among them under the cookie that this node has now.
    current: Mutex<Vec<Tag>>,
    /// The base keys of the cookies in use, as told last.
    cookies: Mutex<Vec<Base>>,
    relays: Mutex<Vec<RelayState>>,
    orders: Vec<mpsc::Sender<Order>>,
    tasks: Mutex<JoinSet<()>>,
    /// Counts the changes of all below it.
    changes: watch::Sender<u64>,
    /// Who waits for a peer that relays may not know.
    sought: Mutex<HashMap<Tag, Arc<Sought>>>,
}

struct RelayState {
    state: State,
    /// What came from the address that is dialled now, if one is.
    dialled: Weak<Answer>,
}

impl RelayState {
    /// Why this node is not attached, as far as an attempt that is under way can tell.
    fn error(&self) -> Option<RelayError> {
        let State::Down(error) = &self.state else {
            return None;
        };
        let answer = self.dialled.upgrade().filter(|_| *error == RelayError::Trying);
        Some(match answer {
            Some(answer) if answer.is_foreign() => RelayError::NotARelay(NOT_IN_QUIC.into()),
            Some(answer) if !answer.came() => RelayError::Timeout,
            _ => error.clone(),
        })
    }
}

/// A tag this node claims.
struct Own {
    tag: Tag,
    name: String,
    claim: ClaimKey,
    key: Arc<MeshKey>,
    /// The relays where it holds the tag.
    held: HashSet<usize>,
    /// The relays where another node does.
    taken: HashSet<usize>,
}

/// A peer that is dialled.
#[derive(Default)]
struct Sought {
    /// The relays that know of nobody who holds its tag.
    unknown_at: Mutex<HashSet<usize>>,
    told: Notify,
}

/// What a cookie comes to before it is stretched.
type Base = Zeroizing<[u8; LEN]>;

/// A label to dial, and the way to hear that nobody is there.
pub(crate) struct Route {
    pub(crate) label: SocketAddr,
    mesh: Arc<Mesh>,
    peer: Tag,
    sought: Arc<Sought>,
}

impl Route {
    /// Resolves when every relay this node is attached to knows of nobody who holds the tag.
    pub(crate) async fn nobody(&self) {
        loop {
            let told = self.sought.told.notified();
            if self.is_nowhere() {
                return;
            }
            told.await;
        }
    }

    fn is_nowhere(&self) -> bool {
        let attached = self.mesh.attached();
        let unknown = self.sought.unknown_at.lock();
        !attached.is_empty() && attached.iter().all(|relay| unknown.contains(relay))
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let mut sought = self.mesh.sought.lock();
        // Two hold it: this route and the table.
        if Arc::strong_count(&self.sought) <= 2 {
            sought.remove(&self.peer);
        }
    }
}

impl Mesh {
    /// Begins to attach to the relays, under the names of the endpoint.
    pub(crate) async fn enter(
        shared: &Arc<Shared>,
        config: MeshConfig,
        cookie: Cookie,
    ) -> Result<Arc<Mesh>, JoinError> {
        let tls = Tls::load(&config.certificates, None, shared.identity(), shared.handshakes());
        let tls = tls.map_err(|failure| JoinError::Certificates(failure.into()))?;
        let (orders, inboxes): (Vec<_>, Vec<_>) =
            config.relays.iter().map(|_| mpsc::channel(ORDERS)).unzip();
        let down = || RelayState { state: State::Down(RelayError::Trying), dialled: Weak::new() };
        let mesh = Arc::new(Mesh {
            shared: Arc::downgrade(shared),
            relays: Mutex::new(config.relays.iter().map(|_| down()).collect()),
            config,
            tls: Arc::new(tls),
            tunnels: shared.socket.tunnels.clone(),
            keys: shared.keys().clone(),
            own: Mutex::default(),
            current: Mutex::default(),
            cookies: Mutex::default(),
            orders,
            tasks: Mutex::default(),
            changes: watch::Sender::new(0),
            sought: Mutex::default(),
        });
        mesh.use_cookies(&[cookie]).await.map_err(JoinError::Key)?;
        for (relay, inbox) in inboxes.into_iter().enumerate() {
            mesh.tasks.lock().spawn(attachment::run(mesh.clone(), relay, inbox));
        }
        mesh.tasks.lock().spawn(mesh.clone().tell_forged());
        Ok(mesh)
    }

    async fn tell_forged(self: Arc<Self>) {
        let forged = || self.tunnels.decrypt_failed();
        let mut told = forged();
        loop {
            sleep(TELL_FORGED).await;
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            let now = forged();
            if now > told {
                shared.node.forged(now - told);
            }
            told = now;
        }
    }

    /// Leaves the mesh: the links through it end.
    pub(crate) fn leave(&self) {
        self.tasks.lock().abort_all();
        self.tunnels.hang_up();
    }

    /// How this node stands with each relay.
    pub(crate) fn relays(&self) -> Vec<RelayInfo> {
        let relays = self.relays.lock();
        let info = self.config.relays.iter().zip(&*relays);
        info.map(|(url, relay)| RelayInfo { url: url.text.clone(), state: relay.state.clone() })
            .collect()
    }

    /// The relay with this number.
    pub(crate) fn url_of(&self, relay: usize) -> Option<String> {
        Some(self.config.relays.get(relay)?.text.clone())
    }

    /// Lets a link that is straight take the relays when it has to.
    pub(crate) async fn attach_tunnel(self: Arc<Self>, link: Arc<Link>) {
        let Some(shared) = self.shared.upgrade().filter(|_| !is_label(&link.label())) else {
            return;
        };
        let (peer, own) = (link.peer(), shared.mesh_name());
        // One that was yet to be named is in the mesh under its boot id.
        let name = if peer.name.is_empty() { hex(&peer.boot_id) } else { peer.name.clone() };
        let Ok(cookie) = shared.node.cookie(&peer.name).await else {
            return;
        };
        drop(shared);
        // Without a tunnel the link is what it was: a straight one.
        if let Ok((own, key)) = self.claim_under(&cookie, &own).await
            && let Ok(tunnel) = self.tunnels.between(own, key.tag(&name), &key)
        {
            link.attach_tunnel(tunnel.label);
        }
    }

    /// The relay with this number takes datagrams from now on.
    fn relay_up(&self, relay: usize, connection: Connection) {
        if let Some(shared) = self.shared.upgrade() {
            shared.socket.relay_up(relay, connection);
        }
    }

    /// It does not any more.
    fn relay_down(&self, relay: usize) {
        if let Some(shared) = self.shared.upgrade() {
            shared.socket.relay_down(relay);
        }
    }

    /// The names in the realm's directory that this node can read.
    pub(crate) async fn nodes(&self) -> Vec<String> {
        let mut names = HashSet::new();
        let mut lists = Vec::new();
        for relay in self.attached() {
            let (asker, list) = oneshot::channel();
            if self.order(relay, Order::List(asker)).await {
                lists.push(list);
            }
        }
        let deadline = Instant::now() + ANSWER;
        for list in lists {
            if let Ok(Ok(entries)) = timeout_at(deadline, list).await {
                names.extend(entries.iter().filter_map(|(tag, sealed)| self.name_of(tag, sealed)));
            }
        }
        let mut names: Vec<_> = names.into_iter().collect();
        names.sort();
        names
    }

    fn name_of(&self, tag: &Tag, sealed: &[u8]) -> Option<String> {
        let own = self.own.lock();
        own.iter().find_map(|own| {
            let name = seal::open_name(&own.key, tag, sealed)?;
            // A name under the tag of another one is a lie of whoever wrote it.
            (own.key.tag(&name) == *tag).then_some(name)
        })
    }

    /// The way to the node `name`, under the cookie shared with it.
    pub(crate) async fn route(
        self: &Arc<Self>,
        name: &str,
        cookie: &Cookie,
    ) -> Result<Route, String> {
        let shared = self.shared.upgrade().ok_or("the endpoint is closed")?;
        let (own, key) = self.claim_under(cookie, &shared.mesh_name()).await?;
        self.wait_for_claim(own).await;
        let peer = key.tag(name);
        let tunnel = self.tunnels.between(own, peer, &key)?;
        let sought = self.sought.lock().entry(peer).or_default().clone();
        sought.unknown_at.lock().clear();
        Ok(Route { label: tunnel.label, mesh: self.clone(), peer, sought })
    }

    /// Makes this node be found under these cookies: the first one is its own, the others are
    /// those of peers. Under former ones it is found as well, for those who do not know yet.
    pub(crate) async fn use_cookies(&self, cookies: &[Cookie]) -> Result<(), String> {
        let cookies = cookies.get(..MAX_CLAIMS).unwrap_or(cookies);
        let bases: Vec<_> = cookies.iter().map(|cookie| keys::base(cookie)).collect();
        let former = std::mem::replace(&mut *self.cookies.lock(), bases.clone());
        if former == bases {
            return Ok(());
        }
        let shared = self.shared.upgrade().ok_or("the endpoint is closed")?;
        let names = [Some(shared.mesh_name()), self.config.identity.clone()];
        drop(shared);
        for (n, cookie) in cookies.iter().enumerate() {
            let mut tags = Vec::new();
            for name in names.iter().flatten() {
                tags.push(self.claim_under(cookie, name).await?.0);
            }
            if n == 0 {
                *self.current.lock() = tags;
            }
        }
        Ok(())
    }

    /// Makes this node claim its name under a cookie.
    async fn claim_under(
        &self,
        cookie: &Cookie,
        name: &str,
    ) -> Result<(Tag, Arc<MeshKey>), String> {
        let key = self.keys.realm(cookie, &self.config.realm).await?;
        let claim = key.claim(name);
        let tag = claim.tag();
        let is_new = {
            let mut own = self.own.lock();
            let is_new = own.iter().all(|own| own.tag != tag);
            if is_new {
                self.make_room(&mut own)?;
                let (name, key) = (name.to_owned(), key.clone());
                let (held, taken) = (HashSet::new(), HashSet::new());
                own.push(Own { tag, name, claim, key, held, taken });
            }
            is_new
        };
        if is_new {
            for relay in self.attached() {
                self.order(relay, Order::Claim).await;
            }
        }
        Ok((tag, key))
    }

    /// Releases the oldest claim when there are as many as a relay takes, but none under the own
    /// cookie and none that a link goes by.
    fn make_room(&self, own: &mut Vec<Own>) -> Result<(), String> {
        if own.len() < MAX_CLAIMS {
            return Ok(());
        }
        let current = self.current.lock().clone();
        let is_idle = |own: &Own| !current.contains(&own.tag) && !self.tunnels.are_used(own.tag);
        let idle = own.iter().position(is_idle);
        own.remove(idle.ok_or("too many cookies are in use in the mesh at once")?);
        Ok(())
    }

    /// Whether this node still claims a tag.
    fn claims_tag(&self, tag: &Tag) -> bool {
        self.own.lock().iter().any(|own| own.tag == *tag)
    }

    /// The claims to make on the connection with this keying material, and the records of them: of
    /// the tags that are new to whoever asks.
    fn claims(
        &self,
        exporter: &[u8; LEN],
        (at, now): (&Attachment, u64),
        is_new: impl FnMut(&Tag) -> bool,
    ) -> Vec<ToRelay> {
        let (own, mut is_new) = (self.own.lock(), is_new);
        let claims = own.iter().filter(|own| is_new(&own.tag)).flat_map(|own| {
            let mut nonce = [0; 12];
            // Without a nonce the name stays out of the directory.
            let sealed = match getrandom::fill(&mut nonce) {
                Ok(()) => seal::seal_name(&own.key, &own.tag, &own.name, nonce),
                Err(_) => Vec::new(),
            };
            let realm = &self.config.realm;
            let claim = ToRelay::Claim { claim: own.claim.claim(realm, exporter), sealed };
            [claim, ToRelay::Record(own.claim.record(realm, at, now, 0))]
        });
        claims.collect()
    }

    /// What other relays are to know of a tag, at `now`: newer than what they know.
    fn record(&self, tag: &Tag, at: &Attachment, now: u64, newest: u64) -> Option<ToRelay> {
        let own = self.own.lock();
        let own = own.iter().find(|own| own.tag == *tag)?;
        Some(ToRelay::Record(own.claim.record(&self.config.realm, at, now, newest)))
    }

    /// Takes a datagram that came through a relay.
    fn received(&self, relay: usize, to: Tag, from: Tag, sealed: &[u8], arena: &mut BytesMut) {
        let key = self.own.lock().iter().find(|own| own.tag == to).map(|own| own.key.clone());
        match key {
            Some(key) => {
                let control = self.tunnels.received(relay, (to, from), &key, sealed, arena);
                if let (Some(control), Some(shared)) = (control, self.shared.upgrade()) {
                    shared.socket.control(Path::Relay(relay), &control);
                }
            }
            None => self.tunnels.misdirected(),
        }
    }

    fn nobody(&self, relay: usize, tag: Tag) {
        let sought = self.sought.lock().get(&tag).cloned();
        if let Some(sought) = sought {
            sought.unknown_at.lock().insert(relay);
            sought.told.notify_waiters();
        }
    }

    fn held(&self, relay: usize, tag: Tag) {
        self.with_own(tag, |own| {
            own.taken.remove(&relay);
            own.held.insert(relay);
        });
        // Before, it would not have taken anything from this node.
        if let Some(shared) = self.shared.upgrade() {
            shared.socket.offer_relay(relay);
        }
    }

    /// A relay is about to go: links turn to others, if there are any.
    fn draining(&self, relay: usize) {
        if let Some(shared) = self.shared.upgrade() {
            shared.socket.spare_relay(relay);
        }
        self.set_state(relay, State::Draining);
    }

    fn taken(&self, relay: usize, tag: Tag) {
        self.with_own(tag, |own| {
            own.held.remove(&relay);
            own.taken.insert(relay);
        });
    }

    fn with_own(&self, tag: Tag, change: impl FnOnce(&mut Own)) {
        if let Some(own) = self.own.lock().iter_mut().find(|own| own.tag == tag) {
            change(own);
        }
        self.changed();
    }

    /// An address of a relay is dialled, for as long as `answer` is kept.
    fn dials(&self, relay: usize, answer: &Arc<Answer>) {
        if let Some(known) = self.relays.lock().get_mut(relay) {
            known.dialled = Arc::downgrade(answer);
        }
    }

    fn set_state(&self, relay: usize, state: State) {
        if let Some(known) = self.relays.lock().get_mut(relay) {
            if known.state != state
                && let (Some(shared), Some(url)) =
                    (self.shared.upgrade(), self.config.relays.get(relay))
            {
                shared.node.relay(&url.text, &state);
            }
            known.state = state;
        }
        if self.attached().contains(&relay) {
            return self.changed();
        }
        for own in self.own.lock().iter_mut() {
            own.held.remove(&relay);
            own.taken.remove(&relay);
        }
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The numbers of the relays this node is attached to.
    fn attached(&self) -> Vec<usize> {
        let relays = self.relays.lock();
        let up =
            relays.iter().enumerate().filter(|(_, relay)| !matches!(relay.state, State::Down(_)));
        up.map(|(n, _)| n).collect()
    }

    async fn order(&self, relay: usize, order: Order) -> bool {
        match self.orders.get(relay) {
            Some(orders) => matches!(timeout(ANSWER, orders.send(order)).await, Ok(Ok(()))),
            None => false,
        }
    }

    /// Whether links wait for a relay to come back.
    fn has_links(&self) -> bool {
        self.shared.upgrade().is_some_and(|shared| shared.has_relayed_links())
    }

    fn tls(&self) -> Arc<Tls> {
        self.tls.clone()
    }

    /// Returns when a relay has granted every name, or none will.
    pub(crate) async fn wait_until_held(
        &self,
        attempts: Attempts,
        deadline: Instant,
    ) -> Result<(), JoinError> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if self.is_held() {
                return Ok(());
            }
            if let Some(name) = self.name_taken(&self.undecided()) {
                return Err(JoinError::NameTaken(name));
            }
            if self.is_hopeless(attempts) || timeout_at(deadline, changes.changed()).await.is_err()
            {
                return Err(match self.name_taken(&[]) {
                    Some(name) => JoinError::NameTaken(name),
                    None => JoinError::Relays(self.errors()),
                });
            }
        }
    }

    /// Waits, within a bound, until a relay has granted a tag: the answers come there.
    async fn wait_for_claim(&self, tag: Tag) {
        let mut changes = self.changes.subscribe();
        let held = async {
            loop {
                changes.mark_unchanged();
                let held = self.own.lock().iter().any(|own| own.tag == tag && !own.held.is_empty());
                if held {
                    return;
                }
                attachment::wait(changes.clone()).await;
            }
        };
        // Later the dial fails, and says how the node stands with its relays.
        let _ = timeout(ANSWER, held).await;
    }

    fn is_held(&self) -> bool {
        let own = self.own.lock();
        (0..self.config.relays.len()).any(|relay| own.iter().all(|own| own.held.contains(&relay)))
    }

    /// A name that is another node's at all relays that have answered, when those still
    /// `undecided` have: one of them alone may be wrong, or lie.
    fn name_taken(&self, undecided: &[usize]) -> Option<String> {
        let own = self.own.lock();
        let taken = own.iter().find(|own| {
            let refused = own.held.is_empty() && !own.taken.is_empty();
            refused && undecided.iter().all(|relay| own.taken.contains(relay))
        });
        taken.map(|own| own.name.clone())
    }

    /// The relays that may still grant what this node claims.
    fn undecided(&self) -> Vec<usize> {
        let relays = self.relays.lock();
        let may =
            |state: &State| !matches!(state, State::Down(error) if *error != RelayError::Trying);
        let may = relays.iter().enumerate().filter(|(_, relay)| may(&relay.state));
        may.map(|(n, _)| n).collect()
    }

    fn is_hopeless(&self, attempts: Attempts) -> bool {
        let is_over = |error: &RelayError| match attempts {
            Attempts::First => *error != RelayError::Trying,
            Attempts::All => error.is_final(),
        };
        let relays = self.relays.lock();
        relays.iter().all(|relay| matches!(&relay.state, State::Down(error) if is_over(error)))
    }

    fn errors(&self) -> Vec<(RelayUrl, RelayError)> {
        let relays = self.relays.lock();
        let urls = self.config.relays.iter();
        urls.zip(&*relays).filter_map(|(url, relay)| Some((url.clone(), relay.error()?))).collect()
    }
}
