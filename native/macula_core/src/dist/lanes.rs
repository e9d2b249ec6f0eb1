//! Places the emulator's frames: on a lane of their sender, or as a fence.
//!
//! Fragments go where their sequence began, and take effect with the last one. So a signal of an
//! unknown sender is in order when its last fragment is a fence; the first one is one, too, since the
//! receiver's emulator ends a link on which a sequence begins that is not finished yet, and
//! those before it may be on another lane. What is between them is not held up.

use std::collections::HashMap;

use super::lane::Opening;
use super::signal::{self, Sender, Signal};

/// Sequences remembered at most, 40 bytes each; more are open only when so many processes send
/// large messages at once. Forgetting them costs a fence.
const SEQUENCES: usize = 1024;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To this lane.
    Lane {
        /// The lane.
        index: u16,
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
}

/// Decides where frames go.
#[derive(Debug)]
pub struct Lanes {
    open: Vec<bool>,
    fences: u64,
    sequences: HashMap<u64, Course>,
}

/// Which way a sequence of fragments goes.
#[derive(Clone, Copy, Debug)]
struct Course {
    sender: Option<Sender>,
    index: u16,
    /// Its last fragment has been placed. It is remembered nevertheless: the emulator names a
    /// sequence after the process that sends it, but what no process sends has one name for all.
    ended: bool,
}

impl Lanes {
    /// For `count` lanes, none of them open; at least one.
    pub fn new(count: u16) -> Lanes {
        Lanes { open: vec![false; usize::from(count.max(1))], fences: 0, sequences: HashMap::new() }
    }

    /// The lanes that are open: those to mark when a frame is fenced.
    pub fn open(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.open).filter_map(|(index, open)| open.then_some(index))
    }

    /// Where the frame goes whose parts these are. Frames are to be placed in the order the emulator
    /// gave them, and put there before the next one is.
    pub fn place<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>) -> Place {
        match signal::classify(parts) {
            Signal::From(sender) => self.on(self.lane_of(sender), Some(sender)),
            Signal::SpawnReply(child) => self.on(self.lane_of(child), None),
            Signal::Begins { sender, sequence, last } => self.begins(sender, sequence, last),
            Signal::Continues { sequence, last } => self.continues(sequence, last),
            Signal::Unknown => self.fence(),
        }
    }

    /// The lane of a process. Pids are numbered one after the other, so those spawned together
    /// are spread over all lanes.
    fn lane_of(&self, sender: Sender) -> u16 {
        self.modulo(u64::from(sender.id) + u64::from(sender.serial))
    }

    fn modulo(&self, number: u64) -> u16 {
        (number % self.open.len() as u64) as u16
    }

    fn begins(&mut self, sender: Option<Sender>, sequence: u64, last: bool) -> Place {
        let Some(index) = sender.map(|sender| self.lane_of(sender)) else {
            self.course(
                sequence,
                Course { sender: None, index: self.modulo(sequence), ended: last },
            );
            return self.fence();
        };
        if self.course(sequence, Course { sender, index, ended: last }) {
            self.on(index, sender)
        } else {
            self.fence()
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

    fn continues(&mut self, sequence: u64, last: bool) -> Place {
        let Some(course) = self.sequences.get_mut(&sequence) else {
            return self.fence();
        };
        course.ended = last;
        let Course { sender, index, .. } = *course;
        if last && sender.is_none() {
            self.sequences.remove(&sequence);
            return self.fence();
        }
        self.on(index, sender)
    }

    /// Makes room, before a fence: behind it nothing is left of sequences that have ended. Those that
    /// have not may never end, so they are forgotten when they are many; what follows of them is
    /// fenced.
    fn forget(&mut self) {
        self.sequences.retain(|_, course| !course.ended);
        if self.sequences.len() > SEQUENCES / 2 {
            self.sequences.clear();
        }
    }

    fn on(&mut self, index: u16, sender: Option<Sender>) -> Place {
        let open = &mut self.open[usize::from(index)];
        let opening = (!*open).then_some(Opening { index, fences: self.fences });
        *open = true;
        Place::Lane { index, opening, sender }
    }

    fn fence(&mut self) -> Place {
        self.fences += 1;
        Place::Fence { lanes: self.open().count() as u16 }
    }
}
