//! Chance from a seed, for decisions that have to be repeatable in tests. Not for secrets.

/// A generator of numbers: SplitMix64, which is small, quick and good from any seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `most`, each as likely as the others but for one part in 2^32.
    pub fn up_to(&mut self, most: u32) -> u32 {
        let range = u64::from(most) + 1;
        ((u128::from(self.next()) * u128::from(range)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stays_in_its_range(seed: u64, most: u32) {
            let mut random = Random::new(seed);
            for _ in 0..20 {
                prop_assert!(random.up_to(most) <= most);
            }
        }

        #[test]
        fn the_same_seed_gives_the_same_numbers(seed: u64) {
            let numbers = |mut random: Random| -> Vec<u32> {
                (0..20).map(|_| random.up_to(u32::MAX)).collect()
            };
            prop_assert_eq!(numbers(Random::new(seed)), numbers(Random::new(seed)));
        }
    }

    #[test]
    fn every_number_of_a_range_comes() {
        let mut random = Random::new(7);
        let mut seen = [0; 6];
        for _ in 0..6_000 {
            seen[random.up_to(5) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
    }
}
