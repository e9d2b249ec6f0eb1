//! Trials: a holder of a tag is asked for a sign of life, because another node claims the tag here or
//! at a peer.

use std::sync::Arc;
use std::time::Duration;

use super::super::between::Between;
use super::super::message::{Refusal, ToNode};
use super::{Action, Id, MAX_PROBES, Relay, TRIAL};
use crate::keys::LEN;
use crate::mesh::claim::Tag;
use crate::mesh::record::Record;

/// The holder of a tag was asked for a sign of life.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) token: u64,
    pub(super) asked: Asked,
    pub(super) why: Why,
    pub(super) realm: String,
    pub(super) tag: Tag,
    pub(super) ends: Duration,
}

/// Who was asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The holder.
    Holder(Id),
    /// The peer where this node holds the tag.
    Peer(Id, [u8; LEN]),
}

/// Why it was asked.
#[derive(Debug)]
pub(super) enum Why {
    /// A node claims the tag.
    Claim { claimant: Id, sealed: Arc<[u8]>, record: Option<Record> },
    /// A peer asks, by its own token.
    Probe(Id, u64),
    /// A peer says that the tag is held there now.
    Elsewhere,
}

impl Trial {
    pub(super) fn is_claim_of(&self, id: Id) -> bool {
        matches!(self.why, Why::Claim { claimant, .. } if claimant == id)
    }
}

impl Relay {
    /// Another node that holds a tag at a peer, as far as is known.
    pub(super) fn rival(&self, now: Duration, id: Id, tag: &Tag) -> Option<Asked> {
        let realm = self.attachments.get(&id)?.realm.as_ref()?;
        let place = self.peers.place(now, realm, tag)?;
        let is_rival = self.peers.is_up(place.peer) && Some(&place.node) != self.node_id(id);
        is_rival.then_some(Asked::Peer(place.peer, place.node))
    }

    /// Asks a holder for a sign of life.
    pub(super) fn ask(
        &mut self,
        ends: Duration,
        asked: Asked,
        why: Why,
        of: (&str, Tag),
    ) -> Action {
        self.last_token += 1;
        let (token, realm, tag) = (self.last_token, of.0.to_string(), of.1);
        let question = match asked {
            Asked::Holder(holder) => Action::Send(holder, ToNode::Ping(token)),
            Asked::Peer(peer, node) => {
                let realm = realm.clone();
                Action::Tell(peer, Between::Probe { token, realm, tag, node })
            }
        };
        self.trials.push(Trial { token, asked, why, realm, tag, ends });
        question
    }

    /// A node gave the sign of life: it keeps the tag.
    pub(super) fn alive(&mut self, now: Duration, id: Id, token: u64) -> Vec<Action> {
        let trial = self
            .trials
            .iter()
            .position(|trial| trial.token == token && trial.asked == Asked::Holder(id));
        let Some(trial) = trial.map(|at| self.trials.remove(at)) else {
            return Vec::new();
        };
        let holds = self.holder_in(&trial.realm, &trial.tag) == Some(id);
        match trial.why {
            Why::Claim { claimant, .. } if holds => {
                vec![Action::Send(claimant, ToNode::Taken(trial.tag))]
            }
            // It has let go of the tag meanwhile.
            Why::Claim { .. } => self.succeed(now, trial),
            Why::Probe(peer, token) if holds => vec![Action::Tell(peer, Between::Alive(token))],
            Why::Probe(..) | Why::Elsewhere => Vec::new(),
        }
    }

    /// A peer says that the node that holds a tag there is alive.
    pub(super) fn alive_at(&mut self, now: Duration, id: Id, token: u64) -> Vec<Action> {
        let of_peer = |trial: &Trial| matches!(trial.asked, Asked::Peer(peer, _) if peer == id);
        let trial = self.trials.iter().position(|trial| trial.token == token && of_peer(trial));
        let Some(trial) = trial.map(|at| self.trials.remove(at)) else {
            return Vec::new();
        };
        let place = self.peers.place_at(now, id, &trial.tag);
        let is_there = place.is_some_and(|place| trial.asked == Asked::Peer(id, place.node));
        match trial.why {
            Why::Claim { claimant, .. } if is_there => {
                vec![Action::Send(claimant, ToNode::Taken(trial.tag))]
            }
            _ => self.succeed(now, trial),
        }
    }

    /// Nobody spoke for the former holder: the claimant takes its place, unless another one did
    /// meanwhile.
    pub(super) fn succeed(&mut self, now: Duration, trial: Trial) -> Vec<Action> {
        let Trial { asked, why, realm, tag, .. } = trial;
        let holder = self.holder_in(&realm, &tag);
        match why {
            Why::Probe(..) => Vec::new(),
            Why::Elsewhere => match holder {
                Some(holder)
                    if asked == Asked::Holder(holder) && self.is_outdone(now, &realm, &tag) =>
                {
                    self.refuse(holder, Refusal::Replaced)
                }
                _ => Vec::new(),
            },
            // It was put out itself by a trial that was over at the same time.
            Why::Claim { claimant, .. } if !self.attachments.contains_key(&claimant) => Vec::new(),
            Why::Claim { claimant, sealed, record } => match holder {
                Some(holder) if asked == Asked::Holder(holder) => {
                    let mut actions = self.refuse(holder, Refusal::Replaced);
                    actions.extend(self.hold(now, claimant, tag, sealed, record));
                    actions
                }
                Some(holder) if holder != claimant => {
                    vec![Action::Send(claimant, ToNode::Taken(tag))]
                }
                _ => self.hold(now, claimant, tag, sealed, record),
            },
        }
    }

    /// Whether a node said later that it holds a tag at a peer than the holder here said its word.
    pub(super) fn is_outdone(&self, now: Duration, realm: &str, tag: &Tag) -> bool {
        let holder = self.realms.get(realm).and_then(|realm| realm.holders.get(tag));
        let record = holder.and_then(|holder| holder.record.as_ref());
        let said = record.map_or(0, |record| record.sequence);
        self.peers.place(now, realm, tag).is_some_and(|place| place.sequence > said)
    }

    /// A peer asks whether the node that holds a tag here is alive.
    pub(super) fn probe(
        &mut self,
        now: Duration,
        id: Id,
        token: u64,
        (realm, tag, node): (&str, Tag, [u8; LEN]),
    ) -> Vec<Action> {
        let of_peer = |trial: &&Trial| matches!(trial.why, Why::Probe(peer, _) if peer == id);
        let holder = self.holder_in(realm, &tag);
        let holder = holder.filter(|holder| self.node_id(*holder) == Some(&node));
        match holder {
            Some(holder)
                if self.peers.lets_in(id, realm, &self.config)
                    && self.trials.iter().filter(of_peer).count() < MAX_PROBES =>
            {
                let (asked, why) = (Asked::Holder(holder), Why::Probe(id, token));
                vec![self.ask(now + TRIAL, asked, why, (realm, tag))]
            }
            _ => Vec::new(),
        }
    }
}
