//! Carries the frames of one direction, in a thread of its own: takes them from one interface,
//! holds each for as long as its fate says, and hands it to the other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};

use crate::impair::{Direction, Fate, Impairment};
use crate::tap::Tap;

/// The largest frame: an IP packet with its Ethernet header, and a VLAN tag perhaps.
const MAX_FRAME: usize = 65_535 + 18;

/// Frames taken in a row before those that are due get their turn.
const BATCH: usize = 32;

/// Frames on their way at once, in bytes: 0.4 s at 300 MB/s. What is beyond is dropped.
const MAX_HELD: usize = 128 * 1024 * 1024;

/// What became of the frames so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Handed over.
    pub passed: AtomicU64,
    /// Lost on purpose.
    pub lost: AtomicU64,
    /// Dropped at a full queue.
    pub queue_full: AtomicU64,
    /// Handed over after frames that were sent later; counted in `passed` too.
    pub late: AtomicU64,
}

/// One direction, as those who change and read it see it.
#[derive(Debug, Default)]
pub struct Settings {
    current: Mutex<Setting>,
    /// What happened.
    pub counters: Counters,
}

/// An impairment, numbered by how many were set before it.
#[derive(Clone, Debug, Default)]
struct Setting {
    number: u64,
    impairment: Impairment,
}

impl Settings {
    /// Holds from the next frame on, with fates drawn from the start.
    pub fn set(&self, impairment: Impairment) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Setting { number: current.number + 1, impairment };
    }

    fn get(&self) -> Setting {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One direction, as its thread sees it.
pub struct Forwarder {
    from: Arc<Tap>,
    to: Arc<Tap>,
    settings: Arc<Settings>,
    setting: Setting,
    direction: Direction,
    start: Instant,
    held: Held,
}

impl Forwarder {
    /// Nothing moves before `run`.
    pub fn new(from: Arc<Tap>, to: Arc<Tap>, settings: Arc<Settings>, seed: u64) -> Forwarder {
        Forwarder {
            from,
            to,
            settings,
            setting: Setting::default(),
            direction: Direction::new(seed),
            start: Instant::now(),
            held: Held::default(),
        }
    }

    /// Forwards until an interface is gone.
    pub fn run(mut self) -> io::Result<()> {
        // Else the kernel may wake us 50 us late, to spare itself timers.
        nix::sys::prctl::set_timerslack(1)?;
        let mut frame = vec![0; MAX_FRAME];
        loop {
            self.hand_over_what_is_due();
            if !self.take(&mut frame)? {
                self.wait()?;
            }
        }
    }

    fn hand_over_what_is_due(&mut self) {
        while let Some(frame) = self.held.due(self.start.elapsed()) {
            self.to.send(&frame);
            self.held.recycle(frame);
        }
    }

    /// For a frame, or for one that is held to be due.
    fn wait(&self) -> io::Result<()> {
        let timeout = self.held.next().map(|due| due.saturating_sub(self.start.elapsed()).into());
        let mut waiting = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut waiting, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether there may be more.
    fn take(&mut self, frame: &mut [u8]) -> io::Result<bool> {
        for _ in 0..BATCH {
            let Some(bytes) = self.from.receive(frame)? else { return Ok(false) };
            self.obey();
            if let Some(frame) = frame.get(..bytes) {
                self.send(frame);
            }
        }
        Ok(true)
    }

    fn obey(&mut self) {
        let setting = self.settings.get();
        if setting.number != self.setting.number {
            self.direction.restart();
            self.setting = setting;
        }
    }

    fn send(&mut self, frame: &[u8]) {
        let counters = &self.settings.counters;
        let now = self.start.elapsed();
        match self.direction.send(&self.setting.impairment, now, frame.len()) {
            Fate::Lost => count(&counters.lost),
            Fate::QueueFull => count(&counters.queue_full),
            Fate::Arrives(at) if at <= now => {
                self.to.send(frame);
                count(&counters.passed);
            }
            fate @ (Fate::Arrives(at) | Fate::ArrivesLate(at)) => {
                if self.held.bytes + frame.len() > MAX_HELD {
                    return count(&counters.queue_full);
                }
                self.held.hold(at, frame);
                count(&counters.passed);
                if matches!(fate, Fate::ArrivesLate(_)) {
                    count(&counters.late);
                }
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Frames on their way, the next one first; of two that are due at once, the one sent first.
#[derive(Default)]
struct Held {
    frames: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
    bytes: usize,
    sent: u64,
    /// Memory to use again.
    free: Vec<Vec<u8>>,
}

impl Held {
    fn hold(&mut self, due: Duration, frame: &[u8]) {
        let mut copy = self.free.pop().unwrap_or_default();
        copy.extend_from_slice(frame);
        self.bytes += copy.len();
        self.frames.push(Reverse((due, self.sent, copy)));
        self.sent += 1;
    }

    fn next(&self) -> Option<Duration> {
        self.frames.peek().map(|Reverse((due, _, _))| *due)
    }

    fn due(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.next().filter(|due| *due <= now)?;
        let Reverse((_, _, frame)) = self.frames.pop()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    fn recycle(&mut self, mut frame: Vec<u8>) {
        frame.clear();
        self.free.push(frame);
    }
}
