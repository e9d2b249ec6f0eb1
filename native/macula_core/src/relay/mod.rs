//! The relay's decisions: who may attach, who holds which tag, where a datagram goes.
//!
//! A relay keeps no state of what it forwards: only of who is attached ([`table`]), what they may
//! send ([`limits`]), how many come at once ([`pressure`]), and what they and its peers ([`peering`]) said about themselves.

pub mod between;
pub mod limits;
pub mod message;
pub mod peering;
pub mod pressure;
pub mod table;
