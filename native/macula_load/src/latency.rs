//! Times that were measured, and what they come to.

use std::time::Duration;

/// Times in the order they were measured.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Adds all of `other`.
    pub fn append(&mut self, other: &Latencies) {
        self.0.extend_from_slice(&other.0);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that this share of all (0 to 1) does not exceed; zero when there is none.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let mut times = Latencies::default();
        assert_eq!(times.quantile(0.5), Duration::ZERO);
        (1..=100).rev().for_each(|ms| times.add(Duration::from_millis(ms)));
        let ms = |share| times.quantile(share).as_millis();
        assert_eq!([ms(0.0), ms(0.5), ms(0.99), ms(1.0)], [1, 50, 99, 100]);
    }
}
