//! Tunnels: for each pair of an own tag and a peer's, a label for quinn and what seals and opens.
//!
//! quinn sends to a label as to any address; the datagram is sealed for the peer here and goes to
//! the relay through which the peer was heard last, or to all of them as long as it is not heard.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::slice::Chunks;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use macula_core::mesh::claim::Tag;
use macula_core::mesh::key::{MeshKey, Session};
use macula_core::mesh::packet::{self, HEADER};
use macula_core::mesh::seal::{FRONT, Kind, OVERHEAD, OpenError, Opener, Sealer};
use macula_core::mesh::split::{self, Joiner, NUMBER};
use macula_core::path::demux;
use parking_lot::{Mutex, RwLock};
use quinn::Connection;
use quinn::udp::Transmit;

use super::inbound::Inbound;
use crate::transport::DATAGRAM_QUEUE;

/// The first half of every label: the discard prefix (RFC 6666), from which nothing ever comes.
const PREFIX: [u16; 4] = [0x0100, 0, 0, 0];

/// quinn wants a port that is not 0.
const PORT: u16 = 1;

/// Tunnels kept at most. Only holders of the cookie can have one made, and each takes some 1 kB.
const MOST: usize = 16 * 1024;

/// A tunnel that was silent for this long makes room when there are too many.
const IDLE: Duration = Duration::from_secs(300);

/// A peer that was not heard for this long is looked for through all relays again: the one it was
/// heard through last may have stopped passing anything on.
const QUIET: Duration = Duration::from_secs(1);

/// What every leg carries in one piece (RFC 9000, 14), less what is around it there and here.
pub(crate) const ANY_LEG: usize = 1200 - 40 - HEADER - OVERHEAD;

/// Bytes of the pieces of memory that datagrams are opened in: one for some twenty of them.
const ARENA: usize = 32 * 1024;

/// No relay: the peer was not heard yet.
const UNKNOWN: usize = usize::MAX;

/// What a tunnel has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelInfo {
    /// The first bytes of the peer's tag: names the tunnel in logs and metrics.
    pub id: [u8; 8],
    /// Bytes of datagrams sealed and sent.
    pub bytes_out: u64,
    /// Bytes of datagrams received and opened.
    pub bytes_in: u64,
    /// Datagrams sent.
    pub msgs_out: u64,
    /// Datagrams received.
    pub msgs_in: u64,
    /// Received, but not sealed by that peer for us, or changed on the way.
    pub decrypt_failed: u64,
    /// Received twice.
    pub replayed: u64,
}

/// All tunnels of an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Tunnels {
    tunnels: RwLock<Table>,
    /// The connections to the relays that this node is attached to, by the number of the relay.
    relays: RwLock<HashMap<usize, Connection>>,
    pub(crate) inbound: Inbound,
    pub(crate) counters: Counters,
}

/// What went wrong with datagrams on their way through relays, by reason.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// No relay could be given it.
    unsent: AtomicU64,
    /// It is nothing that a relay passes on, or for a tag that is not this node's.
    misdirected: AtomicU64,
    /// It was sealed by nobody who holds the cookie, or for somebody else, or changed on the way.
    decrypt_failed: AtomicU64,
    /// It had come before.
    replayed: AtomicU64,
    /// Times that a relay said that this node sends more than it may.
    slowed: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    by_label: HashMap<SocketAddr, Arc<Tunnel>>,
    by_tags: HashMap<(Tag, Tag), Arc<Tunnel>>,
}

/// One pair of tags.
pub(crate) struct Tunnel {
    pub(crate) label: SocketAddr,
    own: Tag,
    peer: Tag,
    key: Arc<MeshKey>,
    /// The relay through which the peer was heard last.
    relay: AtomicUsize,
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
    heard: Mutex<Instant>,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    msgs_out: AtomicU64,
    msgs_in: AtomicU64,
    decrypt_failed: AtomicU64,
    replayed: AtomicU64,
}

struct Sending {
    sealer: Sealer,
    number: u16,
}

