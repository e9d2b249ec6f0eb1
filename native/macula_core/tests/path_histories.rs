//! Two ends of a link in a world of paths that die, heal, delay, lose, repeat and reorder: whatever
//! happened, both come to the same path, and to the best one that is alive.
//!
//! `MACULA_SIM_HISTORIES=10000` runs as many (`./dev test sim`), `MACULA_SIM_SEED=n` one again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use macula_core::path::select::{Action, Path, Selector};
use macula_core::random::Random;

/// How often an end looks, and how often it sends something.
const LOOK: Duration = Duration::from_millis(200);
const SEND: Duration = Duration::from_millis(50);

/// How long a history takes, and how long there is peace after it.
const TURMOIL: Duration = Duration::from_secs(40);
const PEACE: Duration = Duration::from_secs(25);

/// An outage is over for the data within this time of a path being there.
const RESUMED: Duration = Duration::from_secs(2);

const ENDS: usize = 2;

fn ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

fn direct() -> Path {
    Path::Direct(SocketAddr::from(([192, 0, 2, 1], 4433)))
}

/// One path as it is now, in each direction.
#[derive(Clone, Copy, Debug)]
struct Road {
    open: [bool; ENDS],
    delay: Duration,
    jitter: u32,
    /// In a thousand.
    loss: u32,
    repeats: u32,
}

impl Road {
    fn is_alive(&self) -> bool {
        self.open == [true; ENDS]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    Ping(u64, bool),
    Pong(u64),
    Data(u64),
    Ack(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize, Path, Load),
    Look(usize),
    Send(usize),
    Change,
}

struct End {
    selector: Selector,
    sent: u64,
    acked: u64,
    received: u64,
    highest_acked: u64,
}

struct World {
    now: Duration,
    random: Random,
    ends: [End; ENDS],
    roads: HashMap<Path, Road>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    number: u64,
    /// When which end took which path.
    switches: Vec<(Duration, usize, Path)>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let first = if random.up_to(1) == 0 { direct() } else { Path::Relay(0) };
        let end = |leads| End {
            selector: Selector::new(leads, first, seed ^ u64::from(leads)),
            sent: 0,
            acked: 0,
            received: 0,
            highest_acked: 0,
        };
        let mut world = World {
            now: Duration::ZERO,
            ends: [end(true), end(false)],
            roads: HashMap::new(),
            events: BinaryHeap::new(),
            number: 0,
            switches: Vec::new(),
            random,
        };
        for path in [direct(), Path::Relay(0), Path::Relay(1)] {
            let road = world.some_road();
            world.roads.insert(path, road);
            for end in 0..ENDS {
                let actions = world.ends[end].selector.offer(world.now, path);
                world.carry_out(end, actions);
            }
        }
        for end in 0..ENDS {
            let offset = ms(world.random.up_to(200));
            world.after(offset, Event::Look(end));
            world.after(offset, Event::Send(end));
        }
        world.after(ms(100), Event::Change);
        world
    }

    fn some_road(&mut self) -> Road {
        let mut one_in = |n: u32| self.random.up_to(n - 1) == 0;
        let open = [!one_in(3), !one_in(3)];
        let (lossy, jittery) = (one_in(2), one_in(2));
        Road {
            open,
            delay: ms(1 + self.random.up_to(120)),
            jitter: if jittery { self.random.up_to(40) } else { 0 },
            loss: if lossy { self.random.up_to(200) } else { 0 },
            repeats: self.random.up_to(50),
        }
    }

    fn after(&mut self, pause: Duration, event: Event) {
        self.number += 1;
        self.events.push(Reverse((self.now + pause, self.number, event)));
    }

    fn transmit(&mut self, from: usize, path: Path, load: Load) {
        let Some(road) = self.roads.get(&path).copied() else {
            return;
        };
        if !road.open[from] || self.random.up_to(999) < road.loss {
            return;
        }
        let copies = if self.random.up_to(999) < road.repeats { 2 } else { 1 };
        for _ in 0..copies {
            let delay = road.delay + ms(self.random.up_to(road.jitter));
            self.after(delay, Event::Arrives(1 - from, path, load));
        }
    }

