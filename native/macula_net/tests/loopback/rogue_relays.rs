//! What a relay can do to its nodes: nothing but lose what they send, and be found out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use macula_core::mesh::claim::{TAG, Tag};
use macula_core::relay::message::{Refusal, ToNode, ToRelay, VERSIONS};
use macula_net::{
    CertificateNews, Cookie, DialError, Endpoint, Incident, JoinError, MeshConfig, Node,
    RelayError, State, TunnelInfo,
};
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::mesh::*;
use crate::rogue::*;
use crate::support::*;

/// Frames that pass each way while a relay misbehaves.
const FRAMES: usize = 150;

/// A thousand of this many datagrams suffer something: enough to hit every part of the protocol,
/// and few enough for QUIC to get on.
const PER_MILLE: u32 = 150;

/// What a datagram takes to a relay that is slow.
const SLOW: Duration = Duration::from_millis(60);

fn mesh_at(relays: &[&Rogue]) -> MeshConfig {
    let urls = relays.iter().map(|relay| url("127.0.0.1", relay.address.port()));
    MeshConfig { relays: urls.collect(), ..at(&[]) }
}

async fn join_at(node: &Endpoint, relays: &[&Rogue]) {
    node.join_mesh(mesh_at(relays), HANG).await.unwrap();
}

/// A link with both its ends established.
struct Pair {
    near: (Side, Reader),
    far: (Side, Reader),
    /// Frames of the rounds so far.
    sent: usize,
}

impl Pair {
    async fn connect(near: (&Endpoint, &str), far: (&Endpoint, &str)) -> Pair {
        let (to_far, to_near) = connect_named(near, far).await;
        let (at_near, at_far) = (to_far.establish(far.1), to_near.establish(near.1));
        Pair { near: (to_far, at_near), far: (to_near, at_far), sent: 0 }
    }

    /// Sends `count` numbered frames of many sizes each way; what arrives must be exactly those.
    async fn exchange(&mut self, count: usize) {
        let frames = |way: usize| -> Vec<Vec<u8>> {
            let numbers = self.sent..self.sent + count;
            numbers.map(|n| body(2 * n + way, 1 + (n * 7919 + way) % 4000)).collect()
        };
        let (there, back) = (frames(0), frames(1));
        self.sent += count;
        let ((to_far, at_near), (to_near, at_far)) = (&mut self.near, &mut self.far);
        let ((), (), far, near) = tokio::join!(
            to_far.send(there.iter().map(|body| framed(body))),
            to_near.send(back.iter().map(|body| framed(body))),
            at_far.frames(count),
            at_near.frames(count),
        );
        assert!(far == there && near == back, "what was delivered is not what was sent");
    }
}

fn sum(nodes: &[&Endpoint], name: &str) -> u64 {
    nodes.iter().map(|node| counter(node, name)).sum()
}

/// Three nodes, each with a link to both others, through a relay that does everything it can think
/// of, to whole datagrams and to halves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_relay_does_nothing_wrong_is_delivered() {
    let seed = seed();
    for narrow in [false, true] {
        let rogue = Rogue::start(seed, narrow);
        let (a, b, c) = (open("a"), open("b"), open("c"));
        let nodes = [&a, &b, &c];
        for node in nodes {
            join_at(node, &[&rogue]).await;
        }
        let mut ab = Pair::connect((&a, "a"), (&b, "b")).await;
        let mut bc = Pair::connect((&b, "b"), (&c, "c")).await;
        let mut ca = Pair::connect((&c, "c"), (&a, "a")).await;
        rogue.misbehave(&DEEDS, PER_MILLE);
        tokio::join!(ab.exchange(FRAMES), bc.exchange(FRAMES), ca.exchange(FRAMES));
        for deed in DEEDS {
            assert!(rogue.done(deed) > 0, "{deed:?} was never done");
        }
        for name in ["tunnel_decrypt_failed", "tunnel_replayed", "tunnel_misdirected"] {
            assert!(sum(&nodes, name) > 0, "{name}");
        }
        rogue.misbehave(&[], 0);
        tokio::join!(ab.exchange(5), bc.exchange(5), ca.exchange(5));
    }
}