struct Receiving {
    opener: Opener,
    joiner: Joiner,
}

/// Whether quinn's `address` is the label of a tunnel.
pub(crate) fn is_label(address: &SocketAddr) -> bool {
    match address {
        SocketAddr::V6(address) => address.ip().segments()[..4] == PREFIX,
        SocketAddr::V4(_) => false,
    }
}

impl Tunnels {
    /// The tunnel between two tags, made if there is none.
    ///
    /// # Errors
    /// There are too many, or the system has no random numbers.
    pub(crate) fn between(
        &self,
        own: Tag,
        peer: Tag,
        key: &Arc<MeshKey>,
    ) -> Result<Arc<Tunnel>, &'static str> {
        match self.find(own, peer) {
            Some(tunnel) => Ok(tunnel),
            None => self.insert(Arc::new(Tunnel::new(own, peer, key.clone())?)),
        }
    }

    fn find(&self, own: Tag, peer: Tag) -> Option<Arc<Tunnel>> {
        self.tunnels.read().by_tags.get(&(own, peer)).cloned()
    }

    fn insert(&self, tunnel: Arc<Tunnel>) -> Result<Arc<Tunnel>, &'static str> {
        let mut table = self.tunnels.write();
        if table.by_tags.len() >= MOST {
            table.by_tags.retain(|_, tunnel| tunnel.heard.lock().elapsed() < IDLE);
            table.by_label.retain(|_, tunnel| tunnel.heard.lock().elapsed() < IDLE);
        }
        if table.by_tags.len() >= MOST {
            return Err("too many tunnels");
        }
        let tunnel = table.by_tags.entry((tunnel.own, tunnel.peer)).or_insert(tunnel).clone();
        table.by_label.insert(tunnel.label, tunnel.clone());
        Ok(tunnel)
    }

    /// The relay with this number takes datagrams from now on.
    pub(crate) fn relay_up(&self, relay: usize, connection: Connection) {
        self.relays.write().insert(relay, connection);
    }

    /// It does not any more.
    pub(crate) fn relay_down(&self, relay: usize) {
        self.relays.write().remove(&relay);
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.relays.write().clear();
        *self.tunnels.write() = Table::default();
    }

    /// As many relays take datagrams.
    pub(crate) fn relays(&self) -> usize {
        self.relays.read().len()
    }

    /// Whether datagrams wait at an attachment. One that nothing is heard from keeps its own.
    pub(crate) fn has_unsent(&self) -> bool {
        let relays = self.relays.read();
        // quinn keeps room for the bookkeeping of one more (32 bytes) and counts it as used.
        let empty = DATAGRAM_QUEUE - HEADER;
        relays.values().any(|relay| relay.datagram_send_buffer_space() < empty)
    }

    /// The numbers of the relays that take datagrams.
    pub(crate) fn relays_up(&self) -> Vec<usize> {
        self.relays.read().keys().copied().collect()
    }

    /// Whether a relay is attached to at this label.
    pub(crate) fn is_relay(&self, label: &SocketAddr) -> bool {
        self.relays.read().values().any(|relay| relay.remote_address() == *label)
    }

    /// Where a relay is.
    pub(crate) fn relay_address(&self, relay: usize) -> Option<SocketAddr> {
        Some(self.relays.read().get(&relay)?.remote_address())
    }

    /// Ends the attachments, and with them all tunnels.
    pub(super) fn hang_up(&self) {
        for (_, relay) in self.relays.write().drain() {
            relay.close(0u32.into(), b"left");
        }
        *self.tunnels.write() = Table::default();
    }

    /// The number of the relay that the datagrams of `label` go through.
    pub(crate) fn relay_of(&self, label: &SocketAddr) -> Option<usize> {
        let tunnel = self.tunnels.read().by_label.get(label).cloned()?;
        let relay = tunnel.relay.load(Relaxed);
        let relays = self.relays.read();
        if relays.contains_key(&relay) { Some(relay) } else { relays.keys().next().copied() }
    }

    /// Whether something came lately for the own tag `own`.
    pub(super) fn are_used(&self, own: Tag) -> bool {
        let tunnels = self.tunnels.read();
        let mut of_tag = tunnels.by_tags.values().filter(|tunnel| tunnel.own == own);
        of_tag.any(|tunnel| tunnel.heard.lock().elapsed() < IDLE)
    }

    /// What the tunnels have carried.
    pub(crate) fn info(&self) -> Vec<TunnelInfo> {
        self.tunnels.read().by_tags.values().map(|tunnel| tunnel.info()).collect()
    }

    /// Sends what quinn wants to send to a label. What cannot be sent is lost, as on any network.
    pub(crate) fn send(&self, label: &SocketAddr, transmit: &Transmit<'_>) {
        let Some(tunnel) = self.tunnels.read().by_label.get(label).cloned() else {
            return;
        };
        let datagrams = datagrams(transmit);
        let relays = self.relays.read();
        let heard = relays.get(&tunnel.relay.load(Relaxed));
        let sent = match heard.filter(|_| tunnel.heard.lock().elapsed() < QUIET) {
            Some(relay) => tunnel.send(relay, datagrams.clone(), usize::MAX),
            None => {
                let sent = relays.values();
                let sent = sent.map(|relay| tunnel.send(relay, datagrams.clone(), usize::MAX));
                sent.max().unwrap_or(0)
            }
        };
        self.counters.unsent.fetch_add((datagrams.len() - sent) as u64, Relaxed);
    }

    /// Sends to a label through the relay with this number, nothing longer than `longest` in one
    /// piece.
    pub(crate) fn send_through(
        &self,
        relay: usize,
        label: &SocketAddr,
        transmit: &Transmit<'_>,
        longest: usize,
    ) {
        let Some(tunnel) = self.tunnels.read().by_label.get(label).cloned() else {
            return;
        };
        let datagrams = datagrams(transmit);
        let relays = self.relays.read();
        let sent = relays.get(&relay);
        let sent = sent.map_or(0, |relay| tunnel.send(relay, datagrams.clone(), longest));
        self.counters.unsent.fetch_add((datagrams.len() - sent) as u64, Relaxed);
    }

    /// Takes what came through a relay from `peer` for the own tag `own`, and opens it in `arena`.
    /// What is not QUIC's is given back.
    pub(crate) fn received(
        &self,
        relay: usize,
        (own, peer): (Tag, Tag),
        key: &Arc<MeshKey>,
        sealed: &[u8],
        arena: &mut BytesMut,
    ) -> Option<Bytes> {
        let known = self.find(own, peer);
        let tunnel = match &known {
            Some(tunnel) => tunnel.clone(),
            None => match Tunnel::new(own, peer, key.clone()) {
                Ok(tunnel) => Arc::new(tunnel),
                Err(_) => return None,
            },
        };
        let opened = tunnel.open(relay, place(sealed, arena));
        match opened {
            // Only what opens, and so comes from a holder of the cookie, makes a tunnel be kept.
            Ok(_) if known.is_none() && self.insert(tunnel.clone()).is_err() => {}
            Ok(Some(datagram)) if demux::classify(&datagram) == demux::Kind::Sealed => {
                return Some(datagram);
            }
            Ok(Some(datagram)) => self.inbound.push(tunnel.label, datagram),
            Ok(None) => {}
            Err(OpenError::Replayed) => {
                tunnel.replayed.fetch_add(1, Relaxed);
                self.counters.replayed.fetch_add(1, Relaxed);
            }
            Err(OpenError::Malformed | OpenError::Forged) => {
                tunnel.decrypt_failed.fetch_add(1, Relaxed);
                self.counters.decrypt_failed.fetch_add(1, Relaxed);
            }
        }
        None
    }

    /// Something came that is for no tunnel.
    pub(super) fn misdirected(&self) {
        self.counters.misdirected.fetch_add(1, Relaxed);
    }

    /// A relay says that this node sends more than it may.
    pub(super) fn slowed(&self) {
        self.counters.slowed.fetch_add(1, Relaxed);
    }

    /// As many datagrams could not be opened.
    pub(super) fn decrypt_failed(&self) -> u64 {
        self.counters.decrypt_failed.load(Relaxed)
    }

    /// Counts of what went wrong.
    pub(crate) fn figures(&self) -> [(&'static str, u64); 6] {
        let Counters { unsent, misdirected, decrypt_failed, replayed, slowed } = &self.counters;
        let counters = [
            ("tunnel_unsent", unsent),
            ("tunnel_misdirected", misdirected),
            ("tunnel_decrypt_failed", decrypt_failed),
            ("tunnel_replayed", replayed),
            ("tunnel_overrun", &self.inbound.dropped),
            ("tunnel_slowed", slowed),
        ];
        counters.map(|(name, count)| (name, count.load(Relaxed)))
    }
}

