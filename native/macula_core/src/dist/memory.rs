//! What a link may hold, each way, and how much of that each of its queues has.

use super::credit::{Credit, SEND_HIGH};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Bytes a link may hold each way: those sent that wait here, those received that nobody has taken.
///
/// Content alone counts. What the allocator and QUIC need to keep it comes on top; so does a message of which only
/// the beginning is here, which is the emulator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(u64);

/// How much each queue of a link may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Bytes of one stream that the peer may have under way.
    pub window: u32,
    /// Bytes of one stream that may wait for the input handler; then nothing more of it is read until half of that has been
    /// taken, and QUIC's flow control stops the peer.
    pub input: usize,
    /// Bytes that QUIC may have taken and nobody acknowledged.
    pub ahead: u64,
    /// Bytes that may wait on all lanes before the emulator is no longer drained. Only senders that cannot be suspended reach
    /// it, or many at a time on a link that may hold little.
    pub link: usize,
    /// Where the emulator is drained again.
    pub link_low: usize,
    /// Bytes that may wait on a lane before a process that sends more is suspended.
    pub lane: usize,
    /// Bytes of a flow that nobody is suspended for, although its lane is full: it is others who have filled that.
    pub flow: usize,
}

/// The default: enough for each stream.
const DEFAULT: u64 = STREAMS * ENOUGH;

/// As many as a link has by default: 64 lanes and the control stream.
const STREAMS: u64 = 65;

/// Of fewer streams none has more, unless the link may hold more than it does by default: what a stream holds beyond its
/// line's bandwidth times delay, messages of the same sender would only wait behind.
const ENOUGH: u64 = 3 * MIB;

/// Two thirds of what a stream may hold are its window: 2 MiB by default, 40 ms at 50 MB/s. All streams may be full at once,
/// since behind a fence a lane may have to be kept while others are read (`super::merge`).
const WINDOW: (u64, u64) = (2, 3);

/// One third waits for the input handler. A MiB at most: on a LAN four times as much is no faster, and a
/// message waits behind all of it.
const INPUT: u64 = MIB;

/// What waits on the way out, one third of all, 65 MiB by default: twice what 64 full lanes hold. With 16 MiB beside full
/// lanes, 32 bulk senders came to it, and had small messages wait as on one stream: 35 ms in place of 1.5.
const LINK: u64 = 3;

/// What QUIC has: half of all.
const AHEAD: u64 = 2;

/// The emulator is drained again so much below its mark, some of its own queues (`+zdbbl`). All senders wait meanwhile, so
/// not for as long as half of it takes: on a busy machine that was a second.
const LINK_LOW: u64 = 4 * MIB;

/// Half a MiB a lane is what the emulator itself still holds when it lets suspended senders go on (half of
/// `+zdbbl`). With twice as much a small message beside bulk waits longer, and nothing is faster; with
/// half as much some senders starve for a second now and then, as the emulator's queue is hardly ever
/// below its mark. A link without lanes has as much in all.
const LANE: u64 = SEND_HIGH as u64;

/// A lane takes one fragment of a large message in any case.
const LANE_LEAST: u64 = 64 * KIB;

/// A full lane has so many flows of processes that did not fill it: so few bytes each that all flows of all lanes together
/// do not come to the mark of the link.
const FLOWS_OF_LANE: u64 = 32;

impl Memory {
    /// With less, streams would take no more than a few packets at a time.
    pub const LEAST: u64 = 4 * MIB;

    /// QUIC's windows would not count more than twice of it.
    pub const MOST: u64 = 2 * 1024 * MIB;

