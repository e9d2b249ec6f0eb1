//! Two hellos at once, and somebody between all four sides who decides what each of them hears:
//! anything ever said, whole, changed, cut, or joined, or anything at all. He may even sit inside TLS.
//!
//! Whatever he does, a side believes only the message that its own partner meant for it.
//!
//! An input is a list of deliveries: which side, what to do with which message, and where.

use macula_core::hello::{Acceptor, Dialler, Failure, Peer, Step, Wanted, begin};

use super::choices::Choices;
use super::hello::{KEY, local};

/// One connection: its two sides, and what each of them last said that proves something.
struct Session {
    acceptor: Acceptor,
    dialler: Dialler,
    claim: Option<Vec<u8>>,
    welcome: Option<Vec<u8>>,
    number: u8,
}

pub fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let mut heard = vec![begin()];
    let mut sessions = [0, 1].map(|number| Session::new(number, &mut heard));
    while !choices.0.is_empty() {
        let side = choices.next();
        let message = message(&mut choices, &heard);
        let session = &mut sessions[side >> 1 & 1];
        let said = if side & 1 == 0 {
            session.acceptor_hears(&message)
        } else {
            session.dialler_hears(&message)
        };
        heard.extend(said);
    }
}

/// A message (without its length) made of what was heard.
fn message(choices: &mut Choices<'_>, heard: &[Vec<u8>]) -> Vec<u8> {
    let what = choices.next();
    let mut message = heard[choices.next() % heard.len()][2..].to_vec();
    match what % 5 {
        0 => {}
        1 => {
            let at = choices.next() % message.len();
            message[at] ^= choices.next() as u8;
        }
        2 => message.truncate(choices.next()),
        3 => {
            let at = choices.next();
            let other = &heard[choices.next() % heard.len()][2..];
            message.truncate(at);
            message.extend(other.get(at..).unwrap_or_default());
        }
        _ => {
            let len = choices.next();
            message = choices.take(len);
        }
    }
    message
}

impl Session {
    fn new(number: u8, heard: &mut Vec<Vec<u8>>) -> Session {
        let (acceptor, offer) = Acceptor::new(local("b@host", number));
        heard.push(offer);
        let dialler = Dialler::new(local("a@host", number), "b@host".into());
        Session { acceptor, dialler, claim: None, welcome: None, number }
    }

    /// What the acceptor says when it hears `message`.
    fn acceptor_hears(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        match self.acceptor.receive(message) {
            Step::Verify(_) => match self.acceptor.verify(&KEY) {
                Ok(Wanted::Here(peer)) => {
                    self.is_partner(&peer, "a@host");
                    assert_eq!(self.claim.as_deref(), Some(message), "not what was claimed");
                    let Step::Reply(welcome) = self.acceptor.welcome(&KEY) else {
                        panic!("no welcome")
                    };
                    self.welcome = Some(welcome[2..].to_vec());
                    Some(welcome)
                }
                Ok(Wanted::Elsewhere(name)) => panic!("the dialler never asked for {name}"),
                Err(step) => said(step),
            },
            // Nobody proves the choice; but the peer chosen is the one that was verified.
            Step::Done(peer) => {
                assert!(self.welcome.is_some());
                self.is_partner(&peer, "a@host");
                None
            }
            step => said(step),
        }
    }

    /// What the dialler says when it hears `message`.
    fn dialler_hears(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        match self.dialler.receive(message, &KEY) {
            Step::Reply(claim) => {
                assert!(self.claim.is_none(), "it claims twice");
                self.claim = Some(claim[2..].to_vec());
                Some(claim)
            }
            Step::Done(peer) => {
                self.is_partner(&peer, "b@host");
                assert_eq!(self.welcome.as_deref(), Some(message), "not what was answered");
                None
            }
            step => said(step),
        }
    }

    fn is_partner(&self, peer: &Peer, name: &str) {
        let partner = local(name, self.number);
        let agreed = (partner.boot_id, partner.features, partner.streams);
        assert_eq!((peer.boot_id, peer.features, peer.streams), agreed);
        assert_eq!(peer.name, name);
    }
}

fn said(step: Step) -> Option<Vec<u8>> {
    match step {
        Step::Failed(reply, Failure::Refusing(_) | Failure::Refused(_)) => reply,
        Step::Failed(None, Failure::Version(..) | Failure::Malformed) => None,
        step => panic!("{step:?}"),
    }
}
