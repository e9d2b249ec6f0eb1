//! Certificates of a CA: the one this node shows, the CA it trusts, and what it makes of a peer's.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error as TlsError, RootCertStore};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::Identity;

/// Where certificates come from. Without any a node shows a self-signed one over its own key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the CAs a peer's certificate must chain to; none: any certificate will do.
    pub authorities: Option<PathBuf>,
    /// PEM: this node's certificate, then intermediate ones; with its key.
    pub own: Option<KeyFiles>,
}

/// PEM files: a certificate, then intermediate ones; and its key.
pub type KeyFiles = (PathBuf, PathBuf);

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.why)
    }
}

/// What is wrong with a certificate. Told to the peer as a code of the connection's close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// It shows none that can be read.
    Unreadable,
    /// It has expired.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It does not chain to a CA trusted here.
    UnknownIssuer,
    /// It names neither the node nor its host.
    WrongName,
    /// It is not meant for this (key usage, constraints), or of a later version's kind.
    Unfit,
}

/// The first of the close codes that stand for faults; lower ones are ordinary ends.
const FIRST_CODE: u64 = 0x100;

const FAULTS: [CertificateFault; 6] = [
    CertificateFault::Unreadable,
    CertificateFault::Expired,
    CertificateFault::NotYetValid,
    CertificateFault::UnknownIssuer,
    CertificateFault::WrongName,
    CertificateFault::Unfit,
];

impl CertificateFault {
    /// The close code that stands for this fault.
    pub(crate) fn code(self) -> quinn::VarInt {
        let index = FAULTS.iter().position(|fault| *fault == self).unwrap_or(FAULTS.len() - 1);
        quinn::VarInt::from_u32(FIRST_CODE as u32 + index as u32)
    }

    /// The fault a close code stands for, if it does.
    pub(crate) fn of_code(code: quinn::VarInt) -> Option<CertificateFault> {
        let index = code.into_inner().checked_sub(FIRST_CODE)?;
        FAULTS.get(usize::try_from(index).ok()?).copied()
    }
}

/// When a certificate holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    from: u64,
    to: u64,
}

/// How long a certificate still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// Long enough.
    Fine,
    /// No longer than this: it is time for a new one.
    Ending(Duration),
    /// It does not hold any more.
    Expired,
}

/// A certificate that holds for months is announced to end this long before.
const NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

impl Validity {
    /// The one that ends first.
    pub(crate) fn shorter(one: Option<Validity>, other: Option<Validity>) -> Option<Validity> {
        one.into_iter().chain(other).min_by_key(|validity| validity.to)
    }

    /// A certificate that is renewed when it should be is so before the last third of its life
    /// (as ACME clients do); one that is not is worth a warning.
    pub(crate) fn term(self, now: Duration) -> Term {
        let left = Duration::from_secs(self.to).saturating_sub(now);
        let life = Duration::from_secs(self.to.saturating_sub(self.from));
        if left.is_zero() {
            Term::Expired
        } else if left < NOTICE.min(life / 3) {
            Term::Ending(left)
        } else {
            Term::Fine
        }
    }
}

/// What this node shows, and what it makes of what others show.
pub(crate) struct Credentials {
    pub(crate) own: Own,
    authorities: Option<Authorities>,
}

/// A certificate that is shown here.
pub(crate) struct Own {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) node_id: [u8; 32],
    /// Of a CA's certificate; a self-signed one ends with its node.
    pub(crate) validity: Option<Validity>,
}

