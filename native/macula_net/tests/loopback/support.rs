//! What the tests share: endpoints, both sides of a link, and a forwarder.

use std::collections::HashMap;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use macula_core::dist::frame::{self, Piece};
use macula_core::dist::signal::Sender;
use macula_net::{
    CertificateNews, Closed, Cookie, DialError, DialRequest, Endpoint, EndpointConfig, Inbox,
    Incident, Link, Node, Owner, PacketWaiter, SendState, State, Stream,
};
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub use macula_net::Way;

#[path = "../shared/foreign.rs"]
mod foreign;
pub use foreign::{
    ALPN, RELAY_ALPN, client_config, client_config_with_id, curious_server_config, foreign_client,
    foreign_server,
};

/// What takes longer hangs.
pub const HANG: Duration = Duration::from_secs(20);

/// The result of `future`, which must come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANG, future).await {
        Ok(result) => result,
        Err(_) => panic!("{what} takes for ever"),
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// An endpoint of the node `name` on a free port of 127.0.0.1.
pub fn open(name: &str) -> Endpoint {
    open_at(Some(Ipv4Addr::LOCALHOST.into()), 0, name)
}

/// An endpoint of the node `name` at a certain place.
pub fn open_at(ip: Option<IpAddr>, port: u16, name: &str) -> Endpoint {
    Endpoint::open(&config(ip, port, name), std::sync::Arc::new(Knows(COOKIE))).unwrap()
}

/// The configuration of the node `name`, with nothing but what it needs.
pub fn config(ip: Option<IpAddr>, port: u16, name: &str) -> EndpointConfig {
    EndpointConfig { ip, ports: vec![port], name: name.into(), ..EndpointConfig::default() }
}

/// An endpoint of the node `name` that belongs to `node`.
pub fn open_as(name: &str, node: impl Node) -> Endpoint {
    Endpoint::open(&config(Some(Ipv4Addr::LOCALHOST.into()), 0, name), Arc::new(node)).unwrap()
}

/// The cookie of the tests' nodes.
pub const COOKIE: &[u8] = b"cookie";

/// A node that shares one cookie with everybody.
pub struct Knows(pub &'static [u8]);

impl Node for Knows {
    fn cookie(&self, _name: &str) -> oneshot::Receiver<Cookie> {
        let (answer, cookie) = oneshot::channel();
        let _ = answer.send(Cookie::new(self.0.to_vec()));
        cookie
    }

    fn refused(&self, _address: SocketAddr, _name: &str, _why: Incident) {}

    fn certificate(&self, _news: CertificateNews) {}

    fn relay(&self, _url: &str, _state: &State) {}
}

/// A request of the node "a".
pub fn request(addresses: &[SocketAddr], target: &str, limit: Duration) -> DialRequest {
    DialRequest {
        ways: addresses.iter().copied().map(Way::Address).collect(),
        name: "a".into(),
        target: target.into(),
        cookie: Cookie::new(COOKIE.to_vec()),
        limit,
    }
}

/// Dials as the node "a".
pub async fn dial(
    from: &Endpoint,
    addresses: &[SocketAddr],
    target: &str,
) -> Result<Arc<Link>, Vec<(SocketAddr, DialError)>> {
    let dialled = from.dial(request(addresses, target, HANG));
    // Its own limit is the same; the outer bound must not come first.
    let dialled = tokio::time::timeout(2 * HANG, dialled).await.expect("a dial outlives its limit");
    let address = |way| match way {
        Way::Address(address) => address,
        Way::Mesh => panic!("no mesh was dialled"),
    };
    dialled.map_err(|failures| {
        failures.into_iter().map(|(way, error)| (address(way), error)).collect()
    })
}

/// Why a dial of one address failed.
pub async fn failure(from: &Endpoint, address: SocketAddr, limit: Duration) -> DialError {
    let dialled = from.dial(request(&[address], "b", limit));
    let mut failures = soon("a dial", dialled).await.err().expect("dialled what is not there");
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].0, Way::Address(address));
    failures.remove(0).1
}

/// The count `name` of an endpoint.
pub fn counter(endpoint: &Endpoint, name: &str) -> u64 {
    endpoint.counters().iter().find(|(counter, _)| *counter == name).unwrap().1
}

/// What an owner hears.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    Writable,
    Resume(Vec<Sender>),
    Closed(Closed),
}

/// What an inbox hears.
#[derive(Debug)]
pub enum Input {
    Readable,
    Closed(Closed),
}

struct Ear(UnboundedSender<Told>);

// A test that looks no further drops its receiver: nobody minds what comes then.
impl Owner for Ear {
    fn writable(&self) {
        let _ = self.0.send(Told::Writable);
    }

    fn resume(&self, senders: Vec<Sender>) {
        let _ = self.0.send(Told::Resume(senders));
    }

