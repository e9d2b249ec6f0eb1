//! The link hello: the first bytes of every link, before any byte of distribution.
//!
//! ```text
//! acceptor                                  dialler
//!    OFFER   versions, features, nonce   →
//!                                        ←  CLAIM   version, features, streams, nonce,
//!                                                   boot id, own name, wanted name, proof
//!    WELCOME boot id, features, streams, proof  →        (or REDIRECT address, proof
//!                                                         or REFUSED reason)
//!                                        ←  BEGIN
//! ```
//!
//! A proof is a MAC under a key that only holders of the cookie can compute, over everything said
//! so far and keying material of this very connection ([`crate::keys`]). So neither side gets past
//! the hello without the cookie, and someone who terminates TLS in the middle has a connection of
//! its own on either side, for which nobody proves anything. The dialler proves first: until then
//! the acceptor sends nothing that depends on the cookie, names a node, or tells lives of it apart.
//! `BEGIN` is the dialler's choice among several addresses it tried at once: only then does the
//! acceptor's node hear of the link. A node that lives on the same machine as the one dialled is
//! pointed to with `REDIRECT`, for those who prove the cookie shared with that node.
//!
//! On the wire each message is a 2-byte big-endian length, a type byte and its fields.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::keys::{self, CookieKey, Role};
use crate::wire::{Reader, framed, put};

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
const REDIRECT: u8 = 6;

/// The proof by HMAC-SHA256 under the cookie's key; later versions may know others.
const PROOF_COOKIE: u8 = 1;

/// Sixteen random bytes that tell one life of a node from the next.
pub type BootId = [u8; 16];

/// Random bytes that make every hello different.
pub type Nonce = [u8; 32];

/// A bit of the features: whoever sends on lanes writes headers that suit frames which overtake each other
/// (`crate::dist::atoms`), so that the emulators may use their atom cache there. Unless both sides know it,
/// `DFLAG_DIST_HDR_ATOM_CACHE` is rejected.
pub const ATOM_CACHE: u64 = 1;

/// What one side brings to a hello.
#[derive(Clone, Debug)]
pub struct Local {
    /// This node's name; empty for a dialler that will be given one (dynamic node name), and for
    /// an acceptor that nobody can address.
    pub name: String,
    /// This node's boot id.
    pub boot_id: BootId,
    /// Optional parts of the protocol this side knows, one bit each: [`ATOM_CACHE`].
    pub features: u64,
    /// Distribution streams wanted at most.
    pub streams: u8,
    /// Fresh random bytes.
    pub nonce: Nonce,
    /// Keying material exported from the connection the hello is spoken on.
    pub exporter: [u8; keys::LEN],
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
    /// The cookie was not proved: it is another one, or somebody sits in between.
    Proof,
    /// The claim could not be read.
    Malformed,
    /// Another node of the dialler's name is connected and alive.
    NameTaken,
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
            Refusal::NameTaken => 5,
            Refusal::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Refusal {
        match code {
            1 => Refusal::WrongName,
            2 => Refusal::Version,
            3 => Refusal::Proof,
            4 => Refusal::Malformed,
            5 => Refusal::NameTaken,
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
    /// The node asked for lives elsewhere: at this port, and at this address unless it is the
    /// unspecified one, which stands for the address dialled. Either side.
    Redirected(SocketAddr),
    /// What arrived is not a hello message that may come now.
    Malformed,
}

/// What to do after a message was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this and wait for the next message.
    Reply(Vec<u8>),
    /// Call [`Acceptor::verify`] with the key of the cookie that this claim is to be proved with.
    Verify(Asked),
    /// The hello is done; the dialler sends [`begin`] when it chooses this link.
    Done(Peer),
    /// Send what is given, if anything, and close.
    Failed(Option<Vec<u8>>, Failure),
}

/// What a dialler asks for, before it has proved anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The node it claims to be; empty: one to be named.
    pub name: String,
    /// The node whose cookie counts: that of the dialler, or that of the node it asks for when
    /// this is another one than here, since the two share that.
    pub cookie_of: String,
}

