//! How much may be under way on a path before more of it would only wait there.
//!
//! Congestion control by losses fills the buffers of a path until one overflows, and whatever is sent
//! then waits behind all of it. What waits at its sender instead, each stream in a queue of its own,
//! holds up nobody else. So the bound is what the path delivers in two of its shortest round trips,
//! and a little more. Two, as acknowledgements come in lumps (BBR, draft-cardwell-ccwg-bbr, bounds
//! what is in flight by as much).

use std::time::Duration;

/// On top of two round trips: where these take 50 us, processes are not run for longer than that.
const SLACK: Duration = Duration::from_micros(300);

/// The bound is never lower: some 90 packets, of which the receiver acknowledges every twentieth.
const LEAST: u64 = 128 * 1024;

/// A rate is measured over so long at least; over less it would be that of a burst.
const SAMPLE: Duration = Duration::from_millis(2);

/// The highest rate of one to two of these periods counts.
const PERIOD: Duration = Duration::from_millis(500);

/// So long the shortest round trip is believed; then less is put under way for a moment, to see whether
/// the path itself has become longer.
const BELIEVED: Duration = Duration::from_secs(10);

/// What the bound is divided by for that moment.
const DRAINED: u64 = 4;

/// Bounds what is under way on one path. Times count from any moment on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bound {
    round_trip: Option<RoundTrip>,
    sample: Option<Sample>,
    /// Bytes a second, the highest of this period and of the one before.
    rates: [u64; 2],
    period: Duration,
    draining: Option<Draining>,
}

#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    shortest: Duration,
    seen: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    began: Duration,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Draining {
    until: Duration,
    shortest: Duration,
}

impl Bound {
    /// At `now`, `bytes` were acknowledged that had been `sent`. `idle`: they were all there was to
    /// send, so they tell less than the rate.
    pub fn acknowledged(&mut self, now: Duration, sent: Duration, bytes: u64, idle: bool) {
        self.note_round_trip(now, now.saturating_sub(sent));
        let sample = self.sample.get_or_insert(Sample { began: now, bytes: 0 });
        let took = now.saturating_sub(sample.began);
        sample.bytes += bytes;
        let shortest = self.round_trip.map_or(Duration::ZERO, |round_trip| round_trip.shortest);
        if took >= SAMPLE.max(shortest) {
            let rate = (sample.bytes as f64 / took.as_secs_f64()) as u64;
            self.sample = None;
            self.note_rate(now, rate, idle);
        }
    }

    /// Bytes that the path delivers in so long; none: nothing is known yet.
    pub fn delivered_in(&self, time: Duration) -> Option<u64> {
        let rate = self.rates[0].max(self.rates[1]);
        (rate > 0).then_some((time.as_secs_f64() * rate as f64) as u64)
    }

    /// Bytes that may be under way; none: nothing is known yet.
    pub fn bytes(&self) -> Option<u64> {
        let shortest = self.round_trip?.shortest;
        let enough = self.delivered_in(2 * shortest + SLACK)?.max(LEAST);
        Some(if self.draining.is_some() { enough / DRAINED } else { enough })
    }

    fn note_round_trip(&mut self, now: Duration, took: Duration) {
        let known = self.round_trip.get_or_insert(RoundTrip { shortest: took, seen: now });
        if took <= known.shortest {
            *known = RoundTrip { shortest: took, seen: now };
        }
        match &mut self.draining {
            Some(draining) if now < draining.until => {
                draining.shortest = draining.shortest.min(took);
            }
            Some(draining) => {
                let shortest = draining.shortest.min(took);
                *known = RoundTrip { shortest, seen: now };
                self.draining = None;
            }
            None if now.saturating_sub(known.seen) > BELIEVED => {
                // What was under way before has come back after one of these, what is put there then
                // after another one.
                self.draining = Some(Draining { until: now + 2 * took, shortest: took });
            }
            None => {}
        }
    }