    fn carry_out(&mut self, end: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ping(path, token, in_use) => {
                    self.transmit(end, path, Load::Ping(token, in_use));
                }
                Action::Pong(path, token) => self.transmit(end, path, Load::Pong(token)),
                Action::Use(path) => self.switches.push((self.now, end, path)),
                Action::Probe => self.send_data(end),
            }
        }
    }

    fn send_data(&mut self, end: usize) {
        self.ends[end].sent += 1;
        let (path, number) = (self.ends[end].selector.current(), self.ends[end].sent);
        self.transmit(end, path, Load::Data(number));
    }

    fn arrives(&mut self, end: usize, path: Path, load: Load) {
        let now = self.now;
        let actions = match load {
            Load::Ping(token, in_use) => self.ends[end].selector.ping(now, path, token, in_use),
            Load::Pong(token) => self.ends[end].selector.pong(now, path, token),
            Load::Data(number) => {
                self.ends[end].received += 1;
                let back = self.ends[end].selector.current();
                self.transmit(end, back, Load::Ack(number));
                return;
            }
            Load::Ack(number) => {
                if number > self.ends[end].highest_acked {
                    self.ends[end].highest_acked = number;
                    self.ends[end].acked += 1;
                }
                return;
            }
        };
        self.carry_out(end, actions);
    }

    fn look(&mut self, end: usize) {
        let End { selector, sent, acked, .. } = &mut self.ends[end];
        let rtt = ms(50);
        let actions = selector.look(self.now, *sent, *acked, rtt);
        self.carry_out(end, actions);
        self.after(LOOK, Event::Look(end));
    }

    /// Something changes: a path, or what an end knows of it.
    fn change(&mut self) {
        let paths = [direct(), Path::Relay(0), Path::Relay(1)];
        let path = paths[self.random.up_to(2) as usize];
        let (what, end) = (self.random.up_to(9), self.random.up_to(1) as usize);
        match (what, path) {
            (0, Path::Relay(_)) => {
                let actions = self.ends[end].selector.withdraw(self.now, path);
                self.carry_out(end, actions);
            }
            (1, Path::Relay(_)) => {
                let actions = self.ends[end].selector.offer(self.now, path);
                self.carry_out(end, actions);
            }
            _ => {
                let road = self.some_road();
                self.roads.insert(path, road);
            }
        }
        let pause = ms(50 + self.random.up_to(4000));
        self.after(pause, Event::Change);
    }

    fn run(&mut self, until: Duration) {
        while let Some(Reverse((at, _, _))) = self.events.peek() {
            if *at > until {
                break;
            }
            let Some(Reverse((at, _, event))) = self.events.pop() else {
                break;
            };
            self.now = at;
            match event {
                Event::Arrives(end, path, load) => self.arrives(end, path, load),
                Event::Look(end) => self.look(end),
                Event::Send(end) => {
                    self.send_data(end);
                    self.after(SEND, Event::Send(end));
                }
                Event::Change if self.now < TURMOIL => self.change(),
                Event::Change => {}
            }
        }
        self.now = until;
    }

    /// From now on nothing changes: each path is alive or dead, and at least one is alive.
    fn pacify(&mut self) {
        let paths = [direct(), Path::Relay(0), Path::Relay(1)];
        let alive = paths[self.random.up_to(2) as usize];
        for path in paths {
            let mut road = self.some_road();
            (road.loss, road.repeats) = (0, 0);
            road.jitter = road.jitter.min(5);
            if path == alive {
                road.open = [true; ENDS];
            }
            self.roads.insert(path, road);
            for end in 0..ENDS {
                let actions = self.ends[end].selector.offer(self.now, path);
                self.carry_out(end, actions);
            }
        }
    }

    /// The paths that are as good as any.
    fn best(&self) -> Vec<Path> {
        let is_alive = |path: &Path| self.roads[path].is_alive();
        if is_alive(&direct()) {
            return vec![direct()];
        }
        let alive = [Path::Relay(0), Path::Relay(1)].into_iter().filter(is_alive);
        let quickest = alive.clone().map(|path| self.roads[&path].delay).min().unwrap_or_default();
        // What is quicker by less than a fifth is not worth a change; jitter adds to that.
        let limit = quickest * 2 + ms(40);
        alive.filter(|path| self.roads[path].delay <= limit).collect()
    }
}

fn history(seed: u64) -> Result<usize, String> {
    let mut world = World::new(seed);
    world.run(TURMOIL);
    world.pacify();
    let (peace, received) = (world.now, [world.ends[0].received, world.ends[1].received]);
    world.run(peace + RESUMED);
    for (end, before) in received.iter().enumerate() {
        if world.ends[end].received == *before {
            return Err(format!("end {end} received nothing within {RESUMED:?}"));
        }
    }
    world.run(peace + PEACE);
    let paths = [world.ends[0].selector.current(), world.ends[1].selector.current()];
    let best = world.best();
    if paths[0] != paths[1] || !best.contains(&paths[0]) {
        return Err(format!("the ends use {paths:?}, best are {best:?} of {:?}", world.roads));
    }
    let switches = world.switches.len();
    world.run(world.now + PEACE);
    match world.switches.get(switches..) {
        // One that is just so much quicker may be found to be so late.
        Some(later) if later.len() <= ENDS => Ok(switches),
        later => Err(format!("there is no peace: {later:?} with {:?}", world.roads)),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn both_ends_come_to_the_best_way() {
    let seeds = match number("MACULA_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MACULA_SIM_HISTORIES").unwrap_or(200),
    };
    let count = seeds.end - seeds.start;
    let mut switches = 0;
    for seed in seeds {
        match history(seed) {
            Ok(changes) => switches += changes,
            Err(error) => panic!("MACULA_SIM_SEED={seed}: {error}"),
        }
    }
    println!("{count} histories, {switches} changes of path");
}
