//! Datagrams, and reports about datagrams, under any source address, through a raw socket.

use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// The protocol number with which the kernel takes packets with their IP header.
const RAW: i32 = 255;

pub struct Forger {
    socket: Socket,
    packet: Vec<u8>,
}

impl Forger {
    pub fn new() -> Forger {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)));
        Forger { socket: socket.expect("a raw socket (it takes root)"), packet: Vec::new() }
    }

    /// Sends `payload`; false when the system would not take it.
    pub fn send(&mut self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> bool {
        self.packet.clear();
        self.ip_header(UDP, *from.ip(), *to.ip());
        self.udp_header(from.port(), to.port(), payload.len());
        self.packet.extend(payload);
        self.socket.send_to(&self.packet, &to.into()).is_ok()
    }

    /// Tells `whom` that its last datagram to `peer` came to a closed port (RFC 792): the quoted
    /// headers are all that an honest report would have, and everybody can guess them.
    pub fn report_unreachable(&mut self, whom: SocketAddrV4, peer: SocketAddrV4) -> bool {
        self.packet.clear();
        self.ip_header(ICMP, *peer.ip(), *whom.ip());
        self.packet.extend([3, 3, 0, 0, 0, 0, 0, 0]);
        self.ip_header(UDP, *whom.ip(), *peer.ip());
        self.udp_header(whom.port(), peer.port(), 0);
        let sum = checksum(&self.packet[IP_HEADER..]);
        self.packet[IP_HEADER + 2..IP_HEADER + 4].copy_from_slice(&sum.to_be_bytes());
        self.socket.send_to(&self.packet, &whom.into()).is_ok()
    }

    /// The kernel adds the length in all, an identification and the header's checksum.
    fn ip_header(&mut self, protocol: u8, from: Ipv4Addr, to: Ipv4Addr) {
        self.packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
        self.packet.extend(from.octets());
        self.packet.extend(to.octets());
    }

    fn udp_header(&mut self, from: u16, to: u16, payload: usize) {
        self.packet.extend(from.to_be_bytes());
        self.packet.extend(to.to_be_bytes());
        self.packet.extend(((UDP_HEADER + payload) as u16).to_be_bytes());
        // No checksum: UDP over IPv4 may do without.
        self.packet.extend([0, 0]);
    }
}

/// The internet checksum of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
