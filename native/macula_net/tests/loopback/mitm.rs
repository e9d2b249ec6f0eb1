//! Attackers who terminate TLS: somebody in the middle, with any certificate, between nodes that
//! accept any certificate. Only the hello stands between them and the distribution.
//!
//! The attackers are plain QUIC peers of the tests; they know the protocol, and everything that was
//! ever said on their own connections, but not the cookie.

use std::net::SocketAddr;
use std::time::Duration;

use macula_core::hello::{self, BootId, Dialler, Local, Refusal, Step};
use macula_core::keys::{self, CookieKey};
use macula_net::{CertificateNews, Cookie, DialError, DialRequest, Endpoint, Incident, Node};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::oneshot;

use crate::support::*;

const OFFER: u8 = 1;
const CLAIM: u8 = 2;
const WELCOME: u8 = 3;
const REFUSED: u8 = 4;

/// What stands before the nonce in an OFFER: its length, its type, `macula`, versions, features.
const BEFORE_NONCE: usize = 2 + 1 + 6 + 2 + 8;

/// A proof at the end of a message: its kind, its length and a MAC.
const PROOF: usize = 1 + 2 + keys::LEN;

/// An attacker's end of a connection to a node, and its one stream.
struct Leg {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    _endpoint: quinn::Endpoint,
}

impl Leg {
    /// Calls the node at `address`, as a dialler does.
    async fn to(address: SocketAddr) -> Leg {
        let endpoint = foreign_client();
        let connecting = endpoint.connect(address, "b").unwrap();
        let connection = soon("a connection", connecting).await.unwrap();
        let (send, receive) = soon("a stream", connection.accept_bi()).await.unwrap();
        Leg { connection, send, receive, _endpoint: endpoint }
    }

    /// Takes the call of a node that takes `server` for another one.
    async fn from(server: &quinn::Endpoint) -> Leg {
        let incoming = soon("a call", server.accept()).await.unwrap();
        let connection = soon("a handshake", incoming.into_future()).await.unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        Leg { connection, send, receive, _endpoint: server.clone() }
    }

    /// The next hello message as it stands on the wire; none when there will be no more.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        let mut message = vec![0; 2];
        soon("a message", self.receive.read_exact(&mut message)).await.ok()?;
        let len = usize::from(u16::from_be_bytes([message[0], message[1]]));
        message.resize(2 + len, 0);
        soon("its rest", self.receive.read_exact(&mut message[2..])).await.ok()?;
        Some(message)
    }

    async fn say(&mut self, message: &[u8]) {
        self.send.write_all(message).await.unwrap();
    }

    /// All that still comes, up to the end of the stream or of the connection.
    async fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut chunk = [0; 1024];
        while let Ok(Some(len)) = soon("the end", self.receive.read(&mut chunk)).await {
            all.extend_from_slice(&chunk[..len]);
        }
        all
    }

    /// The rest must be this one refusal.
    async fn refused(&mut self, why: u8) {
        assert_eq!(self.rest().await, [0, 2, REFUSED, why]);
    }

    /// What binds a hello to this connection.
    fn exporter(&self) -> [u8; keys::LEN] {
        let mut exporter = [0; keys::LEN];
        let label = b"EXPORTER-macula-hello-v1";
        self.connection.export_keying_material(&mut exporter, label, b"").unwrap();
        exporter
    }

    /// A dialler of the tests on this leg: it is as good as its `cookie`.
    fn dialler(&self, name: &str, target: &str) -> Dialler {
        let local = Local {
            name: name.into(),
            boot_id: [9; 16],
            features: 0,
            streams: 1,
            nonce: [7; 32],
            exporter: self.exporter(),
        };
        Dialler::new(local, target.into())
    }
}

const PROOF_REFUSED: u8 = 3;
const MALFORMED: u8 = 4;

fn key(cookie: &[u8]) -> CookieKey {
    CookieKey::stretch(&keys::base(cookie)).unwrap()
}

