//! What the emulator hands us, which way it goes, and how much of it may wait.
//!
//! A link has a control stream and, each way, a number of lanes: streams that do not wait for each
//! other. [`lanes`] places every frame, after what [`signal`] reads off it, so that the signals of
//! one process keep their order; [`merge`] puts the lanes together again on the other side;
//! [`brake`] holds back the processes that send more than their lane takes, [`turns`] says which
//! lane writes next, and [`flows`] which of those that share it.

pub mod atoms;
pub mod brake;
pub mod credit;
mod cursor;
pub mod flows;
pub mod frame;
pub mod lane;
pub mod lanes;
pub mod memory;
pub mod merge;
pub mod signal;
pub mod turns;
