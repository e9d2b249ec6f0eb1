//! What a datagram is, told by its first byte: one UDP port serves QUIC, STUN and sealed packets.
//!
//! The ranges follow RFC 9443 (multiplexing with QUIC): STUN has the two top bits clear and starts
//! below 4; a QUIC v1 packet has its fixed bit (0x40) set as long as neither side greases it, which
//! we forbid. 4 to 15 is unassigned there and carries our sealed packets.

/// The kinds of datagram on our port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the QUIC endpoint.
    Quic,
    /// A STUN message (RFC 8489).
    Stun,
    /// One of our own sealed packets.
    Sealed,
    /// Nothing of ours.
    Unknown,
}

/// A first byte that makes quinn drop a packet: its fixed bit is clear.
pub const NOT_QUIC: u8 = 0;

/// A first byte that makes a datagram nothing of ours.
pub const NOBODYS: u8 = 16;

/// The kind of `datagram`.
pub fn classify(datagram: &[u8]) -> Kind {
    match datagram.first() {
        Some(0..=3) => Kind::Stun,
        Some(4..=15) => Kind::Sealed,
        Some(first) if first & 0x40 != 0 => Kind::Quic,
        _ => Kind::Unknown,
    }
}

/// Whether `datagram` can be a server's first answer in QUIC: a long header (RFC 9000, 17.2) of
/// version 1, or one that names the versions it speaks.
pub fn may_begin_quic(datagram: &[u8]) -> bool {
    const VERSION_NEGOTIATION: u32 = 0;
    const VERSION_1: u32 = 1;
    let Some([first, version @ ..]) = datagram.first_chunk::<5>() else {
        return false;
    };
    match u32::from_be_bytes(*version) {
        // The other bits of the first byte can be anything then (17.2.1).
        VERSION_NEGOTIATION => first & 0x80 != 0,
        VERSION_1 => first & 0xc0 == 0xc0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quic_begins_as_quic() {
        assert!(may_begin_quic(&[0xc3, 0, 0, 0, 1, 8]));
        assert!(may_begin_quic(&[0xe9, 0, 0, 0, 0, 8]));
        // A short header, another version, what is cut off, and what other protocols answer.
        for other in [&[0x43, 0, 0, 0, 1][..], &[0xc3, 0, 0, 0, 2], &[0xc3, 0, 0, 0], &[]] {
            assert!(!may_begin_quic(other), "{other:?}");
        }
        assert!(!may_begin_quic(b"HTTP/1.1 400 Bad Request"));
        assert!(!may_begin_quic(&[0xc3, 0, 0x80, 0x01, 0, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn every_first_byte_has_one_kind() {
        let count = |kind| (0..=255u8).filter(|byte| classify(&[*byte]) == kind).count();
        assert_eq!(count(Kind::Stun), 4);
        assert_eq!(count(Kind::Sealed), 12);
        assert_eq!(count(Kind::Quic), 128);
        assert_eq!(count(Kind::Unknown), 112);
        assert_eq!(classify(&[]), Kind::Unknown);
        assert_ne!(classify(&[NOT_QUIC]), Kind::Quic);
        assert_eq!(classify(&[NOBODYS]), Kind::Unknown);
    }
}
