//! What a relay is put through, and what is looked at meanwhile.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use macula_net::Way;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::figures::Figures;
use crate::line::Lines;
use crate::node::Crowd;
use crate::relay::Relay;
use crate::rogue::{Kind, Rogue};
use crate::talk::{Pair, Talk};

/// Nodes attached before memory is looked at: what the first ones cost is paid once.
const WARM: usize = 20;

/// How long after a burst the relay is left alone.
const SETTLE: Duration = Duration::from_secs(3);

/// How often the nodes of a relay are counted.
const COUNT: Duration = Duration::from_millis(100);

/// How long nodes may take to come back.
const BACK: Duration = Duration::from_secs(120);

/// Questions a second of a quiet pair, and their size in bytes.
const QUIET: (u32, usize) = (100, 200);

/// Sizes of datagrams that are forwarded: small messages, and the largest of bulk.
const SIZES: [usize; 2] = [200, 1200];

/// Bytes of datagrams on their way at once from each line that sends as much as it can.
const WINDOW: usize = 128 * 1024;

/// Tells on standard error how far it is.
fn progress(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// Nodes attach in one burst, are left in peace for as long as `idle`, and leave.
///
/// # Errors
/// A node cannot join, or the relay has gone.
pub async fn attach(
    relay: &mut Relay,
    nodes: usize,
    one_address: bool,
    idle: Duration,
) -> Result<Figures, Error> {
    let mut crowd = Crowd::default();
    crowd.open(WARM + nodes, one_address)?;
    progress(format!("attach: {nodes} nodes are open"));
    let at = relay.address;
    crowd.join(0..WARM, at).await?;
    let before = relay.usage()?;
    let began = Instant::now();
    let times = crowd.join(WARM..WARM + nodes, at).await?;
    let took = began.elapsed();
    let after = relay.usage()?;
    progress(format!("attach: {nodes} nodes attached after {} ms", took.as_millis()));
    sleep(SETTLE).await;
    let settled = relay.usage()?;
    sleep(idle).await;
    let rested = relay.usage()?;
    let mut figures = Figures::default();
    figures.number("nodes", nodes as f64, "");
    figures.time("all attached after", took);
    figures.number("attached a second", nodes as f64 / took.as_secs_f64(), "/s");
    figures.latencies("join", &times);
    let cpu = after.cpu_since(&before).as_secs_f64() * 1e3 / nodes as f64;
    figures.number("relay's CPU per attachment", cpu, "ms");
    let memory = |usage: &crate::process::Usage| usage.memory.saturating_sub(before.memory) as f64;
    figures.number("relay's memory per node", memory(&rested) / nodes as f64 / 1e3, "kB");
    figures.number("relay's memory in all", rested.memory as f64 / 1e6, "MB");
    figures.number("relay's idle CPU", rested.percent_since(&settled), "%");
    figures.number("attached at the end", crowd.attached() as f64, "");
    figures.number("relay's descriptors", rested.descriptors as f64, "");
    crowd.leave().await;
    sleep(SETTLE).await;
    figures.number("relay's memory after they left", relay.usage()?.memory as f64 / 1e6, "MB");
    Ok(figures)
}

/// The relay is killed and started again while nodes are attached.
///
/// # Errors
/// A node cannot join, or the relay does not start.
pub async fn restart(relay: &mut Relay, nodes: usize, one_address: bool) -> Result<Figures, Error> {
    let mut crowd = Crowd::default();
    crowd.open(nodes, one_address)?;
    crowd.join(0..crowd.nodes().len(), relay.address).await?;
    progress(format!("restart: {nodes} nodes are attached"));
    sleep(SETTLE).await;
    relay.restart().await?;
    let began = Instant::now();
    let back = |count: u64| count >= nodes as u64;
    let mut half = None;
    let mut count = 0;
    while !back(count) && began.elapsed() < BACK {
        sleep(COUNT).await;
        count = relay.counters().await?.get("nodes").copied().unwrap_or(0);
        if 2 * count >= nodes as u64 {
            half.get_or_insert(began.elapsed());
        }
    }
    let took = began.elapsed();
    progress(format!("restart: {count} of {nodes} are back after {} ms", took.as_millis()));
    let counters = relay.counters().await?;
    let usage = relay.usage()?;
    let mut figures = Figures::default();
    figures.number("nodes", nodes as f64, "");
    figures.number("back", count as f64, "");
    figures.time("half are back after", half.unwrap_or(took));
    figures.time("all are back after", took);
    for name in ["port_refused", "port_failed_hellos", "port_full_handshakes", "told_to_wait"] {
        figures.number(
            format!("relay: {name}"),
            counters.get(name).copied().unwrap_or(0) as f64,
            "",
        );
    }
    figures.number("relay's memory", usage.memory as f64 / 1e6, "MB");
    crowd.leave().await;
    Ok(figures)
}

/// Lines send each other as much as the relay forwards.
///
/// # Errors
/// A line cannot be attached.
pub async fn forward(relay: &mut Relay, pairs: usize, length: Duration) -> Result<Figures, Error> {
    let mut figures = Figures::default();
    let lines = Lines::open(0, 2 * pairs)?;
    let mut ends = Vec::new();
    for n in 0..pairs {
        let attach = |n| lines.attach(n, relay.address);
        let attached = async { Ok((attach(2 * n).await?, attach(2 * n + 1).await?)) };
        let (from, to) =
            attached.await.map_err(|why: crate::line::Unattached| format!("{why:?}"))?;
        ends.push((Arc::new(from), Arc::new(to)));
    }
    figures.number("pairs", pairs as f64, "");
    for size in SIZES {
        progress(format!("forward: {pairs} pairs, {size} bytes"));
        figures.part(&format!("{size} bytes"), forward_size(relay, &ends, size, length).await?);
    }
    Ok(figures)
}

type Ends = (Arc<crate::line::Line>, Arc<crate::line::Line>);

async fn forward_size(
    relay: &mut Relay,
    ends: &[Ends],
    size: usize,
    length: Duration,
) -> Result<Figures, Error> {
    let counted = relay.counters().await?;
    let (before, began) = (relay.usage()?, Instant::now());
    let mut sending = JoinSet::new();
    for (from, to) in ends {
        sending.spawn(send_much(from.clone(), to.clone(), size, length));
    }
    let (mut sent, mut received) = (0, 0);
    while let Some(ended) = sending.join_next().await {
        let (out, came) = ended?;
        sent += out;
        received += came;
    }
    let took = began.elapsed().as_secs_f64();
    let after = relay.usage()?;
    let megabytes = (received * size as u64) as f64 / 1e6;
    let mut figures = Figures::default();
    figures.number("forwarded", received as f64 / took, "datagrams/s");
    figures.number("forwarded bytes", megabytes / took, "MB/s");
    figures.number("lost", 100.0 * (sent - received.min(sent)) as f64 / sent.max(1) as f64, "%");
    figures.number("relay's CPU", after.percent_since(&before), "%");
    let cpu = after.cpu_since(&before).as_secs_f64() * 1e3 / megabytes.max(1e-9);
    figures.number("relay's CPU per MB", cpu, "ms");
    add_grown(&mut figures, &counted, &relay.counters().await?);
    Ok(figures)
}

/// Sends with a bounded number of bytes under way; gives how many datagrams were sent and received.
async fn send_much(
    from: Arc<crate::line::Line>,
    to: Arc<crate::line::Line>,
    size: usize,
    length: Duration,
) -> (u64, u64) {
    let received = Arc::new(AtomicU64::new(0));
    let heard = Arc::new(tokio::sync::Notify::new());
    let reading = {
        let (to, received, heard) = (to.clone(), received.clone(), heard.clone());
        tokio::spawn(async move {
            while to.receive().await.is_some() {
                received.fetch_add(1, Relaxed);
                heard.notify_one();
            }
        })
    };
    let (began, window, mut sent, mut lost) = (Instant::now(), (WINDOW / size) as u64, 0, 0);
    while began.elapsed() < length {
        let under_way = sent - received.load(Relaxed) - lost;
        if under_way < window {
            from.send(from.datagram(&to.tag, sent, size)).await;
            sent += 1;
        } else if timeout(Duration::from_millis(100), heard.notified()).await.is_err() {
            // Nothing comes any more: what was under way is lost.
            lost += under_way;
        }
    }
    sleep(Duration::from_millis(300)).await;
    reading.abort();
    (sent, received.load(Relaxed))
}

/// A quiet pair of nodes, with a link through the relay.
struct QuietPair {
    pair: Pair,
    _crowd: Crowd,
}

impl QuietPair {
    async fn connect(relay: &Relay, direct: bool) -> Result<QuietPair, Error> {
        let mut crowd = Crowd::default();
        crowd.open(2, false)?;
        if !direct {
            crowd.join(0..crowd.nodes().len(), relay.address).await?;
        }
        let [a, b] = crowd.nodes() else {
            return Err("a pair is two".into());
        };
        let way = if direct { Way::Address(b.address()) } else { Way::Mesh };
        let pair = Pair::connect((a, 0), (b, 1), way).await?;
        Ok(QuietPair { pair, _crowd: crowd })
    }

    async fn talk(&mut self, length: Duration) -> Talk {
        let (rate, size) = QUIET;
        self.pair.talk(rate, size, length).await
    }
}

/// What a relay adds to the round trips of a link.
///
/// # Errors
/// A link cannot be opened.
pub async fn latency(relay: &mut Relay, length: Duration) -> Result<Figures, Error> {
    progress("latency: a link straight, and one through the relay");
    let mut straight = QuietPair::connect(relay, true).await?;
    let direct = straight.talk(length).await;
    drop(straight);
    let relayed = QuietPair::connect(relay, false).await?.talk(length).await;
    let mut figures = Figures::default();
    figures.latencies("straight", &direct.times);
    figures.latencies("relayed", &relayed.times);
    let added = |share| relayed.times.quantile(share).saturating_sub(direct.times.quantile(share));
    figures.time("added to a round trip p50", added(0.5));
    figures.time("added to a round trip p99", added(0.99));
    Ok(figures)
}

/// A quiet pair talks while somebody misbehaves.
///
/// # Errors
/// The pair has no link, or nobody misbehaves.
pub async fn abuse(
    relay: &mut Relay,
    program: &Path,
    kind: Kind,
    percent: u64,
    length: Duration,
) -> Result<Figures, Error> {
    let mut quiet = QuietPair::connect(relay, false).await?;
    // The first talk is for everything to get warm.
    quiet.talk(length / 5).await;
    let idle = quiet.talk(length).await;
    progress(format!("abuse: {:?} begins", kind));
    let before = relay.counters().await?;
    let rogue = Rogue::start(program, kind, relay.address, percent).await?;
    let used = relay.usage()?;
    let busy = quiet.talk(length).await;
    let usage = relay.usage()?;
    let after = relay.counters().await?;
    let mut figures = Figures::default();
    figures.text("its CPU", format!("{percent} % of a core, {}", rogue.share()));
    rogue.stop().await;
    figures.latencies("quiet pair, idle", &idle.times);
    figures.latencies("quiet pair, meanwhile", &busy.times);
    let ratio = |share| {
        busy.times.quantile(share).as_secs_f64()
            / idle.times.quantile(share).as_secs_f64().max(1e-9)
    };
    figures.number("p99 meanwhile, times idle", ratio(0.99), "");
    figures.number("asked", busy.asked as f64, "");
    figures.number("lost", (busy.lost + idle.lost) as f64, "");
    figures.number("out of order", (busy.disordered + idle.disordered) as f64, "");
    figures.number("relay's CPU", usage.percent_since(&used), "%");
    figures.number("relay's memory", usage.memory as f64 / 1e6, "MB");
    add_grown(&mut figures, &before, &after);
    Ok(figures)
}

/// What grew of the counters of a relay.
fn add_grown(figures: &mut Figures, before: &HashMap<String, u64>, after: &HashMap<String, u64>) {
    let mut after: Vec<_> = after.iter().collect();
    after.sort();
    for (name, count) in after {
        let grown = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        if grown > 0 && name != "bytes" {
            figures.number(format!("relay: {name}"), grown as f64, "");
        }
    }
}
