//! Which path the datagrams of a link go, when there are several.
//!
//! Both ends of a link have one of these. A path is alive when a ping of this end is answered on it,
//! or when what was sent on it is acknowledged; that something arrives proves nothing, since a path
//! may be dead in one direction only. As long as data is acknowledged, nothing is done but to try
//! better paths now and then. When nothing is acknowledged any more, all paths are asked at once, and
//! the best that answers is taken.
//!
//! So that both ends come to the same path, one of them leads: the other follows it wherever it goes,
//! once it has tried the path itself. It goes elsewhere on its own only when the path they have is
//! dead, and the leader then finds out the same, or fetches it back.

use std::net::SocketAddr;
use std::time::Duration;

use crate::random::Random;

/// How long what was sent may wait for an acknowledgement before the path is doubted: more than a
/// busy peer takes for one.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// And as many round trips, where these are long.
const ROUND_TRIPS: u32 = 3;

/// How often all paths are asked while nothing is acknowledged: a path that comes back is found within
/// this time. Tiny packets, of which there are as many as paths.
const INSIST: Duration = Duration::from_millis(400);

/// How long the other paths have to answer before one of them is taken: the best one of them may not
/// be the quickest.
const COLLECT: Duration = Duration::from_millis(100);

/// How often a better path is tried.
const TRY: Duration = Duration::from_secs(5);

/// How often a path is tried that was lost just now, and for how long.
const TRY_AGAIN: Duration = Duration::from_secs(1);
const LOST_LATELY: Duration = Duration::from_secs(15);

/// Answers in a row before a better path is taken, so that one on its last legs is not.
const ANSWERS: u32 = 3;

/// Pings in a row that the path in use leaves unanswered before it is doubted, whatever else shows
/// that the peer is there.
const MISSED: u32 = 2;

/// Between those.
const CONFIRM: Duration = Duration::from_millis(100);

/// How long an answer proves that a path is alive.
const FRESH: Duration = Duration::from_secs(2);

/// A relay is left for another one when that is quicker by a fifth, and by this: what is nearly as
/// good is not worth a change.
const QUICKER: Duration = Duration::from_millis(5);

/// Addresses that a link remembers for its peer at most. The peer alone can add any.
const MAX_DIRECT: usize = 4;

/// Unanswered pings remembered of a path: later answers are too late to count.
const MAX_ASKED: usize = 4;

/// How a datagram gets to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// Straight to an address.
    Direct(SocketAddr),
    /// Through the relay with this number.
    Relay(usize),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask whether this path is alive.
    Ping(Path, u64, InUse),
    /// Answer on this path.
    Pong(Path, u64),
    /// Send the link's datagrams this path from now on. What is known of the capacity of the former
    /// one is of no use.
    Use(Path),
    /// Have what was lost sent again at once: its sender would wait for about as long as the path was
    /// dead before it tries (RFC 9002, 6.2.1).
    Probe,
}

/// Whether a path is the one that data goes.
pub type InUse = bool;

/// Chooses the path of one link. Times are since any fixed moment.
#[derive(Debug)]
pub struct Selector {
    leads: bool,
    /// Never another path: see [`Selector::pin`].
    pinned: bool,
    current: Path,
    paths: Vec<Known>,
    random: Random,
    sent: u64,
    acked: u64,
    /// Since when something that was sent is not acknowledged.
    waiting: Option<Duration>,
    idle: bool,
    doubt: Option<Doubt>,
    /// Where the leader is, as long as that path is not tried here.
    follow: Option<Path>,
}

#[derive(Debug)]
struct Known {
    path: Path,
    asked: Vec<(u64, Duration)>,
    answered: Option<Duration>,
    rtt: Option<Duration>,
    /// Answers, and pings without one, in a row.
    answers: u32,
    missed: u32,
    next: Duration,
    lost: Option<Duration>,
}

