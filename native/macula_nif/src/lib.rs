//! The NIF library of macula: `src_erl/macula_nif.erl` says what each function does.
//!
//! Nothing is decided here. Terms become Rust values and back, resources hold what Erlang refers
//! to, and native threads post messages to processes. No function blocks; those that touch files
//! or wait for a port run on dirty schedulers.

mod atoms;
mod dial;
mod endpoint;
mod halt;
mod hops;
mod inbox;
mod link;
mod mdns;
mod measure;
mod mesh;
mod node;
mod output;
mod registry;
mod relay;
mod resolve;
mod runtime;
mod term;

rustler::init!("macula_nif");