/// Whom a dialler that has proved itself asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This node: [`Acceptor::welcome`] or [`Acceptor::turn_away`] must follow.
    Here(Peer),
    /// Another node: [`Acceptor::redirect`] or [`Acceptor::turn_away`] must follow.
    Elsewhere(String),
}

/// The message with which a dialler chooses a link whose hello is done.
pub fn begin() -> Vec<u8> {
    framed(BEGIN, |_| {})
}

/// The accepting side of a hello.
#[derive(Debug)]
pub struct Acceptor {
    local: Local,
    state: Accepting,
    transcript: Vec<u8>,
}

#[derive(Debug)]
enum Accepting {
    Claim,
    /// The claim waits for its proof to be checked.
    Verify(Wanted, Vec<u8>),
    /// The proof was good.
    Verified(Wanted),
    Begin(Peer),
    Over,
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
        let transcript = offer.clone();
        (Acceptor { local, state: Accepting::Claim, transcript }, offer)
    }

    /// Takes the next message (without its length).
    pub fn receive(&mut self, message: &[u8]) -> Step {
        match (self.take(), message.split_first()) {
            (Accepting::Claim, Some((&CLAIM, body))) => self.claimed(body),
            (Accepting::Begin(peer), Some((&BEGIN, []))) => Step::Done(peer),
            _ => refuse(Refusal::Malformed),
        }
    }

    fn take(&mut self) -> Accepting {
        std::mem::replace(&mut self.state, Accepting::Over)
    }

    fn claimed(&mut self, body: &[u8]) -> Step {
        let Some((claim, said, proof)) = Claim::decode(body) else {
            return refuse(Refusal::Malformed);
        };
        if !(VERSIONS.0..=VERSIONS.1).contains(&claim.version) {
            return refuse(Refusal::Version);
        }
        let here = !self.local.name.is_empty() && claim.target == self.local.name;
        let cookie_of = if here { claim.name.clone() } else { claim.target.clone() };
        let asked = Asked { name: claim.name.clone(), cookie_of };
        let wanted = if here {
            Wanted::Here(Peer {
                name: claim.name,
                boot_id: claim.boot_id,
                features: claim.features & self.local.features,
                streams: claim.streams.min(self.local.streams),
            })
        } else {
            Wanted::Elsewhere(claim.target)
        };
        self.transcript.extend_from_slice(said);
        self.state = Accepting::Verify(wanted, proof.to_vec());
        Step::Verify(asked)
    }

    /// Checks the dialler's proof under `key`.
    ///
    /// # Errors
    /// The step to take when it is not good.
    pub fn verify(&mut self, key: &CookieKey) -> Result<Wanted, Step> {
        let Accepting::Verify(wanted, proof) = self.take() else {
            return Err(refuse(Refusal::Malformed));
        };
        if !key.verify(Role::Dialler, &self.local.exporter, &self.transcript, &proof) {
            return Err(refuse(Refusal::Proof));
        }
        self.transcript.extend_from_slice(&proof);
        self.state = Accepting::Verified(wanted.clone());
        Ok(wanted)
    }

    /// Lets a verified peer in.
    pub fn welcome(&mut self, key: &CookieKey) -> Step {
        let Accepting::Verified(Wanted::Here(peer)) = self.take() else {
            return refuse(Refusal::Malformed);
        };
        let mut said = Vec::with_capacity(32);
        said.extend_from_slice(&self.local.boot_id);
        said.extend_from_slice(&peer.features.to_be_bytes());
        said.push(peer.streams);
        self.state = Accepting::Begin(peer);
        Step::Reply(self.proved(WELCOME, Role::Acceptor, &said, key))
    }

    /// Points a verified dialler to `address`, where the node it asks for lives; the unspecified
    /// address stands for the one it dialled.
    pub fn redirect(&mut self, key: &CookieKey, address: SocketAddr) -> Step {
        let Accepting::Verified(Wanted::Elsewhere(_)) = self.take() else {
            return refuse(Refusal::Malformed);
        };
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED,
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut said = ip.octets().to_vec();
        said.extend_from_slice(&address.port().to_be_bytes());
        let reply = self.proved(REDIRECT, Role::Redirector, &said, key);
        Step::Failed(Some(reply), Failure::Redirected(address))
    }

    /// A message of `kind` that says `said`, with its proof.
    fn proved(&mut self, kind: u8, role: Role, said: &[u8], key: &CookieKey) -> Vec<u8> {
        self.transcript.extend_from_slice(said);
        let proof = key.prove(role, &self.local.exporter, &self.transcript);
        framed(kind, |out| {
            out.extend_from_slice(said);
            push_proof(out, &proof);
        })
    }

    /// Refuses a verified peer.
    pub fn turn_away(&mut self, refusal: Refusal) -> Step {
        self.state = Accepting::Over;
        refuse(refusal)
    }
}