/// The path in use may be dead.
#[derive(Debug)]
struct Doubt {
    began: Duration,
    /// When to ask all paths.
    next: Duration,
    /// Acknowledgements do not end it: the peer may send them another path than this one.
    needs_answer: bool,
}

impl Selector {
    /// For a link that goes by `current`. One end of it, and only one, `leads`.
    pub fn new(leads: bool, current: Path, seed: u64) -> Selector {
        Selector {
            leads,
            pinned: false,
            current,
            paths: vec![Known::new(current)],
            random: Random::new(seed),
            sent: 0,
            acked: 0,
            waiting: None,
            idle: false,
            doubt: None,
            follow: None,
        }
    }

    /// Has the link take `path` for ever. The peer's pings are still answered.
    pub fn pin(&mut self, path: Path) {
        (self.pinned, self.leads) = (true, false);
        (self.current, self.paths) = (path, vec![Known::new(path)]);
        (self.waiting, self.doubt, self.follow) = (None, None, None);
    }

    /// The path in use.
    pub fn current(&self) -> Path {
        self.current
    }

    /// The paths known.
    pub fn paths(&self) -> impl Iterator<Item = Path> + '_ {
        self.paths.iter().map(|known| known.path)
    }

    /// Whether nothing was sent between the latest two looks, and nothing is waited for.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// There is another path, which may be dead.
    pub fn offer(&mut self, now: Duration, path: Path) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.pinned {
            return actions;
        }
        if self.find(path).is_some() {
            if self.doubt.is_some() {
                self.ask(now, path, &mut actions);
            }
            return actions;
        }
        let stranded = self.find(self.current).is_none();
        self.paths.push(Known { next: now, ..Known::new(path) });
        if stranded { self.resort_to(now, path) } else { actions }
    }

    /// A path is there no more.
    pub fn withdraw(&mut self, now: Duration, path: Path) -> Vec<Action> {
        self.paths.retain(|known| known.path != path);
        self.follow = self.follow.filter(|follow| *follow != path);
        let next = self.paths.iter().min_by_key(|known| known.rank(now)).map(|known| known.path);
        match next {
            Some(next) if path == self.current => self.resort_to(now, next),
            _ => Vec::new(),
        }
    }

    /// Looks at the link: `sent` counts what it sent that asks for an acknowledgement, `acked` the
    /// acknowledgements it received, which take `rtt`.
    pub fn look(&mut self, now: Duration, sent: u64, acked: u64, rtt: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.pinned {
            self.idle = true;
            return actions;
        }
        if acked != self.acked {
            self.waiting = None;
            if self.doubt.as_ref().is_some_and(|doubt| !doubt.needs_answer) {
                self.end_doubt(&mut actions);
            }
        } else if sent != self.sent && self.waiting.is_none() {
            self.waiting = Some(now);
        }
        self.idle = sent == self.sent && self.waiting.is_none() && self.doubt.is_none();
        (self.sent, self.acked) = (sent, acked);
        self.forget_pings(now, rtt);
        let overdue =
            |since: Duration| now.saturating_sub(since) >= PATIENCE.max(rtt * ROUND_TRIPS);
        if self.doubt.is_none() && self.waiting.is_some_and(overdue) {
            self.doubt = Some(Doubt { began: now, next: now, needs_answer: false });
        } else if self.doubt.is_none() && self.is_mute() {
            self.doubt = Some(Doubt { began: now, next: now, needs_answer: true });
        }
        if self.doubt.is_some() {
            self.pursue_doubt(now, &mut actions);
        } else {
            self.try_better(now, &mut actions);
        }
        actions
    }

    /// The peer asks whether `path` is alive, and says whether it uses it.
    pub fn ping(&mut self, now: Duration, path: Path, token: u64, in_use: InUse) -> Vec<Action> {
        let mut actions = vec![Action::Pong(path, token)];
        if self.pinned {
            return actions;
        }
        if self.find(path).is_none() {
            match path {
                // The peer is at another address than it was.
                Path::Direct(_) => self.learn(now, path, &mut actions),
                // The shell has not said yet that this relay is there.
                Path::Relay(_) => return actions,
            }
        }
        if !in_use {
            return actions;
        }
        if path == self.current {
            self.follow = None;
        } else if self.leads {
            // For the follower the path in use is dead. It is the leader's turn to find out.
            self.doubt.get_or_insert(Doubt { began: now, next: now, needs_answer: true });
            self.pursue_doubt(now, &mut actions);
        } else if self.find(path).is_some_and(|known| known.is_fresh(now)) {
            self.take(now, path, &mut actions);
        } else {
            self.follow = Some(path);
            self.ask(now, path, &mut actions);
        }
        actions
    }

    /// The peer answers on `path`.
    pub fn pong(&mut self, now: Duration, path: Path, token: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(known) = self.find(path) else {
            return actions;
        };
        if !known.answer(now, token) {
            return actions;
        }
        let answers = known.answers;
        if path == self.current {
            self.end_doubt(&mut actions);
        } else if self.doubt.is_some() {
            // Decided at a look, when the other paths have had their time as well.
        } else if self.follow == Some(path) {
            self.take(now, path, &mut actions);
        } else if self.leads && self.is_better(path) {
            if answers >= ANSWERS {
                self.take(now, path, &mut actions);
            } else if let Some(known) = self.find(path) {
                known.next = now + CONFIRM;
            }
        }
        actions
    }

    fn find(&mut self, path: Path) -> Option<&mut Known> {
        self.paths.iter_mut().find(|known| known.path == path)
    }

    fn ask(&mut self, now: Duration, path: Path, actions: &mut Vec<Action>) {
        let token =
            u64::from(self.random.up_to(u32::MAX)) << 32 | u64::from(self.random.up_to(u32::MAX));
        let in_use = path == self.current;
        if let Some(known) = self.find(path) {
            if known.asked.len() == MAX_ASKED {
                known.asked.remove(0);
            }
            known.asked.push((token, now));
            actions.push(Action::Ping(path, token, in_use));
        }
    }

    fn ask_all(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for path in self.paths().collect::<Vec<_>>() {
            self.ask(now, path, actions);
        }
    }

    /// Takes a path that may be dead, because there is no other.
    fn resort_to(&mut self, now: Duration, path: Path) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take(now, path, &mut actions);
        self.doubt = Some(Doubt { began: now, next: now + INSIST, needs_answer: false });
        self.ask_all(now, &mut actions);
        actions
    }

    fn take(&mut self, now: Duration, path: Path, actions: &mut Vec<Action>) {
        let former = std::mem::replace(&mut self.current, path);
        self.follow = None;
        self.waiting = None;
        self.doubt = None;
        if let (Path::Direct(_), Path::Direct(_)) = (former, path) {
            // The peer has moved: nobody is at its former address, or somebody else.
            self.paths.retain(|known| known.path != former);
        }
        if let Some(known) = self.find(former) {
            known.answers = 0;
            known.next = now + TRY_AGAIN;
        }
        actions.extend([Action::Use(path), Action::Probe]);
        self.ask(now, path, actions);
    }

    fn end_doubt(&mut self, actions: &mut Vec<Action>) {
        if self.doubt.take().is_some() {
            self.waiting = None;
            actions.push(Action::Probe);
        }
    }

    /// Takes the best path that answered, and asks all of them again when it is time.
    fn pursue_doubt(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Some(Doubt { began, next, needs_answer }) = self.doubt else {
            return;
        };
        let answered =
            self.paths.iter().filter(|known| known.answered.is_some_and(|at| at > began));
        let best = answered.min_by_key(|known| known.rank(now)).map(|known| known.path);
        match best {
            Some(path) if path != self.current && now.saturating_sub(began) >= COLLECT => {
                if let Some(known) = self.find(self.current) {
                    known.lost = Some(now);
                }
                return self.take(now, path, actions);
            }
            _ => {}
        }
        if now >= next {
            self.doubt = Some(Doubt { began, next: now + INSIST, needs_answer });
            self.ask_all(now, actions);
        }
    }

    /// Asks the paths that may be better, and the one in use, which tells the other end where the
    /// leader is, should it have missed that.
    fn try_better(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if !self.leads || self.paths.len() < 2 {
            return;
        }
        let (current, best) = (self.current, matches!(self.current, Path::Direct(_)));
        let due = self
            .paths
            .iter_mut()
            .filter(|known| known.next <= now && (known.path == current || !best));
        let due = due.map(|known| {
            let lately = known.lost.is_some_and(|at| now.saturating_sub(at) < LOST_LATELY);
            known.next = now + if lately { TRY_AGAIN } else { TRY };
            known.path
        });
        for path in due.collect::<Vec<_>>() {
            self.ask(now, path, actions);
        }
    }

    /// Whether the path in use answers no pings, though data may be acknowledged by another one. The
    /// leader alone finds out: it asks now and then.
    fn is_mute(&self) -> bool {
        let current = self.paths.iter().find(|known| known.path == self.current);
        self.leads && self.paths.len() > 1 && current.is_some_and(|known| known.missed >= MISSED)
    }

    fn is_better(&self, path: Path) -> bool {
        let known = |path| self.paths.iter().find(|known| known.path == path);
        match (self.current, path, known(self.current), known(path)) {
            (Path::Relay(_), Path::Direct(_), ..) => true,
            (Path::Relay(_), Path::Relay(_), Some(current), Some(other)) => {
                let (Some(this), Some(that)) = (current.rtt, other.rtt) else {
                    return false;
                };
                that + QUICKER.max(this / 5) < this
            }
            _ => false,
        }
    }

    fn learn(&mut self, now: Duration, path: Path, actions: &mut Vec<Action>) {
        let is_direct = |known: &Known| matches!(known.path, Path::Direct(_));
        if self.paths.iter().filter(|known| is_direct(known)).count() == MAX_DIRECT {
            let current = self.current;
            let oldest = self
                .paths
                .iter()
                .enumerate()
                .filter(|(_, known)| is_direct(known) && known.path != current);
            if let Some((at, _)) = oldest.min_by_key(|(_, known)| known.answered) {
                self.paths.remove(at);
            }
        }
        self.paths.push(Known { next: now + TRY, ..Known::new(path) });
        self.ask(now, path, actions);
    }

    /// Pings that were not answered in time are lost.
    fn forget_pings(&mut self, now: Duration, rtt: Duration) {
        let limit = FRESH.max(rtt * ROUND_TRIPS);
        for known in &mut self.paths {
            let before = known.asked.len();
            known.asked.retain(|(_, at)| now.saturating_sub(*at) < limit);
            if known.asked.len() < before {
                known.answers = 0;
                known.missed += 1;
                known.next = known.next.min(now + CONFIRM);
            }
        }
    }
}

