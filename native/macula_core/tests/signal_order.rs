//! Erlang's promise about the order of signals, as an executable specification, and frames on lanes
//! held against it: whatever is sent, however it is cut, however much of it there is room for, and whichever
//! lane is read when.
//!
//! The promise: what one process sends another arrives in the order it was sent, and takes effect
//! with its last fragment. What does not tell its sender must arrive after everything before it and
//! before everything after it. And the receiver's emulator ends a link on which fragments of a sequence
//! do not come in order.
//!
//! Placements that are wrong break it: that shows that this test can fail.
//!
//! `MACULA_SIM_HISTORIES=10000` tries as many (`./dev test sim`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod signals;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};

use macula_core::dist::flows::{Flows, Frames};
use macula_core::dist::frame::{self, FrameReader, Piece};
use macula_core::dist::lane::{FenceReader, MARKER, Opening, fence_header};
use macula_core::dist::lanes::{Lanes, Place};
use macula_core::dist::merge::Merge;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use signals::{Address, Operation, Pid, Request, frames, operations};

/// Histories tried, unless told otherwise; each has some hundred frames at most.
const HISTORIES: u32 = 2000;

/// Bytes there is room for at a time, below this: some frames.
const ROOM: usize = 200;

const SENDERS: u32 = 6;
const RECEIVERS: u32 = 3;

/// The sequence of what no process sends.
const NOBODY: u64 = 0x0b;

/// The sequences of processes, and from the second on those that are never ended.
const LIVING: u64 = 1_000_000;
const KILLED: u64 = 2_000_000;

fn config() -> Config {
    let wanted = std::env::var("MACULA_SIM_HISTORIES").ok();
    let cases = wanted.map_or(HISTORIES, |number| number.parse().expect("a number of histories"));
    Config { cases, failure_persistence: None, ..Config::default() }
}

fn sender(number: u32) -> Pid {
    Pid { node: "here@localhost", id: 80 + number, serial: 0, creation: 7 }
}

fn receiver(number: u32) -> Pid {
    Pid { node: "there@localhost", id: 90 + number, serial: 0, creation: 9 }
}

/// A signal to be sent.
#[derive(Clone, Debug)]
struct Intent {
    operation: Operation,
    sender: u32,
    receiver: u32,
    fragments: u64,
    /// The emulator sends it in the name of a process that is no more.
    by_nobody: bool,
    /// Its sender is killed before all fragments are sent.
    killed: bool,
}

/// Everything that is left to chance.
#[derive(Clone, Debug)]
struct History {
    intents: Vec<Intent>,
    lanes: u16,
    /// Which process is scheduled next.
    schedule: Vec<Index>,
    /// Where iovecs are cut.
    cuts: Vec<Index>,
    /// Which frames have an empty one before them.
    empty: Vec<bool>,
    /// How much there is room for on a lane when a frame has come to it.
    room: Vec<Index>,
    /// Which stream is read next.
    reads: Vec<Index>,
}

fn intent() -> impl Strategy<Value = Intent> {
    let operation = prop_oneof![
        2 => Just(Operation::Send { to: Address::Pid, token: false }),
        1 => Just(Operation::Send { to: Address::Name, token: false }),
        1 => Just(Operation::Send { to: Address::Alias, token: false }),
        6 => prop::sample::select(operations()),
    ];
    let rarely = || prop::bool::weighted(0.05);
    (operation, 0..SENDERS, 0..RECEIVERS, 1..5u64, rarely(), rarely()).prop_map(
        |(operation, sender, receiver, fragments, by_nobody, killed)| Intent {
            operation,
            sender,
            receiver,
            fragments,
            by_nobody,
            killed,
        },
    )
}

fn history() -> impl Strategy<Value = History> {
    let chances = || prop::collection::vec(any::<Index>(), 1..60);
    let intents = prop::collection::vec(intent(), 1..60);
    let empty = prop::collection::vec(prop::bool::weighted(0.1), 1..60);
    (intents, 1..6u16, chances(), chances(), empty, chances(), chances()).prop_map(
        |(intents, lanes, schedule, cuts, empty, room, reads)| History {
            intents,
            lanes,
            schedule,
            cuts,
            empty,
            room,
            reads,
        },
    )
}

/// A frame as the emulator hands it out, with what only the specification knows.
#[derive(Clone, Debug)]
struct Frame {
    bytes: Vec<u8>,
    sender: Option<u32>,
    receiver: u32,
    operation: Operation,
    sequence: u64,
    /// How many more belong to the signal.
    left: u64,
    total: u64,
}

