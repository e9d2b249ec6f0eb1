//! Relays under load, in reduced numbers; with `MACULA_TEST_FULL` set in those that are promised.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use macula_load::figures::Figures;
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

/// Below this a p99 is one of the machine, which has other things to do, not of the relay.
const NOISE_MS: f64 = 10.0;

async fn relay(allowance: Allowance) -> Relay {
    Relay::start(program(), allowance).await.unwrap()
}

/// A quiet pair beside somebody who misbehaves: nothing is lost, and `evidence` of the misbehaviour
/// grew at the relay.
async fn bears_with(kind: Kind, evidence: &str) -> Figures {
    let mut relay = relay(Allowance { bytes: Some(MAY_SEND), ..Allowance::default() }).await;
    let length = Duration::from_millis(reduced(10_000, 1_200));
    let figures = scenario::abuse(&mut relay, program(), kind, SHARE, length).await.unwrap();
    eprintln!("{kind:?}\n{}", figures.to_text());
    let figure = |name: &str| figures.get(name).unwrap_or_else(|| panic!("no figure {name}"));
    assert!(figure("asked") > 20.0);
    assert_eq!((figure("lost"), figure("out of order")), (0.0, 0.0));
    assert!(figure(&format!("relay: {evidence}")) > 0.0);
    let (idle, meanwhile) = (figure("quiet pair, idle p99"), figure("quiet pair, meanwhile p99"));
    assert!(meanwhile <= 10.0 * idle.max(NOISE_MS), "p99 {meanwhile} ms, idle {idle} ms");
    figures
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
