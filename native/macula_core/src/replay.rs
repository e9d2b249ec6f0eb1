//! The replay window: which counters were seen already (RFC 4303, 3.4.3).

/// Counters behind the newest that are still told apart. Datagrams that were split, duplicated or
/// overtaken arrive within some hundreds of each other.
const WINDOW: u64 = 1024;

const WORDS: usize = (WINDOW / 64) as usize;

/// The counters seen of one session.
#[derive(Debug, Default)]
pub struct ReplayWindow {
    /// One more than the highest counter seen.
    next: u64,
    /// Bit n % WINDOW: counter n, of the last WINDOW ones, was seen.
    seen: [u64; WORDS],
}

impl ReplayWindow {
    /// Whether `counter` may still come.
    pub fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        let (word, bit) = place(counter);
        self.next - counter <= WINDOW && self.seen[word] & bit == 0
    }

    /// Notes that `counter` has come. Only for one that is new and genuine.
    pub fn note(&mut self, counter: u64) {
        if counter >= self.next {
            let skipped = (counter - self.next).min(WINDOW);
            for n in 0..skipped {
                let (word, bit) = place(counter - 1 - n);
                self.seen[word] &= !bit;
            }
            self.next = counter + 1;
        }
        let (word, bit) = place(counter);
        self.seen[word] |= bit;
    }
}

fn place(counter: u64) -> (usize, u64) {
    let n = counter % WINDOW;
    ((n / 64) as usize, 1 << (n % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        /// Nothing is taken twice, and nothing within the window is refused the first time.
        #[test]
        fn everything_is_taken_once(
            start in 0u64..1 << 40,
            steps in proptest::collection::vec(0u64..3000, 1..400),
        ) {
            let (mut window, mut taken, mut highest) = (ReplayWindow::default(), HashSet::new(), 0);
            for step in steps {
                let counter = start + step;
                let fresh = taken.is_empty() || counter + WINDOW > highest;
                let is_new = window.is_new(counter);
                prop_assert!(!(is_new && taken.contains(&counter)));
                if fresh && !taken.contains(&counter) {
                    prop_assert!(is_new);
                }
                if is_new {
                    window.note(counter);
                    taken.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }
}
