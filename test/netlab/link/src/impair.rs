//! What a bad link does to each packet: pure, seeded, with the time passed in.
//!
//! A packet first waits its turn on the wire (`rate`), may be lost there, and then travels for
//! `delay` plus or minus up to `jitter`. Packets keep their order, as in a queue, but for those
//! that are picked to come late.

use std::time::Duration;

/// How bad one direction of a link is.
#[derive(Clone, Debug, PartialEq)]
pub struct Impairment {
    /// How long a packet travels.
    pub delay: Duration,
    /// How much longer or shorter than that it may take. The order of packets is kept: where they
    /// follow each other closely they wait for the slowest before them.
    pub jitter: Duration,
    /// The share of packets that is lost.
    pub loss: f64,
    /// The share of packets that comes late, after others that were sent later.
    pub reorder: f64,
    /// How late those come: what follows within that time overtakes them.
    pub reorder_by: Duration,
    /// Bits per second; none: without limit.
    pub rate: Option<u64>,
    /// How long a packet may wait for its turn where there is a rate; what would wait longer is
    /// dropped, as at the end of a full queue.
    pub queue: Duration,
}

impl Default for Impairment {
    fn default() -> Impairment {
        Impairment {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            reorder: 0.0,
            reorder_by: Duration::from_millis(5),
            rate: None,
            queue: Duration::from_millis(100),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It arrives then.
    Arrives(Duration),
    /// It arrives then, after others that were sent later.
    ArrivesLate(Duration),
    /// It is lost on the way.
    Lost,
    /// It found the queue full.
    QueueFull,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Direction {
    seed: u64,
    random: SplitMix64,
    /// When the wire is free again.
    free: Duration,
    /// When the last packet that keeps the order arrives.
    last: Duration,
}

impl Direction {
    /// A link that has carried nothing yet. The same seed and packets give the same fates.
    pub fn new(seed: u64) -> Direction {
        Direction { seed, random: SplitMix64(seed), free: Duration::ZERO, last: Duration::ZERO }
    }

    /// Draws the same fates again from here on. What is under way stays before what follows.
    pub fn restart(&mut self) {
        self.random = SplitMix64(self.seed);
    }

    /// Decides about a packet of `bytes` that is sent `now`.
    pub fn send(&mut self, impairment: &Impairment, now: Duration, bytes: usize) -> Fate {
        let Some(sent) = self.occupy_wire(impairment, now, bytes) else {
            return Fate::QueueFull;
        };
        if self.random.happens(impairment.loss) {
            return Fate::Lost;
        }
        let arrives = sent + self.travel(impairment);
        if self.random.happens(impairment.reorder) {
            return Fate::ArrivesLate(arrives + impairment.reorder_by);
        }
        self.last = self.last.max(arrives);
        Fate::Arrives(self.last)
    }

    /// When the last bit of the packet is on the wire; none when it would wait too long for that.
    fn occupy_wire(
        &mut self,
        impairment: &Impairment,
        now: Duration,
        bytes: usize,
    ) -> Option<Duration> {
        let Some(rate) = impairment.rate else {
            return Some(now);
        };
        let start = self.free.max(now);
        if start - now > impairment.queue {
            return None;
        }
        let nanos = bytes as u64 * 8 * 1_000_000_000 / rate.max(1);
        self.free = start + Duration::from_nanos(nanos);
        Some(self.free)
    }

    fn travel(&mut self, impairment: &Impairment) -> Duration {
        let jitter = impairment.jitter.mul_f64(2.0 * self.random.unit());
        (impairment.delay + jitter).saturating_sub(impairment.jitter)
    }
}

/// Steele, Lea and Flood's generator: a few instructions, and any seed will do.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// From 0 to just below 1, in the 53 bits that an f64 holds.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn happens(&mut self, share: f64) -> bool {
        self.unit() < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACKETS: usize = 20_000;

    fn milliseconds(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
        range.prop_map(Duration::from_millis)
    }

    /// The fates of packets that are sent `every` so often.
    fn fates(seed: u64, impairment: &Impairment, every: Duration) -> Vec<Fate> {
        let mut direction = Direction::new(seed);
        (0..PACKETS as u32).map(|n| direction.send(impairment, every * n, 1500)).collect()
    }

    fn share(fates: &[Fate], wanted: impl Fn(&Fate) -> bool) -> f64 {
        fates.iter().filter(|fate| wanted(fate)).count() as f64 / fates.len() as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_same_seed_decides_the_same(seed: u64, loss in 0.0..1.0, reorder in 0.0..1.0) {
            let impairment = Impairment { loss, reorder, ..Impairment::default() };
            let every = Duration::from_micros(10);
            prop_assert_eq!(fates(seed, &impairment, every), fates(seed, &impairment, every));
        }

        #[test]
        fn a_restart_decides_the_same_again(seed: u64, before in 0usize..100) {
            let impairment = Impairment { loss: 0.5, ..Impairment::default() };
            let mut direction = Direction::new(seed);
            for _ in 0..before {
                direction.send(&impairment, Duration::ZERO, 1500);
            }
            direction.restart();
            let again: Vec<Fate> =
                (0..100).map(|_| direction.send(&impairment, Duration::ZERO, 1500)).collect();
            prop_assert_eq!(&fates(seed, &impairment, Duration::ZERO)[..100], &again[..]);
        }

        /// Five standard deviations: a fault of 2 percentage points is found, chance hardly ever.
        #[test]
        fn as_many_as_wanted_are_lost_and_late(seed: u64, loss in 0.0..0.9, reorder in 0.0..1.0) {
            let impairment = Impairment { loss, reorder, ..Impairment::default() };
            let fates = fates(seed, &impairment, Duration::from_millis(1));
            let within = |share: f64, p: f64, n: f64| {
                (share - p).abs() <= 5.0 * (p * (1.0 - p) / n).sqrt() + 1.0 / n
            };
            let lost = share(&fates, |fate| *fate == Fate::Lost);
            prop_assert!(within(lost, loss, PACKETS as f64), "lost {lost} for {loss}");
            let late = share(&fates, |fate| matches!(fate, Fate::ArrivesLate(_))) / (1.0 - lost);
            prop_assert!(
                within(late, reorder, PACKETS as f64 * (1.0 - lost)), "late {late} for {reorder}");
        }

        /// Whatever the jitter, nothing overtakes but what was picked to be late.
        #[test]
        fn order_is_kept(seed: u64, delay in milliseconds(0..100), jitter in milliseconds(0..100)) {
            let impairment = Impairment { delay, jitter, ..Impairment::default() };
            let mut last = Duration::ZERO;
            for (n, fate) in (0..).zip(fates(seed, &impairment, Duration::from_micros(100))) {
                let Fate::Arrives(at) = fate else { panic!("{fate:?}") };
                prop_assert!(at >= last && at >= Duration::from_micros(100) * n);
                last = at;
            }
        }

        /// Packets far apart do not wait for each other: half of them come early, half late.
        #[test]
        fn the_median_delay_is_the_one_wanted(seed: u64, delay in milliseconds(10..100),
                                              jitter in milliseconds(0..10)) {
            let impairment = Impairment { delay, jitter, ..Impairment::default() };
            let every = Duration::from_secs(1);
            let early = (0..).zip(fates(seed, &impairment, every))
                .filter(|(n, fate)| matches!(fate, Fate::Arrives(at) if *at < every * *n + delay))
                .count() as f64 / PACKETS as f64;
            let half = if jitter.is_zero() { 0.0..0.001 } else { 0.48..0.52 };
            prop_assert!(half.contains(&early), "{early}");
        }

        /// No more arrives than the wire carries, and a full wire is used up to its rate.
        #[test]
        fn the_rate_is_kept(seed: u64, megabits in 1u64..100) {
            let rate = megabits * 1_000_000;
            let impairment = Impairment { rate: Some(rate), ..Impairment::default() };
            let on_wire = Duration::from_nanos(1500 * 8 * 1_000_000_000 / rate);
            let fates = fates(seed, &impairment, on_wire / 2);
            let took = (on_wire / 2) * PACKETS as u32 + impairment.queue;
            let arrived = share(&fates, |fate| matches!(fate, Fate::Arrives(_)));
            let carried = arrived * PACKETS as f64 * on_wire.as_secs_f64() / took.as_secs_f64();
            prop_assert!((0.9..1.01).contains(&carried), "{carried} of the wire were used");
        }
    }
}
