//! A relay of the tests' own: it attaches everybody, grants every claim, keeps what it hears, and
//! misbehaves as it is told to.
//!
//! A seed decides which datagram suffers what. A test that fails shows it; with the variable
//! `MACULA_SEED` the same deeds are done again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_core::mesh::claim::{TAG, Tag};
use macula_core::mesh::packet::{self, HEADER, Packet};
use macula_core::random::Random;
use macula_core::relay::message::{MAX_MESSAGE, ToNode, ToRelay, VERSIONS};
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use crate::support::*;

/// What a rogue can do to a datagram, or beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    /// Changes a bit of it, header included.
    Flip,
    /// Sends another one again, which passed at any time before.
    Replay,
    /// Lets up to twenty others overtake it.
    Reorder,
    Duplicate,
    Drop,
    Delay,
    /// Gives it to another node, addressed to that one or as it was.
    ToAnother,
    /// Says that it is of another node.
    FromAnother,
    Truncate,
    Lengthen,
    /// Sends something that is no packet of a relay's.
    Garble,
    /// Keeps it, and tells the sender that nobody holds the tag.
    Deny,
    /// Says something untrue on the control stream.
    Lie,
}

/// All of them.
pub const DEEDS: [Deed; 13] = [
    Deed::Flip,
    Deed::Replay,
    Deed::Reorder,
    Deed::Duplicate,
    Deed::Drop,
    Deed::Delay,
    Deed::ToAnother,
    Deed::FromAnother,
    Deed::Truncate,
    Deed::Lengthen,
    Deed::Garble,
    Deed::Deny,
    Deed::Lie,
];

/// Datagrams kept for later: the first ones, which are the oldest, and as many of the newest.
const KEPT: usize = 256;

/// The longest that a datagram is delayed: some round trips.
const LONGEST_DELAY_MS: u32 = 40;

/// The largest datagram of a narrow relay: what QUIC asks of every path (RFC 9000, 14).
const NARROW: u16 = 1200;

/// The seed of this run, which is shown when the test fails.
pub fn seed() -> u64 {
    let clock = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let given = std::env::var("MACULA_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = given.unwrap_or_else(clock);
    println!("MACULA_SEED={seed}");
    seed
}

/// The relay.
pub struct Rogue {
    /// Where it is.
    pub address: SocketAddr,
    state: Arc<State>,
    _serving: JoinSet<()>,
}

/// Everything nodes have told a relay, as it is after TLS.
#[derive(Default)]
pub struct Heard {
    pub messages: Vec<Vec<u8>>,
    pub datagrams: Vec<Vec<u8>>,
    pub certificates: Vec<Vec<u8>>,
}

struct State {
    mischief: Mutex<Mischief>,
    nodes: Mutex<Vec<Attached>>,
    heard: Mutex<Heard>,
}

struct Attached {
    connection: Connection,
    says: UnboundedSender<Vec<u8>>,
    tags: Vec<Tag>,
}

/// What is planned, and what was done.
struct Mischief {
    random: Random,
    deeds: Vec<Deed>,
    per_mille: u32,
    done: HashMap<Deed, usize>,
    past: Vec<Vec<u8>>,
    passed: usize,
    /// Datagrams that others are to overtake, and how many.
    held_back: Vec<(u32, Vec<u8>)>,
}

/// Something to send.
enum Out {
    /// A datagram for the holder of a tag, after a while.
    Datagram(Tag, Vec<u8>, Duration),
    /// A message for any node.
    Message(Vec<u8>),
}

impl Rogue {
    /// One that behaves. A narrow one has nodes split what they send.
    pub fn start(seed: u64, narrow: bool) -> Rogue {
        let mut config = quinn::EndpointConfig::default();
        if narrow {
            config.max_udp_payload_size(NARROW).unwrap();
        }
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let server = curious_server_config(&[RELAY_ALPN]);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(config, Some(server), socket, runtime).unwrap();
        let mischief = Mischief {
            random: Random::new(seed),
            deeds: Vec::new(),
            per_mille: 0,
            done: HashMap::new(),
            past: Vec::new(),
            passed: 0,
            held_back: Vec::new(),
        };
        let (nodes, heard) = (Mutex::default(), Mutex::default());
        let state = Arc::new(State { mischief: Mutex::new(mischief), nodes, heard });
        let (address, mut serving) = (endpoint.local_addr().unwrap(), JoinSet::new());
        serving.spawn({
            let state = state.clone();
            async move {
                let mut attached = JoinSet::new();
                while let Some(incoming) = endpoint.accept().await {
                    attached.spawn(state.clone().serve(incoming));
                }
            }
        });
        Rogue { address, state, _serving: serving }
    }

    /// Does one of `deeds` to `per_mille` of a thousand datagrams from now on.
    pub fn misbehave(&self, deeds: &[Deed], per_mille: u32) {
        let mut mischief = self.state.mischief.lock();
        (mischief.deeds, mischief.per_mille) = (deeds.to_vec(), per_mille);
    }

    /// How often a deed was done.
    pub fn done(&self, deed: Deed) -> usize {
        self.state.mischief.lock().done.get(&deed).copied().unwrap_or(0)
    }

    /// What it heard so far.
    pub fn heard(&self) -> Heard {
        std::mem::take(&mut self.state.heard.lock())
    }

    /// Says `bytes` to every node, `times` over.
    pub fn say(&self, bytes: &[u8], times: usize) {
        for node in &*self.state.nodes.lock() {
            let _ = node.says.send(bytes.repeat(times));
        }
    }
}

/// Where every rogue claims to see every node (RFC 5737).
pub fn observed() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 66], 666))
}

