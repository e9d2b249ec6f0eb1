//! Places the emulator's frames: on a lane of their sender, or as a fence.
//!
//! Fragments go where their sequence began, and take effect with the last one. So a signal of an
//! unknown sender is in order when its last fragment is a fence; the first one is one, too, since the
//! receiver's emulator ends a link on which a sequence begins that is not finished yet, and
//! those before it may be on another lane. What is between them is not held up.

use std::collections::HashMap;

use super::atoms::{Atoms, Header, Known, Refs};
use super::lane::Opening;
use super::signal::{self, Sender, Signal};

/// Sequences remembered at most, 40 bytes each; more are open only when so many processes send
/// large messages at once. Forgetting them costs a fence.
const SEQUENCES: usize = 1024;

/// Flows of a lane: few enough to count the bytes of each, and so many that those who share a lane hardly ever
/// share a flow as well.
pub const FLOWS: u16 = 16;

/// One of the queues before a lane. Signals of one process are always of the same flow, and those of another process
/// on the same lane mostly of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The lane.
    pub lane: u16,
    /// Which of its flows: below [`FLOWS`].
    pub number: u16,
}

impl Flow {
    /// What is on a lane by itself: markers, and what is of no process.
    pub fn of_nobody(lane: u16) -> Flow {
        Flow { lane, number: 0 }
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a lane.
    Lane {
        /// The lane, and whom the frame does not wait for on it.
        flow: Flow,
        /// What the lane begins with, when this frame is its first.
        opening: Option<Opening>,
        /// Whose doing it is: the process that pauses when the lane is full.
        sender: Option<Sender>,
    },
    /// To the control stream, and a marker to every lane that is open.
    Fence {
        /// How many these are.
        lanes: u16,
    },
    /// To the control stream, as it is: an empty frame, which is a tick there.
    Control,
}

/// Decides where frames go.
#[derive(Debug)]
pub struct Lanes {
    open: Vec<bool>,
    fences: u64,
    sequences: HashMap<u64, Course>,
    refs: Refs,
    atoms: Atoms,
}

/// Which way a sequence of fragments goes.
#[derive(Clone, Copy, Debug)]
struct Course {
    sender: Option<Sender>,
    flow: Flow,
    /// Its last fragment has been placed. It is remembered nevertheless: the emulator names a
    /// sequence after the process that sends it, but what no process sends has one name for all.
    ended: bool,
}

impl Lanes {
    /// For `count` lanes, none of them open; at least one.
    pub fn new(count: u16) -> Lanes {
        let count = count.max(1);
        Lanes {
            open: vec![false; usize::from(count)],
            fences: 0,
            sequences: HashMap::new(),
            refs: Refs::default(),
            atoms: Atoms::new(1 + usize::from(count) * usize::from(FLOWS)),
        }
    }

    /// Opens those that are not open, and says what each begins with. Otherwise a lane is opened by its
    /// first frame.
    pub fn open_all(&mut self) -> impl Iterator<Item = Opening> {
        let fences = self.fences;
        let closed = (0..).zip(&mut self.open).filter(|(_, open)| !**open);
        closed.map(move |(index, open)| {
            *open = true;
            Opening { index, fences }
        })
    }

    /// The lanes that are open: those to mark when a frame is fenced.
    pub fn open(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.open).filter_map(|(index, open)| open.then_some(index))
    }

