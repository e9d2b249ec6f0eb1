//! What a node and a relay say to each other on the first stream of an attachment.
//!
//! ```text
//! relay                                          node
//!   OFFER     versions, features              →
//!                                             ←  ATTACH   version, features, realm, token
//!   ATTACHED  features, address, time         →           (or REFUSED reason, and when to come again)
//!                                             ←  CLAIM    public key, proof, sealed name
//!                                             ←  RECORD   the same, signed for other relays
//!   HELD      tag                             →           (or TAKEN tag)
//! ```
//!
//! A relay that wants to be a peer of this one says PEER instead of ATTACH, is answered PEERED, and
//! both go on as [`super::between`] says.
//!
//! From then on: PING and PONG either way; further CLAIMs and RELEASEs; SLOWED when a limit
//! holds the node back; RESTARTING before the relay goes; LIST, which the relay answers with an
//! ENTRY for each node of the realm and LISTED; RECORDs again and again, as they end, and at once
//! when the relay says STALE: another one knows of a newer one. A claim's proof is bound to the connection by its
//! keying material, so the relay sends no challenge.
//!
//! On the wire each message is a 2-byte big-endian length, a type byte and its fields. Types not
//! known are skipped: later versions may say more.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::keys::LEN;
use crate::mesh::claim::{Claim, PROOF, TAG, Tag};
use crate::mesh::record::Record;
use crate::secret::Secret;
use crate::wire::{Reader, framed, put};

/// The versions spoken, lowest and highest.
pub const VERSIONS: (u8, u8) = (1, 1);

/// Largest message, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// Longest realm, in bytes.
pub const MAX_REALM: usize = 255;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 1024;

/// Longest sealed name of the directory, in bytes: the longest node name, padded, nonce and tag.
pub const MAX_SEALED: usize = 1024 + 28;

/// Opens the OFFER, so that something else is told apart at once.
const MAGIC: [u8; 6] = *b"mrelay";

const OFFER: u8 = 1;
const ATTACH: u8 = 2;
const ATTACHED: u8 = 3;
const REFUSED: u8 = 4;
const CLAIM: u8 = 5;
const HELD: u8 = 6;
const TAKEN: u8 = 7;
const RELEASE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const SLOWED: u8 = 11;
const RESTARTING: u8 = 12;
const LIST: u8 = 13;
const ENTRY: u8 = 14;
const LISTED: u8 = 15;
const PEER: u8 = 16;
const PEERED: u8 = 17;
const RECORD: u8 = 18;
const STALE: u8 = 19;

/// Why a relay refused an attachment or ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No version in common.
    Version,
    /// The message could not be read, or may not come now.
    Malformed,
    /// This relay does not serve the realm.
    UnknownRealm,
    /// The token is none of the realm's.
    Token,
    /// The node's certificate is not of the realm's CA.
    Certificate,
    /// The realm, or the relay, has as many nodes as it takes.
    Full,
    /// The proof of a claim does not hold.
    Proof,
    /// Another attachment proved to be the same node's.
    Replaced,
    /// The relay was called by itself.
    Itself,
    /// Too many come just now: this one may try again after so many milliseconds.
    Busy(u32),
    /// A reason of a later version.
    Other(u8),
}

/// The code of [`Refusal::Busy`], which alone has something with it.
const BUSY: u8 = 10;

const REFUSALS: [Refusal; 9] = [
    Refusal::Version,
    Refusal::Malformed,
    Refusal::UnknownRealm,
    Refusal::Token,
    Refusal::Certificate,
    Refusal::Full,
    Refusal::Proof,
    Refusal::Replaced,
    Refusal::Itself,
];

impl Refusal {
    pub(super) fn code(self) -> u8 {
        match self {
            Refusal::Other(code) => code,
            Refusal::Busy(_) => BUSY,
            known => 1 + REFUSALS.iter().position(|refusal| *refusal == known).unwrap_or(0) as u8,
        }
    }

