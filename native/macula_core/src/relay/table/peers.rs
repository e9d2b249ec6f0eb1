//! A relay among its peers: what they say of tags held at them, and what they are told of those held
//! here.

use std::time::Duration;

use super::super::between::{Announcement, Between};
use super::super::message::{Refusal, ToNode};
use super::super::peering::{Learned, Peering};
use super::trials::{Asked, Trial, Why};
use super::{Access, Action, Clock, ELSEWHERE_TRIAL, Holder, Id, Relay, TRIAL};
use crate::keys::LEN;
use crate::mesh::claim::Tag;
use crate::mesh::record::Record;

impl Relay {
    /// Connected peers.
    pub fn peers(&self) -> usize {
        self.peers.count()
    }

    /// What is known of the tags held at peers.
    pub fn records(&self) -> usize {
        self.peers.records()
    }

    /// The realms that a CA decides about.
    pub fn authorities(&self) -> impl Iterator<Item = &String> {
        let realms = self.config.realms.iter().flatten();
        realms.filter(|(_, access)| **access == Access::Authority).map(|(realm, _)| realm)
    }

    /// A relay wants to be a peer, or was called and has agreed to be one.
    ///
    /// # Errors
    /// Why it becomes none.
    pub fn peered(
        &mut self,
        now: Duration,
        id: Id,
        peering: Peering,
    ) -> Result<Vec<Action>, Refusal> {
        self.peers.add(now, id, peering, &self.config)?;
        let realms: Vec<_> = self.realms.keys().cloned().collect();
        Ok(self.tell_of(id, &realms))
    }

    /// Takes a message of a peer, an [`Between::Announce`] with the tag it was verified for.
    pub fn hear(&mut self, clock: Clock, id: Id, message: Heard) -> (Vec<Action>, Learned) {
        let actions = match message {
            _ if !self.peers.is_up(id) => Vec::new(),
            Heard::Announced(tag, announced) => return self.learn(clock, id, tag, announced),
            Heard::Said(Between::Proofs(proved)) => {
                let realms = self.peers.prove(id, &proved);
                self.tell_of(id, &realms)
            }
            Heard::Said(Between::Withdraw(tag)) => {
                self.peers.withdraw(id, &tag);
                self.edition.advance();
                Vec::new()
            }
            Heard::Said(Between::Probe { token, realm, tag, node }) => {
                self.probe(clock.now, id, token, (&realm, tag, node))
            }
            Heard::Said(Between::Alive(token)) => self.alive_at(clock.now, id, token),
            Heard::Said(Between::Ping(token)) => vec![Action::Tell(id, Between::Pong(token))],
            Heard::Said(Between::Pong(_) | Between::Ended(_)) => Vec::new(),
            Heard::Said(Between::Announce(_)) => return (Vec::new(), Learned::Refused),
        };
        (actions, Learned::Known)
    }

    /// What a peer is to be shown and told next of the tags held here; none: it knows all.
    pub fn announcement(&mut self, id: Id) -> Option<Between> {
        let shown = self.peers.shown(id);
        if !shown.is_empty() {
            return Some(Between::Proofs(shown));
        }
        let (realm, tag) = self.peers.next(id)?;
        let own = self.peers.peering(id)?.own;
        let holder = self.realms.get(&*realm).and_then(|realm| realm.holders.get(&tag));
        let stranger = holder.and_then(|holder| Some(&self.attachments.get(&holder.id)?.stranger));
        Some(match (holder, stranger) {
            // A record for the key this relay had before is none for this peer.
            (Some(Holder { record: Some(record), sealed, .. }), Some(stranger))
                if stranger.relay_id == own =>
            {
                Between::Announce(Announcement {
                    realm: realm.to_string(),
                    node: stranger.node_id,
                    record: record.clone(),
                    sealed: sealed.to_vec(),
                })
            }
            _ => Between::Withdraw(tag),
        })
    }

    /// Whether a peer answers just now: what is for it is dropped as long as it does not.
    pub fn doubt(&mut self, id: Id, doubted: bool) {
        if self.peers.doubt(id, doubted) {
            self.edition.advance();
        }
    }

