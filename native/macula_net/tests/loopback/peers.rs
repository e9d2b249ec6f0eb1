//! Relays that are peered: nodes at one reach nodes at another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use macula_core::keys::{self, LEN};
use macula_core::mesh::key::MeshKey;
use macula_core::mesh::packet;
use macula_core::mesh::record::Attachment;
use macula_core::relay::between::{Announcement, Between};
use macula_core::relay::message::{MAX_MESSAGE, Refusal, ToNode, ToRelay};
use macula_net::{
    CertificateFiles, DialError, DialRequest, Endpoint, EndpointConfig, JoinError, MeshConfig,
    PeerState, RealmAccess, RelayConfig, RelayError, RelayUrl,
};
use quinn::{Connection, RecvStream, SendStream};

use crate::certificates::{Ca, Flaw, host};
use crate::mesh::*;
use crate::support::*;

const REALM: &str = "realm";

/// A relay that calls these ports.
fn relay_calling(ports: &[u16], realms: &[(&str, RealmAccess)]) -> Endpoint {
    let relay = open("");
    let realms: HashMap<_, _> =
        realms.iter().map(|(realm, access)| (realm.to_string(), access.clone())).collect();
    let config = RelayConfig {
        realms: (!realms.is_empty()).then_some(realms),
        peers: ports.iter().map(|port| url("127.0.0.1", *port)).collect(),
        ..RelayConfig::default()
    };
    relay.start_relay(config).unwrap();
    relay
}

/// A relay and one that calls it, through a line that can be cut.
async fn peered() -> (Endpoint, Endpoint, Forwarder) {
    let called = relay();
    let line = Forwarder::new(called.address(), Duration::ZERO).await;
    let caller = relay_calling(&[line.front.port()], &[]);
    until("a peering", || are_peered(&caller, &called)).await;
    (called, caller, line)
}

fn are_peered(one: &Endpoint, other: &Endpoint) -> bool {
    relay_counter(one, "peers") == 1 && relay_counter(other, "peers") == 1
}

/// Until each of the relays knows of as many tags elsewhere.
async fn known(relays: &[(&Endpoint, u64)]) {
    let know = || relays.iter().all(|(relay, count)| relay_counter(relay, "records") == *count);
    until("records", know).await;
}

fn state(relay: &Endpoint) -> PeerState {
    relay.relay_peers().unwrap()[0].state.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_at_peered_relays_reach_each_other() {
    let (first, second, _line) = peered().await;
    let (a, b) = (open("a"), open("b"));
    join(&a, &[&first]).await;
    assert_eq!(mesh_failure(&a, "b", COOKIE).await, DialError::NotInMesh);
    join(&b, &[&second]).await;
    known(&[(&first, 1), (&second, 1)]).await;
    talk_through(&a, &b).await;
    for relay in [&first, &second] {
        assert!(relay_counter(relay, "to_peers") > 0 && relay_counter(relay, "from_peers") > 0);
    }
    assert_eq!(soon("a directory", a.mesh_nodes()).await.unwrap(), ["a", "b"]);
    // Each at its own relay is found from the other side, and who has left is not there, at once.
    connect_named((&b, "b"), (&a, "a")).await;
    b.leave_mesh().await;
    known(&[(&first, 0), (&second, 1)]).await;
    assert_eq!(mesh_failure(&a, "b", COOKIE).await, DialError::NotInMesh);
}

/// A peering that is cut is called again; what was sent meanwhile arrives, once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_outlives_a_cut_between_relays() {
    let (first, second, line) = peered().await;
    let (a, b) = (open("a"), open("b"));
    join(&a, &[&first]).await;
    join(&b, &[&second]).await;
    known(&[(&first, 1), (&second, 1)]).await;
    let (mut to_b, to_a) = connect_through(&a, &b).await;
    let (_at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    to_b.send([framed(b"before")]).await;
    assert_eq!(at_b.frames(1).await, [b"before".to_vec()]);
    line.turn(None);
    until("the loss here", || relay_counter(&first, "peers") == 0).await;
    until("the loss there", || relay_counter(&second, "peers") == 0).await;
    assert!(matches!(state(&second), PeerState::Down(_)), "{:?}", state(&second));
    to_b.send([framed(b"meanwhile"), framed(b"and again")]).await;
    // What was said is forgotten in the end.
    known(&[(&first, 0), (&second, 0)]).await;
    line.turn(Some(first.address()));
    assert_eq!(at_b.frames(2).await, [b"meanwhile".to_vec(), b"and again".to_vec()]);
    assert!(matches!(state(&second), PeerState::Up { .. }));
    assert!(relay_counter(&first, "peers_lost") >= 1);
}

/// A relay that stops says so: nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_stops_is_forgotten_at_once() {
    let (first, second, _line) = peered().await;
    let (a, b) = (open("a"), open("b"));
    join(&a, &[&first]).await;
    join(&b, &[&second]).await;
    known(&[(&first, 1), (&second, 1)]).await;
    second.stop_relay(Duration::ZERO).await;
    known(&[(&first, 0)]).await;
    assert_eq!(mesh_failure(&a, "b", COOKIE).await, DialError::NotInMesh);
    assert_eq!(relay_counter(&first, "peers_lost"), 0);
}

