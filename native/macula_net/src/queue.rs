//! The output of one stream: bytes wait here, in order, until it takes them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::SendStream;
use tokio::sync::Notify;

use crate::hops::{self, Hop};

/// A frame without content, which says that the sender is alive.
pub(crate) const TICK: Bytes = Bytes::from_static(&[0, 0, 0, 0]);

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    /// Bytes pushed and not written yet.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    chunks: Vec<Bytes>,
    ticks: u32,
    closing: bool,
}

/// What the writer does next.
enum Work {
    Write(Vec<Bytes>),
    Finish,
}

impl Queue {
    /// Adds `chunks`: whole frames. False when the link is closing.
    pub(crate) fn push(&self, chunks: Vec<Bytes>) -> bool {
        let mut state = self.state.lock();
        if state.closing {
            return false;
        }
        self.waiting.fetch_add(chunks.iter().map(Bytes::len).sum(), Relaxed);
        state.chunks.extend(chunks);
        hops::pass(Hop::Queued);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Adds a tick, ahead of whatever waits. False when the link is closing: nothing is added then,
    /// since in OTP's handshake it would pass for a packet.
    pub(crate) fn tick(&self) -> bool {
        let mut state = self.state.lock();
        if state.closing {
            return false;
        }
        self.waiting.fetch_add(TICK.len(), Relaxed);
        state.ticks += 1;
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Whether all that was pushed is written, or never will be.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.load(Relaxed) == 0
    }

    /// Takes nothing more; what waits is still written.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.changed.notify_one();
    }

    async fn work(&self) -> Work {
        loop {
            let changed = self.changed.notified();
            if let Some(work) = self.take() {
                return work;
            }
            changed.await;
        }
    }

    fn take(&self) -> Option<Work> {
        let mut state = self.state.lock();
        let ticks = std::mem::take(&mut state.ticks) as usize;
        let waiting = std::mem::take(&mut state.chunks);
        if ticks == 0 && waiting.is_empty() {
            return state.closing.then_some(Work::Finish);
        }
        if ticks == 0 {
            return Some(Work::Write(waiting));
        }
        // `push` takes whole frames, so here, between two batches, is a frame boundary.
        Some(Work::Write(std::iter::repeat_n(TICK, ticks).chain(waiting).collect()))
    }

    /// Writes to `stream` whatever is pushed, in order, until the queue is closed and empty, or the
    /// connection has failed. `written` is told of as many bytes each time.
    pub(crate) async fn write_to(&self, stream: &mut SendStream, written: impl Fn(usize)) {
        let written = |bytes| {
            self.waiting.fetch_sub(bytes, Relaxed);
            written(bytes);
        };
        while let Work::Write(mut chunks) = self.work().await {
            if write(stream, &mut chunks, &written).await.is_err() {
                self.waiting.store(0, Relaxed);
                return;
            }
        }
    }
}

async fn write(
    stream: &mut SendStream,
    chunks: &mut [Bytes],
    written: &impl Fn(usize),
) -> Result<(), quinn::WriteError> {
    hops::pass(Hop::Writing);
    let mut rest = chunks;
    while !rest.is_empty() {
        let taken = stream.write_chunks(rest).await?;
        rest = &mut rest[taken.chunks..];
        written(taken.bytes);
    }
    Ok(())
}
