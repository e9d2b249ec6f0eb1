//! Either side of the hello against a peer that says what it likes.
//!
//! An input is a byte, then messages as they stand on the wire. With an odd first byte the peer holds
//! the cookie, and what it claims is proved for it: so a fuzzer gets past the proofs. Otherwise it
//! does not, and nothing may get it past them.

use std::net::SocketAddr;
use std::sync::LazyLock;

use macula_core::hello::{
    Acceptor, Dialler, Failure, Local, MAX_MESSAGE, Peer, Refusal, Step, Wanted,
};
use macula_core::keys::{self, CookieKey, Role};

pub static KEY: LazyLock<CookieKey> =
    LazyLock::new(|| CookieKey::stretch(&keys::base(b"cookie")).expect("a key"));

pub const CLAIM: u8 = 2;
pub const WELCOME: u8 = 3;
const REDIRECT: u8 = 6;

/// Longest node name, in bytes.
const MAX_NAME: usize = 1020;

/// What two sides called `name` bring, in the `session`th connection.
pub fn local(name: &str, session: u8) -> Local {
    let mark = name.as_bytes()[0] ^ (session << 7);
    Local {
        name: name.into(),
        boot_id: [mark; 16],
        features: 0b110,
        streams: 4,
        nonce: [mark; 32],
        exporter: [session; keys::LEN],
    }
}

/// The messages of a stream, as the shell cuts them; what is cut short is not one.
fn messages(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = input.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes(*len));
        let (message, rest) = (len <= MAX_MESSAGE).then(|| rest.split_at_checked(len))??;
        input = rest;
        Some(message)
    })
}

/// `message` with the proof that a holder of the cookie would put behind it.
fn proved(message: &[u8], role: Role, local: &Local, said_before: &[u8]) -> Vec<u8> {
    let transcript = [said_before, &message[1..]].concat();
    let proof = KEY.prove(role, &local.exporter, &transcript);
    [message, &[1, 0, keys::LEN as u8], &proof].concat()
}

/// Whether a claim ends where its proof is to begin: else its last bytes may pass for one.
fn is_bare_claim(message: &[u8]) -> bool {
    let name = |rest: &mut &[u8]| {
        let (len, names) = rest.split_first_chunk()?;
        *rest = names.get(usize::from(u16::from_be_bytes(*len))..)?;
        Some(())
    };
    let mut rest = message.get(1 + 1 + 8 + 1 + 32 + 16..).unwrap_or_default();
    name(&mut rest).and(name(&mut rest)).is_some() && rest.is_empty()
}

fn is_sound(peer: &Peer, ours: &Local) {
    assert!((1..=ours.streams).contains(&peer.streams));
    assert_eq!(peer.features & !ours.features, 0);
    assert!(peer.name.len() <= MAX_NAME);
}

pub fn acceptor(input: &[u8]) {
    let Some((&first, input)) = input.split_first() else { return };
    let holder = first & 1 == 1;
    let ours = local("b@host", 0);
    let (mut acceptor, offer) = Acceptor::new(ours.clone());
    let (mut verified, mut over) = (None, false);
    for message in messages(input) {
        let step = match message {
            [CLAIM, ..] if holder => {
                acceptor.receive(&proved(message, Role::Dialler, &ours, &offer))
            }
            _ => acceptor.receive(message),
        };
        assert!(!over || matches!(step, Step::Failed(..)), "it goes on after the end: {step:?}");
        match step {
            Step::Verify(asked) => match acceptor.verify(&KEY) {
                Ok(Wanted::Here(peer)) => {
                    assert!(holder, "{peer:?} proved nothing");
                    assert_eq!((&peer.name, &peer.name), (&asked.name, &asked.cookie_of));
                    is_sound(&peer, &ours);
                    verified = Some(peer);
                    over = !judged(&mut acceptor, first);
                }
                Ok(Wanted::Elsewhere(name)) => {
                    assert!(holder, "{asked:?} proved nothing");
                    assert!(name != ours.name && name == asked.cookie_of);
                    over = sent_elsewhere(&mut acceptor);
                }
                Err(step) => {
                    assert!(!(holder && is_bare_claim(message)), "a good proof is not believed");
                    over = failed(&step);
                }
            },
            Step::Done(peer) => {
                assert_eq!(Some(peer), verified);
                over = true;
            }
            step => over = failed(&step),
        }
    }
}

