//! Certificates of a CA: who is let in by them, what the others are told, and how they are renewed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use macula_core::relay::message::Refusal;
use macula_net::{
    BindError, CertificateFault, CertificateFiles, CertificateNews, Cookie, DialError, Endpoint,
    EndpointConfig, Incident, MeshConfig, Node, RelayConfig, RelayError, State,
};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use tokio::sync::oneshot;

use crate::mesh::{SHORT, at, connect_named, join, join_error, relay, talk_through};
use crate::support::*;

/// A CA, whose files are removed at the end.
pub struct Ca {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// What is unusual about a certificate.
#[derive(Clone, Copy, PartialEq)]
pub enum Flaw {
    None,
    Expired,
    NotYetValid,
}

impl Ca {
    pub fn new(test: &str) -> Ca {
        let name = format!("macula-ca-{test}-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, test);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
        Ca { directory, issuer: Issuer::new(params, key) }
    }

    pub fn trusted(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// A certificate of this CA for `san`, in files called `file`.
    pub fn issue(&self, file: &str, san: SanType, flaw: Flaw) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = vec![san];
        match flaw {
            Flaw::None => {}
            Flaw::Expired => params.not_after = date_time_ymd(2001, 1, 1),
            Flaw::NotYetValid => params.not_before = date_time_ymd(4001, 1, 1),
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = ["crt", "key"].map(|kind| self.directory.join(format!("{file}.{kind}")));
        std::fs::write(&paths[0], certificate.pem()).unwrap();
        std::fs::write(&paths[1], key.serialize_pem()).unwrap();
        let [certificate, key] = paths;
        (certificate, key)
    }

    /// What a node needs that trusts this CA and shows such a certificate.
    fn files(&self, file: &str, san: SanType, flaw: Flaw) -> CertificateFiles {
        CertificateFiles {
            authorities: Some(self.trusted()),
            own: Some(self.issue(file, san, flaw)),
        }
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub fn host(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn mail(name: &str) -> SanType {
    SanType::Rfc822Name(name.try_into().unwrap())
}

/// A node that remembers what it was told.
#[derive(Clone, Default)]
struct Told {
    incidents: Arc<Mutex<Vec<(String, Incident)>>>,
    news: Arc<Mutex<Vec<CertificateNews>>>,
}

impl Node for Told {
    fn cookie(&self, name: &str) -> oneshot::Receiver<Cookie> {
        Knows(COOKIE).cookie(name)
    }

    fn refused(&self, _address: SocketAddr, name: &str, why: Incident) {
        self.incidents.lock().push((name.into(), why));
    }

    fn certificate(&self, news: CertificateNews) {
        self.news.lock().push(news);
    }

    fn relay(&self, _url: &str, _state: &macula_net::State) {}
}

fn node(name: &str, certificates: CertificateFiles) -> (Endpoint, Told) {
    let told = Told::default();
    let config = EndpointConfig { certificates, ..config(Some([127, 0, 0, 1].into()), 0, name) };
    (Endpoint::open(&config, Arc::new(told.clone())).unwrap(), told)
}

/// Dials the node b@localhost as a@localhost.
async fn reach(a: &Endpoint, b: &Endpoint) -> Result<(), DialError> {
    let mut request = request(&[b.address()], "b@localhost", HANG);
    request.name = "a@localhost".into();
    let dialled = soon("a dial", a.dial(request)).await;
    dialled.map(drop).map_err(|mut failures| failures.remove(0).1)
}

/// What both sides hear when a with `files_a` dials b with `files_b`.
async fn outcome(
    files_a: CertificateFiles,
    files_b: CertificateFiles,
) -> (Result<(), DialError>, Option<(String, Incident)>) {
    let (a, _) = node("a@localhost", files_a);
    let (b, told) = node("b@localhost", files_b);
    let reached = reach(&a, &b).await;
    if reached.is_err() {
        until("the other side hears of it", || !told.incidents.lock().is_empty()).await;
    }
    let incident = told.incidents.lock().first().cloned();
    (reached, incident)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_one_ca_for_the_host_or_the_node_let_in() {
    let ca = Ca::new("good");
    let names = [
        (host("localhost"), host("localhost")),
        (mail("a@localhost"), mail("b@localhost")),
        (mail("a@localhost"), host("localhost")),
    ];
    for (of_a, of_b) in names {
        let (a, b) = (ca.files("a", of_a, Flaw::None), ca.files("b", of_b, Flaw::None));
        assert_eq!(outcome(a, b).await, (Ok(()), None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_certificate_is_named_on_both_sides_by_whoever_shows_it() {
    let (ca, other) = (Ca::new("bad"), Ca::new("other"));
    let good = |file| ca.files(file, host("localhost"), Flaw::None);
    let foreign = |file: &str| CertificateFiles {
        own: Some(other.issue(file, host("localhost"), Flaw::None)),
        authorities: Some(ca.trusted()),
    };
    let own_key = || CertificateFiles { own: None, ..good("own") };
    type Bad<'a> = &'a dyn Fn(&str, &str) -> CertificateFiles;
    let cases: [(Bad<'_>, CertificateFault); 6] = [
        (&|file, _| foreign(file), CertificateFault::UnknownIssuer),
        (&|_, _| own_key(), CertificateFault::UnknownIssuer),
        (&|file, _| ca.files(file, host("localhost"), Flaw::Expired), CertificateFault::Expired),
        (
            &|file, _| ca.files(file, host("localhost"), Flaw::NotYetValid),
            CertificateFault::NotYetValid,
        ),
        (&|file, _| ca.files(file, host("elsewhere"), Flaw::None), CertificateFault::WrongName),
        (&|file, wrong| ca.files(file, mail(wrong), Flaw::None), CertificateFault::WrongName),
    ];
    for (bad, fault) in cases {
        let (reached, incident) = outcome(good("a"), bad("b", "a@localhost")).await;
        assert_eq!(reached, Err(DialError::Certificate(fault)));
        assert_eq!(incident, Some((String::new(), Incident::OwnCertificate(fault))));
        let (reached, incident) = outcome(bad("a", "b@localhost"), good("b")).await;
        assert_eq!(reached, Err(DialError::OwnCertificate(fault)));
        assert_eq!(incident.unwrap().1, Incident::Certificate(fault));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_until_the_certificates_are_renewed() {
    let ca = Ca::new("renewed");
    let (a, _) = node("a@localhost", ca.files("a", host("localhost"), Flaw::None));
    let (b, told) = node("b@localhost", ca.files("b", host("localhost"), Flaw::None));
    let full = || (counter(&a, "full_handshakes"), counter(&b, "full_handshakes"));
    reach(&a, &b).await.unwrap();
    assert_eq!(full(), (1, 1));
    reach(&a, &b).await.unwrap();
    assert_eq!(full(), (1, 1), "the session was not resumed");
    // A new certificate of b: what was agreed under the former one is over.
    ca.issue("b", host("localhost"), Flaw::None);
    b.renew_certificates().unwrap();
    reach(&a, &b).await.unwrap();
    assert_eq!(full(), (2, 2));
    // It notices by itself as well, but not what cannot be read.
    std::fs::write(ca.directory.join("b.crt"), "nonsense").unwrap();
    assert_eq!(b.renew_certificates().unwrap_err().file, ca.directory.join("b.crt"));
    until("the news", || told.news.lock().len() == 1).await;
    assert!(matches!(&told.news.lock()[0], CertificateNews::NotRenewed(_)));
    reach(&a, &b).await.unwrap();
    ca.issue("b", host("elsewhere"), Flaw::None);
    until("more news", || told.news.lock().len() == 2).await;
    assert_eq!(told.news.lock()[1], CertificateNews::Renewed);
    assert_eq!(reach(&a, &b).await, Err(DialError::Certificate(CertificateFault::WrongName)));
}

/// On one port, who comes to the relay sees another certificate than who comes to the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_on_the_port_of_a_node_has_a_certificate_of_its_own() {
    let (nodes, relays) = (Ca::new("nodes"), Ca::new("relays"));
    let (a, _) = node("a@localhost", nodes.files("a", host("localhost"), Flaw::None));
    let (b, _) = node("b@localhost", nodes.files("b", host("localhost"), Flaw::None));
    let here = || SanType::IpAddress([127, 0, 0, 1].into());
    let certificate = Some(relays.issue("relay", here(), Flaw::None));
    b.start_relay(RelayConfig { certificate, ..RelayConfig::default() }).unwrap();
    let trusting = |ca: &Ca| {
        let certificates = CertificateFiles { authorities: Some(ca.trusted()), own: None };
        MeshConfig { verify: true, certificates, ..at(&[&b]) }
    };
    a.join_mesh(trusting(&relays), HANG).await.unwrap();
    reach(&a, &b).await.unwrap();
    let fault = |fault| RelayError::Certificate(fault);
    let unknown = fault(CertificateFault::UnknownIssuer);
    assert_eq!(join_error(&a, trusting(&nodes), HANG).await, unknown);
    // A new one counts at once, and what was agreed under the former one is over.
    relays.issue("relay", host("elsewhere"), Flaw::None);
    b.renew_certificates().unwrap();
    let wrong = fault(CertificateFault::WrongName);
    assert_eq!(join_error(&a, trusting(&relays), HANG).await, wrong);
    reach(&a, &b).await.unwrap();
    // What cannot be used is named, and changes nothing.
    let missing = relays.directory.join("missing.pem");
    let certificate = Some((missing.clone(), missing.clone()));
    let refused = b.start_relay(RelayConfig { certificate, ..RelayConfig::default() });
    assert_eq!(refused.unwrap_err().file, missing);
    assert_eq!(join_error(&a, trusting(&relays), HANG).await, wrong);
    // Without one the relay shows what the node does.
    b.start_relay(RelayConfig::default()).unwrap();
    assert_eq!(join_error(&a, trusting(&nodes), HANG).await, wrong);
    assert_eq!(join_error(&a, trusting(&relays), HANG).await, unknown);
}

/// A relay without peers keeps its attachments when its key changes, and shows newcomers the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_of_a_relay_costs_nobody_an_attachment() {
    let ca = Ca::new("kept");
    let (relay, _) = node("", ca.files("relay", host("localhost"), Flaw::None));
    relay.start_relay(RelayConfig::default()).unwrap();
    let (a, b) = (open("a"), open("b"));
    join(&a, &[&relay]).await;
    join(&b, &[&relay]).await;
    let (mut to_b, mut at_b) = talk_through(&a, &b).await;
    let before = relay.node_id();
    ca.issue("relay", host("localhost"), Flaw::None);
    relay.renew_certificates().unwrap();
    assert_ne!(relay.node_id(), before);
    let (c, _) = node("c", CertificateFiles::default());
    join(&c, &[&relay]).await;
    connect_named((&c, "c"), (&a, "a")).await;
    to_b.send([framed(b"still")]).await;
    assert_eq!(at_b.frames(1).await, [b"still".to_vec()]);
    // Each has shown its key once: nobody came twice.
    assert_eq!(counter(&relay, "full_handshakes"), 3);
}

/// A relay that goes has told its nodes, and sends those who come meanwhile away until it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_to_a_relay_that_goes_is_to_come_again() {
    let (relay, a, b) = (Arc::new(relay()), open("a"), open("b"));
    join(&a, &[&relay]).await;
    let stopping = tokio::spawn({
        let relay = relay.clone();
        async move { relay.stop_relay(SHORT).await }
    });
    until("a warning", || a.relays().unwrap()[0].state == State::Draining).await;
    let busy = join_error(&b, at(&[&relay]), SHORT / 2).await;
    assert_eq!(busy, RelayError::Refused(Refusal::Busy(2000)));
    stopping.await.unwrap();
    relay.start_relay(RelayConfig::default()).unwrap();
    join(&b, &[&relay]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_certificate_is_announced() {
    let ca = Ca::new("ending");
    let (_a, told) = node("a@localhost", ca.files("a", host("localhost"), Flaw::Expired));
    until("the news", || !told.news.lock().is_empty()).await;
    assert_eq!(*told.news.lock(), [CertificateNews::Expired]);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let ca = Ca::new("files");
    let good = ca.files("a", host("localhost"), Flaw::None);
    let (certificate, key) = good.own.clone().unwrap();
    let (_, other_key) = ca.issue("b", host("localhost"), Flaw::None);
    let missing = ca.directory.join("missing.pem");
    let empty = ca.directory.join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let cases = [
        (Some(missing.clone()), None, &missing),
        (Some(empty.clone()), None, &empty),
        (None, Some((missing.clone(), key.clone())), &missing),
        (None, Some((certificate.clone(), missing.clone())), &missing),
        (None, Some((certificate.clone(), empty.clone())), &empty),
        (None, Some((certificate.clone(), other_key.clone())), &other_key),
        (None, Some((key, other_key.clone())), &good.own.as_ref().unwrap().1),
    ];
    for (authorities, own, culprit) in cases {
        let certificates = CertificateFiles { authorities, own };
        let config = EndpointConfig { certificates, ..config(None, 0, "a") };
        match Endpoint::open(&config, Arc::new(Knows(COOKIE))) {
            Err(BindError::File(error)) => assert_eq!(&error.file, culprit, "{error}"),
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("{} was not missed", culprit.display()),
        }
    }
}
