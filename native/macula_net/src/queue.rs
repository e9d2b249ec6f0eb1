//! The output of a link's control stream: bytes wait here, in order, until it takes them.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{SendStream, WriteError, Written};
use tokio::sync::Notify;

use crate::ahead::RESERVE;
use crate::hops::{self, Hop};
use crate::link::LinkState;

/// A frame without content, which says that the sender is alive.
pub(crate) const TICK: Bytes = Bytes::from_static(&[0, 0, 0, 0]);

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Notify,
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
        state.ticks += 1;
        drop(state);
        self.changed.notify_one();
        true
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
    /// connection has failed. The link is told how much was written each time.
    pub(crate) async fn write_to(&self, stream: &mut SendStream, link: &LinkState) {
        while let Work::Write(mut chunks) = self.work().await {
            if write(stream, &mut chunks, link).await.is_err() {
                return;
            }
        }
    }
}

async fn write(
    stream: &mut SendStream,
    chunks: &mut [Bytes],
    link: &LinkState,
) -> Result<(), WriteError> {
    hops::pass(Hop::Writing);
    let mut rest = chunks;
    while !rest.is_empty() {
        let taken = poll_fn(|cx| write_some(stream, rest, link, cx)).await?;
        rest = &mut rest[taken.chunks..];
        link.written(None, taken.bytes);
    }
    Ok(())
}

/// Lanes that have used up what QUIC takes ahead do not keep it from taking this.
fn write_some(
    stream: &mut SendStream,
    chunks: &mut [Bytes],
    link: &LinkState,
    cx: &mut Context<'_>,
) -> Poll<Result<Written, WriteError>> {
    let mut write = || pin!(stream.write_chunks(chunks)).poll(cx);
    match write() {
        Poll::Pending if link.outlet.has_lanes() => link.with_reserve(2 * RESERVE, write),
        written => written,
    }
}
