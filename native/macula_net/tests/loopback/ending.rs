//! The ends of links: closed, dropped, shut down, killed.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::Duration;

use macula_net::{CertificateNews, Closed, Cookie, DialRequest, Incident, Node, SendState, State};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_before_a_close_arrives_before_it() {
    for (count, len) in [(1, 10), (3000, 100), (100, 30_000)] {
        let (_a, _b, to_b, to_a) = pair().await;
        let mut input = to_a.establish("a");
        let mut own = to_b.establish("b");
        let all = bodies(count, len);
        to_b.link.send(all.iter().map(|body| framed(body)), count as u64);
        to_b.link.close();
        assert_eq!(to_b.link.send([framed(b"late")], 1), SendState::Closed);
        let (read, reason) = input.rest().await;
        assert_eq!((read.len(), reason), (count, Closed::Peer), "of frames of {len} bytes");
        assert!(read == all);
        assert_eq!(own.rest().await, (vec![], Closed::Local));
    }
}

/// The sender's connection may be over long before a slow receiver has read what arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_all_before_the_close() {
    let (_a, _b, to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    let all = bodies(100, 30_000);
    to_b.link.send(all.iter().map(|body| framed(body)), 100);
    to_b.link.close();
    // Nothing says when the goodbye is here; until then this test proves less, not something else.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (read, reason) = input.rest().await;
    assert_eq!((read.len(), reason), (100, Closed::Peer));
    assert!(read == all);
}

