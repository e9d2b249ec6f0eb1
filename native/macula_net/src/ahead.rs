//! How much QUIC is handed of a link with lanes before it is acknowledged: what waits beyond that waits at the sender, where
//! a process that has little to say can still go first.

use std::time::{Duration, Instant};

use macula_core::dist::turns::LITTLE;
use parking_lot::Mutex;
use quinn::Connection;

/// The least of it, in bytes. On a slow line it is what a lane with large messages has before what a
/// process that shares the lane says: with 1 MiB that was 3 s at 300 kB/s. With 128 KiB a LAN carried 16 MiB
/// messages at 0.8 of the rate, with this at 0.9 to 1.
pub(crate) const LEAST: u64 = 256 * 1024;

/// Bytes beyond it, or beyond what it was a moment ago, for lanes that have little to write and had nothing before: a call
/// is not to wait for acknowledgements of what others have sent. As many lanes have it at a time as there are, unless told
/// otherwise. The control stream has as much again.
pub(crate) const RESERVE: u64 = 64 * LITTLE as u64;

/// After so long QUIC is taken to have sent half of what it had when the path was quicker.
const LATELY: Duration = Duration::from_secs(1);

/// What QUIC takes of one link. Those who write its streams change it in turn: one of them does not take away what another
/// one has just allowed itself.
pub(crate) struct Ahead {
    most: u64,
    bytes: Mutex<Bytes>,
}

struct Bytes {
    now: u64,
    /// The most it took lately: so many it may still have when that is less now.
    lately: u64,
    /// When that was halved last.
    halved: Instant,
}

impl Ahead {
    /// That of a link which has just begun, and was told [`LEAST`]; never more than `most`.
    pub(crate) fn new(most: u64) -> Ahead {
        let bytes = Bytes { now: LEAST, lately: LEAST, halved: Instant::now() };
        Ahead { most: most.max(LEAST), bytes: Mutex::new(bytes) }
    }

    /// Has QUIC take twice as much as the path is `worth`: as much as is under way, and as much again that is sent as soon as
    /// it may. Not for every small change, as that takes a lock of QUIC's.
    ///
    /// With a window for each lane, as the other side has, a slow line would have minutes of them before
    /// it: all the lanes of 32 senders stood full, and none of them moved for half a minute.
    pub(crate) fn keep(&self, connection: &Connection, worth: u64) {
        let mut bytes = self.bytes.lock();
        let ahead = worth.saturating_mul(2).clamp(LEAST, self.most);
        if ahead > bytes.now || ahead < bytes.now / 2 {
            bytes.now = ahead;
            connection.set_send_window(ahead);
        }
        if bytes.halved.elapsed() > LATELY {
            bytes.halved = Instant::now();
            bytes.lately /= 2;
        }
        bytes.lately = bytes.lately.max(bytes.now);
    }

    /// Has QUIC take so many bytes more than it did lately while something is written.
    pub(crate) fn with_reserve<T>(
        &self,
        connection: &Connection,
        reserve: u64,
        write: impl FnOnce() -> T,
    ) -> T {
        let bytes = self.bytes.lock();
        connection.set_send_window(bytes.lately + reserve);
        let written = write();
        connection.set_send_window(bytes.now);
        written
    }
}
