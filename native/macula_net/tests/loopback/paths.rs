//! Links whose datagrams move to another way.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_link_moves_and_moves_back() {
    let (a, b, to_b, to_a) = pair().await;
    let _input = to_b.establish("b");
    let way = Forwarder::new(b.address(), Duration::ZERO).await;
    let (first, second) = (a.address(), b.address());
    let pause = || tokio::time::sleep(Duration::from_millis(150));
    let moves = async {
        pause().await;
        // Each side moves its own direction; what arrives from nowhere known meanwhile is lost
        // and sent again.
        a.attach_path(second, way.front);
        pause().await;
        b.attach_path(first, way.back);
        pause().await;
        assert_eq!(a.links()[0].address, way.front);
        assert_eq!(b.links()[0].address, way.back);
        b.detach_path(first);
        a.detach_path(second);
    };
    let (to_b, to_a) = flows(to_b, to_a, moves).await;
    assert_eq!((to_b.link.address(), to_a.link.address()), (second, first));
}

/// The way first dialled may vanish once another is attached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_outlives_the_way_it_was_dialled() {
    let (a, b) = (open("a"), open("b"));
    let way = Forwarder::new(b.address(), Duration::ZERO).await;
    let (front, back) = (way.front, way.back);
    let (to_b, to_a) = connect(&a, &b, front).await;
    assert_eq!((to_b.link.address(), to_a.link.address()), (front, back));
    let (first, second) = (a.address(), b.address());
    let moves = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(way);
        tokio::time::sleep(Duration::from_millis(100)).await;
        a.attach_path(front, second);
        b.attach_path(back, first);
    };
    let (to_b, to_a) = flows(to_b, to_a, moves).await;
    assert_eq!((to_b.link.address(), to_a.link.address()), (second, first));
    // The closed port was reported, and then forgiven.
    assert!(to_b.link.stat().is_some() && to_a.link.stat().is_some());
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
