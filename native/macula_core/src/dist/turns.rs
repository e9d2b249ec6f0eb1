//! Whose turn it is among those that have something to write: the lanes of a link, or the flows of a lane.
//!
//! When there is no more room for now, what there is next is for those that have waited longest. But who
//! had nothing to write comes first: it is likely to have little, and somebody waits for an answer
//! (the new and old flows of FQ-CoDel, RFC 8290, 4.2).

use std::collections::VecDeque;

/// Bytes that are written in a turn while others want theirs, about: a fragment of the emulator's.
pub const TURN: usize = 64 * 1024;

/// Bytes that are little: who had nothing to write, and now has no more than that, waits for none who have more.
pub const LITTLE: usize = 4 * 1024;

/// Those that have something to write, by their numbers. They are asked in rounds: one for each time there
/// may be room.
#[derive(Debug, Default)]
pub struct Turns {
    /// Those that had nothing to write before this round.
    fresh: VecDeque<u16>,
    /// Those whose turn comes in this round, after these.
    waiting: VecDeque<u16>,
    /// Those that come first in the next round.
    urgent: Vec<u16>,
    /// Those for which there was no room in this round.
    left_out: Vec<u16>,
    /// Those for which there was some, and not enough.
    served: Vec<u16>,
}

/// A turn to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whose it is.
    pub of: u16,
    /// It is its first one since it had nothing to write, or nothing that could not wait.
    pub fresh: bool,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It has nothing more to write.
    Empty,
    /// It has written as much as a turn allows, or more.
    Over,
    /// It has written nothing, and lets those go first that had nothing.
    GaveWay,
    /// There is no more room for what is not to wait.
    Urgent,
    /// There is no more room. Whether it has written something.
    NoRoom {
        /// It has.
        wrote: bool,
    },
}

impl Turns {
    /// One that had nothing to write has something.
    pub fn filled(&mut self, who: u16) {
        self.fresh.push_back(who);
    }

    /// One that waits has something that is not to wait for what else it has.
    pub fn promote(&mut self, who: u16) {
        if !self.fresh.contains(&who) && !self.urgent.contains(&who) {
            let others = |other: &u16| *other != who;
            self.waiting.retain(others);
            self.left_out.retain(others);
            self.served.retain(others);
            self.fresh.push_back(who);
        }
    }

    /// Begins the turn of who writes next; none when the round has ended. The turn ends with
    /// [`Self::ended`].
    pub fn begin(&mut self) -> Option<Turn> {
        if let Some(of) = self.fresh.pop_front() {
            return Some(Turn { of, fresh: true });
        }
        let next = self.waiting.pop_front();
        if next.is_none() {
            self.fresh.extend(self.urgent.drain(..));
            self.waiting.extend(self.left_out.drain(..).chain(self.served.drain(..)));
        }
        next.map(|of| Turn { of, fresh: false })
    }

    /// The turn of this one has ended so.
    pub fn ended(&mut self, who: u16, how: Ended) {
        match how {
            Ended::Empty => {}
            Ended::Over => self.waiting.push_back(who),
            Ended::GaveWay => self.waiting.push_front(who),
            Ended::Urgent => self.urgent.push(who),
            Ended::NoRoom { wrote: true } => self.served.push(who),
            Ended::NoRoom { wrote: false } => self.left_out.push(who),
        }
    }

    /// Those that had nothing to write, apart from the one whose turn it is.
    pub fn fresh(&self) -> impl Iterator<Item = u16> {
        self.fresh.iter().copied()
    }

    /// How many have something to write, apart from the one whose turn it is.
    pub fn len(&self) -> usize {
        let queued = self.fresh.len() + self.waiting.len() + self.urgent.len();
        queued + self.left_out.len() + self.served.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A round in which each lane is asked until there is no room, or it has nothing left.
    fn round(turns: &mut Turns, left: &mut [usize], mut room: usize) -> Vec<(u16, usize)> {
        let mut written = Vec::new();
        while let Some(Turn { of: lane, .. }) = turns.begin() {
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

    #[test]
    fn what_is_not_to_wait_is_first_in_the_next_round() {
        let mut turns = Turns::default();
        (0..3).for_each(|who| turns.filled(who));
        let round = |turns: &mut Turns, how| {
            let all: Vec<u16> = std::iter::from_fn(|| {
                let turn = turns.begin()?;
                turns
                    .ended(turn.of, if turn.of == 2 { how } else { Ended::NoRoom { wrote: true } });
                Some(turn.of)
            })
            .collect();
            assert!(!turns.is_empty());
            all
        };
        assert_eq!(round(&mut turns, Ended::Urgent), [0, 1, 2]);
        turns.promote(2);
        assert_eq!(round(&mut turns, Ended::Urgent), [2, 0, 1]);
        assert_eq!(round(&mut turns, Ended::Empty), [2, 0, 1]);
        assert_eq!(round(&mut turns, Ended::Empty), [0, 1]);
    }

    #[test]
    fn one_that_waits_is_promoted_once() {
        for how in [Ended::Over, Ended::NoRoom { wrote: true }, Ended::NoRoom { wrote: false }] {
            let mut turns = Turns::default();
            turns.filled(0);
            turns.filled(1);
            for who in [0, 1] {
                assert_eq!(turns.begin(), Some(Turn { of: who, fresh: true }));
                turns.ended(who, how);
            }
            turns.promote(1);
            turns.promote(1);
            assert_eq!(turns.fresh().collect::<Vec<_>>(), [1]);
            let mut round = || std::iter::from_fn(|| turns.begin()).collect::<Vec<_>>();
            let others = [round(), round()].concat();
            let fresh = Turn { of: 1, fresh: true };
            assert_eq!(others, [fresh, Turn { of: 0, fresh: false }]);
        }
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
