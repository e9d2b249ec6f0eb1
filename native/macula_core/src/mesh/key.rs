//! The key of a cookie in a realm, from which everything of the mesh is derived.

use argon2::Argon2;
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::claim::{ClaimKey, Tag};
use crate::keys::{self, LEN, StretchError};

/// Keeps the salts of realms apart from whatever else is hashed.
const REALM: &[u8] = b"macula mesh v1:";

/// Bytes that tell one life of a sealing key from the next.
pub type Session = [u8; 6];

/// What nodes share that have the same cookie and the same realm.
pub struct MeshKey(Zeroizing<[u8; LEN]>);

impl MeshKey {
    /// Stretches the base key of a cookie for `realm`; as slow as the one for links, and apart
    /// from it: knowing the one is no help with the other.
    ///
    /// # Errors
    /// See [`StretchError`].
    pub fn stretch(base: &[u8; LEN], realm: &str) -> Result<MeshKey, StretchError> {
        let salt = Sha256::new().chain_update(REALM).chain_update(realm).finalize();
        let mut key = Zeroizing::new([0; LEN]);
        let argon2: Argon2<'_> = keys::argon2()?;
        argon2.hash_password_into(base, &salt, &mut *key).map_err(StretchError::new)?;
        Ok(MeshKey(key))
    }

    /// The key with which a node called `name` claims its tag.
    pub fn claim(&self, name: &str) -> ClaimKey {
        ClaimKey::from_seed(&self.derive(&[b"macula mesh claim v1:", name.as_bytes()]))
    }

    /// The tag of the node called `name`.
    pub fn tag(&self, name: &str) -> Tag {
        self.claim(name).tag()
    }

    /// The key of what `from` seals for `to` in a session.
    pub(super) fn sealing(&self, from: &Tag, to: &Tag, session: &Session) -> Zeroizing<[u8; LEN]> {
        self.derive(&[b"macula mesh seal v1:", &from.0, &to.0, session])
    }

    /// The key of the directory.
    pub(super) fn directory(&self) -> Zeroizing<[u8; LEN]> {
        self.derive(&[b"macula mesh directory v1"])
    }

    fn derive(&self, info: &[&[u8]]) -> Zeroizing<[u8; LEN]> {
        let mut key = Zeroizing::new([0; LEN]);
        // Fails only for outputs of more than 255 hashes; this is one.
        let _ = Hkdf::<Sha256>::new(None, &*self.0).expand_multi_info(info, &mut *key);
        key
    }
}

impl std::fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MeshKey(..)")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::LazyLock;

    /// Stretched once for all tests.
    pub(crate) static KEY: LazyLock<MeshKey> =
        LazyLock::new(|| MeshKey::stretch(&keys::base(b"cookie"), "realm").unwrap());

    #[test]
    fn tags_depend_on_cookie_realm_and_name() {
        let tag = KEY.tag("a@host");
        assert_eq!(tag, KEY.tag("a@host"));
        assert_ne!(tag, KEY.tag("b@host"));
        let other = |cookie: &[u8], realm| {
            MeshKey::stretch(&keys::base(cookie), realm).unwrap().tag("a@host")
        };
        assert_ne!(tag, other(b"cookia", "realm"));
        assert_ne!(tag, other(b"cookie", "realn"));
    }

    #[test]
    fn keys_depend_on_direction_and_session() {
        let (a, b) = (KEY.tag("a@host"), KEY.tag("b@host"));
        let key = KEY.sealing(&a, &b, &[1; 6]);
        assert_ne!(*key, *KEY.sealing(&b, &a, &[1; 6]));
        assert_ne!(*key, *KEY.sealing(&a, &b, &[2; 6]));
        assert_ne!(*key, *KEY.directory());
    }

    #[test]
    fn a_key_does_not_show() {
        assert_eq!(format!("{:?}", *KEY), "MeshKey(..)");
    }
}
