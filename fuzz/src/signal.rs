//! The classifier: any bytes are some signal, the same one however they are cut.
//!
//! An input is a byte that says how to cut, and a frame.

use macula_core::dist::atoms::Refs;
use macula_core::dist::signal::{Signal, classify};

pub fn run(input: &[u8]) {
    let Some((&cut, frame)) = input.split_first() else { return };
    let whole = read([frame]);
    assert_eq!(read(frame.chunks(1)), whole);
    assert_eq!(read(frame.chunks(usize::from(cut).max(1))), whole);
    let (head, tail) = frame.split_at(usize::from(cut).min(frame.len()));
    assert_eq!(read([head, &[], tail, &[]]), whole);
}

fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (Signal, Refs) {
    let mut atoms = Refs::default();
    (classify(parts, &mut atoms), atoms)
}
