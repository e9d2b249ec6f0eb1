//! Frames on their way up: filled in memory of the emulator's, posted to the input handler.

use macula_net::{Closed, Inbox};
use rustler::{Binary, Encoder, Env, LocalPid, NewBinary, OwnedBinary, Term};

use crate::atoms;
use crate::runtime::post;
use crate::term::closed;

/// Largest binary the emulator keeps on a process heap, in bytes (`ERL_ONHEAP_BIN_LIMIT`).
const ON_HEAP: usize = 64;

/// Posts frames to the input handler of a link.
pub(crate) struct InputHandler {
    pub(crate) id: u64,
    pub(crate) pid: LocalPid,
}

/// A frame being filled. Each has memory of its own: frames that shared a batch would keep it all
/// alive when only one of them stays in a mailbox.
pub(crate) enum Frame {
    Small { bytes: [u8; ON_HEAP], len: u8 },
    Large(OwnedBinary),
}

impl AsMut<[u8]> for Frame {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Frame::Small { bytes, len } => &mut bytes[..usize::from(*len)],
            Frame::Large(binary) => binary.as_mut_slice(),
        }
    }
}

impl Frame {
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

impl Inbox for InputHandler {
    type Frame = Frame;

    fn allocate(&self, len: usize) -> Frame {
        if len <= ON_HEAP {
            Frame::Small { bytes: [0; ON_HEAP], len: len as u8 }
        } else {
            Frame::Large(OwnedBinary::new(len))
        }
    }

    fn deliver(&self, frames: Vec<Frame>, bytes: usize) {
        let id = self.id;
        post(self.pid, move |env| {
            let frames: Vec<Term<'_>> =
                frames.into_iter().map(|frame| frame.into_term(env)).collect();
            (atoms::macula_frames(), id, frames, bytes).encode(env)
        });
    }

    fn closed(&self, reason: &Closed) {
        post_closed(self.pid, self.id, reason);
    }
}

/// `{macula_link, Id, {closed, Reason}}` to `pid`.
pub(crate) fn post_closed(pid: LocalPid, id: u64, reason: &Closed) {
    let reason = reason.clone();
    post(pid, move |env| {
        (atoms::macula_link(), id, (atoms::closed(), closed(env, &reason))).encode(env)
    });
}
