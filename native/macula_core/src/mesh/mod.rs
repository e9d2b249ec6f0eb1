//! Nodes that reach each other through relays: names that only holders of the cookie can compute,
//! datagrams that only they can open, and what a node does at a relay.

pub mod claim;
pub mod key;
pub mod packet;
pub mod record;
pub mod retry;
pub mod seal;
pub mod split;
