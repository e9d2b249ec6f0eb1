//! Who misbehaves, each in a process of its own: it says "begun" once it does, and goes on until
//! standard input ends.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use macula_core::mesh::claim::Tag;
use macula_core::relay::message::ToRelay;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::line::{Lines, Unattached};
use crate::node::address;
use crate::throttle::Group;

/// The address of the first rogue, as that of a node with this number: none is so high.
const FIRST: usize = 1 << 19;

/// The number of the first line of a rogue.
const LINE: usize = 1_000_000;

/// A flooder's datagrams, in bytes.
const FLOOD_SIZE: usize = 1200;

/// How long a rogue may take to begin.
const BEGIN: Duration = Duration::from_secs(60);

/// How often a half-open handshake is begun anew: a relay bears with one for some seconds.
const AGAIN: Duration = Duration::from_secs(5);

/// How often a flooder sends what is due.
const BEAT: Duration = Duration::from_millis(2);

/// How long a slow reader sleeps: a relay has let go of it by then.
const ASLEEP: Duration = Duration::from_secs(20);

/// Times that a slow reader asks for the directory.
const ASKED: usize = 150;

/// Ways to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sends as many bytes a second to another of its own, whatever it may.
    Flood(u64),
    /// As many attachments ask for the directory all the time, are sent datagrams, and read neither.
    SlowReader(usize),
    /// Attaches and detaches, as many at a time.
    Loop(usize),
    /// As many handshakes that are begun and never ended.
    HalfOpen(usize),
    /// As many connections on which nothing is ever said.
    Mute(usize),
}

impl Kind {
    /// As it is called on the command line, with its number.
    pub fn parse(name: &str, number: u64) -> Option<Kind> {
        let count = usize::try_from(number).unwrap_or(usize::MAX);
        Some(match name {
            "flood" => Kind::Flood(number),
            "slow-reader" => Kind::SlowReader(count),
            "loop" => Kind::Loop(count),
            "half-open" => Kind::HalfOpen(count),
            "mute" => Kind::Mute(count),
            _ => return None,
        })
    }

    /// The reverse of [`Kind::parse`].
    pub fn name(self) -> (&'static str, u64) {
        match self {
            Kind::Flood(rate) => ("flood", rate),
            Kind::SlowReader(count) => ("slow-reader", count as u64),
            Kind::Loop(count) => ("loop", count as u64),
            Kind::HalfOpen(count) => ("half-open", count as u64),
            Kind::Mute(count) => ("mute", count as u64),
        }
    }
}

/// A rogue at work, until this is dropped.
#[derive(Debug)]
pub struct Rogue {
    child: Child,
    group: Group,
}

impl Rogue {
    /// Starts one, with `percent` of a core; `program` is this program. Returns once it misbehaves.
    ///
    /// # Errors
    /// It does not start, or not get as far.
    pub async fn start(
        program: &Path,
        kind: Kind,
        relay: SocketAddr,
        percent: u64,
    ) -> Result<Rogue, Error> {
        let (name, number) = kind.name();
        let mut command = Command::new("nice");
        command.arg("-n19").arg(program).args(["rogue", name]);
        command.args(["--number", &number.to_string(), "--relay", &relay.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let group = Group::of(child.id().ok_or("it has ended")?, percent);
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let begun = timeout(BEGIN, lines.next_line()).await;
        begun.map_err(|_| "the rogue does not begin")??.ok_or("the rogue has ended")?;
        Ok(Rogue { child, group })
    }

    /// What it may use of the CPU, in words.
    pub fn share(&self) -> &'static str {
        if self.group.is_made() { "a CPU control group of its own" } else { "nice 19" }
    }

    /// Its end.
    pub async fn stop(mut self) {
        let _ = self.child.kill().await;
    }
}

/// Misbehaves until standard input ends.
///
/// # Errors
/// It cannot begin.
pub async fn run(kind: Kind, relay: SocketAddr) -> Result<(), Error> {
    let misbehaving = async {
        match kind {
            Kind::Flood(rate) => flood(relay, rate).await,
            Kind::SlowReader(count) => read_slowly(relay, count).await,
            Kind::Loop(count) => come_and_go(relay, count).await,
            Kind::HalfOpen(count) => half_open(relay, count).await,
            Kind::Mute(count) => mute(relay, count).await,
        }
    };
    let (mut stdin, mut end) = (tokio::io::stdin(), Vec::new());
    tokio::select! {
        ended = misbehaving => ended,
        _ = stdin.read_to_end(&mut end) => Ok(()),
    }
}

fn begun() {
    println!("begun");
}

fn unattached(why: Unattached) -> Error {
    format!("{why:?}").into()
}

async fn flood(relay: SocketAddr, rate: u64) -> Result<(), Error> {
    let lines = Lines::open(FIRST, 2)?;
    let from = lines.attach(LINE, relay).await.map_err(unattached)?;
    let to = lines.attach(LINE + 1, relay).await.map_err(unattached)?;
    let tag = to.tag;
    tokio::spawn(async move { while to.receive().await.is_some() {} });
    begun();
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
        // What its share of CPU did not suffice for is not made up for.
        sent = sent.max(due.saturating_sub(rate / 20));
        while sent < due {
            if !from.send(from.datagram(&tag, 0, FLOOD_SIZE)).await {
                return Err("the relay closed the connection".into());
            }
            sent += FLOOD_SIZE as u64;
        }
        sleep(BEAT).await;
    }
}

