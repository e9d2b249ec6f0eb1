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

use super::frame::{self, Piece};

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

/// Takes what [`fence_header`] put there off the frames of the control stream, which come in pieces:
/// what is left are those of the emulator's frames.
#[derive(Debug, Default)]
pub struct FenceReader {
    /// Bytes of the emulator's frame.
    len: usize,
    lanes: u16,
    /// Bytes of the prefix that have not come yet.
    missing: usize,
}

impl FenceReader {
    /// What there is of the emulator's frame in the next piece; none when that is nothing.
    pub fn next<'a>(&mut self, piece: Piece<'a>) -> Option<Piece<'a>> {
        match piece {
            Piece::Start(len) => {
                let len = len.saturating_sub(FENCE_PREFIX);
                *self = FenceReader { len, lanes: 0, missing: FENCE_PREFIX };
                (len > 0).then_some(Piece::Start(len))
            }
            Piece::Body(body) => {
                let (prefix, body) = body.split_at(self.missing.min(body.len()));
                self.missing -= prefix.len();
                self.lanes = prefix.iter().fold(self.lanes, |read, &b| read << 8 | u16::from(b));
                (!body.is_empty()).then_some(Piece::Body(body))
            }
            Piece::End | Piece::Tick => Some(piece),
        }
    }

    /// The lanes opened before the frame that has ended; none when there was nothing in it, which
    /// nobody sends.
    pub fn lanes(&self) -> Option<u16> {
        (self.len > 0).then_some(self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::FrameReader;
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
            for chunk in [1, 2, 3, wire.len()] {
                let mut input = &wire[..];
                let mut frames = FrameReader::default();
                prop_assert_eq!(read_fenced(&mut frames, &mut input, chunk), (Some(lanes), frame.clone()));
                prop_assert_eq!(input, [0]);
            }
        }
    }

    /// The first fenced frame of the input, which comes in chunks of so many bytes.
    fn read_fenced(
        frames: &mut FrameReader,
        input: &mut &[u8],
        chunk: usize,
    ) -> (Option<u16>, Vec<u8>) {
        let (mut fence, mut frame, mut len) = (FenceReader::default(), Vec::new(), 0);
        loop {
            let (mut now, later) = input.split_at(chunk.min(input.len()));
            assert!(!now.is_empty(), "the frame does not end");
            while let Some(piece) = frames.next(&mut now) {
                match fence.next(piece) {
                    Some(Piece::Start(all)) => len = all,
                    Some(Piece::Body(body)) => frame.extend_from_slice(body),
                    Some(Piece::End) => {
                        *input = &input[input.len() - later.len() - now.len()..];
                        assert_eq!(frame.len(), len);
                        return (fence.lanes(), frame);
                    }
                    Some(Piece::Tick) | None => {}
                }
            }
            *input = later;
        }
    }

    #[test]
    fn a_marker_is_an_empty_frame() {
        assert_eq!(frame::header(0), Some(MARKER));
        assert_eq!(FrameReader::default().next(&mut &MARKER[..]), Some(Piece::Tick));
    }

    #[test]
    fn a_fenced_frame_is_not_empty() {
        for short in [&[0, 0, 0, 1, 7][..], &[0, 0, 0, 2, 7, 8]] {
            let mut input = short;
            let read = read_fenced(&mut FrameReader::default(), &mut input, 5);
            assert_eq!(read, (None, Vec::new()));
        }
    }

    #[test]
    fn a_fenced_frame_has_less_room_than_another() {
        let most = u32::MAX as usize - FENCE_PREFIX;
        assert!(fence_header(most, 1).is_some());
        assert_eq!(fence_header(most + 1, 1), None);
        assert_eq!(fence_header(usize::MAX, 1), None);
    }
}
