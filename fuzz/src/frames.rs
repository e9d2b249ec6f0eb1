//! The frame splitter: however a stream is cut into chunks, the same frames come out of it.
//!
//! An input is a byte that says how to cut, and the stream.

use macula_core::dist::frame::{FrameReader, Piece};

/// The frames of a stream as far as they go, without what is in them twice.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    /// Announced lengths, 0 for a tick.
    lengths: Vec<usize>,
    bodies: Vec<u8>,
    whole: usize,
}

pub fn run(input: &[u8]) {
    let Some((&cut, stream)) = input.split_first() else { return };
    let at_once = read([stream]);
    let in_pieces = read(stream.chunks(usize::from(cut).max(1)));
    assert_eq!(at_once, in_pieces);
    let announced: usize = at_once.lengths.iter().sum();
    assert!(at_once.bodies.len() <= announced);
    // Headers and bodies are the whole stream, up to a header that is not whole.
    let rest = stream.len() - 4 * at_once.lengths.len() - at_once.bodies.len();
    assert!(rest < 4);
}

fn read<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let mut reader = FrameReader::default();
    let mut read = Read::default();
    // The end of a frame is told with what follows it, or with nothing.
    for mut chunk in chunks.into_iter().chain([&[][..]]) {
        while let Some(piece) = reader.next(&mut chunk) {
            take(piece, &mut read);
        }
        assert!(chunk.is_empty(), "bytes are left behind");
    }
    read
}

fn take(piece: Piece<'_>, read: &mut Read) {
    match piece {
        Piece::Start(len) => {
            assert!(len > 0);
            read.lengths.push(len);
        }
        Piece::Tick => read.lengths.push(0),
        Piece::Body(bytes) => {
            assert!(!bytes.is_empty());
            read.bodies.extend_from_slice(bytes);
        }
        Piece::End => read.whole += 1,
    }
}