impl State {
    async fn serve(self: Arc<Self>, incoming: quinn::Incoming) {
        // A node that goes before it is attached has nothing to say.
        if let Ok(connection) = incoming.await {
            self.attend(connection).await;
        }
    }

    async fn attend(&self, connection: Connection) -> Option<()> {
        let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        self.heard.lock().certificates.extend(shown.iter().map(|shown| shown.to_vec()));
        let (send, mut receive) = connection.open_bi().await.ok()?;
        let (says, outgoing) = unbounded_channel();
        let offer = ToNode::Offer { versions: VERSIONS, features: u64::MAX };
        let _ = says.send(offer.encode());
        let speaking = speak(send, outgoing);
        let listening = async {
            let Some(ToRelay::Attach { .. }) = self.hear(&mut receive).await else { return };
            let attached =
                ToNode::Attached { features: u64::MAX, observed: observed(), time: u64::MAX };
            let _ = says.send(attached.encode());
            let node = {
                let mut nodes = self.nodes.lock();
                nodes.push(Attached { connection: connection.clone(), says, tags: Vec::new() });
                nodes.len() - 1
            };
            let passing = async {
                while let Ok(datagram) = connection.read_datagram().await {
                    self.pass(datagram.to_vec());
                }
            };
            let answering = async {
                while let Some(message) = self.hear(&mut receive).await {
                    self.answer(node, message);
                }
            };
            tokio::join!(passing, answering);
        };
        tokio::join!(speaking, listening);
        Some(())
    }

    async fn hear(&self, receive: &mut RecvStream) -> Option<ToRelay> {
        let mut len = [0; 2];
        receive.read_exact(&mut len).await.ok()?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
        assert!(message.len() <= MAX_MESSAGE);
        receive.read_exact(&mut message).await.ok()?;
        let said = ToRelay::decode(&message).unwrap();
        self.heard.lock().messages.push(message);
        said
    }

    fn answer(&self, node: usize, message: ToRelay) {
        let node = &mut self.nodes.lock()[node];
        let answer = match message {
            ToRelay::Claim { claim, .. } => {
                node.tags.push(Tag::of(&claim.key));
                ToNode::Held(Tag::of(&claim.key))
            }
            ToRelay::Ping(token) => ToNode::Pong(token),
            ToRelay::List => ToNode::Listed,
            _ => return,
        };
        let _ = node.says.send(answer.encode());
    }

    fn pass(&self, datagram: Vec<u8>) {
        self.heard.lock().datagrams.push(datagram.clone());
        let tags: Vec<Tag> = self.nodes.lock().iter().flat_map(|node| node.tags.clone()).collect();
        let outs = self.mischief.lock().treat(datagram, &tags);
        for out in outs {
            match out {
                Out::Message(message) => {
                    let nodes = self.nodes.lock();
                    let at = self.mischief.lock().below(nodes.len());
                    let _ = nodes[at].says.send(message);
                }
                Out::Datagram(to, datagram, after) => self.send(to, datagram, after),
            }
        }
    }

    fn send(&self, to: Tag, datagram: Vec<u8>, after: Duration) {
        let nodes = self.nodes.lock();
        let Some(holder) = nodes.iter().rev().find(|node| node.tags.contains(&to)) else { return };
        let (connection, datagram) = (holder.connection.clone(), Bytes::from(datagram));
        if after.is_zero() {
            // What became too large for the way is lost.
            let _ = connection.send_datagram(datagram);
            return;
        }
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = connection.send_datagram(datagram);
        });
    }
}

async fn speak(mut send: SendStream, mut outgoing: UnboundedReceiver<Vec<u8>>) {
    while let Some(message) = outgoing.recv().await {
        if send.write_all(&message).await.is_err() {
            return;
        }
    }
}