fn kind(message: &Option<Vec<u8>>) -> Option<u8> {
    message.as_ref().map(|message| message[2])
}

fn framed(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut message = (body.len() as u16 + 1).to_be_bytes().to_vec();
    message.push(kind);
    message.extend(body);
    message
}

/// The claim of a dialler that holds `key`, in answer to `offer`.
fn claim(dialler: &mut Dialler, offer: &[u8], key: &CookieKey) -> Vec<u8> {
    match dialler.receive(&offer[2..], key) {
        Step::Reply(claim) => claim,
        other => panic!("{other:?}"),
    }
}

/// A WELCOME with this proof; its fields are such as a dialler may accept.
fn welcome(boot_id: BootId, proof: &[u8]) -> Vec<u8> {
    framed(WELCOME, &[&boot_id, &0u64.to_be_bytes(), &[1], proof])
}

/// A dial of the node "b", which is thought to be at `address`; it must fail with `why`.
async fn dial_fails(from: &Endpoint, address: SocketAddr, why: Refusal) {
    assert_eq!(failure(from, address, HANG).await, DialError::Refused(why));
}

/// No link came of any of it on `endpoint`, and a good node still gets in.
async fn nobody_got_in(endpoint: &Endpoint, name: &str) {
    let good = open("good");
    let request = DialRequest { name: "good".into(), ..request(&[endpoint.address()], name, HANG) };
    let (_, to_good) = both(good.dial(request), endpoint).await;
    assert_eq!(to_good.link.peer().name, "good");
}

/// The plain man in the middle: two connections, every byte passed on between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_everything_on_gets_nobody_past_the_hello() {
    let (a, b) = (open("a"), open("b"));
    let (server, address) = foreign_server(&[ALPN]);
    let middle = async {
        let (mut to_a, mut to_b) = (Leg::from(&server).await, Leg::to(b.address()).await);
        let mut heard = Vec::new();
        for from_b in [true, false, true] {
            let (from, to) = if from_b { (&mut to_b, &mut to_a) } else { (&mut to_a, &mut to_b) };
            let message = from.hear().await.unwrap();
            to.say(&message).await;
            heard.push(message[2]);
        }
        // That was all that either of them had to say.
        assert_eq!(heard, [OFFER, CLAIM, REFUSED]);
        assert!(to_b.rest().await.is_empty() && to_a.rest().await.is_empty());
    };
    tokio::join!(dial_fails(&a, address, Refusal::Proof), middle);
    nobody_got_in(&b, "b").await;
}

/// The man in the middle keeps the refusal to himself and welcomes the dialler on his own account,
/// while he begins with the acceptor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answering_in_anothers_stead_convinces_nobody() {
    let (a, b) = (open("a"), open("b"));
    let (server, address) = foreign_server(&[ALPN]);
    let middle = async {
        let (mut to_a, mut to_b) = (Leg::from(&server).await, Leg::to(b.address()).await);
        to_a.say(&to_b.hear().await.unwrap()).await;
        let claim = to_a.hear().await.unwrap();
        to_b.say(&claim).await;
        to_b.say(&hello::begin()).await;
        to_b.refused(PROOF_REFUSED).await;
        to_a.say(&welcome([3; 16], &framed_proof(&[0x55; keys::LEN]))).await;
        assert!(to_a.rest().await.is_empty());
    };
    tokio::join!(dial_fails(&a, address, Refusal::Proof), middle);
    nobody_got_in(&b, "b").await;
}

fn framed_proof(mac: &[u8]) -> Vec<u8> {
    [&[1], &(mac.len() as u16).to_be_bytes()[..], mac].concat()
}

