//! Who may attach at once, and who has to come again, when many come at the same time: those who are
//! sent away are told moments to come again that lie as far apart as the relay can take them.

use std::time::Duration;

use super::limits::Bucket;

/// The soonest that a node is asked to come again: earlier it would only find the same crowd.
const SOONEST: Duration = Duration::from_millis(500);

/// The latest. Nodes that come then and still find a crowd are told again.
const LATEST: Duration = Duration::from_secs(30);

/// Those who come to a relay. Times are since any fixed moment.
#[derive(Debug)]
pub struct Pressure {
    rate: u64,
    bucket: Bucket,
    /// The last moment that a node was told to come again.
    promised: Duration,
}

impl Pressure {
    /// For a relay that takes `rate` nodes a second, and as many at once.
    pub fn new(rate: u64, now: Duration) -> Pressure {
        Pressure { rate: rate.max(1), bucket: Bucket::new(rate.max(1), now), promised: now }
    }

    /// Takes who comes at `now`.
    ///
    /// # Errors
    /// It has to come again, after this time.
    pub fn arrive(&mut self, now: Duration) -> Result<(), Duration> {
        if self.bucket.has(now, 1) {
            self.bucket.take(1);
            return Ok(());
        }
        let apart = Duration::from_secs(1).div_f64(self.rate as f64);
        self.promised = (self.promised.max(now) + apart).min(now + LATEST);
        Err((self.promised - now).max(SOONEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// However many come at once: if they come again as they are told, no second sees more than
        /// the rate and one burst taken, and all are in after about the time that takes.
        #[test]
        fn a_storm_is_spread_out(nodes in 1u64..3000, rate in 50u64..1000, seed in any::<u32>()) {
            let mut pressure = Pressure::new(rate, Duration::ZERO);
            let (mut taken, mut dice) = (0, seed);
            let mut due: BTreeSet<_> = (0..nodes).map(|node| (Duration::ZERO, node)).collect();
            let mut last = Duration::ZERO;
            while let Some((now, node)) = due.pop_first() {
                last = now;
                match pressure.arrive(now) {
                    Ok(()) => taken += 1,
                    Err(again) => {
                        prop_assert!(again >= SOONEST && again <= LATEST);
                        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let again = crate::mesh::retry::told(again, dice);
                        due.insert((now + again, node));
                    }
                }
                prop_assert!(taken as f64 <= rate as f64 * (1.0 + now.as_secs_f64()) + 1.0);
            }
            prop_assert_eq!(taken, nodes);
            let needed = nodes as f64 / rate as f64;
            prop_assert!(last.as_secs_f64() <= 2.5 * needed + 3.0, "{last:?}, needed {needed} s");
        }
    }
}