    fn note_rate(&mut self, now: Duration, rate: u64, idle: bool) {
        if !idle && now.saturating_sub(self.period) >= PERIOD {
            self.rates = [0, self.rates[0]];
            self.period = now;
        }
        // What is less than the rate counts when it is more than was known of it.
        if !idle || rate > self.rates[0].max(self.rates[1]) {
            self.rates[0] = self.rates[0].max(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACKET: u64 = 1400;

    /// A path that delivers `rate` bytes a second after `delay`, each way together.
    struct Path {
        rate: u64,
        delay: Duration,
        free: Duration,
    }

    impl Path {
        /// When a packet sent now is acknowledged.
        fn send(&mut self, now: Duration) -> Duration {
            let takes = Duration::from_secs_f64(PACKET as f64 / self.rate as f64);
            self.free = self.free.max(now) + takes;
            self.free + self.delay
        }
    }

    /// A sender that always has something to send, over `path` for a time, from `now` on.
    fn saturate(bound: &mut Bound, path: &mut Path, now: &mut Duration, time: Duration) -> f64 {
        let (end, began) = (*now + time, *now);
        let (mut under_way, mut acknowledged) = (std::collections::VecDeque::new(), 0);
        while *now < end {
            // Without a bound as far as slow start has come.
            let window = bound.bytes().unwrap_or(64 * PACKET);
            while under_way.len() as u64 * PACKET < window {
                under_way.push_back((*now, path.send(*now)));
            }
            let (sent, back) = under_way.pop_front().unwrap();
            *now = back;
            bound.acknowledged(back, sent, PACKET, false);
            acknowledged += PACKET;
        }
        acknowledged as f64 / (end - began).as_secs_f64()
    }

    fn path(rate: u64, delay_us: u64) -> Path {
        Path { rate, delay: Duration::from_micros(delay_us), free: Duration::ZERO }
    }

    #[test]
    fn nothing_is_bounded_before_anything_is_known() {
        let mut bound = Bound::default();
        assert_eq!(bound.bytes(), None);
        bound.acknowledged(Duration::from_millis(1), Duration::ZERO, PACKET, false);
        assert_eq!(bound.bytes(), None);
    }

    #[test]
    fn a_path_that_became_longer_is_found_out() {
        let (mut bound, mut now) = (Bound::default(), Duration::ZERO);
        let mut short = path(100_000_000, 1_000);
        saturate(&mut bound, &mut short, &mut now, Duration::from_secs(2));
        let mut long = path(100_000_000, 60_000);
        long.free = now;
        saturate(&mut bound, &mut long, &mut now, Duration::from_secs(25));
        let rate = saturate(&mut bound, &mut long, &mut now, Duration::from_secs(5));
        assert!(rate > 90_000_000.0, "{rate}");
    }

    #[test]
    fn who_has_little_to_send_is_not_bounded_by_that() {
        let (mut bound, mut now) = (Bound::default(), Duration::ZERO);
        saturate(&mut bound, &mut path(50_000_000, 10_000), &mut now, Duration::from_secs(1));
        let busy = bound.bytes();
        for _ in 0..10_000 {
            now += Duration::from_millis(10);
            bound.acknowledged(now, now - Duration::from_millis(10), 100, true);
        }
        assert!(bound.bytes().unwrap() > busy.unwrap() / 10 * 9, "{bound:?}, before {busy:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Whatever the path, it is used, and what waits on it is little.
        #[test]
        fn a_path_is_used_and_not_filled(
            rate in 2_000_000u64..200_000_000,
            delay_us in 50u64..100_000,
        ) {
            let (mut bound, mut now) = (Bound::default(), Duration::ZERO);
            let mut path = path(rate, delay_us);
            saturate(&mut bound, &mut path, &mut now, Duration::from_secs(3));
            let used = saturate(&mut bound, &mut path, &mut now, Duration::from_secs(3));
            prop_assert!(used > 0.9 * rate as f64, "{} of {}", used, rate);
            let most = (path.delay * 3 + 3 * SLACK).as_secs_f64() * rate as f64;
            prop_assert!(bound.bytes().unwrap() <= (most as u64).max(LEAST), "{bound:?}");
        }
    }
}
