//! Nodes that reach each other through a relay.

use std::collections::HashMap;
use std::time::Duration;

use macula_core::mesh::retry::Pace;
use macula_core::relay::message::Refusal;
use macula_core::relay::pressure::Rates;
use macula_core::secret::Secret;
use macula_net::{
    CertificateFiles, Cookie, DialError, DialRequest, Endpoint, JoinError, MeshConfig, RealmAccess,
    RelayConfig, RelayError, RelayUrl, State,
};

use crate::support::*;

/// A limit for what is to run into it.
pub const SHORT: Duration = Duration::from_millis(800);

/// A relay at a host and port.
pub fn url(host: &str, port: u16) -> RelayUrl {
    RelayUrl { text: format!("https://{host}:{port}"), host: host.into(), port }
}

/// How to join the mesh of these relays.
pub fn at(relays: &[&Endpoint]) -> MeshConfig {
    let urls = relays.iter().map(|relay| url("127.0.0.1", relay.address().port()));
    MeshConfig {
        relays: urls.collect(),
        realm: "realm".into(),
        identity: None,
        token: Secret::default(),
        verify: false,
        certificates: CertificateFiles::default(),
        pace: Pace { interval: Duration::from_millis(200), attempts: 15 },
        keep: false,
    }
}

/// A relay that serves everybody.
pub fn relay() -> Endpoint {
    let relay = open("");
    relay.start_relay(RelayConfig::default()).unwrap();
    relay
}

/// The count `name` of a relay.
pub fn relay_counter(relay: &Endpoint, name: &str) -> u64 {
    let counters = relay.relay_counters().unwrap();
    counters.iter().find(|(counter, _)| *counter == name).unwrap().1
}

/// Joins the mesh of these relays.
pub async fn join(node: &Endpoint, relays: &[&Endpoint]) {
    node.join_mesh(at(relays), HANG).await.unwrap();
}

/// Why a node could not join with this configuration at the only relay.
pub async fn join_error(node: &Endpoint, config: MeshConfig, limit: Duration) -> RelayError {
    match soon("a join", node.join_mesh(config, limit)).await {
        Err(JoinError::Relays(mut errors)) => errors.remove(0).1,
        other => panic!("{other:?}"),
    }
}

/// Both ends of a link from the node "a" to the node "b" through the mesh.
pub async fn connect_through(a: &Endpoint, b: &Endpoint) -> (Side, Side) {
    connect_named((a, "a"), (b, "b")).await
}