/// The dialling side of a hello.
#[derive(Debug)]
pub struct Dialler {
    local: Local,
    target: String,
    transcript: Vec<u8>,
}

impl Dialler {
    /// A hello that waits for an OFFER, and wants to reach the node `target`.
    pub fn new(local: Local, target: String) -> Dialler {
        Dialler { local, target, transcript: Vec::new() }
    }

    /// Takes the next message (without its length). `key` is that of the cookie shared with the
    /// target.
    pub fn receive(&mut self, message: &[u8], key: &CookieKey) -> Step {
        match (self.transcript.is_empty(), message.split_first()) {
            (true, Some((&OFFER, body))) => self.offered(message, body, key),
            (false, Some((&WELCOME, body))) => self.welcomed(body, key),
            (false, Some((&REDIRECT, body))) => self.redirected(body, key),
            (_, Some((&REFUSED, [code]))) => {
                Step::Failed(None, Failure::Refused(Refusal::from_code(*code)))
            }
            _ => Step::Failed(None, Failure::Malformed),
        }
    }

    fn offered(&mut self, offer: &[u8], body: &[u8], key: &CookieKey) -> Step {
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
        let claim = Claim {
            version,
            features: features & self.local.features,
            streams: self.local.streams,
            nonce: self.local.nonce,
            boot_id: self.local.boot_id,
            name: self.local.name.clone(),
            target: self.target.clone(),
        };
        let said = claim.encode();
        self.transcript.extend_from_slice(&(offer.len() as u16).to_be_bytes());
        self.transcript.extend_from_slice(offer);
        self.transcript.extend_from_slice(&said);
        let proof = key.prove(Role::Dialler, &self.local.exporter, &self.transcript);
        self.transcript.extend_from_slice(&proof);
        Step::Reply(framed(CLAIM, |out| {
            out.extend_from_slice(&said);
            push_proof(out, &proof);
        }))
    }

    fn welcomed(&mut self, body: &[u8], key: &CookieKey) -> Step {
        let mut input = Reader(body);
        let fields = (input.array(), input.u64(), input.u8());
        let (Some(boot_id), Some(features), Some(streams)) = fields else {
            return Step::Failed(None, Failure::Malformed);
        };
        if let Err(failure) = self.proved(Role::Acceptor, body, input, key) {
            return Step::Failed(None, failure);
        }
        // More than was asked for cannot have been agreed.
        if streams == 0 || streams > self.local.streams || features & !self.local.features != 0 {
            return Step::Failed(None, Failure::Malformed);
        }
        Step::Done(Peer { name: self.target.clone(), boot_id, features, streams })
    }

    fn redirected(&mut self, body: &[u8], key: &CookieKey) -> Step {
        let mut input = Reader(body);
        let (Some(ip), Some(port)) = (input.array::<16>(), input.u16().filter(|port| *port > 0))
        else {
            return Step::Failed(None, Failure::Malformed);
        };
        let address = SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port);
        let proved = self.proved(Role::Redirector, body, input, key);
        Step::Failed(None, proved.err().unwrap_or(Failure::Redirected(address)))
    }

    /// Checks the proof at the end of `body`, whose fields were taken off the front of `rest`.
    fn proved(
        &mut self,
        role: Role,
        body: &[u8],
        mut rest: Reader<'_>,
        key: &CookieKey,
    ) -> Result<(), Failure> {
        let said = &body[..body.len() - rest.0.len()];
        let Some(proof) = take_proof(&mut rest).filter(|_| rest.is_empty()) else {
            return Err(Failure::Malformed);
        };
        self.transcript.extend_from_slice(said);
        if key.verify(role, &self.local.exporter, &self.transcript, proof) {
            Ok(())
        } else {
            Err(Failure::Refusing(Refusal::Proof))
        }
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
}

