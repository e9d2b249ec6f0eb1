//! Whose turn it is among the lanes that have something to write.
//!
//! When QUIC takes no more for now, what it takes next is for those that have waited longest. But a lane
//! that had nothing to write comes first: it is likely to have little, and somebody waits for an answer
//! (the new and old flows of FQ-CoDel, RFC 8290, 4.2).

use std::collections::VecDeque;

/// Bytes that a lane writes in a turn while others want theirs, about: a fragment of the emulator's.
pub const TURN: usize = 64 * 1024;

/// The lanes that have something to write. They are asked in rounds: one for each time there may be
/// room.
#[derive(Debug, Default)]
pub struct Turns {
    /// Those that had nothing to write before this round.
    fresh: VecDeque<u16>,
    /// Those whose turn comes in this round, after these.
    waiting: VecDeque<u16>,
    /// Those for which there was no room in this round.
    left_out: Vec<u16>,
    /// Those for which there was some, and not enough.
    served: Vec<u16>,
}

/// A lane's turn to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Which lane it is.
    pub lane: u16,
    /// It is its first one since it had nothing to write.
    pub fresh: bool,
}

/// How a lane's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has nothing more to write.
    Empty,
    /// It has written as much as a turn allows, or more.
    Over,
    /// There is no more room for it. Whether it has written something.
    NoRoom {
        /// It has.
        wrote: bool,
    },
}

impl Turns {
    /// A lane that had nothing to write has something.
    pub fn filled(&mut self, lane: u16) {
        self.fresh.push_back(lane);
    }

    /// Begins the turn of the lane to write next; none when the round has ended. The turn ends with
    /// [`Self::ended`].
    pub fn begin(&mut self) -> Option<Turn> {
        if let Some(lane) = self.fresh.pop_front() {
            return Some(Turn { lane, fresh: true });
        }
        let next = self.waiting.pop_front();
        if next.is_none() {
            self.waiting.extend(self.left_out.drain(..).chain(self.served.drain(..)));
        }
        next.map(|lane| Turn { lane, fresh: false })
    }

    /// The turn of this lane has ended so.
    pub fn ended(&mut self, lane: u16, how: Ended) {
        match how {
            Ended::Empty => {}
            Ended::Over => self.waiting.push_back(lane),
            Ended::NoRoom { wrote: true } => self.served.push(lane),
            Ended::NoRoom { wrote: false } => self.left_out.push(lane),
        }
    }

    /// Whether no lane has anything to write, apart from the one whose turn it is.
    pub fn is_empty(&self) -> bool {
        let queued = self.fresh.len() + self.waiting.len();
        queued + self.left_out.len() + self.served.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A round in which each lane is asked until there is no room, or it has nothing left.
    fn round(turns: &mut Turns, left: &mut [usize], mut room: usize) -> Vec<(u16, usize)> {
        let mut written = Vec::new();
        while let Some(Turn { lane, .. }) = turns.begin() {
            let rest = &mut left[usize::from(lane)];
            let bytes = room.min(*rest).min(TURN);
            *rest -= bytes;
            room -= bytes;
            let how = match *rest {
                0 => Ended::Empty,
                _ if bytes == TURN => Ended::Over,
                _ => Ended::NoRoom { wrote: bytes > 0 },
            };
            turns.ended(lane, how);
            written.push((lane, bytes));
        }
        written
    }

    #[test]
    fn a_lane_that_had_nothing_comes_first() {
        let (mut turns, mut left) = (Turns::default(), [5 * TURN, 5 * TURN, 10]);
        turns.filled(0);
        turns.filled(1);
        assert_eq!(round(&mut turns, &mut left, TURN + 1), [(0, TURN), (1, 1), (0, 0)]);
        turns.filled(2);
        assert_eq!(round(&mut turns, &mut left, TURN), [(2, 10), (0, TURN - 10), (1, 0)]);
        assert_eq!(round(&mut turns, &mut left, 1), [(1, 1), (0, 0)]);
    }

    #[test]
    fn a_lane_is_asked_again_only_after_the_others() {
        let (mut turns, mut left) = (Turns::default(), [3 * TURN, TURN, 2 * TURN]);
        (0..3).for_each(|lane| turns.filled(lane));
        let lanes = round(&mut turns, &mut left, 10 * TURN).into_iter().map(|(lane, _)| lane);
        assert_eq!(lanes.collect::<Vec<_>>(), [0, 1, 2, 0, 2, 0]);
        assert!(turns.is_empty());
    }

    proptest! {
        /// However little room there is at a time, none is left unused, and nobody is served twice more
        /// often than another one.
        #[test]
        fn lanes_take_turns(lanes in 2..40u16, rooms in prop::collection::vec(1..3 * TURN, 1..300)) {
            let mut left = vec![usize::MAX; usize::from(lanes)];
            let mut turns = Turns::default();
            (0..lanes).for_each(|lane| turns.filled(lane));
            let mut served = vec![0; usize::from(lanes)];
            for room in rooms {
                let written = round(&mut turns, &mut left, room);
                prop_assert_eq!(written.iter().map(|(_, bytes)| bytes).sum::<usize>(), room);
                for (lane, _) in written.iter().filter(|(_, bytes)| *bytes > 0) {
                    served[usize::from(*lane)] += 1;
                }
                let (least, most) = (served.iter().min(), served.iter().max());
                prop_assert!(most.unwrap() - least.unwrap() <= 1, "{:?}", served);
            }
        }
    }
}
