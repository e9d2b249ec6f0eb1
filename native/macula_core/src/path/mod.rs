//! Which way a datagram goes, and whether anybody is still there.

pub mod demux;
pub mod liveness;
pub mod silence;
pub mod stun;
pub mod table;