impl Claim {
    /// The fields a proof follows.
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.version];
        out.extend_from_slice(&self.features.to_be_bytes());
        out.push(self.streams);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.boot_id);
        push_name(&mut out, &self.name);
        push_name(&mut out, &self.target);
        out
    }

    /// The claim, the bytes that are proved, and the proof.
    fn decode(body: &[u8]) -> Option<(Claim, &[u8], &[u8])> {
        let mut input = Reader(body);
        let claim = Claim {
            version: input.u8()?,
            features: input.u64()?,
            streams: input.u8().filter(|streams| *streams > 0)?,
            nonce: input.array()?,
            boot_id: input.array()?,
            name: input.text(MAX_NAME)?,
            target: input.text(MAX_NAME)?,
        };
        let said = &body[..body.len() - input.0.len()];
        let proof = take_proof(&mut input)?;
        input.is_empty().then_some((claim, said, proof))
    }
}

fn refuse(refusal: Refusal) -> Step {
    let message = framed(REFUSED, |out| out.push(refusal.code()));
    Step::Failed(Some(message), Failure::Refusing(refusal))
}

fn push_name(out: &mut Vec<u8>, name: &str) {
    put(out, name.as_bytes(), MAX_NAME);
}

fn push_proof(out: &mut Vec<u8>, proof: &[u8; keys::LEN]) {
    out.push(PROOF_COOKIE);
    out.extend_from_slice(&(keys::LEN as u16).to_be_bytes());
    out.extend_from_slice(proof);
}

