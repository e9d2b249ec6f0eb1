//! Where datagrams go.
//!
//! Where from one tag to another is asked of the table once, and remembered for as long as nothing
//! changes there: who forwards waits for nobody who attaches, claims or leaves meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Attachment, Id, Meter, Realm, Relay};
use crate::mesh::claim::Tag;
use crate::mesh::packet::Packet;
use crate::relay::limits::Limits;

/// Routes remembered for one sender: a node that talks to more asks the table again now and then.
/// Some 100 kB.
const MAX_ROUTES: usize = 1024;

/// What to do with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Pass it on to a node.
    To(Id),
    /// Pass it on to a peer.
    ToPeer(Id),
    /// Drop it: the peer where it is held does not answer just now. Whoever sent it will ask again.
    Silent,
    /// Say that nobody holds the tag.
    Nobody(Tag),
    /// Drop it: the node sends more than it may. True: and tell it.
    Slow(bool),
    /// Drop it: it cannot be read, or its sender does not hold the tag it names as its own.
    Invalid,
}

/// Who sends a datagram, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The tag of its sender.
    pub from: Tag,
    /// The tag of its receiver.
    pub to: Tag,
}

/// What the table says of datagrams between two tags.
#[derive(Clone, Debug)]
pub struct Route {
    way: Forward,
    /// What all of the realm may send together; none: as much as they like.
    realm: Option<SharedMeter>,
}

/// A meter of all of a realm.
pub(super) type SharedMeter = Arc<Mutex<Meter>>;

/// Counts the changes of who holds what.
#[derive(Clone, Debug, Default)]
pub(super) struct Edition(Arc<AtomicU64>);

/// Decides about what one node or peer sends.
#[derive(Debug)]
pub struct Forwarder {
    meter: Meter,
    table: Edition,
    /// The edition that the routes are of.
    edition: u64,
    latest: Option<(Ends, Route)>,
    routes: HashMap<Ends, Route>,
}

impl Relay {
    /// For what the node or peer `id` sends from `now` on.
    pub fn forwarder(&self, now: Duration, id: Id) -> Forwarder {
        let is_node = self.attachments.contains_key(&id);
        let limits = if is_node { self.config.per_node } else { Limits::default() };
        Forwarder {
            meter: Meter::new(&limits, now),
            table: self.edition.clone(),
            edition: self.edition.current(),
            latest: None,
            routes: HashMap::new(),
        }
    }

    /// Where datagrams between two tags go that `id` sends. None: it does not hold the one they are
    /// said to come from.
    pub fn route(&self, now: Duration, id: Id, ends: &Ends) -> Option<Route> {
        match self.attachments.get(&id) {
            Some(attachment) => self.route_of_node(now, attachment, ends),
            None => self.route_of_peer(now, id, ends),
        }
    }

    fn route_of_node(&self, now: Duration, from: &Attachment, ends: &Ends) -> Option<Route> {
        let name = from.realm.as_deref().filter(|_| from.claims.contains(&ends.from))?;
        let realm = self.realms.get(name)?;
        let to = ends.to;
        let elsewhere = || match self.peers.place(now, name, &to) {
            Some(place) if self.peers.answers(place.peer) => Forward::ToPeer(place.peer),
            Some(_) => Forward::Silent,
            None => Forward::Nobody(to),
        };
        let way = realm.holder(&to).map_or_else(elsewhere, Forward::To);
        Some(Route { way, realm: realm.meter.clone() })
    }

    /// What a peer forwards goes to a node here, or nowhere.
    fn route_of_peer(&self, now: Duration, id: Id, ends: &Ends) -> Option<Route> {
        let from = self.peers.place_at(now, id, &ends.from).filter(|_| self.peers.is_up(id))?;
        let realm = self.realms.get(&*from.realm);
        let holder = realm.and_then(|realm| realm.holder(&ends.to));
        Some(Route {
            way: holder.map_or(Forward::Nobody(ends.to), Forward::To),
            realm: realm.and_then(|realm| realm.meter.clone()),
        })
    }
}