    /// A peering has ended. `broke`: without a word, so that it is likely to be back soon.
    pub fn parted(&mut self, now: Duration, id: Id, broke: bool) {
        let of_peer = |trial: &Trial| matches!(trial.why, Why::Probe(peer, _) if peer == id);
        self.trials.retain(|trial| !of_peer(trial));
        self.peers.gone(now, id, broke);
        self.edition.advance();
    }

    /// Has peers be told of a tag, and its holder of a record elsewhere that outdoes its own.
    pub(super) fn publish(
        &mut self,
        now: Duration,
        id: Id,
        tag: Tag,
        record: Record,
    ) -> Vec<Action> {
        let Some(name) = self.attachments.get(&id).and_then(|it| it.realm.clone()) else {
            return Vec::new();
        };
        let mut actions = Vec::new();
        let newest = self.peers.place(now, &name, &tag).filter(|place| {
            place.sequence >= record.sequence && Some(&place.node) != self.node_id(id)
        });
        if let Some(place) = newest {
            actions.push(Action::Send(id, ToNode::Stale { tag, newest: place.sequence }));
        }
        let realm = self.realms.get_mut(&name);
        if let Some(holder) = realm.and_then(|realm| realm.holders.get_mut(&tag))
            && holder.record.as_ref().is_none_or(|former| former.sequence < record.sequence)
        {
            holder.record = Some(record);
            actions.extend(self.mark(&name, tag));
        }
        actions
    }

    /// Takes what a peer says of a tag. Where a node holds it here, that one is asked whether it is
    /// still there: most often it is attached to both relays.
    fn learn(
        &mut self,
        clock: Clock,
        id: Id,
        tag: Tag,
        announced: Announcement,
    ) -> (Vec<Action>, Learned) {
        let (realm, node) = (announced.realm.clone(), announced.node);
        let Clock { now, wall } = clock;
        let learned = self.peers.learn(now, wall, id, (tag, announced), &self.config);
        if learned == Learned::News {
            self.edition.advance();
        }
        let holder = self.holder_in(&realm, &tag);
        let (Learned::News, Some(holder)) = (learned, holder) else {
            return (Vec::new(), learned);
        };
        let open = self.trials.iter().any(|trial| {
            matches!(trial.why, Why::Elsewhere) && trial.tag == tag && trial.realm == realm
        });
        if open || !self.is_outdone(now, &realm, &tag) {
            return (Vec::new(), learned);
        }
        let limit = if self.node_id(holder) == Some(&node) { ELSEWHERE_TRIAL } else { TRIAL };
        let asked = Asked::Holder(holder);
        (vec![self.ask(now + limit, asked, Why::Elsewhere, (&realm, tag))], learned)
    }

    /// Has all peers be told anew of a tag.
    pub(super) fn mark(&mut self, realm: &str, tag: Tag) -> Vec<Action> {
        let woken = self.peers.mark(realm, tag, &self.config);
        woken.into_iter().map(Action::Wake).collect()
    }

    /// Has a peer be told of all that is held here in those of these realms that it is let into.
    pub(super) fn tell_of(&mut self, id: Id, realms: &[String]) -> Vec<Action> {
        for name in realms {
            if !self.peers.lets_in(id, name, &self.config) {
                continue;
            }
            let holders = self.realms.get(name).into_iter().flat_map(|realm| &realm.holders);
            let said = holders.filter(|(_, holder)| holder.record.is_some());
            self.peers.mark_all(id, name, said.map(|(tag, _)| *tag));
        }
        vec![Action::Wake(id)]
    }
}

/// What a peer says.
#[derive(Debug)]
pub enum Heard {
    /// A tag is held there, by the word of its node.
    Announced(Tag, Announcement),
    /// Anything else.
    Said(Between),
}

impl Heard {
    /// Checks what `relay` says. Costs time for an announcement.
    ///
    /// # Errors
    /// [`Refusal::Proof`]: it announces what no node said.
    pub fn check(message: Between, relay: &[u8; LEN]) -> Result<Heard, Refusal> {
        match message {
            Between::Announce(announced) => match announced.verify(relay) {
                Some(tag) => Ok(Heard::Announced(tag, announced)),
                None => Err(Refusal::Proof),
            },
            said => Ok(Heard::Said(said)),
        }
    }
}
