//! When a native thread lets other threads have its processor.
//!
//! An operating system lets a thread run for some milliseconds before another one that waits for the same
//! processor has its turn. A native thread that carries bulk uses all of that, while a scheduler of the
//! emulator, which it has displaced by waking up or has just woken itself, waits with somebody's small
//! message. So a native thread yields after each piece of bulk.
//!
//! After small messages it does not: it sleeps soon anyway, and who has the processor meanwhile may be a
//! scheduler that only looks for work. A round trip with a yield after each message takes a fifth longer.
//!
//! How long it was away says who had the processor. A scheduler with a message to pass on is done within a
//! millisecond. Who computes uses all that the system gives, and has its turns without being let in: beside
//! such threads yielding only makes the thread slower.
//!
//! Times count from any moment on, the same one for all calls.

use std::time::Duration;

/// A piece of work, in bytes: more than a datagram with a small message in it, or a handful of them, and
/// less than what goes to the system in one call of a stream's.
const PIECE: usize = 4096;

/// So many times as long as it was away a thread keeps its processor: yielding costs it a third of its time
/// at most.
const KEEPS: u32 = 2;

/// Who was away for so long was so for one that computes. Linux has such threads take turns of 2 to 4 ms.
const COMPUTES: Duration = Duration::from_millis(2);

/// [`KEEPS`] beside threads that compute: it costs one part in 21, and they are looked for ten times a second.
const KEEPS_BESIDE_COMPUTING: u32 = 20;

/// The turns of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Courtesy {
    /// Since it yielded.
    carried: usize,
    back: Duration,
    away: Duration,
}

impl Courtesy {
    /// The thread has sent or received so many bytes.
    pub fn carried(&mut self, bytes: usize) {
        self.carried = self.carried.saturating_add(bytes);
    }

    /// Whether to yield at `now`.
    pub fn is_due(&self, now: Duration) -> bool {
        self.carried >= PIECE && now.saturating_sub(self.back) >= self.keeps()
    }

    /// The thread yielded at `left` and has its processor again since `back`.
    pub fn yielded(&mut self, left: Duration, back: Duration) {
        *self = Courtesy { carried: 0, back, away: back.saturating_sub(left) };
    }

    fn keeps(&self) -> Duration {
        self.away * if self.away < COMPUTES { KEEPS } else { KEEPS_BESIDE_COMPUTING }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// One thread's life so far.
    #[derive(Default)]
    struct Life {
        courtesy: Courtesy,
        now: Duration,
        worked: Duration,
        yields: Vec<Duration>,
    }

    impl Life {
        /// A piece of work of so many bytes and us, and a yield that takes so many us if it is due.
        fn piece(&mut self, bytes: usize, takes: u32, yielding: u32) {
            self.courtesy.carried(bytes);
            self.worked += US * takes;
            self.now += US * takes;
            if self.courtesy.is_due(self.now) {
                let left = self.now;
                self.now += US * yielding;
                self.courtesy.yielded(left, self.now);
                self.yields.push(US * yielding);
            }
        }

        fn away(&self) -> Duration {
            self.yields.iter().sum()
        }
    }

    #[test]
    fn where_nobody_waits_each_piece_of_bulk_ends_with_a_yield() {
        let mut life = Life::default();
        for _ in 0..1000 {
            life.piece(12_000, 20, 0);
        }
        assert_eq!(life.yields.len(), 1000);
    }

    #[test]
    fn small_messages_that_come_and_go_one_by_one_hardly_yield() {
        let mut life = Life::default();
        for _ in 0..1000 {
            life.piece(100, 10, 1);
        }
        assert_eq!(life.yields.len(), 1000 * 100 / PIECE);
    }

    #[test]
    fn beside_threads_that_compute_nearly_all_of_the_time_is_kept() {
        let mut life = Life::default();
        for _ in 0..100_000 {
            life.piece(12_000, 20, 4000);
        }
        assert!(life.away() * 19 < life.worked, "{:?} of {:?}", life.away(), life.now);
        assert!(life.yields.len() > 10, "nobody looks whether they still compute");
    }

    #[test]
    fn who_computed_is_forgotten_once_a_yield_was_short() {
        let mut life = Life::default();
        life.piece(PIECE, 0, 4000);
        life.piece(PIECE, 80_000, 10);
        for _ in 0..10 {
            life.piece(PIECE, 20, 10);
        }
        assert_eq!(life.yields.len(), 12);
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut courtesy = Courtesy::default();
        courtesy.yielded(US * 1000, US * 900);
        courtesy.carried(usize::MAX);
        courtesy.carried(usize::MAX);
        assert!(courtesy.is_due(US * 800));
    }

    proptest! {
        /// However long yields take, but for the last one they cost half of what is worked.
        #[test]
        fn yielding_costs_a_third_of_the_time_at_most(
            pieces in vec((0usize..20_000, 0u32..500, 0u32..5000), 1..400),
        ) {
            let mut life = Life::default();
            for (bytes, takes, yielding) in pieces {
                life.piece(bytes, takes, yielding);
            }
            let longest = life.yields.iter().max().copied().unwrap_or_default();
            prop_assert!(life.away() <= life.worked / KEEPS + longest);
        }
    }
}
