//! How much may wait on a link, each way, before its producer has to pause.

/// Bytes that may wait to be sent on a link without lanes before the controller is told to stop draining the emulator: as
/// much as on one lane (`super::memory`). It goes on at half, so that pausing and resuming cost two messages per quarter of
/// a MiB, not two per frame.
pub const SEND_HIGH: usize = 512 * 1024;

/// Counts the bytes that wait in a queue and decides when its producer pauses and resumes.
#[derive(Debug)]
pub struct Credit {
    high: usize,
    low: usize,
    waiting: usize,
    paused: bool,
}

impl Credit {
    /// For what waits to be sent on a link without lanes.
    pub fn output() -> Credit {
        Credit::half(SEND_HIGH)
    }

    /// Pauses its producer at so many bytes, and until half of them have left.
    pub fn half(high: usize) -> Credit {
        Credit::new(high, high / 2)
    }

    /// Pauses its producer at `high` bytes, and until `low` are left.
    pub fn new(high: usize, low: usize) -> Credit {
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
