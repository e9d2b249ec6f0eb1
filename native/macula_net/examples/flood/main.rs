//! Attacks a UDP port with packets from forged sources: what a node must bear while it works.
//!
//! It is for the tests, within network namespaces that they made; it stops by itself.
//!
//! ```text
//! flood record PORT COUNT SECONDS FILE                 datagrams of that port, as this host sees them
//! flood fire TARGET NETWORK RATE SECONDS FILE          random, recorded and valid initial packets
//! flood half-open TARGET NETWORK COUNT SECONDS forged  handshakes begun, from addresses nobody has
//! flood half-open TARGET NETWORK COUNT SECONDS real    the same from addresses that do receive
//! flood unreachable TARGET PEER RATE SECONDS           ICMP: the peer's port is closed
//! ```
//!
//! `NETWORK` is the first address of a /16 from which all sources are taken.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fire;
#[path = "../../tests/shared/foreign.rs"]
#[allow(dead_code)] // Others need the rest of it.
mod foreign;
mod forge;
mod half_open;
mod initial;
mod random;
mod record;
mod unreachable;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["record", port, count, seconds, file] => {
            record::run(number(port), number(count), limit(seconds), file);
        }
        ["fire", target, network, rate, seconds, file] => {
            fire::run(address(target), net(network), number(rate), limit(seconds), file);
        }
        ["half-open", target, network, count, seconds, "forged"] => {
            half_open::forged(address(target), net(network), number(count), limit(seconds));
        }
        ["half-open", target, network, count, seconds, "real"] => {
            half_open::real(address(target), net(network), number(count), limit(seconds));
        }
        ["unreachable", target, peer, rate, seconds] => {
            unreachable::run(address(target), address(peer), number(rate), limit(seconds));
        }
        _ => panic!("usage: see the first lines of examples/flood/main.rs"),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number that fits"))
}

fn limit(seconds: &str) -> Duration {
    Duration::from_secs(number(seconds))
}

fn address(text: &str) -> SocketAddrV4 {
    text.parse().unwrap_or_else(|_| panic!("{text} is not an IPv4 address with a port"))
}

fn net(text: &str) -> Ipv4Addr {
    text.parse().unwrap_or_else(|_| panic!("{text} is not an IPv4 address"))
}
