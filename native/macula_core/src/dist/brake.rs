//! Holds back the processes that send more than their lane takes, and nobody else.
//!
//! The emulator's own brake (`+zdbbl`) stops and releases all senders of a link together, and a process
//! with large messages fills what was freed before another one runs. So its queue is always drained,
//! and a process whose lane is full is suspended alone until half of that has left. What cannot be held
//! so, processes that send without ever waiting (`async_dist`) or that system code must not suspend,
//! comes to a mark of the whole link, over which the emulator is no longer drained.

use std::collections::HashSet;
use std::mem;

use super::credit::Credit;
use super::lanes::Place;
use super::signal::Sender;

/// The state of a link's queues.
#[derive(Debug)]
pub struct Brake {
    lanes: Vec<Lane>,
    link: Credit,
}

#[derive(Debug)]
struct Lane {
    waiting: Credit,
    suspended: HashSet<Sender>,
}

/// What to do after a frame was queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// The process to suspend.
    pub suspend: Option<Sender>,
    /// Nothing more is to be taken from the emulator until [`Taken::go_on`].
    pub pause: bool,
}

/// What to do after something left a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The processes to resume.
    pub resume: Vec<Sender>,
    /// The emulator may be drained again.
    pub go_on: bool,
}

impl Lane {
    /// Takes `bytes` off the queue; returns those who may go on.
    fn taken(&mut self, bytes: usize) -> HashSet<Sender> {
        if self.waiting.taken(bytes) { mem::take(&mut self.suspended) } else { HashSet::new() }
    }
}

impl Brake {
    /// For a link with so many lanes; at least one.
    pub fn new(lanes: u16) -> Brake {
        let lane = || Lane { waiting: Credit::lane(), suspended: HashSet::new() };
        Brake { lanes: (0..lanes.max(1)).map(|_| lane()).collect(), link: Credit::link() }
    }

    /// For a link with its control stream alone, where all senders wait together.
    pub fn without_lanes() -> Brake {
        Brake { lanes: Vec::new(), link: Credit::output() }
    }

    /// A frame of `bytes` waits at its place.
    ///
    /// To be done in the order it was said, and before [`Self::taken`] says that the same process goes
    /// on: a `suspend` that is late would never be undone.
    pub fn queued(&mut self, place: &Place, bytes: usize) -> Queued {
        let suspend = match *place {
            Place::Lane { index, sender, .. } => self.queued_on(index, sender, bytes),
            Place::Fence { .. } => None,
        };
        Queued { suspend, pause: self.link.queued(bytes) }
    }

    fn queued_on(&mut self, index: u16, sender: Option<Sender>, bytes: usize) -> Option<Sender> {
        let lane = self.lanes.get_mut(usize::from(index))?;
        let full = lane.waiting.queued(bytes);
        sender.filter(|sender| full && lane.suspended.insert(*sender))
    }

    /// `bytes` have left the queue of a lane, or that of the control stream.
    pub fn taken(&mut self, lane: Option<u16>, bytes: usize) -> Taken {
        let lane = lane.and_then(|index| self.lanes.get_mut(usize::from(index)));
        let resume = lane.map_or_else(HashSet::new, |lane| lane.taken(bytes));
        Taken { resume: resume.into_iter().collect(), go_on: self.link.taken(bytes) }
    }

    /// `sender`, which was to be suspended, is no more, or must not be: it will not be resumed.
    pub fn gone(&mut self, sender: Sender) {
        for lane in &mut self.lanes {
            lane.suspended.remove(&sender);
        }
    }

    /// The link has ended: these are to be resumed, and nobody is suspended any more.
    pub fn ended(&mut self) -> Vec<Sender> {
        let lanes = mem::take(&mut self.lanes);
        lanes.into_iter().flat_map(|lane| lane.suspended).collect()
    }

    /// Bytes that wait on the whole link.
    pub fn waiting(&self) -> usize {
        self.link.waiting()
    }
}
