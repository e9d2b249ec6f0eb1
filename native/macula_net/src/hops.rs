//! For measuring (feature `hops`): when a message passes each hop on its way from `!` to a mailbox.
//!
//! Without the feature [`pass`] is empty and nothing is kept: users pay nothing for it. The clock is
//! that of the system, so that stamps of two nodes on one machine can be laid side by side.

/// The hops, in the order of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The sender is about to send.
    Sent,
    /// The distribution controller has heard that there is data.
    BridgeWoken,
    /// It calls the native side.
    Called,
    /// Terms have become bytes, which wait in the link's queue.
    Queued,
    /// The link's writer has taken them.
    Writing,
    /// A datagram is about to be handed to the kernel.
    SocketOut,
    /// A datagram has come from the kernel.
    SocketIn,
    /// The link's reader has bytes of its stream.
    Reading,
    /// Whole frames are about to be posted to the input handler.
    Posted,
    /// The input handler is about to hand them to the emulator.
    InputWoken,
    /// The receiver has the message.
    Received,
}

/// Every hop with its name.
pub const HOPS: [(Hop, &str); 11] = [
    (Hop::Sent, "sent"),
    (Hop::BridgeWoken, "bridge_woken"),
    (Hop::Called, "called"),
    (Hop::Queued, "queued"),
    (Hop::Writing, "writing"),
    (Hop::SocketOut, "socket_out"),
    (Hop::SocketIn, "socket_in"),
    (Hop::Reading, "reading"),
    (Hop::Posted, "posted"),
    (Hop::InputWoken, "input_woken"),
    (Hop::Received, "received"),
];

#[cfg(not(feature = "hops"))]
mod inner {
    use super::Hop;

    /// Notes that something passes here now.
    #[inline(always)]
    pub fn pass(_: Hop) {}

    /// What was noted since the last time, with the time in ns; none without the feature.
    pub fn taken() -> Option<Vec<(&'static str, u64)>> {
        None
    }
}

#[cfg(feature = "hops")]
mod inner {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use nix::time::{ClockId, clock_gettime};

    use super::{HOPS, Hop};

    /// Stamps kept; what comes beyond them is not noted.
    const KEPT: usize = 1 << 16;

    /// Bits of a stamp that say which hop; the others say when.
    const HOP_BITS: u32 = 8;

    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static STAMPS: [AtomicU64; KEPT] = [const { AtomicU64::new(0) }; KEPT];

    /// Notes that something passes here now.
    pub fn pass(hop: Hop) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        if let Some(stamp) = STAMPS.get(NEXT.fetch_add(1, Relaxed)) {
            stamp.store((now.as_nanos() as u64) << HOP_BITS | hop as u64, Relaxed);
        }
    }

    /// What was noted since the last time, with the time in ns; none without the feature.
    pub fn taken() -> Option<Vec<(&'static str, u64)>> {
        let count = NEXT.load(Relaxed).min(KEPT);
        let stamps = STAMPS.iter().take(count).filter_map(|stamp| {
            let stamp = stamp.swap(0, Relaxed);
            let hop = stamp & ((1 << HOP_BITS) - 1);
            HOPS.iter()
                .find(|(known, _)| *known as u64 == hop && stamp != 0)
                .map(|(_, name)| (*name, stamp >> HOP_BITS))
        });
        let stamps = stamps.collect();
        NEXT.store(0, Relaxed);
        Some(stamps)
    }
}

pub use inner::{pass, taken};
