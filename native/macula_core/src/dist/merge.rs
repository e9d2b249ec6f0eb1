//! Puts the lanes of a link together again: tells which of them may be read further.
//!
//! Lanes are read in any order up to their next marker (see [`super::lane`]). When all that were open
//! at a fence have come to its marker, the fenced frame is delivered and they are read on.
//!
//! What waits behind a marker stays in the stream. So the windows of all streams together must
//! fit into what the peer knows of that of the connection: otherwise lanes that wait could keep out
//! what they wait for.

use std::collections::VecDeque;
use std::fmt;

use super::lane::Opening;

/// Where the lanes of a link stand.
#[derive(Debug)]
pub struct Merge {
    lanes: Vec<Option<Lane>>,
    /// Fenced frames delivered.
    fences: u64,
    /// For each fenced frame that waits, the lanes opened before it.
    waiting: VecDeque<u16>,
    /// Lanes opened before the next fence, as far as they have been seen.
    opened: u16,
    /// Those of them that have come to its marker.
    arrived: u16,
}

#[derive(Clone, Copy, Debug)]
struct Lane {
    /// Fences that are behind it: missed, or marked.
    fences: u64,
}

/// What a peer must not send: the link is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A lane beyond those agreed on.
    NoLane(u16),
    /// A lane that is open already.
    OpenAlready(u16),
    /// A lane that an earlier fence should have waited for.
    OpenedLate(u16),
    /// A marker on a lane that may not be read, or is not open.
    Marker(u16),
    /// A fence that waits for so many lanes, while others are before it.
    Fence(u16),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::NoLane(lane) => write!(f, "lane {lane} is beyond those agreed on"),
            Violation::OpenAlready(lane) => write!(f, "lane {lane} was opened twice"),
            Violation::OpenedLate(lane) => write!(f, "lane {lane} is older than a fence passed"),
            Violation::Marker(lane) => write!(f, "lane {lane} was read behind its marker"),
            Violation::Fence(lanes) => write!(f, "a fence for {lanes} lanes leaves out others"),
        }
    }
}

impl std::error::Error for Violation {}

impl Merge {
    /// For `count` lanes at most, none of them open; at least one.
    pub fn new(count: u16) -> Merge {
        Merge {
            lanes: vec![None; usize::from(count.max(1))],
            fences: 0,
            waiting: VecDeque::new(),
            opened: 0,
            arrived: 0,
        }
    }

    /// A lane has begun.
    pub fn opened(&mut self, opening: Opening) -> Result<(), Violation> {
        let Opening { index, fences } = opening;
        match self.lanes.get_mut(usize::from(index)) {
            None => return Err(Violation::NoLane(index)),
            Some(Some(_)) => return Err(Violation::OpenAlready(index)),
            Some(_) if fences < self.fences => return Err(Violation::OpenedLate(index)),
            Some(lane) => *lane = Some(Lane { fences }),
        }
        self.opened += u16::from(fences == self.fences);
        self.check()
    }

    /// The next frame of `lane` is an empty one.
    pub fn marker(&mut self, lane: u16) -> Result<(), Violation> {
        if !self.may_read(lane) {
            return Err(Violation::Marker(lane));
        }
        if let Some(Some(lane)) = self.lanes.get_mut(usize::from(lane)) {
            lane.fences += 1;
        }
        self.arrived += 1;
        Ok(())
    }

    /// The control stream has brought a fenced frame, before which `lanes` were opened.
    pub fn fenced(&mut self, lanes: u16) -> Result<(), Violation> {
        if usize::from(lanes) > self.lanes.len() {
            return Err(Violation::Fence(lanes));
        }
        self.waiting.push_back(lanes);
        self.check()
    }

    /// Whether frames of `lane` may be taken and delivered.
    pub fn may_read(&self, lane: u16) -> bool {
        let lane = self.lanes.get(usize::from(lane)).copied().flatten();
        lane.is_some_and(|lane| lane.fences == self.fences)
    }

