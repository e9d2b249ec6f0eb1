//! STUN (RFC 8489): what a relay answers to whoever asks under which address it is seen.
//!
//! Binding requests only, without authentication: the answer says nothing that its reader does not
//! send in every packet.

use std::net::{IpAddr, SocketAddr};

/// The fixed part of a message (section 5).
const HEADER: usize = 20;

const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;

const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;

/// Attributes that a request may carry and that change nothing here: MESSAGE-INTEGRITY, USERNAME
/// and their kin ask for an authentication that is not offered, which their sender sees by its
/// absence from the answer. 0x8000 and above may be ignored by definition.
const HARMLESS: [u16; 5] = [0x0006, 0x0008, 0x001c, 0x001d, 0x001e];

/// Unknown attributes that an answer names at most: more would make the answer to a small request
/// a large one.
const NAMED: usize = 4;

/// The answer to `datagram`, which came from `from`; none when it is no binding request.
pub fn answer(datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let (header, body) = datagram.split_at_checked(HEADER)?;
    let (kind, rest) = header.split_at_checked(2)?;
    let (length, rest) = rest.split_at_checked(2)?;
    let (cookie, transaction) = rest.split_at_checked(4)?;
    let is_binding = kind == BINDING_REQUEST.to_be_bytes() && cookie == MAGIC_COOKIE;
    if !is_binding || usize::from(number(length)?) != body.len() {
        return None;
    }
    let unknown = unknown(body)?;
    Some(if unknown.is_empty() {
        message(BINDING_SUCCESS, transaction, &[mapped(from, transaction)])
    } else {
        message(BINDING_ERROR, transaction, &refusal(&unknown))
    })
}

/// The attributes that must be understood and are not; none: the message is malformed.
fn unknown(mut body: &[u8]) -> Option<Vec<u16>> {
    let mut unknown = Vec::new();
    while !body.is_empty() {
        let (header, rest) = body.split_at_checked(4)?;
        let (kind, length) = (number(&header[..2])?, number(&header[2..])?);
        // Values are padded to a multiple of four bytes (section 14).
        body = rest.get(usize::from(length).next_multiple_of(4)..)?;
        if kind < 0x8000 && !HARMLESS.contains(&kind) && unknown.len() < NAMED {
            unknown.push(kind);
        }
    }
    Some(unknown)
}

fn number(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// XOR-MAPPED-ADDRESS: port and address, masked so that no middlebox rewrites them (14.2).
fn mapped(from: SocketAddr, transaction: &[u8]) -> (u16, Vec<u8>) {
    let mask = MAGIC_COOKIE.iter().chain(transaction);
    let masked = |bytes: &[u8]| bytes.iter().zip(mask.clone()).map(|(a, b)| a ^ b).collect();
    let (family, address): (u8, Vec<u8>) = match from.ip().to_canonical() {
        IpAddr::V4(v4) => (1, masked(&v4.octets())),
        IpAddr::V6(v6) => (2, masked(&v6.octets())),
    };
    let mut value = vec![0, family];
    value.extend(masked(&from.port().to_be_bytes()));
    value.extend(address);
    (XOR_MAPPED_ADDRESS, value)
}

/// 420, with what was not understood (6.3.1).
fn refusal(unknown: &[u16]) -> [(u16, Vec<u8>); 2] {
    let code = [&[0, 0, 4, 20][..], b"Unknown Attribute"].concat();
    let named = unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    [(ERROR_CODE, code), (UNKNOWN_ATTRIBUTES, named)]
}

fn message(kind: u16, transaction: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(kind.to_be_bytes());
        body.extend((value.len() as u16).to_be_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut out = kind.to_be_bytes().to_vec();
    out.extend((body.len() as u16).to_be_bytes());
    out.extend(MAGIC_COOKIE);
    out.extend(transaction);
    out.extend(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The transaction id of the examples in RFC 5769.
    const TRANSACTION: [u8; 12] =
        [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn request(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        message(BINDING_REQUEST, &TRANSACTION, attributes)
    }

    /// The mapped addresses of RFC 5769, 2.2 and 2.3, to the byte.
    #[test]
    fn addresses_are_masked_as_in_the_examples() {
        let v4 = answer(&request(&[]), "192.0.2.1:32853".parse().unwrap()).unwrap();
        assert_eq!(v4[..4], [0x01, 0x01, 0x00, 0x0c]);
        assert_eq!(v4[4..20], [&MAGIC_COOKIE[..], &TRANSACTION].concat());
        assert_eq!(v4[20..], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let from = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        let v6 = answer(&request(&[]), from).unwrap();
        assert_eq!(
            v6[20..],
            [
                0, 0x20, 0, 0x14, 0, 2, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79,
                0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9
            ]
        );
    }

    /// An IPv4 peer of a socket for both families is told its IPv4 address.
    #[test]
    fn a_mapped_address_is_told_as_ipv4() {
        let plain = answer(&request(&[]), "192.0.2.1:32853".parse().unwrap());
        assert_eq!(answer(&request(&[]), "[::ffff:192.0.2.1]:32853".parse().unwrap()), plain);
    }

    #[test]
    fn what_must_be_understood_is_refused_by_name() {
        let from = "192.0.2.1:1".parse().unwrap();
        let priority = (0x0024, vec![0; 4]);
        let optional = (0x8022, b"software".to_vec());
        let user = (0x0006, b"me".to_vec());
        let answer_to = |attributes: &[_]| answer(&request(attributes), from).unwrap();
        assert_eq!(answer_to(&[optional.clone(), user])[..2], [0x01, 0x01]);
        let refused = answer_to(&[optional, priority]);
        assert_eq!(refused[..2], [0x01, 0x11]);
        assert_eq!(refused[24..28], [0, 0, 4, 20]);
        assert_eq!(refused[refused.len() - 8..], [0, 0x0a, 0, 2, 0, 0x24, 0, 0]);
    }

    #[test]
    fn what_is_no_request_is_not_answered() {
        let from = "192.0.2.1:1".parse().unwrap();
        let good = request(&[(0x8022, vec![1, 2, 3])]);
        assert!(answer(&good, from).is_some());
        for len in 0..good.len() {
            assert_eq!(answer(&good[..len], from), None, "cut to {len}");
        }
        // An answer is not answered: two relays would never stop.
        assert_eq!(answer(&answer(&good, from).unwrap(), from), None);
        let mut other_cookie = good;
        other_cookie[4] = 0;
        assert_eq!(answer(&other_cookie, from), None);
    }

    proptest! {
        #[test]
        fn anything_is_survived_and_nothing_grows(
            head in prop::sample::select(vec![vec![], request(&[])[..2].to_vec()]),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let datagram = [head, noise].concat();
            if let Some(answer) = answer(&datagram, "192.0.2.1:1".parse().unwrap()) {
                prop_assert!(answer.len() <= datagram.len() + 64);
            }
        }
    }
}