    fn closed(&self, reason: &Closed) {
        let _ = self.0.send(Told::Closed(reason.clone()));
    }
}

struct Mailbox(UnboundedSender<Input>);

impl Inbox for Mailbox {
    fn readable(&self) {
        let _ = self.0.send(Input::Readable);
    }

    fn closed(&self, reason: &Closed) {
        let _ = self.0.send(Input::Closed(reason.clone()));
    }
}

struct Asker(tokio::sync::oneshot::Sender<Result<Vec<u8>, Closed>>);

impl PacketWaiter for Asker {
    fn packet(self: Box<Self>, packet: &[u8]) {
        let _ = self.0.send(Ok(packet.to_vec()));
    }

    fn closed(self: Box<Self>, reason: &Closed) {
        let _ = self.0.send(Err(reason.clone()));
    }
}

/// The input of an established link.
pub struct Reader {
    link: Arc<Link>,
    input: UnboundedReceiver<Input>,
    /// The frame begun of each stream.
    begun: HashMap<Stream, Vec<u8>>,
}

/// One side of a link: owned from the start, and established when a test says so.
pub struct Side {
    pub link: Arc<Link>,
    pub told: UnboundedReceiver<Told>,
}

impl Side {
    pub fn new(link: Arc<Link>) -> Side {
        let (sender, told) = unbounded_channel();
        link.set_owner(Box::new(Ear(sender)));
        Side { link, told }
    }

    /// Sends a handshake packet.
    pub fn send_packet(&self, packet: &[u8]) -> SendState {
        let mut bytes = BytesMut::new();
        bytes.put_u16(packet.len().try_into().unwrap());
        bytes.put_slice(packet);
        self.link.send_packet(bytes.freeze())
    }

    /// The next handshake packet.
    pub async fn packet(&self) -> Result<Vec<u8>, Closed> {
        let (sender, packet) = tokio::sync::oneshot::channel();
        self.link.receive_packet(Box::new(Asker(sender)));
        soon("a packet", packet).await.expect("an asker was forgotten")
    }

    /// Establishes the link with the node `name`.
    pub fn establish(&self, name: &str) -> Reader {
        let (sender, input) = unbounded_channel();
        self.link.establish(name.into(), Mailbox(sender));
        Reader { link: self.link.clone(), input, begun: HashMap::new() }
    }

    /// Sends frames, pausing when told so.
    pub async fn send(&mut self, frames: impl IntoIterator<Item = Bytes>) {
        for frame in frames {
            match self.link.send([frame], 1) {
                SendState::Ready => {}
                SendState::Wait => self.writable().await,
                SendState::Closed => panic!("closed while sending"),
            }
        }
    }

    pub async fn writable(&mut self) {
        assert_eq!(soon("resuming", self.told.recv()).await, Some(Told::Writable));
    }
}

impl Reader {
    /// The next that it hears.
    pub async fn input(&mut self) -> Input {
        soon("input", self.input.recv()).await.expect("an inbox was dropped without a word")
    }

    /// Whether it has heard of anything.
    pub fn has_heard(&mut self) -> bool {
        self.input.try_recv().is_ok()
    }

    /// Some `most` bytes of frames, and whether there are more.
    pub fn take(&mut self, most: usize) -> (Vec<Vec<u8>>, bool) {
        let (mut frames, begun) = (Vec::new(), &mut self.begun);
        let more = self.link.receive(most, |stream, piece| match piece {
            Piece::Start(len) => drop(begun.insert(stream, Vec::with_capacity(len))),
            Piece::Body(bytes) => begun.entry(stream).or_default().extend_from_slice(bytes),
            Piece::End => frames.extend(begun.remove(&stream)),
            Piece::Tick => {}
        });
        (frames, more)
    }

    /// All that is there.
    pub fn take_all(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let (frames, more) = self.take(50_000);
            all.extend(frames);
            if !more {
                return all;
            }
        }
    }

    /// The next `count` frames.
    pub async fn frames(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.input().await {
                Input::Closed(reason) => panic!("{reason:?} after {} frames", all.len()),
                Input::Readable => all.extend(self.take_all()),
            }
        }
        assert_eq!(all.len(), count);
        all
    }

    /// All frames up to the end and its reason.
    pub async fn rest(&mut self) -> (Vec<Vec<u8>>, Closed) {
        let mut all = Vec::new();
        loop {
            match self.input().await {
                Input::Closed(reason) => return (all, reason),
                Input::Readable => all.extend(self.take_all()),
            }
        }
    }
}

/// A frame with its header.
pub fn framed(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_slice(&frame::header(body.len()).unwrap());
    frame.put_slice(body);
    frame.freeze()
}

