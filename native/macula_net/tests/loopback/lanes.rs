//! Many streams: frames of many senders over the lanes of one link.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_core::dist::flows::Frames;
use macula_core::dist::lane::fence_header;
use macula_core::dist::memory::Memory;
use macula_core::dist::signal::Sender;
use macula_net::{Closed, Endpoint, EndpointConfig, Output, Route, SendState, Sent};
use tokio::time::{sleep, timeout};

use crate::support::*;

const LANES: u8 = 8;

async fn laned_pair(lanes: [u8; 2]) -> (Endpoint, Endpoint, Side, Side) {
    pair_with(lanes, Memory::default()).await
}

/// Two nodes, and a link between them that may hold so much at each of them.
async fn pair_with(lanes: [u8; 2], memory: Memory) -> (Endpoint, Endpoint, Side, Side) {
    let open = |name: &str, lanes| {
        let config = config(Some(Ipv4Addr::LOCALHOST.into()), 0, name);
        let config = EndpointConfig { lanes, memory, ..config };
        Endpoint::open(&config, Arc::new(Knows(COOKIE))).unwrap()
    };
    let (a, b) = (open("a", lanes[0]), open("b", lanes[1]));
    let (to_b, to_a) = connect(&a, &b, b.address()).await;
    (a, b, to_b, to_a)
}

