//! Halves of datagrams, in any order, with any number, any number of times: what is joined of them
//! are a first and a second one of the same number.
//!
//! An input is a list of halves: which half of which number, and its content.

use macula_core::mesh::split::Joiner;

use super::choices::Choices;

pub fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let mut joiner = Joiner::default();
    let mut given: Vec<(bool, u16, Vec<u8>)> = Vec::new();
    while !choices.0.is_empty() {
        let is_first = choices.next() & 1 == 0;
        // Few numbers, or they never meet; some halves are too short to have one.
        let number = [0, choices.next() as u8 % 40];
        let len = choices.next() % 8;
        let content = choices.take(len);
        let whole = match len {
            7 => joiner.join(is_first, &number[..1]),
            _ => joiner.join(is_first, &[&number[..], &content].concat()),
        };
        if len == 7 {
            assert_eq!(whole, None);
            continue;
        }
        let number = u16::from_be_bytes(number);
        if let Some(whole) = whole {
            let other = given.iter().any(|(first, of, other)| {
                let (a, b) = if is_first { (&content, other) } else { (other, &content) };
                *first != is_first && *of == number && [&a[..], b].concat() == whole
            });
            assert!(other, "{whole:?} is not made of two halves");
        }
        given.push((is_first, number, content));
    }
}