/// Each deed alone, until it has been done some times: it is counted as what it is, and the link goes
/// on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_deed_is_counted_by_kind() {
    let rogue = Rogue::start(seed(), false);
    let (a, b, c) = (open("a"), open("b"), open("c"));
    let nodes = [&a, &b, &c];
    for node in nodes {
        join_at(node, &[&rogue]).await;
    }
    let mut link = Pair::connect((&a, "a"), (&b, "b")).await;
    for deed in DEEDS {
        let signs: &[&str] = match deed {
            Deed::Replay | Deed::Duplicate => &["tunnel_replayed"],
            Deed::Flip | Deed::Truncate | Deed::ToAnother => {
                &["tunnel_decrypt_failed", "tunnel_misdirected"]
            }
            Deed::FromAnother | Deed::Lengthen => &["tunnel_decrypt_failed"],
            Deed::Garble => &["tunnel_misdirected"],
            Deed::Reorder | Deed::Drop | Deed::Delay | Deed::Deny | Deed::Lie => &[],
        };
        let count = || signs.iter().map(|sign| sum(&nodes, sign)).sum::<u64>();
        let before = count();
        rogue.misbehave(&[deed], 200);
        while rogue.done(deed) < 8 {
            link.exchange(10).await;
        }
        rogue.misbehave(&[], 0);
        link.exchange(1).await;
        if !signs.is_empty() {
            until("a count", || count() > before).await;
        }
    }
    let bad = |tunnel: &TunnelInfo| tunnel.decrypt_failed > 0 && tunnel.replayed > 0;
    assert!(a.tunnels().iter().chain(&b.tunnels()).any(bad), "{:?}", a.tunnels());
}

/// A node that remembers what it was told of datagrams that cannot be opened.
#[derive(Clone, Default)]
struct Warned(Arc<Mutex<Vec<u64>>>);

impl Node for Warned {
    fn cookie(&self, name: &str) -> oneshot::Receiver<Cookie> {
        Knows(COOKIE).cookie(name)
    }

    fn refused(&self, _address: SocketAddr, _name: &str, _why: Incident) {}

    fn certificate(&self, _news: CertificateNews) {}

    fn relay(&self, _url: &str, _state: &State) {}

    fn forged(&self, count: u64) {
        self.0.lock().push(count);
    }
}

/// The node hears of tampering, and not for each datagram.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_warned_of_tampering() {
    let rogue = Rogue::start(seed(), false);
    let warned = Warned::default();
    let (a, b) = (open("a"), open_as("b", warned.clone()));
    join_at(&a, &[&rogue]).await;
    join_at(&b, &[&rogue]).await;
    let mut link = Pair::connect((&a, "a"), (&b, "b")).await;
    rogue.misbehave(&[Deed::Lengthen], 300);
    while rogue.done(Deed::Lengthen) < 20 {
        link.exchange(10).await;
    }
    rogue.misbehave(&[], 0);
    until("a warning", || !warned.0.lock().is_empty()).await;
    assert!(warned.0.lock()[0] > 1, "told of each");
}

/// When nothing comes through unharmed any more, the link delivers nothing, and both sides can
/// still leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_destroyed_ends_cleanly() {
    for deed in [Deed::Flip, Deed::Truncate, Deed::FromAnother, Deed::Drop] {
        let rogue = Rogue::start(seed(), false);
        let (a, b) = (open("a"), open("b"));
        join_at(&a, &[&rogue]).await;
        join_at(&b, &[&rogue]).await;
        let mut link = Pair::connect((&a, "a"), (&b, "b")).await;
        link.exchange(5).await;
        rogue.misbehave(&[deed], 1000);
        let (to_b, _) = &mut link.near;
        to_b.send([framed(b"lost")]).await;
        until("attempts", || rogue.done(deed) > 5).await;
        soon("the end here", a.shut_down()).await;
        soon("the end there", b.shut_down()).await;
        let (_, at_b) = &mut link.far;
        let (frames, _) = at_b.rest().await;
        assert!(frames.is_empty(), "{frames:?}");
    }
}

