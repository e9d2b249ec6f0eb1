//! Who is attached to a relay and holds which tag, and so where a datagram goes.
//!
//! A tag belongs to who proved a claim to it last, unless the former holder is alive: it is pinged,
//! and an answer within [`TRIAL`] keeps it. A node that comes with the key of the holder is the
//! holder itself, come back before its former connection was missed.
//!
//! What is held here comes before whatever peers say; a tag that nobody holds here may be held at
//! one of them ([`super::peering`]). A datagram goes between relays once: what came from a peer is
//! for those who are attached here, and nobody else.

mod forward;
mod peers;
mod trials;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::between::Between;
use super::limits::{Limits, Meter};
use super::message::{Refusal, ToNode, ToRelay, VERSIONS};
use super::peering::Peers;
use super::pressure::{Crowds, Rates};
use crate::keys::LEN;
use crate::mesh::claim::Tag;
use crate::mesh::record::{Attachment as Attached, Record};
use forward::{Edition, SharedMeter};
use trials::{Asked, Trial, Why};

pub use forward::{Ends, Forward, Forwarder, Route};
pub use peers::Heard;

/// How long the holder of a tag has to show that it lives when another node claims it: a busy VM
/// pauses for less, and a container that was started again is to have its name within two seconds.
pub const TRIAL: Duration = Duration::from_millis(500);

/// How long the holder of a tag has to show that it lives when another relay says that it is there
/// now: most often it is at both. Longer than any way to a node takes.
pub const ELSEWHERE_TRIAL: Duration = Duration::from_secs(3);

/// Questions of one peer about holders that may be open at once: rarely is there one.
const MAX_PROBES: usize = 64;

/// Tags one node may hold or be waiting for: one for each cookie it uses, and for each of its names.
pub const MAX_CLAIMS: usize = 64;

/// Entries told of a directory: what a page or a person can look through.
const MAX_LISTED: usize = 4096;

/// When who comes to a relay that goes is to come again: a service that is started anew is there then.
const GONE_MS: u32 = 2000;

/// Stands for one attachment.
pub type Id = u64;

/// Who may attach to a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Who shows one of these tokens.
    Tokens(Vec<Token>),
    /// Who shows a certificate of the realm's CA, which the shell judges.
    Authority,
}

/// A token, as its hash: comparing hashes tells nothing of it by the time it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token([u8; LEN]);

impl Token {
    /// Keeps the hash of `token`.
    pub fn new(token: &[u8]) -> Token {
        Token(Sha256::digest(token).into())
    }

    pub(super) fn hash(&self) -> &[u8; LEN] {
        &self.0
    }
}

/// What a relay serves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The realms served; none: all, openly.
    pub realms: Option<HashMap<String, Access>>,
    /// Nodes, at most. None: no limit.
    pub nodes: Option<usize>,
    /// Nodes of a realm, at most. None: no limit.
    pub nodes_per_realm: Option<usize>,
    /// Nodes that may attach in a second; others are told to come again.
    pub attachments: Rates,
    /// What a node may send.
    pub per_node: Limits,
    /// What the nodes of a realm may send together.
    pub per_realm: Limits,
}

/// Who has connected.
#[derive(Clone, Debug)]
pub struct Stranger {
    /// The hash of the key it showed in TLS.
    pub node_id: [u8; LEN],
    /// The hash of the key this relay showed it.
    pub relay_id: [u8; LEN],
    /// Keying material of its connection.
    pub exporter: [u8; LEN],
    /// Where it is seen.
    pub address: SocketAddr,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Send(Id, ToNode),
    /// Send this last, and close.
    Close(Id, ToNode),
    /// Send this to a peer.
    Tell(Id, Between),
    /// Send this to a peer last, and close.
    Part(Id, Refusal),
    /// There is something for [`Relay::announcement`] to tell a peer.
    Wake(Id),
}

