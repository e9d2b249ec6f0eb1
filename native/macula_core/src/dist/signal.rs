//! Reads off a distribution frame which process's signal it is.
//!
//! The order of signals is promised for each pair of a sender and a receiver (alt_dist, "Distribution
//! Module"), so the sender alone decides which way a frame may go; a receiver has many addresses
//! (pid, name, alias), a sender only one. Where it stands in the control message depends on the
//! operation (erl_dist_protocol, "Protocol between Connected Nodes"). What is not surely read is
//! [`Signal::Unknown`], which costs time and never order. That goes for operations that are not known; a header of another
//! kind than these cannot name cached atoms here, and the receiver's emulator must know it as well.
//!
//! Frames are expected as the emulator makes them, with fragments; without an atom cache, their atoms are none, one
//! byte of 0 (see [`super::atoms`]):
//!
//! ```text
//! 131, 68,                           atoms, control message, payload   a signal in one frame
//! 131, 69, sequence:64, fragment:64, atoms, control message, payload   the first frame of several
//! 131, 70, sequence:64, fragment:64,                         payload   the next ones, down to 1
//! ```

use std::array;

use super::atoms::Refs;
use super::cursor::{Cursor, Pid};

/// What a frame is, for its order among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A whole signal of this process.
    From(Sender),
    /// The emulator's answer to a request to spawn: must stay before what this process, the new one,
    /// sends itself, but none of its doing.
    SpawnReply(Sender),
    /// The first fragment of a signal, `sender` unless it is unknown. It is the last one, too, of
    /// a signal that turned out smaller than thought.
    Begins {
        /// Whose signal it is.
        sender: Option<Sender>,
        /// What its fragments have in common.
        sequence: u64,
        /// No other fragment follows.
        last: bool,
    },
    /// A further fragment. The signal takes effect with the last one.
    Continues {
        /// What the fragments of a signal have in common.
        sequence: u64,
        /// No other fragment follows.
        last: bool,
    },
    /// A signal nobody is known to be the sender of: to be delivered after everything before it
    /// and before everything behind it.
    Unknown,
}

/// A process of this node, by the numbers of its pid `<0.id.serial>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sender {
    /// Counts up with every process spawned.
    pub id: u32,
    /// Counts up when `id` has wrapped.
    pub serial: u32,
    /// The life of the node it belongs to: the emulator also answers for those of earlier lives.
    pub creation: u32,
}

impl From<Pid> for Sender {
    fn from([a, b, c, d, e, f, g, h, i, j, k, l]: Pid) -> Sender {
        Sender {
            id: u32::from_be_bytes([a, b, c, d]),
            serial: u32::from_be_bytes([e, f, g, h]),
            creation: u32::from_be_bytes([i, j, k, l]),
        }
    }
}

const VERSION: u8 = 131;
const WHOLE: u8 = 68;
const FIRST: u8 = 69;
const NEXT: u8 = 70;

const SMALL_INTEGER: u8 = 97;
const SMALL_TUPLE: u8 = 104;

/// What the frame is whose bytes are these, one part after the other, wherever it is cut; and the atoms of its header.
#[inline]
pub fn classify<'a>(parts: impl IntoIterator<Item = &'a [u8]>, atoms: &mut Refs) -> Signal {
    atoms.clear();
    signal(Cursor::new(parts.into_iter()), atoms).unwrap_or(Signal::Unknown)
}

/// Bytes of a frame's distribution header when that has an atom cache, which was not agreed upon; none
/// for every other frame.
///
/// The emulator (OTP 25 to 29) reads such a header into a cache that does not exist then, and crashes.
/// Of the header alone it says that it is corrupt, and ends the connection.
pub fn cached_header(frame: &[u8]) -> Option<usize> {
    let atoms = match frame {
        [VERSION, WHOLE, ..] => 2,
        [VERSION, FIRST, ..] => 2 + 8 + 8,
        _ => return None,
    };
    frame.get(atoms).filter(|atoms| **atoms != 0).map(|_| atoms + 1)
}

#[inline(always)]
fn signal<'a>(
    mut frame: Cursor<'a, impl Iterator<Item = &'a [u8]>>,
    atoms: &mut Refs,
) -> Option<Signal> {
    match frame.array()? {
        head @ [VERSION, WHOLE] => {
            atoms.read(&head, &mut frame)?;
            whole(&mut frame)
        }
        head @ [VERSION, FIRST] => {
            let numbers = frame.array()?;
            let (sequence, last) = fragment(numbers)?;
            let head: [u8; 18] =
                array::from_fn(|at| if at < 2 { head[at] } else { numbers[at - 2] });
            let atoms = atoms.read(&head, &mut frame);
            let sender = atoms.and_then(|()| first(&mut frame));
            Some(Signal::Begins { sender, sequence, last })
        }
        [VERSION, NEXT] => {
            let (sequence, last) = fragment(frame.array()?)?;
            Some(Signal::Continues { sequence, last })
        }
        _ => None,
    }
}

