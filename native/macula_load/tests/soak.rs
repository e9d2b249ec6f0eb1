//! A soak of seconds: nodes come and go, nothing is lost, and nothing stays behind at the relay.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use macula_load::relay::{Allowance, Relay};
use macula_load::soak::{Churn, soak};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_of_nodes_that_came_and_went() {
    let program = Path::new(env!("CARGO_BIN_EXE_macula_load"));
    let mut relay = Relay::start(program, Allowance::default()).await.unwrap();
    let churn = Churn {
        pairs: 4,
        stay_ms: 300..800,
        vanishing: 50,
        length: Duration::from_secs(4),
        every: Duration::from_secs(1),
    };
    let figures = soak(&mut relay, churn).await.unwrap();
    eprintln!("{}", figures.to_text());
    let figure = |name: &str| figures.get(name).unwrap_or_else(|| panic!("no figure {name}"));
    for none in ["lost", "out of order", "pairs that failed", "nodes attached after all have gone"]
    {
        assert_eq!(figure(none), 0.0, "{none}");
    }
    // The pairs that are there at a time, and others after them; some without a goodbye.
    assert!(figure("nodes that joined") > 8.0 && figure("nodes that vanished") > 0.0);
    assert!(figure("asked") > 20.0);
    let descriptors = |when| figure(&format!("relay's descriptors {when}"));
    assert_eq!(descriptors("after"), descriptors("before"));
}