/// Where the relay says that it sees a node is shown, and believed in nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_lies_about_addresses_moves_nothing() {
    let rogue = Rogue::start(seed(), false);
    let (a, b) = (open("a"), open("b"));
    join_at(&a, &[&rogue]).await;
    join_at(&b, &[&rogue]).await;
    let mut link = Pair::connect((&a, "a"), (&b, "b")).await;
    assert_eq!(a.relays().unwrap()[0].state, State::Attached { observed: observed() });
    link.exchange(10).await;
    assert_eq!(a.links()[0].address, rogue.address);
}

/// What is told on the control stream without being asked for, any amount of it, changes nothing
/// and is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_messages_are_borne() {
    let rogue = Rogue::start(seed(), false);
    let (a, b) = (open("a"), open("b"));
    join_at(&a, &[&rogue]).await;
    join_at(&b, &[&rogue]).await;
    let mut link = Pair::connect((&a, "a"), (&b, "b")).await;
    let nobodys = Tag([7; TAG]);
    let messages = [
        vec![0, 2, 200, 1],
        [&[0x0f, 0xff, 250][..], &[0; 0xffe]].concat(),
        ToNode::Held(nobodys).encode(),
        ToNode::Taken(nobodys).encode(),
        ToNode::Entry { tag: nobodys, sealed: [9; 1000].into() }.encode(),
        ToNode::Listed.encode(),
        ToNode::Pong(1).encode(),
        ToNode::Ping(1).encode(),
        ToNode::Slowed.encode(),
        ToNode::Restarting.encode(),
        ToNode::Peered { features: 0 }.encode(),
        ToNode::Stale { tag: nobodys, newest: u64::MAX }.encode(),
    ];
    for message in messages {
        rogue.say(&message, 2_000_000 / message.len().max(100));
        link.exchange(5).await;
    }
    // A directory that is told without end, and then at last.
    let entry = ToNode::Entry { tag: nobodys, sealed: [9; 1000].into() }.encode();
    let telling = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rogue.say(&entry, 10_000);
        rogue.say(&ToNode::Listed.encode(), 1);
    };
    let (names, ()) = tokio::join!(soon("a directory", a.mesh_nodes()), telling);
    assert_eq!(names, Some(vec![]));
    link.exchange(5).await;
}

/// One liar among two relays neither keeps a node from joining nor from talking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_relay_beside_a_liar_is_enough() {
    let (liar, good) = (Relaying::start(taking), relay());
    let (a, b) = (open("a"), open("b"));
    // The good one is slow: the lie is there first.
    let lines =
        [Forwarder::new(good.address(), SLOW).await, Forwarder::new(good.address(), SLOW).await];
    for (node, line) in [&a, &b].into_iter().zip(&lines) {
        let relays = vec![liar.url(), url("127.0.0.1", line.front.port())];
        soon("a join", node.join_mesh(MeshConfig { relays, ..at(&[]) }, HANG)).await.unwrap();
    }
    Pair::connect((&a, "a"), (&b, "b")).await.exchange(10).await;
    let alone = MeshConfig { relays: vec![liar.url()], ..at(&[]) };
    match soon("a join", open("c").join_mesh(alone, HANG)).await {
        Err(JoinError::NameTaken(name)) => assert_eq!(name, "c"),
        other => panic!("{other:?}"),
    }
}

