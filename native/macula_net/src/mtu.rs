//! How large datagrams to an address may be, as far as this machine knows. QUIC finds out whether they arrive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::socket::{getsockopt, sockopt};

use crate::mesh::is_label;
use crate::socket::from_label;

/// Within this machine: ten of them, as many as quinn sends at once, fit into what the system takes in one piece (64 KiB).
/// With 1452 bytes a 64 KiB stream on loopback had half its rate.
pub(crate) const MOST: u16 = 6500;

/// Elsewhere at most: what Ethernet carries, without the headers of IPv6 and UDP. Not jumbo frames either: a link
/// that takes another way, where its datagrams are too large, stood still for 14 s until quinn knew.
pub const USUAL: u16 = 1500 - IPV6_HEADERS;

/// What no network but the machine's own carries.
const LOOPBACK: i32 = 16 * 1024;

/// On a link that goes through a relay: what is left of [`USUAL`] under the attachment's packet and datagram frame (some 40),
/// our own header and seal (62). Larger ones would travel in two halves.
pub(crate) const RELAYED: u16 = 1340;

/// What QUIC has to get through (RFC 9000, 14).
const LEAST: u16 = 1200;

/// That of quinn.
const STEP: u16 = 20;

const IPV4_HEADERS: u16 = 20 + 8;
const IPV6_HEADERS: u16 = 40 + 8;

/// Bytes that a datagram to this label may have.
pub(crate) fn of_label(label: SocketAddr) -> u16 {
    if is_label(&label) { RELAYED } else { largest(from_label(label)) }
}

/// Bytes that a datagram to this address may have.
pub fn largest(to: SocketAddr) -> u16 {
    let (any, headers): (IpAddr, u16) = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), IPV4_HEADERS),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), IPV6_HEADERS),
    };
    match mtu(any, to) {
        Some(mtu) if mtu >= LOOPBACK => MOST,
        Some(mtu) => {
            u16::try_from(mtu).map_or(USUAL, |mtu| mtu.saturating_sub(headers)).clamp(LEAST, USUAL)
        }
        None => USUAL,
    }
}

/// The search for the largest datagrams up to this bound ends where they would grow by less. Each step takes a datagram there
/// and its acknowledgement back, and nine of them made connecting within this machine take 1.3 times as long. Five are enough,
/// and one for a peer that takes no more than is usual between machines.
pub(crate) fn step(largest: u16) -> u16 {
    if largest == MOST { USUAL - LEAST } else { STEP }
}

/// That of the way the system would take, which sends nothing for it. Linux answers this for IPv6 as well.
fn mtu(any: IpAddr, to: SocketAddr) -> Option<i32> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    getsockopt(&socket, sockopt::IpMtu).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_oneself_they_are_as_large_as_any() {
        for ip in [Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            assert_eq!(largest((ip, 9).into()), MOST, "{ip}");
        }
    }

    #[test]
    fn where_there_is_no_way_they_are_as_usual() {
        // A socket without broadcast permission is not connected there.
        assert_eq!(largest((Ipv4Addr::BROADCAST, 9).into()), USUAL);
    }
}