/// Each relay has the same list, with itself on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_list_serves_all_relays() {
    let free = || std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let ports = [free(), free(), free()].map(|socket| socket.local_addr().unwrap().port());
    let config = RelayConfig {
        peers: ports.iter().map(|port| url("127.0.0.1", *port)).collect(),
        ..RelayConfig::default()
    };
    let relays = ports.map(|port| {
        let relay = open_at(Some(std::net::Ipv4Addr::LOCALHOST.into()), port, "");
        relay.start_relay(config.clone()).unwrap();
        relay
    });
    let full = || relays.iter().all(|relay| relay_counter(relay, "peers") == 2);
    until("a full map", full).await;
    let itself = PeerState::Down(RelayError::Refused(Refusal::Itself));
    for (n, relay) in relays.iter().enumerate() {
        until("itself", || relay.relay_peers().unwrap()[n].state == itself).await;
    }
    let names = ["a", "b", "c"];
    let nodes = names.map(open);
    for (node, relay) in nodes.iter().zip(&relays) {
        join(node, &[relay]).await;
    }
    // Each record comes on both connections to a peer.
    until("records", || relays.iter().all(|relay| relay_counter(relay, "records") == 4)).await;
    for (n, m) in [(0, 1), (1, 2), (2, 0)] {
        connect_named((&nodes[n], names[n]), (&nodes[m], names[m])).await;
    }
}

/// A name is a live node's at all relays that are peered, and a dead one's goes to the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_taken_at_peers_too() {
    let (first, second, _line) = peered().await;
    let (b, other) = (open("b"), open("b"));
    join(&b, &[&first]).await;
    known(&[(&second, 1)]).await;
    match other.join_mesh(at(&[&second]), HANG).await {
        Err(JoinError::NameTaken(name)) => assert_eq!(name, "b"),
        other => panic!("{other:?}"),
    }
    // One node may be at both.
    join(&b, &[&first, &second]).await;
    known(&[(&first, 1), (&second, 1)]).await;
    drop(b);
    soon("a succession", async { while other.join_mesh(at(&[&second]), HANG).await.is_err() {} })
        .await;
    let a = open("a");
    join(&a, &[&first]).await;
    known(&[(&second, 1)]).await;
    connect_through(&a, &other).await;
}

/// Realms with tokens are shared with those who know one of them, and no other realm is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn realms_are_shared_by_their_tokens() {
    let tokens = |token: &str| RealmAccess::Tokens(vec![token.as_bytes().to_vec().into()]);
    let called = relay_calling(&[], &[(REALM, tokens("sesame")), ("mine", tokens("mine"))]);
    let port = called.address().port();
    let good = relay_calling(&[port], &[(REALM, tokens("sesame")), ("mine", tokens("other"))]);
    let bad = relay_calling(&[port], &[(REALM, tokens("guess"))]);
    let token = |token: &str, relay: &Endpoint| MeshConfig {
        token: token.as_bytes().to_vec().into(),
        ..at(&[relay])
    };
    let (a, b, c, d) = (open("a"), open("b"), open("c"), open("d"));
    a.join_mesh(token("sesame", &called), HANG).await.unwrap();
    b.join_mesh(token("sesame", &good), HANG).await.unwrap();
    c.join_mesh(token("guess", &bad), HANG).await.unwrap();
    let mine = MeshConfig { realm: "mine".into(), ..token("other", &good) };
    d.join_mesh(mine, HANG).await.unwrap();
    known(&[(&called, 1), (&good, 1)]).await;
    connect_through(&a, &b).await;
    let refused = PeerState::Down(RelayError::Refused(Refusal::Token));
    until("a refusal", || state(&bad) == refused).await;
    assert_eq!(mesh_failure(&c, "a", COOKIE).await, DialError::NotInMesh);
    assert_eq!((relay_counter(&bad, "records"), relay_counter(&called, "records")), (0, 1));
    // A node of the same name and cookie in another realm is not the one that is meant.
    assert_eq!(mesh_failure(&a, "d", COOKIE).await, DialError::NotInMesh);
}

