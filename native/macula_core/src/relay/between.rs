//! What two relays say to each other once they are peers (`message`: PEER, PEERED). Both sides say
//! the same things, whichever of them has called.
//!
//! PROOFs say which tokens of realms a side knows, and so which realms the other may tell it of. The
//! side that has called proves first; the other proves only what it was shown to share. ANNOUNCE and
//! WITHDRAW say what is held at the sender. PROBE asks whether a node that holds a tag there is
//! alive, and ALIVE says so. PING and PONG show that the peering is. ENDED is the last word.
//!
//! Messages are framed as those of `message`, with types of their own.

use crate::keys::LEN;
use crate::mesh::claim::Tag;
use crate::mesh::record::{Attachment, Record};
use crate::wire::{framed, put};

use super::message::{
    MAX_REALM, MAX_SEALED, Refusal, decode_within, number, put_record, record, tag,
};

/// Proofs in one message, at most.
pub const MAX_PROOFS: usize = 100;

const PROOFS: u8 = 32;
const ANNOUNCE: u8 = 33;
const WITHDRAW: u8 = 34;
const PROBE: u8 = 35;
const ALIVE: u8 = 36;
const PING: u8 = 37;
const PONG: u8 = 38;
const ENDED: u8 = 39;

/// That a side knows a token of a realm, on this connection.
pub type Proof = [u8; LEN];

/// A tag is held at the sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// In which realm.
    pub realm: String,
    /// By which node.
    pub node: [u8; LEN],
    /// The node's word for it.
    pub record: Record,
    /// Its name, sealed for the directory.
    pub sealed: Vec<u8>,
}

impl Announcement {
    /// The tag, if its node says that it is held at `relay`.
    pub fn verify(&self, relay: &[u8; LEN]) -> Option<Tag> {
        self.record.verify(&self.realm, &Attachment { node: self.node, relay: *relay })
    }
}

/// A message between peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Between {
    /// Tokens that the sender knows.
    Proofs(Vec<Proof>),
    /// A tag is held at the sender.
    Announce(Announcement),
    /// A tag is held there no more.
    Withdraw(Tag),
    /// Is the node that holds a tag at the receiver alive?
    Probe {
        /// Names the question.
        token: u64,
        /// In which realm.
        realm: String,
        /// Which tag.
        tag: Tag,
        /// Which node.
        node: [u8; LEN],
    },
    /// It is.
    Alive(u64),
    /// A sign of life is wanted.
    Ping(u64),
    /// The sign of life.
    Pong(u64),
    /// The peering ends.
    Ended(Refusal),
}

impl Between {
    /// The message with its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Between::Proofs(proofs) => framed(PROOFS, |out| {
                proofs.iter().take(MAX_PROOFS).for_each(|proof| out.extend_from_slice(proof));
            }),
            Between::Announce(Announcement { realm, node, record, sealed }) => {
                framed(ANNOUNCE, |out| {
                    put(out, realm.as_bytes(), MAX_REALM);
                    out.extend_from_slice(node);
                    put_record(out, record);
                    put(out, sealed, MAX_SEALED);
                })
            }
            Between::Withdraw(tag) => framed(WITHDRAW, |out| out.extend_from_slice(&tag.0)),
            Between::Probe { token, realm, tag, node } => framed(PROBE, |out| {
                out.extend_from_slice(&token.to_be_bytes());
                put(out, realm.as_bytes(), MAX_REALM);
                out.extend_from_slice(&tag.0);
                out.extend_from_slice(node);
            }),
            Between::Alive(token) => number(ALIVE, *token),
            Between::Ping(token) => number(PING, *token),
            Between::Pong(token) => number(PONG, *token),
            Between::Ended(refusal) => framed(ENDED, |out| out.push(refusal.code())),
        }
    }

    /// Reads a message (without its length); `Ok(None)` when of a type not known.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn decode(message: &[u8]) -> Result<Option<Between>, Refusal> {
        decode_within(PROOFS..=ENDED, message, |kind, input| {
            Some(match kind {
                PROOFS => {
                    let mut proofs = Vec::new();
                    while !input.is_empty() && proofs.len() < MAX_PROOFS {
                        proofs.push(input.array()?);
                    }
                    Between::Proofs(proofs)
                }
                ANNOUNCE => Between::Announce(Announcement {
                    realm: input.text(MAX_REALM)?,
                    node: input.array()?,
                    record: record(input)?,
                    sealed: input.counted(MAX_SEALED)?.to_vec(),
                }),
                WITHDRAW => Between::Withdraw(tag(input)?),
                PROBE => Between::Probe {
                    token: input.u64()?,
                    realm: input.text(MAX_REALM)?,
                    tag: tag(input)?,
                    node: input.array()?,
                },
                ALIVE => Between::Alive(input.u64()?),
                PING => Between::Ping(input.u64()?),
                PONG => Between::Pong(input.u64()?),
                ENDED => Between::Ended(Refusal::from_code(input.u8()?)),
                _ => return None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::MAX_MESSAGE;
    use super::super::message::tests::some_record;
    use super::*;
    use crate::mesh::claim::TAG;
    use proptest::prelude::*;

    fn some_message() -> impl Strategy<Value = Between> {
        let tag = || any::<[u8; TAG]>().prop_map(Tag);
        let realm = || "[a-z.é]{0,60}";
        let sealed = proptest::collection::vec(any::<u8>(), 0..MAX_SEALED);
        prop_oneof![
            proptest::collection::vec(any::<Proof>(), 0..=MAX_PROOFS).prop_map(Between::Proofs),
            (realm(), any::<[u8; LEN]>(), some_record(), sealed).prop_map(
                |(realm, node, record, sealed)| {
                    Between::Announce(Announcement { realm, node, record, sealed })
                }
            ),
            tag().prop_map(Between::Withdraw),
            (any::<u64>(), realm(), tag(), any::<[u8; LEN]>())
                .prop_map(|(token, realm, tag, node)| Between::Probe { token, realm, tag, node }),
            any::<u64>().prop_map(Between::Alive),
            any::<u64>().prop_map(Between::Ping),
            any::<u64>().prop_map(Between::Pong),
            (1u8..).prop_map(|code| Between::Ended(Refusal::from_code(code))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in some_message()) {
            let encoded = message.encode();
            prop_assert!(encoded.len() <= MAX_MESSAGE);
            prop_assert_eq!(Between::decode(&encoded[2..]), Ok(Some(message)));
        }

        #[test]
        fn anything_can_be_read(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Between::decode(&message);
        }
    }

    #[test]
    fn messages_of_later_versions_are_skipped() {
        assert_eq!(Between::decode(&[200, 1]), Ok(None));
        assert_eq!(Between::decode(&[ALIVE, 1]), Err(Refusal::Malformed));
    }
}