    pub(super) fn from_code(code: u8) -> Refusal {
        if code == BUSY {
            return Refusal::Busy(0);
        }
        let known = usize::from(code).checked_sub(1).and_then(|at| REFUSALS.get(at));
        known.copied().unwrap_or(Refusal::Other(code))
    }
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToRelay {
    /// It wants to be attached.
    Attach {
        /// The version it chose.
        version: u8,
        /// Optional parts it knows, one bit each. None is assigned yet.
        features: u64,
        /// Its realm.
        realm: String,
        /// What lets it in, where the realm asks for that; else empty.
        token: Secret,
    },
    /// It wants to receive what is sent to a tag.
    Claim {
        /// The claim.
        claim: Claim,
        /// Its name, sealed for the directory.
        sealed: Vec<u8>,
    },
    /// It does not want to receive for the tag any more.
    Release(Tag),
    /// A sign of life is wanted.
    Ping(u64),
    /// The sign of life.
    Pong(u64),
    /// The directory of the realm is wanted.
    List,
    /// It is a relay, and wants to be a peer.
    Peer {
        /// The version it chose.
        version: u8,
        /// Optional parts it knows. None is assigned yet.
        features: u64,
    },
    /// What it claims, for other relays.
    Record(Record),
}

/// What a relay says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode {
    /// It is a relay.
    Offer {
        /// The versions it speaks, lowest and highest.
        versions: (u8, u8),
        /// Optional parts it knows.
        features: u64,
    },
    /// The node is attached.
    Attached {
        /// The optional parts both know.
        features: u64,
        /// Where the relay sees the node.
        observed: SocketAddr,
        /// Milliseconds since 1970 by the relay's clock, which the node's records go by.
        time: u64,
    },
    /// It is not, or is no more.
    Refused(Refusal),
    /// It holds the tag now.
    Held(Tag),
    /// Another node holds the tag, and is alive.
    Taken(Tag),
    /// A sign of life is wanted.
    Ping(u64),
    /// The sign of life.
    Pong(u64),
    /// The node sends more than it may; what exceeds that is dropped.
    Slowed,
    /// The relay goes.
    Restarting,
    /// An entry of the directory.
    Entry {
        /// Whose.
        tag: Tag,
        /// The name, sealed. Shared, as a directory waits for many nodes at once.
        sealed: Arc<[u8]>,
    },
    /// The directory was told.
    Listed,
    /// The relay is a peer now.
    Peered {
        /// The optional parts both know.
        features: u64,
    },
    /// Another relay knows of a record of another node for the tag, which has this number: the
    /// node's own record must have a higher one to count.
    Stale {
        /// Which tag.
        tag: Tag,
        /// The number.
        newest: u64,
    },
}

impl ToRelay {
    /// The message with its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToRelay::Attach { version, features, realm, token } => framed(ATTACH, |out| {
                out.push(*version);
                out.extend_from_slice(&features.to_be_bytes());
                put(out, realm.as_bytes(), MAX_REALM);
                put(out, token, MAX_TOKEN);
            }),
            ToRelay::Claim { claim, sealed } => framed(CLAIM, |out| {
                out.extend_from_slice(&claim.key);
                out.extend_from_slice(&claim.proof);
                put(out, sealed, MAX_SEALED);
            }),
            ToRelay::Release(tag) => framed(RELEASE, |out| out.extend_from_slice(&tag.0)),
            ToRelay::Ping(token) => number(PING, *token),
            ToRelay::Pong(token) => number(PONG, *token),
            ToRelay::List => framed(LIST, |_| {}),
            ToRelay::Peer { version, features } => framed(PEER, |out| {
                out.push(*version);
                out.extend_from_slice(&features.to_be_bytes());
            }),
            ToRelay::Record(record) => framed(RECORD, |out| put_record(out, record)),
        }
    }

    /// Reads a message (without its length); none when it is malformed, `Ok(None)` when of a type
    /// not known.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn decode(message: &[u8]) -> Result<Option<ToRelay>, Refusal> {
        decode(message, |kind, input| {
            Some(match kind {
                ATTACH => ToRelay::Attach {
                    version: input.u8()?,
                    features: input.u64()?,
                    realm: input.text(MAX_REALM)?,
                    token: input.counted(MAX_TOKEN)?.to_vec().into(),
                },
                CLAIM => ToRelay::Claim {
                    claim: Claim { key: input.array::<LEN>()?, proof: input.array::<PROOF>()? },
                    sealed: input.counted(MAX_SEALED)?.to_vec(),
                },
                RELEASE => ToRelay::Release(tag(input)?),
                PING => ToRelay::Ping(input.u64()?),
                PONG => ToRelay::Pong(input.u64()?),
                LIST => ToRelay::List,
                PEER => ToRelay::Peer { version: input.u8()?, features: input.u64()? },
                RECORD => ToRelay::Record(record(input)?),
                _ => return None,
            })
        })
    }
}