/// A realm of a CA is shared with relays of that CA; and a relay whose key changes has its nodes and
/// its peers come back, with records for the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn realms_of_a_ca_are_shared_by_certificates() {
    let ca = Ca::new("peers");
    let issued = |name: &str| CertificateFiles {
        authorities: None,
        own: Some(ca.issue(name, host("localhost"), Flaw::None)),
    };
    let start = |certificates: CertificateFiles, peers: Vec<RelayUrl>| {
        let address = Some(std::net::Ipv4Addr::LOCALHOST.into());
        let config = EndpointConfig { certificates, ..config(address, 0, "") };
        let relay = Endpoint::open(&config, Arc::new(Knows(COOKIE))).unwrap();
        let realms = HashMap::from([(REALM.to_string(), RealmAccess::Authority(ca.trusted()))]);
        let config = RelayConfig { realms: Some(realms), peers, ..RelayConfig::default() };
        relay.start_relay(config).unwrap();
        relay
    };
    let first = start(issued("first"), vec![]);
    let peers = || vec![url("127.0.0.1", first.address().port())];
    let second = start(issued("second"), peers());
    let stranger = start(CertificateFiles::default(), peers());
    let (a, b) = (open("a"), open("b"));
    for (node, relay, name) in [(&a, &first, "a"), (&b, &second, "b")] {
        let config = MeshConfig { certificates: issued(name), ..at(&[relay]) };
        node.join_mesh(config, HANG).await.unwrap();
    }
    known(&[(&first, 1), (&second, 1)]).await;
    let (mut to_b, to_a) = connect_through(&a, &b).await;
    let (_at_a, mut at_b) = (to_b.establish("b"), to_a.establish("a"));
    let refused = PeerState::Down(RelayError::Refused(Refusal::Token));
    until("a refusal", || state(&stranger) == refused).await;
    assert_eq!(relay_counter(&stranger, "records"), 0);
    // A new key, as most CAs' clients make one with each renewal.
    let (before, _) = (first.node_id(), issued("first"));
    first.renew_certificates().unwrap();
    assert_ne!(first.node_id(), before);
    until("all are back", || {
        let is_back = |relay| relay_counter(relay, "records") == 1;
        relay_counter(&first, "nodes") == 1 && is_back(&first) && is_back(&second)
    })
    .await;
    to_b.send([framed(b"again")]).await;
    assert_eq!(at_b.frames(1).await, [b"again".to_vec()]);
    let again = || DialRequest { ways: vec![Way::Mesh], ..request(&[], "a", HANG) };
    soon("a way back", async { while b.dial(again()).await.is_err() {} }).await;
}

/// A peer that says what it likes.
struct Rogue {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    id: [u8; LEN],
    _quinn: quinn::Endpoint,
}

impl Rogue {
    async fn peer(relay: SocketAddr) -> Rogue {
        let mut quinn = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let (config, id) = client_config_with_id(RELAY_ALPN);
        quinn.set_default_client_config(config);
        let connection =
            soon("a connection", quinn.connect(relay, "relay").unwrap()).await.unwrap();
        let (send, receive) = soon("a stream", connection.accept_bi()).await.unwrap();
        let mut rogue = Rogue { connection, send, receive, id, _quinn: quinn };
        let offer = rogue.bytes().await.unwrap();
        assert!(matches!(ToNode::decode(&offer), Ok(Some(ToNode::Offer { .. }))));
        rogue.write(&ToRelay::Peer { version: 1, features: 0 }.encode()).await;
        let peered = rogue.bytes().await.unwrap();
        assert_eq!(ToNode::decode(&peered), Ok(Some(ToNode::Peered { features: 0 })));
        rogue
    }