impl Known {
    fn new(path: Path) -> Known {
        Known {
            path,
            asked: Vec::new(),
            answered: None,
            rtt: None,
            answers: 0,
            missed: 0,
            next: Duration::ZERO,
            lost: None,
        }
    }

    /// Takes the answer to a ping; false when there was none with this token.
    fn answer(&mut self, now: Duration, token: u64) -> bool {
        let Some(at) = self.asked.iter().position(|(asked, _)| *asked == token) else {
            return false;
        };
        let (_, asked) = self.asked.remove(at);
        let sample = now.saturating_sub(asked);
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt + sample) / 2));
        self.answered = Some(now);
        self.answers += 1;
        self.missed = 0;
        true
    }

    fn is_fresh(&self, now: Duration) -> bool {
        self.answered.is_some_and(|at| now.saturating_sub(at) <= FRESH)
    }

    /// The best comes first: straight paths that answer, then relays by how quick they are.
    fn rank(&self, now: Duration) -> (bool, bool, Duration) {
        let is_relay = matches!(self.path, Path::Relay(_));
        (!self.is_fresh(now), is_relay, self.rtt.unwrap_or(Duration::MAX))
    }
}

/// What comes of any history is shown by `tests/path_histories.rs`.
#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(10);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn at(port: u16) -> Path {
        Path::Direct(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn pings(actions: &[Action]) -> Vec<(Path, u64)> {
        let ping = |action: &Action| match action {
            Action::Ping(path, token, _) => Some((*path, *token)),
            _ => None,
        };
        actions.iter().filter_map(ping).collect()
    }

    #[test]
    fn what_is_acknowledged_asks_nobody() {
        let mut selector = Selector::new(true, at(1), 7);
        for n in 1..100 {
            assert_eq!(selector.look(ms(200 * n), n, n, RTT), []);
        }
    }

    #[test]
    fn a_dead_path_is_left_for_one_that_answers() {
        let mut selector = Selector::new(true, at(1), 7);
        assert_eq!(selector.offer(ms(0), Path::Relay(0)), []);
        selector.look(ms(0), 1, 1, RTT);
        assert_eq!(pings(&selector.look(ms(200), 2, 1, RTT)), []);
        let asked = pings(&selector.look(ms(600), 2, 1, RTT));
        assert_eq!(
            asked.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
            [at(1), Path::Relay(0)]
        );
        selector.pong(ms(620), Path::Relay(0), asked[1].1);
        let actions = selector.look(ms(800), 2, 1, RTT);
        assert_eq!(actions[..2], [Action::Use(Path::Relay(0)), Action::Probe]);
        assert_eq!(selector.current(), Path::Relay(0));
    }

    #[test]
    fn a_path_that_was_silent_and_answers_is_kept() {
        let mut selector = Selector::new(true, at(1), 7);
        selector.look(ms(0), 1, 1, RTT);
        selector.look(ms(200), 2, 1, RTT);
        let asked = pings(&selector.look(ms(600), 2, 1, RTT));
        assert_eq!(selector.pong(ms(620), at(1), asked[0].1), [Action::Probe]);
        assert_eq!(selector.pong(ms(621), at(1), asked[0].1), [], "an answer counts once");
        assert_eq!(selector.current(), at(1));
    }

    #[test]
    fn a_peer_at_a_new_address_is_asked_before_it_is_followed() {
        let mut selector = Selector::new(false, at(1), 7);
        let actions = selector.ping(ms(0), at(2), 5, true);
        assert_eq!(actions[0], Action::Pong(at(2), 5));
        assert_eq!(selector.current(), at(1));
        let (path, token) = pings(&actions)[0];
        assert_eq!(path, at(2));
        selector.pong(ms(10), at(2), token);
        assert_eq!(selector.current(), at(2));
    }

    #[test]
    fn addresses_are_not_remembered_without_bound() {
        let mut selector = Selector::new(false, at(1), 7);
        for port in 2..100 {
            selector.ping(ms(u64::from(port)), at(port), 5, false);
        }
        assert_eq!(selector.paths().count(), MAX_DIRECT);
        assert!(selector.paths().any(|path| path == at(1)));
    }

    #[test]
    fn a_pinned_link_answers_and_stays() {
        let mut selector = Selector::new(true, Path::Relay(0), 7);
        selector.pin(at(1));
        assert_eq!(selector.offer(ms(0), Path::Relay(0)), []);
        assert_eq!(selector.ping(ms(0), at(2), 5, true), [Action::Pong(at(2), 5)]);
        assert_eq!(selector.look(ms(9000), 2, 1, RTT), []);
        assert_eq!(selector.current(), at(1));
    }
}
