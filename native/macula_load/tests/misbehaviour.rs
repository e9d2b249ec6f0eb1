//! Relays under load, in reduced numbers; with `MACULA_TEST_FULL` set in those that are promised.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use macula_load::relay::{Allowance, Relay};
use macula_load::rogue::Kind;
use macula_load::scenario;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_macula_load"))
}

/// A number that is only promised where there is time for it.
fn reduced<T>(full: T, reduced: T) -> T {
    if std::env::var_os("MACULA_TEST_FULL").is_some() { full } else { reduced }
}

/// CPU of a rogue, in percent of a core.
const SHARE: u64 = 50;

/// What a flooder may send, in bytes a second: it sends five times as much.
const MAY_SEND: u64 = 2_000_000;

/// A quiet pair's p99 is to stay within so many times what it was.
const TIMES: f64 = 10.0;

/// How often that may be tried. Of a talk of a hundred questions p99 is the longest but one, and what
/// else runs on the machine takes as much from one talk and not from the other. That does not come
/// three times; what a relay lets be done to the pair does.
const TRIES: usize = 3;

async fn relay(allowance: Allowance) -> Relay {
    Relay::start(program(), allowance).await.unwrap()
}

/// A quiet pair beside somebody who misbehaves: nothing is lost, and `evidence` of the misbehaviour
/// grew at the relay.
async fn bears_with(kind: Kind, evidence: &str) {
    let mut missed = Vec::new();
    while missed.len() < TRIES {
        match slowed_by(kind, evidence).await {
            (idle, meanwhile) if meanwhile <= TIMES * idle => return,
            both => missed.push(both),
        }
    }
    panic!("{kind:?}: p99 idle and meanwhile, in ms: {missed:?}");
}

/// The quiet pair's p99 without and with it.
async fn slowed_by(kind: Kind, evidence: &str) -> (f64, f64) {
    let mut relay = relay(Allowance { bytes: Some(MAY_SEND), ..Allowance::default() }).await;
    let length = Duration::from_millis(reduced(10_000, 1_200));
    let figures = scenario::abuse(&mut relay, program(), kind, SHARE, length).await.unwrap();
    eprintln!("{kind:?}\n{}", figures.to_text());
    let figure = |name: &str| figures.get(name).unwrap_or_else(|| panic!("no figure {name}"));
    assert!(figure("asked") > 20.0);
    assert_eq!((figure("lost"), figure("out of order")), (0.0, 0.0));
    assert!(figure(&format!("relay: {evidence}")) > 0.0);
    (figure("quiet pair, idle p99"), figure("quiet pair, meanwhile p99"))
}

/// One after the other: each measures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_pair_loses_nothing_whoever_misbehaves() {
    bears_with(Kind::Flood(5 * MAY_SEND), "dropped_slowed").await;
    bears_with(Kind::SlowReader(reduced(20, 4)), "dropped_full").await;
    bears_with(Kind::Loop(reduced(10, 2)), "port_full_handshakes").await;
    bears_with(Kind::HalfOpen(reduced(10_000, 1_000)), "port_validated").await;
    bears_with(Kind::Mute(reduced(500, 50)), "port_full_handshakes").await;
    comes_back_after_a_restart().await;
}

async fn comes_back_after_a_restart() {
    let nodes = reduced(2000, 60);
    for one_address in [false, true] {
        let mut relay = relay(Allowance::default()).await;
        let figures = scenario::restart(&mut relay, nodes, one_address).await.unwrap();
        eprintln!("restart, of one address: {one_address}\n{}", figures.to_text());
        assert_eq!(figures.get("back"), Some(nodes as f64));
    }
}