    /// Whether the control stream may be read: not while a fenced frame waits, as these would pile up.
    /// Until it is delivered the lanes show that the peer lives.
    pub fn may_read_control(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the fenced frame that waits is the next to be delivered.
    pub fn fence_ready(&self) -> bool {
        self.waiting.front() == Some(&self.arrived)
    }

    /// It has been: lanes may be read on. Does nothing when none was ready.
    pub fn fence_delivered(&mut self) -> Result<(), Violation> {
        if !self.fence_ready() {
            return Ok(());
        }
        self.waiting.pop_front();
        self.fences += 1;
        self.arrived = 0;
        let open = self.lanes.iter().flatten();
        self.opened = open.filter(|lane| lane.fences == self.fences).count() as u16;
        self.check()
    }

    /// No more lanes can be before a fence than it says.
    fn check(&self) -> Result<(), Violation> {
        match self.waiting.front() {
            Some(&lanes) if lanes < self.opened => Err(Violation::Fence(lanes)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(count: u16, open: &[(u16, u64)]) -> Merge {
        let mut merge = Merge::new(count);
        for (index, fences) in open {
            merge.opened(Opening { index: *index, fences: *fences }).unwrap();
        }
        merge
    }

    #[test]
    fn all_lanes_before_a_fence_come_to_its_marker() {
        let mut merge = merge(4, &[(0, 0), (3, 0)]);
        assert!(!merge.may_read(1), "it is not open");
        merge.marker(0).unwrap();
        assert!(!merge.may_read(0));
        assert!(merge.may_read(3));
        merge.fenced(2).unwrap();
        assert!(!merge.fence_ready());
        assert!(!merge.may_read_control());
        merge.marker(3).unwrap();
        assert!(merge.fence_ready());
        merge.fence_delivered().unwrap();
        assert!(merge.may_read(0) && merge.may_read(3) && merge.may_read_control());
    }

    #[test]
    fn a_fence_waits_for_a_lane_that_is_opened_late() {
        let mut merge = merge(2, &[(0, 0)]);
        merge.fenced(2).unwrap();
        merge.marker(0).unwrap();
        assert!(!merge.fence_ready());
        merge.opened(Opening { index: 1, fences: 0 }).unwrap();
        assert!(merge.may_read(1));
        merge.marker(1).unwrap();
        assert!(merge.fence_ready());
    }

    #[test]
    fn a_lane_opened_behind_fences_waits_for_them() {
        let mut merge = merge(2, &[(0, 0), (1, 2)]);
        for _ in 0..2 {
            assert!(!merge.may_read(1));
            merge.fenced(1).unwrap();
            merge.marker(0).unwrap();
            assert!(merge.fence_ready());
            merge.fence_delivered().unwrap();
        }
        assert!(merge.may_read(1));
        merge.fenced(2).unwrap();
        merge.marker(0).unwrap();
        assert!(!merge.fence_ready());
    }

    #[test]
    fn without_lanes_fences_wait_for_nothing() {
        let mut merge = Merge::new(0);
        merge.fenced(0).unwrap();
        merge.fenced(0).unwrap();
        for _ in 0..2 {
            assert!(merge.fence_ready());
            merge.fence_delivered().unwrap();
        }
        assert!(!merge.fence_ready());
        merge.fence_delivered().unwrap();
        assert!(merge.may_read_control());
    }

    #[test]
    fn what_breaks_the_rules_is_named() {
        let open = |index, fences| Opening { index, fences };
        let opened = |merge: &mut Merge, index, fences| merge.opened(open(index, fences));
        let mut one = merge(2, &[(0, 0)]);
        assert_eq!(opened(&mut one, 2, 0), Err(Violation::NoLane(2)));
        assert_eq!(opened(&mut one, 0, 0), Err(Violation::OpenAlready(0)));
        assert_eq!(one.marker(1), Err(Violation::Marker(1)));
        assert_eq!(one.marker(9), Err(Violation::Marker(9)));
        assert_eq!(one.fenced(3), Err(Violation::Fence(3)));
        one.marker(0).unwrap();
        assert_eq!(one.marker(0), Err(Violation::Marker(0)));
        assert_eq!(one.fenced(0), Err(Violation::Fence(0)));

        let mut late = merge(2, &[(0, 0)]);
        late.marker(0).unwrap();
        late.fenced(1).unwrap();
        assert_eq!(opened(&mut late, 1, 0), Err(Violation::Fence(1)));

        let mut later = merge(2, &[]);
        later.fenced(0).unwrap();
        later.fence_delivered().unwrap();
        assert_eq!(opened(&mut later, 1, 0), Err(Violation::OpenedLate(1)));
    }

    #[test]
    fn the_farthest_lane_is_only_never_read() {
        let mut merge = merge(1, &[(0, u64::MAX)]);
        merge.fenced(0).unwrap();
        merge.fence_delivered().unwrap();
        assert!(!merge.may_read(0));
    }
}
