//! What nodes and peers send, passed on.
//!
//! Datagrams are taken as many at a time as are there: the table is asked once for all of them, and
//! the connection they go to is looked up once for all that follow each other there.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use macula_core::mesh::packet;
use macula_core::relay::limits;
use macula_core::relay::message::ToNode;
use macula_core::relay::table::{Forward, Id, Relay};
use quinn::Connection;

use super::{Attached, Outgoing, RelayService};
use crate::probe;

/// Datagrams taken at a time: some tenth of a millisecond's worth, so that those of others are not
/// kept waiting for the table.
const RUN: usize = 64;

/// The connection that the datagrams at hand go to.
struct Way<'a> {
    to: Forward,
    connection: Connection,
    /// None: it is a peer.
    node: Option<&'a Attached>,
    /// Bytes that may still wait for it, as was seen last.
    room: usize,
}

/// Passes on what was decided to be: mostly one datagram after the other to the same connection.
struct Passing<'a> {
    service: &'a RelayService,
    attached: &'a HashMap<Id, Attached>,
    latest: Option<Way<'a>>,
}

impl RelayService {
    /// Passes on what a node sends, until its connection ends.
    pub(super) async fn forward(&self, id: Id, connection: &Connection) {
        let decide = |relay: &mut Relay, now, run: &[Bytes], decisions: &mut Vec<Forward>| {
            let mut forwarder = relay.forwarder(now, id);
            decisions.extend(run.iter().map(|datagram| forwarder.forward(datagram)));
        };
        let counters = &self.counters;
        let pass = |passing: &mut Passing<'_>, decision, datagram| match decision {
            Forward::To(_) | Forward::ToPeer(_) => passing.pass_on(decision, datagram),
            Forward::Silent => drop(counters.silent.fetch_add(1, Relaxed)),
            Forward::Nobody(tag) => {
                counters.nobody.fetch_add(1, Relaxed);
                let answer = Bytes::copy_from_slice(&packet::nobody(&tag));
                let _ = connection.send_datagram(answer);
            }
            Forward::Slow(tell) => {
                counters.slowed.fetch_add(1, Relaxed);
                if let Some(node) = passing.attached.get(&id).filter(|_| tell) {
                    node.say(Outgoing::Message(ToNode::Slowed));
                }
            }
            Forward::Invalid => drop(counters.invalid.fetch_add(1, Relaxed)),
        };
        self.forward_runs(connection, decide, pass).await;
    }

    /// Passes what a peer forwards to the nodes here, until its connection ends.
    pub(super) async fn forward_here(&self, id: Id, connection: &Connection) {
        let decide = |relay: &mut Relay, now, run: &[Bytes], decisions: &mut Vec<Forward>| {
            decisions.extend(run.iter().map(|datagram| relay.forward_here(now, id, datagram)));
        };
        let counters = &self.counters;
        let pass = |passing: &mut Passing<'_>, decision, datagram| {
            let counter = match decision {
                Forward::To(_) => {
                    passing.pass_on(decision, datagram);
                    &counters.from_peers
                }
                // Its withdrawal is on its way to the peer.
                Forward::Nobody(_) => &counters.nobody,
                Forward::Slow(_) => &counters.slowed,
                Forward::ToPeer(_) | Forward::Silent | Forward::Invalid => &counters.invalid,
            };
            counter.fetch_add(1, Relaxed);
        };
        self.forward_runs(connection, decide, pass).await;
    }

    async fn forward_runs(
        &self,
        connection: &Connection,
        decide: impl Fn(&mut Relay, Duration, &[Bytes], &mut Vec<Forward>),
        pass: impl Fn(&mut Passing<'_>, Forward, Bytes),
    ) {
        let (mut run, mut decisions) = (Vec::new(), Vec::new());
        while probe::next_datagrams(connection, RUN, &mut run).await.is_ok() {
            decide(&mut self.relay.lock(), self.began.elapsed(), &run, &mut decisions);
            let attached = self.attached.read();
            let mut passing = Passing { service: self, attached: &attached, latest: None };
            for (decision, datagram) in decisions.drain(..).zip(run.drain(..)) {
                pass(&mut passing, decision, datagram);
            }
        }
    }
}

impl<'a> Passing<'a> {
    fn pass_on(&mut self, to: Forward, datagram: Bytes) {
        if self.latest.as_ref().is_none_or(|way| way.to != to) {
            self.latest = self.way(to);
        }
        if let Some(way) = &mut self.latest {
            self.service.send(way, datagram);
        }
    }

    fn way(&self, to: Forward) -> Option<Way<'a>> {
        let Passing { service, attached, .. } = self;
        let (connection, node) = match to {
            Forward::To(id) => attached.get(&id).map(|node| (node.connection.clone(), Some(node))),
            Forward::ToPeer(id) => {
                service.peers.connection(id).map(|connection| (connection, None))
            }
            _ => None,
        }?;
        Some(Way { to, connection, node, room: 0 })
    }
}

impl RelayService {
    fn send(&self, way: &mut Way<'_>, datagram: Bytes) {
        let bytes = datagram.len();
        if way.room < bytes {
            let (queue, memory) = self.room(way);
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
        if way.node.is_none() {
            self.counters.to_peers.fetch_add(1, Relaxed);
        }
        match way.connection.send_datagram(datagram) {
            Ok(()) => {
                self.counters.forwarded.fetch_add(1, Relaxed);
                self.counters.bytes.fetch_add(bytes as u64, Relaxed);
            }
            Err(_) => drop(self.counters.too_large.fetch_add(1, Relaxed)),
        }
    }

    /// Bytes for which the queue has room, and for which there is memory.
    fn room(&self, way: &Way<'_>) -> (usize, usize) {
        let queue = way.connection.datagram_send_buffer_space();
        let memory = match (way.node, self.memory) {
            (Some(node), Some(memory)) => {
                let waiting = node.note_room(queue, &self.waiting);
                let most = limits::queue(memory, self.waiting.load(Relaxed));
                most.saturating_sub(waiting) as usize
            }
            _ => usize::MAX,
        };
        (queue, memory)
    }
}
