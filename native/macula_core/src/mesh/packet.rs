//! A datagram on the leg between a node and a relay, or between two relays.
//!
//! ```text
//! type (1)  |  to (16)  |  from (16)  |  sealed content          type 1: for the holder of a tag
//! type (1)  |  tag (16)                                          type 2: nobody here holds it
//! ```
//!
//! It is the same on every leg, so a relay passes it on as it came.

use super::claim::{TAG, Tag};

/// Bytes in front of what is sealed.
pub const HEADER: usize = 1 + 2 * TAG;

const DATA: u8 = 1;
const NOBODY: u8 = 2;

/// What a datagram says.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Something sealed.
    Data {
        /// For whom.
        to: Tag,
        /// By whom, as far as the relay it came through knows.
        from: Tag,
        /// The sealed content.
        sealed: &'a [u8],
    },
    /// The relay knows of nobody who holds the tag.
    Nobody(Tag),
}

impl Packet<'_> {
    /// Reads a datagram; none when it is malformed or of a later version.
    pub fn decode(datagram: &[u8]) -> Option<Packet<'_>> {
        let (kind, rest) = datagram.split_first()?;
        let (first, rest) = rest.split_first_chunk().map(|(tag, rest)| (Tag(*tag), rest))?;
        match *kind {
            DATA => {
                let (from, sealed) = rest.split_first_chunk()?;
                Some(Packet::Data { to: first, from: Tag(*from), sealed })
            }
            NOBODY if rest.is_empty() => Some(Packet::Nobody(first)),
            _ => None,
        }
    }
}

/// What goes in front of something sealed.
pub fn header(to: &Tag, from: &Tag) -> [u8; HEADER] {
    let mut header = [DATA; HEADER];
    header[1..=TAG].copy_from_slice(&to.0);
    header[1 + TAG..].copy_from_slice(&from.0);
    header
}

/// The datagram that says that nobody holds `tag`.
pub fn nobody(tag: &Tag) -> [u8; 1 + TAG] {
    let mut datagram = [NOBODY; 1 + TAG];
    datagram[1..].copy_from_slice(&tag.0);
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let (to, from) = (Tag([1; TAG]), Tag([2; TAG]));
        let datagram = [&header(&to, &from)[..], b"sealed"].concat();
        let data = Packet::Data { to, from, sealed: b"sealed" };
        assert_eq!(Packet::decode(&datagram), Some(data));
        assert_eq!(Packet::decode(&nobody(&to)), Some(Packet::Nobody(to)));
    }

    proptest! {
        #[test]
        fn anything_can_be_read(datagram in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Packet::decode(&datagram);
        }
    }
}
