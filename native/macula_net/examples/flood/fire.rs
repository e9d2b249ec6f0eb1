//! A fixed rate of packets of all kinds, each from another source.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::forge::Forger;
use crate::initial::Initials;
use crate::random::Random;
use crate::record;

/// How often the next packets are due: a node sees a steady stream, not bursts.
const BEAT: Duration = Duration::from_millis(1);

/// The largest random datagram.
const LARGEST: usize = 1400;

/// Fires `rate` packets a second and says what went out.
pub fn run(target: SocketAddrV4, network: Ipv4Addr, rate: u64, limit: Duration, file: &str) {
    let (recorded, initials) = (record::read(file), Initials::new());
    let (mut forger, mut random) = (Forger::new(), Random(1));
    let (mut sent, mut refused) = ([0u64; 4], 0u64);
    let began = Instant::now();
    let mut due = 0;
    while began.elapsed() < limit {
        let now = (began.elapsed().as_micros() * u128::from(rate) / 1_000_000) as u64;
        // What a long pause of this process left undone is not made up for in one burst.
        due = due.max(now.saturating_sub(rate / 10));
        while due < now {
            due += 1;
            let kind = random.below(4);
            let packet = packet(kind, &recorded, &initials, &mut random);
            if forger.send(random.source(network), target, &packet) {
                sent[kind] += 1;
            } else {
                refused += 1;
            }
        }
        std::thread::sleep(BEAT);
    }
    let [garbage, truncated, replayed, initial] = sent;
    println!(
        "sent {} in {} ms: random {garbage} truncated {truncated} replayed {replayed} \
         initial {initial}; not taken {refused}",
        sent.iter().sum::<u64>(),
        began.elapsed().as_millis()
    );
}

fn packet(kind: usize, recorded: &[Vec<u8>], initials: &Initials, random: &mut Random) -> Vec<u8> {
    let some = &recorded[random.below(recorded.len())];
    match kind {
        0 => {
            let mut packet = vec![0; random.below(LARGEST + 1)];
            random.fill(&mut packet);
            packet
        }
        1 => some[..random.below(some.len())].to_vec(),
        2 => some.clone(),
        _ => initials.fresh(random),
    }
}