/// The dialler's own proof as the acceptor's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_sent_back_is_none() {
    let a = open("a");
    let (server, address) = foreign_server(&[ALPN]);
    let (_, offer) = hello::Acceptor::new(Local {
        name: "b".into(),
        boot_id: [3; 16],
        features: 0,
        streams: 1,
        nonce: [4; 32],
        exporter: [0; keys::LEN],
    });
    let mirror = async {
        let mut to_a = Leg::from(&server).await;
        to_a.say(&offer).await;
        let claim = to_a.hear().await.unwrap();
        to_a.say(&welcome([3; 16], &claim[claim.len() - PROOF..])).await;
        assert!(to_a.rest().await.is_empty());
    };
    tokio::join!(dial_fails(&a, address, Refusal::Proof), mirror);
    // The whole claim sent back is no message that may come now.
    let mirror = async {
        let mut to_a = Leg::from(&server).await;
        to_a.say(&offer).await;
        let claim = to_a.hear().await.unwrap();
        to_a.say(&claim).await;
        assert!(to_a.rest().await.is_empty());
    };
    let (error, ()) = tokio::join!(failure(&a, address, HANG), mirror);
    assert!(matches!(error, DialError::NotMacula(_)), "{error:?}");
}

/// A node that dials its own name is given its own accepting side to talk to: all names, keys and
/// nonces are right, but it is talking to itself over two connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_its_own_peer() {
    let b = open("b");
    let (server, address) = foreign_server(&[ALPN]);
    let middle = async {
        let (mut caller, mut called) = (Leg::from(&server).await, Leg::to(b.address()).await);
        caller.say(&called.hear().await.unwrap()).await;
        called.say(&caller.hear().await.unwrap()).await;
        called.refused(PROOF_REFUSED).await;
        caller.say(&[0, 2, REFUSED, PROOF_REFUSED]).await;
        caller.rest().await;
    };
    let request = DialRequest { name: "b".into(), ..request(&[address], "b", HANG) };
    let (dialled, ()) = tokio::join!(b.dial(request), middle);
    let refused = DialError::Refused(Refusal::Proof);
    assert_eq!(dialled.err().unwrap(), vec![(Way::Address(address), refused)]);
    nobody_got_in(&b, "b").await;
}

/// What a stranger makes of an OFFER.
type Answer = fn(&[u8]) -> Vec<u8>;

/// Each side hears what only the other side may say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_roles_are_refused() {
    let b = open("b");
    // To the acceptor its own OFFER, the WELCOME of an acceptor, and the end before the beginning.
    let messages: [Answer; 4] = [
        |offer| offer.to_vec(),
        |_| welcome([3; 16], &framed_proof(&[0x55; keys::LEN])),
        |_| hello::begin(),
        |_| vec![0, 2, REFUSED, PROOF_REFUSED],
    ];
    for message in messages {
        let mut stranger = Leg::to(b.address()).await;
        let offer = stranger.hear().await.unwrap();
        stranger.say(&message(&offer)).await;
        stranger.refused(MALFORMED).await;
    }
    // To the dialler a CLAIM, and the choice that only it may make.
    let (server, address) = foreign_server(&[ALPN]);
    let name = framed(CLAIM, &[&[1], &[0; 8], &[1], &[2; 32], &[3; 16], b"\0\x01b\0\x01a"]);
    for message in [name, hello::begin(), welcome([3; 16], &framed_proof(&[0; 32]))] {
        let swapped = async {
            let mut to_a = Leg::from(&server).await;
            to_a.say(&message).await;
            assert!(to_a.rest().await.is_empty());
        };
        let a = open("a");
        let (error, ()) = tokio::join!(failure(&a, address, HANG), swapped);
        assert!(matches!(error, DialError::NotMacula(_)), "{error:?}");
    }
    nobody_got_in(&b, "b").await;
}

