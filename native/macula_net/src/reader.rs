//! The input of a link: first single handshake packets, on request, then frames in batches.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use macula_core::dist::credit::RECEIVE_WINDOW;
use macula_core::dist::frame::{FrameReader, Piece};
use quinn::{RecvStream, VarInt};
use tokio::sync::{Semaphore, mpsc};

use crate::hops::{self, Hop};
use crate::link::{Closed, LinkState};

/// Bytes of frames handed over at once, at most: what the emulator decodes in well under a ms.
const BATCH: usize = 128 * 1024;

/// Chunks taken from quinn at once.
const CHUNKS: usize = 32;

/// Where the frames of an established link go.
pub trait Inbox: Send + Sync + 'static {
    /// A frame's memory, filled in place.
    type Frame: AsMut<[u8]> + Send + Sync;

    /// Memory for a frame of `len` bytes.
    fn allocate(&self, len: usize) -> Self::Frame;

    /// Takes whole frames, of `bytes` in all, in order. They count against the window until
    /// [`crate::Link::credit`] gives them back.
    fn deliver(&self, frames: Vec<Self::Frame>, bytes: usize);

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

/// A command to read frames into `inbox` for as long as the link lives.
pub(crate) fn start<I: Inbox>(link: Arc<LinkState>, inbox: I) -> Command {
    Command::Start(Box::new(move |stream| {
        Box::pin(async move {
            let mut frames = Frames { link, inbox, reader: FrameReader::default(), begun: None };
            let reason = frames.read(stream).await;
            let reason = frames.link.ended(reason);
            frames.inbox.closed(&reason);
        })
    }))
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

/// Cuts a link's stream into frames.
struct Frames<I: Inbox> {
    link: Arc<LinkState>,
    inbox: I,
    reader: FrameReader,
    /// The frame being filled, and how much of it is.
    begun: Option<(I::Frame, usize)>,
}

impl<I: Inbox> Frames<I> {
    async fn read(&mut self, mut stream: RecvStream) -> Closed {
        let mut chunks = vec![Bytes::new(); CHUNKS];
        loop {
            let read = tokio::select! {
                read = stream.read_chunks(&mut chunks) => read,
                () = self.link.abandoned() => return Closed::Local,
            };
            match read {
                Ok(Some(count)) => {
                    hops::pass(Hop::Reading);
                    if let Err(reason) = self.take(&mut chunks[..count]).await {
                        let _ = stream.stop(VarInt::from_u32(0));
                        return reason;
                    }
                }
                Ok(None) => return Closed::Peer,
                Err(error) => return lost(error),
            }
        }
    }

    /// Turns chunks into frames and hands these over, waiting for credit.
    async fn take(&mut self, chunks: &mut [Bytes]) -> Result<(), Closed> {
        let mut batch = Batch { frames: Vec::new(), bytes: 0 };
        for chunk in chunks {
            let chunk = std::mem::take(chunk);
            self.link.counters.bytes_in.fetch_add(chunk.len() as u64, Relaxed);
            // A part of a large frame is a sign of life too.
            self.link.counters.life_in.fetch_add(1, Relaxed);
            let mut input = &chunk[..];
            while let Some(piece) = self.reader.next(&mut input) {
                self.piece(piece, &mut batch);
                if batch.bytes >= BATCH {
                    self.deliver(&mut batch).await?;
                }
            }
        }
        self.deliver(&mut batch).await
    }

    fn piece(&mut self, piece: Piece<'_>, batch: &mut Batch<I::Frame>) {
        match piece {
            Piece::Tick => {}
            Piece::Start(len) => self.begun = Some((self.inbox.allocate(len), 0)),
            Piece::Body(bytes) => {
                if let Some((frame, filled)) = &mut self.begun {
                    frame.as_mut()[*filled..*filled + bytes.len()].copy_from_slice(bytes);
                    *filled += bytes.len();
                }
            }
            Piece::End => {
                if let Some((frame, filled)) = self.begun.take() {
                    batch.frames.push(frame);
                    batch.bytes += filled;
                }
            }
        }
    }

    async fn deliver(&self, batch: &mut Batch<I::Frame>) -> Result<(), Closed> {
        if batch.frames.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut batch.bytes);
        tokio::select! {
            () = self.link.window.take(bytes) => {}
            () = self.link.abandoned() => return Err(Closed::Local),
        }
        let frames = std::mem::take(&mut batch.frames);
        self.link.counters.msgs_in.fetch_add(frames.len() as u64, Relaxed);
        hops::pass(Hop::Posted);
        self.inbox.deliver(frames, bytes);
        Ok(())
    }
}

struct Batch<F> {
    frames: Vec<F>,
    bytes: usize,
}

/// How much may still be handed to the input handler.
#[derive(Debug)]
pub(crate) struct Window(Semaphore);

impl Window {
    pub(crate) fn new() -> Window {
        Window(Semaphore::new(RECEIVE_WINDOW))
    }

    /// What `bytes` cost: a batch larger than the whole window takes all of it.
    fn cost(bytes: usize) -> u32 {
        u32::try_from(bytes.min(RECEIVE_WINDOW)).unwrap_or(u32::MAX)
    }

    async fn take(&self, bytes: usize) {
        if let Ok(permit) = self.0.acquire_many(Self::cost(bytes)).await {
            permit.forget();
        }
    }

    /// Gives back what [`Inbox::deliver`] handed over as `bytes`. Never more than was taken: a
    /// caller's mistake must not open the window further.
    pub(crate) fn give(&self, bytes: usize) {
        let taken = RECEIVE_WINDOW.saturating_sub(self.0.available_permits());
        self.0.add_permits((Self::cost(bytes) as usize).min(taken));
    }
}