/// A relay that begins to swallow everything while it keeps up appearances loses its nodes to one
/// that works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_swallows_everything_is_left() {
    let seed = seed();
    let relays = [Rogue::start(seed, false), Rogue::start(seed, false)];
    let (a, b) = (open("a"), open("b"));
    for node in [&a, &b] {
        join_at(node, &[&relays[0], &relays[1]]).await;
    }
    let attached = |node: &Endpoint| {
        let states = node.relays().unwrap().into_iter().map(|relay| relay.state);
        states.filter(|state| matches!(state, State::Attached { .. })).count()
    };
    until("attachments", || attached(&a) == 2 && attached(&b) == 2).await;
    let mut link = Pair::connect((&a, "a"), (&b, "b")).await;
    for _ in 0..2 {
        link.exchange(20).await;
        let used = a.links()[0].address;
        let used = relays.iter().position(|relay| relay.address == used).unwrap();
        relays[used].misbehave(&[Deed::Drop], 1000);
        link.exchange(20).await;
        relays[used].misbehave(&[], 0);
    }
}

/// A relay that denies that anybody holds the tag: the node is not there, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_denied_is_not_waited_for() {
    let rogue = Rogue::start(seed(), false);
    let (a, b) = (open("a"), open("b"));
    join_at(&a, &[&rogue]).await;
    join_at(&b, &[&rogue]).await;
    rogue.misbehave(&[Deed::Deny], 1000);
    assert_eq!(mesh_failure(&a, "b", COOKIE).await, DialError::NotInMesh);
    // The goodbye of that dial is denied too. It names nothing but the tag, so that it would end another dial.
    tokio::time::sleep(Duration::from_millis(300)).await;
    rogue.misbehave(&[], 0);
    Pair::connect((&a, "a"), (&b, "b")).await.exchange(1).await;
}

/// A relay that says what a script makes it say.
struct Relaying {
    port: u16,
    _serving: JoinHandle<()>,
}

type Stream = (SendStream, RecvStream, quinn::Connection);

impl Relaying {
    fn start<F>(script: impl Fn(Stream) -> F + Clone + Send + 'static) -> Relaying
    where
        F: Future<Output = Option<()>> + Send + 'static,
    {
        let (server, address) = foreign_server(&[RELAY_ALPN]);
        let serving = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                let script = script.clone();
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    let Ok((send, receive)) = connection.open_bi().await else { return };
                    script((send, receive, connection.clone())).await;
                    connection.closed().await;
                });
            }
        });
        Relaying { port: address.port(), _serving: serving }
    }

    fn url(&self) -> macula_net::RelayUrl {
        url("127.0.0.1", self.port)
    }

    /// Why a node cannot join here.
    async fn error(&self) -> RelayError {
        let config = MeshConfig { relays: vec![self.url()], ..at(&[]) };
        join_error(&open("a"), config, Duration::from_secs(2)).await
    }
}

fn offer() -> Vec<u8> {
    ToNode::Offer { versions: VERSIONS, features: 0 }.encode()
}

fn attached() -> Vec<u8> {
    ToNode::Attached { features: 0, observed: observed(), time: 0 }.encode()
}

async fn message(receive: &mut RecvStream) -> Option<Vec<u8>> {
    let mut len = [0; 2];
    receive.read_exact(&mut len).await.ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    receive.read_exact(&mut message).await.ok()?;
    Some(message)
}

/// Attaches everybody, and says of every tag that it is taken.
async fn taking((mut send, mut receive, _connection): Stream) -> Option<()> {
    send.write_all(&[offer(), attached()].concat()).await.ok()?;
    message(&mut receive).await?;
    while let Some(claim) = message(&mut receive).await {
        if let Ok(Some(ToRelay::Claim { claim, .. })) = ToRelay::decode(&claim) {
            send.write_all(&ToNode::Taken(Tag::of(&claim.key)).encode()).await.ok()?;
        }
    }
    Some(())
}

