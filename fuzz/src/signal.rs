//! The classifier: any bytes are some signal, the same one however they are cut.
//!
//! An input is a byte that says how to cut, and a frame.

use macula_core::dist::atoms::Refs;
use macula_core::dist::signal::classify;

pub fn run(input: &[u8]) {
    let Some((&cut, frame)) = input.split_first() else { return };
    let atoms = &mut Refs::default();
    let whole = classify([frame], atoms);
    assert_eq!(classify(frame.chunks(1), atoms), whole);
    assert_eq!(classify(frame.chunks(usize::from(cut).max(1)), atoms), whole);
    let (head, tail) = frame.split_at(usize::from(cut).min(frame.len()));
    assert_eq!(classify([head, &[], tail, &[]], atoms), whole);
}
