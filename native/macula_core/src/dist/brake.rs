//! Holds back the processes that send more than their lane takes, and nobody else.
//!
//! The emulator's own brake (`+zdbbl`) stops and releases all senders of a link together, and a process
//! with large messages fills what was freed before another one runs. So its queue is always drained,
//! and who sends more to a full lane is suspended alone until half of that has left. Who shares the lane, and whose
//! flow has little there, goes on: it does not wait for the rest (`super::flows`). What cannot be held so, processes that send without ever waiting (`async_dist`) or that system code must not suspend,
//! comes to a mark of the whole link, over which the emulator is no longer drained.
//!
//! A link on which nothing moves any more is left to the emulator. Only its own brake tells those who would
//! rather not wait (`nosuspend`) that they would, spares `async_dist`, and reports `busy_dist_port`.

use std::collections::HashMap;
use std::mem;

use super::credit::Credit;
use super::lanes::{FLOWS, Flow, Place};
use super::memory::Shares;
use super::signal::Sender;

/// The state of a link's queues.
#[derive(Debug)]
pub struct Brake {
    lanes: Vec<Lane>,
    link: Credit,
    stall: Stall,
    moved: bool,
    /// Looks in a row that found nothing moved.
    still: u32,
}

/// A link stands still when so many looks in a row find that nothing has left any full lane. Several, since what moved
/// last may have done so just before the first of them, or just after: with one it takes up to twice as long to tell.
pub const LOOKS: u32 = 5;

/// Whether anything moves on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    Moving,
    /// Nothing does, and the emulator is not to be drained.
    Standing,
    /// As before, and the producer has been told so.
    Paused,
}

#[derive(Debug)]
struct Lane {
    waiting: Credit,
    /// Bytes of a flow that nobody is suspended for.
    free: usize,
    /// Bytes of each flow.
    flows: [usize; FLOWS as usize],
    /// Who was to be suspended since the lane is full, and the number of its flow.
    suspended: HashMap<Sender, u16>,
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
    fn new(shares: &Shares) -> Lane {
        let flows = [0; FLOWS as usize];
        Lane { waiting: shares.for_lane(), free: shares.flow, flows, suspended: HashMap::new() }
    }

    /// Takes `bytes` of a flow into the queue. True when the lane is full, and this flow not the least of it.
    fn queued(&mut self, flow: u16, bytes: usize) -> bool {
        let waiting = &mut self.flows[usize::from(flow % FLOWS)];
        *waiting += bytes;
        let much = *waiting > self.free;
        self.waiting.queued(bytes) && much
    }

    /// Takes `bytes` of a flow off the queue; returns those who may go on.
    fn taken(&mut self, flow: u16, bytes: usize) -> Vec<Sender> {
        let waiting = &mut self.flows[usize::from(flow % FLOWS)];
        *waiting = waiting.saturating_sub(bytes);
        let little = *waiting <= self.free / 2;
        if self.waiting.taken(bytes) {
            self.release(|_| true)
        } else if little && !self.suspended.is_empty() {
            self.release(|of| of == flow)
        } else {
            Vec::new()
        }
    }

    /// Forgets who was suspended, of these flows.
    fn release(&mut self, of: impl Fn(u16) -> bool) -> Vec<Sender> {
        self.suspended.extract_if(|_, flow| of(*flow)).map(|(sender, _)| sender).collect()
    }
}

impl Brake {
    /// For a link with so many lanes, at least one, that may hold so much.
    pub fn new(lanes: u16, shares: &Shares) -> Brake {
        let lanes = (0..lanes.max(1)).map(|_| Lane::new(shares)).collect();
        Brake { lanes, link: shares.for_link(), stall: Stall::Moving, moved: false, still: 0 }
    }

    /// For a link with its control stream alone, where all senders wait together.
    pub fn without_lanes() -> Brake {
        let link = Credit::output();
        Brake { lanes: Vec::new(), link, stall: Stall::Moving, moved: false, still: 0 }
    }

    /// A frame of `bytes` waits at its place.
    ///
    /// What is said here and by [`Self::taken`] is to be done in the order it was said, and counted: a
    /// process may be suspended anew before its resumption was done.
    pub fn queued(&mut self, place: &Place, bytes: usize) -> Queued {
        let suspend = match *place {
            Place::Lane { flow, sender, .. } => self.queued_on(flow, sender, bytes),
            Place::Fence { .. } | Place::Control => None,
        };
        let full = self.link.queued(bytes);
        if self.stall != Stall::Moving {
            self.stall = Stall::Paused;
        }
        Queued { suspend, pause: full || self.stall == Stall::Paused }
    }

