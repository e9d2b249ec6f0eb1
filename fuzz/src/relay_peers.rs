//! A relay with a node and three peers that say what they like: beside it, a plain account of what
//! each peer said that counts, with which every decision must agree.
//!
//! An input is a list of events: what, who, and about what.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use macula_core::keys::LEN;
use macula_core::mesh::claim::Tag;
use macula_core::mesh::packet;
use macula_core::mesh::record::Attachment;
use macula_core::relay::between::{Announcement, Between};
use macula_core::relay::message::ToRelay;
use macula_core::relay::peering::{GRACE, Learned, Peering};
use macula_core::relay::table::{Action, Clock, Forward, Forwarder, Heard, Id, Relay, Stranger};

use super::choices::Choices;
use super::sealed::KEY;

const REALM: &str = "realm";
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Peers have the ids from 1 on.
const PEERS: usize = 3;
const NODE: Id = 100;
const WALL: u64 = 1_800_000_000_000;

/// What nodes of each name said at each peer, twice, since signing takes its time.
static SAID: LazyLock<Vec<Announcement>> = LazyLock::new(|| {
    let said = |n: usize| {
        let (peer, name, later) = (n / 6, n / 2 % 3, n as u64 % 2);
        let (node, relay) = ([name as u8; LEN], relay_id(peer));
        let at = Attachment { node, relay };
        let record = KEY.claim(NAMES[name]).record(REALM, &at, WALL + later, 0);
        Announcement { realm: REALM.into(), node, record, sealed: vec![] }
    };
    (0..PEERS * 6).map(said).collect()
});

static TAGS: LazyLock<[Tag; 3]> = LazyLock::new(|| NAMES.map(|name| KEY.tag(name)));

fn relay_id(peer: usize) -> [u8; LEN] {
    [200 + peer as u8; LEN]
}

struct World {
    relay: Relay,
    /// They remember where datagrams go, and notice when that changes.
    forwarders: BTreeMap<Id, Forwarder>,
    now: Duration,
    last: Id,
    /// The connection of each peer.
    peers: [Option<Id>; PEERS],
    /// The number of the record of each tag at each connection, and when it is forgotten.
    known: BTreeMap<(Id, Tag), (u64, Option<Duration>)>,
}

pub fn run(input: &[u8]) {
    let mut world = World::new();
    let mut choices = Choices(input);
    while !choices.0.is_empty() {
        let (what, peer) = (choices.next() % 9, choices.next() % PEERS);
        world.step(what, peer, &mut choices);
        assert_eq!(world.relay.records(), world.known.len());
        assert_eq!(world.relay.peers(), world.peers.iter().flatten().count());
    }
}

impl World {
    /// The node "a" is attached, and nothing else.
    fn new() -> World {
        let mut relay = Relay::default();
        let (node, relay_id) = ([7; LEN], [9; LEN]);
        let address = SocketAddr::from(([192, 0, 2, 1], 4433));
        relay.connected(NODE, Stranger { node_id: node, relay_id, exporter: [1; LEN], address });
        let clock = Clock { now: Duration::ZERO, wall: WALL };
        let key = KEY.claim("a");
        let realm = REALM.to_string();
        let at = Attachment { node, relay: relay_id };
        for message in [
            ToRelay::Attach { version: 1, features: 0, realm, token: vec![].into() },
            ToRelay::Claim { claim: key.claim(REALM, &[1; LEN]), sealed: vec![] },
            ToRelay::Record(key.record(REALM, &at, WALL, 0)),
        ] {
            relay.receive(clock, NODE, message, |_| false);
        }
        let (now, peers) = (Duration::ZERO, [None; PEERS]);
        let (forwarders, known) = (BTreeMap::new(), BTreeMap::new());
        World { relay, forwarders, now, last: 0, peers, known }
    }

    fn step(&mut self, what: usize, peer: usize, choices: &mut Choices<'_>) {
        match (what, self.peers[peer]) {
            (0, None) => self.connect(peer),
            (1, Some(id)) => self.part(peer, id, choices.next().is_multiple_of(2)),
            (2 | 3, Some(id)) => {
                let said = SAID[choices.next() % SAID.len()].clone();
                self.announce(peer, id, said);
            }
            (4, Some(id)) => {
                let tag = TAGS[choices.next() % 3];
                self.known.remove(&(id, tag));
                self.hear(id, Heard::Said(Between::Withdraw(tag)));
            }
            (5, Some(id)) => {
                let len = choices.next();
                let Ok(Some(message)) = Between::decode(&choices.take(len)) else { return };
                if let Between::Withdraw(tag) = message {
                    self.known.remove(&(id, tag));
                }
                // What nobody has signed does not come this far.
                if let Ok(heard) = Heard::check(message, &relay_id(peer)) {
                    self.hear(id, heard);
                }
            }
            (6, _) => self.pass(Duration::from_millis(20 * choices.next() as u64)),
            (7, Some(id)) => self.pass_here(id, choices.next(), choices.next()),
            (_, Some(id)) => self.tell(id),
            _ => self.pass_on(),
        }
    }

