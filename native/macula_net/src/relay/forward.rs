//! What nodes and peers send, passed on.
//!
//! Datagrams are taken as many at a time as are there: the table is asked once for all of them, and
//! the connection they go to is looked up once for all that follow each other there.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use macula_core::mesh::packet;
use macula_core::relay::limits;
use macula_core::relay::message::ToNode;
use macula_core::relay::table::{Forward, Id};
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

impl RelayService {
    /// Passes on what a node sends, until its connection ends.
    pub(super) async fn forward(&self, id: Id, connection: &Connection) {
        let (mut run, mut decisions) = (Vec::new(), Vec::new());
        while probe::next_datagrams(connection, RUN, &mut run).await.is_ok() {
            self.decide(id, &run, &mut decisions);
            let attached = self.attached.read();
            let mut way = None;
            for (decision, datagram) in decisions.drain(..).zip(run.drain(..)) {
                match decision {
                    Forward::To(_) | Forward::ToPeer(_) => {
                        self.pass_on(&attached, &mut way, decision, datagram);
                    }
                    Forward::Silent => drop(self.counters.silent.fetch_add(1, Relaxed)),
                    Forward::Nobody(tag) => {
                        self.counters.nobody.fetch_add(1, Relaxed);
                        let answer = Bytes::copy_from_slice(&packet::nobody(&tag));
                        let _ = connection.send_datagram(answer);
                    }
                    Forward::Slow(tell) => {
                        self.counters.slowed.fetch_add(1, Relaxed);
                        if let Some(node) = attached.get(&id).filter(|_| tell) {
                            node.say(Outgoing::Message(ToNode::Slowed));
                        }
                    }
                    Forward::Invalid => drop(self.counters.invalid.fetch_add(1, Relaxed)),
                }
            }
        }
    }

    fn decide(&self, id: Id, run: &[Bytes], decisions: &mut Vec<Forward>) {
        let mut relay = self.relay.lock();
        let mut forwarder = relay.forwarder(self.began.elapsed(), id);
        decisions.extend(run.iter().map(|datagram| forwarder.forward(datagram)));
    }

    /// Passes what a peer forwards to the nodes here, until its connection ends.
    pub(super) async fn forward_here(&self, id: Id, connection: &Connection) {
        let (mut run, mut decisions) = (Vec::new(), Vec::new());
        while probe::next_datagrams(connection, RUN, &mut run).await.is_ok() {
            self.decide_here(id, &run, &mut decisions);
            let attached = self.attached.read();
            let mut way = None;
            for (decision, datagram) in decisions.drain(..).zip(run.drain(..)) {
                let counter = match decision {
                    Forward::To(_) => {
                        self.pass_on(&attached, &mut way, decision, datagram);
                        &self.counters.from_peers
                    }
                    // Its withdrawal is on its way to the peer.
                    Forward::Nobody(_) => &self.counters.nobody,
                    Forward::Slow(_) => &self.counters.slowed,
                    Forward::ToPeer(_) | Forward::Silent | Forward::Invalid => {
                        &self.counters.invalid
                    }
                };
                counter.fetch_add(1, Relaxed);
            }
        }
    }

    fn decide_here(&self, id: Id, run: &[Bytes], decisions: &mut Vec<Forward>) {
        let (mut relay, now) = (self.relay.lock(), self.began.elapsed());
        decisions.extend(run.iter().map(|datagram| relay.forward_here(now, id, datagram)));
    }

    fn pass_on<'a>(
        &self,
        attached: &'a HashMap<Id, Attached>,
        latest: &mut Option<Way<'a>>,
        to: Forward,
        datagram: Bytes,
    ) {
        if latest.as_ref().is_none_or(|way| way.to != to) {
            *latest = self.way(attached, to);
        }
        if let Some(way) = latest {
            self.send(way, datagram);
        }
    }

    fn way<'a>(&self, attached: &'a HashMap<Id, Attached>, to: Forward) -> Option<Way<'a>> {
        let (connection, node) = match to {
            Forward::To(id) => attached.get(&id).map(|node| (node.connection.clone(), Some(node))),
            Forward::ToPeer(id) => self.peers.connection(id).map(|connection| (connection, None)),
            _ => None,
        }?;
        Some(Way { to, connection, node, room: 0 })
    }

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
                let waiting = node.look(&self.waiting);
                let most = limits::queue(memory, self.waiting.load(Relaxed));
                most.saturating_sub(waiting) as usize
            }
            _ => usize::MAX,
        };
        (queue, memory)
    }
}
