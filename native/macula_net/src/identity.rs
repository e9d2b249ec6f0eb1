//! Who this node is towards TLS: a key pair and a certificate over it.

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A node's key with its certificate.
#[derive(Debug)]
pub struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Identity {
    /// A fresh Ed25519 key under a self-signed certificate, for this life of the node only.
    ///
    /// # Errors
    /// The system's random generator failed.
    pub fn ephemeral() -> Result<Identity, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = CertificateParams::new(vec!["macula".to_string()])?.self_signed(&key)?;
        Ok(Identity {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }
}