impl ToNode {
    /// The message with its length.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToNode::Offer { versions: (low, high), features } => framed(OFFER, |out| {
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&[*low, *high]);
                out.extend_from_slice(&features.to_be_bytes());
            }),
            ToNode::Attached { features, observed, time } => framed(ATTACHED, |out| {
                out.extend_from_slice(&features.to_be_bytes());
                put_address(out, *observed);
                out.extend_from_slice(&time.to_be_bytes());
            }),
            ToNode::Refused(refusal) => framed(REFUSED, |out| {
                out.push(refusal.code());
                if let Refusal::Busy(again) = refusal {
                    out.extend_from_slice(&again.to_be_bytes());
                }
            }),
            ToNode::Held(tag) => framed(HELD, |out| out.extend_from_slice(&tag.0)),
            ToNode::Taken(tag) => framed(TAKEN, |out| out.extend_from_slice(&tag.0)),
            ToNode::Ping(token) => number(PING, *token),
            ToNode::Pong(token) => number(PONG, *token),
            ToNode::Slowed => framed(SLOWED, |_| {}),
            ToNode::Restarting => framed(RESTARTING, |_| {}),
            ToNode::Entry { tag, sealed } => framed(ENTRY, |out| {
                out.extend_from_slice(&tag.0);
                put(out, sealed, MAX_SEALED);
            }),
            ToNode::Listed => framed(LISTED, |_| {}),
            ToNode::Peered { features } => number(PEERED, *features),
            ToNode::Stale { tag, newest } => framed(STALE, |out| {
                out.extend_from_slice(&tag.0);
                out.extend_from_slice(&newest.to_be_bytes());
            }),
        }
    }

    /// Reads a message, as [`ToRelay::decode`] does.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn decode(message: &[u8]) -> Result<Option<ToNode>, Refusal> {
        decode(message, |kind, input| {
            Some(match kind {
                OFFER => {
                    input.array().filter(|magic| *magic == MAGIC)?;
                    let versions = (input.u8()?, input.u8()?);
                    ToNode::Offer { versions, features: input.u64()? }
                }
                ATTACHED => ToNode::Attached {
                    features: input.u64()?,
                    observed: address(input)?,
                    time: input.u64()?,
                },
                REFUSED => ToNode::Refused(match Refusal::from_code(input.u8()?) {
                    Refusal::Busy(_) => Refusal::Busy(input.u32()?),
                    other => other,
                }),
                HELD => ToNode::Held(tag(input)?),
                TAKEN => ToNode::Taken(tag(input)?),
                PING => ToNode::Ping(input.u64()?),
                PONG => ToNode::Pong(input.u64()?),
                SLOWED => ToNode::Slowed,
                RESTARTING => ToNode::Restarting,
                ENTRY => {
                    ToNode::Entry { tag: tag(input)?, sealed: input.counted(MAX_SEALED)?.into() }
                }
                LISTED => ToNode::Listed,
                PEERED => ToNode::Peered { features: input.u64()? },
                STALE => ToNode::Stale { tag: tag(input)?, newest: input.u64()? },
                _ => return None,
            })
        })
    }
}

