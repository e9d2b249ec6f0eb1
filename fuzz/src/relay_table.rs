//! A relay and four nodes that say and send what they like: beside it, a plain account of who was
//! told that it holds what, with which every decision must agree.
//!
//! An input is a list of events: who, what, and about what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use macula_core::keys::LEN;
use macula_core::mesh::claim::{Claim, Tag};
use macula_core::mesh::packet;
use macula_core::relay::message::{ToNode, ToRelay};
use macula_core::relay::table::{Action, Clock, Forward, Forwarder, Id, Relay, Stranger};
use macula_core::secret::Secret;

use super::choices::Choices;
use super::sealed::KEY;

const NODES: usize = 4;
const REALMS: [&str; 2] = ["one", "two"];
const NAMES: [&str; 3] = ["a", "b", "c"];

/// The claims of every node to every name in every realm, since signing takes its time.
static CLAIMS: LazyLock<Vec<Claim>> = LazyLock::new(|| {
    let keys = NAMES.map(|name| KEY.claim(name));
    let claim = |n: usize| {
        let (node, realm, name) = (n / 6, n / 3 % 2, n % 3);
        keys[name].claim(REALMS[realm], &exporter(node))
    };
    (0..NODES * REALMS.len() * NAMES.len()).map(claim).collect()
});

static TAGS: LazyLock<[Tag; 3]> = LazyLock::new(|| NAMES.map(|name| KEY.tag(name)));

fn exporter(node: usize) -> [u8; LEN] {
    [node as u8; LEN]
}

/// A relay, and what is known of it from what it said.
#[derive(Default)]
struct World {
    relay: Relay,
    /// They remember where datagrams go, and notice when that changes.
    forwarders: BTreeMap<Id, Forwarder>,
    now: Duration,
    /// The realms of those attached.
    realms: BTreeMap<Id, String>,
    holders: BTreeMap<(String, Tag), Id>,
    claims: BTreeSet<(Id, Tag)>,
    /// Who was asked for signs of life.
    asked: Vec<(Id, u64)>,
}

pub fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let mut world = World::default();
    while !choices.0.is_empty() {
        let (what, who) = (choices.next(), choices.next());
        world.step(what % 11, who % NODES, &mut choices);
        assert_eq!(world.relay.nodes(), world.realms.len());
    }
}

impl World {
    fn step(&mut self, what: usize, node: usize, choices: &mut Choices<'_>) {
        let id = node as Id;
        match what {
            0 => self.connect(node, choices.next()),
            1 => self.gone(id),
            2 => {
                let realm = REALMS[choices.next() % 2].to_string();
                self.hear(
                    id,
                    ToRelay::Attach { version: 1, features: 0, realm, token: Secret::default() },
                );
            }
            3 | 4 => {
                // Now and then a claim of another node, or for another realm.
                let realm = self.realms.get(&id).is_some_and(|realm| realm == REALMS[1]);
                let claim = match choices.next() {
                    n if n % 8 == 0 => n / 8,
                    n => node * 6 + usize::from(realm) * 3 + n % 3,
                };
                let claim = CLAIMS[claim % CLAIMS.len()].clone();
                self.hear(id, ToRelay::Claim { claim, sealed: vec![node as u8] });
            }
            5 => self.hear(id, ToRelay::Release(TAGS[choices.next() % 3])),
            6 => {
                if let Some((id, token)) = self.asked.pop() {
                    self.hear(id, ToRelay::Pong(token));
                }
            }
            7 => {
                self.now += Duration::from_millis(4 * choices.next() as u64);
                let actions = self.relay.expire(self.now);
                self.note(actions);
                assert!(self.relay.deadline().is_none_or(|deadline| deadline > self.now));
            }
            8 => {
                let len = choices.next();
                match ToRelay::decode(&choices.take(len)) {
                    Ok(Some(message)) => self.hear(id, message),
                    Ok(None) => {}
                    Err(_) => {
                        let actions = self.relay.malformed(id);
                        self.note(actions);
                    }
                }
            }
            9 => {
                let (from, to) = (TAGS[choices.next() % 3], TAGS[choices.next() % 3]);
                self.forward(id, from, to);
            }
            _ => {
                let len = choices.next();
                // Nobody holds a tag that was not claimed.
                let decision = self.pass(id, &choices.take(len));
                assert!(!matches!(decision, Forward::Slow(_)));
            }
        }
    }