/// A proof; none when it is of a kind not known here, which then proves nothing.
fn take_proof<'a>(input: &mut Reader<'a>) -> Option<&'a [u8]> {
    let kind = input.u8()?;
    let len = usize::from(input.u16()?);
    let proof = input.bytes(len)?;
    (kind == PROOF_COOKIE).then_some(proof)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static KEY: LazyLock<CookieKey> =
        LazyLock::new(|| CookieKey::stretch(&keys::base(b"cookie")).unwrap());
    static OTHER_KEY: LazyLock<CookieKey> =
        LazyLock::new(|| CookieKey::stretch(&keys::base(b"another")).unwrap());

    fn local(name: &str) -> Local {
        Local {
            name: name.into(),
            boot_id: [1; 16],
            features: 0,
            streams: 1,
            nonce: [2; 32],
            exporter: [3; 32],
        }
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

    fn refusal(step: &Step) -> Refusal {
        match step {
            Step::Failed(Some(_), Failure::Refusing(refusal)) => *refusal,
            other => panic!("{other:?}"),
        }
    }

    /// What the acceptor answers to a claim, with the WELCOME when it is good.
    fn answer(acceptor: &mut Acceptor, claim: &[u8], key: &CookieKey) -> Step {
        match acceptor.receive(body(claim)) {
            Step::Verify(_) => match acceptor.verify(key) {
                Ok(Wanted::Here(_)) => acceptor.welcome(key),
                Ok(Wanted::Elsewhere(_)) => acceptor.turn_away(Refusal::WrongName),
                Err(step) => step,
            },
            other => other,
        }
    }

    #[test]
    fn two_nodes_learn_of_each_other() {
        let (mut acceptor, offer) = Acceptor::new(Local { boot_id: [9; 16], ..local("b@host") });
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        let claim = reply(dialler.receive(body(&offer), &KEY));
        let asked = Asked { name: "a@host".into(), cookie_of: "a@host".into() };
        assert_eq!(acceptor.receive(body(&claim)), Step::Verify(asked));
        let a = Peer { name: "a@host".into(), boot_id: [1; 16], features: 0, streams: 1 };
        assert_eq!(acceptor.verify(&KEY).unwrap(), Wanted::Here(a.clone()));
        let welcome = reply(acceptor.welcome(&KEY));
        let b = Peer { name: "b@host".into(), boot_id: [9; 16], features: 0, streams: 1 };
        assert_eq!(dialler.receive(body(&welcome), &KEY), Step::Done(b));
        assert_eq!(acceptor.receive(body(&begin())), Step::Done(a));
    }

    #[test]
    fn the_offer_names_nobody_and_depends_on_no_cookie() {
        let (_, offer) = Acceptor::new(local("secret@host"));
        assert!(!offer.windows(6).any(|bytes| bytes == b"secret"));
        assert_eq!(offer, Acceptor::new(local("another@host")).1);
    }

    #[test]
    fn without_the_cookie_a_dialler_learns_nothing_but_that() {
        for target in ["b@host", "c@host"] {
            let (mut acceptor, offer) = Acceptor::new(local("b@host"));
            let mut dialler = Dialler::new(local("a@host"), target.into());
            let claim = reply(dialler.receive(body(&offer), &OTHER_KEY));
            assert_eq!(refusal(&answer(&mut acceptor, &claim, &KEY)), Refusal::Proof);
        }
    }

    #[test]
    fn without_the_cookie_an_acceptor_is_not_believed() {
        let (mut acceptor, offer) = Acceptor::new(local("b@host"));
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        let claim = reply(dialler.receive(body(&offer), &KEY));
        acceptor.receive(body(&claim));
        acceptor.verify(&KEY).unwrap();
        let forged = reply(acceptor.welcome(&OTHER_KEY));
        let step = dialler.receive(body(&forged), &KEY);
        assert_eq!(step, Step::Failed(None, Failure::Refusing(Refusal::Proof)));
    }

    /// Whoever terminates TLS on both sides passes everything on, between two connections whose
    /// keying material differs.
    #[test]
    fn a_man_in_the_middle_gets_nowhere() {
        let (mut acceptor, offer) = Acceptor::new(Local { exporter: [4; 32], ..local("b@host") });
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        let claim = reply(dialler.receive(body(&offer), &KEY));
        assert_eq!(refusal(&answer(&mut acceptor, &claim, &KEY)), Refusal::Proof);
    }

    #[test]
    fn our_own_proof_sent_back_is_none() {
        let (_, offer) = Acceptor::new(local("b@host"));
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        let claim = reply(dialler.receive(body(&offer), &KEY));
        let proof = &claim[claim.len() - keys::LEN..];
        let reflected = framed(WELCOME, |out| {
            out.extend_from_slice(&[9; 16]);
            out.extend_from_slice(&0u64.to_be_bytes());
            out.push(1);
            push_proof(out, proof.try_into().unwrap());
        });
        let step = dialler.receive(body(&reflected), &KEY);
        assert_eq!(step, Step::Failed(None, Failure::Refusing(Refusal::Proof)));
    }

    #[test]
    fn another_name_is_refused_on_both_sides() {
        for (here, wanted) in [("b@host", "c@host"), ("", ""), ("", "b@host")] {
            let (mut acceptor, offer) = Acceptor::new(local(here));
            let mut dialler = Dialler::new(local("a@host"), wanted.into());
            let claim = reply(dialler.receive(body(&offer), &KEY));
            let Step::Failed(Some(refused), why) = answer(&mut acceptor, &claim, &KEY) else {
                panic!("{here} took a claim for {wanted}");
            };
            assert_eq!(why, Failure::Refusing(Refusal::WrongName));
            let heard = dialler.receive(body(&refused), &KEY);
            assert_eq!(heard, Step::Failed(None, Failure::Refused(Refusal::WrongName)));
        }
    }

    /// The acceptor's last step for a dialler that asks it for a node which lives at `address`.
    fn redirect(address: SocketAddr, key: &CookieKey) -> (Dialler, Step) {
        let (mut acceptor, offer) = Acceptor::new(local("b@host"));
        let mut dialler = Dialler::new(local("a@host"), "c@host".into());
        let claim = reply(dialler.receive(body(&offer), &KEY));
        let asked = Asked { name: "a@host".into(), cookie_of: "c@host".into() };
        assert_eq!(acceptor.receive(body(&claim)), Step::Verify(asked));
        assert_eq!(acceptor.verify(&KEY).unwrap(), Wanted::Elsewhere("c@host".into()));
        (dialler, acceptor.redirect(key, address))
    }

    #[test]
    fn who_proves_the_cookie_is_pointed_to_a_node_beside() {
        for address in ["0.0.0.0:4434", "192.0.2.7:1", "[2001:db8::1]:65535"] {
            let address: SocketAddr = address.parse().unwrap();
            let (mut dialler, step) = redirect(address, &KEY);
            let Step::Failed(Some(message), Failure::Redirected(told)) = step else {
                panic!("{step:?}");
            };
            assert_eq!(told, address);
            let heard = match address.ip().is_unspecified() {
                true => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()),
                false => address,
            };
            let step = dialler.receive(body(&message), &KEY);
            assert_eq!(step, Step::Failed(None, Failure::Redirected(heard)));
        }
    }

    #[test]
    fn without_the_cookie_nobody_points_a_dialler_anywhere() {
        let (mut dialler, step) = redirect("192.0.2.7:1".parse().unwrap(), &OTHER_KEY);
        let Step::Failed(Some(message), _) = step else {
            panic!("{step:?}");
        };
        let step = dialler.receive(body(&message), &KEY);
        assert_eq!(step, Step::Failed(None, Failure::Refusing(Refusal::Proof)));
    }

    #[test]
    fn a_verified_peer_can_be_turned_away() {
        let (mut acceptor, offer) = Acceptor::new(local("b@host"));
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        let claim = reply(dialler.receive(body(&offer), &KEY));
        acceptor.receive(body(&claim));
        acceptor.verify(&KEY).unwrap();
        assert_eq!(refusal(&acceptor.turn_away(Refusal::NameTaken)), Refusal::NameTaken);
        assert_eq!(refusal(&acceptor.receive(body(&begin()))), Refusal::Malformed);
    }

    #[test]
    fn a_later_version_is_named() {
        let (_, mut offer) = Acceptor::new(local("b@host"));
        (offer[9], offer[10]) = (7, 9);
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        assert_eq!(dialler.receive(body(&offer), &KEY), Step::Failed(None, Failure::Version(7, 9)));
    }

    #[test]
    fn begin_before_its_time_is_refused() {
        let (mut acceptor, offer) = Acceptor::new(local("b@host"));
        assert_eq!(refusal(&acceptor.receive(body(&begin()))), Refusal::Malformed);
        let (mut acceptor, _) = Acceptor::new(local("b@host"));
        let mut dialler = Dialler::new(local("a@host"), "b@host".into());
        let claim = reply(dialler.receive(body(&offer), &KEY));
        acceptor.receive(body(&claim));
        assert_eq!(refusal(&acceptor.receive(body(&begin()))), Refusal::Malformed);
    }

    proptest! {
        /// Whatever arrives, in any state, is answered and never a panic or a finished hello.
        #[test]
        fn garbage_gets_nowhere(kind in 0u8..8, garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message: Vec<u8> = std::iter::once(kind).chain(garbage).collect();
            let (mut acceptor, offer) = Acceptor::new(local("b@host"));
            if let Step::Verify(_) = acceptor.receive(&message) {
                prop_assert!(acceptor.verify(&KEY).is_err());
            }
            let mut dialler = Dialler::new(local("a@host"), "b@host".into());
            prop_assert!(!matches!(dialler.receive(&message, &KEY), Step::Done(_)));
            let mut dialler = Dialler::new(local("a@host"), "b@host".into());
            let _ = dialler.receive(body(&offer), &KEY);
            prop_assert!(!matches!(dialler.receive(&message, &KEY), Step::Done(_)));
        }

        /// No claim that was cut or changed anywhere is taken for the one that was proved.
        #[test]
        fn tampered_claims_are_refused(at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>()) {
            let (mut acceptor, offer) = Acceptor::new(local("b@host"));
            let mut dialler = Dialler::new(local("a@host"), "b@host".into());
            let mut claim = reply(dialler.receive(body(&offer), &KEY)).split_off(2);
            let at = at.index(claim.len());
            if cut { claim.truncate(at) } else { claim[at] ^= flip }
            if let Step::Verify(_) = acceptor.receive(&claim) {
                prop_assert!(acceptor.verify(&KEY).is_err());
            }
        }
    }
}