    async fn bytes(&mut self) -> Option<Vec<u8>> {
        let mut len = [0; 2];
        soon("a message", self.receive.read_exact(&mut len)).await.ok()?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
        assert!(message.len() <= MAX_MESSAGE);
        soon("its rest", self.receive.read_exact(&mut message)).await.ok()?;
        Some(message)
    }

    async fn write(&mut self, bytes: &[u8]) {
        soon("a word", self.send.write_all(bytes)).await.unwrap();
    }

    /// Says that a node of another cookie is here, as that has said at this time.
    async fn announces(&mut self, time: u64) {
        let announced = announcement(b"another", "x", self.id, time);
        self.write(&Between::Announce(announced).encode()).await;
    }

    /// The relay ends the peering for this reason.
    async fn is_sent_away(&mut self, why: Refusal) {
        loop {
            let message = self.bytes().await.expect("it ends without a reason");
            match Between::decode(&message).unwrap().unwrap() {
                Between::Ended(refusal) => break assert_eq!(refusal, why),
                Between::Ping(_) | Between::Announce(_) => {}
                other => panic!("{other:?}"),
            }
        }
        soon("the end", self.connection.closed()).await;
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The record of the node called `name`, at the relay with this id.
fn announcement(cookie: &[u8], name: &str, relay: [u8; LEN], now: u64) -> Announcement {
    let key = MeshKey::stretch(&keys::base(cookie), REALM).unwrap().claim(name);
    let node = [7; LEN];
    let record = key.record(REALM, &Attachment { node, relay }, now, 0);
    Announcement { realm: REALM.into(), node, record, sealed: vec![] }
}

/// Without the cookie no relay says that a node is there, not even by what the node said for another
/// relay; and datagrams are taken of those it has said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_peer_draws_what_is_not_its_own() {
    let (first, second, _line) = peered().await;
    let (a, b) = (open("a"), open("b"));
    join(&a, &[&first]).await;
    join(&b, &[&second]).await;
    known(&[(&first, 1), (&second, 1)]).await;
    // As the node would have said for the relay it is at.
    let stolen = announcement(COOKIE, "b", second.node_id(), now());
    let mut forged = announcement(COOKIE, "b", [0; LEN], now() + 10_000);
    forged.record.sequence += 1;
    for announced in [stolen, forged] {
        let mut rogue = Rogue::peer(first.address()).await;
        rogue.write(&Between::Announce(announced).encode()).await;
        rogue.is_sent_away(Refusal::Proof).await;
    }
    let rogue = Rogue::peer(first.address()).await;
    let tag = MeshKey::stretch(&keys::base(COOKIE), REALM).unwrap();
    let datagram = [&packet::header(&tag.tag("a"), &tag.tag("b"))[..], b"sealed"].concat();
    let before = relay_counter(&first, "dropped_invalid");
    rogue.connection.send_datagram(Bytes::from(datagram)).unwrap();
    until("a drop", || relay_counter(&first, "dropped_invalid") > before).await;
    for words in [&[0, 0][..], &[0, 2, 36, 1], &[0xff, 0xff, 33]] {
        let mut rogue = Rogue::peer(first.address()).await;
        rogue.write(words).await;
        rogue.is_sent_away(Refusal::Malformed).await;
    }
    connect_through(&a, &b).await;
}

/// What has ended, or is of another time, is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_record_counts_no_more() {
    let first = relay();
    let mut rogue = Rogue::peer(first.address()).await;
    for time in [now() - 601_000, now() + 400_000] {
        rogue.announces(time).await;
    }
    until("refusals", || relay_counter(&first, "records_refused") == 2).await;
    let now = now();
    rogue.announces(now).await;
    known(&[(&first, 1)]).await;
    // What was said before does not come back.
    rogue.announces(now - 9).await;
    until("a refusal", || relay_counter(&first, "records_refused") == 3).await;
    let a = open("a");
    join(&a, &[&first]).await;
    known(&[(&first, 1)]).await;
    drop(rogue);
    known(&[(&first, 0)]).await;
}
