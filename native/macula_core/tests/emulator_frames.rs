//! What real emulators of OTP 25, 27 and 29 hand out, and what the classifier makes of it, wherever
//! the frames are cut.
//!
//! Each line of `signals/otp*.tsv` is what the node was asked to do, whose signal the frame is, and the
//! parts of its iovec. They were taken with `erlang:trace` off `erlang:dist_ctrl_get_data/1` of a node,
//! without atom cache but where the file says so; payloads are cut to their first bytes, and of several fragments in the middle one
//! is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use macula_core::dist::atoms::Refs;
use macula_core::dist::signal::{self, Sender, Signal};

const TAKEN: [&str; 4] = [
    include_str!("signals/otp25.tsv"),
    include_str!("signals/otp25_atom_cache.tsv"),
    include_str!("signals/otp27.tsv"),
    include_str!("signals/otp29.tsv"),
];

#[derive(Debug)]
struct Frame {
    expected: String,
    parts: Vec<Vec<u8>>,
}

fn frames() -> impl Iterator<Item = Frame> {
    TAKEN.into_iter().flat_map(str::lines).map(|line| {
        let [_, expected, parts] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let parts = parts.split(' ').map(bytes).collect();
        Frame { expected: expected.to_owned(), parts }
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digits).collect()
}

fn classify<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Signal {
    signal::classify(parts, &mut Refs::default())
}

/// As the second column says it. An answer that there is no child goes with the request's process,
/// which is of the other node.
fn said(signal: Signal) -> String {
    let id = |sender: Sender| sender.id.to_string();
    match signal {
        Signal::From(sender) => format!("from {}", id(sender)),
        Signal::SpawnReply(sender) => format!("reply {}", id(sender)),
        Signal::Begins { sender, .. } => format!("begins {}", sender.map_or("-".to_owned(), id)),
        Signal::Continues { last: false, .. } => "continues".to_owned(),
        Signal::Continues { last: true, .. } => "last".to_owned(),
        Signal::Unknown => "unknown".to_owned(),
    }
}

fn parts(frame: &Frame) -> impl Iterator<Item = &[u8]> {
    frame.parts.iter().map(Vec::as_slice)
}

#[test]
fn every_signal_is_of_the_process_that_sent_it() {
    for frame in frames() {
        let said = said(classify(parts(&frame)));
        match frame.expected.as_str() {
            "reply error" => assert!(said.starts_with("reply "), "{said}: {frame:?}"),
            expected => assert_eq!(said, expected, "{frame:?}"),
        }
    }
}

#[test]
fn fragments_have_their_sequence_in_common() {
    let mut begun = None;
    let mut ended = 0;
    for frame in frames() {
        match classify(parts(&frame)) {
            Signal::Begins { sequence, last, .. } => {
                assert_eq!((begun, last), (None, false));
                begun = Some(sequence);
            }
            Signal::Continues { sequence, last } => {
                assert_eq!(begun, Some(sequence));
                begun = begun.filter(|_| !last);
                ended += u32::from(last);
            }
            _ => {}
        }
    }
    assert_eq!(begun, None);
    assert_eq!(ended, 16);
}

#[test]
fn it_does_not_matter_where_a_frame_is_cut() {
    for frame in frames() {
        let whole = frame.parts.concat();
        let expected = classify([whole.as_slice()]);
        assert_eq!(classify(parts(&frame)), expected);
        assert_eq!(classify(whole.chunks(1)), expected);
        for at in 0..whole.len() {
            let (head, tail) = whole.split_at(at);
            assert_eq!(classify([head, &[], tail]), expected, "cut at {at}: {frame:?}");
        }
    }
}

/// A frame that ends early is no signal of anybody, until its sender has been told.
#[test]
fn half_a_frame_is_nobodys() {
    for frame in frames() {
        let whole = frame.parts.concat();
        let expected = classify([whole.as_slice()]);
        for len in 0..whole.len() {
            match classify([&whole[..len]]) {
                Signal::Unknown | Signal::Begins { sender: None, .. } => {}
                signal @ Signal::SpawnReply(_) => {
                    // Without its last element it is an answer without a child.
                    assert!(matches!(expected, Signal::SpawnReply(_)), "{signal:?}");
                }
                signal => assert_eq!(signal, expected, "{len} bytes of {frame:?}"),
            }
        }
    }
}
