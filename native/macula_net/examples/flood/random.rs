//! Numbers without a pattern, fast (SplitMix64): nothing here is secret.

use std::net::{Ipv4Addr, SocketAddrV4};

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_ne_bytes()[..chunk.len()]);
        }
    }

    /// A source in the /16 that begins at `network`, with a port that programs use.
    pub fn source(&mut self, network: Ipv4Addr) -> SocketAddrV4 {
        let host = 1 + self.below(0xfffe) as u32;
        let ip = Ipv4Addr::from_bits(network.to_bits() | host);
        SocketAddrV4::new(ip, 1024 + self.below(64_000) as u16)
    }
}
