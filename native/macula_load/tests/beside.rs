//! A relay beside coturn, for a moment: all three ways pass datagrams on.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use macula_load::beside::beside_coturn;
use macula_load::relay::{Allowance, Relay};
use macula_load::turn::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_and_coturn_pass_the_same_on() {
    if Server::start().await.unwrap().is_none() {
        eprintln!("SKIPPED: there is no turnserver here; Debian's package coturn has it");
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_macula_load"));
    let relay = Relay::start(program, Allowance::default()).await.unwrap();
    let figures = beside_coturn(&relay, 2_000_000, Duration::from_millis(400)).await.unwrap();
    eprintln!("{}", figures.to_text());
    for way in ["macula", "coturn, one end allocated", "coturn, both ends allocated"] {
        let figure = |name: &str| figures.get(&format!("{way}: {name}")).unwrap();
        assert!(figure("came out") > 1.0 && figure("lost") < 20.0, "{way}");
    }
}