/// What comes instead of what should come, and what is said of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_named() {
    let cut =
        |message: Vec<u8>| [&[0, message.len() as u8 - 3], &message[2..message.len() - 1]].concat();
    let unreadable = "a message of its cannot be read";
    let later = ToNode::Offer { versions: (9, 12), features: 0 }.encode();
    let not = |why: &str| RelayError::NotARelay(why.into());
    let cases = [
        (b"HTTP/3 400\r\n\r\n".to_vec(), not("a message of 18516 bytes is none of a relay's")),
        (vec![0xff, 0xff, 1], not("a message of 65535 bytes is none of a relay's")),
        (vec![0, 0], not(unreadable)),
        (vec![0, 1, 1], not(unreadable)),
        (cut(offer()), not(unreadable)),
        (vec![0, 2, 200, 1], not("its first words cannot be read")),
        (attached(), not("its first words cannot be read")),
        (later, RelayError::Version(9, 12)),
        ([offer(), offer()].concat(), not("its answer cannot be read")),
        ([offer(), cut(attached())].concat(), not(unreadable)),
        ([offer(), vec![0, 2, 4, 3]].concat(), RelayError::Refused(Refusal::UnknownRealm)),
        ([offer(), attached(), vec![0, 2, 6, 1]].concat(), not(unreadable)),
        (
            [offer(), attached(), vec![0x10, 1]].concat(),
            not("a message of 4097 bytes is none of a relay's"),
        ),
    ];
    for (said, expected) in cases {
        let shown = format!("{:?}", &said[..said.len().min(30)]);
        let relay = Relaying::start(move |(mut send, receive, connection)| {
            let said = said.clone();
            async move {
                send.write_all(&said).await.ok()?;
                // Until the node has heard enough of it.
                connection.closed().await;
                drop((send, receive));
                Some(())
            }
        });
        assert_eq!(relay.error().await, expected, "{shown}");
    }
}

/// A relay that asks and asks, and never takes an answer, is read no further: the node keeps nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_no_answers_is_heard_no_more() {
    let (told, mut written) = tokio::sync::mpsc::unbounded_channel();
    let relay = Relaying::start(move |(mut send, mut receive, _connection)| {
        let told = told.clone();
        async move {
            send.write_all(&[offer(), attached()].concat()).await.ok()?;
            message(&mut receive).await?;
            let claim = message(&mut receive).await?;
            let claimed = ToRelay::decode(&claim).ok()??;
            if let ToRelay::Claim { claim, .. } = claimed {
                send.write_all(&ToNode::Held(Tag::of(&claim.key)).encode()).await.ok()?;
            }
            let pings = ToNode::Ping(1).encode().repeat(100);
            let mut total = 0;
            while let Ok(Ok(())) =
                tokio::time::timeout(Duration::from_secs(2), send.write_all(&pings)).await
            {
                total += pings.len();
                assert!(total < 64 * 1024 * 1024, "it takes everything");
            }
            told.send(total).ok()?;
            drop(receive);
            Some(())
        }
    });
    let a = open("a");
    a.join_mesh(MeshConfig { relays: vec![relay.url()], ..at(&[]) }, HANG).await.unwrap();
    let total = soon("a stop", written.recv()).await.unwrap();
    assert!(total < 2 * 1024 * 1024, "{total} bytes were taken");
    soon("leaving", a.leave_mesh()).await;
}

/// A relay that lets a node in and out again is not called without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_throws_its_nodes_out_is_called_ever_less() {
    let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let relay = Relaying::start({
        let calls = calls.clone();
        move |(mut send, mut receive, _connection)| {
            calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            async move {
                send.write_all(&[offer(), attached()].concat()).await.ok()?;
                message(&mut receive).await?;
                send.write_all(&ToNode::Refused(Refusal::Replaced).encode()).await.ok()
            }
        }
    });
    let pace = macula_core::mesh::retry::Pace { interval: Duration::from_secs(1), attempts: 15 };
    let config = MeshConfig { relays: vec![relay.url()], pace, ..at(&[]) };
    // It may just be attached again when the time is over, and have no error then.
    assert!(open("a").join_mesh(config, Duration::from_secs(3)).await.is_err());
    let calls = calls.load(std::sync::atomic::Ordering::Relaxed);
    assert!((2..=6).contains(&calls), "{calls} calls in three seconds");
}
