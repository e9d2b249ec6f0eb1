//! Tags: what a relay knows a node by, and the proof that a node may be reached under one.
//!
//! A tag is a hash of a public key whose private key only holders of the cookie can compute, from
//! the node's name. So whoever wants to reach a name computes its tag; a relay checks who may
//! receive for a tag without learning the name; and nobody without the cookie can take it.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};

use crate::keys::LEN;

/// Bytes of a tag. A second key with a given tag takes 2^128 attempts.
pub const TAG: usize = 16;

/// Bytes of a proof (Ed25519, RFC 8032).
pub const PROOF: usize = 64;

/// Keeps the proofs apart from whatever else is signed.
const LABEL: &[u8] = b"macula mesh claim v1:";

/// What a relay knows a node by: the first bytes of the SHA-256 of its public claim key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub [u8; TAG]);

/// The claim key of a node.
pub struct ClaimKey(Option<Ed25519KeyPair>);

/// A node's claim to a tag, for one attachment to a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The public key whose tag is claimed.
    pub key: [u8; LEN],
    /// Its signature over the attachment's keying material and the realm.
    pub proof: [u8; PROOF],
}

impl Tag {
    /// The tag of a public claim key.
    pub fn of(key: &[u8; LEN]) -> Tag {
        let mut tag = [0; TAG];
        tag.copy_from_slice(&Sha256::digest(key)[..TAG]);
        Tag(tag)
    }
}

impl std::fmt::Debug for Tag {
    /// The first bytes, which is enough to tell tags apart in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl ClaimKey {
    pub(super) fn from_seed(seed: &[u8; LEN]) -> ClaimKey {
        // Fails only for seeds of another length.
        ClaimKey(Ed25519KeyPair::from_seed_unchecked(seed).ok())
    }

    /// The tag it claims.
    pub fn tag(&self) -> Tag {
        Tag::of(&self.public())
    }

    /// Claims the tag in `realm` on the connection with this keying material (RFC 8446, 7.5).
    pub fn claim(&self, realm: &str, exporter: &[u8; LEN]) -> Claim {
        Claim { key: self.public(), proof: self.sign(&claimed(realm, exporter)) }
    }

    pub(super) fn sign(&self, text: &[u8]) -> [u8; PROOF] {
        let mut proof = [0; PROOF];
        if let Some(pair) = &self.0 {
            proof.copy_from_slice(pair.sign(text).as_ref());
        }
        proof
    }

    pub(super) fn public(&self) -> [u8; LEN] {
        let mut public = [0; LEN];
        if let Some(pair) = &self.0 {
            public.copy_from_slice(pair.public_key().as_ref());
        }
        public
    }
}

impl Claim {
    /// The tag claimed, if the proof holds in `realm` on the connection with this keying material.
    pub fn verify(&self, realm: &str, exporter: &[u8; LEN]) -> Option<Tag> {
        signed(&self.key, &claimed(realm, exporter), &self.proof)
    }
}

/// The tag of the public claim key `key`, if `proof` is its signature of `text`.
pub(super) fn signed(key: &[u8; LEN], text: &[u8], proof: &[u8; PROOF]) -> Option<Tag> {
    UnparsedPublicKey::new(&ED25519, key).verify(text, proof).ok()?;
    Some(Tag::of(key))
}

fn claimed(realm: &str, exporter: &[u8; LEN]) -> Vec<u8> {
    [LABEL, exporter, realm.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::key::tests::KEY;

    #[test]
    fn a_claim_holds_on_its_connection_and_in_its_realm_only() {
        let key = KEY.claim("a@host");
        let claim = key.claim("realm", &[1; LEN]);
        assert_eq!(claim.verify("realm", &[1; LEN]), Some(KEY.tag("a@host")));
        assert_eq!(claim.verify("realm", &[2; LEN]), None);
        assert_eq!(claim.verify("other", &[1; LEN]), None);
    }

    #[test]
    fn nobody_claims_the_tag_of_another() {
        let (a, b) = (KEY.claim("a@host"), KEY.claim("b@host"));
        let mut claim = a.claim("realm", &[1; LEN]);
        claim.key = b.public();
        assert_eq!(claim.verify("realm", &[1; LEN]), None);
        claim.key = [0; LEN];
        assert_eq!(claim.verify("realm", &[1; LEN]), None);
    }
}
