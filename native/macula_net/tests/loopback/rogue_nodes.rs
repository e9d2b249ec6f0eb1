//! Nodes that want more of a relay than they may have.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use macula_core::keys::{self, LEN};
use macula_core::mesh::claim::{Claim, ClaimKey, PROOF, TAG, Tag};
use macula_core::mesh::key::MeshKey;
use macula_core::mesh::packet;
use macula_core::mesh::seal::{Kind, Sealer};
use macula_core::relay::message::{MAX_MESSAGE, Refusal, ToNode, ToRelay};
use macula_core::secret::Secret;
use macula_net::{Endpoint, TunnelInfo};
use quinn::{Connection, RecvStream, SendStream};

use crate::mesh::*;
use crate::support::*;

/// The realm of the tests' nodes.
const REALM: &str = "realm";

/// A node of the test's own at a relay.
struct Rogue {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    _endpoint: quinn::Endpoint,
}

impl Rogue {
    /// One that has heard the OFFER and said nothing yet.
    async fn connect(relay: SocketAddr) -> Rogue {
        let endpoint = client(|_| {});
        let connecting = endpoint.connect(relay, "relay").unwrap();
        let connection = soon("a connection", connecting).await.unwrap();
        let (send, receive) = soon("a stream", connection.accept_bi()).await.unwrap();
        let mut rogue = Rogue { connection, send, receive, _endpoint: endpoint };
        assert!(matches!(rogue.hear().await, Some(ToNode::Offer { .. })));
        rogue
    }

    async fn attach(relay: &Endpoint) -> Rogue {
        let mut rogue = Rogue::connect(relay.address()).await;
        rogue.say(&attach()).await;
        assert!(matches!(rogue.hear().await, Some(ToNode::Attached { .. })));
        rogue
    }

    /// What the relay says next; none: nothing any more.
    async fn hear(&mut self) -> Option<ToNode> {
        let mut len = [0; 2];
        soon("a message", self.receive.read_exact(&mut len)).await.ok()?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
        assert!(message.len() <= MAX_MESSAGE);
        soon("its rest", self.receive.read_exact(&mut message)).await.ok()?;
        ToNode::decode(&message).unwrap()
    }

    async fn say(&mut self, message: &ToRelay) {
        self.say_bytes(&message.encode()).await;
    }

    async fn say_bytes(&mut self, bytes: &[u8]) {
        soon("a word", self.send.write_all(bytes)).await.unwrap();
    }

    /// The relay says this last, and closes.
    async fn is_refused(&mut self, why: Refusal) {
        assert_eq!(self.hear().await, Some(ToNode::Refused(why)));
        soon("the end", self.connection.closed()).await;
    }

    fn exporter(&self) -> [u8; LEN] {
        let mut exporter = [0; LEN];
        let label = b"EXPORTER-macula-relay-v1";
        self.connection.export_keying_material(&mut exporter, label, b"").unwrap();
        exporter
    }

    fn claim(&self, key: &ClaimKey) -> ToRelay {
        ToRelay::Claim { claim: key.claim(REALM, &self.exporter()), sealed: vec![0; 1000] }
    }

    async fn holds(&mut self, key: &ClaimKey) {
        let claim = self.claim(key);
        self.say(&claim).await;
        assert_eq!(self.hear().await, Some(ToNode::Held(key.tag())));
    }
}

fn client(change: impl FnOnce(&mut quinn::TransportConfig)) -> quinn::Endpoint {
    let mut config = client_config(RELAY_ALPN);
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(None);
    change(&mut transport);
    config.transport_config(std::sync::Arc::new(transport));
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

fn attach() -> ToRelay {
    ToRelay::Attach { version: 1, features: 0, realm: REALM.into(), token: Secret::default() }
}

fn mesh_key(cookie: &[u8]) -> MeshKey {
    MeshKey::stretch(&keys::base(cookie), REALM).unwrap()
}

/// Two good nodes with a link through the relay.
struct Good {
    a: Endpoint,
    b: Endpoint,
    to_b: Side,
    at_b: Reader,
    _to_a: (Side, Reader),
    said: usize,
}

impl Good {
    async fn at(relay: &Endpoint) -> Good {
        let (a, b) = (open("a"), open("b"));
        join(&a, &[relay]).await;
        join(&b, &[relay]).await;
        let (to_b, to_a) = connect_through(&a, &b).await;
        let (at_a, at_b) = (to_b.establish("b"), to_a.establish("a"));
        Good { a, b, to_b, at_b, _to_a: (to_a, at_a), said: 0 }
    }

    /// They still reach each other.
    async fn talk(&mut self) {
        let frames = bodies(self.said + 20, 1000).split_off(self.said);
        self.said += 20;
        self.to_b.send(frames.iter().map(|frame| framed(frame))).await;
        assert!(self.at_b.frames(20).await == frames);
    }
}

/// Without the key there is no way to a tag: not with the holder's public key, not with the claim
/// it made itself, on another connection or in another realm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_is_only_for_who_has_its_key() {
    let relay = relay();
    let mut good = Good::at(&relay).await;
    let key = mesh_key(COOKIE).claim("b");
    // As if recorded on a connection that the thief was in the middle of.
    let recorded = Rogue::attach(&relay).await;
    let claim = |realm: &str, exporter| key.claim(realm, &exporter);
    let theirs = claim(REALM, recorded.exporter());
    let forged = Claim { proof: [7; PROOF], ..theirs.clone() };
    for stolen in [forged, theirs.clone()] {
        let mut thief = Rogue::attach(&relay).await;
        thief.say(&ToRelay::Claim { claim: stolen, sealed: Vec::new() }).await;
        thief.is_refused(Refusal::Proof).await;
    }
    let mut thief = Rogue::attach(&relay).await;
    let elsewhere = claim("another realm", thief.exporter());
    thief.say(&ToRelay::Claim { claim: elsewhere, sealed: Vec::new() }).await;
    thief.is_refused(Refusal::Proof).await;
    good.talk().await;
}

