//! Relays that are peered, in one process: nodes come, go, die and come back, peerings break and
//! heal, messages are under way. Whatever the order of events, a datagram passes between relays
//! once at most and reaches only who holds its tag in its realm; and once all is quiet every tag
//! that is held anywhere is found from everywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use macula_core::keys::{self, LEN};
use macula_core::mesh::claim::{ClaimKey, Tag};
use macula_core::mesh::key::MeshKey;
use macula_core::mesh::packet;
use macula_core::mesh::record::Attachment;
use macula_core::relay::between::Between;
use macula_core::relay::message::{ToNode, ToRelay};
use macula_core::relay::peering::{GRACE, Peering};
use macula_core::relay::table::{Action, Clock, Forward, Forwarder, Heard, Id, Relay, Stranger};
use proptest::prelude::*;

const RELAYS: usize = 3;
const NODES: usize = 5;
const NAMES: usize = 4;
const WALL: u64 = 1_800_000_000_000;

/// The claim keys of all names: those of the one realm, and one of the other.
static KEYS: LazyLock<Vec<ClaimKey>> = LazyLock::new(|| {
    let key = MeshKey::stretch(&keys::base(b"cookie"), "realm").unwrap();
    (0..NAMES).map(|name| key.claim(&name.to_string())).collect()
});

static TAGS: LazyLock<Vec<Tag>> = LazyLock::new(|| KEYS.iter().map(ClaimKey::tag).collect());

/// Two nodes have one name, and one is in another realm.
fn name_of(node: usize) -> usize {
    [0, 1, 2, 0, 3][node]
}

fn realm_of(node: usize) -> &'static str {
    if node == 4 { "other" } else { "realm" }
}

fn relay_id(relay: usize) -> [u8; LEN] {
    [100 + relay as u8; LEN]
}

/// A node's connection to a relay. Nobody is told when it is dead.
struct Place {
    node: usize,
    dead: bool,
    held: bool,
    taken: bool,
}

/// A connection between two relays, with what is under way each way.
struct Line {
    ends: [usize; 2],
    under_way: [VecDeque<Between>; 2],
}

#[derive(Default)]
struct World {
    relays: Vec<Relay>,
    now: Duration,
    last_id: Id,
    places: BTreeMap<(usize, Id), Place>,
    /// They remember where datagrams go, and notice when that changes.
    forwarders: BTreeMap<(usize, Id), Forwarder>,
    lines: BTreeMap<Id, Line>,
    /// Datagrams that passed between relays.
    crossed: usize,
}

impl World {
    fn new() -> World {
        let relays = (0..RELAYS).map(|_| Relay::default()).collect();
        World { relays, now: Duration::from_secs(1), ..World::default() }
    }

    fn clock(&self) -> Clock {
        Clock { now: self.now, wall: WALL + self.now.as_millis() as u64 }
    }

    fn new_id(&mut self) -> Id {
        self.last_id += 1;
        self.last_id
    }

    fn attach(&mut self, node: usize, relay: usize) {
        let id = self.new_id();
        let stranger = Stranger {
            node_id: [node as u8; LEN],
            relay_id: relay_id(relay),
            exporter: [id as u8; LEN],
            address: SocketAddr::from(([192, 0, 2, 1], 4433)),
        };
        self.relays[relay].connected(id, stranger);
        self.places.insert((relay, id), Place { node, dead: false, held: false, taken: false });
        let (realm, token) = (realm_of(node).to_string(), Vec::new().into());
        self.say(relay, id, ToRelay::Attach { version: 1, features: 0, realm, token });
        let claim = KEYS[name_of(node)].claim(realm_of(node), &[id as u8; LEN]);
        self.say(relay, id, ToRelay::Claim { claim, sealed: vec![node as u8] });
        self.record(relay, id, 0);
    }

    fn record(&mut self, relay: usize, id: Id, newest: u64) {
        let Some(place) = self.places.get(&(relay, id)) else { return };
        let at = Attachment { node: [place.node as u8; LEN], relay: relay_id(relay) };
        let key = &KEYS[name_of(place.node)];
        let record = key.record(realm_of(place.node), &at, self.clock().wall, newest);
        self.say(relay, id, ToRelay::Record(record));
    }

    fn say(&mut self, relay: usize, id: Id, message: ToRelay) {
        let clock = self.clock();
        let actions = self.relays[relay].receive(clock, id, message, |_| false);
        self.carry_out(relay, actions);
    }

