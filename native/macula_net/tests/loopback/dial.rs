//! Dialling: whom it reaches, and why it does not.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use macula_core::hello::Refusal;
use macula_net::DialError;

use crate::support::*;

/// A limit for dials that are to run into it.
const SHORT: Duration = Duration::from_millis(600);

/// After so long QUIC sends the first datagram once more.
const RESENT: Duration = Duration::from_millis(300);

/// A port that was free a moment ago, on an address nobody else binds.
fn closed_port() -> SocketAddr {
    let socket = std::net::UdpSocket::bind(("127.0.77.1", 0)).unwrap();
    socket.local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_is_told_from_a_silent_one() {
    let a = open("a");
    assert_eq!(failure(&a, closed_port(), HANG).await, DialError::PortClosed);
    assert!(counter(&a, "unreachable") >= 2);
    let (_silent, silent) = udp().await;
    assert_eq!(failure(&a, silent, SHORT).await, DialError::Timeout);
    // From a socket of both families as well.
    let a = open_at(None, 0, "a");
    assert_eq!(failure(&a, closed_port(), HANG).await, DialError::PortClosed);
}

/// Whatever fits into the first datagram.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_closed_port_nothing_is_awaited() {
    let (a, closed) = (open("a"), closed_port());
    let mut took = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        assert_eq!(failure(&a, closed, HANG).await, DialError::PortClosed);
        took.push(began.elapsed());
    }
    took.sort();
    assert!(took[4] < RESENT / 2, "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_wanted_must_be_the_one_found() {
    let (a, b) = (open("a"), open("c"));
    let wrong = DialError::Refused(Refusal::WrongName);
    assert_eq!(failure(&a, b.address(), HANG).await, wrong);
    // A node that is to be given a name has none yet, and is nobody until then.
    let b = open("");
    assert_eq!(failure(&a, b.address(), HANG).await, wrong);
    until("failed hellos", || counter(&b, "failed_hellos") == 1).await;
    b.rename("b".into());
    dial(&a, &[b.address()], "b").await.unwrap();
    b.rename("d".into());
    assert_eq!(failure(&a, b.address(), HANG).await, wrong);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_to_dial_fails_at_once() {
    assert!(dial(&open("a"), &[], "b").await.is_err_and(|failures| failures.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_for_an_answer_is_not_macula() {
    let (socket, garbage) = udp().await;
    let answering = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        for n in 0u8.. {
            let (len, source) = socket.recv_from(&mut buffer).await.unwrap();
            // Of any first byte, and of a look that is nearly right.
            let mut answer = buffer[..len].to_vec();
            answer[5..].iter_mut().for_each(|byte| *byte ^= 0x55);
            let _ = socket.send_to(&answer, source).await;
            for first in 0..=255 {
                answer[0] = first;
                let _ = socket.send_to(&answer[..usize::from(n) + 20], source).await;
            }
            let _ = socket.send_to(&[], source).await;
        }
    });
    let a = open("a");
    let error = failure(&a, garbage, SHORT).await;
    assert!(matches!(error, DialError::NotMacula(_)), "{error:?}");
    answering.abort();
}

/// A server that knows other versions of QUIC only answers like this (RFC 9000, 17.2.1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_of_quic_is_not_macula() {
    let (socket, address) = udp().await;
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        let (_, source) = socket.recv_from(&mut buffer).await.unwrap();
        let theirs = &buffer[6..6 + usize::from(buffer[5])];
        let at = 6 + theirs.len();
        let ours = &buffer[at + 1..at + 1 + usize::from(buffer[at])];
        let mut answer = vec![0xc0, 0, 0, 0, 0];
        for id in [ours, theirs] {
            answer.push(id.len() as u8);
            answer.extend_from_slice(id);
        }
        answer.extend_from_slice(&[0x6b, 0x33, 0x43, 0xcf]);
        socket.send_to(&answer, source).await.unwrap();
    });
    let error = failure(&open("a"), address, HANG).await;
    assert!(matches!(error, DialError::NotMacula(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quic_server_of_another_protocol_is_not_macula() {
    let (a, alpns) = (open("a"), [&[&b"h3"[..]][..], &[]]);
    for alpn in alpns {
        let (server, address) = foreign_server(alpn);
        let serving = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                let _ = incoming.await;
            }
        });
        let error = failure(&a, address, HANG).await;
        assert!(matches!(error, DialError::NotMacula(_)), "{alpn:?}: {error:?}");
        serving.abort();
    }
}