/// Who has the cookie, and so the key, still cannot take the tag of a node that lives, and asks it
/// once at most, however often it claims.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_again_and_again_changes_nothing() {
    let relay = relay();
    let mut good = Good::at(&relay).await;
    let mut rival = Rogue::attach(&relay).await;
    let claims = rival.claim(&mesh_key(COOKIE).claim("b")).encode().repeat(150);
    rival.say_bytes(&claims).await;
    assert!(matches!(rival.hear().await, Some(ToNode::Taken(_))));
    good.talk().await;
    let Good { a, b, .. } = &good;
    for node in [a, b] {
        let states = node.relays().unwrap();
        assert!(matches!(states[0].state, macula_net::State::Attached { .. }), "{states:?}");
    }
}

/// A flood of claims, each of which costs the relay the check of a signature: others hardly notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_claims_leaves_room_for_others() {
    let relay = relay();
    let mut good = Good::at(&relay).await;
    let mut rogue = Rogue::attach(&relay).await;
    let key = mesh_key(b"another").claim("x");
    rogue.holds(&key).await;
    let claims = rogue.claim(&key).encode().repeat(20);
    let Rogue { connection, mut send, mut receive, .. } = rogue;
    let began = Instant::now();
    let flooding = async {
        let mut said = 0;
        while began.elapsed() < Duration::from_secs(3) && send.write_all(&claims).await.is_ok() {
            said += 20;
        }
        said
    };
    let reading = async {
        let (mut answers, mut buffer) = (0, [0; 1900]);
        while let Ok(Ok(Some(len))) =
            tokio::time::timeout(Duration::from_secs(1), receive.read(&mut buffer)).await
        {
            answers += len / 19;
        }
        answers
    };
    let talking = async {
        while began.elapsed() < Duration::from_secs(3) {
            good.talk().await;
        }
    };
    let (_, answers, ()) = tokio::join!(flooding, reading, talking);
    // What was read: a second's worth at once, then as much a second.
    let seconds = began.elapsed().as_secs() as usize + 2;
    assert!((100..=200 * seconds).contains(&answers), "{answers} claims were checked");
    assert!(good.said > 100, "{} were said meanwhile", good.said);
    drop(connection);
}

/// A node sends under its own tags only; what it sends under those of others, or under none, goes
/// nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sends_in_anothers_name() {
    let relay = relay();
    let mut good = Good::at(&relay).await;
    let (mesh, other) = (mesh_key(COOKIE), mesh_key(b"another").claim("x"));
    let (a, b) = (mesh.tag("a"), mesh.tag("b"));
    let mut rogue = Rogue::attach(&relay).await;
    let send = |rogue: &Rogue, bytes: Vec<u8>| {
        rogue.connection.send_datagram(Bytes::from(bytes)).unwrap();
    };
    let under = |to: &Tag, from: &Tag| [&packet::header(to, from)[..], &[1; 60]].concat();
    let invalid = || relay_counter(&relay, "dropped_invalid");
    let before = invalid();
    // Before it holds anything, then with a tag of its own: under a's name, under nobody's.
    send(&rogue, under(&b, &a));
    rogue.holds(&other).await;
    send(&rogue, under(&b, &a));
    send(&rogue, under(&b, &Tag([0; TAG])));
    // And what is too short, or no packet at all.
    for len in [1, 16, 17, 18, 32] {
        send(&rogue, under(&b, &other.tag())[..len].to_vec());
    }
    send(&rogue, vec![9; 100]);
    // Nodes do not say that nobody holds a tag.
    send(&rogue, packet::nobody(&b).to_vec());
    until("what was dropped", || invalid() >= before + 10).await;
    assert_eq!(counter(&good.b, "tunnel_decrypt_failed"), 0);
    assert_eq!(counter(&good.b, "tunnel_misdirected"), 0);
    // Under its own tag anybody may send: it opens nothing, makes nothing be kept, and is counted.
    for len in 0..200 {
        let header = &packet::header(&b, &other.tag())[..];
        send(&rogue, [header, &vec![len as u8; len]].concat());
    }
    until("what cannot be opened", || counter(&good.b, "tunnel_decrypt_failed") >= 150).await;
    // A recorded session, from another attachment.
    let mut sealed = packet::header(&b, &other.tag()).to_vec();
    let mut sealer = Sealer::new(&mesh, other.tag(), b, [3; 6]);
    assert!(sealer.seal(Kind::Whole, &[], b"not QUIC", &mut sealed));
    send(&rogue, sealed.clone());
    send(&rogue, sealed);
    until("a repetition", || counter(&good.b, "tunnel_replayed") == 1).await;
    let known: Vec<TunnelInfo> = good.b.tunnels();
    assert_eq!(known.len(), 2, "{known:?}");
    good.talk().await;
}

