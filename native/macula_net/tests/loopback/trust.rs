//! Who gets past the hello: holders of the cookie, under a name nobody else is living by.

use std::sync::Arc;

use macula_core::hello::Refusal;
use macula_net::{CertificateNews, Cookie, DialError, DialRequest, Endpoint, Incident, Node};
use parking_lot::Mutex;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::sync::oneshot;

use crate::support::*;

/// A node that remembers whom it refused.
#[derive(Clone, Default)]
struct Remembers(Arc<Mutex<Vec<(String, Incident)>>>);

impl Node for Remembers {
    fn cookie(&self, name: &str) -> oneshot::Receiver<Cookie> {
        Knows(COOKIE).cookie(name)
    }

    fn refused(&self, _address: SocketAddr, name: &str, why: Incident) {
        self.0.lock().push((name.into(), why));
    }

    fn certificate(&self, _news: CertificateNews) {}

    fn relay(&self, _url: &str, _state: &macula_net::State) {}
}

fn remembering(name: &str) -> (Endpoint, Remembers) {
    let node = Remembers::default();
    let ip = Some(Ipv4Addr::LOCALHOST.into());
    (Endpoint::open(&config(ip, 0, name), Arc::new(node.clone())).unwrap(), node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cookie_is_refused_and_both_sides_know() {
    let (b, node) = remembering("b");
    let a = open("a");
    let request = DialRequest {
        cookie: Cookie::new(b"another".to_vec()),
        ..request(&[b.address()], "b", HANG)
    };
    let failures = soon("a dial", a.dial(request)).await.err().unwrap();
    assert_eq!(failures, vec![(Way::Address(b.address()), DialError::Refused(Refusal::Proof))]);
    until("the refusal is told", || !node.0.lock().is_empty()).await;
    assert_eq!(*node.0.lock(), vec![("a".to_string(), Incident::Refused(Refusal::Proof))]);
    // The cookie of this very node still opens the door.
    dial(&a, &[b.address()], "b").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_node_keeps_its_name() {
    let (b, node) = remembering("b");
    let (first, second) = (open("a"), open("a"));
    let to_b = Side::new(dial(&first, &[b.address()], "b").await.unwrap());
    let to_a = Side::new(soon("an accept", b.accept()).await.unwrap());
    let (_input, mut input) = (to_b.establish("b"), to_a.establish("a"));
    let failures = dial(&second, &[b.address()], "b").await.err().unwrap();
    assert_eq!(failures, vec![(b.address(), DialError::Refused(Refusal::NameTaken))]);
    until("the refusal is told", || !node.0.lock().is_empty()).await;
    assert_eq!(*node.0.lock(), vec![("a".to_string(), Incident::Refused(Refusal::NameTaken))]);
    to_b.link.send([framed(b"still here")], 1);
    assert_eq!(input.frames(1).await, vec![b"still here".to_vec()]);
}

/// A resumed session spares the certificates, not the proof.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resumes_a_session_proves_the_cookie_again() {
    let (a, b) = (open("a"), open("b"));
    dial(&a, &[b.address()], "b").await.unwrap();
    let full = counter(&a, "full_handshakes");
    let forgot = DialRequest {
        cookie: Cookie::new(b"another".to_vec()),
        ..request(&[b.address()], "b", HANG)
    };
    let failures = soon("a dial", a.dial(forgot)).await.err().unwrap();
    assert_eq!(failures, [(Way::Address(b.address()), DialError::Refused(Refusal::Proof))]);
    dial(&a, &[b.address()], "b").await.unwrap();
    assert_eq!(counter(&a, "full_handshakes"), full, "the session was not resumed");
}
