//! How much a node may send through a relay, by token buckets for datagrams and bytes, and how much
//! may wait for one that does not take it.

use std::time::Duration;

/// What one node, or all of a realm together, may use. None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second, of datagrams as they come.
    pub bytes: Option<u64>,
    /// Datagrams a second.
    pub datagrams: Option<u64>,
}

/// What may wait for any node, however little memory is left: some datagrams of full size.
const LEAST: u64 = 8 * 1024;

/// The bytes that may wait for one node, when `used` of the `memory` for all of them are. A part of
/// what is left: so one node that takes nothing has a long queue, and a thousand have short ones,
/// and never is all of the memory taken by those who came first.
pub fn queue(memory: u64, used: u64) -> u64 {
    (memory.saturating_sub(used) / 4).max(LEAST)
}

/// How long a burst at twice the rate may last: what a node may save up.
const BURST: Duration = Duration::from_secs(1);

/// How often a node is told that it is held back.
const TELL: Duration = Duration::from_secs(1);

/// What is left of a rate. Times are since any fixed moment.
#[derive(Debug)]
pub struct Bucket {
    rate: u64,
    full: f64,
    left: f64,
    filled: Duration,
}

impl Bucket {
    /// A full bucket for `rate` a second.
    pub fn new(rate: u64, now: Duration) -> Bucket {
        Bucket::holding(rate as f64 * BURST.as_secs_f64(), rate, now)
    }

    /// One for `rate` a second that holds `full` at most, and does.
    pub fn holding(full: f64, rate: u64, now: Duration) -> Bucket {
        Bucket { rate, full, left: full, filled: now }
    }

    /// Whether there is `amount` left at `now`.
    pub fn has(&mut self, now: Duration, amount: u64) -> bool {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.left = (self.left + passed * self.rate as f64).min(self.full);
        self.filled = self.filled.max(now);
        self.left >= amount as f64
    }

    /// Takes `amount`, of which there is enough.
    pub fn take(&mut self, amount: u64) {
        self.left -= amount as f64;
    }
}

/// What is left of all rates of a node or realm.
#[derive(Debug, Default)]
pub struct Meter {
    bytes: Option<Bucket>,
    datagrams: Option<Bucket>,
    told: Option<Duration>,
}

impl Meter {
    /// Measures by `limits`.
    pub fn new(limits: &Limits, now: Duration) -> Meter {
        let bucket = |rate: Option<u64>| rate.map(|rate| Bucket::new(rate, now));
        Meter { bytes: bucket(limits.bytes), datagrams: bucket(limits.datagrams), told: None }
    }

    /// Whether a datagram of `bytes` may pass at `now`.
    pub fn has(&mut self, now: Duration, bytes: u64) -> bool {
        let has = |bucket: &mut Option<Bucket>, amount| {
            bucket.as_mut().is_none_or(|bucket| bucket.has(now, amount))
        };
        has(&mut self.bytes, bytes) && has(&mut self.datagrams, 1)
    }

    /// Counts a datagram of `bytes` that may pass.
    pub fn take(&mut self, bytes: u64) {
        self.bytes.iter_mut().for_each(|bucket| bucket.take(bytes));
        self.datagrams.iter_mut().for_each(|bucket| bucket.take(1));
    }

    /// Whether it is time to say at `now` that something did not pass.
    pub fn tells(&mut self, now: Duration) -> bool {
        let tells = self.told.is_none_or(|told| now.saturating_sub(told) >= TELL);
        if tells {
            self.told = Some(now);
        }
        tells
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_limits_everything_passes() {
        let mut meter = Meter::new(&Limits::default(), Duration::ZERO);
        assert!(meter.has(Duration::ZERO, u64::MAX));
    }

    #[test]
    fn it_is_told_once_a_second() {
        let mut meter = Meter::default();
        let told = (0..50).filter(|n| meter.tells(Duration::from_millis(n * 100))).count();
        assert_eq!(told, 5);
    }

    #[test]
    fn queues_share_the_memory_they_have() {
        const MEMORY: u64 = 64 * 1024 * 1024;
        for nodes in [1, 10, 1000, 4000] {
            let mut queues = vec![0; nodes];
            // All of them take nothing, and are sent datagrams in turn.
            for _ in 0..MEMORY / 1000 {
                for at in 0..nodes {
                    let used = queues.iter().sum();
                    if queues[at] + 1000 <= queue(MEMORY, used) {
                        queues[at] += 1000;
                    } else if at == 0 {
                        break;
                    }
                }
                if queues[0] + 1000 > queue(MEMORY, queues.iter().sum()) {
                    break;
                }
            }
            let (least, most) = (queues.iter().min().unwrap(), queues.iter().max().unwrap());
            assert!(most - least <= 1000, "{least} {most}");
            assert!(queues.iter().sum::<u64>() <= MEMORY);
            assert!(*least >= (MEMORY / (nodes as u64 + 4)).min(LEAST) - 2000);
        }
    }

    proptest! {
        /// Over any time no more passes than the rate and one burst, and a steady sender below the
        /// rate is never held back.
        #[test]
        fn the_rate_holds(rate in 1u64..10_000, steps in proptest::collection::vec((0u64..300, 1u64..500), 1..200)) {
            let limits = Limits { bytes: Some(rate), ..Limits::default() };
            let mut meter = Meter::new(&limits, Duration::ZERO);
            let (mut now, mut passed) = (0, 0);
            for (pause, bytes) in steps {
                now += pause;
                let at = Duration::from_millis(now);
                if meter.has(at, bytes) {
                    meter.take(bytes);
                    passed += bytes;
                }
                prop_assert!(passed as f64 <= rate as f64 * (1.0 + now as f64 / 1000.0) + 0.001);
            }
            let mut steady = Meter::new(&limits, Duration::ZERO);
            for second in 1..20 {
                prop_assert!(steady.has(Duration::from_secs(second), rate));
                steady.take(rate);
            }
        }
    }
}
