//! A soak: pairs of nodes come, talk, go and come again for as long as told, and the relay is looked
//! at all the while. What it loses, or what grows and does not stop growing, is seen.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use macula_core::random::Random;
use macula_net::{CookieKeys, Way};
use parking_lot::Mutex;
use tokio::runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use crate::Error;
use crate::figures::Figures;
use crate::latency::Latencies;
use crate::node::Crowd;
use crate::process::Usage;
use crate::relay::Relay;
use crate::talk::{Pair, Talk};

/// Questions a second of each pair, and their size in bytes: together with the coming and going this
/// leaves most of the machine to others, for hours.
const CHAT: (u32, usize) = (3, 200);

/// A talk is told of after so long, also when it goes on.
const CHAPTER: Duration = Duration::from_secs(5);

/// One pair of so many stays from the beginning to the end.
const STAYING: usize = 10;

/// How long after an attempt that failed a pair comes again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the relay has to miss the last of those who vanished: twice what it takes.
const MISSED: Duration = Duration::from_secs(40);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(500);

/// A load that goes on.
#[derive(Clone, Debug)]
pub struct Churn {
    /// Pairs that are there at a time.
    pub pairs: usize,
    /// How long a pair stays, in milliseconds: by chance, in between.
    pub stay_ms: Range<u32>,
    /// How many lives of a hundred end without a word, as when a VM is killed.
    pub vanishing: u32,
    /// How long all of it lasts.
    pub length: Duration,
    /// How often the relay is looked at.
    pub every: Duration,
}

/// What came of all lives so far.
#[derive(Debug, Default)]
struct Tally {
    joined: AtomicU64,
    vanished: AtomicU64,
    /// Pairs that could not join, or not reach each other.
    failed: AtomicU64,
    asked: AtomicU64,
    lost: AtomicU64,
    disordered: AtomicU64,
    /// Since the relay was looked at last.
    times: Mutex<Latencies>,
}

impl Tally {
    fn add(&self, talk: &Talk) {
        self.asked.fetch_add(talk.asked, Relaxed);
        self.lost.fetch_add(talk.lost, Relaxed);
        self.disordered.fetch_add(talk.disordered, Relaxed);
        self.times.lock().append(&talk.times);
    }
}

/// What was seen at a time.
#[derive(Debug)]
struct Sight {
    since: Duration,
    usage: Usage,
    /// Of this program: endpoints that come and go are its own.
    load: Usage,
    nodes: u64,
    forwarded: u64,
    joined: u64,
    vanished: u64,
    asked: u64,
    lost: u64,
    disordered: u64,
    failed: u64,
    p99: Duration,
}

impl Sight {
    async fn take(relay: &mut Relay, tally: &Tally, began: Instant) -> Result<Sight, Error> {
        let counters = relay.counters().await?;
        let counter = |name| counters.get(name).copied().unwrap_or(0);
        let times = std::mem::take(&mut *tally.times.lock());
        Ok(Sight {
            since: began.elapsed(),
            usage: relay.usage()?,
            load: Usage::of(std::process::id())?,
            nodes: counter("nodes"),
            forwarded: counter("forwarded"),
            joined: tally.joined.load(Relaxed),
            vanished: tally.vanished.load(Relaxed),
            asked: tally.asked.load(Relaxed),
            lost: tally.lost.load(Relaxed),
            disordered: tally.disordered.load(Relaxed),
            failed: tally.failed.load(Relaxed),
            p99: times.quantile(0.99),
        })
    }

    /// All of it, for who looks on.
    fn line(&self) -> String {
        let Usage { descriptors, threads, .. } = self.usage;
        format!(
            "soak: {:5} s  relay {:.2} MB, {descriptors} descriptors, {threads} threads, {} nodes, \
             {} forwarded; {} joined, {} vanished, {} failed; {} asked, {} lost, {} out of order, \
             p99 {:.2} ms; CPU of relay {:.0} s, of load {:.0} s, load {:.2} MB",
            self.since.as_secs(),
            megabytes(&self.usage),
            self.nodes,
            self.forwarded,
            self.joined,
            self.vanished,
            self.failed,
            self.asked,
            self.lost,
            self.disordered,
            self.p99.as_secs_f64() * 1e3,
            self.usage.cpu.as_secs_f64(),
            self.load.cpu.as_secs_f64(),
            megabytes(&self.load),
        )
    }

    fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        figures.number("relay's memory", megabytes(&self.usage), "MB");
        figures.number("relay's descriptors", self.usage.descriptors as f64, "");
        figures.number("relay's threads", self.usage.threads as f64, "");
        figures.number("nodes attached", self.nodes as f64, "");
        figures.number("datagrams forwarded", self.forwarded as f64, "");
        figures.number("nodes that joined", self.joined as f64, "");
        figures.number("questions lost", self.lost as f64, "");
        figures.time("round trips p99", self.p99);
        figures
    }
}

fn megabytes(usage: &Usage) -> f64 {
    usage.memory as f64 / 1e6
}

/// Runs it. The first sight is of a relay at which all are.
///
/// # Errors
/// The relay has gone.
pub async fn soak(relay: &mut Relay, churn: Churn) -> Result<Figures, Error> {
    let (tally, began) = (Arc::new(Tally::default()), Instant::now());
    let before = Sight::take(relay, &tally, began).await?;
    let mut slots = JoinSet::new();
    let keys = CookieKeys::default();
    for number in 0..churn.pairs {
        let slot = Slot { number, relay: relay.address, keys: keys.clone(), tally: tally.clone() };
        let churn = churn.clone();
        slots.spawn_blocking(move || slot.keep(&churn, began));
    }
    let mut sights = Vec::new();
    while began.elapsed() + churn.every <= churn.length {
        let next = churn.every * (sights.len() as u32 + 1);
        sleep_until((began + next).into()).await;
        let sight = Sight::take(relay, &tally, began).await?;
        eprintln!("{}", sight.line());
        sights.push(sight);
    }
    while slots.join_next().await.is_some() {}
    let left = until_missed(relay, before.nodes).await?;
    let last = Sight::take(relay, &tally, began).await?;
    eprintln!("{}", last.line());
    Ok(figures(&churn, &before, &sights, &last, left))
}

/// How many nodes more than `before` the relay still has once those who vanished should be missed.
async fn until_missed(relay: &mut Relay, before: u64) -> Result<u64, Error> {
    let began = Instant::now();
    loop {
        let nodes = relay.counters().await?.get("nodes").copied().unwrap_or(0);
        let left = nodes.saturating_sub(before);
        if left == 0 || began.elapsed() > MISSED {
            return Ok(left);
        }
        sleep(LOOK).await;
    }
}

fn figures(churn: &Churn, before: &Sight, sights: &[Sight], last: &Sight, left: u64) -> Figures {
    let mut figures = Figures::default();
    figures.number("pairs", churn.pairs as f64, "");
    figures.number("seconds", churn.length.as_secs_f64(), "s");
    let middle = sights.get(sights.len() / 2);
    for sight in [sights.first(), middle, sights.last()].into_iter().flatten() {
        figures.part(&format!("after {} s", sight.since.as_secs()), sight.figures());
    }
    let since = |share: usize| sights.get(sights.len() * share / 4..).unwrap_or_default();
    for (name, share) in [("from the first quarter on", 1), ("in the second half", 2)] {
        figures.number(format!("relay's memory grew {name}"), slope(since(share)), "MB/h");
    }
    let most = |of: fn(&Usage) -> usize| sights.iter().map(|s| of(&s.usage)).max().unwrap_or(0);
    figures.number("relay's descriptors, most", most(|usage| usage.descriptors) as f64, "");
    figures.number("relay's threads, most", most(|usage| usage.threads) as f64, "");
    figures.number("relay's CPU", last.usage.percent_since(&before.usage), "%");
    figures.number("load's CPU", last.load.percent_since(&before.load), "%");
    figures.number("nodes that joined", last.joined as f64, "");
    figures.number("nodes that vanished", last.vanished as f64, "");
    figures.number("pairs that failed", last.failed as f64, "");
    figures.number("asked", last.asked as f64, "");
    figures.number("lost", last.lost as f64, "");
    figures.number("out of order", last.disordered as f64, "");
    figures.number("nodes attached after all have gone", left as f64, "");
    figures.number("relay's memory after all have gone", megabytes(&last.usage), "MB");
    figures.number("relay's descriptors before", before.usage.descriptors as f64, "");
    figures.number("relay's descriptors after", last.usage.descriptors as f64, "");
    figures
}

