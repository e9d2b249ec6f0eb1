//! Datagrams larger than the leg to a relay carries: they travel as two halves.
//!
//! A node whose path moves to a relay sends datagrams of the size that the former path took, until
//! QUIC notices; and the smallest that QUIC asks for (1200 bytes, RFC 9000, 14.1) does not fit
//! either where the leg itself takes no more than that.

/// Bytes of the number in front of each half.
pub const NUMBER: usize = 2;

/// Halves that wait for the other one. They belong to datagrams sent within a few ms.
const WAITING: usize = 32;

/// The halves of the datagrams of one sender that have not found each other yet.
#[derive(Debug, Default)]
pub struct Joiner {
    /// The oldest comes first.
    waiting: Vec<Half>,
}

#[derive(Debug)]
struct Half {
    number: u16,
    is_first: bool,
    content: Vec<u8>,
}

/// Where to split a datagram of `len` bytes so that each half fits `room`; none when even halves
/// do not.
pub fn split_at(len: usize, room: usize) -> Option<usize> {
    let first = len.div_ceil(2);
    (first <= room).then_some(first)
}

impl Joiner {
    /// Takes a half (with its number in front), and gives the whole if the other half was here.
    pub fn join(&mut self, is_first: bool, half: &[u8]) -> Option<Vec<u8>> {
        let (number, content) = half.split_first_chunk::<NUMBER>()?;
        let number = u16::from_be_bytes(*number);
        let other = self.waiting.iter().position(|waiting| waiting.number == number);
        if let Some(at) = other.filter(|at| self.waiting[*at].is_first != is_first) {
            let other = self.waiting.remove(at).content;
            let (first, second) =
                if is_first { (content, &other[..]) } else { (&other[..], content) };
            return Some([first, second].concat());
        }
        match other {
            // The number has come round: the other half of the former one was lost.
            Some(at) => drop(self.waiting.remove(at)),
            None if self.waiting.len() == WAITING => drop(self.waiting.remove(0)),
            None => {}
        }
        self.waiting.push(Half { number, is_first, content: content.to_vec() });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn halves(number: u16, datagram: &[u8]) -> [(bool, Vec<u8>); 2] {
        let at = split_at(datagram.len(), datagram.len()).unwrap();
        let half = |content: &[u8]| [&number.to_be_bytes()[..], content].concat();
        [(true, half(&datagram[..at])), (false, half(&datagram[at..]))]
    }

    #[test]
    fn a_datagram_is_split_when_its_halves_fit() {
        assert_eq!(split_at(1200, 700), Some(600));
        assert_eq!(split_at(1201, 601), Some(601));
        assert_eq!(split_at(1201, 600), None);
    }

    proptest! {
        /// In whatever order and however late the halves come, what comes out was put in.
        #[test]
        fn halves_find_each_other(
            datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 1..16),
            seed in any::<u64>(),
            lost in proptest::collection::vec(any::<bool>(), 32),
        ) {
            let mut sent: Vec<_> = datagrams
                .iter()
                .enumerate()
                .flat_map(|(n, datagram)| halves(n as u16, datagram).map(|half| (n, half)))
                .zip(&lost)
                .collect();
            let mut seed = seed | 1;
            sent.sort_by_cached_key(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                seed >> 33
            });
            let mut joiner = Joiner::default();
            let mut joined = 0;
            for ((n, (is_first, half)), lost) in sent {
                if !lost && let Some(whole) = joiner.join(is_first, &half) {
                    prop_assert_eq!(&whole, &datagrams[n]);
                    joined += 1;
                }
            }
            let complete = lost.chunks(2).take(datagrams.len()).filter(|lost| !lost[0] && !lost[1]);
            prop_assert_eq!(joined, complete.count());
        }
    }
}