/// A copy of something sealed, to be opened in place: what came belongs to quinn.
fn place(sealed: &[u8], arena: &mut BytesMut) -> BytesMut {
    if arena.capacity() < sealed.len() {
        arena.reserve(ARENA.max(sealed.len()));
    }
    arena.extend_from_slice(sealed);
    arena.split()
}

fn datagrams<'a>(transmit: &Transmit<'a>) -> Chunks<'a, u8> {
    let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
    transmit.contents.chunks(size)
}

impl Tunnel {
    fn new(own: Tag, peer: Tag, key: Arc<MeshKey>) -> Result<Tunnel, &'static str> {
        let sending = Sending { sealer: sealer(&key, own, peer)?, number: 0 };
        let receiving = Receiving { opener: Opener::new(peer, own), joiner: Joiner::default() };
        Ok(Tunnel {
            label: label()?,
            own,
            peer,
            key,
            relay: AtomicUsize::new(UNKNOWN),
            sending: Mutex::new(sending),
            receiving: Mutex::new(receiving),
            heard: Mutex::new(Instant::now()),
            bytes_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            msgs_out: AtomicU64::new(0),
            msgs_in: AtomicU64::new(0),
            decrypt_failed: AtomicU64::new(0),
            replayed: AtomicU64::new(0),
        })
    }

    /// Sends datagrams through a relay; gives how many it took.
    fn send(&self, relay: &Connection, datagrams: Chunks<'_, u8>, longest: usize) -> usize {
        let room = relay.max_datagram_size().and_then(|max| max.checked_sub(HEADER + OVERHEAD));
        let room = room.map(|room| room.min(longest));
        let Some(room) = room else {
            return 0;
        };
        let mut sending = self.sending.lock();
        if sending.sealer.is_worn() {
            match sealer(&self.key, self.own, self.peer) {
                Ok(fresh) => sending.sealer = fresh,
                Err(_) => return 0,
            }
        }
        let mut batch = Batch::for_bytes(datagrams.clone().map(<[u8]>::len).sum(), datagrams.len());
        for datagram in datagrams {
            self.seal(&mut sending, room, datagram, &mut batch);
        }
        drop(sending);
        let (sent, bytes) = batch.send(relay);
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
        self.msgs_out.fetch_add(sent as u64, Relaxed);
        sent
    }

    /// Seals a datagram, in two halves when it is too large for the way there.
    fn seal(&self, sending: &mut Sending, room: usize, datagram: &[u8], batch: &mut Batch) {
        let header = packet::header(&self.peer, &self.own);
        if datagram.len() <= room {
            batch.add(&header, datagram.len(), |out| {
                sending.sealer.seal(Kind::Whole, &[], datagram, out)
            });
            return;
        }
        let Some(at) = split::split_at(datagram.len(), room.saturating_sub(NUMBER)) else {
            return;
        };
        let number = sending.number.to_be_bytes();
        sending.number = sending.number.wrapping_add(1);
        let (first, second) = datagram.split_at(at);
        let sealer = &mut sending.sealer;
        batch.add(&header, 0, |out| sealer.seal(Kind::First, &number, first, out));
        batch.add(&header, datagram.len(), |out| sealer.seal(Kind::Second, &number, second, out));
    }

    /// Opens what came through `relay`; a whole datagram, if it is one or completes one.
    fn open(&self, relay: usize, mut sealed: BytesMut) -> Result<Option<Bytes>, OpenError> {
        let mut receiving = self.receiving.lock();
        let Receiving { opener, joiner } = &mut *receiving;
        let (kind, content) = opener.open(&self.key, &mut sealed)?;
        let datagram = match kind {
            Kind::Whole => {
                let end = FRONT + content.len();
                sealed.truncate(end);
                sealed.advance(FRONT);
                Some(sealed.freeze())
            }
            Kind::First => joiner.join(true, content).map(Bytes::from),
            Kind::Second => joiner.join(false, content).map(Bytes::from),
        };
        drop(receiving);
        self.relay.store(relay, Relaxed);
        *self.heard.lock() = Instant::now();
        if let Some(datagram) = &datagram {
            self.bytes_in.fetch_add(datagram.len() as u64, Relaxed);
            self.msgs_in.fetch_add(1, Relaxed);
        }
        Ok(datagram)
    }

    fn info(&self) -> TunnelInfo {
        let mut id = [0; 8];
        id.copy_from_slice(&self.peer.0[..8]);
        TunnelInfo {
            id,
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            msgs_out: self.msgs_out.load(Relaxed),
            msgs_in: self.msgs_in.load(Relaxed),
            decrypt_failed: self.decrypt_failed.load(Relaxed),
            replayed: self.replayed.load(Relaxed),
        }
    }
}