    fn connect(&mut self, node: usize, key: usize) {
        self.gone(node as Id);
        let stranger = Stranger {
            // Two nodes may be the same one.
            node_id: [(key % 3) as u8; LEN],
            relay_id: [9; LEN],
            exporter: exporter(node),
            address: SocketAddr::from(([192, 0, 2, 1], 4433)),
        };
        self.relay.connected(node as Id, stranger);
    }

    fn gone(&mut self, id: Id) {
        self.relay.gone(id);
        self.forget(id);
    }

    fn hear(&mut self, id: Id, message: ToRelay) {
        let attaching = match &message {
            ToRelay::Attach { realm, .. } => Some(realm.clone()),
            _ => None,
        };
        if let (ToRelay::Release(tag), Some(realm)) = (&message, self.realms.get(&id)) {
            self.claims.remove(&(id, *tag));
            let place = (realm.clone(), *tag);
            if self.holders.get(&place) == Some(&id) {
                self.holders.remove(&place);
            }
        }
        let clock = Clock { now: self.now, wall: self.now.as_millis() as u64 };
        let actions = self.relay.receive(clock, id, message, |_| false);
        if let (Some(realm), [Action::Send(to, ToNode::Attached { .. })]) =
            (attaching, &actions[..])
        {
            assert_eq!(*to, id);
            assert!(self.realms.insert(id, realm).is_none(), "it attached twice");
        }
        self.note(actions);
    }

    fn note(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Close(id, said) => {
                    assert!(matches!(said, ToNode::Refused(_)));
                    self.forget(id);
                }
                Action::Send(id, ToNode::Held(tag)) => {
                    let realm = self.realms[&id].clone();
                    let former = self.holders.insert((realm, tag), id);
                    assert!(former.is_none_or(|former| former == id), "two hold one tag");
                    self.claims.insert((id, tag));
                }
                Action::Send(id, ToNode::Taken(tag)) => {
                    let holder = self.holders.get(&(self.realms[&id].clone(), tag));
                    assert!(holder.is_some_and(|holder| *holder != id), "nobody else holds it");
                }
                Action::Send(id, ToNode::Ping(token)) => self.asked.push((id, token)),
                Action::Send(..) => {}
                Action::Tell(..) | Action::Part(..) | Action::Wake(_) => panic!("it has no peers"),
            }
        }
    }

    fn forget(&mut self, id: Id) {
        self.realms.remove(&id);
        self.holders.retain(|_, holder| *holder != id);
        self.claims.retain(|(whose, _)| *whose != id);
    }

    fn forward(&mut self, id: Id, from: Tag, to: Tag) {
        let datagram = [&packet::header(&to, &from)[..], b"sealed"].concat();
        let holder = self.realms.get(&id).and_then(|realm| self.holders.get(&(realm.clone(), to)));
        let expected = match holder {
            _ if !self.claims.contains(&(id, from)) => Forward::Invalid,
            Some(holder) => Forward::To(*holder),
            None => Forward::Nobody(to),
        };
        assert_eq!(self.pass(id, &datagram), expected);
    }

    fn pass(&mut self, id: Id, datagram: &[u8]) -> Forward {
        let World { relay, forwarders, now, .. } = self;
        let forwarder = forwarders.entry(id).or_insert_with(|| relay.forwarder(*now, id));
        forwarder.forward(*now, datagram, |ends| relay.route(*now, id, ends))
    }
}
