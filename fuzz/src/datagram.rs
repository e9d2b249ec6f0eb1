//! What a datagram is: the first byte alone decides, and only QUIC packets reach quinn.

use macula_core::path::demux::{Kind, NOT_QUIC, classify};

pub fn run(datagram: &[u8]) {
    let kind = classify(datagram);
    let fixed_bit = datagram.first().is_some_and(|first| first & 0x40 != 0);
    assert_eq!(kind == Kind::Quic, fixed_bit);
    assert_eq!(kind, classify(&datagram[..datagram.len().min(1)]));
    // What is blanked is no longer taken for QUIC.
    let mut blanked = datagram.to_vec();
    if let Some(first) = blanked.first_mut() {
        *first = NOT_QUIC;
    }
    assert_ne!(classify(&blanked), Kind::Quic);
}