    /// Where the frame goes whose parts these are. Frames are to be placed in the order the emulator
    /// gave them, and put there before the next one is.
    pub fn place<'a>(
        &mut self,
        parts: impl IntoIterator<Item = &'a [u8], IntoIter: Clone>,
    ) -> Place {
        let mut parts = parts.into_iter();
        let signal = signal::classify(parts.clone(), &mut self.refs);
        let known = self.atoms.know(&self.refs);
        let course = match signal {
            Signal::From(sender) => Some((self.flow_of(sender), Some(sender))),
            Signal::SpawnReply(child) => Some((self.flow_of(child), None)),
            Signal::Begins { sender, sequence, last } => self.begins(sender, sequence, last),
            Signal::Continues { sequence, last } => self.continues(sequence, last),
            // An empty one stands for a signal that was sent before the nodes were connected, and that
            // the peer does not understand.
            Signal::Unknown if parts.all(<[u8]>::is_empty) => return Place::Control,
            Signal::Unknown => None,
        };
        let place = match course {
            Some((flow, sender)) if known == Known::Yes => self.on(flow, sender),
            _ => self.fence(),
        };
        self.atoms.write(&self.refs, way(&place));
        place
    }

    /// What is to be written in place of the first bytes of the frame that was placed last; none: it goes as it is.
    pub fn header(&self) -> Option<Header<'_>> {
        self.atoms.header(&self.refs)
    }

    /// The flow of a process. Pids are numbered one after the other, so those spawned together
    /// are spread over all lanes; also where it is every second of them, or every fifth, as others are
    /// spawned in between, since each round over all lanes begins three further on. The next round is of
    /// other flows.
    fn flow_of(&self, sender: Sender) -> Flow {
        let number = u64::from(sender.id) + u64::from(sender.serial);
        let round = number / self.open.len() as u64;
        Flow { lane: self.modulo(number + 3 * round), number: (round % u64::from(FLOWS)) as u16 }
    }

    fn modulo(&self, number: u64) -> u16 {
        (number % self.open.len() as u64) as u16
    }

    /// Where the first fragment goes; none: it is a fence.
    fn begins(
        &mut self,
        sender: Option<Sender>,
        sequence: u64,
        last: bool,
    ) -> Option<(Flow, Option<Sender>)> {
        let Some(flow) = sender.map(|sender| self.flow_of(sender)) else {
            self.begins_unknown(sequence, last);
            return None;
        };
        self.course(sequence, Course { sender, flow, ended: last }).then_some((flow, sender))
    }

    fn begins_unknown(&mut self, sequence: u64, last: bool) {
        if last {
            self.sequences.remove(&sequence);
        } else {
            let flow = Flow::of_nobody(self.modulo(sequence));
            self.course(sequence, Course { sender: None, flow, ended: false });
        }
    }

    /// Remembers which way a sequence goes. False when it may go there behind a fence only.
    fn course(&mut self, sequence: u64, course: Course) -> bool {
        let room = self.sequences.len() < SEQUENCES || self.sequences.contains_key(&sequence);
        if !room {
            self.forget();
        }
        let before = self.sequences.insert(sequence, course);
        room && before.is_none_or(|before| before.sender == course.sender)
    }

    /// Where a further fragment goes; none: it is a fence.
    fn continues(&mut self, sequence: u64, last: bool) -> Option<(Flow, Option<Sender>)> {
        let course = self.sequences.get_mut(&sequence)?;
        course.ended = last;
        let Course { sender, flow, .. } = *course;
        if last && sender.is_none() {
            self.sequences.remove(&sequence);
            return None;
        }
        Some((flow, sender))
    }

    /// Makes room, before a fence: behind it nothing is left of sequences that have ended. The others
    /// are forgotten when they are many, and what follows of them is fenced. Emulators of OTP 25 to 29 end
    /// every sequence, that of a process killed meanwhile, too; nothing here depends on it.
    fn forget(&mut self) {
        self.sequences.retain(|_, course| !course.ended);
        if self.sequences.len() > SEQUENCES / 2 {
            self.sequences.clear();
        }
    }

    fn on(&mut self, flow: Flow, sender: Option<Sender>) -> Place {
        let open = &mut self.open[usize::from(flow.lane)];
        let opening = (!*open).then_some(Opening { index: flow.lane, fences: self.fences });
        *open = true;
        Place::Lane { flow, opening, sender }
    }

    fn fence(&mut self) -> Place {
        self.fences += 1;
        Place::Fence { lanes: self.open().count() as u16 }
    }
}

