//! The link hello: the first bytes of every link, before any byte of distribution.
//!
//! ```text
//! acceptor                                  dialler
//!    OFFER   versions, features, nonce   →
//!                                        ←  CLAIM   version, features, streams, nonce,
//!                                                   boot id, own name, wanted name, proof
//!    WELCOME boot id, features, streams, proof  →        (or REFUSED reason)
//!                                        ←  BEGIN
//! ```
//!
//! The acceptor says nothing that names a node before the dialler has said who it is. `BEGIN` is
//! the dialler's choice among several addresses it tried at once: only then does the acceptor's
//! node hear of the link. The proof fields are the place of the cookie proof; the only kind known
//! today is "none", and any other is refused rather than passed over.
//!
//! On the wire each message is a 2-byte big-endian length, a type byte and its fields.

/// The versions spoken, lowest and highest.
pub const VERSIONS: (u8, u8) = (1, 1);

/// Largest hello message, in bytes: two names of 255 characters in UTF-8 and a proof fit well.
pub const MAX_MESSAGE: usize = 4096;

/// Opens the OFFER, so that something else speaking on our port is told apart at once.
const MAGIC: [u8; 6] = *b"macula";

/// Longest node name, in bytes: 255 characters (the emulator's limit) of at most 4 bytes.
const MAX_NAME: usize = 1020;

const OFFER: u8 = 1;
const CLAIM: u8 = 2;
const WELCOME: u8 = 3;
const REFUSED: u8 = 4;
const BEGIN: u8 = 5;

/// No proof is given.
const PROOF_NONE: u8 = 0;

/// Sixteen random bytes that tell one life of a node from the next.
pub type BootId = [u8; 16];

/// Random bytes that make every hello different.
pub type Nonce = [u8; 32];

/// What one side brings to a hello.
#[derive(Clone, Debug)]
pub struct Local {
    /// This node's name; empty for a dialler that will be given one (dynamic node name), and for
    /// an acceptor that nobody can address.
    pub name: String,
    /// This node's boot id.
    pub boot_id: BootId,
    /// Optional parts of the protocol this side knows, one bit each. None is assigned yet.
    pub features: u64,
    /// Distribution streams wanted at most.
    pub streams: u8,
    /// Fresh random bytes.
    pub nonce: Nonce,
}

/// What a finished hello tells of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its node name, as claimed; empty when it is to be given one.
    pub name: String,
    /// Its boot id.
    pub boot_id: BootId,
    /// The features both sides know.
    pub features: u64,
    /// Distribution streams to use.
    pub streams: u8,
}

/// Why the acceptor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another node lives at this address.
    WrongName,
    /// No protocol version in common.
    Version,
    /// The proof is of a kind not known here.
    Proof,
    /// The claim could not be read.
    Malformed,
    /// A reason of a later version.
    Other(u8),
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Refusal::WrongName => 1,
            Refusal::Version => 2,
            Refusal::Proof => 3,
            Refusal::Malformed => 4,
            Refusal::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Refusal {
        match code {
            1 => Refusal::WrongName,
            2 => Refusal::Version,
            3 => Refusal::Proof,
            4 => Refusal::Malformed,
            other => Refusal::Other(other),
        }
    }
}

/// Why a hello failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The other side refused.
    Refused(Refusal),
    /// This side refused.
    Refusing(Refusal),
    /// The versions spoken by the other side (lowest, highest) hold none of ours.
    Version(u8, u8),
    /// What arrived is not a hello message that may come now.
    Malformed,
}

/// What to do after a message was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this and wait for the next message.
    Reply(Vec<u8>),
    /// The hello is done; the dialler sends [`begin`] when it chooses this link.
    Done(Peer),
    /// Send what is given, if anything, and close.
    Failed(Option<Vec<u8>>, Failure),
}

/// The message with which a dialler chooses a link whose hello is done.
pub fn begin() -> Vec<u8> {
    framed(BEGIN, |_| {})
}

/// The accepting side of a hello.
#[derive(Debug)]
pub struct Acceptor {
    local: Local,
    peer: Option<Peer>,
}

impl Acceptor {
    /// A hello that waits for a claim, and the OFFER that opens it.
    pub fn new(local: Local) -> (Acceptor, Vec<u8>) {
        let offer = framed(OFFER, |out| {
            out.extend_from_slice(&MAGIC);
            out.extend_from_slice(&[VERSIONS.0, VERSIONS.1]);
            out.extend_from_slice(&local.features.to_be_bytes());
            out.extend_from_slice(&local.nonce);
        });
        (Acceptor { local, peer: None }, offer)
    }

    /// Takes the next message (without its length).
    pub fn receive(&mut self, message: &[u8]) -> Step {
        match (self.peer.take(), message.split_first()) {
            (None, Some((&CLAIM, body))) => self.claimed(body),
            (Some(peer), Some((&BEGIN, []))) => Step::Done(peer),
            _ => refuse(Refusal::Malformed),
        }
    }

