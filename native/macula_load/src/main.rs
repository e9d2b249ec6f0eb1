//! Loads a relay, and reports how it fares: as text and, last, as one line of JSON on standard
//! output. See the usage below.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use macula_load::beside::beside_coturn;
use macula_load::figures::Figures;
use macula_load::options::Options;
use macula_load::relay::{Allowance, Relay, serve};
use macula_load::rogue::{self, Kind};
use macula_load::soak::{Churn, soak};
use macula_load::{Error, scenario};

const USAGE: &str = "\
macula_load SCENARIO [--OPTION VALUE]...
  attach    --nodes 1000 --idle 10          nodes join in one burst, rest, and leave
  restart   --nodes 2000                    the relay is killed and started again under its nodes
  forward   --pairs 4 --seconds 5           datagrams, as many as the relay forwards
  latency   --seconds 5                     round trips straight and through the relay
  abuse KIND --number N --cpu 50 --seconds 10   a quiet pair talks while somebody misbehaves:
      flood (bytes a second), slow-reader, loop, half-open, mute (how many)
  soak      --nodes 100 --seconds 3600      pairs come, talk, go and come again, for --least to --most
                                            ms each, --vanishing % of them without a word; the
                                            relay is looked at --every 30 seconds
  turn      --rate 10000000 --seconds 5     the CPU that datagrams at a steady rate cost, beside
                                            coturn's (Debian's package coturn)
for all: --relay ADDRESS:PORT --pid PID     a relay that runs already, else one is started;
         --health ADDRESS:PORT             where one that runs already tells its counters
         with, where one is started:
         --bytes B --datagrams D            what it lets a node send in a second
         --attachments N --memory BYTES     nodes that attach in a second; what may wait for all
         --one-address yes                  all nodes come from one address, as from behind a NAT
";

const KNOWN: &[&str] = &[
    "nodes",
    "idle",
    "least",
    "most",
    "every",
    "vanishing",
    "pairs",
    "seconds",
    "rate",
    "number",
    "cpu",
    "relay",
    "pid",
    "health",
    "bytes",
    "datagrams",
    "attachments",
    "memory",
    "one-address",
    "port",
    "home",
];

/// Threads of each process: of a relay as of a load.
const THREADS: usize = 2;

/// Descriptors that two thousand nodes need, and more.
const DESCRIPTORS: u64 = 65_536;

fn main() -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(THREADS).enable_all().build().map_err(Error::from);
    let ended = runtime.and_then(|runtime| runtime.block_on(run(std::env::args().skip(1))));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("macula_load: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: impl Iterator<Item = String>) -> Result<(), Error> {
    let options = Options::parse(arguments, KNOWN).map_err(|error| format!("{error}\n{USAGE}"))?;
    raise_descriptors();
    match options.words()[..] {
        ["relay"] => {
            let home = options.given("home")?.ok_or("a relay needs --home")?;
            serve(options.or("port", 0)?, home, allowance(&options)?).await
        }
        ["rogue", kind] => {
            let relay = options.given("relay")?.ok_or("a rogue needs --relay")?;
            rogue::run(kind_of(kind, &options)?, relay).await
        }
        ref words => {
            let figures = load(words, &options).await?;
            println!("{}{}", figures.to_text(), figures.to_json());
            Ok(())
        }
    }
}

async fn load(words: &[&str], options: &Options) -> Result<Figures, Error> {
    let program = std::env::current_exe()?;
    let seconds = |name, without| options.or(name, without).map(Duration::from_secs);
    let one_address = options.given::<String>("one-address")?.is_some();
    let mut relay = match options.given::<SocketAddr>("relay")? {
        Some(address) => {
            let pid = options.given("pid")?.ok_or("--relay needs --pid")?;
            Relay::other(address, pid, options.given("health")?)
        }
        None => Relay::start(&program, allowance(options)?).await?,
    };
    match *words {
        ["attach"] => {
            let (nodes, idle) = (options.or("nodes", 1000)?, seconds("idle", 10)?);
            scenario::attach(&mut relay, nodes, one_address, idle).await
        }
        ["restart"] => scenario::restart(&mut relay, options.or("nodes", 2000)?, one_address).await,
        ["forward"] => {
            scenario::forward(&mut relay, options.or("pairs", 4)?, seconds("seconds", 5)?).await
        }
        ["latency"] => scenario::latency(&mut relay, seconds("seconds", 5)?).await,
        ["abuse", kind] => {
            let (kind, percent) = (kind_of(kind, options)?, options.or("cpu", 50)?);
            scenario::abuse(&mut relay, &program, kind, percent, seconds("seconds", 10)?).await
        }
        ["turn"] => {
            let rate = options.or("rate", 10_000_000)?;
            beside_coturn(&relay, rate, seconds("seconds", 5)?).await
        }
        ["soak"] => {
            let churn = Churn {
                pairs: options.or("nodes", 100)? / 2,
                stay_ms: options.or("least", 10_000)?..options.or("most", 30_000)?,
                vanishing: options.or("vanishing", 25)?,
                length: seconds("seconds", 3600)?,
                every: seconds("every", 30)?,
            };
            soak(&mut relay, churn).await
        }
        _ => Err(USAGE.into()),
    }
}

fn allowance(options: &Options) -> Result<Allowance, Error> {
    Ok(Allowance {
        bytes: options.given("bytes")?,
        datagrams: options.given("datagrams")?,
        attachments: options.given("attachments")?,
        memory: options.given("memory")?,
    })
}

fn kind_of(name: &str, options: &Options) -> Result<Kind, Error> {
    let number = options.given("number")?.ok_or("--number is missing")?;
    Kind::parse(name, number).ok_or_else(|| format!("nobody misbehaves as {name}").into())
}

/// As far as the system lets this process.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(DESCRIPTORS.min(hard)), hard);
    }
}