/// What a dial makes of a server that speaks our protocol and opens with `message`.
async fn greeted_with(message: &'static [u8]) -> DialError {
    let (server, address) = foreign_server(&[ALPN]);
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(message).await.unwrap();
        connection.closed().await
    });
    let error = failure(&open("a"), address, HANG).await;
    soon("hanging up", serving).await.unwrap();
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_hello_is_refused() {
    let error = greeted_with(b"\x00\x05hello").await;
    assert!(matches!(error, DialError::NotMacula(_)), "{error:?}");
    // A length beyond any hello's is not waited for.
    let error = greeted_with(b"\xff\xff").await;
    assert!(matches!(error, DialError::NotMacula(_)), "{error:?}");
    let error = greeted_with(b"\x00\x09\x01macula\x07\x09").await;
    assert_eq!(error, DialError::Version(7, 9));
    let error = greeted_with(b"\x00\x02\x04\x63").await;
    assert_eq!(error, DialError::Refused(Refusal::Other(0x63)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_a_hello_is_told_apart_from_silence() {
    let (server, address) = foreign_server(&[ALPN]);
    tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        connection.closed().await
    });
    assert_eq!(failure(&open("a"), address, SHORT).await, DialError::NoHello);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_address_does_not_hold_up_the_next() {
    let (a, b) = (open("a"), open("b"));
    let (_silent, silent) = udp().await;
    let began = Instant::now();
    let link = dial(&a, &[silent, closed_port(), silent, b.address()], "b").await.unwrap();
    assert!(began.elapsed() < HANG / 2, "waited for the silent address");
    assert_eq!(link.address(), b.address());
    assert_eq!(soon("an accept", b.accept()).await.unwrap().peer().name, "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_failures_are_told() {
    let (a, c) = (open("a"), open("c"));
    let ((_silent, silent), closed) = (udp().await, closed_port());
    let dialled = a.dial(request(
        &[silent, c.address(), closed],
        "b", // Long enough for the closed port to be reported twice.
        Duration::from_secs(3),
    ));
    let mut failures = soon("a dial", dialled).await.err().unwrap();
    let mut expected = vec![
        (Way::Address(silent), DialError::Timeout),
        (Way::Address(c.address()), DialError::Refused(Refusal::WrongName)),
        (Way::Address(closed), DialError::PortClosed),
    ];
    failures.sort_by_key(|(way, _)| *way);
    expected.sort_by_key(|(way, _)| *way);
    assert_eq!(failures, expected);
}

/// The slower of two ways to one node must not show up there as a second link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losers_never_reach_the_acceptor() {
    let (a, b) = (open("a"), open("b"));
    let slow = Forwarder::new(b.address(), Duration::from_millis(200)).await;
    let link = dial(&a, &[slow.front, b.address()], "b").await.unwrap();
    assert_eq!(link.address(), b.address());
    assert!(soon("an accept", b.accept()).await.is_some());
    until("the loser's end", || counter(&b, "failed_hellos") == 1).await;
    let second = tokio::time::timeout(Duration::from_millis(300), b.accept()).await;
    assert!(second.is_err(), "a second link was accepted");
}

/// A dial that nobody waits for any more leaves no link behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_given_up_is_over() {
    let (a, b) = (open("a"), open("b"));
    // The cookie's key takes longer than what follows.
    dial(&a, &[b.address()], "b").await.unwrap();
    let slow = Forwarder::new(b.address(), Duration::from_millis(100)).await;
    let dialled = a.dial(request(&[slow.front], "b", HANG));
    assert!(tokio::time::timeout(Duration::from_millis(150), dialled).await.is_err());
    until("its end", || counter(&b, "failed_hellos") == 1).await;
}