/// CAs that are trusted.
pub(crate) struct Authorities {
    roots: Arc<RootCertStore>,
    /// The standard verifier: it differs from that of servers in the key usage it asks for.
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Credentials {
    /// Reads the files, and takes the node's own key where they say nothing.
    pub(crate) fn load(
        files: &CertificateFiles,
        identity: &Identity,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Credentials, FileError> {
        let authorities = match &files.authorities {
            Some(file) => Some(Authorities::load(file, provider)?),
            None => None,
        };
        let own = match &files.own {
            Some(files) => Own::load(files, provider)?,
            None => Own::of(identity),
        };
        Ok(Credentials { own, authorities })
    }

    /// Judges the chain a peer has shown, where a CA is asked for.
    pub(crate) fn judge(&self, shown: &[CertificateDer<'_>]) -> Result<(), CertificateFault> {
        let Some(authorities) = &self.authorities else {
            return Ok(());
        };
        authorities.judge(shown)
    }

    /// Judges whether a chain found good was given out to the node `name`: the certificate has to
    /// name it (as a mail address, which it looks like) or its host. A node that is to be given a
    /// name has none that a CA could know.
    pub(crate) fn judge_name(
        &self,
        shown: &[CertificateDer<'_>],
        name: &str,
    ) -> Result<(), CertificateFault> {
        if self.authorities.is_none() || name.is_empty() {
            return Ok(());
        }
        let leaf = shown.first().ok_or(CertificateFault::Unreadable)?;
        let host = host_of(name);
        if names_node(leaf, name) || host.is_some_and(|host| names_host(leaf, host)) {
            Ok(())
        } else {
            Err(CertificateFault::WrongName)
        }
    }

    /// Judges whether a chain found good was given out to `host`, a name or an address.
    pub(crate) fn judge_host(
        &self,
        shown: &[CertificateDer<'_>],
        host: &str,
    ) -> Result<(), CertificateFault> {
        let leaf = shown.first().ok_or(CertificateFault::Unreadable)?;
        if names_host(leaf, host) { Ok(()) } else { Err(CertificateFault::WrongName) }
    }
}

impl Own {
    /// The node's own key, self-signed.
    fn of(identity: &Identity) -> Own {
        Own {
            chain: vec![identity.certificate.clone()],
            key: identity.key.clone_key(),
            node_id: identity.node_id(),
            validity: None,
        }
    }

    /// Reads the files, and checks that they belong together.
    pub(crate) fn load(
        (certificate, key): &KeyFiles,
        provider: &CryptoProvider,
    ) -> Result<Own, FileError> {
        let chain = certificates(certificate)?;
        let (_, leaf) = X509Certificate::from_der(chain.first().map_or(&[], |leaf| leaf.as_ref()))
            .map_err(|error| refused(certificate, error))?;
        let seconds = |time: x509_parser::time::ASN1Time| time.timestamp().max(0) as u64;
        let validity = Validity {
            from: seconds(leaf.validity().not_before),
            to: seconds(leaf.validity().not_after),
        };
        let node_id = digest::digest(&digest::SHA256, leaf.public_key().raw);
        let node_id = node_id.as_ref().try_into().map_err(|error| refused(certificate, error))?;
        let own = PrivateKeyDer::from_pem_file(key).map_err(|error| refused(key, error))?;
        CertifiedKey::from_der(chain.clone(), own.clone_key(), provider)
            .map_err(|error| refused(key, describe(&error, certificate)))?;
        Ok(Own { chain, key: own, node_id, validity: Some(validity) })
    }
}

impl Authorities {
    /// Reads a PEM file.
    pub(crate) fn load(
        file: &Path,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Authorities, FileError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|error| refused(file, error))?;
        }
        let roots = Arc::new(roots);
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let clients = clients.map_err(|error| refused(file, error))?;
        let algorithms = provider.signature_verification_algorithms;
        Ok(Authorities { roots, clients, algorithms })
    }

    /// Judges the chain a peer has shown: does a trusted CA vouch for it now? A node is client and
    /// server, and a certificate for either of these (extended key usage) will do.
    pub(crate) fn judge(&self, shown: &[CertificateDer<'_>]) -> Result<(), CertificateFault> {
        let (leaf, others) = shown.split_first().ok_or(CertificateFault::Unreadable)?;
        let now = UnixTime::now();
        let as_client = self.clients.verify_client_cert(leaf, others, now).map(|_| ());
        let judged = match as_client.map_err(|error| fault(&error)) {
            Err(CertificateFault::Unfit) => self.judge_server(leaf, others, now),
            judged => return judged,
        };
        judged.map_err(|error| fault(&error))
    }

    fn judge_server(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let (roots, algorithms) = (&self.roots, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&leaf, roots, others, now, algorithms)
    }
}

/// How long a certificate holds from now on, by this machine's clock.
pub(crate) fn term(validity: Validity) -> Term {
    validity.term(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read = CertificateDer::pem_file_iter(file).map_err(|error| refused(file, error))?;
    let read: Result<Vec<_>, _> = read.collect();
    let certificates = read.map_err(|error| refused(file, error))?;
    if certificates.is_empty() {
        return Err(refused(file, "it holds no certificate in PEM"));
    }
    Ok(certificates)
}

fn refused(file: &Path, why: impl fmt::Display) -> FileError {
    FileError { file: file.into(), why: why.to_string() }
}

fn describe(error: &TlsError, certificate: &Path) -> String {
    match error {
        TlsError::InconsistentKeys(_) => {
            format!("it is not the key of the certificate in {}", certificate.display())
        }
        other => other.to_string(),
    }
}

fn fault(error: &TlsError) -> CertificateFault {
    use CertificateError as E;
    let TlsError::InvalidCertificate(error) = error else {
        return CertificateFault::Unreadable;
    };
    match error {
        E::Expired | E::ExpiredContext { .. } => CertificateFault::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => CertificateFault::NotYetValid,
        E::UnknownIssuer | E::BadSignature => CertificateFault::UnknownIssuer,
        E::BadEncoding => CertificateFault::Unreadable,
        _ => CertificateFault::Unfit,
    }
}

fn names_node(leaf: &CertificateDer<'_>, name: &str) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let Ok(Some(names)) = leaf.subject_alternative_name() else {
        return false;
    };
    // A port behind the host says where the node is, not who.
    let portless = host_of(name).zip(name.split_once('@'));
    let portless = portless.map(|(host, (alive, _))| format!("{alive}@{host}"));
    let is_ours = |given: &str| given == name || portless.as_deref() == Some(given);
    let mut names = names.value.general_names.iter();
    names.any(|given| matches!(given, GeneralName::RFC822Name(given) if is_ours(given)))
}

fn names_host(leaf: &CertificateDer<'_>, host: &str) -> bool {
    let Ok(leaf) = ParsedCertificate::try_from(leaf) else {
        return false;
    };
    let Ok(host) = ServerName::try_from(host) else {
        return false;
    };
    rustls::client::verify_server_name(&leaf, &host).is_ok()
}

/// The host in a node name, without a port behind it.
fn host_of(name: &str) -> Option<&str> {
    let (_, host) = name.split_once('@')?;
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return Some(address);
    }
    // More than one colon: an IPv6 address without brackets, which has no port.
    match host.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some(host),
        _ if host.contains(':') && host.parse::<IpAddr>().is_err() => None,
        _ => Some(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_has_a_code_of_its_own() {
        for fault in FAULTS {
            assert_eq!(CertificateFault::of_code(fault.code()), Some(fault));
        }
        for code in [0u32, 1, 0xff, 0x106, u32::MAX >> 2] {
            assert_eq!(CertificateFault::of_code(quinn::VarInt::from_u32(code)), None);
        }
    }

    #[test]
    fn the_end_of_a_certificate_is_announced_in_good_time() {
        let day = 24 * 3600;
        let term = |from, to, now| Validity { from, to }.term(Duration::from_secs(now));
        // A year: announced a month ahead. A day: eight hours ahead.
        assert_eq!(term(0, 365 * day, 300 * day), Term::Fine);
        assert_eq!(term(0, 365 * day, 340 * day), Term::Ending(Duration::from_secs(25 * day)));
        assert_eq!(term(0, day, day / 2), Term::Fine);
        assert_eq!(term(0, day, day - 3600), Term::Ending(Duration::from_secs(3600)));
        assert_eq!(term(0, day, day), Term::Expired);
        assert_eq!(term(0, day, 2 * day), Term::Expired);
    }

    #[test]
    fn the_host_of_a_node_name() {
        let hosts = [
            ("a@b.example", Some("b.example")),
            ("a@b:4434", Some("b")),
            ("a@192.0.2.7:1", Some("192.0.2.7")),
            ("a@[2001:db8::1]:4433", Some("2001:db8::1")),
            ("a@[2001:db8::1]", Some("2001:db8::1")),
            ("a@2001:db8::1", Some("2001:db8::1")),
            ("a@b:c:d", None),
            ("a", None),
        ];
        for (name, host) in hosts {
            assert_eq!(host_of(name), host, "{name}");
        }
    }
}