impl Frame {
    fn takes_effect(&self) -> bool {
        self.left == 0
    }
}

/// What the emulator hands out: each process sends one signal after the other, and any other may come
/// between its fragments.
fn emitted(history: &History) -> Vec<Frame> {
    let senders = history.intents.iter().map(|intent| intent.sender as usize + 1).max();
    let mut queues: Vec<VecDeque<Vec<Frame>>> = vec![VecDeque::new(); senders.unwrap_or(0)];
    for intent in &history.intents {
        let all = frames_of(intent);
        let queue = &mut queues[intent.sender as usize];
        if intent.by_nobody {
            queue.push_back(all);
        } else {
            let sent = if intent.killed { all.len().div_ceil(2) } else { all.len() };
            queue.extend(all.into_iter().take(sent).map(|frame| vec![frame]));
        }
    }
    let mut frames = Vec::new();
    let mut schedule = history.schedule.iter().cycle();
    loop {
        let mut busy: Vec<_> = queues.iter_mut().filter(|queue| !queue.is_empty()).collect();
        if busy.is_empty() {
            return frames;
        }
        let chosen = schedule.next().unwrap().index(busy.len());
        frames.extend(busy[chosen].pop_front().unwrap());
    }
}

fn frames_of(intent: &Intent) -> Vec<Frame> {
    let request = Request {
        operation: intent.operation,
        sender: sender(intent.sender),
        receiver: receiver(intent.receiver),
    };
    // One that was killed in the middle never uses its sequence again.
    let sequence = match intent {
        Intent { by_nobody: true, .. } => NOBODY,
        Intent { killed: true, .. } => KILLED + u64::from(intent.sender),
        _ => LIVING + u64::from(intent.sender),
    };
    let frames = frames(&request, sequence, intent.fragments);
    let total = frames.len() as u64;
    let frame = |(left, bytes)| Frame {
        bytes,
        sender: (intent.operation != Operation::SpawnError).then_some(intent.sender),
        receiver: intent.receiver,
        operation: intent.operation,
        sequence,
        left,
        total,
    };
    (0..total).rev().zip(frames).map(frame).collect()
}

/// Cuts a frame as an iovec may be: the emulator's header, control message and payload, and anywhere.
fn cut<'a>(bytes: &'a [u8], cuts: &mut impl Iterator<Item = &'a Index>) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.take(3).map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, 3, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

/// A stream of a link as it is read.
#[derive(Debug, Default)]
struct Stream {
    bytes: VecDeque<u8>,
    /// The emulator's frames in it.
    frames: VecDeque<usize>,
}

/// What stands next on a stream.
enum Item {
    Empty,
    Frame(Vec<u8>),
}

impl Stream {
    fn write(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    fn write_frame(&mut self, header: &[u8], frame: &[u8], number: usize) {
        self.write(header);
        self.write(frame);
        self.frames.push_back(number);
    }

    fn read(&mut self) -> Item {
        let mut reader = FrameReader::default();
        let mut frame = Vec::new();
        loop {
            let bytes = self.bytes.make_contiguous();
            let mut input = &*bytes;
            let piece = reader.next(&mut input);
            let read = bytes.len() - input.len();
            let item = match piece.expect("whole frames") {
                Piece::Start(_) => None,
                Piece::Body(body) => {
                    frame.extend_from_slice(body);
                    None
                }
                Piece::End => Some(Item::Frame(std::mem::take(&mut frame))),
                Piece::Tick => Some(Item::Empty),
            };
            self.bytes.drain(..read);
            if let Some(item) = item {
                return item;
            }
        }
    }

    /// The number of a frame that has been read.
    fn number(&mut self, frame: &[u8], frames: &[Frame]) -> usize {
        let number = self.frames.pop_front().expect("a frame was written");
        assert_eq!(frame, frames[number].bytes);
        number
    }
}

/// A lane: what has been written to it, and what waits to be.
#[derive(Debug, Default)]
struct Lane {
    stream: Stream,
    waiting: Flows<Waiting>,
    /// Its opening has been read.
    opened: bool,
}

/// A frame, or a marker, that waits for its lane; the number is written with its first byte.
#[derive(Debug)]
struct Waiting {
    number: Option<usize>,
    bytes: VecDeque<u8>,
}

impl Lane {
    fn frame(&mut self, flow: u16, header: &[u8], frame: &[u8], number: usize) {
        let bytes = [header, frame].concat();
        let lengths = vec![bytes.len()];
        let chunks = vec![Waiting { number: Some(number), bytes: bytes.into() }];
        self.waiting.add(flow, Frames { chunks, lengths });
    }