/// Reads the message's type and fields. Fields that follow those known are of a later version.
fn decode<T>(
    message: &[u8],
    fields: impl FnOnce(u8, &mut Reader<'_>) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    decode_within(OFFER..=STALE, message, fields)
}

/// Reads a message whose types are `known`.
pub(super) fn decode_within<T>(
    known: RangeInclusive<u8>,
    message: &[u8],
    fields: impl FnOnce(u8, &mut Reader<'_>) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    let (kind, body) = message.split_first().ok_or(Refusal::Malformed)?;
    if !known.contains(kind) {
        return Ok(None);
    }
    fields(*kind, &mut Reader(body)).map(Some).ok_or(Refusal::Malformed)
}

pub(super) fn put_record(out: &mut Vec<u8>, record: &Record) {
    out.extend_from_slice(&record.key);
    out.extend_from_slice(&record.sequence.to_be_bytes());
    out.extend_from_slice(&record.expires.to_be_bytes());
    out.extend_from_slice(&record.proof);
}

pub(super) fn record(input: &mut Reader<'_>) -> Option<Record> {
    Some(Record {
        key: input.array()?,
        sequence: input.u64()?,
        expires: input.u64()?,
        proof: input.array()?,
    })
}

pub(super) fn number(kind: u8, number: u64) -> Vec<u8> {
    framed(kind, |out| out.extend_from_slice(&number.to_be_bytes()))
}

pub(super) fn tag(input: &mut Reader<'_>) -> Option<Tag> {
    input.array::<TAG>().map(Tag)
}

fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn address(input: &mut Reader<'_>) -> Option<SocketAddr> {
    let ip = IpAddr::V6(Ipv6Addr::from(input.array::<16>()?)).to_canonical();
    Some(SocketAddr::new(ip, input.u16()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn some_record() -> impl Strategy<Value = Record> {
        (any::<[u8; LEN]>(), any::<u64>(), any::<u64>(), any::<[u8; LEN]>()).prop_map(
            |(key, sequence, expires, half)| {
                let mut proof = [0; PROOF];
                proof[LEN..].copy_from_slice(&half);
                Record { key, sequence, expires, proof }
            },
        )
    }

    fn to_relay() -> impl Strategy<Value = ToRelay> {
        let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max);
        let claim = (any::<[u8; LEN]>(), any::<u64>(), bytes(MAX_SEALED)).prop_map(
            |(key, seed, sealed)| {
                let mut proof = [0; PROOF];
                proof[..8].copy_from_slice(&seed.to_be_bytes());
                ToRelay::Claim { claim: Claim { key, proof }, sealed }
            },
        );
        prop_oneof![
            (any::<u8>(), any::<u64>(), "[a-z.é]{0,60}", bytes(MAX_TOKEN)).prop_map(
                |(version, features, realm, token)| {
                    ToRelay::Attach { version, features, realm, token: token.into() }
                }
            ),
            claim,
            any::<[u8; TAG]>().prop_map(|tag| ToRelay::Release(Tag(tag))),
            any::<u64>().prop_map(ToRelay::Ping),
            any::<u64>().prop_map(ToRelay::Pong),
            Just(ToRelay::List),
            (any::<u8>(), any::<u64>())
                .prop_map(|(version, features)| ToRelay::Peer { version, features }),
            some_record().prop_map(ToRelay::Record),
        ]
    }

    fn to_node() -> impl Strategy<Value = ToNode> {
        let tag = || any::<[u8; TAG]>().prop_map(Tag);
        let address =
            || (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::from((ip, port)));
        prop_oneof![
            (any::<u8>(), any::<u8>(), any::<u64>()).prop_map(|(low, high, features)| {
                ToNode::Offer { versions: (low, high), features }
            }),
            (any::<u64>(), address(), any::<u64>()).prop_map(|(features, observed, time)| {
                ToNode::Attached { features, observed, time }
            }),
            (1u8.., any::<u32>()).prop_map(|(code, again)| {
                ToNode::Refused(match Refusal::from_code(code) {
                    Refusal::Busy(_) => Refusal::Busy(again),
                    other => other,
                })
            }),
            tag().prop_map(ToNode::Held),
            tag().prop_map(ToNode::Taken),
            any::<u64>().prop_map(ToNode::Ping),
            Just(ToNode::Slowed),
            Just(ToNode::Restarting),
            (tag(), proptest::collection::vec(any::<u8>(), 0..MAX_SEALED))
                .prop_map(|(tag, sealed)| ToNode::Entry { tag, sealed: sealed.into() }),
            Just(ToNode::Listed),
            any::<u64>().prop_map(|features| ToNode::Peered { features }),
            (tag(), any::<u64>()).prop_map(|(tag, newest)| ToNode::Stale { tag, newest }),
        ]
    }

    proptest! {
        #[test]
        fn what_a_node_writes_is_read(message in to_relay()) {
            let encoded = message.encode();
            prop_assert!(encoded.len() <= MAX_MESSAGE);
            prop_assert_eq!(ToRelay::decode(&encoded[2..]), Ok(Some(message)));
        }

        #[test]
        fn what_a_relay_writes_is_read(message in to_node()) {
            let encoded = message.encode();
            prop_assert!(encoded.len() <= MAX_MESSAGE);
            prop_assert_eq!(ToNode::decode(&encoded[2..]), Ok(Some(message)));
        }

        #[test]
        fn anything_can_be_read(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (ToRelay::decode(&message), ToNode::decode(&message));
        }
    }

    #[test]
    fn messages_of_later_versions_are_skipped() {
        assert_eq!(ToRelay::decode(&[200, 1, 2]), Ok(None));
        assert_eq!(ToNode::decode(&[200]), Ok(None));
        assert_eq!(ToNode::decode(&[]), Err(Refusal::Malformed));
    }
}