/// A signal as the emulator makes it: `{22, Sender, Receiver}` and a message, or of no known sender
/// `{7, Leader, Receiver}`. The message tells the sender and counts its signals.
fn signal(sender: Option<u32>, n: u32, len: usize) -> Vec<u8> {
    let pid = |id: u32| {
        let name = [88, 119, 1, b'a'];
        [&name[..], &id.to_be_bytes(), &0u32.to_be_bytes(), &7u32.to_be_bytes()].concat()
    };
    let op = if sender.is_some() { 22 } else { 7 };
    let mut frame = vec![131, 68, 0, 104, 3, 97, op];
    frame.extend(pid(sender.unwrap_or(0)));
    frame.extend(pid(1));
    frame.extend(body(n as usize, len));
    frame.extend(sender.unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(n.to_be_bytes());
    frame
}

/// The sender and the number of a signal.
fn told(frame: &[u8]) -> (u32, u32) {
    let (rest, n) = frame.split_last_chunk().unwrap();
    let (_, sender) = rest.split_last_chunk().unwrap();
    (u32::from_be_bytes(*sender), u32::from_be_bytes(*n))
}

/// Sends these frames as one batch.
fn send(side: &Side, frames: &[Vec<u8>]) -> Sent {
    let mut batch = side.link.batch();
    let mut outputs = Vec::new();
    for body in frames {
        let (head, tail) = body.split_at(body.len().min(7));
        match batch.place([head, tail], body.len()) {
            Route::Control => outputs.push(Output::Control(vec![framed(body)])),
            Route::Lane(flow) => {
                let frame = framed(body);
                let lengths = vec![frame.len()];
                outputs.push(Output::Lane(flow, Frames { chunks: vec![frame], lengths }));
            }
            Route::Fence(lanes) => {
                let header = fence_header(body.len(), lanes.len() as u16).unwrap();
                outputs.push(Output::Markers(lanes));
                let fenced = [&header[..], body].concat();
                outputs.push(Output::Control(vec![fenced.into()]));
            }
        }
    }
    batch.send(outputs)
}

/// Many senders, small and large signals, and fences among them.
fn traffic() -> Vec<Vec<u8>> {
    let mut counts = HashMap::new();
    (0u32..3000)
        .map(|n| {
            let sender = (n % 500 != 499).then_some(n * n % 37);
            let count = counts.entry(sender).or_insert(0);
            *count += 1;
            signal(sender, *count, if n % 97 == 0 { 100_000 } else { n as usize % 300 })
        })
        .collect()
}

/// Each sender's signals came in order, and the fences where they belong.
fn assert_in_order(sent: &[Vec<u8>], received: &[Vec<u8>]) {
    assert_eq!(sent.len(), received.len());
    let by_sender = |frames: &[Vec<u8>]| {
        let mut all: HashMap<u32, Vec<u32>> = HashMap::new();
        frames.iter().map(|frame| told(frame)).for_each(|(sender, n)| {
            all.entry(sender).or_default().push(n);
        });
        all
    };
    let between_fences = |frames: &[Vec<u8>]| {
        let parts = frames.split(|frame| told(frame).0 == u32::MAX);
        parts.map(by_sender).collect::<Vec<_>>()
    };
    assert_eq!(between_fences(sent), between_fences(received));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sender_keeps_its_order_and_fences_keep_theirs() {
    let most = Memory::default();
    for (lanes, memory) in [(LANES, most), (2, most), (255, most), (255, least())] {
        let (_a, _b, to_b, to_a) = pair_with([lanes, lanes], memory).await;
        assert_eq!(to_b.link.lanes(), Some(lanes.into()));
        let (mut input, _own) = (to_a.establish("a"), to_b.establish("b"));
        let all = traffic();
        for frames in all.chunks(50) {
            assert_ne!(send(&to_b, frames).state, SendState::Closed);
        }
        assert_in_order(&all, &input.frames(all.len()).await);
    }
}

/// What the peer does not understand the emulator replaces by an empty frame, which over TCP is a tick.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_frame_says_nothing() {
    for lanes in [LANES, 1] {
        let (_a, _b, to_b, to_a) = laned_pair([lanes, lanes]).await;
        let (mut input, _own) = (to_a.establish("a"), to_b.establish("b"));
        let all = traffic();
        for frames in all.chunks(50) {
            let with_empty = [&[vec![]], frames, &[vec![]]].concat();
            assert_ne!(send(&to_b, &with_empty).state, SendState::Closed);
        }
        assert_in_order(&all, &input.frames(all.len()).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_lanes_arrive_before_a_close() {
    let (_a, _b, to_b, to_a) = laned_pair([LANES, LANES]).await;
    let (mut input, _own) = (to_a.establish("a"), to_b.establish("b"));
    let all = traffic();
    send(&to_b, &all);
    to_b.link.close();
    assert_eq!(send(&to_b, &all[..1]).state, SendState::Closed);
    let (received, reason) = input.rest().await;
    assert_eq!(reason, Closed::Peer);
    assert_in_order(&all, &received);
}

/// They are kept behind its marker, with all that the peer may send ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_lanes_do_not_keep_out_the_frame_that_they_wait_for() {
    for (lanes, memory) in [(LANES, Memory::default()), (LANES, least()), (255, least())] {
        fenced_between_full_lanes(lanes, memory).await;
    }
}

async fn fenced_between_full_lanes(lanes: u8, memory: Memory) {
    let (_a, _b, to_b, to_a) = pair_with([lanes, lanes], memory).await;
    let (mut input, _own) = (to_a.establish("a"), to_b.establish("b"));
    let fenced = signal(None, 1, 16 << 20);
    let mut batch = to_b.link.batch();
    let Route::Fence(lanes) = batch.place([&fenced[..]], fenced.len()) else {
        panic!("it is of no known sender");
    };
    let header = fence_header(fenced.len(), lanes.len() as u16).unwrap();
    let whole = Bytes::from([&header[..], &fenced].concat());
    let (begin, rest) = (whole.slice(..100), whole.slice(100..));
    batch.send([Output::Markers(lanes), Output::Control(vec![begin])]);
    let bulk: Vec<_> = (0..64).map(|sender| signal(Some(sender), 1, 1 << 20)).collect();
    send(&to_b, &bulk);
    stands(&to_b).await;
    to_b.link.batch().send([Output::Control(vec![rest])]);
    let all = [vec![fenced], bulk].concat();
    assert_in_order(&all, &input.frames(all.len()).await);
}

/// Nobody takes anything, and nobody is suspended: what the sender got rid of by the time it was told to wait is held by
/// the two sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_holds_no_more_than_it_may() {
    for memory in [least(), Memory::new(32 << 20).unwrap()] {
        let (_a, _b, mut to_b, to_a) = pair_with([64, 64], memory).await;
        let (mut input, _own) = (to_a.establish("a"), to_b.establish("b"));
        let mut sent = Vec::new();
        loop {
            let frames: Vec<_> =
                (0..64).map(|n| signal(Some(n), sent.len() as u32, 1000)).collect();
            let waits = send(&to_b, &frames).state == SendState::Wait;
            sent.extend(frames);
            if waits
                && timeout(Duration::from_millis(500), until_writable(&mut to_b)).await.is_err()
            {
                break;
            }
        }
        let held = sent.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let bytes = memory.bytes();
        assert!((bytes / 2..2 * bytes).contains(&held), "{held} of {bytes} bytes at each side");
        assert_in_order(&sent, &input.frames(sent.len()).await);
    }
}

async fn until_writable(side: &mut Side) {
    while side.told.recv().await != Some(Told::Writable) {}
}

/// As little as a link can be told to hold.
fn least() -> Memory {
    Memory::new(Memory::LEAST).unwrap()
}

/// Resolves when the link writes nothing more.
async fn stands(side: &Side) {
    let mut before = None;
    loop {
        let written = side.link.info().map(|info| info.bytes_out);
        if before.replace(written) == Some(written) {
            return;
        }
        sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_that_wants_a_single_stream_has_it() {
    for lanes in [[1, LANES], [LANES, 1]] {
        let (_a, _b, to_b, to_a) = laned_pair(lanes).await;
        assert_eq!((to_b.link.lanes(), to_a.link.lanes()), (None, None));
        let (mut input, _own) = (to_a.establish("a"), to_b.establish("b"));
        let all = traffic();
        for frames in all.chunks(50) {
            assert_eq!(send(&to_b, frames).suspend, []);
        }
        assert_eq!(input.frames(all.len()).await, all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_too_much_is_named_once_and_holds_up_nobody() {
    let (_a, _b, mut own, to_a) = laned_pair([LANES, LANES]).await;
    let (mut input, _own) = (to_a.establish("a"), own.establish("b"));
    let bulk = Sender { id: 1, serial: 0, creation: 7 };
    // More than lane, windows and intake hold, while nobody takes anything.
    let lane = Memory::default().shares(Some(u16::from(LANES))).lane;
    let large: Vec<_> = (0..64).map(|n| signal(Some(1), n, lane)).collect();
    let mut suspended = Vec::new();
    for frame in &large {
        let Sent { state, suspend } = send(&own, std::slice::from_ref(frame));
        suspended.extend(suspend);
        if state == SendState::Wait {
            break;
        }
    }
    assert_eq!(suspended.first(), Some(&bulk), "{suspended:?}");
    // On another lane, and on the same one.
    for other in [2, 14] {
        assert_eq!(send(&own, &[signal(Some(other), 1, 10)]).suspend, []);
    }
    assert!(frames_before(&mut input, &[(2, 1), (14, 1)]).await < 16);
    // Whoever was suspended is to go on as often, once somebody takes what waits.
    let mut resumed = Vec::new();
    let resume = async {
        while resumed.len() < suspended.len() {
            match own.told.recv().await {
                Some(Told::Resume(senders)) => resumed.extend(senders),
                other => assert_eq!(other, Some(Told::Writable)),
            }
        }
    };
    let take = async {
        loop {
            input.take_all();
            input.input().await;
        }
    };
    tokio::select! {
        () = soon("resuming", resume) => {}
        () = take => {}
    }
    assert_eq!(resumed, suspended);
}

/// How many others come before the last of these.
async fn frames_before(input: &mut Reader, awaited: &[(u32, u32)]) -> usize {
    let (mut others, mut missing) = (0, awaited.len());
    loop {
        let (frames, more) = input.take(20_000);
        let found = frames.iter().filter(|frame| awaited.contains(&told(frame))).count();
        (others, missing) = (others + frames.len() - found, missing - found);
        if missing == 0 {
            return others;
        }
        if !more {
            input.input().await;
        }
    }
}