    fn marker(&mut self) {
        let marker = Waiting { number: None, bytes: MARKER.into() };
        self.waiting.mark(0, marker, MARKER.len());
    }

    fn write(&mut self, mut room: usize) {
        while let Some(next) = self.waiting.front().filter(|_| room > 0) {
            let bytes = next.most.min(room);
            for _ in 0..bytes {
                let first = next.chunks.front_mut().expect("as many as there are said to be");
                self.stream.frames.extend(first.number.take());
                self.stream.bytes.extend(first.bytes.pop_front());
                if first.bytes.is_empty() {
                    next.chunks.pop_front();
                }
            }
            self.waiting.wrote(bytes);
            room -= bytes;
        }
    }
}

/// The streams of a link one way.
#[derive(Debug, Default)]
struct Wire {
    control: Stream,
    lanes: BTreeMap<u16, Lane>,
}

/// A way of getting it wrong: what is placed instead of a frame, and how many lanes a fence is said to
/// wait for.
#[derive(Clone, Copy)]
struct Mutation {
    shows: fn(&Frame) -> Vec<u8>,
    waits_for: fn(u16) -> u16,
}

const RIGHT: Mutation = Mutation { shows: |frame| frame.bytes.clone(), waits_for: |lanes| lanes };

fn written(history: &History, frames: &[Frame], mutation: &Mutation) -> Wire {
    let mut lanes = Lanes::new(history.lanes);
    let mut wire = Wire::default();
    let mut cuts = history.cuts.iter().cycle();
    let mut empty = history.empty.iter().cycle();
    let mut room = history.room.iter().cycle();
    for (number, Frame { bytes, .. }) in frames.iter().enumerate() {
        if *empty.next().unwrap() {
            assert_eq!(lanes.place([]), Place::Control);
            wire.control.write(&frame::header(0).unwrap());
        }
        let shown = (mutation.shows)(&frames[number]);
        let cuts: Vec<Index> = cuts.by_ref().take(3).copied().collect();
        match lanes.place(cut(&shown, &mut cuts.iter())) {
            Place::Lane { flow, opening, .. } => {
                assert_eq!(opening.is_some(), !wire.lanes.contains_key(&flow.lane));
                let lane = wire.lanes.entry(flow.lane).or_default();
                lane.stream.write(&opening.map_or(vec![], |opening| opening.encode().to_vec()));
                lane.frame(flow.number, &frame::header(bytes.len()).unwrap(), bytes, number);
                lane.write(room.next().unwrap().index(ROOM));
            }
            Place::Fence { lanes: count } => {
                let open: Vec<u16> = lanes.open().collect();
                assert_eq!(open.len(), usize::from(count));
                for index in open {
                    wire.lanes.get_mut(&index).unwrap().marker();
                }
                let header = fence_header(bytes.len(), (mutation.waits_for)(count));
                wire.control.write_frame(&header.unwrap(), bytes, number);
            }
            Place::Control => panic!("not an empty frame"),
        }
    }
    wire.lanes.values_mut().for_each(|lane| lane.write(usize::MAX));
    wire
}

/// The numbers of the frames as they are delivered, lanes being read in any order.
fn delivered(history: &History, frames: &[Frame], mut wire: Wire) -> Result<Vec<usize>, String> {
    let mut merge = Merge::new(history.lanes);
    let mut fenced = VecDeque::new();
    let mut delivered = Vec::new();
    let mut reads = history.reads.iter().cycle();
    loop {
        if merge.fence_ready() {
            delivered.push(fenced.pop_front().unwrap());
            merge.fence_delivered().map_err(|violation| violation.to_string())?;
            continue;
        }
        let readable = readable(&merge, &wire);
        if readable.is_empty() {
            return Ok(delivered);
        }
        let step = match readable[reads.next().unwrap().index(readable.len())] {
            None => match wire.control.read() {
                Item::Frame(bytes) => {
                    let mut fence = FenceReader::default();
                    fence.next(Piece::Start(bytes.len()));
                    let Some(Piece::Body(frame)) = fence.next(Piece::Body(&bytes)) else {
                        return Err("a fence without a frame".to_owned());
                    };
                    fenced.push_back(wire.control.number(frame, frames));
                    merge.fenced(fence.lanes().unwrap())
                }
                Item::Empty => Ok(()),
            },
            Some(index) => {
                let Lane { stream: lane, opened, .. } = wire.lanes.get_mut(&index).unwrap();
                if !*opened {
                    *opened = true;
                    let opening: Vec<u8> = lane.bytes.drain(..Opening::LEN).collect();
                    merge.opened(Opening::decode(opening.try_into().unwrap()))
                } else if let Item::Frame(frame) = lane.read() {
                    delivered.push(lane.number(&frame, frames));
                    Ok(())
                } else {
                    merge.marker(index)
                }
            }
        };
        step.map_err(|violation| violation.to_string())?;
    }
}

/// The streams that may be read: lanes, and none for the control stream.
fn readable(merge: &Merge, wire: &Wire) -> Vec<Option<u16>> {
    let lanes = wire.lanes.iter().filter(|(index, lane)| {
        !lane.stream.bytes.is_empty() && (!lane.opened || merge.may_read(**index))
    });
    let control = merge.may_read_control() && !wire.control.bytes.is_empty();
    lanes.map(|(index, _)| Some(*index)).chain(control.then_some(None)).collect()
}

/// The specification: what is wrong with frames being delivered in this order.
fn judge(frames: &[Frame], delivered: &[usize]) -> Result<(), String> {
    let mut sorted = delivered.to_vec();
    sorted.sort_unstable();
    if sorted != (0..frames.len()).collect::<Vec<_>>() {
        return Err(format!("{} frames, {} delivered", frames.len(), delivered.len()));
    }
    fragments_in_order(frames, delivered)?;
    let effects = delivered.iter().copied().filter(|number| frames[*number].takes_effect());
    let effects: Vec<usize> = effects.collect();
    pairs_in_order(frames, &effects)?;
    fences_hold(frames, &effects)
}

/// What the receiver's emulator ends the link for.
fn fragments_in_order(frames: &[Frame], delivered: &[usize]) -> Result<(), String> {
    let mut open: HashMap<u64, u64> = HashMap::new();
    for frame in delivered.iter().map(|number| &frames[*number]).filter(|frame| frame.total > 1) {
        let begins = frame.left + 1 == frame.total;
        let before = open.insert(frame.sequence, frame.left);
        match before {
            // Those killed are left open.
            None if begins => {}
            Some(left) if !begins && left == frame.left + 1 => {}
            Some(_) if begins && frame.sequence >= KILLED => {}
            _ => return Err(format!("fragment {} after {before:?}: {frame:?}", frame.left)),
        }
        if frame.left == 0 {
            open.remove(&frame.sequence);
        }
    }
    Ok(())
}

fn pairs_in_order(frames: &[Frame], effects: &[usize]) -> Result<(), String> {
    let mut last = HashMap::new();
    for number in effects {
        let frame = &frames[*number];
        if let Some(before) = last.insert((frame.sender, frame.receiver), number)
            && before > number
        {
            return Err(format!("{before} before {number}: {:?}, {frame:?}", frames[*before]));
        }
    }
    Ok(())
}

fn fences_hold(frames: &[Frame], effects: &[usize]) -> Result<(), String> {
    for (position, fence) in effects.iter().enumerate() {
        let frame = &frames[*fence];
        if frame.operation.tells_sender() {
            continue;
        }
        let (before, after) = (&effects[..position], &effects[position + 1..]);
        let early = after.iter().find(|number| *number < fence);
        if let Some(wrong) = before.iter().find(|number| *number > fence).or(early) {
            return Err(format!("{wrong} is beyond fence {fence}, {frame:?}"));
        }
    }
    Ok(())
}

fn holds(history: &History, mutation: &Mutation) -> Result<(), TestCaseError> {
    let frames = emitted(history);
    let wire = written(history, &frames, mutation);
    let delivered = delivered(history, &frames, wire).map_err(TestCaseError::fail)?;
    judge(&frames, &delivered).map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn signals_keep_their_order(history in history()) {
        holds(&history, &RIGHT)?;
    }

    /// A fence is slow: only what needs one is one.
    #[test]
    fn what_tells_its_sender_is_no_fence(history in history()) {
        let frames = emitted(&history);
        let wire = written(&history, &frames, &RIGHT);
        for number in &wire.control.frames {
            let frame = &frames[*number];
            let inner = frame.left > 0 && frame.left + 1 < frame.total;
            let told = frame.operation.tells_sender();
            prop_assert!(!told || !(LIVING..KILLED).contains(&frame.sequence), "{frame:?}");
            prop_assert!(!inner, "{frame:?}");
        }
    }
}

/// More sequences at a time than are remembered, and many that never end.
#[test]
fn a_crowd_keeps_its_order() {
    let mut random = TestRunner::deterministic();
    let intents = (0..2000).map(|number| Intent {
        operation: plain_send(),
        sender: number,
        receiver: number % RECEIVERS,
        fragments: 3,
        by_nobody: false,
        killed: number % 3 == 0,
    });
    let mut draw = |count| {
        let indices = prop::collection::vec(any::<Index>(), count);
        indices.new_tree(&mut random).unwrap().current()
    };
    let intents = intents.collect();
    let (schedule, cuts, room, reads) = (draw(5000), draw(100), draw(100), draw(5000));
    let history = History { intents, lanes: 7, schedule, cuts, empty: vec![false], room, reads };
    holds(&history, &RIGHT).unwrap();
}

/// Fails unless some history shows what is wrong.
fn caught(mutation: Mutation) {
    let noticed = Cell::new(false);
    let config = Config { cases: HISTORIES, ..config() };
    let tried = TestRunner::new(config).run(&history(), |history| {
        noticed.set(noticed.get() || holds(&history, &mutation).is_err());
        Ok(())
    });
    tried.unwrap();
    assert!(noticed.get(), "this would not be noticed");
}

fn caught_showing(shows: fn(&Frame) -> Vec<u8>) {
    caught(Mutation { shows, ..RIGHT });
}

/// The frame that `frame` would be if `operation` was what `sender` does.
fn as_if(frame: &Frame, operation: Operation, sender: Pid) -> Vec<u8> {
    let request = Request { operation, sender, receiver: receiver(frame.receiver) };
    let frames = frames(&request, frame.sequence, frame.total);
    frames[(frame.total - 1 - frame.left) as usize].clone()
}

fn plain_send() -> Operation {
    Operation::Send { to: Address::Pid, token: false }
}

#[test]
fn a_receiver_has_several_addresses() {
    caught_showing(|frame| {
        let Operation::Send { to, .. } = frame.operation else { return frame.bytes.clone() };
        let address = to as u32;
        as_if(frame, frame.operation, sender(frame.sender.unwrap() + address))
    });
}

#[test]
fn the_new_group_leader_is_not_the_sender() {
    caught_showing(|frame| match frame.operation {
        Operation::GroupLeader => as_if(frame, plain_send(), sender(71)),
        _ => frame.bytes.clone(),
    });
}

#[test]
fn an_exit_told_by_name_is_a_fence() {
    caught_showing(|frame| match frame.operation {
        Operation::NamedMonitorExit { payload } => {
            as_if(frame, Operation::MonitorExit { payload }, sender(0))
        }
        _ => frame.bytes.clone(),
    });
}

#[test]
fn an_unknown_operation_is_a_fence() {
    caught_showing(|frame| match frame.operation {
        Operation::Future(_) => as_if(frame, plain_send(), sender(frame.sender.unwrap())),
        _ => frame.bytes.clone(),
    });
}

#[test]
fn a_spawn_reply_goes_before_the_childs_signals() {
    caught_showing(|frame| match frame.operation {
        Operation::SpawnReply { .. } => as_if(frame, Operation::SpawnError, sender(0)),
        _ => frame.bytes.clone(),
    });
}

#[test]
fn fragments_follow_the_first() {
    caught_showing(|frame| {
        let follows = frame.left + 1 < frame.total;
        let whole = Frame { left: 0, total: 1, ..frame.clone() };
        if follows { as_if(&whole, plain_send(), sender(0)) } else { frame.bytes.clone() }
    });
}

/// Not the first, of what is unknown.
#[test]
fn the_last_fragment_is_the_fence() {
    caught_showing(|frame| {
        let mut bytes = frame.bytes.clone();
        if !frame.operation.tells_sender() && frame.total > 1 && frame.left == 0 {
            bytes[17] = 2;
        }
        bytes
    });
}

/// Nor it alone: the next sequence of the same name must not begin before.
#[test]
fn one_sequence_has_many_senders() {
    caught_showing(|frame| {
        let mut bytes = frame.bytes.clone();
        if frame.sequence == NOBODY && frame.total > 1 {
            let own = u64::from(frame.sender.unwrap());
            bytes[2..10].copy_from_slice(&own.to_be_bytes());
        }
        bytes
    });
}

#[test]
fn a_fence_waits_for_lanes_that_are_not_seen_yet() {
    caught(Mutation { waits_for: |lanes| lanes.saturating_sub(1), ..RIGHT });
}
