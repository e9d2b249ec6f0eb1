//! Distribution frames on a stream: a 4-byte big-endian length, then that many bytes.
//!
//! A frame of length 0 is a tick (erl_dist_protocol, "Protocol between connected nodes"). The emulator
//! cuts messages into fragments of 64 KiB, but for those that it took before the nodes were
//! connected: these come whole, whatever their size. Only peers that proved the cookie send frames.

/// Length of a frame's header.
pub const HEADER: usize = 4;

/// The header of a frame of `len` bytes; none when it has no room for that, from 4 GiB on.
pub fn header(len: usize) -> Option<[u8; HEADER]> {
    u32::try_from(len).ok().map(u32::to_be_bytes)
}

/// A step of reading frames: what the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A frame of this many bytes begins (never 0).
    Start(usize),
    /// The next bytes of the frame begun.
    Body(&'a [u8]),
    /// The frame begun is whole.
    End,
    /// An empty frame.
    Tick,
}

/// Cuts a stream of bytes, in chunks of any size, into frames without storing them.
#[derive(Debug, Default)]
pub struct FrameReader {
    header: [u8; HEADER],
    header_len: usize,
    /// Bytes still missing of the frame begun.
    missing: Option<usize>,
}

impl FrameReader {
    /// The next piece, taken off the front of `input`; none when `input` is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        match self.missing {
            Some(0) => {
                self.missing = None;
                Some(Piece::End)
            }
            Some(missing) => self.body(missing, input),
            None => self.start(input),
        }
    }

    fn body<'a>(&mut self, missing: usize, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        if input.is_empty() {
            return None;
        }
        let (body, rest) = input.split_at(missing.min(input.len()));
        *input = rest;
        self.missing = Some(missing - body.len());
        Some(Piece::Body(body))
    }

    fn start<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        let wanted = (HEADER - self.header_len).min(input.len());
        let (bytes, rest) = input.split_at(wanted);
        self.header[self.header_len..self.header_len + wanted].copy_from_slice(bytes);
        self.header_len += wanted;
        *input = rest;
        if self.header_len < HEADER {
            return None;
        }
        self.header_len = 0;
        match u32::from_be_bytes(self.header) as usize {
            0 => Some(Piece::Tick),
            len => {
                self.missing = Some(len);
                Some(Piece::Start(len))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Frames read from `chunks`, an empty one for each tick.
    fn read(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut reader = FrameReader::default();
        let mut frames = Vec::new();
        let mut frame = Vec::new();
        for chunk in chunks {
            let mut input = *chunk;
            while let Some(piece) = reader.next(&mut input) {
                match piece {
                    Piece::Start(len) => frame.reserve(len),
                    Piece::Body(bytes) => frame.extend_from_slice(bytes),
                    Piece::End => frames.push(std::mem::take(&mut frame)),
                    Piece::Tick => frames.push(Vec::new()),
                }
            }
        }
        frames
    }

    #[test]
    fn a_header_holds_less_than_4_gib() {
        let most = u32::MAX as usize;
        assert_eq!(header(most), Some([0xff; HEADER]));
        assert_eq!(header(most + 1), None);
        let mut input = &[0xff; HEADER][..];
        assert_eq!(FrameReader::default().next(&mut input), Some(Piece::Start(most)));
    }

    proptest! {
        /// Whatever the chunking, the frames written come out, in order and whole.
        #[test]
        fn any_chunking_gives_the_same_frames(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            cut in 1usize..64,
        ) {
            let mut wire = Vec::new();
            for frame in &frames {
                wire.extend_from_slice(&header(frame.len()).unwrap());
                wire.extend_from_slice(frame);
            }
            // The end of a frame is reported with the bytes that follow it, or with none.
            let mut chunks: Vec<&[u8]> = wire.chunks(cut).collect();
            chunks.push(&[]);
            prop_assert_eq!(read(&chunks), frames);
        }
    }
}
