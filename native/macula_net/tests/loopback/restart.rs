//! Peers that start again, and what their former links make of it.

use std::time::Duration;

use macula_net::Closed;

use crate::support::*;

/// A link from "a" to "b" through a forwarder, established on both sides.
async fn through(
    forwarder: &Forwarder,
    b: &macula_net::Endpoint,
) -> (macula_net::Endpoint, Side, Side) {
    let a = open("a");
    let (to_b, to_a) = connect(&a, b, forwarder.front).await;
    (a, to_b, to_a)
}

/// The new life has another key, so it cannot reset the connections of the former one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_lives_anew_is_noticed_by_who_speaks_to_it() {
    let (former, anew) = (open("b"), open("b"));
    let forwarder = Forwarder::new(former.address(), Duration::ZERO).await;
    let (_a, to_b, to_a) = through(&forwarder, &former).await;
    let (mut input, _other) = (to_b.establish("b"), to_a.establish("a"));
    forwarder.turn(Some(anew.address()));
    to_b.link.send([framed(b"are you there?")], 1);
    assert_eq!(input.rest().await.1, Closed::Replaced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_out_of_reach_is_the_same_one() {
    let b = open("b");
    let forwarder = Forwarder::new(b.address(), Duration::ZERO).await;
    let (_a, to_b, to_a) = through(&forwarder, &b).await;
    let (_own, mut input) = (to_b.establish("b"), to_a.establish("a"));
    forwarder.turn(None);
    to_b.link.send([framed(b"once")], 1);
    // Long enough to be asked more than once.
    tokio::time::sleep(Duration::from_secs(3)).await;
    forwarder.turn(Some(b.address()));
    to_b.link.send([framed(b"again")], 1);
    assert_eq!(input.frames(2).await, vec![b"once".to_vec(), b"again".to_vec()]);
    assert!(to_b.link.info().is_some());
}
