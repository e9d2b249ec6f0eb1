//! What waits to be written to one lane: a queue for each flow, so that a process does not wait for what
//! others on its lane have sent.
//!
//! A flow is written a frame after the other, since a lane is one stream of them, and up to a turn before
//! another flow has its own. What has just come to a flow that had nothing is next, as soon as the frame
//! that is being written ends. A marker is behind everything that was there before it.

use std::collections::VecDeque;

use super::turns::{Ended, LITTLE, TURN, Turn, Turns};

/// The queues before one lane. Their content, in chunks, is the caller's: only lengths count here.
#[derive(Debug)]
pub struct Flows<C> {
    /// What was there before a marker, and the markers.
    settled: VecDeque<Part<C>>,
    settled_bytes: usize,
    /// Those that have something, in no order: few.
    flows: Vec<Part<C>>,
    turns: Turns,
    /// Whose turn it is.
    turn: Option<Turn>,
    /// Bytes written in this turn.
    spent: usize,
    /// The flow that has let others go first in its turn, and what it had written then.
    gave_way: Option<(u16, usize)>,
}

/// Whole frames of one flow.
#[derive(Debug)]
pub struct Frames<C> {
    /// The bytes of these frames; where one ends a chunk need not.
    pub chunks: Vec<C>,
    /// The length of each frame, header included.
    pub lengths: Vec<usize>,
}

/// What waits of one flow.
#[derive(Debug)]
struct Part<C> {
    flow: u16,
    chunks: VecDeque<C>,
    /// What is left of each frame.
    lengths: VecDeque<usize>,
    bytes: usize,
    /// Some of the first frame has been written.
    begun: bool,
}

/// What is to be written next.
#[derive(Debug)]
pub struct Next<'a, C> {
    /// The flow that it is of.
    pub flow: u16,
    /// What waits of this flow. The caller takes off what it writes.
    pub chunks: &'a mut VecDeque<C>,
    /// Bytes of it to be written before asking again, at most. Not 0.
    pub most: usize,
    /// These are all there are of it.
    pub all: bool,
}

/// Those flows that had nothing before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Bytes that they have.
    pub bytes: usize,
    /// Bytes to be written until these have been.
    pub until: usize,
}

impl<C> Default for Frames<C> {
    fn default() -> Frames<C> {
        Frames { chunks: Vec::new(), lengths: Vec::new() }
    }
}

impl<C> Frames<C> {
    fn bytes(&self) -> usize {
        self.lengths.iter().sum()
    }
}

impl<C> Part<C> {
    /// Takes over the memory of `frames`: mostly nothing waits when some come, and they are written before others do.
    fn new(flow: u16, frames: Frames<C>) -> Part<C> {
        let bytes = frames.bytes();
        let Frames { chunks, lengths } = frames;
        Part { flow, chunks: chunks.into(), lengths: lengths.into(), bytes, begun: false }
    }

    fn add(&mut self, frames: Frames<C>) {
        self.bytes += frames.bytes();
        self.chunks.extend(frames.chunks);
        self.lengths.extend(frames.lengths);
    }

    /// `bytes` of it have been written.
    fn wrote(&mut self, mut bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        while let Some(left) = self.lengths.front_mut().filter(|_| bytes > 0) {
            let taken = bytes.min(*left);
            bytes -= taken;
            *left -= taken;
            self.begun = *left > 0;
            if !self.begun {
                self.lengths.pop_front();
            }
        }
    }

    /// Bytes to where the first frame ends behind which `least` have been written.
    fn up_to(&self, least: usize) -> usize {
        let mut bytes = 0;
        for left in &self.lengths {
            bytes += left;
            if bytes >= least {
                break;
            }
        }
        bytes
    }

    fn next(&mut self, most: usize) -> Next<'_, C> {
        Next { flow: self.flow, chunks: &mut self.chunks, most, all: most == self.bytes }
    }
}

impl<C> Default for Flows<C> {
    fn default() -> Flows<C> {
        Flows {
            settled: VecDeque::new(),
            settled_bytes: 0,
            flows: Vec::new(),
            turns: Turns::default(),
            turn: None,
            spent: 0,
            gave_way: None,
        }
    }
}

impl<C> Flows<C> {
    /// Adds whole frames to a flow.
    pub fn add(&mut self, flow: u16, frames: Frames<C>) {
        if frames.lengths.is_empty() {
            return;
        }
        match self.at(flow) {
            Some(at) => self.flows[at].add(frames),
            None => {
                self.flows.push(Part::new(flow, frames));
                self.turns.filled(flow);
            }
        }
    }

