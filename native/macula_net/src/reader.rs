//! Reads a link's streams: first single handshake packets, on request, then frames, on all of them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use macula_core::dist::lane::Opening;
use quinn::RecvStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::hops::{self, Hop};
use crate::link::{Closed, LinkState};
use crate::outlet::Stream;

/// Chunks taken from quinn at once: packets, mostly.
const CHUNKS: usize = 64;

/// Who hears of the frames of an established link.
pub trait Inbox: Send + Sync + 'static {
    /// Something waits that [`crate::Link::receive`] gives. Not called again until that has given
    /// all of it.
    fn readable(&self);

    /// Nothing more will come.
    fn closed(&self, reason: &Closed);
}

/// Who asked for a handshake packet.
pub trait PacketWaiter: Send + 'static {
    /// The packet.
    fn packet(self: Box<Self>, packet: &[u8]);

    /// There will be none.
    fn closed(self: Box<Self>, reason: &Closed);
}

/// The work of a link's reader, started when the emulator is ready for frames.
type Start = Box<dyn FnOnce(RecvStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

pub(crate) enum Command {
    Packet(Box<dyn PacketWaiter>),
    Start(Start),
}

/// A command to read frames for `inbox` for as long as the link lives.
pub(crate) fn start(link: Arc<LinkState>, inbox: impl Inbox) -> Command {
    Command::Start(Box::new(move |stream| {
        Box::pin(async move {
            let inbox = Arc::new(inbox);
            let reason = tokio::select! {
                reason = read(&link, &inbox, stream) => reason,
                () = link.abandoned() => Closed::Local,
            };
            inbox.closed(&link.ended(reason));
        })
    }))
}

/// Reads all streams until the control stream ends, and the lanes after it: the peer ends it when all of
/// them have arrived. Dropped early, it tells the peer that nobody reads on.
async fn read(link: &Arc<LinkState>, inbox: &Arc<impl Inbox>, control: RecvStream) -> Closed {
    let mut lanes = JoinSet::new();
    let connection = link.connection();
    let control = read_stream(link, &**inbox, Stream::Control, control);
    tokio::pin!(control);
    let reason = loop {
        tokio::select! {
            reason = &mut control => break reason,
            Ok(lane) = connection.accept_uni() => {
                lanes.spawn(read_lane(link.clone(), inbox.clone(), lane));
            }
            Some(Ok(reason)) = lanes.join_next() => {
                if matches!(reason, Closed::Lost(_)) {
                    break reason;
                }
            }
        }
    };
    loop {
        tokio::select! {
            biased;
            Ok(lane) = connection.accept_uni() => {
                lanes.spawn(read_lane(link.clone(), inbox.clone(), lane));
            }
            () = std::future::ready(()) => break,
        }
    }
    if reason == Closed::Peer {
        while lanes.join_next().await.is_some() {}
    }
    reason
}

async fn read_lane(link: Arc<LinkState>, inbox: Arc<impl Inbox>, mut lane: RecvStream) -> Closed {
    let mut opening = [0; Opening::LEN];
    if let Err(error) = lane.read_exact(&mut opening).await {
        return ended(error);
    }
    match link.intake.opened(Opening::decode(opening)) {
        Ok(stream) => read_stream(&link, &*inbox, stream, lane).await,
        Err(violation) => Closed::Lost(violation.to_string()),
    }
}

/// Reads what there is room for, until the stream ends.
async fn read_stream(
    link: &LinkState,
    inbox: &impl Inbox,
    which: Stream,
    mut stream: RecvStream,
) -> Closed {
    let mut chunks = vec![Bytes::new(); CHUNKS];
    loop {
        let count = match stream.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) => return Closed::Peer,
            Err(error) => return lost(error),
        };
        hops::pass(Hop::Reading);
        let read = &mut chunks[..count];
        let bytes: usize = read.iter().map(Bytes::len).sum();
        link.counters.bytes_in.fetch_add(bytes as u64, Relaxed);
        // A part of a large frame is a sign of life too.
        link.counters.life_in.fetch_add(count as u64, Relaxed);
        let pushed = link.intake.push(which, read.iter_mut().map(std::mem::take), bytes);
        if pushed.tell {
            hops::pass(Hop::Posted);
            inbox.readable();
        }
        if pushed.pause {
            link.intake.room(which).await;
        }
    }
}

/// Reads a link's stream as its user asks. Ends with the link.
pub(crate) async fn run(
    link: Arc<LinkState>,
    mut stream: RecvStream,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Start(start) => return start(stream).await,
            Command::Packet(waiter) => {
                let packet = tokio::select! {
                    packet = read_packet(&mut stream) => packet,
                    () = link.abandoned() => Err(Closed::Local),
                };
                match packet {
                    Ok(packet) => waiter.packet(&packet),
                    Err(reason) => waiter.closed(&link.ended(reason)),
                }
            }
        }
    }
}

/// A packet of OTP's handshake: a 2-byte length and its content.
async fn read_packet(stream: &mut RecvStream) -> Result<Vec<u8>, Closed> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).await.map_err(ended)?;
    let mut packet = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut packet).await.map_err(ended)?;
    Ok(packet)
}

fn ended(error: quinn::ReadExactError) -> Closed {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => Closed::Peer,
        quinn::ReadExactError::ReadError(error) => lost(error),
    }
}

fn lost(error: quinn::ReadError) -> Closed {
    match error {
        quinn::ReadError::ConnectionLost(error) => error.into(),
        quinn::ReadError::Reset(_) => Closed::Peer,
        other => Closed::Lost(other.to_string()),
    }
}