/// Megabytes an hour: the line that is closest to what was seen (least squares).
fn slope(sights: &[Sight]) -> f64 {
    let points: Vec<_> =
        sights.iter().map(|s| (s.since.as_secs_f64() / 3600.0, megabytes(&s.usage))).collect();
    rise(&points)
}

fn rise(points: &[(f64, f64)]) -> f64 {
    let mean = |of: fn(&(f64, f64)) -> f64| {
        points.iter().map(of).sum::<f64>() / points.len().max(1) as f64
    };
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let together: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

/// A place for a pair, where one comes after the other, with the same names.
struct Slot {
    number: usize,
    relay: SocketAddr,
    keys: CookieKeys,
    tally: Arc<Tally>,
}

impl Slot {
    fn keep(&self, churn: &Churn, began: Instant) {
        let mut random = Random::new(self.number as u64);
        let Range { start: least, end: most } = churn.stay_ms;
        // They come one after the other, as they will go.
        let first = least * self.number as u32 / churn.pairs.max(1) as u32;
        std::thread::sleep(Duration::from_millis(first.into()));
        while let Some(left) = churn.length.checked_sub(began.elapsed()).filter(|l| !l.is_zero()) {
            let stay = least + random.up_to(most.saturating_sub(least));
            let stay = match self.number % STAYING {
                0 => left,
                _ => left.min(Duration::from_millis(stay.into())),
            };
            if let Err(error) = self.live(stay, random.up_to(99) < churn.vanishing) {
                eprintln!("soak: pair {}: {error}", self.number);
                self.tally.failed.fetch_add(1, Relaxed);
                std::thread::sleep(AGAIN);
            }
        }
    }

    /// One life of a pair, in a runtime of its own, with which all of it ends.
    fn live(&self, stay: Duration, vanishes: bool) -> Result<(), Error> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (crowd, pair) = runtime.block_on(self.meet())?;
        let pair = runtime.block_on(self.talk(pair, stay));
        if vanishes {
            crowd.vanish();
            // Nor do they wait for anything.
            runtime.shutdown_background();
            self.tally.vanished.fetch_add(2, Relaxed);
        } else {
            drop(pair);
            runtime.block_on(crowd.leave());
        }
        Ok(())
    }

    async fn meet(&self) -> Result<(Crowd, Pair), Error> {
        let first = 2 * self.number;
        let mut crowd = Crowd::new(first, self.keys.clone());
        crowd.open(2, false)?;
        crowd.join(0..2, self.relay).await?;
        self.tally.joined.fetch_add(2, Relaxed);
        let [a, b] = crowd.nodes() else {
            return Err("a pair is two".into());
        };
        let pair = Pair::connect((a, first), (b, first + 1), Way::Mesh).await?;
        Ok((crowd, pair))
    }

    async fn talk(&self, mut pair: Pair, stay: Duration) -> Pair {
        let (began, (rate, size)) = (Instant::now(), CHAT);
        while let Some(left) = stay.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            self.tally.add(&pair.talk(rate, size, left.min(CHAPTER)).await);
        }
        pair
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_closest_to_all_points_rises_as_they_do() {
        assert_eq!(rise(&[]), 0.0);
        assert_eq!(rise(&[(1.0, 5.0)]), 0.0);
        assert_eq!(rise(&[(0.0, 1.0), (0.5, 2.0), (1.0, 3.0)]), 2.0);
        assert_eq!(rise(&[(0.0, 7.0), (0.5, 3.0), (1.0, 7.0)]), 0.0);
    }
}