/// A sequence, and whether this is its last fragment: they count down to 1.
fn fragment(numbers: [u8; 16]) -> Option<(u64, bool)> {
    let numbers = u128::from_be_bytes(numbers);
    match numbers as u64 {
        0 => None,
        fragment => Some(((numbers >> 64) as u64, fragment == 1)),
    }
}

/// The sender in the control message of a first fragment.
fn first<'a>(frame: &mut Cursor<'a, impl Iterator<Item = &'a [u8]>>) -> Option<Sender> {
    match whole(frame)? {
        Signal::From(sender) | Signal::SpawnReply(sender) => Some(sender),
        _ => None,
    }
}

/// The signal of the control message that follows.
fn whole<'a>(frame: &mut Cursor<'a, impl Iterator<Item = &'a [u8]>>) -> Option<Signal> {
    let [SMALL_TUPLE, arity, SMALL_INTEGER, operation] = frame.array()? else {
        return None;
    };
    let position = position(operation)?;
    if arity < position.least_arity() {
        return None;
    }
    match position {
        Position::Second => {}
        Position::Third => frame.skip_term()?,
        Position::Child => return child(frame).map(Signal::SpawnReply),
    }
    frame.pid().map(|pid| Signal::From(pid.into()))
}

/// Where a control message tells its sender; the operation is element 1.
#[derive(Clone, Copy)]
enum Position {
    Second,
    Third,
    /// Of a spawn reply, see [`child`].
    Child,
}

impl Position {
    fn least_arity(self) -> u8 {
        match self {
            Position::Second => 2,
            Position::Third => 3,
            Position::Child => 5,
        }
    }
}

/// Where the sender is in a control message of this operation; none when that is not known.
///
/// Left out are SEND and SEND_TT (2, 12), which tell none: they are what was sent before the nodes
/// were connected, and to a peer without `DFLAG_SEND_SENDER`; and GROUP_LEADER (7), which tells the
/// new leader instead.
fn position(operation: u8) -> Option<Position> {
    Some(match operation {
        // LINK, EXIT, REG_SEND, EXIT2; EXIT, REG_SEND and EXIT2 with trace tokens
        1 | 3 | 6 | 8 | 13 | 16 | 18
        // MONITOR_P, DEMONITOR_P, MONITOR_P_EXIT (of a name: then an atom is there), SEND_SENDER
        | 19..=23
        // PAYLOAD_EXIT, _EXIT_TT, _EXIT2, _EXIT2_TT and _MONITOR_P_EXIT
        | 24..=28
        // ALIAS_SEND, ALIAS_SEND_TT
        | 33 | 34 => Position::Second,
        // SPAWN_REQUEST, _TT; UNLINK_ID, UNLINK_ID_ACK; ALTACT_SIG_SEND
        29 | 30 | 35 | 36 | 37 => Position::Third,
        // SPAWN_REPLY, _TT
        31 | 32 => Position::Child,
        _ => return None,
    })
}

/// Whom a spawn reply has to precede: the child, or when there is none, whoever. So one answer goes
/// with what it is an answer to: `{31, Request, Parent, Flags, Child or Reason}`.
fn child<'a>(frame: &mut Cursor<'a, impl Iterator<Item = &'a [u8]>>) -> Option<Sender> {
    frame.skip_term()?;
    let parent = frame.pid()?;
    frame.skip_term()?;
    Some(Sender::from(frame.pid().unwrap_or(parent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_atoms_is_told_from_others() {
        let first = |atoms: u8| [&[131, 69][..], &[7; 16], &[atoms, 104, 3]].concat();
        assert_eq!(cached_header(&[131, 68, 0, 104, 3, 97, 2]), None);
        assert_eq!(cached_header(&[131, 68, 3, 0x88, 8, 0]), Some(3));
        assert_eq!(cached_header(&first(0)), None);
        assert_eq!(cached_header(&first(1)), Some(19));
        assert_eq!(cached_header(&[&[131, 70][..], &[7; 20]].concat()), None);
        for len in 0..3 {
            assert_eq!(cached_header(&[131, 68][..len.min(2)]), None);
        }
    }
}
