//! What a relay can read: everything that nodes tell it, looked through for what it must not learn.

use std::collections::HashSet;

use macula_core::keys;
use macula_core::mesh::packet::HEADER;
use macula_core::mesh::seal::OVERHEAD;
use macula_net::{Cookie, DialRequest, MeshConfig};
use ring::digest;

use crate::mesh::*;
use crate::rogue::*;
use crate::support::*;

/// What the nodes share, and call themselves and others.
const SECRET: &[u8] = b"a cookie that is nobody else's";
const ALICE: &str = "alice@wonderland.example";
const ALIAS: &str = "cheshire@wonderland.example";
const BOB: &str = "bob@looking-glass.example";

/// What they say: an atom and a text, as the external term format has them.
const ATOM: &[u8] = b"very_secret_atom_of_the_test";
const TEXT: &[u8] = b"a marker that stands in every message";

/// What of a realm a relay is told, and so the sign that this search finds what is there.
const REALM: &str = "the realm, which relays know";

/// Bytes that come twice by chance once in 2^64 pairs.
const WINDOW: usize = 8;

/// Where what is sealed begins, behind tags and nonce.
const SEALED: usize = HEADER + 12;

fn contains(heard: &[Vec<u8>], needle: &[u8]) -> bool {
    heard.iter().any(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
}

/// `{very_secret_atom_of_the_test, <<"a marker ...">>, N}`.
fn term(n: u8) -> Vec<u8> {
    let atom = [&[119, ATOM.len() as u8], ATOM].concat();
    let text = [&[109, 0, 0, 0, TEXT.len() as u8], TEXT].concat();
    [&[131, 104, 3], &atom[..], &text, &[97, n]].concat()
}

/// Everything that two nodes let a relay hear, from joining it to leaving it.
async fn everything() -> Heard {
    let rogue = Rogue::start(seed(), false);
    let (a, b) = (open_as(ALICE, Knows(SECRET)), open_as(BOB, Knows(SECRET)));
    let relays = vec![url("127.0.0.1", rogue.address.port())];
    let config = MeshConfig { relays, realm: REALM.into(), ..at(&[]) };
    let alias = MeshConfig { identity: Some(ALIAS.into()), ..config.clone() };
    a.join_mesh(alias, HANG).await.unwrap();
    b.join_mesh(config, HANG).await.unwrap();
    a.mesh_nodes().await.unwrap();
    let request = DialRequest {
        ways: vec![Way::Mesh],
        name: ALICE.into(),
        cookie: Cookie::new(SECRET.to_vec()),
        ..request(&[], BOB, HANG)
    };
    let (mut to_b, mut to_a) = both(a.dial(request), &b).await;
    // As OTP's handshake does.
    for (from, to, name) in [(&to_b, &to_a, ALICE), (&to_a, &to_b, BOB)] {
        from.send_packet(name.as_bytes());
        assert_eq!(to.packet().await.unwrap(), name.as_bytes());
    }
    let (mut at_a, mut at_b) = (to_b.establish(BOB), to_a.establish(ALICE));
    let small: Vec<_> = (0..200).map(|n| term(n as u8)).collect();
    // Long stretches of the same: bad sealing would show them.
    let large: Vec<_> = (0..10).map(|n| term(n).repeat(300)).collect();
    let (there, back) = (small.iter().chain(&large), large.iter());
    tokio::join!(
        to_b.send(there.map(|term| framed(term))),
        to_a.send(back.map(|term| framed(term))),
        at_b.frames(small.len() + large.len()),
        at_a.frames(large.len()),
    );
    a.shut_down().await;
    b.shut_down().await;
    rogue.heard()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_reads_nothing_that_it_should_not() {
    let Heard { messages, datagrams, certificates } = everything().await;
    assert!(messages.len() >= 5 && datagrams.len() > 100 && certificates.len() >= 2);
    assert!(contains(&messages, REALM.as_bytes()), "the search finds nothing");
    let all = [messages, datagrams.clone(), certificates].concat();

    let base = keys::base(SECRET);
    let mut secrets = vec![SECRET.to_vec(), base.to_vec(), sha256(SECRET), ATOM.to_vec()];
    secrets.extend([TEXT.to_vec(), term(0)[..8].to_vec(), b"macula-dist".to_vec()]);
    for name in [ALICE, ALIAS, BOB] {
        let host = name.split('@').nth(1).unwrap();
        let hash = sha256(name.as_bytes());
        secrets.extend([name, host].map(|name| name.as_bytes().to_vec()));
        // Nor anything that tells whether a name is the one guessed.
        secrets.extend([hash[..16].to_vec(), hex(&hash[..16])]);
    }
    for secret in secrets {
        let shown = String::from_utf8_lossy(&secret);
        assert!(!contains(&all, &secret), "a relay can read {shown:?}, {secret:?}");
    }
    nothing_repeats(&datagrams);
    looks_random(&datagrams);
}

/// The header of the inner QUIC packets has parts that are the same in many: version, connection ids.
/// If any of it showed, it would show more than once.
fn nothing_repeats(datagrams: &[Vec<u8>]) {
    let mut seen = HashSet::new();
    for datagram in datagrams {
        assert!(datagram.len() >= HEADER + OVERHEAD);
        // A long header of QUIC version 1, at the place where it would stand.
        let inner = &datagram[SEALED..];
        assert!(
            !inner
                .windows(5)
                .take(3)
                .any(|start| { start[0] & 0xc0 == 0xc0 && start[1..] == [0, 0, 0, 1] })
        );
        for window in inner.windows(WINDOW) {
            let window: [u8; WINDOW] = window.try_into().unwrap();
            assert!(seen.insert(window), "{window:?} came before");
        }
    }
}

/// Each byte is as likely as the others: the chi-squared statistic of 256 values, whose mean is 255
/// and whose standard deviation 22.6, stays within seven of these.
fn looks_random(datagrams: &[Vec<u8>]) {
    let mut counts = [0f64; 256];
    let bytes = datagrams.iter().flat_map(|datagram| &datagram[SEALED..]);
    bytes.for_each(|byte| counts[usize::from(*byte)] += 1.0);
    let expected = counts.iter().sum::<f64>() / 256.0;
    assert!(expected > 100.0, "too little was said to tell");
    let chi: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
    assert!((100.0..415.0).contains(&chi), "chi-squared is {chi}");
}