/// Sends to nodes that read nothing any more, not even what QUIC says, and are replaced by others
/// when the relay has had enough of them.
async fn read_slowly(relay: SocketAddr, count: usize) -> Result<(), Error> {
    let lines = Lines::open(FIRST, 1)?;
    let from = lines.attach(LINE, relay).await.map_err(unattached)?;
    let mut said = false;
    for first in (1..).step_by(count.max(1)) {
        let (readers, awake) = fall_asleep(relay, first, count).await?;
        if !std::mem::replace(&mut said, true) {
            begun();
        }
        let began = Instant::now();
        while began.elapsed() < ASLEEP {
            for _ in 0..16 {
                for reader in &readers {
                    if !from.send(from.datagram(reader, 0, FLOOD_SIZE)).await {
                        return Err("the relay closed the connection".into());
                    }
                }
            }
            sleep(BEAT).await;
        }
        drop(awake);
    }
    Ok(())
}

/// Attaches nodes, has them ask for much, and stops the thread that they live on until the sender
/// that is given back is dropped. Gives their tags.
async fn fall_asleep(
    relay: SocketAddr,
    first: usize,
    count: usize,
) -> Result<(Vec<Tag>, std::sync::mpsc::Sender<()>), Error> {
    let (tell, told) = oneshot::channel();
    let (awake, sleeping) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        let attaching = async {
            let lines = Lines::open(FIRST + 1, 4)?;
            let mut readers = Vec::new();
            for n in first..first + count {
                let mut reader = lines.attach(LINE + n, relay).await.map_err(unattached)?;
                for _ in 0..ASKED {
                    reader.say(&ToRelay::List).await.map_err(unattached)?;
                }
                readers.push(reader);
            }
            Ok::<_, Error>((lines, readers))
        };
        let attached = runtime.block_on(attaching);
        let tags = attached.as_ref().map(|(_, readers)| readers.iter().map(|r| r.tag).collect());
        // Who wanted to know may have gone.
        let _ = tell.send(tags.map_err(|error| error.to_string()));
        let _ = sleeping.recv();
    });
    let readers: Vec<Tag> = told.await??;
    Ok((readers, awake))
}

async fn come_and_go(relay: SocketAddr, count: usize) -> Result<(), Error> {
    let lines = Arc::new(Lines::open(FIRST, count)?);
    let mut loops = JoinSet::new();
    for n in 0..count {
        let lines = lines.clone();
        loops.spawn(async move {
            loop {
                match lines.attach(LINE + n, relay).await {
                    Ok(line) => line.connection.close(0u32.into(), b"gone"),
                    // Without a pause that would be another kind of rogue.
                    Err(_) => sleep(BEAT).await,
                }
            }
        });
    }
    begun();
    while loops.join_next().await.is_some() {}
    Ok(())
}

async fn mute(relay: SocketAddr, count: usize) -> Result<(), Error> {
    let lines = Arc::new(Lines::open(FIRST, count.clamp(1, 256))?);
    let mut all = JoinSet::new();
    for n in 0..count {
        let lines = lines.clone();
        all.spawn(async move {
            loop {
                if let Ok(connection) = lines.connect(LINE + n, relay).await {
                    connection.closed().await;
                }
                sleep(AGAIN / 5).await;
            }
        });
    }
    begun();
    while all.join_next().await.is_some() {}
    Ok(())
}

/// The first packets of handshakes, whose answers nobody reads.
async fn half_open(relay: SocketAddr, count: usize) -> Result<(), Error> {
    /// Sources of them.
    const SOURCES: usize = 64;
    let sources = (0..SOURCES).map(|n| std::net::UdpSocket::bind((address(FIRST + n), 0)));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let mut said = false;
    loop {
        let round = Instant::now();
        for n in 0..count {
            let packet = first_packet(relay)?;
            // One that cannot be sent is one less.
            let _ = sources.get(n % SOURCES).map(|socket| socket.send_to(&packet, relay));
        }
        if !std::mem::replace(&mut said, true) {
            begun();
        }
        sleep(AGAIN.saturating_sub(round.elapsed())).await;
    }
}

fn first_packet(relay: SocketAddr) -> Result<Vec<u8>, Error> {
    let config = crate::line::config()?;
    let mut endpoint = quinn_proto::Endpoint::new(
        Arc::new(quinn_proto::EndpointConfig::default()),
        None,
        false,
        None,
    );
    let now = Instant::now();
    let (_, mut connection) = endpoint.connect(now, config, relay, "relay")?;
    let mut packet = Vec::with_capacity(1500);
    match connection.poll_transmit(now, 1, &mut packet) {
        Some(_) => Ok(packet),
        None => Err("a handshake begins with nothing".into()),
    }
}
