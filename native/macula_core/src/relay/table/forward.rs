//! Where datagrams go.
//!
//! A node's come in runs, most of a run for one other node: what is the same for all of them is
//! looked up once.

use std::time::Duration;

use super::{Attachment, Id, Meter, Peers, Realm, Relay};
use crate::mesh::claim::Tag;
use crate::mesh::packet::Packet;

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
    /// Drop it: it cannot be read, or its sender holds neither the tag it names nor any.
    Invalid,
}

/// Decides about what one node sends, as the table is now.
#[derive(Debug)]
pub struct Forwarder<'a> {
    now: Duration,
    sender: Option<Sender<'a>>,
    peers: &'a Peers,
    /// The tag addressed last, and the way to its holder.
    latest: Option<(Tag, Forward)>,
}

#[derive(Debug)]
struct Sender<'a> {
    claims: &'a [Tag],
    meter: &'a mut Meter,
    realm: &'a mut Realm,
    /// The realm's name.
    name: &'a str,
}

impl Relay {
    /// Decides about what the node `id` sends at `now`.
    pub fn forwarder(&mut self, now: Duration, id: Id) -> Forwarder<'_> {
        let sender = self.attachments.get_mut(&id).and_then(|attachment| {
            let Attachment { realm, claims, meter, .. } = attachment;
            let name = realm.as_deref()?;
            Some(Sender { claims, meter, realm: self.realms.get_mut(name)?, name })
        });
        Forwarder { now, sender, peers: &self.peers, latest: None }
    }

    /// Where a datagram goes that the peer `id` has forwarded: to a node here, or nowhere.
    pub fn forward_here(&mut self, now: Duration, id: Id, datagram: &[u8]) -> Forward {
        let Some(Packet::Data { to, from, .. }) = Packet::decode(datagram) else {
            return Forward::Invalid;
        };
        let from = self.peers.place_at(now, id, &from).filter(|_| self.peers.is_up(id));
        let Some(from) = from else {
            return Forward::Invalid;
        };
        let Some(realm) = self.realms.get_mut(&*from.realm) else {
            return Forward::Nobody(to);
        };
        let bytes = datagram.len() as u64;
        if !realm.meter.has(now, bytes) {
            return Forward::Slow(false);
        }
        realm.meter.take(bytes);
        match realm.holders.get(&to) {
            Some(holder) => Forward::To(holder.id),
            None => Forward::Nobody(to),
        }
    }
}

impl Forwarder<'_> {
    /// Where the next datagram goes.
    pub fn forward(&mut self, datagram: &[u8]) -> Forward {
        let (Some(sender), Some(Packet::Data { to, from, .. })) =
            (&mut self.sender, Packet::decode(datagram))
        else {
            return Forward::Invalid;
        };
        if !sender.claims.contains(&from) {
            return Forward::Invalid;
        }
        if let Err(slow) = sender.pay(self.now, datagram.len() as u64) {
            return slow;
        }
        match self.latest {
            Some((latest, way)) if latest == to => way,
            _ => {
                let way = sender.way(self.now, self.peers, to);
                self.latest = Some((to, way));
                way
            }
        }
    }
}

impl Sender<'_> {
    /// Counts a datagram of `bytes`, unless it is too much for the node or its realm.
    fn pay(&mut self, now: Duration, bytes: u64) -> Result<(), Forward> {
        if !self.meter.has(now, bytes) || !self.realm.meter.has(now, bytes) {
            return Err(Forward::Slow(self.meter.tells(now)));
        }
        self.meter.take(bytes);
        self.realm.meter.take(bytes);
        Ok(())
    }

    fn way(&self, now: Duration, peers: &Peers, to: Tag) -> Forward {
        if let Some(holder) = self.realm.holders.get(&to) {
            return Forward::To(holder.id);
        }
        match peers.place(now, self.name, &to) {
            Some(place) if peers.answers(place.peer) => Forward::ToPeer(place.peer),
            Some(_) => Forward::Silent,
            None => Forward::Nobody(to),
        }
    }
}
