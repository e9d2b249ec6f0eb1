//! When to try a relay again.

use std::time::Duration;

/// How a relay is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between the first attempts.
    pub interval: Duration,
    /// As many attempts at that interval; then ever longer ones.
    pub attempts: u32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { interval: Duration::from_secs(2), attempts: 15 }
    }
}

/// The longest pause: a relay that was gone for hours is back within this time.
const LONGEST: Duration = Duration::from_secs(60);

/// How long after an attachment was lost the first attempt comes at most: relays that start again
/// have all their nodes coming back.
const FIRST: Duration = Duration::from_millis(200);

/// A pause that keeps nodes out of step, by a random number.
pub fn jitter(dice: u32) -> Duration {
    FIRST.mul_f64(f64::from(dice) / f64::from(u32::MAX))
}

/// The pause of a node that a relay told to come `again` after a time: that time, and up to a quarter
/// more, as others may have been told the same. No relay keeps a node away for long.
pub fn told(again: Duration, dice: u32) -> Duration {
    let again = again.min(LONGEST);
    again + jitter(dice) + again.mul_f64(f64::from(dice) / f64::from(u32::MAX) / 4.0)
}

/// The attempts at one relay since it was last there.
#[derive(Debug, Default)]
pub struct Retry {
    tried: u32,
}

impl Retry {
    /// The pause before the next attempt. `dice`: a random number, so that nodes do not come all
    /// at once. `urgent`: links wait for it, and it is never tried more slowly.
    pub fn pause(&mut self, pace: Pace, dice: u32, urgent: bool) -> Duration {
        let tried = self.tried;
        self.tried = tried.saturating_add(1);
        if tried == 0 {
            return jitter(dice);
        }
        let dice = f64::from(dice) / f64::from(u32::MAX);
        let pause = if tried <= pace.attempts || urgent {
            pace.interval
        } else {
            let doubled = (tried - pace.attempts).min(16);
            (pace.interval * (1 << doubled)).min(LONGEST.max(pace.interval))
        };
        pause.mul_f64(0.75 + dice / 2.0)
    }

    /// The relay is there.
    pub fn succeeded(&mut self) {
        self.tried = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_attempt_comes_at_once_and_then_ever_rarer_ones() {
        let (mut retry, pace) = (Retry::default(), Pace::default());
        let mut next = |urgent| retry.pause(pace, u32::MAX / 2, urgent).as_millis();
        assert!(next(false) <= 200);
        for _ in 0..15 {
            assert!((1990..=2010).contains(&next(false)));
        }
        assert!((3990..=4010).contains(&next(false)));
        assert!((1990..=2010).contains(&next(true)));
        assert!((0..10).map(|_| next(false)).last() > Some(59_000));
        retry.succeeded();
        assert!(retry.pause(pace, u32::MAX, false).as_millis() <= 200);
    }

    proptest! {
        #[test]
        fn what_a_relay_says_counts_within_bounds(dice in any::<u32>(), again in any::<u32>()) {
            let again = Duration::from_millis(again.into());
            let pause = told(again, dice);
            prop_assert!(pause >= again.min(LONGEST) && pause <= again.min(LONGEST).mul_f64(1.26) + FIRST);
        }

        #[test]
        fn no_pause_is_absurd(dice in any::<u32>(), tries in 0u32..200, urgent in any::<bool>()) {
            let mut retry = Retry { tried: tries };
            let pause = retry.pause(Pace::default(), dice, urgent);
            prop_assert!(pause <= LONGEST.mul_f64(1.26));
            prop_assert!(tries == 0 || pause >= Duration::from_millis(1500));
        }
    }
}
