//! Datagrams that came through relays and wait for quinn to take them.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Waker};

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
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

impl Inbound {
    /// Hands over a datagram of `label`.
    pub(crate) fn push(&self, label: SocketAddr, datagram: Vec<u8>) {
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
            let Some((label, datagram)) = queue.datagrams.pop_front() else {
                break;
            };
            let len = datagram.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr: label, len, stride: len, ecn: None, dst_ip: None };
            taken += 1;
        }
        if taken == 0 {
            queue.waker = Some(cx.waker().clone());
            return None;
        }
        Some(taken)
    }
}
