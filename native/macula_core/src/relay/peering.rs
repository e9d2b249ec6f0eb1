//! What the peers of a relay say is held at them: where a tag is, kept apart from who is attached
//! here, and from what is being forwarded.
//!
//! A peer is told of a realm, and believed about it, only where this relay lets it in: where the
//! realm is open, where the peer has proved to know a token of it, or where a certificate of the
//! realm's CA vouches for it. What a peer says counts by the word of the nodes ([`Record`]): at a
//! peer the number of a tag's record never falls, and among peers the highest one is the node's last
//! word. When a peering breaks, what was said there still stands for [`GRACE`], so that a tag is
//! not taken for nobody's while the peer is called again.
//!
//! [`Record`]: crate::mesh::record::Record

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ring::hmac;

use super::between::{Announcement, MAX_PROOFS, Proof};
use super::message::Refusal;
use super::table::{Access, Config, Id, Token};
use crate::keys::LEN;
use crate::mesh::claim::Tag;

/// Peers that have called and are connected, at most: a full map of relays is for some fifty.
pub const MAX_CALLERS: usize = 64;

/// How long a broken peering is remembered: some attempts to call again. As long as it is, nobody is
/// told that the tags held there are gone.
pub const GRACE: Duration = Duration::from_secs(10);

/// How long a peer may be without a realm it is let into: its proofs take one round trip.
pub const WELCOME: Duration = Duration::from_secs(5);

/// Records of one peer, at most: some 5 MB, or 20 where every name is as long as can be.
pub const MAX_RECORDS: usize = 16 * 1024;

/// Records of all peers together, at most.
pub const MAX_ALL: usize = 128 * 1024;

/// Tokens of realms that are proved to a peer, at most.
const MAX_TOKENS: usize = 10 * MAX_PROOFS;

/// Keeps the proofs apart from whatever else is keyed with a token.
const LABEL: &[u8] = b"macula relay peer v1 ";

/// A relay that became a peer.
#[derive(Clone, Debug)]
pub struct Peering {
    /// The hash of the key it showed in TLS.
    pub relay: [u8; LEN],
    /// The hash of the key this relay showed it.
    pub own: [u8; LEN],
    /// Keying material of the connection.
    pub exporter: [u8; LEN],
    /// Whether this relay called it.
    pub called: bool,
    /// The realms whose CA vouches for it.
    pub vouched: HashSet<String>,
}

/// What is known of the peers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: HashMap<Id, Peer>,
    places: HashMap<Tag, Vec<Place>>,
    records: usize,
}

#[derive(Debug)]
struct Peer {
    peering: Peering,
    began: Duration,
    /// What proves a token of a realm, and what of it was not proved yet.
    expected: HashMap<Proof, (String, Token)>,
    proved: HashSet<String>,
    /// What it is to be shown, before anything else: it takes no word of a realm before.
    shown: Vec<Proof>,
    records: usize,
    /// What it is to be told anew.
    pending: BTreeSet<(Arc<str>, Tag)>,
    /// It does not answer just now.
    doubted: bool,
    /// The peering is broken, and forgotten then.
    lost: Option<Duration>,
}

/// Where a tag is held.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) peer: Id,
    pub(super) realm: Arc<str>,
    pub(super) node: [u8; LEN],
    pub(super) sequence: u64,
    ends: Duration,
    pub(super) sealed: Arc<[u8]>,
}

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It is the node's last word there.
    News,
    /// It was known.
    Known,
    /// It is none for this relay: of a realm that the peer is not let into, older than what the
    /// peer said before, ended, or one too many.
    Refused,
}

