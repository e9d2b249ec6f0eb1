//! Frames on their way down: what the emulator hands out becomes chunks of bytes for the link.
//!
//! Small binaries are copied into one arena per call and flow; large ones are shared with the emulator and
//! released when the peer has acknowledged them.

use std::sync::Arc;

use bytes::Bytes;
use macula_core::dist::atoms::Header;
use macula_core::dist::flows::Frames;
use macula_core::dist::frame;
use macula_core::dist::lane;
use macula_core::dist::lanes::Flow;
use macula_net::{Link, Output, Route, Sent};
use parking_lot::Mutex;
use rustler::{Binary, Env, Error, NifResult, OwnedEnv, Term};

use crate::term::for_each;

/// Binaries from this size on are shared. Sharing costs an entry in the send buffer, and quinn goes
/// through these one by one for each packet: with shared binaries of 4 KiB that took a tenth of all
/// the processor time, more than copying them does.
const SHARE_FROM: usize = 16 * 1024;

/// Sends the frames of `list`, `[{Size, iovec()}]`.
///
/// # Errors
/// Not such a list, or a wrong size; a frame of 4 GiB or more, for which the format has no room.
pub(crate) fn send(link: &Link, list: Term<'_>) -> NifResult<Sent> {
    let mut batch = link.batch();
    let mut out = Sending::default();
    let mut parts = Vec::new();
    for_each(list, |frame| {
        let (size, iovec): (usize, Term<'_>) = frame.decode()?;
        parts.clear();
        for_each(iovec, |part| {
            parts.push(Binary::from_term(part)?);
            Ok(())
        })?;
        if parts.iter().map(|part| part.len()).sum::<usize>() != size {
            return Err(Error::BadArg);
        }
        let route = batch.place(parts.iter().map(Binary::as_slice), size);
        let header = batch.header().unwrap_or_default();
        let frame = Frame { header, size: header.resized(size), parts: &parts };
        out.frame(route, &frame).ok_or(Error::BadArg)
    })?;
    Ok(batch.send(out.finish()))
}

/// What one call sends.
#[derive(Default)]
struct Sending {
    /// What is before the last markers, these included.
    settled: Vec<Output>,
    /// What is behind them. Of few ways: most calls are for one sender.
    ways: Vec<(Way, Chunks)>,
    kept: Option<Arc<Kept>>,
}

/// Which way a frame goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Control,
    Lane(Flow),
}

/// Frames that go the same way.
#[derive(Default)]
struct Chunks {
    frames: Frames<Bytes>,
    arena: Vec<u8>,
}

/// A frame as the emulator has it, but for its first bytes if it has another header.
struct Frame<'a, 'env> {
    header: Header<'a>,
    /// Bytes of it, with this header.
    size: usize,
    parts: &'a [Binary<'env>],
}

impl Sending {
    /// Adds a frame; none when it is too large.
    fn frame(&mut self, route: Route, frame: &Frame<'_, '_>) -> Option<()> {
        match route {
            Route::Control => self.add(Way::Control, &frame::header(frame.size)?, frame),
            Route::Lane(flow) => self.add(Way::Lane(flow), &frame::header(frame.size)?, frame),
            Route::Fence(lanes) => {
                let length = lane::fence_header(frame.size, lanes.len() as u16)?;
                self.settled.extend(self.ways.drain(..).map(output));
                self.settled.push(Output::Markers(lanes));
                self.add(Way::Control, &length, frame);
            }
        }
        Some(())
    }

    /// Adds a frame behind its length.
    fn add(&mut self, way: Way, length: &[u8], frame: &Frame<'_, '_>) {
        let known = self.ways.iter().rposition(|(known, _)| *known == way);
        let at = known.unwrap_or_else(|| {
            self.ways.push((way, Chunks::default()));
            self.ways.len() - 1
        });
        self.ways[at].1.add(length, frame, &mut self.kept);
    }

    fn finish(self) -> impl Iterator<Item = Output> {
        self.settled.into_iter().chain(self.ways.into_iter().map(output))
    }
}

/// What has come to be sent on a way.
fn output((way, mut chunks): (Way, Chunks)) -> Output {
    chunks.flush();
    match way {
        Way::Control => Output::Control(chunks.frames.chunks),
        Way::Lane(flow) => Output::Lane(flow, chunks.frames),
    }
}

impl Chunks {
    fn add(&mut self, length: &[u8], frame: &Frame<'_, '_>, kept: &mut Option<Arc<Kept>>) {
        let Frame { header, size, parts } = frame;
        self.frames.lengths.push(length.len() + size);
        let copied = parts.iter().map(|part| part.len()).take_while(|len| *len < SHARE_FROM);
        let least = (header.bytes.len() + copied.sum::<usize>()).saturating_sub(header.replaces);
        // Of a single small frame that is all, and becomes the bytes for QUIC as it is.
        self.arena.reserve(length.len() + least);
        self.arena.extend_from_slice(length);
        self.arena.extend_from_slice(header.bytes);
        let mut skip = header.replaces;
        for part in *parts {
            let skipped = skip.min(part.len());
            if skipped < part.len() {
                self.part(part, skipped, kept);
            }
            skip -= skipped;
        }
    }

    /// Adds what follows the first bytes of a binary.
    fn part(&mut self, binary: &Binary<'_>, from: usize, kept: &mut Option<Arc<Kept>>) {
        if binary.len() < SHARE_FROM {
            self.arena.extend_from_slice(&binary[from..]);
        } else {
            let shared = kept.get_or_insert_with(Arc::default).share(binary);
            self.flush();
            self.frames.chunks.push(Bytes::from_owner(shared).slice(from..));
        }
    }

    fn flush(&mut self) {
        if !self.arena.is_empty() {
            self.frames.chunks.push(std::mem::take(&mut self.arena).into());
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
