//! The input of a link: bytes of all its streams wait here until the input handler takes them as frames.

use std::collections::VecDeque;

use bytes::Bytes;
use macula_core::dist::credit::Credit;
use macula_core::dist::frame::{FrameReader, Piece};
use macula_core::dist::lane::{FenceReader, Opening};
use macula_core::dist::memory::Shares;
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
    /// What is read in this turn.
    chunks: Vec<Bytes>,
    /// Of the control stream, whose frames are fenced.
    fence: FenceReader,
}

/// What is to be done next.
enum Turn {
    /// So many bytes of this stream are to be read, and whether it has more.
    Read {
        stream: Stream,
        bytes: usize,
        more: bool,
    },
    /// All lanes have come to the fenced frame that waits.
    Deliver,
    None,
}

/// Why nothing more may be read of a stream.
enum Stop {
    Marker(u16),
    Fenced,
}

impl Intake {
    /// An empty one, of the control stream and so many lanes, that may hold so much.
    pub(crate) fn new(lanes: Option<u16>, shares: &Shares) -> Intake {
        let streams = 1 + usize::from(lanes.unwrap_or(0));
        let input = || Input { chunks: VecDeque::new(), credit: shares.for_input(), queued: false };
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
            reading: Mutex::new(Reading {
                frames,
                chunks: Vec::new(),
                fence: FenceReader::default(),
            }),
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

    /// Adds what was received of a stream, `bytes` in all. True: nothing more may be read of it until there is room.
    pub(crate) fn push(
        &self,
        stream: Stream,
        chunks: impl Iterator<Item = Bytes>,
        bytes: usize,
    ) -> bool {
        let mut waiting = self.waiting.lock();
        let input = &mut waiting.inputs[index(stream)];
        input.chunks.extend(chunks);
        let pause = input.credit.queued(bytes);
        waiting.queue(stream);
        pause
    }

    /// Whether the input handler is to be told that something waits, and does not know yet; from now on it does.
    pub(crate) fn must_tell(&self) -> bool {
        self.waiting.lock().must_tell()
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
    /// when there are more. Once there are none, the input handler is told of the next ones. All of a
    /// fenced frame is handed out as it comes, but for its end: that waits for the lanes. So one call
    /// never has a whole large frame to hand out.
    pub(crate) fn take(&self, most: usize, mut piece: impl FnMut(Stream, Piece<'_>)) -> bool {
        let mut reading = self.reading.lock();
        let mut bytes = 0;
        while bytes < most {
            match self.turn(TURN.min(most - bytes), &mut reading.chunks) {
                Turn::Read { stream, bytes: taken, more } => {
                    bytes += taken;
                    if self.read(&mut reading, stream, &mut piece) && more {
                        self.waiting.lock().queue(stream);
                    }
                }
                Turn::Deliver => {
                    piece(Stream::Control, Piece::End);
                    self.waiting.lock().fence_delivered();
                }
                Turn::None => return false,
            }
        }
        self.waiting.lock().is_told()
    }

    /// What is to be done next; what is to be read is added to `chunks`.
    fn turn(&self, most: usize, chunks: &mut Vec<Bytes>) -> Turn {
        let mut waiting = self.waiting.lock();
        // The link ends then: whatever follows is not to be trusted.
        if waiting.violation.is_some() {
            return Turn::None;
        }
        if waiting.merge.as_ref().is_some_and(Merge::fence_ready) {
            return Turn::Deliver;
        }
        let Some((stream, bytes)) = waiting.pop(most, chunks) else {
            waiting.told = false;
            return Turn::None;
        };
        let input = &mut waiting.inputs[index(stream)];
        if input.credit.taken(bytes) {
            self.room[index(stream)].notify_one();
        }
        Turn::Read { stream, bytes, more: !input.chunks.is_empty() }
    }

    /// Reads what is to be read in this turn. False when not all of it may be read yet: then it has been seen to when
    /// the stream has its next turn.
    fn read(
        &self,
        reading: &mut Reading,
        stream: Stream,
        piece: &mut impl FnMut(Stream, Piece<'_>),
    ) -> bool {
        let Reading { frames, chunks, fence } = reading;
        let mut chunks = chunks.drain(..);
        while let Some(chunk) = chunks.next() {
            let read = &mut frames[index(stream)];
            let Some((rest, stop)) = self.read_chunk(read, fence, stream, &chunk, piece) else {
                continue;
            };
            let mut waiting = self.waiting.lock();
            waiting.give_back(stream, std::iter::once(chunk.slice_ref(rest)).chain(chunks));
            match stop {
                Stop::Marker(lane) => waiting.marker(lane),
                Stop::Fenced => waiting.fenced(fence.lanes()),
            }
            return false;
        }
        true
    }

    /// Reads until the end, or until nothing more may be read of the stream; what is left then.
    fn read_chunk<'a>(
        &self,
        frames: &mut FrameReader,
        fence: &mut FenceReader,
        stream: Stream,
        chunk: &'a [u8],
        piece: &mut impl FnMut(Stream, Piece<'_>),
    ) -> Option<(&'a [u8], Stop)> {
        let fences = self.room.len() > 1;
        let mut input = chunk;
        while let Some(next) = frames.next(&mut input) {
            match (stream, next) {
                (Stream::Lane(lane), Piece::Tick) => return Some((input, Stop::Marker(lane))),
                (Stream::Control, Piece::End) if fences => return Some((input, Stop::Fenced)),
                (Stream::Control, next) if fences => {
                    if let Some(next) = fence.next(next) {
                        piece(stream, next);
                    }
                }
                (stream, next) => piece(stream, next),
            }
        }
        None
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

    /// Whether the input handler is to be told, and does not know yet; from now on it does.
    fn must_tell(&mut self) -> bool {
        self.has_more() && !std::mem::replace(&mut self.told, true)
    }

    /// Whether something is left for the input handler, which knows.
    fn is_told(&mut self) -> bool {
        self.told = self.has_more();
        self.told
    }

    /// Moves the next bytes of the stream whose turn it is to `chunks`, and tells how many they are.
    fn pop(&mut self, most: usize, chunks: &mut Vec<Bytes>) -> Option<(Stream, usize)> {
        let stream = self.turns.pop_front()?;
        let input = &mut self.inputs[index(stream)];
        input.queued = false;
        let mut bytes = 0;
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
        Some((stream, bytes))
    }

    /// A lane has come to a marker. More of it may have come meanwhile, and given it a turn.
    fn marker(&mut self, lane: u16) {
        self.unqueue(Stream::Lane(lane));
        let met = self.merge.as_mut().map_or(Ok(()), |merge| merge.marker(lane));
        self.note(met);
        self.queue(Stream::Lane(lane));
    }

    /// The control stream has brought a frame, before which `lanes` were opened; none: an empty one.
    fn fenced(&mut self, lanes: Option<u16>) {
        self.unqueue(Stream::Control);
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
    use std::collections::HashMap;

    use macula_core::dist::lane::{MARKER, fence_header};
    use macula_core::dist::memory::Memory;

    use super::*;

    fn intake(lanes: Option<u16>) -> Intake {
        Intake::new(lanes, &Memory::default().shares(lanes))
    }

    fn frame(content: u8) -> Bytes {
        Bytes::copy_from_slice(&[0, 0, 0, 1, content])
    }

    fn push(intake: &Intake, stream: Stream, chunks: &[Bytes]) {
        let bytes = chunks.iter().map(Bytes::len).sum();
        intake.push(stream, chunks.iter().cloned(), bytes);
    }

    /// Takes the place of the input handler.
    #[derive(Default)]
    struct Handler {
        begun: HashMap<usize, Vec<u8>>,
        calls: usize,
        /// The most bytes that a call handed out.
        most: usize,
    }

    impl Handler {
        /// The contents of the frames that end, when all there is is taken, in calls for `most` bytes.
        fn take(&mut self, intake: &Intake, most: usize) -> Vec<u8> {
            let (mut ended, mut more) = (Vec::new(), true);
            while more {
                let mut bytes = 0;
                more = intake.take(most, |stream, piece| {
                    let stream = index(stream);
                    match piece {
                        Piece::Start(_) => assert!(self.begun.insert(stream, vec![]).is_none()),
                        Piece::Body(body) => {
                            bytes += body.len();
                            self.begun.get_mut(&stream).unwrap().extend_from_slice(body);
                        }
                        Piece::End => ended.append(&mut self.begun.remove(&stream).unwrap()),
                        Piece::Tick => {}
                    }
                });
                self.calls += 1;
                self.most = self.most.max(bytes);
            }
            ended
        }

        fn take_all(&mut self, intake: &Intake) -> Vec<u8> {
            self.take(intake, usize::MAX)
        }
    }

    /// Also when some of it comes in the chunk of the marker, and some only after it.
    #[test]
    fn what_waits_for_a_fence_goes_on_as_it_came() {
        let (intake, mut handler) = (intake(Some(4)), Handler::default());
        for index in 0..4 {
            intake.opened(Opening { index, fences: 0 }).unwrap();
        }
        let marker = Bytes::from_static(&MARKER);
        push(&intake, Stream::Lane(3), &[frame(30), marker.clone()]);
        push(&intake, Stream::Lane(1), &[frame(10), marker.clone(), frame(11)]);
        push(&intake, Stream::Lane(2), &[marker.clone(), frame(21)]);
        assert_eq!(handler.take_all(&intake), [30, 10]);
        push(&intake, Stream::Lane(3), &[frame(31)]);
        push(&intake, Stream::Lane(0), &[marker, frame(1)]);
        push(&intake, Stream::Control, &[Bytes::from_static(&[0, 0, 0, 3, 0, 4, 99])]);
        assert_eq!(handler.take_all(&intake), [99, 11, 21, 31, 1]);
    }

    /// A call that had all of a large one to hand out would keep a scheduler.
    #[test]
    fn a_fenced_frame_is_handed_out_in_many_calls_and_ends_when_the_lanes_are_there() {
        const MOST: usize = 64 * 1024;
        let (intake, mut handler) = (intake(Some(1)), Handler::default());
        intake.opened(Opening { index: 0, fences: 0 }).unwrap();
        let content: Vec<u8> = (0..20 * MOST).map(|at| at as u8).collect();
        let header = fence_header(content.len(), 1).unwrap();
        let wire = Bytes::from([&header[..], &content].concat());
        push(&intake, Stream::Control, &[wire.slice(..5), wire.slice(5..)]);
        assert_eq!(handler.take(&intake, MOST), []);
        push(&intake, Stream::Lane(0), &[Bytes::from_static(&MARKER), frame(1)]);
        let ended = handler.take(&intake, MOST);
        assert_eq!((&ended[..content.len()], &ended[content.len()..]), (&content[..], &[1][..]));
        assert!(handler.calls >= 20 && handler.most <= MOST);
    }

    #[test]
    fn nothing_is_taken_behind_what_must_not_be_sent() {
        let (intake, mut handler) = (intake(Some(1)), Handler::default());
        let empty = Bytes::from_static(&[0, 0, 0, 2, 0, 0]);
        push(&intake, Stream::Control, &[empty, Bytes::from_static(&[0, 0, 0, 3, 0, 0, 7])]);
        assert_eq!(handler.take_all(&intake), []);
        assert_eq!((handler.begun.len(), intake.violation()), (0, Some(Violation::Fence(0))));
    }
}