/// A hello that once succeeded, recorded whole, and said again: on the same connection, and on
/// another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_hello_opens_nothing() {
    let (a, b, key) = (open("a"), open("b"), key(COOKIE));
    let mut good = Leg::to(b.address()).await;
    let offer = good.hear().await.unwrap();
    let mut dialler = good.dialler("recorded", "b");
    let claim = claim(&mut dialler, &offer, &key);
    good.say(&claim).await;
    let welcome = good.hear().await;
    assert_eq!(kind(&welcome), Some(WELCOME), "the recorded hello must be a good one");
    let welcome = welcome.unwrap();
    assert!(matches!(dialler.receive(&welcome[2..], &key), Step::Done(_)));
    good.say(&claim).await;
    good.refused(MALFORMED).await;

    let mut replay = Leg::to(b.address()).await;
    replay.hear().await.unwrap();
    replay.say(&claim).await;
    replay.say(&hello::begin()).await;
    replay.refused(PROOF_REFUSED).await;

    // And what the acceptor said, to a dialler.
    let (server, address) = foreign_server(&[ALPN]);
    let replaying = async {
        let mut to_a = Leg::from(&server).await;
        to_a.say(&offer).await;
        assert_eq!(kind(&to_a.hear().await), Some(CLAIM));
        to_a.say(&welcome).await;
        assert!(to_a.rest().await.is_empty());
    };
    tokio::join!(dial_fails(&a, address, Refusal::Proof), replaying);
    nobody_got_in(&b, "b").await;
}

/// A claim for one connection and one offer holds for no other, although the cookie is right: what
/// is bound are the keying material, the nonce and every field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_holds_for_its_connection_and_its_offer_only() {
    let (b, key) = (open("b"), key(COOKIE));
    let (mut first, mut second) = (Leg::to(b.address()).await, Leg::to(b.address()).await);
    let (offer, other) = (first.hear().await.unwrap(), second.hear().await.unwrap());
    assert_ne!(offer, other);
    // The other connection's keying material, then the other connection's nonce.
    let claims = [
        claim(&mut second.dialler("a", "b"), &offer, &key),
        claim(&mut first.dialler("a", "b"), &other, &key),
    ];
    for (leg, claim) in [&mut first, &mut second].into_iter().zip(&claims) {
        leg.say(claim).await;
        leg.refused(PROOF_REFUSED).await;
    }
    nobody_got_in(&b, "b").await;
}

/// What a stranger says after the OFFER; none of it proves anything.
type Script = fn(&Leg, &[u8]) -> Vec<u8>;

const SCRIPTS: [(&str, Script); 8] = [
    ("a claim under another cookie", |leg, offer| {
        claim(&mut leg.dialler("a", "b"), offer, &key(b"a guess"))
    }),
    ("the same for a node that is not there", |leg, offer| {
        claim(&mut leg.dialler("a", "nobody"), offer, &key(b"a guess"))
    }),
    ("the same without a name", |leg, offer| {
        claim(&mut leg.dialler("", "b"), offer, &key(b"a guess"))
    }),
    ("a proof that is too short", |leg, offer| {
        let claim = claim(&mut leg.dialler("a", "b"), offer, &key(b"a guess"));
        framed(CLAIM, &[&claim[3..claim.len() - PROOF], &[1, 0, 0]])
    }),
    ("a proof of an unknown kind", |leg, offer| {
        let claim = claim(&mut leg.dialler("a", "b"), offer, &key(b"a guess"));
        framed(CLAIM, &[&claim[3..claim.len() - PROOF], &[2, 0, 1, 0]])
    }),
    ("a claim of another version", |_, _| {
        framed(CLAIM, &[&[9], &[0; 8], &[1], &[2; 32], &[3; 16], b"\0\x01a\0\x01b", &[1, 0, 0]])
    }),
    ("garbage", |_, _| b"\0\x20GET / HTTP/3 and more of the kind".to_vec()),
    ("a length beyond any hello's", |_, _| vec![0xff, 0xff, 2]),
];

/// Everything a stranger receives from an endpoint: the OFFER with its nonce blanked, what follows
/// it, and how the connection ended.
async fn received(endpoint: &Endpoint, script: Script) -> (Vec<u8>, Vec<u8>, String) {
    let mut stranger = Leg::to(endpoint.address()).await;
    let mut offer = stranger.hear().await.unwrap();
    let said = script(&stranger, &offer);
    stranger.say(&said).await;
    let rest = stranger.rest().await;
    let end = soon("the end", stranger.connection.closed()).await;
    let nonce = offer[BEFORE_NONCE..].len();
    assert_eq!(nonce, 32, "nothing stands behind the nonce");
    offer[BEFORE_NONCE..].fill(0);
    (offer, rest, format!("{end:?}"))
}

