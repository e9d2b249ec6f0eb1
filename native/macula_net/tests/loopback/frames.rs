//! The hello, handshake packets, frames and their flow control.

use std::cell::RefCell;
use std::time::Duration;

use macula_core::dist::credit::SEND_HIGH;
use macula_core::dist::memory::Memory;
use macula_net::{DialRequest, SUITE, SendState};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::*;

/// Bytes taken of a stream at once, on loopback: 64 of the largest datagrams there.
const READ_AT_ONCE: usize = 64 * 6500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_endpoints_learn_of_each_other() {
    let (a, b, to_b, to_a) = pair().await;
    assert_eq!(to_b.link.peer().name, "b");
    assert_eq!(to_a.link.peer().name, "a");
    assert_ne!(to_a.link.peer().boot_id, to_b.link.peer().boot_id);
    assert_ne!(to_a.link.id(), to_b.link.id());
    assert_eq!(to_b.link.address(), b.address());
    assert_eq!(to_a.link.address(), a.address());
    // Only an established link is shown.
    assert!(a.links().is_empty() && to_b.link.info().is_none());
    let _input = to_b.establish("b@host");
    let [info] = &a.links()[..] else { panic!("one link is established") };
    assert_eq!(
        (info.node.as_str(), info.address, info.suite),
        ("b@host", b.address(), "TLS_AES_256_GCM_SHA384")
    );
    assert_eq!(info.suite, SUITE);
    // Nodes keep their identity for life.
    let (again, _to_a) = connect(&a, &b, b.address()).await;
    assert_eq!(again.link.peer().boot_id, to_b.link.peer().boot_id);
    assert_ne!(again.link.id(), to_b.link.id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_without_a_name_is_let_in() {
    let (a, b) = (open(""), open("b"));
    let dialled = a.dial(DialRequest { name: String::new(), ..request(&[b.address()], "b", HANG) });
    let (dialled, accepted) = tokio::join!(soon("a dial", dialled), soon("accept", b.accept()));
    assert_eq!(dialled.unwrap().peer().name, "b");
    assert_eq!(accepted.unwrap().peer().name, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_then_frames_of_all_sizes_both_ways() {
    let (_a, _b, mut to_b, mut to_a) = pair().await;
    for len in [0, 1, 2, 300, 65535] {
        for (from, to) in [(&to_b, &to_a), (&to_a, &to_b)] {
            assert_eq!(from.send_packet(&body(len, len)), SendState::Ready);
            assert_eq!(to.packet().await, Ok(body(len, len)));
        }
    }
    // One side may be done with the handshake before the other: its frames follow the last
    // packet at once and wait in the stream.
    let input = Memory::default().shares(None).input;
    let sizes = [
        1,
        3,
        0,
        4,
        63,
        64,
        65,
        0,
        0,
        1200,
        65535,
        65536,
        65537,
        128 * 1024 - 1,
        128 * 1024,
        input - 1,
        input,
        input + 1,
        5,
        3 * input,
        12 * 1024 * 1024,
        1,
    ];
    let all: Vec<_> = sizes.iter().enumerate().map(|(n, len)| body(n, *len)).collect();
    // A frame without content is a tick: it is not delivered.
    let expected: Vec<_> = all.iter().filter(|body| !body.is_empty()).cloned().collect();
    to_b.send_packet(b"last");
    let mut from_b = to_b.establish("b");
    let frames: Vec<_> = all.iter().map(|body| framed(body)).collect();
    let there = async {
        to_b.send(frames.clone()).await;
        from_b.frames(expected.len()).await
    };
    let back = async {
        assert_eq!(to_a.packet().await, Ok(b"last".to_vec()));
        let mut from_a = to_a.establish("a");
        let (read, ()) = tokio::join!(from_a.frames(expected.len()), to_a.send(frames.clone()));
        read
    };
    let (at_b, at_a) = tokio::join!(there, back);
    assert!(at_b == expected, "frames changed on their way to b");
    assert!(at_a == expected, "frames changed on their way to a");
    for side in [&to_b, &to_a] {
        let info = side.link.info().unwrap();
        assert_eq!(info.msgs_in, expected.len() as u64);
        assert_eq!(info.queue, 0);
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        assert_eq!(info.bytes_in, bytes);
        assert!(info.bytes_out > bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_frames_in_one_send_arrive_in_order() {
    let (_a, _b, to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    let all = bodies(20_000, 20);
    to_b.link.send(all.iter().map(|body| framed(body)), all.len() as u64);
    assert!(input.frames(all.len()).await == all);
    assert_eq!(to_a.link.info().unwrap().msgs_in, all.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tick_is_a_sign_of_life_and_no_message() {
    let (_a, _b, to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    let (life, ..) = to_a.link.stat().unwrap();
    assert!(to_b.link.tick());
    until("a tick", || to_a.link.stat().unwrap().0 > life).await;
    assert_eq!(to_a.link.info().unwrap().msgs_in, 0);
    assert!(matches!(input.input().await, Input::Readable) && input.take_all().is_empty());
    assert_eq!(to_b.link.stat().unwrap().1, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ticks_among_frames_never_cut_one() {
    let (_a, _b, mut to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    let all = bodies(200, 30_000);
    let ticker = to_b.link.clone();
    let ticking = tokio::spawn(async move {
        loop {
            ticker.tick();
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    });
    let send = to_b.send(all.iter().map(|body| framed(body)));
    let ((), read) = tokio::join!(send, input.frames(all.len()));
    ticking.abort();
    assert!(read == all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sender_pauses_while_nobody_takes_and_then_goes_on() {
    const LEN: usize = 50_000;
    let (_a, _b, mut to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    let mut sent = Vec::new();
    // Pauses of a sender that is merely faster than its link end by themselves; the last does not.
    let paused = async |to_b: &mut Side, sent: &mut Vec<Vec<u8>>| loop {
        let next = body(sent.len(), LEN);
        let state = to_b.link.send([framed(&next)], 1);
        sent.push(next);
        assert_ne!(state, SendState::Closed);
        // Windows of QUIC on both sides, the queue here, the inbox there: a bound all the same.
        assert!(sent.len() * LEN < 24 * 1024 * 1024, "nothing holds this sender back");
        if state == SendState::Wait
            && tokio::time::timeout(Duration::from_millis(500), to_b.writable()).await.is_err()
        {
            return;
        }
    };
    paused(&mut to_b, &mut sent).await;
    let (_, _, waiting) = to_b.link.stat().unwrap();
    assert!(waiting <= SEND_HIGH + LEN + 4, "{waiting} bytes wait");
    // Still waiting: the answer stays the same for a sender that does not listen.
    let deaf = body(sent.len(), LEN);
    assert_eq!(to_b.link.send([framed(&deaf)], 1), SendState::Wait);
    sent.push(deaf);
    // One that waits is heard of once, and no more than may wait does.
    assert!(input.has_heard() && !input.has_heard());
    let before = to_a.link.info().unwrap().bytes_in as usize;
    let room = Memory::default().shares(None).input;
    assert!((room..room + READ_AT_ONCE).contains(&before), "{before} bytes were read");
    let (taken, more) = input.take(LEN);
    assert!(more && taken.len() <= 2, "{} frames of some {LEN} bytes", taken.len());
    let mut delivered = taken;
    delivered.extend(input.take_all());
    delivered.extend(input.frames(sent.len() - delivered.len()).await);
    to_b.writable().await;
    assert!(delivered == sent);
    assert_eq!(to_b.link.stat().unwrap().2, 0);
}

/// Frames of any sizes, cut into sends in any way, come out as they went in.
#[test]
fn any_frames_any_sends() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (_a, _b, to_b, to_a) = runtime.block_on(pair());
    let link = RefCell::new((to_b, to_a.establish("a")));
    let size = prop_oneof![4 => 0usize..200, 2 => 1000usize..70_000, 1 => 100_000usize..300_000];
    let sends = proptest::collection::vec(proptest::collection::vec(size, 1..6), 1..12);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&sends, |sends| {
        let mut n = 0;
        let sends: Vec<Vec<Vec<u8>>> = sends
            .iter()
            .map(|sizes| {
                sizes
                    .iter()
                    .map(|len| {
                        n += 1;
                        body(n, *len)
                    })
                    .collect()
            })
            .collect();
        let expected: Vec<_> =
            sends.iter().flatten().filter(|body| !body.is_empty()).cloned().collect();
        let (to_b, input) = &mut *link.borrow_mut();
        let read = runtime.block_on(async {
            let send = async {
                for frames in &sends {
                    let chunks: Vec<_> = frames.iter().map(|body| framed(body)).collect();
                    if to_b.link.send(chunks, frames.len() as u64) == SendState::Wait {
                        to_b.writable().await;
                    }
                }
            };
            tokio::join!(send, input.frames(expected.len())).1
        });
        prop_assert!(read == expected);
        Ok(())
    });
    // The runtime must still run while links and endpoints are dropped.
    let _inside = runtime.enter();
    result.unwrap();
}