    fn leave(&mut self, relay: usize, id: Id) {
        self.places.remove(&(relay, id));
        let actions = self.relays[relay].gone(id);
        self.carry_out(relay, actions);
    }

    fn peer(&mut self, one: usize, other: usize) {
        let id = self.new_id();
        self.lines.insert(id, Line { ends: [one, other], under_way: Default::default() });
        for (here, there, called) in [(one, other, true), (other, one, false)] {
            let peering = Peering {
                relay: relay_id(there),
                own: relay_id(here),
                exporter: [0; LEN],
                called,
                vouched: HashSet::new(),
            };
            let actions = self.relays[here].peered(self.now, id, peering).unwrap();
            self.carry_out(here, actions);
        }
    }

    fn part(&mut self, id: Id, broke: bool) {
        if let Some(line) = self.lines.remove(&id) {
            line.ends.iter().for_each(|end| self.relays[*end].parted(self.now, id, broke));
        }
    }

    /// One message arrives at its peer.
    fn deliver(&mut self, id: Id, way: usize) -> bool {
        let Some(line) = self.lines.get_mut(&id) else { return false };
        let (from, to) = (line.ends[way], line.ends[1 - way]);
        let Some(message) = line.under_way[way].pop_front() else { return false };
        let encoded = message.encode();
        let message = Between::decode(&encoded[2..]).unwrap().unwrap();
        let heard = Heard::check(message, &relay_id(from)).expect("a forged record");
        let clock = self.clock();
        let (actions, _) = self.relays[to].hear(clock, id, heard);
        self.carry_out(to, actions);
        true
    }

    fn tick(&mut self, passed: Duration) {
        self.now += passed;
        for relay in 0..RELAYS {
            let actions = self.relays[relay].expire(self.now);
            self.carry_out(relay, actions);
        }
    }