/// Two nodes of different names and cookies: whatever a stranger says who proves nothing, he gets
/// the same bytes from both, but for the nonce.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_receives_nothing_that_depends_on_cookie_or_name() {
    let (b, c) = (open("b"), open_as("quite_another@host.example", Knows(b"quite another cookie")));
    for (what, script) in SCRIPTS {
        let (from_b, from_c) = (received(&b, script).await, received(&c, script).await);
        assert_eq!(from_b, from_c, "{what}");
        let (offer, rest, _) = from_b;
        assert_eq!(offer[2..9], *b"\x01macula", "{what}");
        assert!(
            rest.is_empty() || (rest.len() == 4 && rest[..3] == [0, 2, REFUSED]),
            "{what}: {rest:?}"
        );
    }
    nobody_got_in(&b, "b").await;
    // What tells the two apart is there to be found: a holder of the cookie is welcomed by one.
    let welcomed: Script = |leg, offer| claim(&mut leg.dialler("a", "b"), offer, &key(COOKIE));
    let mut friend = Leg::to(b.address()).await;
    let offer = friend.hear().await.unwrap();
    friend.say(&welcomed(&friend, &offer)).await;
    assert_eq!(kind(&friend.hear().await), Some(WELCOME));
    let mut stranger = Leg::to(c.address()).await;
    let offer = stranger.hear().await.unwrap();
    stranger.say(&welcomed(&stranger, &offer)).await;
    assert_eq!(kind(&stranger.hear().await), Some(REFUSED));
}

/// The certificate that a stranger sees names no node either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_names_no_node() {
    let c = open_as("quite_another@host.example", Knows(COOKIE));
    let stranger = Leg::to(c.address()).await;
    let identity = stranger.connection.peer_identity().unwrap();
    let chain = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap();
    assert_eq!(chain.len(), 1);
    for word in [&b"quite_another"[..], b"host.example"] {
        assert!(!chain[0].windows(word.len()).any(|bytes| bytes == word));
    }
}

/// A stranger who never says who he is: the OFFER, and then nothing until he is put out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_stranger_is_put_out() {
    let b = open("b");
    let mut stranger = Leg::to(b.address()).await;
    assert_eq!(kind(&stranger.hear().await), Some(OFFER));
    assert!(stranger.rest().await.is_empty());
    until("its end", || counter(&b, "failed_hellos") == 1).await;
    nobody_got_in(&b, "b").await;
}

/// A node that is too busy to say which cookie it shares with whom.
struct Ponders;

impl Node for Ponders {
    fn cookie(&self, _name: &str) -> oneshot::Receiver<Cookie> {
        let (answer, cookie) = oneshot::channel();
        // Kept, and never used.
        std::mem::forget(answer);
        cookie
    }

    fn refused(&self, _address: SocketAddr, _name: &str, _why: Incident) {}

    fn certificate(&self, _news: CertificateNews) {}

    fn relay(&self, _url: &str, _state: &macula_net::State) {}
}

/// Strangers may send what a hello needs and not much more. What nobody reads yet would otherwise
/// fill the memory of a node, a window for each of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_make_a_node_hold_much() {
    const MUCH: usize = 256 * 1024;
    let b = open_as("b", Ponders);
    let mut stranger = Leg::to(b.address()).await;
    let offer = stranger.hear().await.unwrap();
    stranger.say(&claim(&mut stranger.dialler("a", "b"), &offer, &key(b"a guess"))).await;
    let mut taken = 0;
    let filling = async {
        while let Ok(len) = stranger.send.write(&[0x55; 16 * 1024]).await {
            taken += len;
        }
    };
    // It takes what it takes at once, and the rest when the node reads.
    let _ = tokio::time::timeout(Duration::from_secs(2), filling).await;
    assert!(taken <= MUCH, "{taken} bytes were taken");
}
