//! What nodes and peers send, passed on.
//!
//! Datagrams are taken as many at a time as are there. Where they go and by which connection is
//! remembered, so that neither the table nor the list of connections is asked as long as nothing
//! changes: no lock that senders share.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use macula_core::mesh::packet;
use macula_core::relay::limits;
use macula_core::relay::message::ToNode;
use macula_core::relay::table::{Forward, Id};
use quinn::Connection;

use super::leg::Leg;
use super::{Outgoing, RelayService};
use crate::probe;

/// Datagrams taken at a time: some tenth of a millisecond's worth, so that others have their turn.
const RUN: usize = 64;

/// Legs remembered for one sender, as many as routes.
const MAX_LEGS: usize = 1024;

/// By which legs one sender's datagrams go.
#[derive(Default)]
struct Legs {
    /// Not kept alive here: a node that has gone is not to be remembered by who talked to it.
    known: HashMap<Id, Weak<Leg>>,
    /// The one that this run's datagrams went by last.
    latest: Option<Way>,
}

struct Way {
    id: Id,
    leg: Arc<Leg>,
    /// Bytes that may still wait for it, as was seen last.
    room: usize,
}

impl RelayService {
    /// Passes on what a node sends, until its connection ends.
    pub(super) async fn forward(&self, id: Id, connection: &Connection) {
        let counters = &self.counters;
        self.forward_runs(id, connection, |legs, decision, datagram| match decision {
            Forward::To(to) | Forward::ToPeer(to) => self.pass_on(legs, to, datagram),
            Forward::Silent => drop(counters.silent.fetch_add(1, Relaxed)),
            Forward::Nobody(tag) => {
                counters.nobody.fetch_add(1, Relaxed);
                let answer = Bytes::copy_from_slice(&packet::nobody(&tag));
                let _ = connection.send_datagram(answer);
            }
            Forward::Slow(tell) => {
                counters.slowed.fetch_add(1, Relaxed);
                if tell {
                    self.say(id, Outgoing::Message(ToNode::Slowed));
                }
            }
            Forward::Invalid => drop(counters.invalid.fetch_add(1, Relaxed)),
        })
        .await;
    }

    /// Passes what a peer forwards to the nodes here, until its connection ends.
    pub(super) async fn forward_here(&self, id: Id, connection: &Connection) {
        let counters = &self.counters;
        self.forward_runs(id, connection, |legs, decision, datagram| {
            let counter = match decision {
                Forward::To(to) => {
                    self.pass_on(legs, to, datagram);
                    &counters.from_peers
                }
                // Its withdrawal is on its way to the peer.
                Forward::Nobody(_) => &counters.nobody,
                Forward::Slow(_) => &counters.slowed,
                Forward::ToPeer(_) | Forward::Silent | Forward::Invalid => &counters.invalid,
            };
            counter.fetch_add(1, Relaxed);
        })
        .await;
    }

    async fn forward_runs(
        &self,
        id: Id,
        connection: &Connection,
        pass: impl Fn(&mut Legs, Forward, Bytes),
    ) {
        let mut forwarder = self.relay.lock().forwarder(self.began.elapsed(), id);
        let (mut run, mut legs) = (Vec::new(), Legs::default());
        while probe::next_datagrams(connection, RUN, &mut run).await.is_ok() {
            let now = self.began.elapsed();
            for datagram in run.drain(..) {
                let table = |ends: &_| self.relay.lock().route(now, id, ends);
                pass(&mut legs, forwarder.forward(now, &datagram, table), datagram);
            }
            legs.latest = None;
        }
    }

    fn pass_on(&self, legs: &mut Legs, to: Id, datagram: Bytes) {
        if let Some(way) = legs.way(to, |id| self.leg(id)) {
            self.send(way, datagram);
        }
    }

    /// The connection of a node, or of a peer.
    fn leg(&self, id: Id) -> Option<Arc<Leg>> {
        let node = self.attached.read().get(&id).map(|node| node.leg.clone());
        node.or_else(|| self.peers.leg(id))
    }

    fn send(&self, way: &mut Way, datagram: Bytes) {
        let bytes = datagram.len();
        if way.room < bytes {
            let (queue, memory) = self.room(&way.leg);
            way.room = queue.min(memory);
            if way.room < bytes {
                self.counters.full.fetch_add(1, Relaxed);
            }
            // Without memory this one goes. When only the queue is full its oldest make room: the
            // newest are worth more.
            if memory < bytes {
                return;
            }
        }
        way.room = way.room.saturating_sub(bytes);
        if way.leg.is_to_peer() {
            self.counters.to_peers.fetch_add(1, Relaxed);
        }
        match way.leg.connection.send_datagram(datagram) {
            Ok(()) => {
                self.counters.forwarded.fetch_add(1, Relaxed);
                self.counters.bytes.fetch_add(bytes as u64, Relaxed);
            }
            Err(_) => drop(self.counters.too_large.fetch_add(1, Relaxed)),
        }
    }

    /// Bytes for which the queue of a leg has room, and for which there is memory.
    fn room(&self, leg: &Leg) -> (usize, usize) {
        let (queue, waiting) = leg.look();
        let memory = match (waiting, self.memory) {
            (Some(waiting), Some(memory)) => {
                let most = limits::queue(memory, self.waiting.load(Relaxed));
                most.saturating_sub(waiting) as usize
            }
            _ => usize::MAX,
        };
        (queue, memory)
    }
}

impl Legs {
    /// The way to `id`. `list` is asked for a leg that is not known.
    fn way(&mut self, id: Id, list: impl FnOnce(Id) -> Option<Arc<Leg>>) -> Option<&mut Way> {
        if self.latest.as_ref().is_none_or(|way| way.id != id) {
            let known = self.known.get(&id).and_then(Weak::upgrade);
            let leg = match known {
                Some(leg) => leg,
                None => self.learn(id, list(id)?),
            };
            self.latest = Some(Way { id, leg, room: 0 });
        }
        self.latest.as_mut()
    }

    fn learn(&mut self, id: Id, leg: Arc<Leg>) -> Arc<Leg> {
        if self.known.len() >= MAX_LEGS {
            self.known.clear();
        }
        self.known.insert(id, Arc::downgrade(&leg));
        leg
    }
}