    fn claimed(&mut self, body: &[u8]) -> Step {
        let Some(claim) = Claim::decode(body) else {
            return refuse(Refusal::Malformed);
        };
        if !(VERSIONS.0..=VERSIONS.1).contains(&claim.version) {
            return refuse(Refusal::Version);
        }
        if claim.proof_kind != PROOF_NONE {
            return refuse(Refusal::Proof);
        }
        if self.local.name.is_empty() || claim.target != self.local.name {
            return refuse(Refusal::WrongName);
        }
        let peer = Peer {
            name: claim.name,
            boot_id: claim.boot_id,
            features: claim.features & self.local.features,
            streams: claim.streams.min(self.local.streams),
        };
        let welcome = framed(WELCOME, |out| {
            out.extend_from_slice(&self.local.boot_id);
            out.extend_from_slice(&peer.features.to_be_bytes());
            out.push(peer.streams);
            push_proof_none(out);
        });
        self.peer = Some(peer);
        Step::Reply(welcome)
    }
}

/// The dialling side of a hello.
#[derive(Debug)]
pub struct Dialler {
    local: Local,
    target: String,
    claimed: bool,
}

impl Dialler {
    /// A hello that waits for an OFFER, and wants to reach the node `target`.
    pub fn new(local: Local, target: String) -> Dialler {
        Dialler { local, target, claimed: false }
    }

    /// Takes the next message (without its length).
    pub fn receive(&mut self, message: &[u8]) -> Step {
        match (self.claimed, message.split_first()) {
            (false, Some((&OFFER, body))) => self.offered(body),
            (true, Some((&WELCOME, body))) => self.welcomed(body),
            (_, Some((&REFUSED, [code]))) => {
                Step::Failed(None, Failure::Refused(Refusal::from_code(*code)))
            }
            _ => Step::Failed(None, Failure::Malformed),
        }
    }

    fn offered(&mut self, body: &[u8]) -> Step {
        let mut input = Reader(body);
        let (Some(MAGIC), Some([low, high])) = (input.array(), input.array()) else {
            return Step::Failed(None, Failure::Malformed);
        };
        // Read before the rest: a later version may lay out the rest differently.
        let version = high.min(VERSIONS.1);
        if version < low.max(VERSIONS.0) {
            return Step::Failed(None, Failure::Version(low, high));
        }
        let (Some(features), Some(_nonce)) = (input.u64(), input.array::<32>()) else {
            return Step::Failed(None, Failure::Malformed);
        };
        self.claimed = true;
        let claim = Claim {
            version,
            features: features & self.local.features,
            streams: self.local.streams,
            nonce: self.local.nonce,
            boot_id: self.local.boot_id,
            name: self.local.name.clone(),
            target: self.target.clone(),
            proof_kind: PROOF_NONE,
        };
        Step::Reply(claim.encode())
    }

    fn welcomed(&mut self, body: &[u8]) -> Step {
        let mut input = Reader(body);
        let fields = (input.array(), input.u64(), input.u8(), input.proof());
        let (Some(boot_id), Some(features), Some(streams), Some(PROOF_NONE)) = fields else {
            return Step::Failed(None, Failure::Malformed);
        };
        // More than was asked for cannot have been agreed.
        if streams == 0 || streams > self.local.streams || features & !self.local.features != 0 {
            return Step::Failed(None, Failure::Malformed);
        }
        Step::Done(Peer { name: self.target.clone(), boot_id, features, streams })
    }
}

struct Claim {
    version: u8,
    features: u64,
    streams: u8,
    nonce: Nonce,
    boot_id: BootId,
    name: String,
    target: String,
    proof_kind: u8,
}

impl Claim {
    fn encode(&self) -> Vec<u8> {
        framed(CLAIM, |out| {
            out.push(self.version);
            out.extend_from_slice(&self.features.to_be_bytes());
            out.push(self.streams);
            out.extend_from_slice(&self.nonce);
            out.extend_from_slice(&self.boot_id);
            push_name(out, &self.name);
            push_name(out, &self.target);
            push_proof_none(out);
        })
    }

    fn decode(body: &[u8]) -> Option<Claim> {
        let mut input = Reader(body);
        let claim = Claim {
            version: input.u8()?,
            features: input.u64()?,
            streams: input.u8().filter(|streams| *streams > 0)?,
            nonce: input.array()?,
            boot_id: input.array()?,
            name: input.name()?,
            target: input.name()?,
            proof_kind: input.proof()?,
        };
        input.0.is_empty().then_some(claim)
    }
}

fn refuse(refusal: Refusal) -> Step {
    let message = framed(REFUSED, |out| out.push(refusal.code()));
    Step::Failed(Some(message), Failure::Refusing(refusal))
}

fn framed(kind: u8, fields: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0, 0, kind];
    fields(&mut out);
    // Names are bounded where they come in, so a message never exceeds MAX_MESSAGE.
    let len = (out.len() - 2) as u16;
    out[..2].copy_from_slice(&len.to_be_bytes());
    out
}

