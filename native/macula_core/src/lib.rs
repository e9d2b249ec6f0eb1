//! Every decision of macula that can be wrong in interesting ways, as pure state machines.
//!
//! Nothing here reads a clock, opens a socket or knows of Erlang: time and bytes come in as
//! parameters, what to do comes out as values. The shells around it (`macula_net`, `macula_nif`)
//! only carry those out.
#![forbid(unsafe_code)]

pub mod admission;
pub mod courtesy;
pub mod dist;
pub mod hello;
pub mod keys;
pub mod mesh;
pub mod path;
pub mod random;
pub mod relay;
pub mod replay;
pub mod secret;
pub mod srv;

mod wire;