/// What a relay knows about itself and the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The time since any fixed moment.
    pub now: Duration,
    /// Milliseconds since 1970.
    pub wall: u64,
}

/// The relay's decisions. Times are since any fixed moment.
#[derive(Debug, Default)]
pub struct Relay {
    config: Config,
    attachments: HashMap<Id, Attachment>,
    realms: HashMap<String, Realm>,
    peers: Peers,
    /// Advances with every change of where datagrams go.
    edition: Edition,
    /// The nodes of all realms.
    nodes: usize,
    trials: Vec<Trial>,
    last_token: u64,
    crowds: Crowds,
    /// It is about to go.
    goes: bool,
}

#[derive(Debug)]
struct Attachment {
    stranger: Stranger,
    /// None until it is attached.
    realm: Option<String>,
    claims: Vec<Tag>,
}

#[derive(Debug)]
struct Realm {
    nodes: usize,
    holders: HashMap<Tag, Holder>,
    /// What all of its nodes may send together; none: as much as they like.
    meter: Option<SharedMeter>,
}

#[derive(Debug)]
struct Holder {
    id: Id,
    sealed: Arc<[u8]>,
    /// Its word for other relays, once it gave it.
    record: Option<Record>,
}

impl Relay {
    /// A relay to which nobody is attached.
    pub fn new(config: Config) -> Relay {
        Relay { config, ..Relay::default() }
    }

    /// What a relay says first to whoever has connected.
    pub fn offer() -> ToNode {
        ToNode::Offer { versions: VERSIONS, features: 0 }
    }

    /// A node has connected.
    pub fn connected(&mut self, id: Id, stranger: Stranger) {
        let attachment = Attachment { stranger, realm: None, claims: Vec::new() };
        self.attachments.insert(id, attachment);
    }

    /// The connection of a node has ended.
    pub fn gone(&mut self, id: Id) -> Vec<Action> {
        let Some(attachment) = self.attachments.remove(&id) else {
            return Vec::new();
        };
        self.edition.advance();
        let mut actions = Vec::new();
        if let Some(name) = attachment.realm
            && let Some(realm) = self.realms.get_mut(&name)
        {
            self.trials.retain(|trial| !trial.is_claim_of(id));
            let left = realm.holders.extract_if(|_, holder| holder.id == id);
            let left: Vec<_> = left.filter(|(_, holder)| holder.record.is_some()).collect();
            realm.nodes -= 1;
            self.nodes -= 1;
            if realm.nodes == 0 {
                self.realms.remove(&name);
            }
            left.iter().for_each(|(tag, _)| actions.extend(self.mark(&name, *tag)));
        }
        actions
    }

    /// Attached nodes.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Takes a message of `id`. `vouched` says whether its certificate is of the CA of a realm.
    pub fn receive(
        &mut self,
        Clock { now, wall }: Clock,
        id: Id,
        message: ToRelay,
        vouched: impl FnOnce(&str) -> bool,
    ) -> Vec<Action> {
        let Some(attachment) = self.attachments.get(&id) else {
            return Vec::new();
        };
        let attached = attachment.realm.is_some();
        match message {
            ToRelay::Attach { version, realm, token, .. } if !attached => {
                let admitted = self.admit(now, version, &realm, &token, vouched);
                match admitted {
                    Ok(()) => self.attach(now, wall, id, realm),
                    Err(refusal) => self.refuse(id, refusal),
                }
            }
            ToRelay::Claim { claim, sealed } if attached => {
                let (realm, exporter) =
                    (attachment.realm.as_deref().unwrap_or(""), &attachment.stranger.exporter);
                match claim.verify(realm, exporter) {
                    Some(tag) if !self.may_claim(id, &tag) => self.refuse(id, Refusal::Full),
                    Some(tag) => self.claim(now, id, tag, sealed.into()),
                    None => self.refuse(id, Refusal::Proof),
                }
            }
            ToRelay::Record(record) if attached => self.record(now, id, record),
            ToRelay::Release(tag) if attached => self.release(id, tag),
            ToRelay::Ping(token) if attached => vec![Action::Send(id, ToNode::Pong(token))],
            ToRelay::Pong(token) if attached => self.alive(now, id, token),
            ToRelay::List if attached => self.list(now, id),
            _ => self.refuse(id, Refusal::Malformed),
        }
    }