impl Mischief {
    /// What becomes of a datagram in a place where these tags are held.
    fn treat(&mut self, datagram: Vec<u8>, tags: &[Tag]) -> Vec<Out> {
        let Some(Packet::Data { to, from, .. }) = Packet::decode(&datagram) else {
            panic!("a node sent {datagram:?}");
        };
        self.keep(&datagram);
        let mut outs = self.release();
        let suffers = self.random.up_to(999) < self.per_mille;
        if !suffers || self.deeds.is_empty() {
            outs.push(Out::Datagram(to, datagram, Duration::ZERO));
            return outs;
        }
        let at = self.below(self.deeds.len());
        let deed = self.deeds[at];
        *self.done.entry(deed).or_default() += 1;
        // To whom else it could go, or who else it could be of.
        let true_one = if deed == Deed::FromAnother { from } else { to };
        let others: Vec<_> = tags.iter().filter(|tag| **tag != true_one).collect();
        let another = *others[self.below(others.len())];
        let mut changed = datagram.clone();
        let mut after = Duration::ZERO;
        let mut holder = to;
        match deed {
            Deed::Drop => return outs,
            Deed::Reorder => {
                let others = 1 + self.random.up_to(19);
                self.held_back.push((others, datagram));
                return outs;
            }
            Deed::Flip => {
                let at = self.below(changed.len());
                changed[at] ^= 1 << self.random.up_to(7);
            }
            Deed::Truncate => changed.truncate(self.below(datagram.len())),
            Deed::Lengthen => {
                let more = 1 + self.below(30);
                changed.extend(self.noise(more));
            }
            Deed::Delay => {
                let ms = 1 + self.random.up_to(LONGEST_DELAY_MS - 1);
                after = Duration::from_millis(ms.into());
            }
            Deed::FromAnother => changed[1 + TAG..HEADER].copy_from_slice(&another.0),
            Deed::ToAnother => {
                holder = another;
                if self.random.up_to(1) == 1 {
                    changed[1..=TAG].copy_from_slice(&another.0);
                }
            }
            Deed::Duplicate => outs.push(Out::Datagram(to, datagram, after)),
            Deed::Replay => {
                let at = self.below(self.past.len());
                let past = self.past[at].clone();
                if let Some(Packet::Data { to, .. }) = Packet::decode(&past) {
                    outs.push(Out::Datagram(to, past, after));
                }
            }
            Deed::Garble => {
                let mut garbage = self.noise(60);
                // Types that mean nothing.
                garbage[0] |= 4;
                outs.push(Out::Datagram(to, garbage, after));
            }
            Deed::Deny => {
                outs.push(Out::Datagram(from, packet::nobody(&to).to_vec(), after));
                return outs;
            }
            Deed::Lie => outs.push(Out::Message(self.lie(another))),
        }
        outs.push(Out::Datagram(holder, changed, after));
        outs
    }

    fn lie(&mut self, tag: Tag) -> Vec<u8> {
        let mut nobodys = Tag([0; TAG]);
        nobodys.0.copy_from_slice(&self.noise(TAG));
        let number = self.random.up_to(u32::MAX).into();
        let message = match self.random.up_to(12) {
            0 => ToNode::Held(nobodys),
            1 => ToNode::Held(tag),
            2 => ToNode::Taken(tag),
            3 => ToNode::Entry { tag, sealed: self.noise(50).into() },
            4 => ToNode::Listed,
            5 => ToNode::Slowed,
            6 => ToNode::Ping(number),
            7 => ToNode::Pong(number),
            8 => ToNode::Restarting,
            9 => ToNode::Attached { features: number, observed: observed(), time: number },
            10 => ToNode::Stale { tag, newest: number },
            11 => ToNode::Peered { features: number },
            // Of a later version.
            _ => return vec![0, 2, 200, 1],
        };
        message.encode()
    }

    fn keep(&mut self, datagram: &[u8]) {
        if self.past.len() < 2 * KEPT {
            self.past.push(datagram.to_vec());
        } else {
            self.past[KEPT + self.passed % KEPT] = datagram.to_vec();
        }
        self.passed += 1;
    }

    /// Those that were overtaken often enough.
    fn release(&mut self) -> Vec<Out> {
        self.held_back.iter_mut().for_each(|(others, _)| *others -= 1);
        let (over, held): (Vec<_>, _) =
            self.held_back.drain(..).partition(|(others, _)| *others == 0);
        self.held_back = held;
        let out = |datagram: Vec<u8>| match Packet::decode(&datagram) {
            Some(Packet::Data { to, .. }) => Some(Out::Datagram(to, datagram, Duration::ZERO)),
            _ => None,
        };
        over.into_iter().filter_map(|(_, datagram)| out(datagram)).collect()
    }

    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.random.up_to(255) as u8).collect()
    }

    fn below(&mut self, len: usize) -> usize {
        self.random.up_to(len as u32 - 1) as usize
    }
}
