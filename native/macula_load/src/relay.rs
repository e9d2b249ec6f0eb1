//! The relay under load, in a process of its own.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use macula_core::relay::limits::Limits;
use macula_core::relay::pressure::Rates;
use macula_net::{Endpoint, EndpointConfig, RelayConfig};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines, Stdin};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::Error;
use crate::node::Member;
use crate::process::Usage;

/// How long the relay's process may take for anything it is asked.
const ANSWER: Duration = Duration::from_secs(20);

/// The longest answer of a relay's health, in bytes.
const LONGEST_HEALTH: u64 = 64 * 1024;

/// Nodes a relay takes: more than any load has.
const NODES: usize = 65_536;

/// What the relay allows. None: what it does by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    /// Bytes a second of each node.
    pub bytes: Option<u64>,
    /// Datagrams a second of each node.
    pub datagrams: Option<u64>,
    /// Attachments a second.
    pub attachments: Option<u64>,
    /// Bytes that wait for all nodes.
    pub memory: Option<u64>,
}

/// As `macula_mesh_options` has them.
const ATTACHMENTS: u64 = 500;
const MEMORY: u64 = 256 * 1024 * 1024;

/// Serves as a relay until standard input ends. Tells its port first, and its counters for each
/// line that it reads.
///
/// # Errors
/// The port cannot be had.
pub async fn serve(port: u16, home: PathBuf, allowance: Allowance) -> Result<(), Error> {
    let config = EndpointConfig {
        ip: Some(Ipv4Addr::LOCALHOST.into()),
        ports: vec![port],
        // As a relay that is started anew has the key it had.
        home: Some(home),
        ..EndpointConfig::default()
    };
    let endpoint = Endpoint::open(&config, Arc::new(Member)).map_err(|e| format!("{e:?}"))?;
    let Allowance { bytes, datagrams, attachments, memory } = allowance;
    let relay = RelayConfig {
        nodes: Some(NODES),
        attachments: Rates { relay: attachments.or(Some(ATTACHMENTS)), realm: None },
        memory: memory.or(Some(MEMORY)),
        per_node: Limits { bytes, datagrams },
        ..RelayConfig::default()
    };
    endpoint.start_relay(relay).map_err(|error| format!("{error:?}"))?;
    println!("{}", endpoint.address().port());
    let mut lines = lines(tokio::io::stdin());
    while let Ok(Some(_)) = lines.next_line().await {
        let counters = endpoint.relay_counters().unwrap_or_default();
        let counters = counters.into_iter().map(|(name, count)| format!("{name}={count}"));
        // Some are counted of both.
        let port = endpoint.counters().into_iter();
        let port = port.map(|(name, count)| format!("port_{name}={count}"));
        let all: Vec<_> = counters.chain(port).collect();
        println!("{}", all.join(" "));
    }
    endpoint.shut_down().await;
    Ok(())
}

fn lines(stdin: Stdin) -> Lines<BufReader<Stdin>> {
    BufReader::new(stdin).lines()
}

/// A relay to put under load.
#[derive(Debug)]
pub struct Relay {
    /// Where it is.
    pub address: SocketAddr,
    pid: u32,
    /// Where one that was not started here tells its counters.
    health: Option<SocketAddr>,
    own: Option<Own>,
}

/// One that was started here, and ends with this.
#[derive(Debug)]
struct Own {
    program: PathBuf,
    home: PathBuf,
    allowance: Allowance,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Relay {
    /// Starts one: `program` is this program.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(program: &Path, allowance: Allowance) -> Result<Relay, Error> {
        static LAST: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = LAST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let home = format!("macula_load-{}-{number}", std::process::id());
        let home = std::env::temp_dir().join(home);
        let (own, pid, port) = Own::start(program, 0, home, allowance).await?;
        Ok(Relay {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            pid,
            health: None,
            own: Some(own),
        })
    }

    /// One that runs already, as the process `pid`, and may answer for its health.
    pub fn other(address: SocketAddr, pid: u32, health: Option<SocketAddr>) -> Relay {
        Relay { address, pid, health, own: None }
    }

    /// What its process has used.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self) -> Result<Usage, Error> {
        Usage::of(self.pid)
    }

    /// Its counters; none when it was not started here and nothing is known of its health.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn counters(&mut self) -> Result<HashMap<String, u64>, Error> {
        match (&mut self.own, self.health) {
            (Some(own), _) => {
                own.stdin.write_all(b"\n").await?;
                Ok(counts(&own.line().await?, ' ', '='))
            }
            (None, Some(health)) => {
                let health = timeout(ANSWER, ask_health(health)).await;
                Ok(counts(&health.map_err(|_| "the relay does not say how it is")??, ',', ':'))
            }
            (None, None) => Ok(HashMap::new()),
        }
    }

    /// Kills it without a word, and starts it again at the same port.
    ///
    /// # Errors
    /// It was not started here, or does not start.
    pub async fn restart(&mut self) -> Result<(), Error> {
        let mut own = self.own.take().ok_or("only a relay that was started here is restarted")?;
        own.child.kill().await?;
        let (program, home) = (own.program.clone(), std::mem::take(&mut own.home));
        let (own, pid, _) = Own::start(&program, self.address.port(), home, own.allowance).await?;
        (self.pid, self.own) = (pid, Some(own));
        Ok(())
    }
}

/// The names and numbers of a line.
fn counts(line: &str, between: char, within: char) -> HashMap<String, u64> {
    let pair = |pair: &str| {
        let (name, count) = pair.split_once(within)?;
        Some((name.trim_matches('"').to_owned(), count.parse().ok()?))
    };
    line.split(between).filter_map(pair).collect()
}

/// What `GET /health` of a relay's release says between the braces.
async fn ask_health(health: SocketAddr) -> Result<String, Error> {
    let mut stream = TcpStream::connect(health).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: relay\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(LONGEST_HEALTH).read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once('{').ok_or("the relay does not say how it is")?;
    Ok(body.trim_end().trim_end_matches('}').to_owned())
}

impl Own {
    async fn start(
        program: &Path,
        port: u16,
        home: PathBuf,
        allowance: Allowance,
    ) -> Result<(Own, u32, u16), Error> {
        let mut command = Command::new(program);
        command.args(["relay", "--port", &port.to_string()]).arg("--home").arg(&home);
        let Allowance { bytes, datagrams, attachments, memory } = allowance;
        let limits = [
            ("--bytes", bytes),
            ("--datagrams", datagrams),
            ("--attachments", attachments),
            ("--memory", memory),
        ];
        for (option, limit) in limits {
            if let Some(limit) = limit {
                command.args([option, &limit.to_string()]);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().ok_or("no standard output")?).lines();
        let pid = child.id().ok_or("the relay has ended")?;
        let program = program.to_owned();
        let mut own = Own { program, home, allowance, child, stdin, stdout };
        let port = own.line().await?.parse()?;
        Ok((own, pid, port))
    }

    async fn line(&mut self) -> Result<String, Error> {
        let line = timeout(ANSWER, self.stdout.next_line()).await;
        Ok(line.map_err(|_| "the relay does not answer")??.ok_or("the relay has ended")?)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if !self.home.as_os_str().is_empty() {
            // What is left there is of no use to anybody.
            let _ = std::fs::remove_dir_all(&self.home);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_between_words() {
        let counted = counts("\"status\":\"ok\",\"bytes\":12,\"nodes\":3", ',', ':');
        assert_eq!(counted, [("bytes".into(), 12), ("nodes".into(), 3)].into());
        assert_eq!(counts("nodes=3 x", ' ', '='), [("nodes".into(), 3)].into());
    }
}
