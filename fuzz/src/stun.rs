//! What a relay answers to strangers by STUN: only to whole requests, and hardly more than it was
//! sent.
//!
//! An input is a byte that says from where, and the datagram.

use std::net::{Ipv6Addr, SocketAddr};

use macula_core::path::stun;

/// The header of a message.
const HEADER: usize = 20;

/// The longest answer: an error that names some attributes.
const LONGEST: usize = 64;

pub fn run(input: &[u8]) {
    let Some((&from, datagram)) = input.split_first() else { return };
    let from = match from & 1 {
        0 => SocketAddr::from(([192, 0, 2, from], 4433)),
        _ => SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, from.into()), 4433)),
    };
    let Some(answer) = stun::answer(datagram, from) else { return };
    assert!(datagram.len() >= HEADER && (HEADER..=LONGEST).contains(&answer.len()));
    // The cookie and the transaction; and its length is its own.
    assert_eq!(answer[4..HEADER], datagram[4..HEADER]);
    assert_eq!(usize::from(u16::from_be_bytes([answer[2], answer[3]])), answer.len() - HEADER);
    // No answer is a question.
    assert_eq!(stun::answer(&answer, from), None);
}
