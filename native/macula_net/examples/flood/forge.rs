//! Datagrams under any source address, through a raw socket.

use std::net::SocketAddrV4;

use socket2::{Domain, Protocol, Socket, Type};

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;

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
        let udp_len = UDP_HEADER + payload.len();
        self.packet.clear();
        // The kernel adds the length in all, an identification and the header's checksum.
        self.packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0]);
        self.packet.extend(from.ip().octets());
        self.packet.extend(to.ip().octets());
        debug_assert_eq!(self.packet.len(), IP_HEADER);
        self.packet.extend(from.port().to_be_bytes());
        self.packet.extend(to.port().to_be_bytes());
        self.packet.extend((udp_len as u16).to_be_bytes());
        // No checksum: UDP over IPv4 may do without.
        self.packet.extend([0, 0]);
        self.packet.extend(payload);
        self.socket.send_to(&self.packet, &to.into()).is_ok()
    }
}