/// The answer that ends a handshake ("nok", "alive") is followed by a close.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packet_sent_before_a_close_can_still_be_read() {
    for wait in [0, 300] {
        let (_a, _b, to_b, to_a) = pair().await;
        to_b.send_packet(b"first");
        to_b.send_packet(b"last");
        to_b.link.close();
        tokio::time::sleep(Duration::from_millis(wait)).await;
        assert_eq!(to_a.packet().await, Ok(b"first".to_vec()));
        assert_eq!(to_a.packet().await, Ok(b"last".to_vec()));
        assert_eq!(to_a.packet().await, Err(Closed::Peer));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_link_says_so_to_everyone() {
    let (_a, _b, mut to_b, mut to_a) = pair().await;
    to_b.link.close();
    for (side, reason) in [(&mut to_b, Closed::Local), (&mut to_a, Closed::Peer)] {
        let told = soon("word of the end", side.told.recv()).await;
        assert_eq!(told, Some(Told::Closed(reason.clone())));
        assert_eq!(side.packet().await, Err(reason.clone()));
        assert_eq!(side.send_packet(b"late"), SendState::Closed);
        assert!(!side.link.tick());
        assert!(side.link.stat().is_none() && side.link.info().is_none());
        // A new owner, and an inbox that comes too late, hear of it at once.
        let told = Side::new(side.link.clone()).told.recv().await;
        assert_eq!(told, Some(Told::Closed(reason.clone())));
        assert_eq!(side.establish("late").rest().await, (vec![], reason));
        side.link.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_link_is_closed() {
    let (_a, b, to_b, mut to_a) = pair().await;
    drop(to_b);
    assert_eq!(soon("the end", to_a.told.recv()).await, Some(Told::Closed(Closed::Peer)));
    // Whoever waits for a packet hears of it too.
    let (_a, _b, to_b, to_a) = pair().await;
    let (packet, ()) = tokio::join!(to_a.packet(), async { drop(to_b) });
    assert_eq!(packet, Err(Closed::Peer));
    assert!(b.links().is_empty());
}

/// A reader that waits for room must not outlive its link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_a_reader_without_room() {
    let (_a, _b, to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    to_b.link.send(bodies(60, 50_000).iter().map(|body| framed(body)), 60);
    until("a full intake", || to_a.link.info().is_some_and(|it| it.bytes_in >= 1 << 20)).await;
    to_a.link.close();
    assert!(matches!(input.input().await, Input::Readable));
    assert!(matches!(input.input().await, Input::Closed(Closed::Local)));
}

/// As above, after the peer's goodbye: what it sent still waits for room, but nobody wants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_ends_a_reader_whose_peer_is_gone_already() {
    let (_a, _b, to_b, to_a) = pair().await;
    let mut input = to_a.establish("a");
    // More than the intake takes, and less than the stream's window does beside it: the goodbye comes.
    to_b.link.send(bodies(40, 50_000).iter().map(|body| framed(body)), 40);
    to_b.link.close();
    until("the peer's goodbye", || to_a.link.stat().is_none()).await;
    to_a.link.close();
    assert!(matches!(input.input().await, Input::Readable));
    assert!(matches!(input.input().await, Input::Closed(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_delivers_and_frees_the_port() {
    // An address of its own: nobody else may take the port meanwhile.
    let ip = Some([127, 0, 78, 1].into());
    let (a, b) = (open_at(ip, 0, "a"), open("b"));
    let place = a.address();
    let (to_b, to_a) = connect(&a, &b, b.address()).await;
    let mut input = to_a.establish("a");
    let _own = to_b.establish("b");
    let all = bodies(50, 20_000);
    to_b.link.send(all.iter().map(|body| framed(body)), 50);
    soon("shutting down", a.shut_down()).await;
    // The closed endpoint and its link are still held, as by an owner that has not noticed yet.
    let again = open_at(ip, place.port(), "a2");
    assert_eq!(again.address(), place);
    let (read, reason) = input.rest().await;
    assert_eq!(reason, Closed::Peer);
    assert!(read == all, "{} of 50 frames were delivered", read.len());
    // The new life of the port is reached and reaches others.
    assert_eq!(dial(&b, &[place], "a2").await.unwrap().peer().name, "a2");
    assert!(soon("the end of accepting", a.accept()).await.is_none());
    assert!(dial(&a, &[b.address()], "b").await.is_err());
}

/// A node that opens an endpoint only to find that its name is taken: it closes at once, busy with
/// that instead of answering, and on this one thread nothing of the endpoint has run before.
#[tokio::test]
async fn shutting_down_right_away_waits_for_nobody() {
    let a = open_as("a", Mute::default());
    soon("shutting down", a.shut_down()).await;
}

/// A node that gives no cookie, nor says that it has none.
#[derive(Default)]
struct Mute(Mutex<Vec<oneshot::Sender<Cookie>>>);

impl Node for Mute {
    fn cookie(&self, _name: &str) -> oneshot::Receiver<Cookie> {
        let (asked, cookie) = oneshot::channel();
        self.0.lock().push(asked);
        cookie
    }

    fn refused(&self, _address: SocketAddr, _name: &str, _why: Incident) {}

    fn certificate(&self, _news: CertificateNews) {}

    fn relay(&self, _url: &str, _state: &State) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_is_bounded_by_a_mute_peer() {
    let (a, b) = (open("a"), open("b"));
    let through = Forwarder::new(b.address(), Duration::ZERO).await;
    let (to_b, _to_a) = connect(&a, &b, through.front).await;
    drop(through);
    to_b.link.send([framed(b"into the void")], 1);
    soon("shutting down", a.shut_down()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_up_says_goodbye() {
    let (a, _b, to_b, to_a) = pair().await;
    let (mut at_b, mut at_a) = (to_a.establish("a"), to_b.establish("b"));
    soon("hanging up", a.hang_up(HANG)).await;
    assert_eq!(at_b.rest().await.1, Closed::Peer);
    assert_eq!(at_a.rest().await.1, Closed::Local);
}

/// Ends a child however its test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // SIGKILL: the child has no chance to say anything.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PARENT: &str = "MACULA_TEST_PARENT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_is_noticed() {
    let b = open("b");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "ending::killed_peer"])
        .env(PARENT, b.address().to_string())
        .stdout(std::process::Stdio::null())
        .spawn();
    let child = Killed(child.unwrap());
    // One link in each state: idle, busy, and still in its handshake.
    let mut sides = Vec::new();
    for _ in 0..3 {
        sides.push(Side::new(soon("the child's dial", b.accept()).await.unwrap()));
    }
    // They may be accepted in another order than they were dialled in.
    let mut take = |name: &str| {
        let at = sides.iter().position(|side| side.link.peer().name == name).unwrap();
        sides.remove(at)
    };
    let (mut fresh, busy, idle) = (take("fresh"), take("busy"), take("idle"));
    let (mut from_idle, mut from_busy) = (idle.establish("a"), busy.establish("a"));
    let sending = tokio::spawn({
        let link = busy.link.clone();
        async move {
            while link.send([framed(&[7; 1000])], 1) != SendState::Closed {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    // The busy link's own frames show that the child is past its dials.
    busy.link.send([framed(b"hello")], 1);
    from_busy.frames(1).await;
    drop(child);
    let (idle, busy, packet) = tokio::join!(from_idle.rest(), from_busy.rest(), fresh.packet());
    assert_eq!(busy.1, Closed::Unreachable);
    assert_eq!(idle.1, Closed::Unreachable);
    assert_eq!(packet, Err(Closed::Unreachable));
    assert_eq!(fresh.told.recv().await, Some(Told::Closed(Closed::Unreachable)));
    soon("the sender's end", sending).await.unwrap();
    assert!(counter(&b, "unreachable") >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is the peer that a_killed_peer_is_noticed kills"]
async fn killed_peer() {
    let Ok(parent) = std::env::var(PARENT) else { return };
    let parent: SocketAddr = parent.parse().unwrap();
    let a = open("a");
    let mut held = Vec::new();
    for name in ["idle", "busy", "fresh"] {
        let request = DialRequest { name: name.into(), ..request(&[parent], "b", HANG) };
        let side = Side::new(soon("a dial", a.dial(request)).await.ok().unwrap());
        let input = side.establish("b");
        if name != "fresh" {
            side.link.send([framed(b"here")], 1);
        }
        held.push((side, input));
    }
    // Nobody kills this one when its parent was killed itself.
    tokio::time::sleep(3 * HANG).await;
}