    fn queued_on(&mut self, flow: Flow, sender: Option<Sender>, bytes: usize) -> Option<Sender> {
        let moves = self.stall == Stall::Moving;
        let lane = self.lanes.get_mut(usize::from(flow.lane))?;
        let full = lane.queued(flow.number, bytes) && moves;
        sender.filter(|sender| full && lane.suspended.insert(*sender, flow.number).is_none())
    }

    /// `bytes` have left the queue of a flow, or that of the control stream.
    pub fn taken(&mut self, flow: Option<Flow>, bytes: usize) -> Taken {
        let emptied = self.link.taken(bytes);
        let lane = flow.and_then(|flow| self.lanes.get_mut(usize::from(flow.lane)));
        let (Some(Flow { number, .. }), Some(lane)) = (flow, lane) else {
            return Taken { resume: Vec::new(), go_on: emptied };
        };
        let full = lane.waiting.is_paused();
        let resume = lane.taken(number, bytes);
        if !full {
            return Taken { resume, go_on: emptied };
        }
        self.moved = true;
        let paused = mem::replace(&mut self.stall, Stall::Moving) == Stall::Paused;
        let go_on = emptied || (paused && !self.link.is_paused());
        Taken { resume, go_on }
    }

    /// Whether somebody waits to be resumed.
    pub fn holds(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.suspended.is_empty())
    }

    /// Looks whether the link stands still, to be done at regular intervals while [`Self::holds`]: returns those who are
    /// to be resumed when it does.
    ///
    /// Full lanes alone tell: ticks, and what is alone on its lane, find room where nothing else does.
    pub fn look(&mut self) -> Vec<Sender> {
        let moved = mem::replace(&mut self.moved, false);
        self.still = if moved || !self.holds() { 0 } else { self.still + 1 };
        if self.still < LOOKS { Vec::new() } else { self.stands() }
    }

    /// Nothing has left any full lane for some time, although processes wait: these are to be resumed. Nobody is
    /// suspended, and the emulator is not drained, until something leaves.
    fn stands(&mut self) -> Vec<Sender> {
        self.still = 0;
        if self.stall == Stall::Moving && self.holds() {
            self.stall = Stall::Standing;
        }
        self.lanes.iter_mut().flat_map(|lane| lane.release(|_| true)).collect()
    }

    /// The link has ended: these are to be resumed, and nobody is suspended any more.
    pub fn ended(&mut self) -> Vec<Sender> {
        mem::take(&mut self.lanes).iter_mut().flat_map(|lane| lane.release(|_| true)).collect()
    }

    /// Bytes that wait on the whole link.
    pub fn waiting(&self) -> usize {
        self.link.waiting()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::memory::Memory;
    use super::*;

    const LANES: u16 = 3;

    fn shares() -> Shares {
        Memory::default().shares(Some(LANES))
    }

    fn new() -> Brake {
        Brake::new(LANES, &shares())
    }

    fn sender(id: u32) -> Sender {
        Sender { id, serial: 0, creation: 1 }
    }

    fn flow_of(id: u32) -> Flow {
        let (lane, number) = (id % u32::from(LANES), id / u32::from(LANES));
        Flow { lane: lane as u16, number: number as u16 }
    }

    fn place(id: u32) -> Place {
        Place::Lane { flow: flow_of(id), opening: None, sender: Some(sender(id)) }
    }

    fn taken(brake: &mut Brake, id: u32, bytes: usize) -> Taken {
        brake.taken(Some(flow_of(id)), bytes)
    }

    #[test]
    fn who_fills_a_lane_waits_until_half_of_it_has_left() {
        let mut brake = new();
        assert_eq!(brake.queued(&place(7), shares().lane - 1), Queued::default());
        let suspend = Queued { suspend: Some(sender(7)), pause: false };
        assert_eq!(brake.queued(&place(7), 1), suspend);
        // Suspending takes its time: the frames it sends meanwhile are no reason to do it again.
        assert_eq!(brake.queued(&place(7), 1), Queued::default());
        assert_eq!(brake.queued(&place(8), 1), Queued::default());
        assert_eq!(taken(&mut brake, 7, shares().lane / 2), Taken::default());
        let resume = Taken { resume: vec![sender(7)], go_on: false };
        assert_eq!(taken(&mut brake, 7, 1), resume);
        assert_eq!(taken(&mut brake, 7, 1), Taken::default());
    }

    /// 8 and 11 share a lane.
    #[test]
    fn who_has_little_on_a_full_lane_goes_on() {
        let mut brake = new();
        assert_eq!(brake.queued(&place(8), shares().lane).suspend, Some(sender(8)));
        assert_eq!(brake.queued(&place(11), shares().flow).suspend, None);
        assert_eq!(brake.queued(&place(11), 1).suspend, Some(sender(11)));
        assert_eq!(taken(&mut brake, 11, shares().flow / 2).resume, []);
        assert_eq!(taken(&mut brake, 11, 1).resume, [sender(11)]);
        assert_eq!(brake.queued(&place(11), shares().flow).suspend, Some(sender(11)));
        let mut resumed = taken(&mut brake, 8, shares().lane - shares().flow / 2).resume;
        resumed.sort();
        assert_eq!(resumed, [sender(8), sender(11)]);
    }

    #[test]
    fn what_nobody_can_be_suspended_for_counts_for_the_link() {
        let mut brake = new();
        let flow = Flow::of_nobody(1);
        let nobodys = Place::Lane { flow, opening: None, sender: None };
        let fence = Place::Fence { lanes: 1 };
        assert_eq!(brake.queued(&nobodys, shares().link / 2), Queued::default());
        assert_eq!(brake.queued(&fence, shares().link / 2), Queued { suspend: None, pause: true });
        assert!(!brake.taken(Some(flow), shares().link - shares().link_low - 1).go_on);
        assert!(brake.taken(None, 1).go_on);
        assert_eq!(brake.waiting(), shares().link_low);
    }

    #[test]
    fn a_link_that_stands_still_is_left_to_the_emulator() {
        let mut brake = new();
        assert_eq!(brake.queued(&place(7), shares().lane).suspend, Some(sender(7)));
        assert!(brake.holds());
        assert_eq!(brake.stands(), [sender(7)]);
        assert!(!brake.holds());
        let pause = Queued { suspend: None, pause: true };
        assert_eq!(brake.queued(&place(7), 1), pause);
        assert_eq!(brake.queued(&place(8), 1), pause);
        assert_eq!(taken(&mut brake, 8, 1), Taken::default());
        assert_eq!(brake.queued(&place(8), 1), pause);
        assert_eq!(taken(&mut brake, 7, 1), Taken { resume: vec![], go_on: true });
        assert_eq!(brake.queued(&place(8), 1), Queued::default());
        assert_eq!(brake.queued(&place(7), 1).suspend, Some(sender(7)));
    }

    /// Looks until they are resumed.
    fn looks(brake: &mut Brake) -> u32 {
        (1..).find(|_| !brake.look().is_empty()).unwrap()
    }

    #[test]
    fn a_link_stands_still_so_long_after_the_last_that_moved() {
        let mut brake = new();
        assert_eq!(brake.queued(&place(7), shares().lane).suspend, Some(sender(7)));
        for _ in 0..LOOKS {
            assert_eq!(taken(&mut brake, 7, 1), Taken::default());
            assert_eq!(brake.look(), []);
        }
        // What is alone on its lane does not count.
        brake.queued(&place(8), 1);
        taken(&mut brake, 8, 1);
        assert_eq!(looks(&mut brake), LOOKS);
        // Nobody waits, for however long.
        assert!((0..2 * LOOKS).all(|_| brake.look().is_empty()));
        taken(&mut brake, 7, 1);
        assert_eq!(brake.queued(&place(7), 1).suspend, Some(sender(7)));
        assert_eq!(looks(&mut brake), LOOKS + 1);
    }

    #[test]
    fn a_link_that_stood_still_goes_on_below_its_mark_only() {
        let mut brake = new();
        assert!(brake.queued(&place(7), shares().link).pause);
        brake.stands();
        assert!(!taken(&mut brake, 7, 1).go_on);
        assert!(taken(&mut brake, 7, shares().link / 2).go_on);
        // Nobody was told to pause.
        brake.stands();
        assert_eq!(taken(&mut brake, 7, 1), Taken::default());
    }

    #[test]
    fn nobody_is_suspended_for_a_link_that_has_ended() {
        let mut brake = new();
        assert_eq!(brake.queued(&place(7), shares().lane).suspend, Some(sender(7)));
        assert_eq!(brake.ended(), [sender(7)]);
        assert_eq!(brake.queued(&place(7), shares().lane).suspend, None);
        assert_eq!(taken(&mut brake, 7, 2 * shares().lane), Taken::default());
        assert_eq!(brake.ended(), []);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Queue { id: u32, bytes: usize },
        Fence { bytes: usize },
        Take { id: Option<u32>, share: f64 },
        Stand,
    }

    fn step() -> impl Strategy<Value = Step> {
        let whose = prop::option::weighted(0.9, 0..9u32);
        prop_oneof![
            6 => (0u32..9, 1usize..300_000).prop_map(|(id, bytes)| Step::Queue { id, bytes }),
            1 => (1usize..2_000_000).prop_map(|bytes| Step::Fence { bytes }),
            6 => (whose, 0.0..=1.0).prop_map(|(id, share)| Step::Take { id, share }),
            1 => Just(Step::Stand),
        ]
    }

    /// What the world is like when everything the brake says is done.
    #[derive(Debug, Default)]
    struct World {
        suspended: HashSet<Sender>,
        paused: bool,
        stands: bool,
        waiting: HashMap<Option<Flow>, usize>,
    }

    impl World {
        fn queued(&mut self, flow: Option<Flow>, bytes: usize, queued: Queued) {
            *self.waiting.entry(flow).or_default() += bytes;
            if let Some(sender) = queued.suspend {
                assert!(self.suspended.insert(sender), "suspended twice");
                assert_eq!(Some(flow_of(sender.id)), flow);
            }
            self.paused = queued.pause;
        }

        fn take(&mut self, flow: Option<Flow>, share: f64, brake: &mut Brake) {
            let waiting = self.waiting.entry(flow).or_default();
            let bytes = (*waiting as f64 * share) as usize;
            *waiting -= bytes;
            let full = |flow: Flow| brake.lanes[usize::from(flow.lane)].waiting.is_paused();
            self.stands &= !flow.is_some_and(full);
            let taken = brake.taken(flow, bytes);
            for sender in taken.resume {
                assert!(self.suspended.remove(&sender), "resumed twice");
            }
            assert!(!taken.go_on || self.paused, "it goes on already");
            self.paused &= !taken.go_on;
        }

        /// Whoever waits does so for a reason, which is on its way out.
        fn check(&self, brake: &Brake) {
            for sender in &self.suspended {
                let flow = flow_of(sender.id);
                assert!(self.waiting[&Some(flow)] > shares().flow / 2, "{sender:?}");
                let on_lane =
                    self.waiting.iter().filter(|(of, _)| of.is_some_and(|of| of.lane == flow.lane));
                assert!(
                    on_lane.map(|(_, bytes)| bytes).sum::<usize>() > shares().lane / 2,
                    "{sender:?}"
                );
            }
            let all: usize = self.waiting.values().sum();
            assert_eq!(all, brake.waiting());
            assert!(!self.paused || all > shares().link_low || self.stands);
            assert!(self.suspended.is_empty() || !self.stands);
            assert_eq!(brake.holds(), !self.suspended.is_empty());
            assert!(self.paused || all < shares().link);
        }
    }

    proptest! {
        /// Each suspended process is resumed once, by the time its lane has drained or the link has
        /// ended, and so is the link.
        #[test]
        fn nobody_is_left_behind(
            steps in prop::collection::vec(step(), 1..300),
            drains in any::<bool>(),
        ) {
            let mut brake = new();
            let mut world = World::default();
            for step in steps {
                match step {
                    Step::Queue { id, bytes } => {
                        let queued = brake.queued(&place(id), bytes);
                        world.queued(Some(flow_of(id)), bytes, queued);
                    }
                    Step::Fence { bytes } => {
                        let queued = brake.queued(&Place::Fence { lanes: 0 }, bytes);
                        world.queued(None, bytes, queued);
                    }
                    Step::Take { id, share } => world.take(id.map(flow_of), share, &mut brake),
                    Step::Stand => {
                        world.stands |= brake.holds();
                        for sender in brake.stands() {
                            prop_assert!(world.suspended.remove(&sender));
                        }
                    }
                }
                world.check(&brake);
            }
            if drains {
                (0..9).for_each(|id| world.take(Some(flow_of(id)), 1.0, &mut brake));
                world.take(None, 1.0, &mut brake);
                prop_assert!(!world.paused);
            }
            for sender in brake.ended() {
                prop_assert!(!drains && world.suspended.remove(&sender));
            }
            prop_assert_eq!(world.suspended, HashSet::new());
        }
    }
}