impl Realm {
    fn holder(&self, tag: &Tag) -> Option<Id> {
        self.holders.get(tag).map(|holder| holder.id)
    }
}

impl Edition {
    /// Something has changed. Who sees it a moment later has sent a moment earlier.
    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn current(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Forwarder {
    /// Where a datagram goes that was sent at `now`. `table` is asked ([`Relay::route`]) when that is
    /// not remembered.
    pub fn forward(
        &mut self,
        now: Duration,
        datagram: &[u8],
        table: impl FnOnce(&Ends) -> Option<Route>,
    ) -> Forward {
        let Some(Packet::Data { to, from, .. }) = Packet::decode(datagram) else {
            return Forward::Invalid;
        };
        let bytes = datagram.len() as u64;
        if !self.meter.has(now, bytes) {
            return Forward::Slow(self.meter.tells(now));
        }
        self.meter.take(bytes);
        match self.route(Ends { from, to }, table) {
            Some(route) if route.may_take(now, bytes) => route.way,
            Some(_) => Forward::Slow(self.meter.tells(now)),
            None => Forward::Invalid,
        }
    }

    fn route(&mut self, ends: Ends, table: impl FnOnce(&Ends) -> Option<Route>) -> Option<&Route> {
        // Before the table is asked: what changes afterwards is seen the next time.
        let edition = self.table.current();
        if edition != self.edition || self.routes.len() >= MAX_ROUTES {
            self.edition = edition;
            self.routes.clear();
            self.latest = None;
        }
        // Mostly one datagram after the other is for the same node.
        if self.latest.as_ref().is_none_or(|(latest, _)| *latest != ends) {
            let route = match self.routes.get(&ends) {
                Some(known) => known.clone(),
                None => table(&ends)?,
            };
            self.routes.entry(ends).or_insert_with(|| route.clone());
            self.latest = Some((ends, route));
        }
        self.latest.as_ref().map(|(_, route)| route)
    }
}

impl Route {
    /// Counts a datagram of `bytes`, unless it is too much for the realm.
    fn may_take(&self, now: Duration, bytes: u64) -> bool {
        let Some(realm) = &self.realm else {
            return true;
        };
        let mut meter = realm.lock().unwrap_or_else(PoisonError::into_inner);
        let has = meter.has(now, bytes);
        if has {
            meter.take(bytes);
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::{NOW, at, attach, claim, held};
    use super::*;
    use crate::mesh::key::tests::KEY;
    use crate::mesh::packet;
    use crate::relay::message::ToRelay;

    fn datagram(from: &str, to: &str) -> Vec<u8> {
        [&packet::header(&KEY.tag(to), &KEY.tag(from))[..], b"sealed"].concat()
    }

    /// What becomes of a datagram of `id`, whose `forwarder` this is.
    fn pass(relay: &Relay, forwarder: &mut Forwarder, id: Id, datagram: &[u8]) -> Forward {
        forwarder.forward(NOW, datagram, |ends| relay.route(NOW, id, ends))
    }

    fn forward(relay: &Relay, id: Id, from: &str, to: &str) -> Forward {
        pass(relay, &mut relay.forwarder(NOW, id), id, &datagram(from, to))
    }

    #[test]
    fn nodes_of_a_realm_reach_each_other_by_tag() {
        let mut relay = Relay::default();
        for (id, realm, name) in [(1, "r", "a"), (2, "r", "b"), (3, "s", "c")] {
            attach(&mut relay, id, id as u8, realm, b"");
            assert_eq!(claim(&mut relay, NOW, id, name), [held(id, name)]);
        }
        assert_eq!(forward(&relay, 1, "a", "b"), Forward::To(2));
        assert_eq!(forward(&relay, 2, "b", "a"), Forward::To(1));
        assert_eq!(forward(&relay, 1, "a", "c"), Forward::Nobody(KEY.tag("c")));
        assert_eq!(forward(&relay, 1, "b", "a"), Forward::Invalid);
        assert_eq!(pass(&relay, &mut relay.forwarder(NOW, 1), 1, b"?"), Forward::Invalid);
        relay.gone(2);
        assert_eq!(forward(&relay, 1, "a", "b"), Forward::Nobody(KEY.tag("b")));
        assert_eq!(relay.nodes(), 2);
    }

    #[test]
    fn who_sends_too_much_is_told() {
        let per_node = Limits { datagrams: Some(3), ..Limits::default() };
        let mut relay = Relay::new(Config { per_node, ..Config::default() });
        attach(&mut relay, 1, 1, "r", b"");
        claim(&mut relay, NOW, 1, "a");
        let (mut forwarder, sent) = (relay.forwarder(NOW, 1), datagram("a", "a"));
        let sent: Vec<_> = (0..5).map(|_| pass(&relay, &mut forwarder, 1, &sent)).collect();
        let through = Forward::To(1);
        assert_eq!(sent, [through, through, through, Forward::Slow(true), Forward::Slow(false)]);
    }

    #[test]
    fn a_realm_shares_what_its_nodes_may_send() {
        let per_realm = Limits { datagrams: Some(3), ..Limits::default() };
        let mut relay = Relay::new(Config { per_realm, ..Config::default() });
        for (id, realm, name) in [(1, "r", "a"), (2, "r", "b"), (3, "s", "c")] {
            attach(&mut relay, id, id as u8, realm, b"");
            claim(&mut relay, NOW, id, name);
        }
        let passed = |id, name: &str| forward(&relay, id, name, name) == Forward::To(id);
        assert!([(1, "a"), (2, "b"), (1, "a")].into_iter().all(|(id, name)| passed(id, name)));
        assert_eq!(forward(&relay, 2, "b", "b"), Forward::Slow(true));
        assert_eq!(forward(&relay, 3, "c", "c"), Forward::To(3));
    }

    /// The table is asked once, and again when it has changed.
    #[test]
    fn a_route_is_remembered_until_something_changes() {
        let mut relay = Relay::default();
        for (id, name) in [(1, "a"), (2, "b"), (3, "c")] {
            attach(&mut relay, id, id as u8, "r", b"");
            claim(&mut relay, NOW, id, name);
        }
        let mut forwarder = relay.forwarder(NOW, 1);
        let mut asked = |relay: &Relay, to: &str| {
            let mut asked = 0;
            let way = forwarder.forward(NOW, &datagram("a", to), |ends| {
                asked += 1;
                relay.route(NOW, 1, ends)
            });
            (way, asked)
        };
        assert_eq!(asked(&relay, "b"), (Forward::To(2), 1));
        assert_eq!(asked(&relay, "c"), (Forward::To(3), 1));
        assert_eq!(asked(&relay, "b"), (Forward::To(2), 0));
        assert_eq!(asked(&relay, "c"), (Forward::To(3), 0));
        relay.gone(3);
        assert_eq!(asked(&relay, "c"), (Forward::Nobody(KEY.tag("c")), 1));
        assert_eq!(asked(&relay, "c"), (Forward::Nobody(KEY.tag("c")), 0));
        assert_eq!(asked(&relay, "b"), (Forward::To(2), 1));
        attach(&mut relay, 4, 4, "r", b"");
        claim(&mut relay, NOW, 4, "c");
        assert_eq!(asked(&relay, "c"), (Forward::To(4), 1));
        relay.receive(at(NOW), 1, ToRelay::Release(KEY.tag("a")), |_| false);
        assert_eq!(asked(&relay, "c"), (Forward::Invalid, 1));
    }

    /// Whoever talks to very many has no more remembered than is allowed.
    #[test]
    fn routes_are_bounded() {
        let mut relay = Relay::default();
        attach(&mut relay, 1, 1, "r", b"");
        claim(&mut relay, NOW, 1, "a");
        let mut forwarder = relay.forwarder(NOW, 1);
        for n in 0..5000u16 {
            let mut to = Tag([0; 16]);
            to.0[..2].copy_from_slice(&n.to_be_bytes());
            let datagram = packet::header(&to, &KEY.tag("a"));
            assert_eq!(pass(&relay, &mut forwarder, 1, &datagram), Forward::Nobody(to));
            assert!(forwarder.routes.len() <= MAX_ROUTES);
        }
    }
}
