//! When a native thread lets other threads have its processor.
//!
//! An operating system lets a thread run for some milliseconds before another one that waits for the same
//! processor has its turn. A native thread that carries bulk uses all of that, while a scheduler of the
//! emulator, which it has displaced by waking up or has just woken itself, waits with somebody's small
//! message. So a native thread yields after each piece of work. Where nobody waits, that takes less than a
//! microsecond. Where others compute without end it takes milliseconds, so the longer a thread was away,
//! the longer it keeps its processor before it yields again.
//!
//! Times count from any moment on, the same one for all calls.

use std::time::Duration;

/// So many times as long as it was away a thread keeps its processor: yielding costs it a third of its time
/// at most. The system takes its processor away besides: where two processes of each node compute without end
/// on two processors, bulk has 0.6 of the rate that it has with threads that never yield.
const KEEPS: u32 = 2;

/// The turns of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Courtesy {
    back: Duration,
    away: Duration,
}

impl Courtesy {
    /// Whether to yield at `now`, having done a piece of work.
    pub fn is_due(&self, now: Duration) -> bool {
        now.saturating_sub(self.back) >= self.away * KEEPS
    }

    /// The thread yielded at `left` and has its processor again since `back`.
    pub fn yielded(&mut self, left: Duration, back: Duration) {
        self.back = back;
        self.away = back.saturating_sub(left);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// Does pieces of work, of so many us each, where every yield takes so many; returns what of the time went
    /// into work, and into yields, and how long the longest of these was.
    fn work(pieces: &[(u32, u32)]) -> (Duration, Duration, Duration) {
        let (mut courtesy, mut now) = (Courtesy::default(), Duration::ZERO);
        let (mut worked, mut away, mut longest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for (piece, yielding) in pieces {
            worked += US * *piece;
            now += US * *piece;
            if courtesy.is_due(now) {
                let left = now;
                now += US * *yielding;
                courtesy.yielded(left, now);
                away += US * *yielding;
                longest = longest.max(US * *yielding);
            }
        }
        (worked, away, longest)
    }

    #[test]
    fn where_nobody_waits_each_piece_of_work_ends_with_a_yield() {
        let mut courtesy = Courtesy::default();
        for piece in 1..1000 {
            let now = US * 20 * piece;
            assert!(courtesy.is_due(now), "{piece}");
            courtesy.yielded(now, now + Duration::from_nanos(300));
        }
    }

    #[test]
    fn who_was_away_for_long_keeps_its_processor_for_longer() {
        let mut courtesy = Courtesy::default();
        courtesy.yielded(US * 1000, US * 5000);
        assert!(!courtesy.is_due(US * 12_999));
        assert!(courtesy.is_due(US * 13_000));
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm() {
        let mut courtesy = Courtesy::default();
        courtesy.yielded(US * 1000, US * 900);
        assert!(courtesy.is_due(US * 800));
    }

    proptest! {
        /// However long yields take, but for the last one they cost half of what is worked.
        #[test]
        fn yielding_costs_a_third_of_the_time_at_most(pieces in vec((0u32..500, 0u32..5000), 1..400)) {
            let (worked, away, longest) = work(&pieces);
            prop_assert!(away <= worked / KEEPS + longest, "{worked:?} {away:?} {longest:?}");
        }
    }
}