/// What only a relay may say, what comes too early, and what cannot be read ends the attachment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_out_of_turn_is_put_out() {
    let relay = relay();
    let key = mesh_key(b"another").claim("x");
    let mut early = Rogue::connect(relay.address()).await;
    let claim = early.claim(&key);
    early.say(&claim).await;
    early.is_refused(Refusal::Malformed).await;
    for message in [ToRelay::Ping(1), ToRelay::List, ToRelay::Release(key.tag())] {
        let mut early = Rogue::connect(relay.address()).await;
        early.say(&message).await;
        early.is_refused(Refusal::Malformed).await;
    }
    let relays = [ToNode::Held(key.tag()), ToNode::Taken(key.tag()), ToNode::Restarting];
    let mut said: Vec<_> = relays.iter().map(ToNode::encode).collect();
    said.extend([attach().encode(), vec![0, 0], vec![0, 3, 5, 1, 1]]);
    for said in said {
        let mut rogue = Rogue::attach(&relay).await;
        rogue.say_bytes(&said).await;
        rogue.is_refused(Refusal::Malformed).await;
    }
    // A message of a later version is skipped; one that is longer than any is not.
    let mut rogue = Rogue::attach(&relay).await;
    rogue.say_bytes(&[0, 2, 200, 1]).await;
    rogue.holds(&key).await;
    rogue.say_bytes(&[0xff, 0xff, 9]).await;
    soon("the end", rogue.connection.closed()).await;
    until("an empty relay", || relay_counter(&relay, "nodes") == 0).await;
}

/// Ten thousand tags are too many: the relay grants what it grants everybody, and ends it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_are_not_granted_without_bound() {
    let relay = relay();
    let mut rogue = Rogue::attach(&relay).await;
    let mesh = mesh_key(b"another");
    let mut held = 0;
    for n in 0..10_000 {
        let claim = rogue.claim(&mesh.claim(&format!("{n}")));
        if rogue.send.write_all(&claim.encode()).await.is_err() {
            break;
        }
        match rogue.hear().await {
            Some(ToNode::Held(_)) => held += 1,
            other => {
                assert_eq!(other, Some(ToNode::Refused(Refusal::Full)));
                break;
            }
        }
    }
    assert_eq!(held, 64);
    until("an empty relay", || relay_counter(&relay, "nodes") == 0).await;
}

/// Nodes that ask for more than they take are not waited for, nor is what they ask for kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_is_left() {
    let relay = relay();
    let mesh = mesh_key(b"another");
    let mut good = Good::at(&relay).await;
    let mut many = Vec::new();
    // A directory worth asking for.
    for node in 0..4 {
        let mut rogue = Rogue::attach(&relay).await;
        for n in 0..60 {
            rogue.holds(&mesh.claim(&format!("{node}/{n}"))).await;
        }
        many.push(rogue);
    }
    let mut asking = many.remove(0);
    let lists = ToRelay::List.encode().repeat(10);
    soon("a cut", async { while asking.send.write_all(&lists).await.is_ok() {} }).await;
    soon("the end", asking.connection.closed()).await;
    // And datagrams that it sends itself, and never takes.
    let greedy = &many[0];
    let tag = mesh.tag("1/0");
    for _ in 0..5_000 {
        let datagram = [&packet::header(&tag, &tag)[..], &[1; 1000]].concat();
        greedy.connection.send_datagram_wait(Bytes::from(datagram)).await.unwrap();
    }
    good.talk().await;
}

/// A node that allows the relay no stream, one that says nothing, and one that falls silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_let_go() {
    let relay = relay();
    let endpoint = client(|transport| {
        transport.max_concurrent_bidi_streams(0u32.into());
    });
    let connection = endpoint.connect(relay.address(), "relay").unwrap();
    let deaf = soon("a connection", connection).await.unwrap();
    let silent = Rogue::connect(relay.address()).await;
    // One whose line is cut, and who asked QUIC to wait for ever.
    let line = Forwarder::new(relay.address(), Duration::ZERO).await;
    let mut cut = Rogue::connect(line.front).await;
    cut.say(&attach()).await;
    assert!(matches!(cut.hear().await, Some(ToNode::Attached { .. })));
    assert_eq!(relay_counter(&relay, "nodes"), 1);
    line.turn(None);
    soon("an end of the deaf", deaf.closed()).await;
    soon("an end of the silent", silent.connection.closed()).await;
    until("an empty relay", || relay_counter(&relay, "nodes") == 0).await;
}