    fn carry_out(&mut self, relay: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(id, message) => self.answer(relay, id, message),
                Action::Close(id, _) => drop(self.places.remove(&(relay, id))),
                Action::Tell(id, message) => self.send(relay, id, message),
                Action::Part(..) => panic!("a peer was sent away"),
                Action::Wake(id) => {
                    while let Some(message) = self.relays[relay].announcement(id) {
                        self.send(relay, id, message);
                    }
                }
            }
        }
    }

    fn send(&mut self, relay: usize, id: Id, message: Between) {
        if let Some(line) = self.lines.get_mut(&id) {
            let way = usize::from(line.ends[0] != relay);
            line.under_way[way].push_back(message);
        }
    }

    /// What a node does when it is told something.
    fn answer(&mut self, relay: usize, id: Id, message: ToNode) {
        let Some(place) = self.places.get_mut(&(relay, id)) else { return };
        if place.dead {
            return;
        }
        match message {
            ToNode::Ping(token) => self.say(relay, id, ToRelay::Pong(token)),
            ToNode::Held(_) => place.held = true,
            ToNode::Taken(_) => place.taken = true,
            ToNode::Stale { newest, .. } => self.record(relay, id, newest),
            _ => {}
        }
    }

    /// Sends a datagram from a place; gives who gets it, or none and whether nobody holds the tag.
    fn datagram(&mut self, (relay, id): (usize, Id), to: Tag) -> Result<(usize, Id), Forward> {
        let node = self.places[&(relay, id)].node;
        let header = packet::header(&to, &TAGS[name_of(node)]);
        let datagram = [&header[..], b"sealed"].concat();
        let peer = match self.forward(relay, id, &datagram) {
            Forward::To(holder) => return Ok((relay, holder)),
            Forward::ToPeer(peer) => peer,
            other => return Err(other),
        };
        self.crossed += 1;
        let ends = self.lines[&peer].ends;
        let there = if ends[0] == relay { ends[1] } else { ends[0] };
        match self.forward(there, peer, &datagram) {
            Forward::To(holder) => Ok((there, holder)),
            Forward::ToPeer(_) => panic!("forwarded twice"),
            // The relay here should have known.
            _ => Err(Forward::Silent),
        }
    }

    fn forward(&mut self, at: usize, id: Id, datagram: &[u8]) -> Forward {
        let World { relays, forwarders, now, .. } = self;
        let relay = &relays[at];
        let forwarder = forwarders.entry((at, id)).or_insert_with(|| relay.forwarder(*now, id));
        forwarder.forward(*now, datagram, |ends| relay.route(*now, id, ends))
    }

    /// Everything that is under way arrives, and all trials end.
    fn settle(&mut self) {
        for (one, other) in [(0, 1), (1, 2), (0, 2)] {
            if !self.lines.values().any(|line| line.ends == [one, other]) {
                self.peer(one, other);
            }
        }
        for _ in 0..12 {
            self.flush();
            self.tick(Duration::from_secs(1));
        }
        // Connections that are dead are found out.
        let dead: Vec<_> =
            self.places.iter().filter(|(_, place)| place.dead).map(|(at, _)| *at).collect();
        dead.into_iter().for_each(|(relay, id)| self.leave(relay, id));
        self.flush();
    }

    fn flush(&mut self) {
        let ids: Vec<_> = self.lines.keys().copied().collect();
        while ids.iter().any(|id| self.deliver(*id, 0) | self.deliver(*id, 1)) {}
    }

    /// What was delivered went to somebody of the sender's realm who holds the tag.
    fn check(&mut self, from: (usize, Id), to: Tag) {
        let realm = realm_of(self.places[&from].node);
        if let Ok(at) = self.datagram(from, to)
            && let Some(place) = self.places.get(&at)
        {
            assert_eq!((realm_of(place.node), TAGS[name_of(place.node)]), (realm, to));
        }
    }

    fn step(&mut self, (what, a, b): (u8, usize, usize)) {
        let at = self.places.keys().nth(a % self.places.len().max(1)).copied();
        let line = self.lines.keys().nth(a % self.lines.len().max(1)).copied();
        match (what, at, line) {
            (0 | 1, _, _) => self.attach(a % NODES, b % RELAYS),
            (2, Some((relay, id)), _) => self.leave(relay, id),
            (3, Some(at), _) => self.places.get_mut(&at).unwrap().dead = true,
            (4, _, _) if a % RELAYS != b % RELAYS => {
                let (one, other) = (a % RELAYS, b % RELAYS);
                self.peer(one.min(other), one.max(other));
            }
            (5, _, Some(line)) => self.part(line, b % 2 == 0),
            (6, Some((relay, id)), _) => self.record(relay, id, 0),
            (7, Some((relay, id)), _) => self.say(relay, id, ToRelay::Release(TAGS[b % NAMES])),
            (8, _, _) => self.tick(Duration::from_millis(a as u64 * 37)),
            (9.., _, Some(line)) => drop(self.deliver(line, b % 2)),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_tags_are_found_and_datagrams_pass_once(
        steps in proptest::collection::vec((0u8..14, 0usize..64, 0usize..64), 1..60),
    ) {
        let mut world = World::new();
        for (n, step) in steps.into_iter().enumerate() {
            world.step(step);
            let froms: Vec<_> = world.places.keys().copied().collect();
            if let Some(from) = froms.get(n % froms.len().max(1)) {
                world.check(*from, TAGS[n % NAMES]);
            }
        }
        world.settle();
        let places: Vec<_> = world.places.keys().copied().collect();
        let holders: BTreeSet<_> = places.iter().filter(|at| world.places[at].held).collect();
        for from in &places {
            // Who lost its name cannot send under it.
            let own = TAGS[name_of(world.places[from].node)];
            if world.datagram(*from, own).is_err() {
                continue;
            }
            for tag in &*TAGS {
                let realm = realm_of(world.places[from].node);
                let held = holders.iter().any(|at| {
                    let node = world.places[*at].node;
                    TAGS[name_of(node)] == *tag && realm_of(node) == realm
                        && world.datagram(**at, *tag) == Ok(**at)
                });
                let found = world.datagram(*from, *tag);
                if held {
                    let at = found.expect("a tag that is held is not found");
                    let node = world.places[&at].node;
                    prop_assert_eq!((TAGS[name_of(node)], realm_of(node)), (*tag, realm));
                } else {
                    prop_assert_eq!(found, Err(Forward::Nobody(*tag)));
                }
            }
        }
    }
}

/// A node at each of two relays.
fn apart() -> (World, (usize, Id), (usize, Id)) {
    let mut world = World::new();
    world.attach(0, 0);
    world.attach(1, 1);
    let at: Vec<_> = world.places.keys().copied().collect();
    (world, at[0], at[1])
}

#[test]
fn nodes_of_peered_relays_reach_each_other() {
    let (mut world, a, b) = apart();
    assert_eq!(world.datagram(a, TAGS[1]), Err(Forward::Nobody(TAGS[1])));
    world.peer(0, 1);
    world.flush();
    assert_eq!(world.datagram(a, TAGS[1]), Ok(b));
    assert_eq!(world.datagram(b, TAGS[0]), Ok(a));
    assert_eq!(world.crossed, 2);
    assert_eq!((world.relays[0].peers(), world.relays[0].records()), (1, 1));
    // Who is at the third relay is not reached through the second.
    world.attach(2, 2);
    world.peer(1, 2);
    world.flush();
    assert_eq!(world.datagram(a, TAGS[2]), Err(Forward::Nobody(TAGS[2])));
    world.leave(b.0, b.1);
    world.flush();
    assert_eq!(world.datagram(a, TAGS[1]), Err(Forward::Nobody(TAGS[1])));
}

/// While a broken peering is called again nobody is told that the other side's nodes are gone; and
/// later they are.
#[test]
fn a_broken_peering_is_remembered_for_a_while() {
    let (mut world, a, b) = apart();
    for heals in [true, false] {
        world.peer(0, 1);
        world.flush();
        let line = *world.lines.keys().last().unwrap();
        world.part(line, true);
        world.tick(Duration::from_secs(2));
        assert_eq!(world.datagram(a, TAGS[1]), Err(Forward::Silent));
        if heals {
            world.peer(0, 1);
            world.flush();
            assert_eq!(world.datagram(a, TAGS[1]), Ok(b));
            let line = *world.lines.keys().last().unwrap();
            world.part(line, false);
        }
        world.tick(GRACE);
        assert_eq!(world.datagram(a, TAGS[1]), Err(Forward::Nobody(TAGS[1])));
    }
}

/// A peer that does not answer is spared, and another way taken where there is one.
#[test]
fn what_is_for_a_peer_that_does_not_answer_is_held_back() {
    let (mut world, a, b) = apart();
    world.peer(0, 1);
    world.flush();
    let line = *world.lines.keys().last().unwrap();
    world.relays[0].doubt(line, true);
    assert_eq!(world.datagram(a, TAGS[1]), Err(Forward::Silent));
    world.relays[0].doubt(line, false);
    assert_eq!(world.datagram(a, TAGS[1]), Ok(b));
    world.relays[0].doubt(line, true);
    world.peer(0, 1);
    world.flush();
    assert_eq!(world.datagram(a, TAGS[1]), Ok(b));
}

/// Node 3 has the name of node 0.
#[test]
fn a_live_node_keeps_its_name_at_all_relays_and_a_dead_one_is_succeeded() {
    let (mut world, a, _) = apart();
    world.peer(0, 1);
    world.flush();
    world.attach(3, 1);
    let rival = *world.places.keys().last().unwrap();
    world.flush();
    assert!(world.places[&rival].taken && !world.places[&rival].held);
    world.leave(rival.0, rival.1);
    world.places.get_mut(&a).unwrap().dead = true;
    world.attach(3, 1);
    let rival = *world.places.keys().last().unwrap();
    for _ in 0..3 {
        world.flush();
        world.tick(Duration::from_millis(500));
    }
    assert!(world.places[&rival].held && !world.places[&rival].taken);
    // Where the dead one was attached it is found out, too, and the new one reached.
    assert!(!world.places.contains_key(&a));
    world.attach(2, 0);
    world.flush();
    let other = *world.places.keys().find(|(relay, _)| *relay == 0).unwrap();
    assert_eq!(world.datagram(other, TAGS[0]), Ok(rival));
}

/// A node that is attached to both relays keeps both, however often its records say anew that it is
/// at the other one.
#[test]
fn a_node_at_two_relays_keeps_both() {
    let mut world = World::new();
    world.peer(0, 1);
    for _ in 0..2 {
        world.attach(0, 0);
        world.attach(0, 1);
        world.flush();
    }
    for _ in 0..10 {
        world.tick(Duration::from_secs(2));
        for (relay, id) in world.places.keys().copied().collect::<Vec<_>>() {
            world.record(relay, id, 0);
        }
        world.flush();
    }
    assert_eq!(world.places.len(), 2);
    assert!(world.places.values().all(|place| place.held && !place.taken));
}

/// A restarted container whose relay's clock is behind exceeds what its former life said.
#[test]
fn a_newcomer_is_told_of_a_newer_record() {
    let mut world = World::new();
    world.peer(0, 1);
    world.attach(0, 0);
    let a = *world.places.keys().next().unwrap();
    let ahead = world.clock().wall + 60_000;
    world.record(a.0, a.1, ahead);
    world.flush();
    world.places.get_mut(&a).unwrap().dead = true;
    world.attach(3, 1);
    for _ in 0..4 {
        world.flush();
        world.tick(Duration::from_millis(500));
    }
    assert!(!world.places.contains_key(&a), "the old record still counts");
}