/// Sealed datagrams for a relay, one behind the other: one piece of memory for all that quinn wants
/// to send at once.
struct Batch {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
}

/// What goes to the relay as one datagram.
struct Piece {
    end: usize,
    /// Bytes of the datagram that is complete with it; 0: it is the first half of one.
    completes: usize,
}

impl Batch {
    /// One with room for so many datagrams of so many bytes in all.
    fn for_bytes(bytes: usize, datagrams: usize) -> Batch {
        let around = 2 * (HEADER + OVERHEAD + NUMBER);
        let bytes = Vec::with_capacity(bytes + datagrams * around);
        Batch { bytes, pieces: Vec::with_capacity(2 * datagrams) }
    }

    /// Adds what `seal` puts behind `header`.
    fn add(&mut self, header: &[u8], completes: usize, seal: impl FnOnce(&mut Vec<u8>) -> bool) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header);
        if seal(&mut self.bytes) {
            self.pieces.push(Piece { end: self.bytes.len(), completes });
        } else {
            self.bytes.truncate(start);
        }
    }

    /// Sends it all; gives how many datagrams, and bytes of these, the connection took.
    fn send(self, relay: &Connection) -> (usize, usize) {
        let mut rest = Bytes::from(self.bytes);
        let (mut start, mut sent, mut bytes) = (0, 0, 0);
        for Piece { end, completes } in self.pieces {
            let piece = rest.split_to(end - start);
            start = end;
            if relay.send_datagram(piece).is_ok() && completes > 0 {
                sent += 1;
                bytes += completes;
            }
        }
        (sent, bytes)
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tunnel({:?} to {:?})", self.own, self.peer)
    }
}

fn sealer(key: &MeshKey, own: Tag, peer: Tag) -> Result<Sealer, &'static str> {
    let mut session: Session = [0; 6];
    fill(&mut session)?;
    Ok(Sealer::new(key, own, peer, session))
}

/// A label no other tunnel has, which nobody can guess: quinn takes what seems to come from it.
fn label() -> Result<SocketAddr, &'static str> {
    let mut host = [0; 8];
    fill(&mut host)?;
    let [a, b, c, d] = PREFIX;
    let mut octets = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).octets();
    octets[8..].copy_from_slice(&host);
    Ok(SocketAddr::new(Ipv6Addr::from(octets).into(), PORT))
}

fn fill(bytes: &mut [u8]) -> Result<(), &'static str> {
    getrandom::fill(bytes).map_err(|_| "the system has no random numbers")
}
