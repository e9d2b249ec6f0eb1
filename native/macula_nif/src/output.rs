//! Frames on their way down: what the emulator hands out becomes chunks of bytes for the link.
//!
//! Small binaries are copied into one arena per call; large ones are shared with the emulator and
//! released when the peer has acknowledged them.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use macula_core::dist::frame;
use parking_lot::Mutex;
use rustler::{Binary, Env, Error, NifResult, OwnedEnv, Term};

use crate::term::for_each;

/// Binaries from this size on are shared. Sharing costs an entry in the send buffer, and quinn goes
/// through these one by one for each packet: with shared binaries of 4 KiB that took a tenth of all
/// the processor time, more than copying them does.
const SHARE_FROM: usize = 16 * 1024;

/// The frames of `list`, `[{Size, iovec()}]`, as chunks, and how many they are.
///
/// # Errors
/// Not such a list, or a wrong size; a frame of 4 GiB or more, for which the format has no room.
pub(crate) fn frames(list: Term<'_>) -> NifResult<(Vec<Bytes>, u64)> {
    let mut out = Output::default();
    let mut count = 0;
    for_each(list, |frame| {
        let (size, parts): (usize, Term<'_>) = frame.decode()?;
        out.arena.put_slice(&frame::header(size).ok_or(Error::BadArg)?);
        let mut found = 0;
        for_each(parts, |part| {
            let binary = Binary::from_term(part)?;
            found += binary.len();
            out.push(&binary);
            Ok(())
        })?;
        count += 1;
        if found == size { Ok(()) } else { Err(Error::BadArg) }
    })?;
    out.flush();
    Ok((out.chunks, count))
}

#[derive(Default)]
struct Output {
    chunks: Vec<Bytes>,
    arena: BytesMut,
    kept: Option<Arc<Kept>>,
}

impl Output {
    fn push(&mut self, binary: &Binary<'_>) {
        if binary.len() < SHARE_FROM {
            self.arena.put_slice(binary);
        } else {
            self.flush();
            let kept = self.kept.get_or_insert_with(Arc::default);
            self.chunks.push(Bytes::from_owner(kept.share(binary)));
        }
    }

    fn flush(&mut self) {
        if !self.arena.is_empty() {
            self.chunks.push(self.arena.split().freeze());
        }
    }
}

/// Holds references to the binaries shared by one call.
#[derive(Default)]
struct Kept(Mutex<Environment>);

struct Environment(OwnedEnv);

impl Default for Environment {
    fn default() -> Environment {
        Environment(OwnedEnv::new())
    }
}

/// The bytes of a binary that `kept` keeps alive.
struct Shared {
    _kept: Arc<Kept>,
    start: *const u8,
    len: usize,
}

// SAFETY: the bytes are immutable, and stay where they are for as long as `_kept` lives, whichever
// thread looks at them or drops the last reference (an environment may be freed by any thread).
unsafe impl Send for Shared {}
// SAFETY: as above; there is nothing mutable.
unsafe impl Sync for Shared {}

impl Kept {
    fn share(self: &Arc<Kept>, binary: &Binary<'_>) -> Shared {
        // Binaries of this size are reference-counted: copying the term copies no bytes.
        let (start, len) = self.0.lock().0.run(|env: Env<'_>| {
            let kept = binary.to_term(env);
            Binary::from_term(kept).map_or((binary.as_ptr(), 0), |kept| (kept.as_ptr(), kept.len()))
        });
        Shared { _kept: self.clone(), start, len }
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` and `len` were read off a binary term in the environment that `_kept`
        // holds and never clears; the emulator does not move the bytes of a reference-counted one.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}
