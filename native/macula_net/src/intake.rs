//! The input of a link: bytes wait here, in order, until the input handler takes them as frames.

use std::collections::VecDeque;

use bytes::Bytes;
use macula_core::dist::credit::Credit;
use macula_core::dist::frame::{FrameReader, Piece};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes between a link's reader and its input handler.
#[derive(Debug)]
pub(crate) struct Intake {
    waiting: Mutex<Waiting>,
    room: Notify,
    frames: Mutex<FrameReader>,
}

#[derive(Debug)]
struct Waiting {
    chunks: VecDeque<Bytes>,
    credit: Credit,
    /// The input handler knows that something waits, and has not taken all of it yet.
    told: bool,
}

/// What follows from new input.
pub(crate) struct Pushed {
    /// The input handler is to be told.
    pub(crate) tell: bool,
    /// Nothing more may be read until there is room.
    pub(crate) pause: bool,
}

impl Intake {
    /// An empty one.
    pub(crate) fn new() -> Intake {
        let waiting = Waiting { chunks: VecDeque::new(), credit: Credit::input(), told: false };
        Intake {
            waiting: Mutex::new(waiting),
            room: Notify::new(),
            frames: Mutex::new(FrameReader::default()),
        }
    }

    /// Adds what was received, `bytes` in all.
    pub(crate) fn push(&self, chunks: impl Iterator<Item = Bytes>, bytes: usize) -> Pushed {
        let mut waiting = self.waiting.lock();
        waiting.chunks.extend(chunks);
        let tell = !std::mem::replace(&mut waiting.told, true);
        Pushed { tell, pause: waiting.credit.queued(bytes) }
    }

    /// Resolves when more may be read.
    pub(crate) async fn room(&self) {
        self.room.notified().await;
    }

    /// Takes at most `most` bytes, cut into frames; true when there are more. Once there are none,
    /// the input handler is told of the next ones.
    pub(crate) fn take(&self, most: usize, mut piece: impl FnMut(Piece<'_>)) -> bool {
        let mut frames = self.frames.lock();
        let (chunks, more) = self.pop(most);
        for chunk in chunks {
            let mut input = &chunk[..];
            while let Some(next) = frames.next(&mut input) {
                piece(next);
            }
        }
        more
    }

    fn pop(&self, most: usize) -> (Vec<Bytes>, bool) {
        let mut waiting = self.waiting.lock();
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        while bytes < most
            && let Some(mut chunk) = waiting.chunks.pop_front()
        {
            // quinn joins what came out of order into chunks of any size.
            if chunk.len() > most - bytes {
                waiting.chunks.push_front(chunk.split_off(most - bytes));
            }
            bytes += chunk.len();
            chunks.push(chunk);
        }
        if waiting.credit.taken(bytes) {
            self.room.notify_one();
        }
        waiting.told = !waiting.chunks.is_empty();
        (chunks, waiting.told)
    }
}
