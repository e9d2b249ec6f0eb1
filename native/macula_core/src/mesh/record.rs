//! Records: what a node signs so that other relays know where its tag is held.
//!
//! A claim holds on one connection, so only the relay at its other end can check it. A record says
//! the same to everybody: the holder of this claim key is attached to that relay. It is signed with
//! the claim key, so nobody without the cookie draws the datagrams of a tag to a relay; it names the
//! relay, so no other one can use it; and it ends, so no relay can use it for long.
//!
//! Times are milliseconds since 1970 by the clock of the relay the node is attached to: nodes need
//! no clock that is right, relays one that is right to a few minutes.

use std::time::Duration;

use super::claim::{ClaimKey, PROOF, Tag, signed};
use crate::keys::LEN;

/// How long a record counts: a relay that broke its word about a node that has left can do so for
/// this long.
pub const LIFETIME: Duration = Duration::from_secs(600);

/// A record is signed anew this long after the last time: one that gets lost does not matter.
pub const RENEWAL: Duration = Duration::from_secs(180);

/// How far the clocks of relays may be apart.
pub const SKEW: Duration = Duration::from_secs(300);

/// Keeps records apart from whatever else is signed.
const LABEL: &[u8] = b"macula mesh record v1:";

/// Who is attached to whom: the hashes of the keys they showed each other in TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The node.
    pub node: [u8; LEN],
    /// The relay.
    pub relay: [u8; LEN],
}

/// A node's word that the tag of a key is held at a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The public claim key.
    pub key: [u8; LEN],
    /// Of two records of a key the one with the higher number counts.
    pub sequence: u64,
    /// When it ends.
    pub expires: u64,
    /// The signature.
    pub proof: [u8; PROOF],
}

impl ClaimKey {
    /// Says at `now` that the tag of this key is held on `attachment`. Its number is the time, or
    /// what follows `newest` where that is ahead.
    pub fn record(&self, realm: &str, attachment: &Attachment, now: u64, newest: u64) -> Record {
        let sequence = now.max(newest.saturating_add(1));
        let expires = now.saturating_add(millis(LIFETIME));
        let proof = self.sign(&recorded(realm, attachment, sequence, expires));
        Record { key: self.public(), sequence, expires, proof }
    }
}

impl Record {
    /// The tag, if the signature holds in `realm` for this attachment.
    pub fn verify(&self, realm: &str, attachment: &Attachment) -> Option<Tag> {
        let text = recorded(realm, attachment, self.sequence, self.expires);
        signed(&self.key, &text, &self.proof)
    }

    /// How long it counts from `now` on; none: it has ended, or its clock is far from right, and a
    /// record that is far ahead would outdo all later ones.
    pub fn left(&self, now: u64) -> Option<Duration> {
        let latest = now.saturating_add(millis(SKEW));
        if self.sequence > latest || self.expires > latest.saturating_add(millis(LIFETIME)) {
            return None;
        }
        let left = self.expires.checked_sub(now).filter(|left| *left > 0)?;
        Some(Duration::from_millis(left).min(LIFETIME))
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn recorded(realm: &str, at: &Attachment, sequence: u64, expires: u64) -> Vec<u8> {
    let numbers = [sequence.to_be_bytes(), expires.to_be_bytes()].concat();
    [LABEL, &at.node, &at.relay, &numbers, realm.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::key::tests::KEY;
    use proptest::prelude::*;

    const AT: Attachment = Attachment { node: [1; LEN], relay: [2; LEN] };
    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn a_record_holds_for_its_attachment_and_realm_only() {
        let key = KEY.claim("a@host");
        let record = key.record("realm", &AT, NOW, 0);
        assert_eq!(record.verify("realm", &AT), Some(key.tag()));
        assert_eq!(record.verify("other", &AT), None);
        assert_eq!(record.verify("realm", &Attachment { relay: [3; LEN], ..AT }), None);
        assert_eq!(record.verify("realm", &Attachment { node: [3; LEN], ..AT }), None);
        let changed = [
            Record { sequence: record.sequence + 1, ..record.clone() },
            Record { expires: record.expires + 1, ..record.clone() },
            Record { key: KEY.claim("b@host").public(), ..record.clone() },
        ];
        for record in changed {
            assert_eq!(record.verify("realm", &AT), None);
        }
    }

    #[test]
    fn a_record_ends() {
        let record = KEY.claim("a@host").record("realm", &AT, NOW, 0);
        let ends = NOW + millis(LIFETIME);
        assert_eq!(record.left(NOW), Some(LIFETIME));
        assert_eq!(record.left(ends - 1), Some(Duration::from_millis(1)));
        assert_eq!(record.left(ends), None);
        // By a clock that is behind it does not count for longer; by one that is wrong, not at all.
        assert_eq!(record.left(NOW - millis(SKEW)), Some(LIFETIME));
        assert_eq!(record.left(NOW - millis(SKEW) - 1), None);
    }

    proptest! {
        #[test]
        fn numbers_grow(now: u64, newest: u64) {
            let record = KEY.claim("a@host").record("realm", &AT, now, newest);
            prop_assert!(record.sequence >= now);
            prop_assert!(record.sequence > newest || newest == u64::MAX);
            // Nothing overflows, whatever a relay says the time is.
            let _ = record.left(newest);
        }
    }
}
