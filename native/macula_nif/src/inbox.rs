//! Frames on their way up. The input handler is told that some wait, and takes them on its own
//! scheduler: what another thread allocates costs the emulator a wake-up of yet another one to be freed.

use macula_core::dist::frame::Piece;
use macula_core::dist::signal;
use macula_net::{Closed, Inbox, Stream};
use rustler::{Binary, Encoder, Env, LocalPid, NewBinary, OwnedBinary, Term};

use crate::atoms;
use crate::runtime::post;
use crate::term::closed;

/// Largest binary the emulator keeps on a process heap, in bytes (`ERL_ONHEAP_BIN_LIMIT`).
const ON_HEAP: usize = 64;

/// The input handler of a link.
pub(crate) struct InputHandler {
    pub(crate) id: u64,
    pub(crate) pid: LocalPid,
}

impl Inbox for InputHandler {
    fn readable(&self) {
        let id = self.id;
        post(self.pid, move |env| (atoms::macula_link(), id, atoms::readable()).encode(env));
    }

    fn closed(&self, reason: &Closed) {
        post_closed(self.pid, self.id, reason);
    }
}

/// Makes frames of their pieces.
pub(crate) struct Assembly {
    /// The emulators may use an atom cache, and so they do.
    atom_cache: bool,
    /// The frames begun, and how much of each is there: one of each stream at most. Those that a call
    /// leaves are few, as most frames come in one piece.
    begun: Vec<(Stream, Frame, usize)>,
}

impl Assembly {
    /// For a link whose emulators may use an atom cache, or not.
    pub(crate) fn new(atom_cache: bool) -> Assembly {
        Assembly { atom_cache, begun: Vec::new() }
    }

    /// What the emulator may be given in place of a frame.
    fn deliverable(&self, mut frame: Frame) -> Frame {
        match signal::cached_header(frame.as_mut()) {
            Some(header) if !self.atom_cache => {
                let mut corrupt = Frame::new(header);
                corrupt.as_mut().copy_from_slice(&frame.as_mut()[..header]);
                corrupt
            }
            _ => frame,
        }
    }

    /// Takes the next piece of a stream; the frame that it completes.
    pub(crate) fn add<'a>(
        &mut self,
        env: Env<'a>,
        stream: Stream,
        piece: Piece<'_>,
    ) -> Option<Term<'a>> {
        let at = self.begun.iter().rposition(|(of, ..)| *of == stream);
        match (piece, at) {
            (Piece::Start(len), None) => self.begun.push((stream, Frame::new(len), 0)),
            (Piece::Body(bytes), Some(at)) => {
                let (_, frame, filled) = &mut self.begun[at];
                frame.as_mut()[*filled..*filled + bytes.len()].copy_from_slice(bytes);
                *filled += bytes.len();
            }
            (Piece::End, Some(at)) => {
                let (_, frame, _) = self.begun.swap_remove(at);
                return Some(self.deliverable(frame).into_term(env));
            }
            _ => {}
        }
        None
    }
}

/// A frame being filled. Each has memory of its own: frames that shared a batch would keep it all
/// alive when only one of them stays in a mailbox.
enum Frame {
    Small { bytes: [u8; ON_HEAP], len: u8 },
    Large(OwnedBinary),
}

impl Frame {
    fn new(len: usize) -> Frame {
        if len <= ON_HEAP {
            Frame::Small { bytes: [0; ON_HEAP], len: len as u8 }
        } else {
            Frame::Large(OwnedBinary::new(len))
        }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Frame::Small { bytes, len } => &mut bytes[..usize::from(*len)],
            Frame::Large(binary) => binary.as_mut_slice(),
        }
    }

    fn into_term(self, env: Env<'_>) -> Term<'_> {
        match self {
            Frame::Small { bytes, len } => {
                let mut binary = NewBinary::new(env, usize::from(len));
                binary.as_mut_slice().copy_from_slice(&bytes[..usize::from(len)]);
                Binary::from(binary).to_term(env)
            }
            Frame::Large(binary) => binary.release(env).to_term(env),
        }
    }
}

/// `{macula_link, Id, {closed, Reason}}` to `pid`.
pub(crate) fn post_closed(pid: LocalPid, id: u64, reason: &Closed) {
    let reason = reason.clone();
    post(pid, move |env| {
        (atoms::macula_link(), id, (atoms::closed(), closed(env, &reason))).encode(env)
    });
}
