//! Who this node is: a key pair of its own, kept from one life to the next where that is possible.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use quinn_proto::{ConnectionIdGenerator, HashedConnectionIdGenerator};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData};
use ring::{digest, hmac};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::marker;

/// The largest key file read; an Ed25519 key in PKCS#8 has about 85 bytes.
const MAX_KEY: u64 = 1024;

/// A node's key with its certificate, and what else is derived from the key.
pub struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    reset_key: hmac::Key,
    connection_id_key: u64,
    node_id: [u8; 32],
    origin: Origin,
    /// Held for as long as the key is in use: no other node may be the same one.
    _lock: Option<File>,
}

/// Where a node's key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From its directory: the same in every life of the node.
    Kept,
    /// Made for this life only, and why, unless nothing else was asked for.
    Ephemeral(Option<String>),
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Identity {
    /// The key kept in `directory`, made there the first time. It is never a reason not to start:
    /// when it cannot be read, kept or locked, a key for this life is made instead.
    ///
    /// # Errors
    /// The system's random generator failed.
    pub fn of(directory: Option<&Path>) -> Result<Identity, Error> {
        let Some(directory) = directory else {
            return Identity::new(&generate()?, Origin::Ephemeral(None), None);
        };
        match kept(directory) {
            Ok((key, lock)) => Identity::new(&key, Origin::Kept, Some(lock)),
            Err(error) => {
                let why = format!("{}: {error}", directory.display());
                Identity::new(&generate()?, Origin::Ephemeral(Some(why)), None)
            }
        }
    }

    fn new(pkcs8: &[u8], origin: Origin, lock: Option<File>) -> Result<Identity, Error> {
        let der = PrivatePkcs8KeyDer::from(pkcs8.to_vec());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519)?;
        let certificate = CertificateParams::new(vec!["macula".to_string()])?.self_signed(&key)?;
        let node_id = digest::digest(&digest::SHA256, &key.subject_public_key_info());
        Ok(Identity {
            certificate: certificate.der().clone(),
            reset_key: hmac::Key::new(hmac::HMAC_SHA256, &*derive(pkcs8, b"macula reset v1")),
            connection_id_key: first_u64(&derive(pkcs8, b"macula connection id v1")),
            node_id: node_id.as_ref().try_into()?,
            key: der.into(),
            origin,
            _lock: lock,
        })
    }

    /// The node's id: SHA-256 of its public key (SubjectPublicKeyInfo, DER).
    pub fn node_id(&self) -> [u8; 32] {
        self.node_id
    }

    /// Where the key comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// QUIC's settings that must be the same in every life of a node, so that a peer that still
    /// sends to the former life is told at once (stateless reset, RFC 9000, 10.3). Derived from the
    /// private key: whoever could compute reset tokens could end this node's connections.
    pub(crate) fn quic(&self) -> quinn::EndpointConfig {
        let mut config = quinn::EndpointConfig::new(Arc::new(self.reset_key.clone()));
        let key = self.connection_id_key;
        config.cid_generator(move || -> Box<dyn ConnectionIdGenerator> {
            Box::new(HashedConnectionIdGenerator::from_key(key))
        });
        config
    }
}

fn derive(pkcs8: &[u8], label: &[u8]) -> Zeroizing<[u8; 32]> {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, pkcs8), label);
    let mut derived = Zeroizing::new([0; 32]);
    derived.copy_from_slice(tag.as_ref());
    derived
}

fn first_u64(bytes: &[u8; 32]) -> u64 {
    bytes.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn generate() -> Result<Zeroizing<Vec<u8>>, Error> {
    Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ED25519)?.serialize_der()))
}

/// The key in `directory` with the lock on it.
fn kept(directory: &Path) -> Result<(Zeroizing<Vec<u8>>, File), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let lock = lock(directory)?;
    let path = directory.join("node.key");
    match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        key => return Ok((key?, lock)),
    }
    let key = generate()?;
    // Written aside, so that a crash leaves no half a key behind.
    let new = directory.join("node.key.new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&key)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    Ok((key, lock))
}

fn lock(directory: &Path) -> Result<File, Error> {
    let file = marker::open(&directory.join("lock"))?;
    file.try_lock().map_err(|_| "in use by another running node")?;
    Ok(file)
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        let text = "node.key can be read by others; its mode must be 0600";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let mut key = Zeroizing::new(Vec::with_capacity(MAX_KEY as usize));
    file.take(MAX_KEY).read_to_end(&mut key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn scratch(test: &str) -> PathBuf {
        let name = format!("macula-identity-{test}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&directory);
        directory
    }

    #[test]
    fn a_key_is_kept_private_and_the_same_in_every_life() {
        let directory = scratch("kept");
        let first = Identity::of(Some(&directory)).unwrap();
        assert_eq!(first.origin(), &Origin::Kept);
        assert_eq!(fs::metadata(directory.join("node.key")).unwrap().mode() & 0o777, 0o600);
        let id = first.node_id();
        drop(first);
        let second = Identity::of(Some(&directory)).unwrap();
        assert_eq!((second.node_id(), second.origin()), (id, &Origin::Kept));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_key_in_use_broken_or_open_to_others_gives_an_ephemeral_one() {
        let directory = scratch("refused");
        let first = Identity::of(Some(&directory)).unwrap();
        let ephemeral = |word: &str| {
            let other = Identity::of(Some(&directory)).unwrap();
            let Origin::Ephemeral(Some(why)) = other.origin() else {
                panic!("{:?}", other.origin());
            };
            assert!(why.contains(word), "{why}");
            assert_ne!(other.node_id(), first.node_id());
        };
        ephemeral("in use");
        let _ = first._lock.as_ref().unwrap().unlock();
        let path = directory.join("node.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        ephemeral("0600");
        fs::remove_dir_all(&directory).unwrap();
        fs::write(&directory, "").unwrap();
        ephemeral("identity-refused");
        fs::remove_file(&directory).unwrap();
    }
}