/// The node lets its verified peer in, or does not. True when it is in.
fn judged(acceptor: &mut Acceptor, first: u8) -> bool {
    if first & 2 == 2 {
        assert!(failed(&acceptor.turn_away(Refusal::NameTaken)));
        return false;
    }
    let welcome = acceptor.welcome(&KEY);
    assert!(matches!(&welcome, Step::Reply(welcome) if welcome[2] == WELCOME), "{welcome:?}");
    true
}

/// The node sends its verified peer to another one. That is the end.
fn sent_elsewhere(acceptor: &mut Acceptor) -> bool {
    let address = SocketAddr::from(([192, 0, 2, 7], 4434));
    let step = acceptor.redirect(&KEY, address);
    let Step::Failed(Some(reply), Failure::Redirected(told)) = step else { panic!("{step:?}") };
    assert_eq!((reply[2], told), (REDIRECT, address));
    true
}

/// A failure of the acceptor is one of its own, and says so in a short message.
fn failed(step: &Step) -> bool {
    let Step::Failed(Some(reply), Failure::Refusing(_)) = step else { panic!("{step:?}") };
    assert_eq!(reply.len(), 4);
    true
}

pub fn dialler(input: &[u8]) {
    let Some((&first, input)) = input.split_first() else { return };
    let holder = first & 1 == 1;
    let ours = local("a@host", 0);
    let mut dialler = Dialler::new(ours.clone(), "b@host".into());
    // What was offered and claimed, as proofs cover it.
    let mut said: Option<Vec<u8>> = None;
    for message in messages(input) {
        let step = match (message, &said) {
            ([WELCOME, ..], Some(said)) if holder => {
                dialler.receive(&proved(message, Role::Acceptor, &ours, said), &KEY)
            }
            ([REDIRECT, ..], Some(said)) if holder => {
                dialler.receive(&proved(message, Role::Redirector, &ours, said), &KEY)
            }
            _ => dialler.receive(message, &KEY),
        };
        match step {
            Step::Reply(claim) => {
                assert!(said.is_none() && claim[2] == CLAIM && claim.len() <= 2 + MAX_MESSAGE);
                said = Some(covered(message, &claim));
            }
            Step::Done(peer) => {
                assert!(holder, "{peer:?} proved nothing");
                assert_eq!(peer.name, "b@host");
                return is_sound(&peer, &ours);
            }
            Step::Failed(reply, Failure::Redirected(address)) => {
                assert!(holder, "sent to {address} without a proof");
                return assert!(reply.is_none() && address.port() > 0);
            }
            Step::Failed(reply, why) => {
                let disbelieved = why == Failure::Refusing(Refusal::Proof);
                let is_bare_welcome = message.len() == 1 + 16 + 8 + 1;
                assert!(
                    !(holder && is_bare_welcome && disbelieved && message[0] == WELCOME),
                    "a good proof is not believed"
                );
                return assert_eq!(reply, None);
            }
            Step::Verify(_) => panic!("a dialler verifies by itself"),
        }
    }
}

/// The OFFER with its length, then the CLAIM's fields, then its MAC.
fn covered(offer: &[u8], claim: &[u8]) -> Vec<u8> {
    let (fields, proof) = claim[3..].split_at(claim.len() - 3 - 3 - keys::LEN);
    [&(offer.len() as u16).to_be_bytes(), offer, fields, &proof[3..]].concat()
}
