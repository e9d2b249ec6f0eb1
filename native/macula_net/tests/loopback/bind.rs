//! Where endpoints are bound, and who reaches them there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use macula_net::{BindError, Endpoint, EndpointConfig};

use crate::support::*;

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Some machines have no IPv6, not even on loopback; there is nothing to test then.
fn has_v6() -> bool {
    std::net::UdpSocket::bind((V6, 0)).is_ok()
}

fn config(ports: &[u16]) -> EndpointConfig {
    EndpointConfig {
        ip: Some([127, 0, 79, 1].into()),
        ports: ports.into(),
        name: "b".into(),
        ..EndpointConfig::default()
    }
}

#[tokio::test]
async fn a_port_in_use_is_said_to_be_and_the_next_one_is_taken() {
    let first = Endpoint::open(&config(&[0]), std::sync::Arc::new(Knows(COOKIE))).unwrap();
    let second = Endpoint::open(&config(&[0]), std::sync::Arc::new(Knows(COOKIE))).unwrap();
    let (taken, also) = (first.address().port(), second.address().port());
    assert!(matches!(
        Endpoint::open(&config(&[taken]), std::sync::Arc::new(Knows(COOKIE))),
        Err(BindError::InUse)
    ));
    assert!(matches!(
        Endpoint::open(&config(&[taken, also]), std::sync::Arc::new(Knows(COOKIE))),
        Err(BindError::InUse)
    ));
    assert!(matches!(
        Endpoint::open(&config(&[]), std::sync::Arc::new(Knows(COOKIE))),
        Err(BindError::InUse)
    ));
    let third =
        Endpoint::open(&config(&[taken, also, 0]), std::sync::Arc::new(Knows(COOKIE))).unwrap();
    assert!(![0, taken, also].contains(&third.address().port()));
    // A port held for one address only is in use for all of them too.
    let any = EndpointConfig { ip: None, ..config(&[taken]) };
    assert!(matches!(
        Endpoint::open(&any, std::sync::Arc::new(Knows(COOKIE))),
        Err(BindError::InUse)
    ));
}

#[tokio::test]
async fn a_foreign_address_is_another_failure() {
    // TEST-NET-1: nobody has it.
    let config = EndpointConfig { ip: Some([192, 0, 2, 1].into()), ..config(&[0]) };
    assert!(matches!(
        Endpoint::open(&config, std::sync::Arc::new(Knows(COOKIE))),
        Err(BindError::Failed(_))
    ));
}

/// A link from an endpoint bound at `from` to one bound at `to`, dialled at `address`, works.
async fn reaches(from: Option<IpAddr>, to: Option<IpAddr>, address: IpAddr) {
    let (a, b) = (open_at(from, 0, "a"), open_at(to, 0, "b"));
    let at = SocketAddr::new(address, b.address().port());
    let (to_b, to_a) = connect(&a, &b, at).await;
    let (mut at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    to_b.link.send([framed(b"there")], 1);
    to_a.link.send([framed(b"and back")], 1);
    assert_eq!(at_b.frames(1).await, [b"there"]);
    assert_eq!(at_a.frames(1).await, [b"and back"]);
    assert_eq!(to_b.link.address(), at);
    // Never in the IPv4-mapped form that only sockets use.
    assert_eq!(to_a.link.address().is_ipv4(), address.is_ipv4());
    assert_eq!(to_a.link.address().port(), a.address().port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn v4_binds_reach_each_other() {
    reaches(Some(V4), Some(V4), V4).await;
    reaches(Some(V4), Some(Ipv4Addr::UNSPECIFIED.into()), V4).await;
    reaches(Some(Ipv4Addr::UNSPECIFIED.into()), Some(V4), V4).await;
}

/// Answers must leave from the address that was dialled, which is not the one routes prefer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_comes_from_the_address_dialled() {
    let second = [127, 0, 79, 2].into();
    reaches(Some(V4), Some(Ipv4Addr::UNSPECIFIED.into()), second).await;
    reaches(Some(V4), None, second).await;
    reaches(None, None, second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binds_of_both_families_reach_each_other() {
    reaches(None, None, V4).await;
    reaches(Some(V4), None, V4).await;
    reaches(None, Some(V4), V4).await;
    if has_v6() {
        reaches(Some(V6), Some(V6), V6).await;
        reaches(None, None, V6).await;
        reaches(Some(V6), None, V6).await;
        reaches(None, Some(V6), V6).await;
        reaches(Some(V4), Some(Ipv6Addr::UNSPECIFIED.into()), V4).await;
        reaches(Some(Ipv6Addr::UNSPECIFIED.into()), Some(V4), V4).await;
    }
}

/// An IPv4 socket cannot reach IPv6: that address fails, its neighbour still wins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_the_other_family_does_no_harm() {
    let (a, b) = (open("a"), open("b"));
    let other = SocketAddr::new(V6, b.address().port());
    dial(&a, &[other, b.address()], "b").await.unwrap();
}