    fn connect(&mut self, peer: usize) {
        self.last += 1;
        let peering = Peering {
            relay: relay_id(peer),
            own: [9; LEN],
            exporter: [0; LEN],
            called: peer == 0,
            vouched: HashSet::new(),
        };
        self.relay.peered(self.now, self.last, peering).expect("there is a place");
        self.peers[peer] = Some(self.last);
    }

    fn part(&mut self, peer: usize, id: Id, broke: bool) {
        self.relay.parted(self.now, id, broke);
        self.peers[peer] = None;
        if broke {
            let ends = Some(self.now + GRACE);
            let of_peer = self.known.iter_mut().filter(|((whose, _), _)| *whose == id);
            of_peer.for_each(|(_, known)| known.1 = ends);
        } else {
            self.known.retain(|(whose, _), _| *whose != id);
        }
    }

    fn announce(&mut self, peer: usize, id: Id, said: Announcement) {
        let sequence = said.record.sequence;
        let Ok(heard) = Heard::check(Between::Announce(said), &relay_id(peer)) else { return };
        let Heard::Announced(tag, _) = heard else { panic!("it was announced") };
        let former = self.known.get(&(id, tag)).map(|known| known.0);
        let learned = self.hear(id, heard);
        let expected = match former {
            Some(former) if former > sequence => Learned::Refused,
            Some(former) if former == sequence => Learned::Known,
            _ => Learned::News,
        };
        assert_eq!(learned, expected);
        if expected == Learned::News {
            self.known.insert((id, tag), (sequence, None));
        }
    }

    fn hear(&mut self, id: Id, heard: Heard) -> Learned {
        let clock = Clock { now: self.now, wall: WALL };
        let (actions, learned) = self.relay.hear(clock, id, heard);
        for action in actions {
            match action {
                Action::Send(to, _) => assert_eq!(to, NODE),
                Action::Tell(to, _) | Action::Wake(to) => assert_eq!(to, id),
                Action::Close(..) | Action::Part(..) => panic!("nobody is sent away for words"),
            }
        }
        learned
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for action in self.relay.expire(self.now) {
            // The node never answers, and is taken for dead when another one is there.
            if let Action::Close(id, _) = action {
                assert_eq!(id, NODE);
            }
        }
        self.known.retain(|_, (_, ends)| ends.is_none_or(|ends| ends > self.now));
    }

    /// What a peer forwards goes to the node, or nowhere.
    fn pass_here(&mut self, id: Id, from: usize, to: usize) {
        let (from, to) = (TAGS[from % 3], TAGS[to % 3]);
        let datagram = [&packet::header(&to, &from)[..], b"sealed"].concat();
        let decision = self.forward(id, &datagram);
        match decision {
            Forward::To(holder) => assert_eq!((holder, to), (NODE, TAGS[0])),
            Forward::Nobody(tag) => assert_eq!(tag, to),
            Forward::Invalid => {}
            other => panic!("{other:?}"),
        }
        let is_known = self.known.contains_key(&(id, from));
        assert_eq!(decision == Forward::Invalid, !is_known);
    }

    /// What the node sends goes where its receiver said last that it is.
    fn pass_on(&mut self) {
        for to in &TAGS[1..] {
            let datagram = [&packet::header(to, &TAGS[0])[..], b"sealed"].concat();
            let decision = self.forward(NODE, &datagram);
            let is_up = |id: &Id| self.peers.contains(&Some(*id));
            let at = self.known.iter().filter(|((_, tag), _)| tag == to);
            let at: Vec<_> =
                at.map(|((id, _), (sequence, _))| (is_up(id), *sequence, *id)).collect();
            match decision {
                Forward::ToPeer(peer) => {
                    let newest = at.iter().filter(|place| place.0).map(|place| place.1).max();
                    let chosen = at.iter().find(|place| place.2 == peer);
                    assert!(chosen.is_some_and(|place| place.0 && Some(place.1) == newest));
                }
                Forward::Silent => assert!(!at.is_empty() && at.iter().all(|place| !place.0)),
                Forward::Nobody(tag) => assert!(at.is_empty() && tag == *to),
                // The node was taken for dead.
                Forward::Invalid => assert_eq!(self.relay.nodes(), 0),
                other => panic!("{other:?}"),
            }
        }
    }

    fn forward(&mut self, id: Id, datagram: &[u8]) -> Forward {
        let World { relay, forwarders, now, .. } = self;
        let forwarder = forwarders.entry(id).or_insert_with(|| relay.forwarder(*now, id));
        forwarder.forward(*now, datagram, |ends| relay.route(*now, id, ends))
    }

    fn tell(&mut self, id: Id) {
        while let Some(message) = self.relay.announcement(id) {
            match message {
                Between::Announce(said) => assert_eq!(said.verify(&[9; LEN]), Some(TAGS[0])),
                Between::Withdraw(tag) => assert_eq!(tag, TAGS[0]),
                other => panic!("{other:?}"),
            }
        }
    }
}