fn push_name(out: &mut Vec<u8>, name: &str) {
    let bytes = &name.as_bytes()[..name.len().min(MAX_NAME)];
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn push_proof_none(out: &mut Vec<u8>) {
    out.push(PROOF_NONE);
    out.extend_from_slice(&0u16.to_be_bytes());
}

/// Takes fields off the front of a message; none when it is too short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn name(&mut self) -> Option<String> {
        let len = usize::from(self.u16()?);
        if len > MAX_NAME {
            return None;
        }
        String::from_utf8(self.bytes(len)?.to_vec()).ok()
    }

    /// The kind of the proof; its bytes are passed over.
    fn proof(&mut self) -> Option<u8> {
        let kind = self.u8()?;
        let len = usize::from(self.u16()?);
        self.bytes(len)?;
        Some(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn local(name: &str) -> Local {
        Local { name: name.into(), boot_id: [1; 16], features: 0, streams: 1, nonce: [2; 32] }
    }

    /// The message without its length, which must be right.
    fn body(message: &[u8]) -> &[u8] {
        assert_eq!(usize::from(u16::from_be_bytes([message[0], message[1]])), message.len() - 2);
        &message[2..]
    }

    fn reply(step: Step) -> Vec<u8> {
        match step {
            Step::Reply(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn two_nodes_learn_of_each_other() {
        let (mut acceptor, offer) = Acceptor::new(Local { boot_id: [9; 16], ..local("b@host") });
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        let claim = reply(dialler.receive(body(&offer)));
        let welcome = reply(acceptor.receive(body(&claim)));
        let b = Peer { name: "b@host".into(), boot_id: [9; 16], features: 0, streams: 1 };
        assert_eq!(dialler.receive(body(&welcome)), Step::Done(b));
        let a = Peer { name: "a@host".into(), boot_id: [1; 16], features: 0, streams: 1 };
        assert_eq!(acceptor.receive(body(&begin())), Step::Done(a));
    }

    #[test]
    fn the_offer_names_nobody() {
        let (_, offer) = Acceptor::new(local("secret@host"));
        assert!(!offer.windows(6).any(|bytes| bytes == b"secret"));
    }

    #[test]
    fn another_name_is_refused_on_both_sides() {
        for (here, wanted) in [("b@host", "c@host"), ("", ""), ("", "b@host")] {
            let (mut acceptor, offer) = Acceptor::new(local(here));
            let mut dialler = Dialler::new(local("a@host"), wanted.into());
            let claim = reply(dialler.receive(body(&offer)));
            let Step::Failed(Some(refused), why) = acceptor.receive(body(&claim)) else {
                panic!("{here} took a claim for {wanted}");
            };
            assert_eq!(why, Failure::Refusing(Refusal::WrongName));
            let heard = dialler.receive(body(&refused));
            assert_eq!(heard, Step::Failed(None, Failure::Refused(Refusal::WrongName)));
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let (_, mut offer) = Acceptor::new(local("b@host"));
        (offer[9], offer[10]) = (7, 9);
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        assert_eq!(dialler.receive(body(&offer)), Step::Failed(None, Failure::Version(7, 9)));
    }

    #[test]
    fn an_unknown_proof_is_refused() {
        let (mut acceptor, offer) = Acceptor::new(local("b@host"));
        let mut claim = reply(Dialler::new(local("a@host"), "b@host".into()).receive(body(&offer)));
        let kind = claim.len() - 3;
        claim[kind] = 1;
        let step = acceptor.receive(body(&claim));
        assert!(matches!(step, Step::Failed(Some(_), Failure::Refusing(Refusal::Proof))));
    }

    #[test]
    fn begin_before_claim_is_refused() {
        let (mut acceptor, _) = Acceptor::new(local("b@host"));
        let step = acceptor.receive(body(&begin()));
        assert!(matches!(step, Step::Failed(Some(_), Failure::Refusing(Refusal::Malformed))));
    }

    proptest! {
        /// Whatever arrives, in any state, is answered and never a panic or a finished hello.
        #[test]
        fn garbage_gets_nowhere(kind in 0u8..8, garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message: Vec<u8> = std::iter::once(kind).chain(garbage).collect();
            let (mut acceptor, offer) = Acceptor::new(local("b@host"));
            prop_assert!(!matches!(acceptor.receive(&message), Step::Done(_)));
            let mut dialler = Dialler::new(local("a@host"), "b@host".into());
            prop_assert!(!matches!(dialler.receive(&message), Step::Done(_)));
            let _ = dialler.receive(body(&offer));
            let _ = dialler.receive(&message);
        }

        /// Every prefix of a claim is malformed: no field is read beyond the end.
        #[test]
        fn truncated_claims_are_refused(cut in 0usize..200) {
            let (mut acceptor, offer) = Acceptor::new(local("b@host"));
            let claim = reply(Dialler::new(local("a@host"), "b@host".into()).receive(body(&offer)));
            let claim = body(&claim);
            prop_assume!(cut < claim.len());
            let step = acceptor.receive(&claim[..cut]);
            let malformed = matches!(step, Step::Failed(Some(_), Failure::Refusing(Refusal::Malformed)));
            prop_assert!(malformed);
        }
    }
}
