//! The mesh socket: one UDP port under quinn, which decides per label where datagrams go.
//!
//! The addresses quinn sees are labels, always in IPv6 form; `paths` knows which path a label's
//! datagrams take at present. Datagrams that are not QUIC are told apart here and never reach quinn.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use macula_core::path::demux::{self, Kind};
use macula_core::path::select::Path;
use macula_core::path::stun;
use nix::errno::Errno;
use parking_lot::RwLock;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;

use crate::answers::Answers;
use crate::courtesy;
use crate::hops::{self, Hop};
use crate::mesh::{Tunnels, is_label};
use crate::paths::{LinkPaths, Output, Paths};

/// Socket buffers asked for, in bytes: enough for some ms of full rate while the runtime is busy.
/// The kernel may grant less (`net.core.rmem_max`).
const BUFFER: usize = 4 * 1024 * 1024;

/// Receive errors taken in a row before the event loop gets its turn again.
const ERRORS_IN_A_ROW: u32 = 32;

/// What happened on the port, by reason; datagrams unless said otherwise.
#[derive(Debug, Default)]
pub struct Counters {
    /// Not sent: the system refused (no route, interface gone, too large).
    pub send_errors: AtomicU64,
    /// Receive calls that failed and were tried again.
    pub receive_errors: AtomicU64,
    /// STUN messages: a relay answers the requests among them.
    pub stun: AtomicU64,
    /// Sealed packets that are about no link here, or not genuine.
    pub sealed: AtomicU64,
    /// Neither QUIC nor anything of ours.
    pub unknown: AtomicU64,
    /// ICMP "port unreachable" reports.
    pub unreachable: AtomicU64,
}

/// The UDP socket quinn sends and receives through.
#[derive(Debug)]
pub(crate) struct MeshSocket {
    /// None once closed: quinn keeps its `Arc` of this for as long as anybody holds a connection.
    io: RwLock<Option<Arc<tokio::net::UdpSocket>>>,
    state: UdpSocketState,
    local: SocketAddr,
    pub(crate) paths: Paths,
    pub(crate) answers: Arc<Answers>,
    /// The labels whose datagrams go through relays.
    pub(crate) tunnels: Arc<Tunnels>,
    /// Whether to tell whoever asks, by STUN, under which address it is seen.
    pub(crate) answers_stun: AtomicBool,
    pub(crate) counters: Counters,
}

