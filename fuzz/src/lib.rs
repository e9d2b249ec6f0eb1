//! What is fuzzed: every decoder that faces the network, with what must hold whatever arrives.
//!
//! A target panics when something does not hold. `./dev fuzz` looks for such input; what it has
//! found worth keeping lies in `corpus/` and is replayed by `cargo test` (`macula_core`'s corpus
//! test, which takes this file as a module of its own). A new target is a line in [`TARGETS`] and its
//! corpus.

mod between;
mod choices;
mod datagram;
mod frames;
mod halves;
mod hello;
mod lanes;
mod relay_messages;
mod relay_peers;
mod relay_table;
mod sealed;
mod signal;
mod stun;

/// A target's name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 17] = [
    ("datagram", datagram::run),
    ("frames", frames::run),
    ("hello_acceptor", hello::acceptor),
    ("hello_dialler", hello::dialler),
    ("hello_between", between::run),
    ("halves", halves::run),
    ("lanes_between", lanes::between),
    ("lanes_hostile", lanes::hostile),
    ("relay_between", relay_messages::between),
    ("relay_packet", relay_messages::packet),
    ("relay_peers", relay_peers::run),
    ("relay_table", relay_table::run),
    ("relay_to_node", relay_messages::to_node),
    ("relay_to_relay", relay_messages::to_relay),
    ("sealed", sealed::run),
    ("signal", signal::run),
    ("stun", stun::run),
];

/// The target called `name`.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|(target, _)| *target == name)
}
