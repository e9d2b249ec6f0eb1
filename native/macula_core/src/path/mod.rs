//! Which way a datagram goes, and whether anybody is still there.

pub mod bound;
pub mod control;
pub mod demux;
pub mod liveness;
pub mod select;
pub mod silence;
pub mod stun;
pub mod table;