impl MeshSocket {
    /// Binds `ip` (none: all addresses, IPv6 and IPv4 alike where the system has both) and `port`.
    pub(crate) fn bind(ip: Option<IpAddr>, port: u16) -> io::Result<Arc<MeshSocket>> {
        let socket = match ip {
            Some(ip) => bind_to(SocketAddr::new(ip, port))?,
            None => match bind_to(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    bind_to(SocketAddr::from(([0, 0, 0, 0], port)))?
                }
                bound => bound?,
            },
        };
        let local = socket.local_addr()?;
        report_errors(&socket, local)?;
        Ok(Arc::new(MeshSocket {
            state: UdpSocketState::new((&socket).into())?,
            io: RwLock::new(Some(Arc::new(tokio::net::UdpSocket::from_std(socket)?))),
            local,
            paths: Paths::default(),
            answers: Arc::default(),
            tunnels: Arc::default(),
            answers_stun: AtomicBool::new(false),
            counters: Counters::default(),
        }))
    }

    /// The address bound.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.local
    }

    /// Takes up the paths of a link: the one `connection` goes by now, and the relays.
    pub(crate) fn enter(&self, connection: &quinn::Connection) -> Option<Arc<LinkPaths>> {
        let label = connection.remote_address();
        let path = match is_label(&label) {
            true => Path::Relay(self.tunnels.relay_of(&label).unwrap_or_default()),
            false => Path::Direct(label),
        };
        let link = self.paths.insert(connection, path)?;
        if self.tunnels.is_relay(&label) {
            link.pin();
        }
        self.offer_relays(&link);
        Some(link)
    }

    /// The peer of a link can be reached through this tunnel as well.
    pub(crate) fn attach_tunnel(&self, link: &LinkPaths, tunnel: SocketAddr) {
        if link.tunnel() == Some(tunnel) {
            return;
        }
        link.set_tunnel(tunnel);
        self.paths.alias(tunnel, link);
        self.offer_relays(link);
    }

    fn offer_relays(&self, link: &LinkPaths) {
        if link.tunnel().is_some() {
            for relay in self.tunnels.relays_up() {
                self.carry_out(link, link.offer(Path::Relay(relay)));
            }
        }
    }

    /// There is an attachment to the relay with this number.
    pub(crate) fn relay_up(&self, relay: usize, connection: quinn::Connection) {
        self.paths.pin(&connection.remote_address());
        self.tunnels.relay_up(relay, connection);
    }

    /// It takes datagrams from this node.
    pub(crate) fn offer_relay(&self, relay: usize) {
        for link in self.paths.all().iter().filter(|link| link.tunnel().is_some()) {
            self.carry_out(link, link.offer(Path::Relay(relay)));
        }
    }

    /// Has links go through other relays, if there are any.
    pub(crate) fn spare_relay(&self, relay: usize) {
        if self.tunnels.relays() > 1 {
            for link in self.paths.all() {
                self.carry_out(&link, link.withdraw(Path::Relay(relay)));
            }
        }
    }

    /// There is no attachment to it any more.
    pub(crate) fn relay_down(&self, relay: usize) {
        self.tunnels.relay_down(relay);
        for link in self.paths.all() {
            self.carry_out(&link, link.withdraw(Path::Relay(relay)));
        }
    }

    /// A control packet came on `path`.
    pub(crate) fn control(&self, path: Path, packet: &[u8]) {
        let heard = self.paths.of_control(packet).and_then(|link| {
            let outputs = link.control(path, packet)?;
            Some((link, outputs))
        });
        let Some((link, outputs)) = heard else {
            self.counters.sealed.fetch_add(1, Relaxed);
            return;
        };
        if let Path::Direct(source) = path {
            self.paths.alias(source, &link);
        }
        self.carry_out(&link, outputs);
    }

    /// Sends what was decided for a link. What cannot be sent right now is a lost datagram.
    pub(crate) fn carry_out(&self, link: &LinkPaths, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Control(path, packet) => {
                    let _ = self.send_by(link, path, &datagram_to(link.label(), &packet));
                }
                Output::Probe => link.probe(),
            }
        }
    }

    fn send_by(&self, link: &LinkPaths, path: Path, transmit: &Transmit<'_>) -> io::Result<()> {
        match path {
            Path::Direct(path) => self.send_to(path, transmit),
            Path::Relay(relay) => {
                if let Some(tunnel) = link.tunnel() {
                    self.tunnels.send_through(relay, &tunnel, transmit, link.longest());
                }
                Ok(())
            }
        }
    }

    fn send_to(&self, path: SocketAddr, transmit: &Transmit<'_>) -> io::Result<()> {
        let moved = path != to_label(transmit.destination);
        let transmit = Transmit {
            destination: if self.local.is_ipv4() { from_label(path) } else { path },
            src_ip: transmit.src_ip.filter(|_| !moved),
            ..transmit.clone()
        };
        hops::pass(Hop::SocketOut);
        let sent = match self.send(&transmit) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.send_again(&transmit),
            sent => sent,
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(_) => {
                self.counters.send_errors.fetch_add(1, Relaxed);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Sends something that nobody answers, and that comes back as unreachable where nobody listens.
    pub(crate) fn poke(&self, label: SocketAddr) {
        // What cannot be sent right now is not missed: QUIC repeats what it sends.
        let _ = self.send_to(label, &datagram_to(label, &[demux::NOBODYS]));
    }

    /// Gives the port back. From now on nothing is sent or received.
    pub(crate) fn close(&self) {
        *self.io.write() = None;
        self.tunnels.clear();
        self.paths.clear();
    }

    /// The next label for which a datagram came back as unreachable. Holds the port meanwhile.
    pub(crate) async fn unreachable(&self) -> io::Result<SocketAddr> {
        let Some(io) = self.io.read().clone() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        loop {
            io.ready(Interest::ERROR).await?;
            match io.try_io(Interest::ERROR, || crate::unreachable::next_report(&io)) {
                Ok(Some(path)) => {
                    self.counters.unreachable.fetch_add(1, Relaxed);
                    return Ok(self.paths.label(to_label(path)));
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match &*self.io.read() {
            Some(io) => {
                io.try_io(Interest::WRITABLE, || self.state.try_send((&**io).into(), transmit))
            }
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Sends over an error that belongs to an earlier datagram, or to a source address that this
    /// machine has lost: both clear with the next attempt.
    fn send_again(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send(&Transmit { src_ip: None, ..transmit.clone() })
    }

    /// Counts and blanks what is not QUIC in a received buffer, which may hold several datagrams.
    fn take_foreign(&self, buffer: &mut [u8], meta: &RecvMeta) {
        for datagram in buffer.chunks_mut(meta.stride.max(1)) {
            match demux::classify(datagram) {
                Kind::Quic => continue,
                Kind::Stun => {
                    self.answer_stun(datagram, meta);
                    self.counters.stun.fetch_add(1, Relaxed);
                }
                Kind::Sealed => self.control(Path::Direct(to_label(meta.addr)), datagram),
                Kind::Unknown => drop(self.counters.unknown.fetch_add(1, Relaxed)),
            }
            if let Some(first) = datagram.first_mut() {
                *first = demux::NOT_QUIC;
            }
        }
    }

    /// What cannot be sent right now is asked for again: STUN expects losses.
    fn answer_stun(&self, datagram: &[u8], meta: &RecvMeta) {
        if !self.answers_stun.load(Relaxed) {
            return;
        }
        if let Some(answer) = stun::answer(datagram, meta.addr) {
            let answer = datagram_to(meta.addr, &answer);
            let _ = self.send(&Transmit { src_ip: meta.dst_ip, ..answer });
        }
    }

    fn received(&self, bufs: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        for (buf, meta) in bufs.iter_mut().zip(metas.iter_mut()) {
            self.take_foreign(&mut buf[..meta.len], meta);
            meta.addr = to_label(meta.addr);
            if is_label(&meta.addr) {
                // Nobody's address: what comes from there was forged to look like a tunnel's.
                self.counters.unknown.fetch_add(1, Relaxed);
                (meta.len, meta.stride) = (0, 0);
            }
        }
        self.relabel(bufs, metas);
    }

    /// Makes it all come from labels that quinn knows, and counts it.
    fn relabel(&self, bufs: &[IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        self.paths.relabel(metas.iter_mut().map(|meta| (&mut meta.addr, &mut meta.dst_ip)));
        for (buf, meta) in bufs.iter().zip(metas) {
            courtesy::carried(meta.len);
            self.answers.note(meta.addr, &buf[..meta.len]);
        }
    }

    /// What came through relays.
    fn tunnels_received(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Option<usize> {
        let taken = self.tunnels.inbound.take(cx, bufs, metas)?;
        self.relabel(bufs, &mut metas[..taken]);
        Some(taken)
    }

    /// What came to the port.
    fn poll_port(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let io = self.io.read();
        let Some(io) = &*io else {
            return Poll::Pending;
        };
        for _ in 0..ERRORS_IN_A_ROW {
            ready!(io.poll_recv_ready(cx))?;
            let received =
                io.try_io(Interest::READABLE, || self.state.recv((&**io).into(), bufs, meta));
            match received {
                Ok(count) => {
                    hops::pass(Hop::SocketIn);
                    self.received(bufs, &mut meta[..count]);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An ICMP report about an earlier datagram also shows here. Nothing that a
                // receive call says may reach quinn: it would give up the whole endpoint.
                Err(_) => {
                    self.counters.receive_errors.fetch_add(1, Relaxed);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncUdpSocket for MeshSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    /// Only a full socket is an error here: any other would end the connection's driver in quinn,
    /// while for QUIC a datagram that could not be sent is just a lost one.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        courtesy::carried(transmit.contents.len());
        let label = to_label(transmit.destination);
        if let Some(link) = self.paths.of(&label) {
            return self.send_by(&link, link.current(), transmit);
        }
        if is_label(&label) {
            self.tunnels.send(&label, transmit);
            return Ok(());
        }
        self.send_to(label, transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.tunnels.inbound.goes_first()
            && let Some(taken) = self.tunnels_received(cx, bufs, meta)
        {
            return Poll::Ready(Ok(taken));
        }
        match self.poll_port(cx, bufs, meta) {
            Poll::Pending => match self.tunnels_received(cx, bufs, meta) {
                Some(taken) => Poll::Ready(Ok(taken)),
                None => Poll::Pending,
            },
            ready => ready,
        }
    }

    /// Always in IPv6 form, so that quinn takes labels of both families.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(to_label(self.local))
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Tells a connection when the socket takes datagrams again. Each waits by itself: of those that
/// poll the socket's readiness, tokio wakes the last one only.
struct Writable {
    socket: Arc<MeshSocket>,
    waiting: Option<Waiting>,
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = self.socket.io.read().clone() else {
            // Sending fails, which counts as a lost datagram.
            return Poll::Ready(Ok(()));
        };
        if self.waiting.is_none() && io.try_io(Interest::WRITABLE, || Ok(())).is_ok() {
            return Poll::Ready(Ok(()));
        }
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(async move { io.writable().await }));
        let writable = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(writable)
    }
}

impl std::fmt::Debug for Writable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writable")
    }
}

/// One datagram that is none of QUIC's, from whatever address of this machine.
fn datagram_to(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }
}

/// An address in the form quinn sees: IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).
pub(crate) fn to_label(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        v6 => v6,
    }
}

/// An address as people write it: IPv4-mapped IPv6 as IPv4.
pub(crate) fn from_label(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        // As it is, with the link it may be on.
        IpAddr::V6(_) => address,
    }
}

fn bind_to(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    // Smaller buffers cost throughput, not correctness.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Asks for ICMP errors on the socket's error queue.
fn report_errors(socket: &std::net::UdpSocket, local: SocketAddr) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    if local.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    match setsockopt(socket, sockopt::Ipv4RecvErr, &true) {
        // An IPv6-only socket has no such option.
        Err(Errno::ENOPROTOOPT | Errno::EINVAL) if local.is_ipv6() => Ok(()),
        result => Ok(result?),
    }
}
