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
    /// Those that have a turn beside the one that they wait for.
    promoted: Vec<u16>,
    /// The turn that has begun is such a one.
    extra: bool,
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

    /// One that waits has something that is not to wait for what else it has. For that it has a turn now, and keeps its
    /// place: else it would come to the rest ever later.
    pub fn promote(&mut self, who: u16) {
        if !self.fresh.contains(&who) && !self.urgent.contains(&who) {
            self.fresh.push_back(who);
            self.promoted.push(who);
        }
    }

    /// Begins the turn of who writes next; none when the round has ended. The turn ends with
    /// [`Self::ended`].
    pub fn begin(&mut self) -> Option<Turn> {
        self.extra = false;
        if let Some(of) = self.fresh.pop_front() {
            self.extra = self.promoted.contains(&of);
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
        let waits_beside = self.promoted.contains(&who);
        match how {
            Ended::Empty if waits_beside => self.forget(who),
            Ended::Empty => {}
            Ended::Urgent if self.extra || !waits_beside => self.urgent.push(who),
            _ if self.extra => self.promoted.retain(|other| *other != who),
            Ended::Over => self.waiting.push_back(who),
            Ended::GaveWay => self.waiting.push_front(who),
            Ended::NoRoom { wrote: true } => self.served.push(who),
            Ended::NoRoom { wrote: false } | Ended::Urgent => self.left_out.push(who),
        }
    }

    /// It has nothing for any turn that it waits for.
    fn forget(&mut self, who: u16) {
        let others = |other: &u16| *other != who;
        self.fresh.retain(others);
        self.waiting.retain(others);
        self.urgent.retain(others);
        self.left_out.retain(others);
        self.served.retain(others);
        self.promoted.retain(others);
    }

    /// Those that had nothing to write, apart from the one whose turn it is.
    pub fn fresh(&self) -> impl Iterator<Item = u16> {
        self.fresh.iter().copied()
    }

    /// How many have something to write, apart from the one whose turn it is.
    pub fn len(&self) -> usize {
        let queued = self.fresh.len() + self.waiting.len() + self.urgent.len();
        queued + self.left_out.len() + self.served.len() - self.promoted.len()
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
            assert_eq!(turns.len(), 2);
            let turn = |of, fresh| Turn { of, fresh };
            assert_eq!(turns.begin(), Some(turn(1, true)));
            assert_eq!(turns.len(), 1);
            turns.ended(1, Ended::Over);
            let mut round = || std::iter::from_fn(|| turns.begin()).collect::<Vec<_>>();
            let others = [round(), round()].concat();
            assert_eq!(others, [turn(0, false), turn(1, false)]);
        }
    }

    #[test]
    fn one_that_is_promoted_and_has_nothing_left_waits_no_more() {
        let mut turns = Turns::default();
        turns.filled(0);
        turns.begin();
        turns.ended(0, Ended::Over);
        turns.promote(0);
        turns.begin();
        turns.ended(0, Ended::Urgent);
        assert_eq!(turns.begin(), Some(Turn { of: 0, fresh: false }));
        turns.ended(0, Ended::Empty);
        assert_eq!((turns.len(), turns.begin(), turns.begin()), (0, None, None));
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

        /// A lane that has something every time that is not to wait comes to what else it has as often as others.
        #[test]
        fn nobody_loses_a_place_by_promotion(lanes in 2..10u16, urgent in prop::collection::vec(any::<bool>(), 50..300)) {
            let mut turns = Turns::default();
            (0..lanes).for_each(|lane| turns.filled(lane));
            let mut served = vec![0; usize::from(lanes)];
            for urgent in urgent {
                if urgent && turns.fresh().next().is_none() {
                    turns.promote(0);
                }
                // Room for what is not to wait, and for one lane more.
                let mut room = true;
                while let Some(Turn { of, .. }) = turns.begin() {
                    let extra = turns.extra;
                    if extra || !room {
                        turns.ended(of, if extra { Ended::Over } else { Ended::NoRoom { wrote: false } });
                        continue;
                    }
                    room = false;
                    served[usize::from(of)] += 1;
                    turns.ended(of, Ended::NoRoom { wrote: true });
                }
                let (least, most) = (served.iter().min(), served.iter().max());
                prop_assert!(most.unwrap() - least.unwrap() <= 1, "{:?}", served);
            }
        }
    }
}