impl Peers {
    /// A relay has become a peer.
    pub(super) fn add(
        &mut self,
        now: Duration,
        id: Id,
        peering: Peering,
        config: &Config,
    ) -> Result<(), Refusal> {
        let callers = self.peers.values().filter(|peer| peer.lost.is_none());
        if !peering.called && callers.filter(|peer| !peer.peering.called).count() >= MAX_CALLERS {
            return Err(Refusal::Full);
        }
        if peering.relay == peering.own {
            return Err(Refusal::Itself);
        }
        let tokens = || tokens(config).take(MAX_TOKENS);
        let Peering { called, exporter, .. } = &peering;
        let expected = tokens().map(|(realm, token)| {
            (prove(token, !called, exporter, realm), (realm.clone(), token.clone()))
        });
        let expected = expected.collect();
        let shown = tokens().filter(|_| *called);
        let shown = shown.map(|(realm, token)| prove(token, true, exporter, realm)).collect();
        let peer = Peer {
            peering,
            began: now,
            expected,
            proved: HashSet::new(),
            shown,
            records: 0,
            pending: BTreeSet::new(),
            doubted: false,
            lost: None,
        };
        self.peers.insert(id, peer);
        Ok(())
    }

    /// Whether `id` is a peer, and its peering is not broken.
    pub(super) fn is_up(&self, id: Id) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.lost.is_none())
    }

    /// Whether `id` answers.
    pub(super) fn answers(&self, id: Id) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.lost.is_none() && !peer.doubted)
    }

    /// Whether a peer answers just now. True: that is news.
    pub(super) fn doubt(&mut self, id: Id, doubted: bool) -> bool {
        let peer = self.peers.get_mut(&id);
        peer.is_some_and(|peer| std::mem::replace(&mut peer.doubted, doubted) != doubted)
    }

    /// Peers that are connected; one that is connected twice counts once.
    pub(super) fn count(&self) -> usize {
        let up = self.peers.values().filter(|peer| peer.lost.is_none());
        up.map(|peer| &peer.peering.relay).collect::<HashSet<_>>().len()
    }

    /// Records kept.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// The peering with `id`, if it is up.
    pub(super) fn peering(&self, id: Id) -> Option<&Peering> {
        self.peers.get(&id).filter(|peer| peer.lost.is_none()).map(|peer| &peer.peering)
    }

    /// Whether `id` may be told, and tell, of `realm`.
    pub(super) fn lets_in(&self, id: Id, realm: &str, config: &Config) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.lets_in(realm, config))
    }

    /// Takes proofs of tokens. Gives the realms that the peer is let into by them.
    pub(super) fn prove(&mut self, id: Id, proofs: &[Proof]) -> Vec<String> {
        let mut realms = Vec::new();
        let Some(peer) = self.peers.get_mut(&id) else {
            return realms;
        };
        for proof in proofs {
            let Some((realm, token)) = peer.expected.remove(proof) else {
                continue;
            };
            if !peer.peering.called {
                peer.shown.push(prove(&token, false, &peer.peering.exporter, &realm));
            }
            if peer.proved.insert(realm.clone()) {
                realms.push(realm);
            }
        }
        realms
    }

    /// What a peer is to be shown next.
    pub(super) fn shown(&mut self, id: Id) -> Vec<Proof> {
        let peer = self.peers.get_mut(&id);
        peer.map_or_else(Vec::new, |peer| {
            let most = peer.shown.len().min(MAX_PROOFS);
            peer.shown.drain(..most).collect()
        })
    }

    /// Takes an announcement whose signature was found good for `tag`. `wall`: milliseconds since
    /// 1970.
    pub(super) fn learn(
        &mut self,
        now: Duration,
        wall: u64,
        id: Id,
        (tag, announced): (Tag, Announcement),
        config: &Config,
    ) -> Learned {
        let (peer, left) = (self.peers.get_mut(&id), announced.record.left(wall));
        let (Some(peer), Some(left)) = (peer.filter(|peer| peer.lost.is_none()), left) else {
            return Learned::Refused;
        };
        if !peer.lets_in(&announced.realm, config) {
            return Learned::Refused;
        }
        let place = Place {
            peer: id,
            realm: announced.realm.into(),
            node: announced.node,
            sequence: announced.record.sequence,
            ends: now + left,
            sealed: announced.sealed.into(),
        };
        let places = self.places.entry(tag).or_default();
        if let Some(known) = places.iter_mut().find(|known| known.peer == id) {
            return match place.sequence.cmp(&known.sequence) {
                std::cmp::Ordering::Less => Learned::Refused,
                std::cmp::Ordering::Equal => Learned::Known,
                std::cmp::Ordering::Greater => {
                    *known = place;
                    Learned::News
                }
            };
        }
        if peer.records >= MAX_RECORDS || self.records >= MAX_ALL {
            if places.is_empty() {
                self.places.remove(&tag);
            }
            return Learned::Refused;
        }
        peer.records += 1;
        self.records += 1;
        places.push(place);
        Learned::News
    }

    /// A peer holds a tag no more.
    pub(super) fn withdraw(&mut self, id: Id, tag: &Tag) {
        let Some(places) = self.places.get_mut(tag) else {
            return;
        };
        let before = places.len();
        places.retain(|place| place.peer != id);
        let gone = before - places.len();
        if places.is_empty() {
            self.places.remove(tag);
        }
        self.records -= gone;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.records -= gone;
        }
    }

    /// Where a tag is held, by the last word of its node; what a peer says that answers comes before
    /// what one said that does not, or is not connected any more.
    pub(super) fn place(&self, now: Duration, realm: &str, tag: &Tag) -> Option<&Place> {
        let places = self.places.get(tag)?.iter();
        let counts = places.filter(|place| place.ends > now && &*place.realm == realm);
        let rank = |id| (self.answers(id), self.is_up(id));
        counts.max_by_key(|place| (rank(place.peer), place.sequence))
    }

    /// What a peer said of a tag.
    pub(super) fn place_at(&self, now: Duration, id: Id, tag: &Tag) -> Option<&Place> {
        let places = self.places.get(tag)?;
        places.iter().find(|place| place.peer == id && place.ends > now)
    }

    /// All tags of a realm with their names.
    pub(super) fn names<'a>(
        &'a self,
        now: Duration,
        realm: &'a str,
    ) -> impl Iterator<Item = (Tag, Arc<[u8]>)> + 'a {
        let tags = self.places.keys();
        tags.filter_map(move |tag| Some((*tag, self.place(now, realm, tag)?.sealed.clone())))
    }

    /// Something is to be told anew of a tag held here. Gives the peers that had nothing to be told.
    pub(super) fn mark(&mut self, realm: &str, tag: Tag, config: &Config) -> Vec<Id> {
        let realm: Arc<str> = realm.into();
        let told = self.peers.iter_mut().filter(|(_, peer)| peer.lost.is_none());
        let told = told.filter(|(_, peer)| peer.lets_in(&realm, config));
        let mark = |(id, peer): (&Id, &mut Peer)| {
            let was_idle = peer.pending.is_empty();
            peer.pending.insert((realm.clone(), tag));
            was_idle.then_some(*id)
        };
        told.filter_map(mark).collect()
    }

    /// All of these are to be told to one peer.
    pub(super) fn mark_all(&mut self, id: Id, realm: &str, tags: impl Iterator<Item = Tag>) {
        if let Some(peer) = self.peers.get_mut(&id) {
            let realm: Arc<str> = realm.into();
            peer.pending.extend(tags.map(|tag| (realm.clone(), tag)));
        }
    }

    /// What a peer is to be told next.
    pub(super) fn next(&mut self, id: Id) -> Option<(Arc<str>, Tag)> {
        self.peers.get_mut(&id)?.pending.pop_first()
    }

    /// A peering has ended: by a word of either side, or it broke.
    pub(super) fn gone(&mut self, now: Duration, id: Id, broke: bool) {
        match self.peers.get_mut(&id) {
            Some(peer) if broke => {
                peer.lost.get_or_insert(now + GRACE);
                peer.pending.clear();
                peer.expected.clear();
            }
            Some(_) => self.forget(&[id]),
            None => {}
        }
    }

    /// Forgets what has ended. Gives the peers that have nothing to do here.
    pub(super) fn expire(&mut self, now: Duration, config: &Config) -> Vec<Id> {
        let over = |peer: &Peer| peer.lost.is_some_and(|forgotten| forgotten <= now);
        let over: Vec<_> =
            self.peers.iter().filter(|(_, peer)| over(peer)).map(|(id, _)| *id).collect();
        self.forget(&over);
        self.drop_places(|place| place.ends > now);
        let is_stranger = |peer: &Peer| {
            peer.lost.is_none() && now >= peer.began + WELCOME && !peer.has_realm(config)
        };
        self.peers.iter().filter(|(_, peer)| is_stranger(peer)).map(|(id, _)| *id).collect()
    }

    fn forget(&mut self, ids: &[Id]) {
        if ids.is_empty() {
            return;
        }
        self.drop_places(|place| !ids.contains(&place.peer));
        ids.iter().for_each(|id| drop(self.peers.remove(id)));
    }

    fn drop_places(&mut self, keep: impl Fn(&Place) -> bool) {
        let (peers, records) = (&mut self.peers, &mut self.records);
        self.places.retain(|_, places| {
            places.retain(|place| {
                let kept = keep(place);
                if !kept {
                    *records -= 1;
                    if let Some(peer) = peers.get_mut(&place.peer) {
                        peer.records -= 1;
                    }
                }
                kept
            });
            !places.is_empty()
        });
    }
}