    /// So many bytes; none when that is less than [`Self::LEAST`], or more than [`Self::MOST`].
    pub fn new(bytes: u64) -> Option<Memory> {
        (Memory::LEAST..=Memory::MOST).contains(&bytes).then_some(Memory(bytes))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Shares it out on a link with so many lanes beside its control stream.
    pub fn shares(self, lanes: Option<u16>) -> Shares {
        let streams = u64::from(lanes.unwrap_or(0)) + 1;
        let stream = (self.0 / streams).min(ENOUGH.max(self.0 / STREAMS));
        let link = self.0 / LINK;
        let lane = (link / 2 / streams).clamp(LANE_LEAST, LANE);
        Shares {
            window: u32::try_from(stream * WINDOW.0 / WINDOW.1).unwrap_or(u32::MAX),
            input: (stream / WINDOW.1).min(INPUT) as usize,
            ahead: self.0 / AHEAD,
            link: link as usize,
            link_low: (link - LINK_LOW.min(link / 2)) as usize,
            lane: lane as usize,
            flow: (lane / FLOWS_OF_LANE) as usize,
        }
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory(DEFAULT)
    }
}

impl Shares {
    /// For what waits to be handed to the emulator, of one stream.
    pub fn for_input(&self) -> Credit {
        Credit::half(self.input)
    }

    /// For what waits to be sent on one of several lanes.
    pub fn for_lane(&self) -> Credit {
        Credit::half(self.lane)
    }

    /// For what waits to be sent on a link with lanes.
    pub fn for_link(&self) -> Credit {
        Credit::new(self.link, self.link_low)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dist::lanes::FLOWS;

    #[test]
    fn by_default_each_of_65_streams_has_a_window_of_2_mib() {
        let shares = Memory::default().shares(Some(64));
        assert_eq!((u64::from(shares.window), shares.input as u64), (2 * MIB, MIB));
        assert_eq!((shares.link as u64, shares.link_low as u64), (65 * MIB, 61 * MIB));
        assert_eq!((shares.lane as u64, shares.flow as u64), (LANE, 16 * KIB));
        assert_eq!(Memory::default().shares(None), shares);
    }

    #[test]
    fn who_may_hold_more_has_larger_windows_and_no_longer_queues() {
        let [shares, more] = [DEFAULT, 2 * DEFAULT].map(|bytes| Memory(bytes).shares(Some(64)));
        assert_eq!((more.window, more.ahead), (2 * shares.window, 2 * shares.ahead));
        assert_eq!((more.input, more.lane, more.flow), (shares.input, shares.lane, shares.flow));
    }

    #[test]
    fn who_may_hold_less_has_large_windows_for_few_streams() {
        let (shares, few) =
            (Memory(DEFAULT).shares(Some(64)), Memory(DEFAULT / 5).shares(Some(12)));
        assert_eq!((few.window, few.input, few.lane), (shares.window, shares.input, shares.lane));
    }

    #[test]
    fn what_is_too_little_or_too_much_is_none() {
        assert_eq!(Memory::new(Memory::LEAST - 1), None);
        assert_eq!(Memory::new(Memory::MOST + 1), None);
        assert_eq!(Memory::new(Memory::LEAST).map(Memory::bytes), Some(Memory::LEAST));
    }

    proptest! {
        /// However many streams: none of them is without, and together they have no more than there is.
        #[test]
        fn all_shares_together_are_no_more_than_there_is(
            bytes in Memory::LEAST..=Memory::MOST,
            lanes in prop::option::of(1u16..=255),
        ) {
            let shares = Memory::new(bytes).unwrap().shares(lanes);
            let streams = u64::from(lanes.unwrap_or(0)) + 1;
            prop_assert!(streams * (u64::from(shares.window) + shares.input as u64) <= bytes);
            prop_assert!(u64::from(shares.window) > 8 * KIB && shares.input as u64 > 4 * KIB);
            prop_assert!(shares.link as u64 + shares.ahead <= bytes);
            prop_assert!(shares.link_low < shares.link && shares.flow > 0);
            let flows = streams * u64::from(FLOWS) * shares.flow as u64;
            prop_assert!(shares.lane as u64 == LANE_LEAST || flows < shares.link as u64);
        }
    }
}
