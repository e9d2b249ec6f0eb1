//! Datagrams that came through relays and wait for quinn to take them.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::udp::RecvMeta;

/// Datagrams that wait at most: some ms of full rate. When quinn is slower, the oldest go, as they
/// do in a socket's buffer.
const WAITING: usize = 4096;

/// The queue between the attachments and quinn.
#[derive(Debug, Default)]
pub(crate) struct Inbound {
    queue: Mutex<Queue>,
    /// Whether it is this queue's turn, or the port's: neither starves the other.
    turn: AtomicBool,
    /// Datagrams dropped because quinn did not take them in time.
    pub(crate) dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    datagrams: VecDeque<(SocketAddr, Bytes)>,
    waker: Option<Waker>,
}

impl Inbound {
    /// Hands over a datagram of `label`.
    pub(crate) fn push(&self, label: SocketAddr, datagram: Bytes) {
        let mut queue = self.queue.lock();
        if queue.datagrams.len() == WAITING {
            queue.datagrams.pop_front();
            self.dropped.fetch_add(1, Relaxed);
        }
        queue.datagrams.push_back((label, datagram));
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the queue goes before the port this time.
    pub(crate) fn goes_first(&self) -> bool {
        self.turn.fetch_xor(true, Relaxed)
    }

    /// Fills the buffers with what waits; none: nothing does, and `cx` is woken when that changes.
    pub(crate) fn take(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Option<usize> {
        let mut queue = self.queue.lock();
        let mut taken = 0;
        for (buf, meta) in bufs.iter_mut().zip(metas) {
            let Some((label, len, stride)) = queue.take(buf) else {
                break;
            };
            *meta = RecvMeta { addr: label, len, stride, ecn: None, dst_ip: None };
            taken += 1;
        }
        if taken == 0 {
            queue.waker = Some(cx.waker().clone());
            return None;
        }
        Some(taken)
    }
}

impl Queue {
    /// Fills `buf` with datagrams of one label that are as long as the first, but for the last one,
    /// as a kernel does that joins segments: quinn allocates once for them all. The label, bytes in
    /// all, and of each; none: nothing waits.
    fn take(&mut self, buf: &mut [u8]) -> Option<(SocketAddr, usize, usize)> {
        let (label, first) = self.datagrams.pop_front()?;
        let stride = first.len().min(buf.len());
        buf[..stride].copy_from_slice(&first[..stride]);
        let mut len = stride;
        while len.is_multiple_of(stride.max(1))
            && let Some((of, next)) = self.datagrams.front()
            && *of == label
            && (1..=stride.min(buf.len() - len)).contains(&next.len())
        {
            buf[len..len + next.len()].copy_from_slice(next);
            len += next.len();
            self.datagrams.pop_front();
        }
        Some((label, len, stride))
    }
}