impl Peer {
    fn lets_in(&self, realm: &str, config: &Config) -> bool {
        match &config.realms {
            None => true,
            Some(realms) => match realms.get(realm) {
                None => false,
                Some(Access::Open) => true,
                Some(Access::Tokens(_)) => self.proved.contains(realm),
                Some(Access::Authority) => self.peering.vouched.contains(realm),
            },
        }
    }

    fn has_realm(&self, config: &Config) -> bool {
        let realms = config.realms.as_ref();
        realms.is_none_or(|realms| realms.keys().any(|realm| self.lets_in(realm, config)))
    }
}

/// All tokens of realms.
fn tokens(config: &Config) -> impl Iterator<Item = (&String, &Token)> {
    config.realms.iter().flatten().flat_map(|(realm, access)| {
        let tokens = match access {
            Access::Tokens(tokens) => &tokens[..],
            Access::Open | Access::Authority => &[],
        };
        tokens.iter().map(move |token| (realm, token))
    })
}

/// The proof of the caller, or of who was called, that it knows a token of a realm. Whoever does
/// not know it learns nothing by it but a way to test guesses; on another connection it is none.
fn prove(token: &Token, by_caller: bool, exporter: &[u8; LEN], realm: &str) -> Proof {
    let role: &[u8] = if by_caller { b"caller:" } else { b"called:" };
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.hash());
    let text = [LABEL, role, exporter, realm.as_bytes()].concat();
    let mut proof = [0; LEN];
    proof.copy_from_slice(hmac::sign(&key, &text).as_ref());
    proof
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::key::tests::KEY;
    use crate::mesh::record::{Attachment, LIFETIME};
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(1000);
    const WALL: u64 = 1_800_000_000_000;

    fn peering(relay: u8, called: bool) -> Peering {
        let (own, exporter) = ([0; LEN], [9; LEN]);
        Peering { relay: [relay; LEN], own, exporter, called, vouched: HashSet::new() }
    }

    fn with_tokens(realms: &[(&str, &[&str])]) -> Config {
        let access = |tokens: &[&str]| match tokens {
            [] => Access::Open,
            tokens => {
                Access::Tokens(tokens.iter().map(|token| Token::new(token.as_bytes())).collect())
            }
        };
        let realms = realms.iter().map(|(realm, tokens)| (realm.to_string(), access(tokens)));
        Config { realms: Some(realms.collect()), ..Config::default() }
    }

    fn announced(relay: u8, node: u8, realm: &str, sequence: u64) -> (Tag, Announcement) {
        let attachment = Attachment { node: [node; LEN], relay: [relay; LEN] };
        let record = KEY.claim("a").record(realm, &attachment, sequence, 0);
        let (realm, sealed) = (realm.into(), vec![node]);
        let announced = Announcement { realm, node: [node; LEN], record, sealed };
        (announced.verify(&[relay; LEN]).unwrap(), announced)
    }

    fn learn(peers: &mut Peers, id: Id, said: (Tag, Announcement)) -> Learned {
        peers.learn(NOW, WALL, id, said, &Config::default())
    }

    fn place(peers: &Peers, now: Duration) -> Option<(Id, u64)> {
        peers.place(now, "r", &KEY.tag("a")).map(|place| (place.peer, place.sequence))
    }

    fn two() -> Peers {
        let mut peers = Peers::default();
        for id in [1, 2] {
            let added = peers.add(NOW, id, peering(id as u8, true), &Config::default());
            assert_eq!(added, Ok(()));
        }
        peers
    }

    #[test]
    fn the_last_word_of_a_node_counts() {
        let mut peers = two();
        assert_eq!(learn(&mut peers, 1, announced(1, 1, "r", WALL)), Learned::News);
        assert_eq!(learn(&mut peers, 1, announced(1, 1, "r", WALL)), Learned::Known);
        assert_eq!(learn(&mut peers, 2, announced(2, 1, "r", WALL + 1)), Learned::News);
        assert_eq!(place(&peers, NOW), Some((2, WALL + 1)));
        assert_eq!(learn(&mut peers, 1, announced(1, 1, "r", WALL - 1)), Learned::Refused);
        assert_eq!(learn(&mut peers, 1, announced(1, 1, "r", WALL + 2)), Learned::News);
        assert_eq!(place(&peers, NOW), Some((1, WALL + 2)));
        peers.withdraw(1, &KEY.tag("a"));
        assert_eq!(place(&peers, NOW), Some((2, WALL + 1)));
        assert_eq!(place(&peers, NOW + LIFETIME + Duration::from_secs(1)), None);
        assert!(peers.place(NOW, "s", &KEY.tag("a")).is_none());
        assert_eq!(peers.records(), 1);
    }

    #[test]
    fn a_record_for_another_relay_is_no_word_of_its_node() {
        let (_, announced) = announced(1, 1, "r", WALL);
        assert_eq!(announced.verify(&[2; LEN]), None);
        assert_eq!(Announcement { node: [3; LEN], ..announced }.verify(&[1; LEN]), None);
    }

    #[test]
    fn what_a_lost_peer_said_stands_for_a_while() {
        let mut peers = two();
        learn(&mut peers, 1, announced(1, 1, "r", WALL + 1));
        learn(&mut peers, 2, announced(2, 1, "r", WALL));
        peers.gone(NOW, 1, true);
        assert_eq!(place(&peers, NOW), Some((2, WALL)));
        assert_eq!(learn(&mut peers, 1, announced(1, 1, "r", WALL + 5)), Learned::Refused);
        peers.gone(NOW, 2, false);
        assert_eq!(place(&peers, NOW), Some((1, WALL + 1)));
        assert!(!peers.is_up(1));
        peers.expire(NOW + GRACE, &Config::default());
        assert_eq!((place(&peers, NOW), peers.records(), peers.places.len()), (None, 0, 0));
    }

    /// Each side proves the tokens it shares with the other, and no realm is shared without one.
    #[test]
    fn peers_share_the_realms_whose_tokens_both_know() {
        let here = with_tokens(&[("both", &["old", "new"]), ("mine", &["m"]), ("open", &[])]);
        let there =
            with_tokens(&[("both", &["new", "newer"]), ("mine", &["x"]), ("other", &["m"])]);
        let (mut caller, mut called) = (Peers::default(), Peers::default());
        caller.add(NOW, 1, peering(2, true), &here).unwrap();
        called.add(NOW, 1, peering(1, false), &there).unwrap();
        let shown = caller.shown(1);
        assert_eq!((shown.len(), called.shown(1).len()), (3, 0));
        assert_eq!(called.prove(1, &shown), ["both"]);
        let answer = called.shown(1);
        assert_eq!(answer.len(), 1);
        // What was shown by one side is no proof of the other's.
        assert!(caller.prove(1, &shown).is_empty());
        assert_eq!(caller.prove(1, &answer), ["both"]);
        assert!(called.prove(1, &shown).is_empty());
        assert!(caller.shown(1).is_empty() && called.shown(1).is_empty());
        let lets_in = |realm| caller.lets_in(1, realm, &here);
        assert!(lets_in("both") && lets_in("open"));
        assert!(!lets_in("mine") && !lets_in("other"));
        assert!(!called.lets_in(1, "open", &there));
        let said = announced(2, 1, "mine", WALL);
        assert_eq!(caller.learn(NOW, WALL, 1, said, &here), Learned::Refused);
        let said = announced(2, 1, "both", WALL);
        assert_eq!(caller.learn(NOW, WALL, 1, said, &here), Learned::News);
    }

    #[test]
    fn who_is_let_into_no_realm_is_sent_away() {
        let closed = with_tokens(&[("r", &["t"])]);
        let mut peers = Peers::default();
        peers.add(NOW, 1, peering(1, false), &closed).unwrap();
        assert_eq!(peers.expire(NOW + WELCOME / 2, &closed), []);
        assert_eq!(peers.expire(NOW + WELCOME, &closed), [1]);
        assert_eq!(peers.expire(NOW + WELCOME, &Config::default()), []);
    }

    #[test]
    fn there_is_an_end_to_peers_and_records() {
        let (mut peers, config) = (Peers::default(), Config::default());
        let itself = Peering { relay: [0; LEN], ..peering(1, false) };
        assert_eq!(peers.add(NOW, 1, itself, &config), Err(Refusal::Itself));
        for id in 0..MAX_CALLERS as u64 {
            assert_eq!(peers.add(NOW, id, peering(id as u8 + 1, false), &config), Ok(()));
        }
        assert_eq!(peers.add(NOW, 999, peering(200, false), &config), Err(Refusal::Full));
        assert_eq!(peers.add(NOW, 1000, peering(201, true), &config), Ok(()));
        let (_, one) = announced(1, 1, "r", WALL);
        let mut learned = |id, n: u64| {
            let mut tag = [0; 16];
            tag[..8].copy_from_slice(&n.to_be_bytes());
            peers.learn(NOW, WALL, id, (Tag(tag), one.clone()), &config)
        };
        for n in 0..MAX_RECORDS as u64 {
            assert_eq!(learned(1, n), Learned::News);
        }
        assert_eq!(learned(1, 1 << 40), Learned::Refused);
        assert_eq!(learned(2, 1 << 40), Learned::News);
        peers.gone(NOW, 1, false);
        assert_eq!(peers.records(), 1);
        assert_eq!(peers.add(NOW, 999, peering(200, false), &config), Ok(()));
    }

    proptest! {
        /// Whatever is said in whatever order: at a peer no record is followed by an older one,
        /// what is found is the newest of those that are up, and the counts are right.
        #[test]
        fn records_never_go_backwards(
            steps in proptest::collection::vec((0u8..6, 1u64..4, 0u64..9), 1..80),
        ) {
            let mut peers = Peers::default();
            let mut last: HashMap<Id, u64> = HashMap::new();
            for (step, id, number) in steps {
                match step {
                    0 if !peers.peers.contains_key(&id) => {
                        let _ = peers.add(NOW, id, peering(id as u8, true), &Config::default());
                    }
                    1 => {
                        peers.gone(NOW, id, false);
                        last.remove(&id);
                    }
                    2 => peers.gone(NOW, id, true),
                    3 => {
                        peers.withdraw(id, &KEY.tag("a"));
                        last.remove(&id);
                    }
                    _ => {
                        let said = announced(id as u8, 1, "r", WALL + number);
                        let learned = learn(&mut peers, id, said);
                        if learned != Learned::Refused {
                            prop_assert!(last.get(&id).is_none_or(|last| *last <= WALL + number));
                            last.insert(id, WALL + number);
                        }
                    }
                }
                let best = last.iter().map(|(id, last)| (peers.is_up(*id), *last)).max();
                let found = peers.place(NOW, "r", &KEY.tag("a"));
                prop_assert_eq!(
                    found.map(|place| (peers.is_up(place.peer), place.sequence)), best);
                prop_assert_eq!(peers.records(), last.len());
                for (id, peer) in &peers.peers {
                    prop_assert_eq!(peer.records, usize::from(last.contains_key(id)));
                }
            }
        }
    }
}
