//! The input of a link: bytes of all its streams wait here until the input handler takes them as frames.

use std::collections::VecDeque;

use bytes::Bytes;
use macula_core::dist::credit::Credit;
use macula_core::dist::frame::{FrameReader, Piece};
use macula_core::dist::lane::{self, Opening};
use macula_core::dist::merge::{Merge, Violation};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::outlet::Stream;

/// Bytes taken of one stream before it is another one's turn: a small message waits for as much of
/// each other stream at most.
const TURN: usize = 16 * 1024;

/// Bytes between a link's readers and its input handler.
#[derive(Debug)]
pub(crate) struct Intake {
    waiting: Mutex<Waiting>,
    reading: Mutex<Reading>,
    /// For each stream, whether more may be read of it.
    room: Vec<Notify>,
}

#[derive(Debug)]
struct Waiting {
    inputs: Vec<Input>,
    /// Whose turn it is.
    turns: VecDeque<Stream>,
    /// Those that may not be read on until a fenced frame is delivered, as they came to wait: their
    /// turns come in that order then.
    held: VecDeque<Stream>,
    merge: Option<Merge>,
    /// The input handler knows that something waits, and has not taken all of it yet.
    told: bool,
    violation: Option<Violation>,
}

/// What waits of one stream.
#[derive(Debug)]
struct Input {
    chunks: VecDeque<Bytes>,
    credit: Credit,
    /// It is among those whose turn comes.
    queued: bool,
}

/// How far the input handler has read.
#[derive(Debug)]
struct Reading {
    frames: Vec<FrameReader>,
    /// The fenced frame begun, or to be delivered.
    fenced: Vec<u8>,
}

/// What follows from new input.
pub(crate) struct Pushed {
    /// The input handler is to be told.
    pub(crate) tell: bool,
    /// Nothing more may be read of the stream until there is room.
    pub(crate) pause: bool,
}

/// What is to be done next.
enum Turn {
    Read(Stream, Vec<Bytes>, usize),
    Deliver,
    None,
}

/// Why nothing more may be read of a stream.
enum Stop {
    Marker(u16),
    Fenced,
}

impl Intake {
    /// An empty one, of the control stream and so many lanes.
    pub(crate) fn new(lanes: Option<u16>) -> Intake {
        let streams = 1 + usize::from(lanes.unwrap_or(0));
        let input = || Input { chunks: VecDeque::new(), credit: Credit::input(), queued: false };
        let waiting = Waiting {
            inputs: (0..streams).map(|_| input()).collect(),
            turns: VecDeque::new(),
            held: VecDeque::new(),
            merge: lanes.map(Merge::new),
            told: false,
            violation: None,
        };
        let frames = (0..streams).map(|_| FrameReader::default()).collect();
        Intake {
            waiting: Mutex::new(waiting),
            reading: Mutex::new(Reading { frames, fenced: Vec::new() }),
            room: (0..streams).map(|_| Notify::new()).collect(),
        }
    }

    /// Lanes beside the control stream.
    pub(crate) fn lanes(&self) -> usize {
        self.room.len() - 1
    }

    /// A lane begins.
    ///
    /// # Errors
    /// It must not.
    pub(crate) fn opened(&self, opening: Opening) -> Result<Stream, Violation> {
        let mut waiting = self.waiting.lock();
        let Some(merge) = &mut waiting.merge else {
            return Err(Violation::NoLane(opening.index));
        };
        merge.opened(opening).map(|()| Stream::Lane(opening.index))
    }

    /// Adds what was received of a stream, `bytes` in all.
    pub(crate) fn push(
        &self,
        stream: Stream,
        chunks: impl Iterator<Item = Bytes>,
        bytes: usize,
    ) -> Pushed {
        let mut waiting = self.waiting.lock();
        let input = &mut waiting.inputs[index(stream)];
        input.chunks.extend(chunks);
        let pause = input.credit.queued(bytes);
        waiting.queue(stream);
        Pushed { tell: waiting.tells(), pause }
    }

    /// Whether an input handler was to be told of what waits.
    pub(crate) fn is_told(&self) -> bool {
        self.waiting.lock().told
    }

    /// Resolves when more may be read of a stream.
    pub(crate) async fn room(&self, stream: Stream) {
        self.room[index(stream)].notified().await;
    }

    /// What the peer sent that it must not.
    pub(crate) fn violation(&self) -> Option<Violation> {
        self.waiting.lock().violation
    }

