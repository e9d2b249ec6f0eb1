//! Ports under fire: garbage, and strangers who never say who they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use macula_core::hello::Refusal;
use macula_net::{DialError, DialRequest};

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_at_both_ports_loses_nothing() {
    let (a, b, mut to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    let _own = to_b.establish("b");
    let stop = Arc::new(AtomicBool::new(false));
    let targets = [a.address(), b.address()];
    let firing = std::thread::spawn({
        let stop = stop.clone();
        move || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut seed = 1u32;
            let mut random = move || {
                seed ^= seed << 13;
                seed ^= seed >> 17;
                seed ^= seed << 5;
                seed
            };
            while !stop.load(Relaxed) {
                for first in 0..=255u8 {
                    let len = random() % 1500;
                    let mut datagram: Vec<u8> = (0..len).map(|_| random() as u8).collect();
                    if let Some(byte) = datagram.first_mut() {
                        *byte = first;
                    }
                    // A known version makes a long header look better.
                    if first >= 0xc0 && len > 4 && random() % 2 == 0 {
                        datagram[1..5].copy_from_slice(&[0, 0, 0, 1]);
                    }
                    for target in targets {
                        let _ = socket.send_to(&datagram, target);
                    }
                }
                // Hard enough; a full receive buffer would only test the kernel.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let all = bodies(2000, 2000);
    let send = to_b.send(all.iter().map(|body| framed(body)));
    let ((), read) = tokio::join!(send, input.frames(all.len()));
    for endpoint in [&a, &b] {
        for name in ["stun", "sealed", "unknown"] {
            until(name, || counter(endpoint, name) > 0).await;
        }
    }
    // Newcomers get in as well.
    dial(&a, &[b.address()], "b").await.unwrap();
    stop.store(true, Relaxed);
    firing.join().unwrap();
    assert!(read == all);
    assert_eq!(counter(&b, "refused"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kinds_of_foreign_datagrams_are_counted() {
    let b = open("b");
    let (socket, _) = udp().await;
    for first in 0..=255 {
        socket.send_to(&[first; 50], b.address()).await.unwrap();
        // So few at a time that no receive buffer overflows.
        if first % 16 == 15 {
            let counted =
                || ["stun", "sealed", "unknown"].map(|name| counter(&b, name)).iter().sum::<u64>();
            let foreign = (0..=first).filter(|byte| byte & 0x40 == 0).count() as u64;
            until("counting", || counted() == foreign).await;
        }
    }
    let counts = ["stun", "sealed", "unknown"].map(|name| counter(&b, name));
    assert_eq!(counts, [4, 12, 112]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_say_nothing_keep_nobody_out() {
    let (a, b) = (open("a"), open("b"));
    let strangers = foreign_client();
    let mut inside = Vec::new();
    for _ in 0..10 {
        let connecting: Vec<_> =
            (0..30).map(|_| tokio::spawn(strangers.connect(b.address(), "b").unwrap())).collect();
        for stranger in connecting {
            // Some are turned away before they notice that they were let in.
            inside.extend(soon("a stranger", stranger).await.unwrap());
        }
        // From the same address as all of them.
        dial(&a, &[b.address()], "b").await.unwrap();
        assert!(soon("an accept", b.accept()).await.is_some());
    }
    // Those who came first had to make room.
    let first = soon("an end", inside[0].closed()).await;
    assert!(matches!(first, quinn::ConnectionError::ApplicationClosed(_)), "{first}");
    assert!(counter(&b, "refused") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_guessing_the_cookie_has_to_wait() {
    let b = open("b");
    let a = open_at(Some([127, 0, 0, 2].into()), 0, "a");
    let mut guesses = Vec::new();
    for _ in 0..40 {
        // One try: without the pauses in which a busy node is tried again.
        let limit = Duration::from_millis(100);
        let cookie = macula_net::Cookie::new(b"a guess".to_vec());
        let guess = DialRequest { cookie, ..request(&[b.address()], "b", limit) };
        guesses.push(a.dial(guess).await.err().unwrap().remove(0).1);
    }
    let told = guesses.iter().filter(|why| **why == DialError::Refused(Refusal::Proof)).count();
    assert!((20..40).contains(&told), "{told} of 40 guesses were answered");
    // At another address somebody lives who knows it.
    dial(&open("a"), &[b.address()], "b").await.unwrap();
}
