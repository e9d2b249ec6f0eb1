//! What lanes and the control stream carry besides the emulator's frames.
//!
//! ```text
//! lane            index:16, fences:64, then frames; an empty one is a marker
//! control stream  frames; an empty one is a tick, any other: lanes:16, then a fenced frame
//! ```
//!
//! A fenced frame is delivered after everything placed before it and before everything placed
//! after it, on whatever lane. At its place every open lane gets a marker; so the k-th marker of
//! a lane belongs to the k-th fenced frame. A lane opened later says how many fences it has missed,
//! and a fenced frame how many lanes have been opened before it: those have its marker and no others.
//! Markers, not counts of frames: a lane says itself where it stands, without numbers that must be kept,
//! compared and bounded on both sides.

use super::frame;

/// What a lane begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Which lane it is.
    pub index: u16,
    /// Fences placed before it was opened.
    pub fences: u64,
}

impl Opening {
    /// Bytes of an opening.
    pub const LEN: usize = 10;

    /// The first bytes of the lane.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&self.index.to_be_bytes());
        bytes[2..].copy_from_slice(&self.fences.to_be_bytes());
        bytes
    }

    /// What the first bytes of a lane say; [`super::merge::Merge::opened`] judges it.
    pub fn decode(bytes: [u8; Self::LEN]) -> Opening {
        let [i, j, fences @ ..] = bytes;
        Opening { index: u16::from_be_bytes([i, j]), fences: u64::from_be_bytes(fences) }
    }
}

/// What stands on a lane where a fence is: an empty frame.
pub const MARKER: [u8; frame::HEADER] = [0; frame::HEADER];

/// Bytes that a frame of the control stream has in front of the emulator's.
pub const FENCE_PREFIX: usize = 2;

/// What goes to the control stream before a fenced frame of `len` bytes, with so many lanes opened
/// before it; none from 4 GiB on.
pub fn fence_header(len: usize, lanes: u16) -> Option<[u8; frame::HEADER + FENCE_PREFIX]> {
    let [a, b, c, d] = frame::header(len.checked_add(FENCE_PREFIX)?)?;
    let [e, f] = lanes.to_be_bytes();
    Some([a, b, c, d, e, f])
}

/// A frame of the control stream that is no tick, cut into the lanes opened before it and the
/// emulator's frame; none when there is no such frame in it.
pub fn split_fenced(frame: &[u8]) -> Option<(u16, &[u8])> {
    let (lanes, frame) = frame.split_first_chunk()?;
    if frame.is_empty() { None } else { Some((u16::from_be_bytes(*lanes), frame)) }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{FrameReader, Piece};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_opening_is_read_as_it_was_written(index: u16, fences: u64) {
            let opening = Opening { index, fences };
            prop_assert_eq!(Opening::decode(opening.encode()), opening);
        }

        #[test]
        fn a_fenced_frame_is_one_of_the_control_stream(
            frame in prop::collection::vec(any::<u8>(), 1..100),
            lanes: u16,
        ) {
            let header = fence_header(frame.len(), lanes).unwrap();
            let wire = [&header[..], &frame, &[0]].concat();
            let mut input = &wire[..];
            let mut reader = FrameReader::default();
            prop_assert_eq!(reader.next(&mut input), Some(Piece::Start(frame.len() + FENCE_PREFIX)));
            let Some(Piece::Body(body)) = reader.next(&mut input) else { panic!("no body") };
            prop_assert_eq!(split_fenced(body), Some((lanes, &frame[..])));
            prop_assert_eq!(reader.next(&mut input), Some(Piece::End));
        }
    }

    #[test]
    fn a_marker_is_an_empty_frame() {
        assert_eq!(frame::header(0), Some(MARKER));
        assert_eq!(FrameReader::default().next(&mut &MARKER[..]), Some(Piece::Tick));
    }

    #[test]
    fn a_fenced_frame_is_not_empty() {
        for short in [&[][..], &[1], &[1, 2]] {
            assert_eq!(split_fenced(short), None);
        }
        assert_eq!(split_fenced(&[1, 2, 3]), Some((258, &[3][..])));
    }

    #[test]
    fn a_fenced_frame_has_less_room_than_another() {
        let most = u32::MAX as usize - FENCE_PREFIX;
        assert!(fence_header(most, 1).is_some());
        assert_eq!(fence_header(most + 1, 1), None);
        assert_eq!(fence_header(usize::MAX, 1), None);
    }
}
