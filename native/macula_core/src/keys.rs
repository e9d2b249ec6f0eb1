//! Keys that only holders of the cookie can compute, and the proof of holding one.
//!
//! A cookie is a password: short, chosen by people, shared by many. So it is first stretched, slowly
//! (Argon2id, RFC 9106), once per cookie; everything else is derived from the result with HKDF
//! (RFC 5869). Whoever records a proof can test guesses against it, one stretching a guess.

use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of every key and of a proof.
pub const LEN: usize = 32;

/// Goes before the cookie in the base key, and so keeps it apart from other uses of the cookie.
const BASE: &[u8] = b"macula-dist-tunnel:";

/// The salt of the stretching. Fixed, because both sides must come to the same key before they
/// have exchanged anything secret; it keeps these keys apart from those of the mesh.
const HELLO_SALT: &[u8] = b"macula hello v1";

/// Memory of the stretching, in KiB. With three passes about 100 ms of one core: unnoticed once
/// per cookie and boot, and 64 MiB for every guess an attacker makes in parallel.
const MEMORY_KIB: u32 = 64 * 1024;

/// Passes of the stretching over its memory (RFC 9106, 4: the second recommended option).
const PASSES: u32 = 3;

/// The key of links between nodes that share a cookie.
pub struct CookieKey(Zeroizing<[u8; LEN]>);

/// Which side of a hello gives a proof: a proof of one side is none of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that dialled.
    Dialler,
    /// The side that accepted.
    Acceptor,
    /// The side that accepted, when it only says where else to dial.
    Redirector,
}

/// The stretching failed: there is not enough memory for it.
#[derive(Debug)]
pub struct StretchError(String);

impl StretchError {
    pub(crate) fn new(error: argon2::Error) -> StretchError {
        StretchError(error.to_string())
    }
}

/// The stretching, as all keys are made with it.
pub(crate) fn argon2() -> Result<Argon2<'static>, StretchError> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(LEN)).map_err(StretchError::new)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

impl std::fmt::Display for StretchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the cookie's key could not be derived: {}", self.0)
    }
}

/// SHA-256 of the label and the cookie: stands for the cookie where it need not be known.
pub fn base(cookie: &[u8]) -> Zeroizing<[u8; LEN]> {
    let mut hash = Sha256::new();
    hash.update(BASE);
    hash.update(cookie);
    Zeroizing::new(hash.finalize().into())
}

impl CookieKey {
    /// Stretches a base key; slow.
    ///
    /// # Errors
    /// See [`StretchError`].
    pub fn stretch(base: &[u8; LEN]) -> Result<CookieKey, StretchError> {
        let mut key = Zeroizing::new([0; LEN]);
        argon2()?.hash_password_into(base, HELLO_SALT, &mut *key).map_err(StretchError::new)?;
        Ok(CookieKey(key))
    }

    /// The proof by `role` of holding the cookie, for one connection (`exporter`: keying material
    /// that its two ends alone share, RFC 8446, 7.5) and what was said on it.
    pub fn prove(&self, role: Role, exporter: &[u8; LEN], transcript: &[u8]) -> [u8; LEN] {
        self.mac(role, exporter, transcript).finalize().into_bytes().into()
    }

    /// True when `proof` is that proof. Takes the same time whatever it is.
    pub fn verify(
        &self,
        role: Role,
        exporter: &[u8; LEN],
        transcript: &[u8],
        proof: &[u8],
    ) -> bool {
        self.mac(role, exporter, transcript).verify_slice(proof).is_ok()
    }

    fn mac(&self, role: Role, exporter: &[u8; LEN], transcript: &[u8]) -> Hmac<Sha256> {
        let label: &[u8] = match role {
            Role::Dialler => b"macula hello v1 dialler",
            Role::Acceptor => b"macula hello v1 acceptor",
            Role::Redirector => b"macula hello v1 redirector",
        };
        // A block of SHA-256, which HMAC takes as it is.
        let mut key = Zeroizing::new([0; 64]);
        // Fails only for outputs of more than 255 hashes; this is two.
        let _ = Hkdf::<Sha256>::new(None, &*self.0).expand(label, &mut *key);
        let mut mac = Hmac::<Sha256>::new(&(*key).into());
        mac.update(exporter);
        mac.update(transcript);
        mac
    }
}

impl std::fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cookie: &[u8]) -> CookieKey {
        CookieKey::stretch(&base(cookie)).unwrap()
    }

    #[test]
    fn a_proof_holds_for_its_cookie_role_connection_and_transcript_only() {
        let (key, other) = (key(b"cookie"), key(b"cookia"));
        let (here, there) = ([1; LEN], [2; LEN]);
        let proof = key.prove(Role::Dialler, &here, b"said");
        assert!(key.verify(Role::Dialler, &here, b"said", &proof));
        assert!(!other.verify(Role::Dialler, &here, b"said", &proof));
        assert!(!key.verify(Role::Acceptor, &here, b"said", &proof));
        assert!(!key.verify(Role::Dialler, &there, b"said", &proof));
        assert!(!key.verify(Role::Dialler, &here, b"sait", &proof));
        assert!(!key.verify(Role::Dialler, &here, b"said", &proof[..31]));
        assert!(!key.verify(Role::Dialler, &here, b"said", &[]));
    }

    /// The base key is a contract with other implementations.
    #[test]
    fn the_base_key_is_sha256_of_label_and_cookie() {
        assert_eq!(*base(b""), <[u8; LEN]>::from(Sha256::digest(b"macula-dist-tunnel:")));
        assert_eq!(*base(b"x"), <[u8; LEN]>::from(Sha256::digest(b"macula-dist-tunnel:x")));
    }

    #[test]
    fn a_key_does_not_show() {
        assert_eq!(format!("{:?}", CookieKey(Zeroizing::new([7; LEN]))), "CookieKey(..)");
    }
}
