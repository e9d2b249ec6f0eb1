//! The output of a link: bytes wait here, in order, until its stream takes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use macula_core::dist::credit::Credit;
use parking_lot::Mutex;
use quinn::SendStream;
use tokio::sync::Notify;

use crate::hops::{self, Hop};

/// A frame without content, which says that the sender is alive.
const TICK: Bytes = Bytes::from_static(&[0, 0, 0, 0]);

/// Bytes that wait to be written, and the producer's credit.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
    /// Bytes written to the stream.
    pub(crate) bytes_out: AtomicU64,
}

#[derive(Debug)]
struct State {
    chunks: Vec<Bytes>,
    ticks: u32,
    credit: Credit,
    closing: bool,
}

/// What the writer does next.
enum Work {
    Write(Vec<Bytes>),
    Finish,
}

impl Queue {
    /// An empty one.
    pub(crate) fn new() -> Queue {
        let state =
            State { chunks: Vec::new(), ticks: 0, credit: Credit::output(), closing: false };
        Queue { state: Mutex::new(state), changed: Notify::new(), bytes_out: AtomicU64::new(0) }
    }

    /// Adds `chunks`. True when the producer must pause; none when the link is closing.
    pub(crate) fn push(&self, chunks: impl IntoIterator<Item = Bytes>) -> Option<bool> {
        let mut state = self.state.lock();
        if state.closing {
            return None;
        }
        let before = state.chunks.len();
        state.chunks.extend(chunks);
        let bytes = state.chunks[before..].iter().map(Bytes::len).sum();
        let pause = state.credit.queued(bytes);
        hops::pass(Hop::Queued);
        drop(state);
        self.changed.notify_one();
        Some(pause)
    }

    /// Adds a tick, ahead of whatever waits. False when the link is closing: nothing is added then,
    /// since in OTP's handshake it would pass for a packet.
    pub(crate) fn tick(&self) -> bool {
        let mut state = self.state.lock();
        if state.closing {
            return false;
        }
        state.ticks += 1;
        state.credit.queued(TICK.len());
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Takes nothing more; what waits is still written.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.changed.notify_one();
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().credit.waiting()
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

    /// Writes to `stream` whatever is pushed, in order, until the queue is closed and empty (then
    /// the stream is finished) or the connection fails. `resume` is called when a paused producer
    /// may go on.
    pub(crate) async fn write_to(self: Arc<Self>, stream: &mut SendStream, resume: impl Fn()) {
        loop {
            match self.work().await {
                Work::Finish => break,
                Work::Write(mut chunks) => {
                    if self.write(stream, &mut chunks, &resume).await.is_err() {
                        return;
                    }
                }
            }
        }
        // Fails only when the connection is gone already.
        let _ = stream.finish();
    }

    async fn write(
        &self,
        stream: &mut SendStream,
        chunks: &mut [Bytes],
        resume: &impl Fn(),
    ) -> Result<(), quinn::WriteError> {
        hops::pass(Hop::Writing);
        let mut rest = chunks;
        while !rest.is_empty() {
            let written = stream.write_chunks(rest).await?;
            rest = &mut rest[written.chunks..];
            self.bytes_out.fetch_add(written.bytes as u64, Relaxed);
            if self.state.lock().credit.taken(written.bytes) {
                resume();
            }
        }
        Ok(())
    }
}
