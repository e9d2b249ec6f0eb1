//! The last leg of a datagram's way through a relay: the connection to a node, or to a peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quinn::Connection;

use crate::transport;

/// Whom datagrams are passed on to.
pub(super) struct Leg {
    pub(super) connection: Connection,
    /// None: to a peer.
    waiting: Option<Waiting>,
}

/// Bytes of datagrams that wait for a node.
struct Waiting {
    /// As was seen last.
    bytes: AtomicU64,
    /// Of all nodes.
    of_all: Arc<AtomicU64>,
}

impl Leg {
    /// To a node. What waits for it is counted among `of_all`.
    pub(super) fn to_node(connection: Connection, of_all: Arc<AtomicU64>) -> Leg {
        Leg { connection, waiting: Some(Waiting { bytes: AtomicU64::new(0), of_all }) }
    }

    /// To a peer.
    pub(super) fn to_peer(connection: Connection) -> Leg {
        Leg { connection, waiting: None }
    }

    pub(super) fn is_to_peer(&self) -> bool {
        self.waiting.is_none()
    }

    /// Bytes for which its queue has room, and, of a node, bytes that wait in it. All of those waiting
    /// are told.
    pub(super) fn look(&self) -> (usize, Option<u64>) {
        let room = self.connection.datagram_send_buffer_space();
        let waiting = self.waiting.as_ref().map(|waiting| {
            let now = transport::DATAGRAM_QUEUE.saturating_sub(room) as u64;
            waiting.note(now);
            now
        });
        (room, waiting)
    }
}

impl Waiting {
    fn note(&self, now: u64) {
        let before = self.bytes.swap(now, Relaxed);
        // Wraps where it is less.
        self.of_all.fetch_add(now.wrapping_sub(before), Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.note(0);
    }
}