    /// Ends the attachment of a node whose words cannot be read.
    pub fn malformed(&mut self, id: Id) -> Vec<Action> {
        self.refuse(id, Refusal::Malformed)
    }

    /// When [`Relay::expire`] has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        self.trials.iter().map(|trial| trial.ends).min()
    }

    /// Ends the trials that are over at `now`: those holders did not answer.
    pub fn expire(&mut self, now: Duration) -> Vec<Action> {
        self.crowds.forget(now);
        // Words of peers end with time.
        self.edition.advance();
        let (over, open) = self.trials.drain(..).partition(|trial| trial.ends <= now);
        self.trials = open;
        let over: Vec<Trial> = over;
        let mut actions: Vec<_> =
            over.into_iter().flat_map(|trial| self.succeed(now, trial)).collect();
        for id in self.peers.expire(now, &self.config) {
            self.parted(now, id, false);
            actions.push(Action::Part(id, Refusal::Token));
        }
        actions
    }

    /// Tells everybody that the relay goes. Who comes from now on is to come again.
    pub fn restarting(&mut self) -> Vec<Action> {
        self.goes = true;
        self.attachments.keys().map(|id| Action::Send(*id, ToNode::Restarting)).collect()
    }

    fn admit(
        &mut self,
        now: Duration,
        version: u8,
        realm: &str,
        token: &[u8],
        vouched: impl FnOnce(&str) -> bool,
    ) -> Result<(), Refusal> {
        if !(VERSIONS.0..=VERSIONS.1).contains(&version) {
            return Err(Refusal::Version);
        }
        let access = match &self.config.realms {
            Some(realms) => realms.get(realm).ok_or(Refusal::UnknownRealm)?,
            None => &Access::Open,
        };
        match access {
            Access::Open => {}
            Access::Tokens(tokens) if tokens.contains(&Token::new(token)) => {}
            Access::Tokens(_) => return Err(Refusal::Token),
            Access::Authority if vouched(realm) => {}
            Access::Authority => return Err(Refusal::Certificate),
        }
        let in_realm = self.realms.get(realm).map_or(0, |realm| realm.nodes);
        let is_full = |nodes, most: Option<usize>| most.is_some_and(|most| nodes >= most);
        if is_full(in_realm, self.config.nodes_per_realm) || is_full(self.nodes, self.config.nodes)
        {
            return Err(Refusal::Full);
        }
        if self.goes {
            return Err(Refusal::Busy(GONE_MS));
        }
        let busy =
            |again: Duration| Refusal::Busy(again.as_millis().try_into().unwrap_or(u32::MAX));
        self.crowds.arrive(now, realm, self.config.attachments).map_err(busy)
    }

    fn attach(&mut self, now: Duration, wall: u64, id: Id, name: String) -> Vec<Action> {
        let Some(attachment) = self.attachments.get_mut(&id) else {
            return Vec::new();
        };
        let realm = self.realms.entry(name.clone()).or_insert_with(|| Realm {
            nodes: 0,
            holders: HashMap::new(),
            meter: meter_of_all(&self.config.per_realm, now),
        });
        realm.nodes += 1;
        self.nodes += 1;
        attachment.realm = Some(name);
        let observed = attachment.stranger.address;
        vec![Action::Send(id, ToNode::Attached { features: 0, observed, time: wall })]
    }

    fn claim(&mut self, now: Duration, id: Id, tag: Tag, sealed: Arc<[u8]>) -> Vec<Action> {
        let holder = self.holder(id, &tag);
        if holder == Some(id) {
            return self.hold(now, id, tag, sealed, None);
        }
        if let Some(holder) = holder
            && self.node_id(holder) == self.node_id(id)
        {
            let mut actions = self.refuse(holder, Refusal::Replaced);
            actions.extend(self.hold(now, id, tag, sealed, None));
            return actions;
        }
        let rival = match holder {
            Some(holder) => Some(Asked::Holder(holder)),
            None => self.rival(now, id, &tag),
        };
        let Some(rival) = rival else {
            return self.hold(now, id, tag, sealed, None);
        };
        // One trial a claimant: a claim repeated meanwhile changes nothing, and is no reason to ask
        // the holder again.
        if self.trials.iter().any(|trial| trial.is_claim_of(id) && trial.tag == tag) {
            return Vec::new();
        }
        let realm = self.attachments.get(&id).and_then(|attachment| attachment.realm.clone());
        let why = Why::Claim { claimant: id, sealed, record: None };
        vec![self.ask(now + TRIAL, rival, why, (&realm.unwrap_or_default(), tag))]
    }

    /// Whether `id` may claim `tag`, beside what it holds and waits for.
    fn may_claim(&self, id: Id, tag: &Tag) -> bool {
        let held = self.attachments.get(&id).map_or(&[][..], |attachment| &attachment.claims);
        let awaited = self.trials.iter().filter(|trial| trial.is_claim_of(id));
        held.contains(tag) || held.len() + awaited.count() < MAX_CLAIMS
    }

    /// Makes `id` the holder of a tag. What it said for other relays before is kept.
    fn hold(
        &mut self,
        now: Duration,
        id: Id,
        tag: Tag,
        sealed: Arc<[u8]>,
        record: Option<Record>,
    ) -> Vec<Action> {
        let Some(attachment) = self.attachments.get_mut(&id) else {
            return Vec::new();
        };
        let realm = attachment.realm.as_ref().and_then(|name| self.realms.get_mut(name));
        let Some(realm) = realm else {
            return Vec::new();
        };
        self.trials.retain(|trial| !trial.is_claim_of(id) || trial.tag != tag);
        if !attachment.claims.contains(&tag) {
            attachment.claims.push(tag);
        }
        let former = realm.holders.remove(&tag).filter(|former| former.id == id);
        let former = former.and_then(|former| former.record);
        realm.holders.insert(tag, Holder { id, sealed, record: former });
        self.edition.advance();
        let mut actions = vec![Action::Send(id, ToNode::Held(tag))];
        if let Some(record) = record {
            actions.extend(self.publish(now, id, tag, record));
        }
        actions
    }

    /// Takes a node's word for other relays about a tag that it holds, or waits for.
    fn record(&mut self, now: Duration, id: Id, record: Record) -> Vec<Action> {
        let Some(Attachment { stranger, realm: Some(realm), .. }) = self.attachments.get(&id)
        else {
            return Vec::new();
        };
        let at = Attached { node: stranger.node_id, relay: stranger.relay_id };
        let Some(tag) = record.verify(realm, &at) else {
            return self.refuse(id, Refusal::Proof);
        };
        if self.holder(id, &tag) == Some(id) {
            return self.publish(now, id, tag, record);
        }
        for trial in &mut self.trials {
            if trial.is_claim_of(id)
                && trial.tag == tag
                && let Why::Claim { record: said, .. } = &mut trial.why
            {
                *said = Some(record.clone());
            }
        }
        Vec::new()
    }

    fn release(&mut self, id: Id, tag: Tag) -> Vec<Action> {
        let Some(attachment) = self.attachments.get_mut(&id) else {
            return Vec::new();
        };
        attachment.claims.retain(|claimed| *claimed != tag);
        self.edition.advance();
        let Some(name) = attachment.realm.clone() else {
            return Vec::new();
        };
        match self.realms.get_mut(&name) {
            Some(realm) if realm.holders.get(&tag).is_some_and(|holder| holder.id == id) => {
                realm.holders.remove(&tag);
                self.mark(&name, tag)
            }
            _ => Vec::new(),
        }
    }

    fn list(&self, now: Duration, id: Id) -> Vec<Action> {
        let name = self.attachments.get(&id).and_then(|attachment| attachment.realm.as_deref());
        let name = name.unwrap_or_default();
        let realm = self.realms.get(name);
        let here = realm.into_iter().flat_map(|realm| &realm.holders);
        let here = here.map(|(tag, holder)| (*tag, holder.sealed.clone()));
        let is_here = |tag: &Tag| realm.is_some_and(|realm| realm.holders.contains_key(tag));
        let there = self.peers.names(now, name).filter(|(tag, _)| !is_here(tag));
        let entries = here.chain(there).take(MAX_LISTED);
        let entries = entries.map(|(tag, sealed)| Action::Send(id, ToNode::Entry { tag, sealed }));
        entries.chain([Action::Send(id, ToNode::Listed)]).collect()
    }

    fn refuse(&mut self, id: Id, refusal: Refusal) -> Vec<Action> {
        let mut actions = self.gone(id);
        actions.push(Action::Close(id, ToNode::Refused(refusal)));
        actions
    }

    fn realm_of(&self, id: Id) -> Option<&Realm> {
        self.realms.get(self.attachments.get(&id)?.realm.as_ref()?)
    }

    /// Who holds `tag` in the realm of `id`.
    fn holder(&self, id: Id, tag: &Tag) -> Option<Id> {
        Some(self.realm_of(id)?.holders.get(tag)?.id)
    }

    /// Who holds `tag` in a realm here.
    fn holder_in(&self, realm: &str, tag: &Tag) -> Option<Id> {
        Some(self.realms.get(realm)?.holders.get(tag)?.id)
    }

    fn node_id(&self, id: Id) -> Option<&[u8; LEN]> {
        Some(&self.attachments.get(&id)?.stranger.node_id)
    }
}

