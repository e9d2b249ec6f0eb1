//! How much may wait on a link, each way, before its producer has to pause.

/// Bytes of output that may wait before the controller is told to stop draining the emulator.
///
/// One MiB is the emulator's own limit (`+zdbbl`): more would hide its busy signal from senders,
/// much less would leave the connection idle while the controller is scheduled again.
pub const SEND_HIGH: usize = 1024 * 1024;

/// Waiting bytes at which a paused controller may go on: half, so that pausing and resuming cost
/// two messages per half MiB, not two per frame.
pub const SEND_LOW: usize = SEND_HIGH / 2;

/// Bytes of input that may be on their way to the input handler, not yet handed to the emulator.
/// Beyond it nothing is read from the stream, and QUIC's flow control stops the peer.
pub const RECEIVE_WINDOW: usize = 1024 * 1024;

/// The output side: counts waiting bytes and decides when the producer pauses and resumes.
#[derive(Debug, Default)]
pub struct SendCredit {
    waiting: usize,
    paused: bool,
}

impl SendCredit {
    /// Takes `bytes` into the queue. True when the producer must pause until [`Self::written`]
    /// says otherwise.
    pub fn queued(&mut self, bytes: usize) -> bool {
        self.waiting += bytes;
        self.paused |= self.waiting >= SEND_HIGH;
        self.paused
    }

    /// `bytes` left the queue. True exactly when a paused producer may go on.
    pub fn written(&mut self, bytes: usize) -> bool {
        self.waiting = self.waiting.saturating_sub(bytes);
        let resume = self.paused && self.waiting <= SEND_LOW;
        if resume {
            self.paused = false;
        }
        resume
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
        let mut credit = SendCredit::default();
        assert!(!credit.queued(SEND_HIGH - 1));
        assert!(credit.queued(1));
        assert!(!credit.written(SEND_HIGH - SEND_LOW - 1));
        assert!(credit.written(1));
        assert!(!credit.written(1));
    }

    proptest! {
        /// A paused producer is always told to resume by the time the queue is empty: a lost
        /// resume would hang a link for ever.
        #[test]
        fn never_paused_and_empty(steps in proptest::collection::vec((0usize..2_000_000, 0usize..2_000_000), 1..50)) {
            let mut credit = SendCredit::default();
            let mut paused = false;
            for (queue, write) in steps {
                if !paused {
                    paused = credit.queued(queue);
                }
                let write = write.min(credit.waiting());
                if credit.written(write) {
                    prop_assert!(paused);
                    paused = false;
                }
            }
            let rest = credit.waiting();
            if credit.written(rest) {
                paused = false;
            }
            prop_assert!(!paused);
        }
    }
}