/// Frames of the same way stay in their order, whatever overtakes them.
fn way(place: &Place) -> usize {
    match place {
        Place::Lane { flow: Flow { lane, number }, .. } => {
            1 + usize::from(*lane) * usize::from(FLOWS) + usize::from(*number)
        }
        Place::Fence { .. } | Place::Control => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn sender(id: u32) -> Sender {
        Sender { id, serial: 3, creation: 1 }
    }

    fn flow(course: Option<(Flow, Option<Sender>)>) -> Option<Flow> {
        course.map(|(flow, _)| flow)
    }

    #[test]
    fn processes_spawned_together_have_lanes_of_their_own() {
        const PROCESSES: u32 = 32;
        let lanes = Lanes::new(64);
        let of = |id| lanes.flow_of(Sender { id, serial: u32::MAX, creation: 1 }).lane;
        for (first, others) in (0..500).chain([u32::MAX - 8 * PROCESSES]).zip((1..=8).cycle()) {
            let ids = (0..PROCESSES).map(|number| first + number * others);
            let different = ids.map(of).collect::<HashSet<_>>().len();
            assert!(different >= PROCESSES as usize - 1, "{first} {others}: {different}");
        }
    }

    #[test]
    fn processes_of_one_lane_have_flows_of_their_own() {
        let lanes = Lanes::new(64);
        let processes = u32::from(FLOWS) * 64;
        let of = |id| lanes.flow_of(Sender { id, serial: 0, creation: 1 });
        let flows = (0..processes).map(of);
        assert_eq!(flows.collect::<HashSet<_>>().len(), processes as usize);
    }

    #[test]
    fn a_lane_is_opened_once_and_knows_the_fences_before() {
        let mut lanes = Lanes::new(0);
        assert_eq!(lanes.fence(), Place::Fence { lanes: 0 });
        let opening = Some(Opening { index: 0, fences: 1 });
        let flow = Flow::of_nobody(0);
        let opening_it = Place::Lane { flow, opening, sender: None };
        assert_eq!(lanes.on(flow, None), opening_it);
        assert_eq!(lanes.on(flow, None), Place::Lane { flow, opening: None, sender: None });
        assert_eq!(lanes.fence(), Place::Fence { lanes: 1 });
        assert_eq!(lanes.open().collect::<Vec<_>>(), [0]);
    }

    /// As a fence it would be none that the peer takes, and as a frame of a lane a marker.
    #[test]
    fn an_empty_frame_is_on_no_lane_and_no_fence() {
        let mut lanes = Lanes::new(2);
        lanes.on(Flow::of_nobody(0), None);
        for parts in [&[][..], &[&[][..]], &[&[], &[]]] {
            assert_eq!(lanes.place(parts.iter().copied()), Place::Control);
        }
        assert_eq!(lanes.fences, 0);
        assert_eq!(lanes.place([&[0][..]]), Place::Fence { lanes: 1 });
    }

    #[test]
    fn all_others_are_opened_at_once() {
        let mut lanes = Lanes::new(3);
        lanes.on(Flow::of_nobody(1), None);
        assert_eq!(lanes.fence(), Place::Fence { lanes: 1 });
        let openings: Vec<_> = lanes.open_all().collect();
        assert_eq!(openings, [0, 2].map(|index| Opening { index, fences: 1 }));
        assert_eq!(lanes.open().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(lanes.open_all().count(), 0);
        assert_eq!(
            lanes.on(Flow::of_nobody(2), None),
            Place::Lane { flow: Flow::of_nobody(2), opening: None, sender: None }
        );
    }

    #[test]
    fn fragments_follow_the_first_to_the_last() {
        let mut lanes = Lanes::new(8);
        let way = flow(lanes.begins(Some(sender(9)), 5, false));
        assert_eq!(flow(lanes.continues(5, false)), way);
        assert_eq!(flow(lanes.continues(5, true)), way);
        assert!(way.is_some());
        assert_eq!(flow(lanes.continues(6, false)), None);
    }

    #[test]
    fn of_nobodys_fragments_the_first_and_the_last_are_fences() {
        let mut lanes = Lanes::new(8);
        assert_eq!(flow(lanes.begins(None, 5, false)), None);
        assert!(flow(lanes.continues(5, false)).is_some());
        assert_eq!(flow(lanes.continues(5, true)), None);
        assert!(lanes.sequences.is_empty());
        assert_eq!(flow(lanes.begins(None, 5, true)), None);
        assert!(lanes.sequences.is_empty());
    }

    #[test]
    fn a_sequence_of_another_sender_begins_behind_a_fence() {
        let mut lanes = Lanes::new(8);
        for last in [false, true] {
            assert!(flow(lanes.begins(Some(sender(9)), u64::from(last), last)).is_some());
            assert_eq!(flow(lanes.begins(Some(sender(10)), u64::from(last), last)), None);
            assert!(flow(lanes.begins(Some(sender(10)), u64::from(last), last)).is_some());
        }
    }

    /// However many sequences there are, and whether they end or not.
    #[test]
    fn few_sequences_are_remembered_and_few_fences_are_for_that() {
        for ends in [false, true] {
            let mut lanes = Lanes::new(8);
            let many = 20 * SEQUENCES as u64;
            let mut fences = 0;
            for number in 0..many {
                let course = lanes.begins(Some(sender(number as u32)), number, ends);
                fences += u64::from(course.is_none());
                assert!(lanes.sequences.len() <= SEQUENCES);
            }
            assert!(fences <= 2 * many / SEQUENCES as u64, "{fences} fences");
        }
    }
}
