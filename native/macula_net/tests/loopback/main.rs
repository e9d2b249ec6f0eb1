//! Endpoints and links over real UDP sockets, all of them on loopback addresses.
//!
//! Times appear only as bounds against hanging, never as expectations. Tests that need a port
//! nobody else takes use a loopback address of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bind;
mod certificates;
mod dial;
mod eavesdrop;
mod ending;
mod flood;
mod frames;
mod lanes;
mod mesh;
mod mitm;
mod paths;
mod peers;
mod restart;
mod rogue;
mod rogue_nodes;
mod rogue_relays;
mod support;
mod trust;
mod well_known;
