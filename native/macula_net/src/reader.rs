//! Reads a link's streams: first single handshake packets, on request, then frames, on all of them.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use macula_core::dist::lane::Opening;
use parking_lot::Mutex;
use quinn::{ReadError, RecvStream};
use tokio::sync::{mpsc, watch};

use crate::hops::{self, Hop};
use crate::link::{Closed, LinkState};
use crate::outlet::Stream;

/// Chunks taken from quinn at once: packets, mostly.
const CHUNKS: usize = 64;

/// The input handler is told before all streams have been read when so much has been: bulk, during which what was read before
/// it would wait, and which can be taken while there is more to read.
const TELL: usize = 64 * 1024;

/// Who hears of the frames of an established link.
pub trait Inbox: Send + Sync + 'static {
    /// Something waits that [`crate::Link::receive`] gives. Not called again until that has given
    /// all of it, and not after [`Self::closed`].
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

pub(crate) enum Command {
    Packet(Box<dyn PacketWaiter>),
    /// The emulator is ready for frames.
    Start(Box<dyn Inbox>),
}

/// What the readers of a link's streams share.
///
/// One task for all of them, which lets them run in the order in which packets brought something. Tasks of
/// their own would run in any order, and so one process's word would often overtake what another one had said
/// before: Erlang allows that, programs do not expect it of two messages that came one after the other. For the
/// same reason lanes are read from the start: of what is there already, nobody knows in which order it came.
struct Readers<'a> {
    link: &'a LinkState,
    inbox: OnceLock<Box<dyn Inbox>>,
    chunks: Mutex<Vec<Bytes>>,
    /// Bytes read since it was looked last whether the input handler is to be told.
    untold: AtomicUsize,
    /// What became of the lanes, once all have ended or one has failed.
    lanes: watch::Sender<Option<Result<(), Closed>>>,
}

impl Readers<'_> {
    /// Does what the link's user asks for, until that is to read frames; then that, for as long as the
    /// link lives.
    async fn serve(&self, mut control: RecvStream, mut commands: mpsc::UnboundedReceiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Packet(waiter) => self.pass_packet(&mut control, waiter).await,
                Command::Start(inbox) => return self.pass_frames(control, inbox).await,
            }
        }
    }

    async fn pass_packet(&self, control: &mut RecvStream, waiter: Box<dyn PacketWaiter>) {
        let packet = tokio::select! {
            packet = read_packet(control) => packet,
            () = self.link.abandoned() => Err(Closed::Local),
        };
        match packet {
            Ok(packet) => waiter.packet(&packet),
            Err(reason) => waiter.closed(&self.link.ended(reason)),
        }
    }

    async fn pass_frames(&self, control: RecvStream, inbox: Box<dyn Inbox>) {
        let inbox = self.inbox.get_or_init(|| inbox);
        let reason = tokio::select! {
            reason = self.read(control) => reason,
            () = self.link.abandoned() => Closed::Local,
        };
        self.tell();
        inbox.closed(&self.link.ended(reason));
    }

    /// Tells the input handler of what waits, if it does not know.
    fn tell(&self) {
        self.untold.store(0, Relaxed);
        if let Some(inbox) = self.inbox.get()
            && self.link.intake.must_tell()
        {
            hops::pass(Hop::Posted);
            inbox.readable();
        }
    }

    /// Reads the control stream until each stream has ended: then the peer has sent all it had. Dropped
    /// early, it tells the peer that nobody reads on.
    async fn read(&self, control: RecvStream) -> Closed {
        let mut lanes = self.lanes.subscribe();
        tokio::select! {
            reason = self.read_stream(Stream::Control, control) => {
                if reason != Closed::Peer {
                    return reason;
                }
            }
            Ok(failed) = lanes.wait_for(|end| matches!(end, Some(Err(_)))) => {
                if let Some(Err(reason)) = &*failed {
                    return reason.clone();
                }
            }
        }
        // Fails only when the sender is dropped, which `self` owns.
        let _ = self.lanes.subscribe().wait_for(Option::is_some).await;
        Closed::Peer
    }

    /// Reads the lanes, and tells what became of them.
    async fn read_lanes(&self) -> Infallible {
        let connection = self.link.connection();
        let mut lanes = FuturesUnordered::new();
        let mut left = self.link.intake.lanes();
        let mut end = Ok(());
        while left > 0 && end.is_ok() {
            tokio::select! {
                Ok(lane) = connection.accept_uni() => lanes.push(self.read_lane(lane)),
                Some(reason) = lanes.next() => {
                    left -= 1;
                    if matches!(reason, Closed::Lost(_)) {
                        end = Err(reason);
                    }
                }
                else => break,
            }
        }
        self.lanes.send_replace(Some(end));
        std::future::pending().await
    }

    async fn read_lane(&self, mut lane: RecvStream) -> Closed {
        let mut opening = [0; Opening::LEN];
        if let Err(error) = lane.read_exact(&mut opening).await {
            return ended(error);
        }
        match self.link.intake.opened(Opening::decode(opening)) {
            Ok(stream) => self.read_stream(stream, lane).await,
            Err(violation) => Closed::Lost(violation.to_string()),
        }
    }

    /// Reads what there is room for, until the stream ends.
    async fn read_stream(&self, which: Stream, mut stream: RecvStream) -> Closed {
        loop {
            match poll_fn(|cx| self.read_some(which, &mut stream, cx)).await {
                Ok(Some(true)) => self.link.intake.room(which).await,
                Ok(Some(false)) => {}
                Ok(None) => return Closed::Peer,
                Err(error) => return lost(error),
            }
        }
    }

    /// Reads what is there, and says whether to pause. None: the stream has ended.
    fn read_some(
        &self,
        which: Stream,
        stream: &mut RecvStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<bool>, ReadError>> {
        let mut chunks = self.chunks.lock();
        let Some(count) = ready!(pin!(stream.read_chunks(&mut chunks)).poll(cx))? else {
            return Poll::Ready(Ok(None));
        };
        hops::pass(Hop::Reading);
        let read = &mut chunks[..count];
        let bytes: usize = read.iter().map(Bytes::len).sum();
        self.link.counters.bytes_in.fetch_add(bytes as u64, Relaxed);
        // A part of a large frame is a sign of life too.
        self.link.counters.life_in.fetch_add(count as u64, Relaxed);
        let pause = self.link.intake.push(which, read.iter_mut().map(std::mem::take), bytes);
        if self.untold.fetch_add(bytes, Relaxed) + bytes >= TELL {
            self.tell();
        }
        Poll::Ready(Ok(Some(pause)))
    }
}

/// Reads a link's streams as its user asks. Ends with the link.
pub(crate) async fn run(
    link: Arc<LinkState>,
    control: RecvStream,
    commands: mpsc::UnboundedReceiver<Command>,
) {
    let readers = Readers {
        link: &link,
        inbox: OnceLock::new(),
        chunks: Mutex::new(vec![Bytes::new(); CHUNKS]),
        untold: AtomicUsize::new(0),
        lanes: watch::Sender::default(),
    };
    let mut reading = pin!(async {
        tokio::select! {
            never = readers.read_lanes() => match never {},
            () = readers.serve(control, commands) => {}
        }
    });
    // Once all streams that had something have been read: told of each, the input handler would be woken for the first.
    poll_fn(|cx| {
        let done = reading.as_mut().poll(cx);
        readers.tell();
        done
    })
    .await;
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

fn lost(error: ReadError) -> Closed {
    match error {
        ReadError::ConnectionLost(error) => error.into(),
        ReadError::Reset(_) => Closed::Peer,
        other => Closed::Lost(other.to_string()),
    }
}