fn meter_of_all(limits: &Limits, now: Duration) -> Option<SharedMeter> {
    let is_limited = *limits != Limits::default();
    is_limited.then(|| Arc::new(Mutex::new(Meter::new(limits, now))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::key::tests::KEY;
    use proptest::prelude::*;

    pub(super) const NOW: Duration = Duration::ZERO;

    pub(super) fn at(now: Duration) -> Clock {
        Clock { now, wall: now.as_millis() as u64 }
    }

    /// Attaches node `id`, whose key and connection are told by its number.
    pub(super) fn attach(
        relay: &mut Relay,
        id: Id,
        node: u8,
        realm: &str,
        token: &[u8],
    ) -> Vec<Action> {
        let stranger = Stranger {
            node_id: [node; LEN],
            relay_id: [0; LEN],
            exporter: [id as u8; LEN],
            address: SocketAddr::from(([192, 0, 2, 1], 4433)),
        };
        relay.connected(id, stranger);
        let (realm, token) = (realm.to_string(), token.to_vec().into());
        relay.receive(
            at(NOW),
            id,
            ToRelay::Attach { version: 1, features: 0, realm, token },
            |_| false,
        )
    }

    pub(super) fn claim(relay: &mut Relay, now: Duration, id: Id, name: &str) -> Vec<Action> {
        let realm = relay.attachments.get(&id).and_then(|a| a.realm.clone()).unwrap_or_default();
        let claim = KEY.claim(name).claim(&realm, &[id as u8; LEN]);
        let message = ToRelay::Claim { claim, sealed: name.into() };
        relay.receive(at(now), id, message, |_| false)
    }

    pub(super) fn held(id: Id, name: &str) -> Action {
        Action::Send(id, ToNode::Held(KEY.tag(name)))
    }

    fn closed(id: Id, refusal: Refusal) -> Action {
        Action::Close(id, ToNode::Refused(refusal))
    }

    #[test]
    fn a_realm_lets_in_whom_it_should() {
        let realms = [
            ("open".to_string(), Access::Open),
            ("token".to_string(), Access::Tokens(vec![Token::new(b"sesame")])),
            ("ca".to_string(), Access::Authority),
        ];
        let config = Config { realms: Some(realms.into()), ..Config::default() };
        let mut relay = Relay::new(config);
        let mut refusal =
            |realm: &str, token: &[u8]| match &attach(&mut relay, 1, 1, realm, token)[..] {
                [Action::Send(1, ToNode::Attached { .. })] => None,
                [Action::Close(1, ToNode::Refused(refusal))] => Some(*refusal),
                other => panic!("{other:?}"),
            };
        assert_eq!(refusal("open", b""), None);
        assert_eq!(refusal("token", b"sesame"), None);
        assert_eq!(refusal("token", b"sesam"), Some(Refusal::Token));
        assert_eq!(refusal("ca", b""), Some(Refusal::Certificate));
        assert_eq!(refusal("other", b""), Some(Refusal::UnknownRealm));
    }

    #[test]
    fn a_full_realm_takes_nobody_else() {
        let mut relay = Relay::new(Config { nodes_per_realm: Some(1), ..Config::default() });
        assert!(matches!(attach(&mut relay, 1, 1, "r", b"")[..], [Action::Send(..)]));
        assert_eq!(attach(&mut relay, 2, 2, "r", b""), [closed(2, Refusal::Full)]);
        relay.gone(1);
        assert!(matches!(attach(&mut relay, 3, 3, "r", b"")[..], [Action::Send(..)]));
    }

    /// Realms that strangers make up do not add up without an end.
    #[test]
    fn a_full_relay_takes_nobody_else_in_any_realm() {
        let mut relay = Relay::new(Config { nodes: Some(2), ..Config::default() });
        for (id, realm) in [(1, "r"), (2, "s")] {
            assert!(matches!(attach(&mut relay, id, id as u8, realm, b"")[..], [Action::Send(..)]));
        }
        for (id, realm) in [(3, "r"), (4, "t")] {
            let refused = attach(&mut relay, id, id as u8, realm, b"");
            assert_eq!(refused, [closed(id, Refusal::Full)]);
            relay.gone(id);
        }
        assert_eq!(relay.nodes(), 2);
        relay.gone(1);
        assert_eq!(relay.nodes(), 1);
        assert!(matches!(attach(&mut relay, 5, 5, "t", b"")[..], [Action::Send(..)]));
    }

    #[test]
    fn who_comes_in_a_crowd_is_told_when_to_come_again() {
        let attachments = Rates { relay: Some(2), realm: None };
        let mut relay = Relay::new(Config { attachments, ..Config::default() });
        for id in 1..=2 {
            assert!(matches!(attach(&mut relay, id, id as u8, "r", b"")[..], [Action::Send(..)]));
        }
        assert_eq!(attach(&mut relay, 3, 3, "r", b""), [closed(3, Refusal::Busy(500))]);
        assert_eq!(attach(&mut relay, 4, 4, "r", b""), [closed(4, Refusal::Busy(1000))]);
        assert_eq!(relay.nodes(), 2);
    }

    #[test]
    fn a_crowd_in_one_realm_keeps_nobody_from_another() {
        let attachments = Rates { relay: None, realm: Some(1) };
        let mut relay = Relay::new(Config { attachments, ..Config::default() });
        assert!(matches!(attach(&mut relay, 1, 1, "r", b"")[..], [Action::Send(..)]));
        assert_eq!(attach(&mut relay, 2, 2, "r", b""), [closed(2, Refusal::Busy(1000))]);
        assert!(matches!(attach(&mut relay, 3, 3, "s", b"")[..], [Action::Send(..)]));
        // Who leaves makes no room: it is about how many come.
        relay.gone(1);
        assert_eq!(attach(&mut relay, 4, 4, "r", b""), [closed(4, Refusal::Busy(2000))]);
    }

    #[test]
    fn a_relay_that_goes_tells_its_nodes_and_takes_nobody_else() {
        let mut relay = Relay::default();
        attach(&mut relay, 1, 1, "r", b"");
        assert_eq!(relay.restarting(), [Action::Send(1, ToNode::Restarting)]);
        assert_eq!(attach(&mut relay, 2, 2, "r", b""), [closed(2, Refusal::Busy(GONE_MS))]);
    }

    #[test]
    fn a_live_holder_keeps_its_tag() {
        let mut relay = Relay::default();
        attach(&mut relay, 1, 1, "r", b"");
        attach(&mut relay, 2, 2, "r", b"");
        claim(&mut relay, NOW, 1, "a");
        let asked = claim(&mut relay, NOW, 2, "a");
        let [Action::Send(1, ToNode::Ping(token))] = asked[..] else { panic!("{asked:?}") };
        let answer = relay.receive(at(NOW), 1, ToRelay::Pong(token), |_| false);
        assert_eq!(answer, [Action::Send(2, ToNode::Taken(KEY.tag("a")))]);
        assert_eq!(relay.deadline(), None);
        assert_eq!(relay.holder(2, &KEY.tag("a")), Some(1));
    }

    #[test]
    fn a_tag_that_is_let_go_during_a_trial_is_the_claimants() {
        for claimed_again in [false, true] {
            let mut relay = Relay::default();
            attach(&mut relay, 1, 1, "r", b"");
            attach(&mut relay, 2, 2, "r", b"");
            claim(&mut relay, NOW, 1, "a");
            let asked = claim(&mut relay, NOW, 2, "a");
            let [Action::Send(1, ToNode::Ping(token))] = asked[..] else { panic!("{asked:?}") };
            // The holder is asked once, however often the other one claims.
            assert_eq!(claim(&mut relay, NOW, 2, "a"), []);
            relay.receive(at(NOW), 1, ToRelay::Release(KEY.tag("a")), |_| false);
            if claimed_again {
                assert_eq!(claim(&mut relay, NOW, 2, "a"), [held(2, "a")]);
            }
            let answer = relay.receive(at(NOW), 1, ToRelay::Pong(token), |_| false);
            let expected = if claimed_again { vec![] } else { vec![held(2, "a")] };
            assert_eq!(answer, expected);
            assert_eq!(relay.holder(2, &KEY.tag("a")), Some(2));
            assert_eq!(relay.deadline(), None);
        }
    }

    #[test]
    fn a_node_holds_and_awaits_no_more_than_it_may() {
        let mut relay = Relay::default();
        attach(&mut relay, 1, 1, "r", b"");
        attach(&mut relay, 2, 2, "r", b"");
        let names: Vec<_> = (0..MAX_CLAIMS).map(|n| format!("{n}")).collect();
        for name in &names {
            assert_eq!(claim(&mut relay, NOW, 1, name), [held(1, name)]);
        }
        assert_eq!(claim(&mut relay, NOW, 1, &names[0]), [held(1, &names[0])]);
        for name in &names {
            assert!(matches!(claim(&mut relay, NOW, 2, name)[..], [Action::Send(1, _)]));
        }
        assert_eq!(claim(&mut relay, NOW, 2, "more"), [closed(2, Refusal::Full)]);
        assert_eq!(relay.deadline(), None);
        assert_eq!(claim(&mut relay, NOW, 1, "more"), [closed(1, Refusal::Full)]);
    }

    #[test]
    fn a_dead_holder_is_succeeded() {
        let mut relay = Relay::default();
        attach(&mut relay, 1, 1, "r", b"");
        attach(&mut relay, 2, 2, "r", b"");
        claim(&mut relay, NOW, 1, "a");
        claim(&mut relay, NOW, 2, "a");
        assert_eq!(relay.expire(TRIAL / 2), []);
        assert_eq!(relay.deadline(), Some(TRIAL));
        assert_eq!(relay.expire(TRIAL), [closed(1, Refusal::Replaced), held(2, "a")]);
        assert_eq!(relay.nodes(), 1);
    }

    #[test]
    fn a_node_that_comes_back_is_let_in_at_once() {
        let mut relay = Relay::default();
        attach(&mut relay, 1, 7, "r", b"");
        claim(&mut relay, NOW, 1, "a");
        attach(&mut relay, 2, 7, "r", b"");
        let actions = claim(&mut relay, NOW, 2, "a");
        assert_eq!(actions, [closed(1, Refusal::Replaced), held(2, "a")]);
    }

    #[test]
    fn a_claim_for_another_connection_is_refused() {
        let mut relay = Relay::default();
        attach(&mut relay, 1, 1, "r", b"");
        let stolen = KEY.claim("a").claim("r", &[9; LEN]);
        let message = ToRelay::Claim { claim: stolen, sealed: Vec::new() };
        let refused = relay.receive(at(NOW), 1, message, |_| true);
        assert_eq!(refused, [closed(1, Refusal::Proof)]);
    }

    #[test]
    fn the_directory_tells_of_one_realm() {
        let mut relay = Relay::default();
        for (id, realm, name) in [(1, "r", "a"), (2, "r", "b"), (3, "s", "c")] {
            attach(&mut relay, id, id as u8, realm, b"");
            claim(&mut relay, NOW, id, name);
        }
        let mut told: Vec<_> = relay.receive(at(NOW), 1, ToRelay::List, |_| false);
        assert_eq!(told.pop(), Some(Action::Send(1, ToNode::Listed)));
        let mut names: Vec<_> = told
            .iter()
            .map(|action| match action {
                Action::Send(1, ToNode::Entry { sealed, .. }) => sealed.to_vec(),
                other => panic!("{other:?}"),
            })
            .collect();
        names.sort();
        assert_eq!(names, [b"a".to_vec(), b"b".to_vec()]);
    }

    proptest! {
        /// After any history each tag has one holder, who is attached and has claimed it, and the
        /// count of nodes is right.
        #[test]
        fn holders_are_attached(
            steps in proptest::collection::vec((0u8..7, 1u64..6, 0usize..3, 0u64..800), 1..80),
        ) {
            let (mut relay, mut now, names) = (Relay::default(), Duration::ZERO, ["a", "b", "c"]);
            let mut pings: Vec<(Id, u64)> = Vec::new();
            for (step, id, name, pause) in steps {
                now += Duration::from_millis(pause);
                let actions = match step {
                    0 => {
                        relay.gone(id);
                        attach(&mut relay, id, id as u8 % 4, "r", b"")
                    }
                    1 => { relay.gone(id); Vec::new() }
                    2 | 3 => claim(&mut relay, now, id, names[name]),
                    4 => relay.receive(at(now), id, ToRelay::Release(KEY.tag(names[name])), |_| false),
                    5 => match pings.pop() {
                        Some((id, token)) => relay.receive(at(now), id, ToRelay::Pong(token), |_| false),
                        None => Vec::new(),
                    },
                    _ => relay.expire(now),
                };
                for action in actions {
                    if let Action::Send(id, ToNode::Ping(token)) = action {
                        pings.push((id, token));
                    }
                }
                let attached = relay.attachments.values().filter(|a| a.realm.is_some()).count();
                prop_assert_eq!(relay.nodes(), attached);
                for realm in relay.realms.values() {
                    for (tag, holder) in &realm.holders {
                        prop_assert!(relay.attachments[&holder.id].claims.contains(tag));
                    }
                }
            }
        }
    }
}
