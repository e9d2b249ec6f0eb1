//! What a relay's CPU costs for each megabyte that it passes on, beside coturn's: datagrams of one
//! size at a steady rate from one end to another, through one of them after the other, several times.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::{interval, sleep};

use crate::Error;
use crate::figures::Figures;
use crate::line::{Line, Lines, Unattached};
use crate::process::Usage;
use crate::relay::Relay;
use crate::turn::{End, Server};

/// The datagrams, as what passes them on is given them: large ones of a video call, or of bulk.
const SIZE: usize = 1200;

/// How often what is due is sent.
const BEAT: Duration = Duration::from_millis(1);

/// Each is measured so often, and all in turn, so that what else the machine does hits all alike.
const ROUNDS: usize = 3;

/// How long the last datagrams may take.
const LAST: Duration = Duration::from_millis(300);

/// Two ends, and what is between them.
enum Between {
    /// Two lines at the relay.
    Relay { from: Line, to: Arc<Line> },
    /// An allocation whose peer needs none.
    Allocation { from: End, to: Arc<UdpSocket> },
    /// Two allocations that are each other's peers, so that each datagram is passed on twice.
    Allocations { from: End, to: Arc<End> },
}

impl Between {
    async fn lines(relay: &Relay) -> Result<Between, Error> {
        let unattached = |why: Unattached| format!("{why:?}");
        let lines = Lines::open(0, 2)?;
        let from = lines.attach(0, relay.address).await.map_err(unattached)?;
        let to = lines.attach(1, relay.address).await.map_err(unattached)?;
        Ok(Between::Relay { from, to: Arc::new(to) })
    }

    async fn allocation(server: &Server) -> Result<Between, Error> {
        let (from, to) = (End::open(server.address).await?, UdpSocket::bind("127.0.0.1:0").await?);
        from.bind(to.local_addr()?).await?;
        Ok(Between::Allocation { from, to: Arc::new(to) })
    }

    async fn allocations(server: &Server) -> Result<Between, Error> {
        let (from, to) = (End::open(server.address).await?, End::open(server.address).await?);
        from.bind(to.relayed).await?;
        to.bind(from.relayed).await?;
        Ok(Between::Allocations { from, to: Arc::new(to) })
    }

    fn name(&self) -> &'static str {
        match self {
            Between::Relay { .. } => "macula",
            Between::Allocation { .. } => "coturn, one end allocated",
            Between::Allocations { .. } => "coturn, both ends allocated",
        }
    }

    fn usage(&self, relay: &Relay, server: &Server) -> Result<Usage, Error> {
        match self {
            Between::Relay { .. } => relay.usage(),
            Between::Allocation { .. } | Between::Allocations { .. } => server.usage(),
        }
    }

    /// One datagram.
    fn datagram(&self) -> Bytes {
        match self {
            Between::Relay { from, to } => from.datagram(&to.tag, 0, SIZE),
            Between::Allocation { .. } | Between::Allocations { .. } => vec![0; SIZE].into(),
        }
    }

    /// False: it cannot be sent any more.
    async fn send(&self, datagram: &Bytes) -> bool {
        match self {
            Between::Relay { from, .. } => from.send(datagram.clone()).await,
            Between::Allocation { from, .. } | Between::Allocations { from, .. } => {
                from.send(datagram).await.is_ok()
            }
        }
    }

    /// Counts what comes out, whole, until it is aborted.
    fn count(&self, received: &Arc<AtomicU64>) -> tokio::task::JoinHandle<()> {
        let received = received.clone();
        let count = move |len| {
            received.fetch_add(u64::from(len == SIZE), Relaxed);
        };
        match self {
            Between::Relay { to, .. } => {
                let to = to.clone();
                tokio::spawn(async move {
                    while let Some((_, len)) = to.receive().await {
                        count(len);
                    }
                })
            }
            Between::Allocation { to, .. } => {
                let to = to.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 2 * SIZE];
                    while let Ok(len) = to.recv(&mut buffer).await {
                        count(len);
                    }
                })
            }
            Between::Allocations { to, .. } => {
                let to = to.clone();
                tokio::spawn(async move {
                    let mut buffer = [0; 2 * SIZE];
                    while let Ok(len) = to.receive(&mut buffer).await {
                        count(len);
                    }
                })
            }
        }
    }
}

/// What came of one round.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Megabytes that came out each second.
    rate: f64,
    /// Of a hundred datagrams.
    lost: f64,
    /// Milliseconds of CPU for a megabyte that came out.
    cpu: f64,
}

/// Measures at `rate` bytes a second, for as long each time.
///
/// # Errors
/// There is no coturn here, or one of them does not do as it should.
pub async fn beside_coturn(relay: &Relay, rate: u64, length: Duration) -> Result<Figures, Error> {
    let server = Server::start().await?;
    let server = server.ok_or("there is no turnserver here: Debian's package coturn has it")?;
    let ways = [
        Between::lines(relay).await?,
        Between::allocation(&server).await?,
        Between::allocations(&server).await?,
    ];
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (way, rounds) in ways.iter().zip(&mut rounds) {
            eprintln!("turn: {rate} bytes a second through {}", way.name());
            let used = || way.usage(relay, &server);
            rounds.push(measure(way, used, rate, length).await?);
        }
    }
    let mut figures = Figures::default();
    figures.number("bytes of a datagram", SIZE as f64, "");
    figures.number("rounds", ROUNDS as f64, "");
    let mut medians = Vec::new();
    for (way, rounds) in ways.iter().zip(rounds) {
        let of = |of: fn(&Round) -> f64| sorted(rounds.iter().map(of));
        let mut part = Figures::default();
        part.number("came out", median(&of(|round| round.rate)), "MB/s");
        part.number("lost", median(&of(|round| round.lost)), "%");
        let cpu = of(|round| round.cpu);
        part.number("CPU per MB", median(&cpu), "ms");
        part.number("CPU per MB, least", cpu.first().copied().unwrap_or(0.0), "ms");
        part.number("CPU per MB, most", cpu.last().copied().unwrap_or(0.0), "ms");
        medians.push((way.name(), median(&cpu)));
        figures.part(way.name(), part);
    }
    if let [(_, own), others @ ..] = &medians[..] {
        for (name, other) in others {
            figures.number(format!("macula's CPU per MB, times {name}"), own / other.max(1e-9), "");
        }
    }
    Ok(figures)
}

async fn measure(
    way: &Between,
    used: impl Fn() -> Result<Usage, Error>,
    rate: u64,
    length: Duration,
) -> Result<Round, Error> {
    let received = Arc::new(AtomicU64::new(0));
    let counting = way.count(&received);
    let (before, began, datagram) = (used()?, Instant::now(), way.datagram());
    let mut beat = interval(BEAT);
    let mut sent = 0;
    while began.elapsed() < length {
        beat.tick().await;
        let due = (began.elapsed().as_secs_f64() * rate as f64 / SIZE as f64) as u64;
        while sent < due {
            if !way.send(&datagram).await {
                return Err(format!("{} takes nothing any more", way.name()).into());
            }
            sent += 1;
        }
    }
    let took = began.elapsed();
    sleep(LAST).await;
    let cpu = used()?.cpu_since(&before);
    counting.abort();
    let received = received.load(Relaxed);
    let megabytes = (received * SIZE as u64) as f64 / 1e6;
    Ok(Round {
        rate: megabytes / took.as_secs_f64(),
        lost: 100.0 * sent.saturating_sub(received) as f64 / sent.max(1) as f64,
        cpu: cpu.as_secs_f64() * 1e3 / megabytes.max(1e-9),
    })
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
