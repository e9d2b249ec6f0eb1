//! What the emulator hands us, and how much of it may wait.

pub mod credit;
pub mod frame;