/// The body of the `n`th frame: told apart from its neighbours even when bytes get lost.
pub fn body(n: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (n.wrapping_mul(31) ^ at ^ (at >> 8)) as u8).collect()
}

/// `count` bodies of `len` bytes.
pub fn bodies(count: usize, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| body(n, len)).collect()
}

/// Both ends of a link from `a` to the node "b" at `b`.
pub async fn connect(a: &Endpoint, b: &Endpoint, address: SocketAddr) -> (Side, Side) {
    let addresses = [address];
    both(dial(a, &addresses, "b"), b).await
}

/// Both ends of the link that is dialled, as `to` accepts it. Why it came to nothing is what a failed
/// dial says: nothing is accepted then.
pub async fn both<E: Debug>(
    dial: impl Future<Output = Result<Arc<Link>, E>>,
    to: &Endpoint,
) -> (Side, Side) {
    let accepted = async { Ok(soon("an accept", to.accept()).await.unwrap()) };
    let (dialled, accepted) = tokio::try_join!(dial, accepted).unwrap();
    (Side::new(dialled), Side::new(accepted))
}

/// Two endpoints, "a" and "b", and both ends of a link from a to b.
pub async fn pair() -> (Endpoint, Endpoint, Side, Side) {
    let (a, b) = (open("a"), open("b"));
    let (to_b, to_a) = connect(&a, &b, b.address()).await;
    (a, b, to_b, to_a)
}

/// A UDP socket on loopback and its address.
pub async fn udp() -> (Arc<UdpSocket>, SocketAddr) {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    (Arc::new(socket), address)
}

/// Forwards datagrams between `near` (whose address is learned) and `far`.
pub struct Forwarder {
    ends: Arc<Ends>,
    /// Where the near side sends to.
    pub front: SocketAddr,
    /// Where the far side saw the near side at first.
    pub back: SocketAddr,
    tasks: Mutex<JoinSet<()>>,
}

struct Ends {
    front: Arc<UdpSocket>,
    /// The last one is in use.
    backs: Mutex<Vec<Arc<UdpSocket>>>,
    near: OnceLock<SocketAddr>,
    far: Mutex<Option<SocketAddr>>,
    delay: Duration,
}

impl Forwarder {
    /// A forwarder to `far` that holds each datagram back for `delay`.
    pub async fn new(far: SocketAddr, delay: Duration) -> Forwarder {
        let ((front, front_at), (back, back_at)) = (udp().await, udp().await);
        let (backs, far) = (Mutex::new(vec![back.clone()]), Mutex::new(Some(far)));
        let ends = Arc::new(Ends { front, backs, near: OnceLock::new(), far, delay });
        let mut tasks = JoinSet::new();
        tasks.spawn(forth(ends.clone()));
        tasks.spawn(ends.clone().back_from(back));
        Forwarder { ends, front: front_at, back: back_at, tasks: Mutex::new(tasks) }
    }

    /// From now on this address, or nobody, is the far side.
    pub fn turn(&self, far: Option<SocketAddr>) {
        *self.ends.far.lock() = far;
    }

    /// From now on the far side sees the near side at another address, as when a NAT has forgotten
    /// it; nothing that is sent to the former one arrives.
    pub async fn rebind(&self) -> SocketAddr {
        let (back, back_at) = udp().await;
        self.ends.backs.lock().push(back.clone());
        self.tasks.lock().spawn(self.ends.clone().back_from(back));
        back_at
    }
}

impl Ends {
    fn back(&self) -> Arc<UdpSocket> {
        self.backs.lock().last().unwrap().clone()
    }

    async fn back_from(self: Arc<Self>, back: Arc<UdpSocket>) {
        let mut buffer = vec![0; 65536];
        loop {
            // An ICMP report about an earlier datagram is no reason to stop.
            let Ok((len, source)) = back.recv_from(&mut buffer).await else { continue };
            let in_use = Arc::ptr_eq(&back, &self.back()) && *self.far.lock() == Some(source);
            if let Some(near) = self.near.get().filter(|_| in_use) {
                self.pass(self.front.clone(), &buffer[..len], *near).await;
            }
        }
    }

    async fn pass(&self, by: Arc<UdpSocket>, datagram: &[u8], to: SocketAddr) {
        if self.delay.is_zero() {
            let _ = by.send_to(datagram, to).await;
            return;
        }
        let (delay, datagram) = (self.delay, datagram.to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = by.send_to(&datagram, to).await;
        });
    }
}

async fn forth(ends: Arc<Ends>) {
    let mut buffer = vec![0; 65536];
    loop {
        let Ok((len, source)) = ends.front.recv_from(&mut buffer).await else { continue };
        ends.near.get_or_init(|| source);
        let far = *ends.far.lock();
        if let Some(far) = far {
            ends.pass(ends.back(), &buffer[..len], far).await;
        }
    }
}
