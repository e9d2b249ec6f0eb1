//! A wire between two network namespaces that can be as bad as one likes, for the network lab.
//!
//! ```text
//! netlab_link NAMESPACE INTERFACE NAMESPACE INTERFACE SEED
//! ```
//!
//! makes an interface in each namespace and carries frames between them. Says `ok` when both are
//! there, takes commands (see `control`) and answers each with a line, `ok` or `error ...`; ends at
//! the end of its standard input, and the interfaces with it.

mod control;
mod forward;
mod impair;
mod tap;

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use control::{Command, Way};
use forward::{Counters, Forwarder, Settings};
use tap::Tap;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To standard output, where whoever started this reads.
            println!("error {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> io::Result<()> {
    let [namespace_a, interface_a, namespace_b, interface_b, seed] = args else {
        return Err(wrong("usage: netlab_link NAMESPACE INTERFACE NAMESPACE INTERFACE SEED"));
    };
    let seed: u64 = seed.parse().map_err(|_| wrong(&format!("a seed is a number, not {seed}")))?;
    let a = Arc::new(Tap::open(Path::new(namespace_a), interface_a)?);
    let b = Arc::new(Tap::open(Path::new(namespace_b), interface_b)?);
    let (up, down) = (Arc::<Settings>::default(), Arc::<Settings>::default());
    start(Forwarder::new(a.clone(), b.clone(), up.clone(), seed));
    // Any other seed, so that the directions do not lose the same packets.
    start(Forwarder::new(b, a, down.clone(), !seed));
    say("ok")?;
    for line in io::stdin().lock().lines() {
        say(&obey(&line?, &up, &down))?;
    }
    Ok(())
}

fn start(forwarder: Forwarder) {
    std::thread::spawn(move || {
        // An interface is gone, and with it the lab: nobody is left to tell.
        if let Err(error) = forwarder.run() {
            println!("error {error}");
        }
        std::process::exit(1);
    });
}

fn obey(line: &str, up: &Settings, down: &Settings) -> String {
    match control::parse(line) {
        Ok(Command::Set(way, impairment)) => {
            match way {
                Way::Up => up.set(impairment),
                Way::Down => down.set(impairment),
            }
            "ok".into()
        }
        Ok(Command::Counters) => format!("up {} down {}", told(&up.counters), told(&down.counters)),
        Err(error) => format!("error {error}"),
    }
}

fn told(counters: &Counters) -> String {
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    format!(
        "passed={} lost={} queue_full={} late={}",
        get(&counters.passed),
        get(&counters.lost),
        get(&counters.queue_full),
        get(&counters.late)
    )
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.to_owned())
}