    /// Adds a marker of `len` bytes, for which `flow` stands: behind all that is there, and before all that comes.
    pub fn mark(&mut self, flow: u16, marker: C, len: usize) {
        // The frame that is being written goes on.
        while let Some(Turn { of, .. }) = self.turn.take().or_else(|| self.turns.begin()) {
            let part = self.at(of).map(|at| self.flows.swap_remove(at));
            self.settled_bytes += part.as_ref().map_or(0, |part| part.bytes);
            self.settled.extend(part);
        }
        self.gave_way = None;
        self.settled_bytes += len;
        let marker = Frames { chunks: vec![marker], lengths: vec![len] };
        match self.settled.back_mut().filter(|part| part.flow == flow) {
            Some(part) => part.add(marker),
            None => self.settled.push_back(Part::new(flow, marker)),
        }
    }

    /// What to write next; none when nothing waits. [`Self::wrote`] tells how much of it was.
    pub fn front(&mut self) -> Option<Next<'_, C>> {
        let (part, allowed) = if self.settled.is_empty() {
            let flow = self.turn()?;
            let allowed = self.allowed();
            let at = self.at(flow)?;
            (&mut self.flows[at], allowed)
        } else {
            (self.settled.front_mut()?, None)
        };
        let most = allowed.map_or(part.bytes, |allowed| part.up_to(allowed));
        Some(part.next(most))
    }

    /// So many bytes of what was next have been written.
    pub fn wrote(&mut self, bytes: usize) {
        if let Some(part) = self.settled.front_mut() {
            part.wrote(bytes);
            self.settled_bytes = self.settled_bytes.saturating_sub(bytes);
            if part.bytes == 0 {
                self.settled.pop_front();
            }
            return;
        }
        let Some(flow) = self.turn.map(|turn| turn.of) else {
            return;
        };
        self.spent += bytes;
        if let Some(at) = self.at(flow) {
            self.flows[at].wrote(bytes);
            if self.flows[at].bytes == 0 {
                self.flows.swap_remove(at);
                self.turn = None;
            }
        }
    }

    /// The flow whose turn it is.
    fn turn(&mut self) -> Option<u16> {
        if let Some(Turn { of, fresh }) = self.turn {
            let begun = self.part(of).is_some_and(|part| part.begun);
            if begun || self.allowed() != Some(0) {
                return Some(of);
            }
            let gave_way = !fresh && self.spent < TURN;
            self.gave_way = gave_way.then_some((of, self.spent)).or(self.gave_way);
            self.turns.ended(of, if gave_way { Ended::GaveWay } else { Ended::Over });
        }
        self.turn = self.turns.begin();
        let Turn { of, fresh } = self.turn?;
        let before = self.gave_way.take_if(|(flow, _)| !fresh && *flow == of);
        self.spent = before.map_or(0, |(_, spent)| spent);
        Some(of)
    }

    /// Bytes that may still be written in this turn; none: as many as there are.
    fn allowed(&self) -> Option<usize> {
        let of_a_turn = if self.turns.fresh().next().is_none() {
            TURN
        } else if self.turn.is_some_and(|turn| turn.fresh) {
            LITTLE
        } else {
            0
        };
        (!self.turns.is_empty()).then(|| of_a_turn.saturating_sub(self.spent))
    }

    /// Those flows that had nothing before, the one being written among them until it has written what is little; or
    /// what is before a marker, if that is little: others wait for it.
    pub fn fresh(&self) -> Option<Fresh> {
        let bytes = |flow: u16| self.part(flow).map_or(0, |part| part.bytes);
        let settled = self.settled_bytes;
        let waiting: usize = self.turns.fresh().map(bytes).sum();
        let current = self.turn.map_or(0, |turn| bytes(turn.of));
        if self.turn.is_some_and(|turn| turn.fresh) && self.spent < LITTLE {
            let bytes = current + waiting;
            return Some(Fresh { bytes, until: settled + bytes });
        }
        if waiting == 0 && (1..=LITTLE).contains(&settled) {
            return Some(Fresh { bytes: settled, until: settled });
        }
        let rest = self.turn.map_or(0, |turn| self.rest(turn.of));
        (waiting > 0).then_some(Fresh { bytes: waiting, until: settled + rest + waiting })
    }

    /// What waits of a flow; none: nothing.
    fn part(&self, flow: u16) -> Option<&Part<C>> {
        self.at(flow).map(|at| &self.flows[at])
    }

    fn at(&self, flow: u16) -> Option<usize> {
        self.flows.iter().position(|part| part.flow == flow)
    }

    /// What is left of the frame of this flow that is being written.
    fn rest(&self, flow: u16) -> usize {
        let part = self.part(flow).filter(|part| part.begun);
        part.and_then(|part| part.lengths.front().copied()).unwrap_or(0)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.flows.is_empty()
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        *self = Flows::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is written: of which flow, and how many bytes at once.
    type Written = Vec<(u16, usize)>;

    fn frames(lengths: &[usize]) -> Frames<usize> {
        Frames { chunks: lengths.to_vec(), lengths: lengths.to_vec() }
    }

    fn write(flows: &mut Flows<usize>, mut room: usize) -> Written {
        let mut written = Vec::new();
        while let Some(next) = flows.front().filter(|_| room > 0) {
            assert!(next.most > 0);
            let bytes = next.most.min(room);
            written.push((next.flow, bytes));
            flows.wrote(bytes);
            room -= bytes;
        }
        written
    }

    #[test]
    fn what_has_just_come_is_next_as_soon_as_a_frame_ends() {
        let mut flows = Flows::default();
        flows.add(1, frames(&[1000; 9]));
        assert_eq!(write(&mut flows, 1500), [(1, 1500)]);
        flows.add(2, frames(&[10, 10]));
        assert_eq!(flows.fresh(), Some(Fresh { bytes: 7520, until: 7520 }));
        assert_eq!(write(&mut flows, 100_000), [(1, 3500), (2, 20), (1, 4000)]);
        flows.add(1, frames(&[1000; 9]));
        assert_eq!(write(&mut flows, 5500), [(1, 5500)]);
        flows.add(2, frames(&[10, 10]));
        assert_eq!(flows.fresh(), Some(Fresh { bytes: 20, until: 520 }));
        assert_eq!(write(&mut flows, 100_000), [(1, 500), (2, 20), (1, 3000)]);
        assert!(flows.is_empty());
        assert_eq!(flows.fresh(), None);
    }

    /// There was no room for it yet.
    #[test]
    fn what_has_just_come_is_before_a_turn_that_is_unused() {
        let mut flows = Flows::default();
        (1..=2).for_each(|flow| flows.add(flow, frames(&[TURN; 2])));
        assert_eq!(write(&mut flows, 2 * TURN), [(1, TURN), (2, TURN)]);
        assert_eq!(flows.front().map(|next| next.flow), Some(1));
        flows.add(3, frames(&[10]));
        assert_eq!(flows.fresh(), Some(Fresh { bytes: 10, until: 10 }));
        assert_eq!(write(&mut flows, usize::MAX), [(3, 10), (1, TURN), (2, TURN)]);
    }

    #[test]
    fn flows_take_turns() {
        let mut flows = Flows::default();
        (1..=3).for_each(|flow| flows.add(flow, frames(&[TURN / 2; 4])));
        let half = TURN / 2;
        let fresh = [(1, half), (2, half), (3, 2 * half)];
        let rest = [(1, 2 * half), (2, 2 * half), (3, 2 * half), (1, half), (2, half)];
        assert_eq!(write(&mut flows, usize::MAX), [&fresh[..], &rest].concat());
    }

    #[test]
    fn a_marker_is_behind_what_was_there_and_before_what_comes() {
        let mut flows = Flows::default();
        flows.add(1, frames(&[100, 100]));
        flows.add(2, frames(&[100]));
        assert_eq!(write(&mut flows, 50), [(1, 50)]);
        flows.mark(0, 4, 4);
        flows.add(2, frames(&[10]));
        flows.mark(0, 4, 4);
        assert_eq!(flows.fresh(), Some(Fresh { bytes: 268, until: 268 }));
        flows.add(3, frames(&[7]));
        assert_eq!(flows.fresh(), Some(Fresh { bytes: 7, until: 150 + 100 + 4 + 10 + 4 + 7 }));
        let written = write(&mut flows, usize::MAX);
        assert_eq!(written, [(1, 150), (2, 100), (0, 4), (2, 10), (0, 4), (3, 7)]);
        flows.add(1, frames(&[5]));
        flows.clear();
        assert!(flows.is_empty() && flows.front().is_none());
    }

    /// Of a model: whose frame it is, and its number among those of its flow, or of the markers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Item {
        Frame { flow: u16, number: usize, len: usize },
        Marker,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add { flow: u16, lengths: Vec<usize> },
        Mark,
        Write { room: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = prop_oneof![1..50usize, 1..2 * TURN];
        prop_oneof![
            4 => (0..5u16, prop::collection::vec(len, 1..5))
                .prop_map(|(flow, lengths)| Step::Add { flow, lengths }),
            1 => Just(Step::Mark),
            6 => (1..3 * TURN).prop_map(|room| Step::Write { room }),
        ]
    }

    const MARKED: u16 = 99;

    /// Puts what is written together again: whole frames, one after the other, each flow's in its order.
    #[derive(Default)]
    struct Stream {
        items: Vec<Item>,
        open: Option<(u16, usize)>,
    }

    impl Stream {
        fn write(&mut self, flows: &mut Flows<(Item, usize)>, mut room: usize) {
            while let Some(next) = flows.front().filter(|_| room > 0) {
                let flow = next.flow;
                let bytes = next.most.min(room);
                if let Some((open, _)) = self.open {
                    assert_eq!(open, flow, "a frame of another flow inside of one");
                }
                let mut left = bytes;
                while left > 0 {
                    let (item, rest) = next.chunks.front_mut().expect("as many as it said");
                    let taken = left.min(*rest);
                    (left, *rest) = (left - taken, *rest - taken);
                    self.open = (*rest > 0).then_some((flow, *rest));
                    if *rest == 0 {
                        self.items.push(*item);
                        next.chunks.pop_front();
                    }
                }
                flows.wrote(bytes);
                room -= bytes;
            }
        }
    }

    proptest! {
        /// Whatever comes when, and however much room there is.
        #[test]
        fn each_flow_keeps_its_order_and_markers_keep_theirs(
            steps in prop::collection::vec(step(), 1..100)
        ) {
            let (mut flows, mut stream, mut counts) = (Flows::default(), Stream::default(), [0; 5]);
            let mut added: Vec<Item> = Vec::new();
            for step in steps {
                match step {
                    Step::Add { flow, lengths } => {
                        let mut chunks = Vec::new();
                        for &len in &lengths {
                            let number = counts[usize::from(flow)];
                            counts[usize::from(flow)] += 1;
                            chunks.push((Item::Frame { flow, number, len }, len));
                        }
                        added.extend(chunks.iter().map(|(item, _)| *item));
                        flows.add(flow, Frames { chunks, lengths });
                    }
                    Step::Mark => {
                        added.push(Item::Marker);
                        flows.mark(MARKED, (Item::Marker, 4), 4);
                    }
                    Step::Write { room } => match flows.fresh() {
                        Some(Fresh { bytes, until }) if bytes <= LITTLE => {
                            stream.write(&mut flows, until);
                            prop_assert_eq!(flows.fresh(), None);
                        }
                        _ => stream.write(&mut flows, room),
                    },
                }
                prop_assert_eq!(flows.is_empty(), stream.items.len() == added.len());
            }
            stream.write(&mut flows, usize::MAX);
            prop_assert!(flows.is_empty() && stream.open.is_none());
            let parts = |items: &[Item]| {
                let between = items.split(|item| *item == Item::Marker);
                let sorted = between.map(|part| {
                    let mut part = part.to_vec();
                    part.sort_by_key(|item| match *item {
                        Item::Frame { flow, .. } => flow,
                        Item::Marker => MARKED,
                    });
                    part
                });
                sorted.collect::<Vec<_>>()
            };
            prop_assert_eq!(parts(&stream.items), parts(&added));
        }

        /// Nobody waits for more than a turn of each other flow and a frame.
        #[test]
        fn nobody_starves(room in prop::collection::vec(1..TURN, 50..200), len in 1..TURN) {
            let mut flows = Flows::default();
            const FLOWS: u16 = 4;
            (0..FLOWS).for_each(|flow| flows.add(flow, frames(&vec![len; 10_000_000 / len])));
            let mut written = [0; FLOWS as usize];
            for room in room {
                // Another one has little to say again and again.
                flows.add(FLOWS, frames(&[10]));
                for (flow, bytes) in write(&mut flows, room) {
                    if let Some(written) = written.get_mut(usize::from(flow)) {
                        *written += bytes;
                    }
                }
                let (least, most) = (written.iter().min(), written.iter().max());
                prop_assert!(most.unwrap() - least.unwrap() <= TURN + len, "{:?}", written);
            }
        }
    }
}
