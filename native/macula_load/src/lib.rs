//! Loads a relay: real nodes by the thousand that join, talk in pairs and leave, and others that
//! misbehave; and a report of how the relay and the talk of the well-behaved fared.
//!
//! The relay is a process of its own, so that its memory and CPU can be told from the load's, and so
//! is whoever misbehaves, so that it can be given a share of CPU of its own. All of it is on
//! loopback, where each node has an address of its own; every load ends by itself.
//!
//! [`node`] are whole nodes of `macula_net`, [`mod@line`] attachments with nothing behind them, which
//! cost so little that the relay is what gets busy.
#![forbid(unsafe_code)]

pub mod beside;
pub mod figures;
pub mod latency;
pub mod line;
pub mod node;
pub mod options;
pub mod process;
pub mod relay;
pub mod rogue;
pub mod scenario;
pub mod soak;
pub mod talk;
pub mod throttle;
pub mod turn;

/// What went wrong, in words.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The realm of all nodes of a load.
pub const REALM: &str = "load";

/// Their cookie.
pub const COOKIE: &[u8] = b"of a load";