    /// Takes at most about `most` bytes, cut into frames, a turn of each stream after the other; true
    /// when there are more. Once there are none, the input handler is told of the next ones.
    pub(crate) fn take(&self, most: usize, mut piece: impl FnMut(Stream, Piece<'_>)) -> bool {
        let mut reading = self.reading.lock();
        let mut bytes = 0;
        while bytes < most {
            match self.turn(TURN.min(most - bytes)) {
                Turn::Read(stream, chunks, taken) => {
                    bytes += taken;
                    self.read(&mut reading, stream, chunks, &mut piece);
                }
                Turn::Deliver => {
                    bytes += reading.fenced.len();
                    self.deliver(&mut reading, &mut piece);
                }
                Turn::None => return false,
            }
        }
        self.waiting.lock().is_told()
    }

    fn turn(&self, most: usize) -> Turn {
        let mut waiting = self.waiting.lock();
        if waiting.merge.as_ref().is_some_and(Merge::fence_ready) {
            return Turn::Deliver;
        }
        let Some((stream, chunks, bytes)) = waiting.pop(most) else {
            waiting.told = false;
            return Turn::None;
        };
        if waiting.inputs[index(stream)].credit.taken(bytes) {
            self.room[index(stream)].notify_one();
        }
        Turn::Read(stream, chunks, bytes)
    }

    fn read(
        &self,
        reading: &mut Reading,
        stream: Stream,
        chunks: Vec<Bytes>,
        piece: &mut impl FnMut(Stream, Piece<'_>),
    ) {
        let mut chunks = chunks.into_iter();
        while let Some(chunk) = chunks.next() {
            let Some((rest, stop)) = self.read_chunk(reading, stream, &chunk, piece) else {
                continue;
            };
            let mut waiting = self.waiting.lock();
            waiting.give_back(stream, std::iter::once(chunk.slice_ref(rest)).chain(chunks));
            return match stop {
                Stop::Marker(lane) => waiting.marker(lane),
                Stop::Fenced => waiting.fenced(&reading.fenced),
            };
        }
        self.waiting.lock().queue(stream);
    }

    /// Reads until the end, or until nothing more may be read of the stream; what is left then.
    fn read_chunk<'a>(
        &self,
        reading: &mut Reading,
        stream: Stream,
        chunk: &'a [u8],
        piece: &mut impl FnMut(Stream, Piece<'_>),
    ) -> Option<(&'a [u8], Stop)> {
        let Reading { frames, fenced } = reading;
        let frames = &mut frames[index(stream)];
        let fences = self.room.len() > 1;
        let mut input = chunk;
        while let Some(next) = frames.next(&mut input) {
            match (stream, next) {
                (Stream::Lane(lane), Piece::Tick) => return Some((input, Stop::Marker(lane))),
                (Stream::Control, Piece::Start(_)) if fences => fenced.clear(),
                (Stream::Control, Piece::Body(body)) if fences => fenced.extend_from_slice(body),
                (Stream::Control, Piece::End) if fences => return Some((input, Stop::Fenced)),
                (stream, next) => piece(stream, next),
            }
        }
        None
    }

    /// Delivers the fenced frame that all lanes have come to.
    fn deliver(&self, reading: &mut Reading, piece: &mut impl FnMut(Stream, Piece<'_>)) {
        if let Some((_, frame)) = lane::split_fenced(&reading.fenced) {
            piece(Stream::Control, Piece::Start(frame.len()));
            piece(Stream::Control, Piece::Body(frame));
            piece(Stream::Control, Piece::End);
        }
        reading.fenced = Vec::new();
        self.waiting.lock().fence_delivered();
    }
}

impl Waiting {
    /// The stream gets its turn, if something waits of it: now, or when it may be read.
    fn queue(&mut self, stream: Stream) {
        let may_read = self.may_read(stream);
        let input = &mut self.inputs[index(stream)];
        if input.queued || input.chunks.is_empty() {
            return;
        }
        if may_read {
            input.queued = true;
            self.turns.push_back(stream);
        } else if !self.held.contains(&stream) {
            self.held.push_back(stream);
        }
    }

    fn may_read(&self, stream: Stream) -> bool {
        match (&self.merge, stream) {
            (None, _) => true,
            (Some(merge), Stream::Control) => merge.may_read_control(),
            (Some(merge), Stream::Lane(lane)) => merge.may_read(lane),
        }
    }

    fn has_more(&self) -> bool {
        !self.turns.is_empty() || self.merge.as_ref().is_some_and(Merge::fence_ready)
    }

    fn unqueue(&mut self, stream: Stream) {
        self.inputs[index(stream)].queued = false;
        self.turns.retain(|turn| *turn != stream);
    }

    /// Whether the input handler is to be told, and does not know yet.
    fn tells(&mut self) -> bool {
        self.has_more() && !std::mem::replace(&mut self.told, true)
    }

    /// Whether something is left for the input handler, which knows.
    fn is_told(&mut self) -> bool {
        self.told = self.has_more();
        self.told
    }

    /// The next bytes of the stream whose turn it is, and how many they are.
    fn pop(&mut self, most: usize) -> Option<(Stream, Vec<Bytes>, usize)> {
        let stream = self.turns.pop_front()?;
        let input = &mut self.inputs[index(stream)];
        input.queued = false;
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        while bytes < most
            && let Some(mut chunk) = input.chunks.pop_front()
        {
            // quinn joins what came out of order into chunks of any size.
            if chunk.len() > most - bytes {
                input.chunks.push_front(chunk.split_off(most - bytes));
            }
            bytes += chunk.len();
            chunks.push(chunk);
        }
        Some((stream, chunks, bytes))
    }

    /// A lane has come to a marker. More of it may have come meanwhile, and given it a turn.
    fn marker(&mut self, lane: u16) {
        self.unqueue(Stream::Lane(lane));
        let met = self.merge.as_mut().map_or(Ok(()), |merge| merge.marker(lane));
        self.note(met);
        self.queue(Stream::Lane(lane));
    }

    /// The control stream has brought a frame.
    fn fenced(&mut self, frame: &[u8]) {
        self.unqueue(Stream::Control);
        let lanes = lane::split_fenced(frame).map(|(lanes, _)| lanes);
        let merge = self.merge.as_mut();
        let met = match lanes {
            Some(lanes) => merge.map_or(Ok(()), |merge| merge.fenced(lanes)),
            None => Err(Violation::Fence(0)),
        };
        self.note(met);
        self.queue(Stream::Control);
    }

    fn fence_delivered(&mut self) {
        let met = self.merge.as_mut().map_or(Ok(()), Merge::fence_delivered);
        self.note(met);
        for stream in std::mem::take(&mut self.held) {
            self.queue(stream);
        }
    }

    fn note(&mut self, met: Result<(), Violation>) {
        self.violation = self.violation.or(met.err());
    }

    /// Puts back what was taken too early.
    fn give_back(&mut self, stream: Stream, rest: impl Iterator<Item = Bytes>) {
        let input = &mut self.inputs[index(stream)];
        let rest: Vec<_> = rest.filter(|chunk| !chunk.is_empty()).collect();
        for chunk in rest.into_iter().rev() {
            input.credit.queued(chunk.len());
            input.chunks.push_front(chunk);
        }
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Control => 0,
        Stream::Lane(lane) => 1 + usize::from(lane),
    }
}

#[cfg(test)]
mod tests {
    use macula_core::dist::lane::MARKER;

    use super::*;

    fn frame(content: u8) -> Bytes {
        Bytes::copy_from_slice(&[0, 0, 0, 1, content])
    }

    fn push(intake: &Intake, stream: Stream, chunks: &[Bytes]) {
        let bytes = chunks.iter().map(Bytes::len).sum();
        intake.push(stream, chunks.iter().cloned(), bytes);
    }

    fn taken(intake: &Intake) -> Vec<u8> {
        let mut contents = Vec::new();
        let more = intake.take(usize::MAX, |_, piece| {
            if let Piece::Body(body) = piece {
                contents.extend_from_slice(body);
            }
        });
        assert!(!more);
        contents
    }

    /// Also when some of it comes in the chunk of the marker, and some only after it.
    #[test]
    fn what_waits_for_a_fence_goes_on_as_it_came() {
        let intake = Intake::new(Some(4));
        for index in 0..4 {
            intake.opened(Opening { index, fences: 0 }).unwrap();
        }
        let marker = Bytes::from_static(&MARKER);
        push(&intake, Stream::Lane(3), &[frame(30), marker.clone()]);
        push(&intake, Stream::Lane(1), &[frame(10), marker.clone(), frame(11)]);
        push(&intake, Stream::Lane(2), &[marker.clone(), frame(21)]);
        assert_eq!(taken(&intake), [30, 10]);
        push(&intake, Stream::Lane(3), &[frame(31)]);
        push(&intake, Stream::Lane(0), &[marker, frame(1)]);
        push(&intake, Stream::Control, &[Bytes::from_static(&[0, 0, 0, 3, 0, 4, 99])]);
        assert_eq!(taken(&intake), [99, 11, 21, 31, 1]);
    }
}
