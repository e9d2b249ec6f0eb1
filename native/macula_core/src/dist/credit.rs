//! How much may wait on a link, each way, before its producer has to pause.

/// Bytes of output that may wait before the controller is told to stop draining the emulator.
///
/// Half a MiB is what the emulator itself still holds when it lets suspended senders go on (half of
/// `+zdbbl`). With twice as much a small message beside bulk waits longer, and nothing is faster; with
/// half as much some senders starve for a second now and then, as the emulator's queue is hardly ever
/// below its mark. It goes on at half, so that pausing and resuming cost two messages per quarter of a
/// MiB, not two per frame.
pub const SEND_HIGH: usize = 512 * 1024;

/// Bytes of input that may wait for the input handler. Beyond it nothing is read from the stream until
/// half of that has been taken, and QUIC's flow control stops the peer.
pub const RECEIVE_HIGH: usize = 1024 * 1024;

/// Bytes that may wait on a lane before a process that sends more is suspended. As much as on a link
/// without lanes.
pub const LANE_HIGH: usize = SEND_HIGH;

/// Bytes of a flow that nobody is suspended for, although its lane is full: it is others who have filled that. All flows
/// of 64 lanes have 16 MiB of it, and so little that full lanes do not come to [`LINK_HIGH`] with it.
pub const FLOW_FREE: usize = 16 * 1024;

/// Bytes that may wait on all lanes of a link before the emulator is no longer drained: twice what 64
/// full lanes hold. Only senders that cannot be suspended reach it. At 16 MiB 32 bulk senders did, and
/// had small messages wait as on one stream: 35 ms in place of 1.5.
pub const LINK_HIGH: usize = 64 * 1024 * 1024;

/// Where the emulator is drained again: some of its queues (`+zdbbl`) below the mark. All senders wait meanwhile, so
/// not for as long as half of that takes: on a busy machine it was a second.
pub const LINK_LOW: usize = LINK_HIGH - 4 * 1024 * 1024;

/// Counts the bytes that wait in a queue and decides when its producer pauses and resumes.
#[derive(Debug)]
pub struct Credit {
    high: usize,
    low: usize,
    waiting: usize,
    paused: bool,
}

impl Credit {
    /// For what waits to be sent.
    pub fn output() -> Credit {
        Credit::new(SEND_HIGH, SEND_HIGH / 2)
    }

    /// For what waits to be sent on one of several lanes.
    pub fn lane() -> Credit {
        Credit::new(LANE_HIGH, LANE_HIGH / 2)
    }

    /// For what waits on all lanes of a link.
    pub fn link() -> Credit {
        Credit::new(LINK_HIGH, LINK_LOW)
    }

    /// For what waits to be handed to the emulator.
    pub fn input() -> Credit {
        Credit::new(RECEIVE_HIGH, RECEIVE_HIGH / 2)
    }

    fn new(high: usize, low: usize) -> Credit {
        Credit { high, low, waiting: 0, paused: false }
    }

    /// Takes `bytes` into the queue. True when the producer must pause until [`Self::taken`] says
    /// otherwise.
    pub fn queued(&mut self, bytes: usize) -> bool {
        self.waiting += bytes;
        self.paused |= self.waiting >= self.high;
        self.paused
    }

    /// `bytes` left the queue. True exactly when a paused producer may go on.
    pub fn taken(&mut self, bytes: usize) -> bool {
        self.waiting = self.waiting.saturating_sub(bytes);
        let resume = self.paused && self.waiting <= self.low;
        if resume {
            self.paused = false;
        }
        resume
    }

    /// Whether the producer must pause.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_at_the_high_mark_and_resumes_once_at_the_low_one() {
        let mut credit = Credit::output();
        assert!(!credit.queued(SEND_HIGH - 1));
        assert!(credit.queued(1));
        assert!(!credit.taken(SEND_HIGH / 2 - 1));
        assert!(credit.taken(1));
        assert!(!credit.taken(1));
    }

    proptest! {
        /// A paused producer is always told to resume by the time the queue is empty: a lost
        /// resume would hang a link for ever.
        #[test]
        fn never_paused_and_empty(steps in proptest::collection::vec((0usize..2_000_000, 0usize..2_000_000), 1..50)) {
            let mut credit = Credit::output();
            let mut paused = false;
            for (queue, write) in steps {
                if !paused {
                    paused = credit.queued(queue);
                }
                let write = write.min(credit.waiting());
                if credit.taken(write) {
                    prop_assert!(paused);
                    paused = false;
                }
            }
            let rest = credit.waiting();
            if credit.taken(rest) {
                paused = false;
            }
            prop_assert!(!paused);
        }
    }
}