/// A link from the node "a" to the node "b" through the mesh, over which much has gone both ways:
/// where the one sends, and where it arrives.
pub async fn talk_through(a: &Endpoint, b: &Endpoint) -> (Side, Reader) {
    let (mut to_b, mut to_a) = connect_through(a, b).await;
    let (mut at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    let (small, large) = (bodies(500, 100), bodies(20, 500_000));
    to_b.send(small.iter().map(|body| framed(body))).await;
    assert!(at_b.frames(500).await == small);
    let sending = to_a.send(large.iter().map(|body| framed(body)));
    let ((), received) = tokio::join!(sending, at_a.frames(20));
    assert!(received == large);
    (to_b, at_b)
}

/// Both ends of a link through the mesh between nodes of these names.
pub async fn connect_named(
    (from, name): (&Endpoint, &str),
    (to, target): (&Endpoint, &str),
) -> (Side, Side) {
    let ways = vec![Way::Mesh];
    let request = DialRequest { ways, name: name.into(), ..request(&[], target, HANG) };
    both(from.dial(request), to).await
}

/// Why a dial through the mesh failed.
pub async fn mesh_failure(from: &Endpoint, target: &str, cookie: &[u8]) -> DialError {
    let cookie = Cookie::new(cookie.to_vec());
    let request = DialRequest { ways: vec![Way::Mesh], cookie, ..request(&[], target, HANG) };
    let mut failures = soon("a dial", from.dial(request)).await.err().expect("it was dialled");
    assert_eq!(failures[0].0, Way::Mesh);
    failures.remove(0).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_meet_through_a_relay() {
    let (relay, a, b) = (relay(), open("a"), open("b"));
    join(&a, &[&relay]).await;
    join(&b, &[&relay]).await;
    let (mut to_b, mut at_b) = talk_through(&a, &b).await;
    let text = at(&[&relay]).relays[0].text.clone();
    let links = a.links();
    assert_eq!(links[0].relay.as_ref(), Some(&text));
    assert_eq!(links[0].address, relay.address());
    assert!(relay_counter(&relay, "bytes") > 10_000_000);
    assert_eq!(relay_counter(&relay, "nodes"), 2);
    let tunnels = a.tunnels();
    assert!(tunnels[0].bytes_in > 10_000_000 && tunnels[0].decrypt_failed == 0);
    // What one says last still comes to the other.
    to_b.send([framed(b"last")]).await;
    a.shut_down().await;
    assert_eq!(at_b.frames(1).await, [b"last".to_vec()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_there_is_not_waited_for() {
    let (relay, a, b) = (relay(), open("a"), open("b"));
    assert_eq!(mesh_failure(&a, "b", COOKIE).await, DialError::NoMesh);
    join(&a, &[&relay]).await;
    assert_eq!(mesh_failure(&a, "b", COOKIE).await, DialError::NotInMesh);
    join(&b, &[&relay]).await;
    // With another cookie it is simply not there, nor in another realm.
    assert_eq!(mesh_failure(&a, "b", b"another").await, DialError::NotInMesh);
    b.join_mesh(MeshConfig { realm: "other".into(), ..at(&[&relay]) }, HANG).await.unwrap();
    assert_eq!(mesh_failure(&a, "b", COOKIE).await, DialError::NotInMesh);
    join(&b, &[&relay]).await;
    connect_through(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_outlives_its_relay() {
    let port = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let start = || {
        let relay = open_at(Some(std::net::Ipv4Addr::LOCALHOST.into()), port, "");
        relay.start_relay(RelayConfig::default()).unwrap();
        relay
    };
    let (relay, a, b) = (start(), open("a"), open("b"));
    join(&a, &[&relay]).await;
    join(&b, &[&relay]).await;
    let (mut to_b, to_a) = connect_through(&a, &b).await;
    let (_at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    to_b.send([framed(b"before")]).await;
    assert_eq!(at_b.frames(1).await.len(), 1);
    relay.shut_down().await;
    drop(relay);
    to_b.send([framed(b"meanwhile")]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _relay = start();
    assert_eq!(at_b.frames(1).await, [b"meanwhile".to_vec()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_are_better_than_one() {
    let (first, second, a, b) = (relay(), relay(), open("a"), open("b"));
    join(&a, &[&first, &second]).await;
    join(&b, &[&first, &second]).await;
    let both = |node: &Endpoint| {
        let relays = node.relays().unwrap();
        relays.iter().all(|relay| matches!(relay.state, State::Attached { .. }))
    };
    until("attachments", || both(&a) && both(&b)).await;
    let (mut to_b, to_a) = connect_through(&a, &b).await;
    let (_at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    for relay in [&first, &second] {
        to_b.send([framed(b"hello")]).await;
        assert_eq!(at_b.frames(1).await.len(), 1);
        let used = a.links()[0].address;
        if used == relay.address() {
            relay.shut_down().await;
            to_b.send([framed(b"again")]).await;
            assert_eq!(at_b.frames(1).await.len(), 1);
            break;
        }
    }
}

/// A straight link goes through the relay when its path is cut, and straight again when that heals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_straight_link_falls_back_to_the_relay() {
    let (relay, a, b) = (relay(), open("a"), open("b"));
    join(&a, &[&relay]).await;
    join(&b, &[&relay]).await;
    let straight = Forwarder::new(b.address(), Duration::ZERO).await;
    let (mut to_b, mut to_a) = connect(&a, &b, straight.front).await;
    let (mut at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    for cut in [false, true, false, true, false] {
        straight.turn((!cut).then_some(b.address()));
        to_b.send([framed(b"there")]).await;
        assert_eq!(at_b.frames(1).await, [b"there".to_vec()]);
        to_a.send([framed(b"back")]).await;
        assert_eq!(at_a.frames(1).await, [b"back".to_vec()]);
        let relayed = |node: &Endpoint| node.links()[0].relay.is_some();
        until("both to agree", || relayed(&a) == cut && relayed(&b) == cut).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_directory_tells_names_to_those_who_share_the_cookie() {
    let (relay, a, b, c) = (relay(), open("a"), open("b"), open_as("c", Knows(b"another")));
    join(&a, &[&relay]).await;
    b.join_mesh(MeshConfig { identity: Some("b.alias".into()), ..at(&[&relay]) }, HANG)
        .await
        .unwrap();
    join(&c, &[&relay]).await;
    assert_eq!(a.mesh_nodes().await.unwrap(), ["a", "b", "b.alias"]);
    assert_eq!(c.mesh_nodes().await.unwrap(), ["c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_node_keeps_its_name_and_a_dead_one_is_succeeded() {
    let (relay, b, other) = (relay(), open("b"), open("b"));
    join(&b, &[&relay]).await;
    match other.join_mesh(at(&[&relay]), HANG).await {
        Err(JoinError::NameTaken(name)) => assert_eq!(name, "b"),
        other => panic!("{other:?}"),
    }
    // It goes without a word, as a killed container does.
    drop(b);
    soon("a succession", async { while other.join_mesh(at(&[&relay]), HANG).await.is_err() {} })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_says_why_it_refuses() {
    let (relay, a) = (open(""), open("a"));
    let realms = HashMap::from([
        ("realm".to_string(), RealmAccess::Tokens(vec![b"sesame".to_vec().into()])),
        ("open".to_string(), RealmAccess::Open),
    ]);
    relay.start_relay(RelayConfig { realms: Some(realms), ..RelayConfig::default() }).unwrap();
    let config = at(&[&relay]);
    let refused = RelayError::Refused;
    assert_eq!(join_error(&a, config.clone(), HANG).await, refused(Refusal::Token));
    let other = MeshConfig { realm: "other".into(), ..config.clone() };
    assert_eq!(join_error(&a, other, HANG).await, refused(Refusal::UnknownRealm));
    let right = MeshConfig { token: b"sesame".to_vec().into(), ..config.clone() };
    assert!(format!("{right:?}").contains("token: Secret(..)"));
    a.join_mesh(right, HANG).await.unwrap();
    a.join_mesh(MeshConfig { realm: "open".into(), ..config }, HANG).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_relay_is_told_by_kind() {
    let (node, a) = (open("b"), open("a"));
    assert_eq!(join_error(&a, at(&[&node]), HANG).await, RelayError::NoRelayHere);
    let (server, web) = foreign_server(&[b"h3"]);
    let _serving = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let _ = incoming.await;
        }
    });
    let at_port = |port| MeshConfig { relays: vec![url("127.0.0.1", port)], ..at(&[]) };
    match join_error(&a, at_port(web.port()), HANG).await {
        RelayError::NotARelay(_) => {}
        other => panic!("{other:?}"),
    }
    let unknown = MeshConfig { relays: vec![url("nowhere.invalid", 4433)], ..at(&[]) };
    let why = join_error(&a, unknown, SHORT).await;
    assert!(matches!(why, RelayError::Name(_) | RelayError::Trying), "{why:?}");
}

/// A join that may not take as long as an attempt says what is known when its time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_has_little_time_tells_what_is_known() {
    // The time of an attempt at an address is longer.
    let little = Duration::from_secs(2);
    let a = open("a");
    let at_port = |port| MeshConfig { relays: vec![url("127.0.0.1", port)], ..at(&[]) };
    let (_silent, silent) = udp().await;
    assert_eq!(join_error(&a, at_port(silent.port()), little).await, RelayError::Timeout);
    let (server, garbage) = udp().await;
    let _serving = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = server.recv_from(&mut buffer).await {
            let _ = server.send_to(b"HTTP/1.1 400 Bad Request\r\n\r\n", from).await;
        }
    });
    match join_error(&a, at_port(garbage.port()), little).await {
        RelayError::NotARelay(_) => {}
        other => panic!("{other:?}"),
    }
    // A relay far away is one: its first answer comes, and the rest does not come in time.
    let relay = relay();
    let far = Forwarder::new(relay.address(), Duration::from_millis(700)).await;
    let why = join_error(&a, at_port(far.front.port()), little).await;
    assert!(matches!(why, RelayError::Timeout | RelayError::Trying), "{why:?}");
}

/// A relay tells by STUN how it sees whoever asks; a node that is none says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_answers_stun() {
    let (relay, plain) = (relay(), open("a"));
    let (client, own) = udp().await;
    // A binding request (RFC 8489, 5) without attributes.
    let request = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], b"transaction!"].concat();
    client.send_to(&request, plain.address()).await.unwrap();
    client.send_to(&request, relay.address()).await.unwrap();
    let mut answer = [0; 100];
    let (length, from) = soon("an answer", client.recv_from(&mut answer)).await.unwrap();
    assert_eq!(from, relay.address());
    let expected = macula_core::path::stun::answer(&request, own).unwrap();
    assert_eq!(answer[..length], expected);
    relay.stop_relay(Duration::ZERO).await;
    client.send_to(&request, relay.address()).await.unwrap();
    let silence = tokio::time::timeout(SHORT, client.recv_from(&mut answer)).await;
    assert!(silence.is_err(), "{silence:?}");
}

/// Those who come in a crowd are told when to come again, and do; who comes to another realm is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_in_one_realm_has_no_other_realm_wait() {
    let relay = open("");
    let attachments = Rates { relay: None, realm: Some(1) };
    relay.start_relay(RelayConfig { attachments, ..RelayConfig::default() }).unwrap();
    let nodes = ["a", "b", "c", "quiet"].map(open);
    let [a, b, c, quiet] = &nodes;
    let at_once = &[&relay];
    tokio::join!(join(a, at_once), join(b, at_once), join(c, at_once));
    let told = relay_counter(&relay, "told_to_wait");
    assert!(told > 0);
    quiet.join_mesh(MeshConfig { realm: "other".into(), ..at(&[&relay]) }, HANG).await.unwrap();
    assert_eq!((relay_counter(&relay, "told_to_wait"), relay_counter(&relay, "nodes")), (told, 4));
}
