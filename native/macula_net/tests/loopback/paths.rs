//! Links whose datagrams take another path.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use macula_net::Endpoint;
use tokio::task::JoinSet;

use crate::support::*;

/// Frames flow from one side while `moves` happen; none is lost, doubled or out of order.
async fn flows(mut from: Side, to: Side, moves: impl Future<Output = ()>) -> (Side, Side) {
    let mut input = to.establish("a");
    let all = bodies(300, 10_000);
    let sent = all.clone();
    let send = async {
        for body in &sent {
            from.send([framed(body)]).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let ((), read, ()) = tokio::join!(send, input.frames(all.len()), moves);
    assert!(read == all);
    (from, to)
}

const PAUSE: Duration = Duration::from_millis(150);

/// The peer, or the NAT it is behind, has another address now: the link goes on, whoever sends.
async fn goes_on_from_another_address(sends: impl Fn(Side, Side) -> (Side, Side)) {
    let (a, b) = (open("a"), open("b"));
    let nat = Forwarder::new(b.address(), Duration::ZERO).await;
    let (to_b, to_a) = connect(&a, &b, nat.front).await;
    let (from, to) = sends(to_b, to_a);
    let _input = from.establish("peer");
    let moves = async {
        for _ in 0..3 {
            tokio::time::sleep(PAUSE).await;
            let seen = nat.rebind().await;
            until("a move", || b.links().iter().any(|link| link.address == seen)).await;
        }
    };
    flows(from, to, moves).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_goes_on_from_another_address() {
    goes_on_from_another_address(|to_b, to_a| (to_b, to_a)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_goes_on_to_another_address() {
    goes_on_from_another_address(|to_b, to_a| (to_a, to_b)).await;
}

/// A link may come to be by a detour; the detour may end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_outlives_the_path_it_was_dialled() {
    let (a, b) = (open("a"), open("b"));
    let detour = Forwarder::new(b.address(), Duration::ZERO).await;
    let (to_b, to_a) = connect(&a, &b, detour.front).await;
    let _input = to_b.establish("b");
    assert_eq!((to_b.link.address(), to_a.link.address()), (detour.front, detour.back));
    to_b.link.offer(b.address());
    let moves = async {
        tokio::time::sleep(PAUSE).await;
        detour.turn(None);
        until("a move", || is_linked_at(&a, b.address()) && is_linked_at(&b, a.address())).await;
    };
    flows(to_b, to_a, moves).await;
}

fn is_linked_at(node: &Endpoint, address: SocketAddr) -> bool {
    node.links().iter().any(|link| link.address == address)
}

/// How long it takes after an outage until what is sent arrives.
async fn after_an_outage(lasts: Duration, repaired: bool) -> Duration {
    let (a, b) = (open("a"), open("b"));
    if !repaired {
        a.leave_paths_unrepaired();
        b.leave_paths_unrepaired();
    }
    let line = Forwarder::new(b.address(), Duration::from_millis(5)).await;
    let (mut to_b, to_a) = connect(&a, &b, line.front).await;
    let (_at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    to_b.send([framed(b"before")]).await;
    at_b.frames(1).await;
    line.turn(None);
    to_b.send([framed(b"meanwhile")]).await;
    tokio::time::sleep(lasts).await;
    line.turn(Some(b.address()));
    let healed = Instant::now();
    at_b.frames(1).await;
    healed.elapsed()
}

/// QUIC doubles its pauses while nothing is answered, and would wait out the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_nothing_waits_for_as_long_as_it_lasted() {
    let (with, without) = tokio::join!(outages(true), outages(false));
    println!("after outages: {with:?} with a fresh packet and window, else {without:?}");
    let sum = |waits: &[Duration]| waits.iter().sum::<Duration>();
    assert!(sum(&with) < sum(&without));
}

/// How long it took after outages that end at any time between two of QUIC's attempts: some just before one.
async fn outages(repaired: bool) -> Vec<Duration> {
    let lasts = [3.0, 3.7, 4.5, 5.5, 6.7].map(Duration::from_secs_f64);
    let runs: JoinSet<_> =
        lasts.map(|lasts| after_an_outage(lasts, repaired)).into_iter().collect();
    runs.join_all().await
}

/// A datagram from an address that is no path of the link changes nothing: QUIC's own migration
/// is off, so that nobody who replays a link's datagrams draws it to himself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_from_elsewhere_does_not_move_a_link() {
    let (a, b) = (open("a"), open("b"));
    // Replays to b, from an address of its own, all that it forwards between them.
    let ((thief, front), (back, back_at), (replaying, _)) = (udp().await, udp().await, udp().await);
    let far = b.address();
    let near = Arc::new(OnceLock::new());
    let mut stealing = JoinSet::new();
    stealing.spawn({
        let (thief, back, near) = (thief.clone(), back.clone(), near.clone());
        async move {
            let mut buffer = [0; 65536];
            loop {
                let Ok((len, source)) = thief.recv_from(&mut buffer).await else { continue };
                let known = near.set(source).is_err();
                if known {
                    // First even, so that b would have every reason to believe it.
                    let _ = replaying.send_to(&buffer[..len], far).await;
                }
                let _ = back.send_to(&buffer[..len], far).await;
            }
        }
    });
    stealing.spawn(async move {
        let mut buffer = [0; 65536];
        loop {
            let Ok((len, _)) = back.recv_from(&mut buffer).await else { continue };
            if let Some(near) = near.get() {
                let _ = thief.send_to(&buffer[..len], *near).await;
            }
        }
    });
    let (to_b, to_a) = connect(&a, &b, front).await;
    let (to_b, to_a) = flows(to_b, to_a, async {}).await;
    assert_eq!((to_b.link.address(), to_a.link.address()), (front, back_at));
}
