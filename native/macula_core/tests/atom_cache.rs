//! Two emulators with an atom cache, and lanes between them on which frames overtake each other: whatever comes first,
//! the receiver reads the atoms that were meant.
//!
//! The emulators here are written after erl_ext_dist, "Distribution Header", without the code that is tested.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use macula_core::dist::atoms::Refs;
use macula_core::dist::lanes::{Flow, Lanes, Place};
use macula_core::dist::signal::{self, Sender, Signal};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;

const SLOTS: usize = 2048;

/// Which way a frame goes: none is that of fences.
type Way = Option<Flow>;

/// A frame to be sent: whose it is, whether in fragments, and its atoms, different ones.
#[derive(Clone, Debug)]
struct Sent {
    sender: u32,
    fragment: bool,
    atoms: Vec<String>,
}

/// The emulator that sends: an atom is in the slot that its hash says.
struct Sending {
    slots: HashMap<usize, String>,
    /// Fewer than there are, so that atoms meet.
    modulo: usize,
}

impl Sending {
    fn slot(&self, atom: &str) -> usize {
        atom.bytes().fold(7, |hash, byte| (hash * 31 + usize::from(byte)) % 1_000_003) % self.modulo
    }

    /// The frame's header and control message; atoms that share a slot with another one of the frame are left out.
    fn frame(&mut self, sent: &Sent) -> (Vec<u8>, Vec<String>) {
        let mut taken = HashSet::new();
        let mut atoms = sent.atoms.clone();
        atoms.retain(|atom| taken.insert(self.slot(atom)));
        let mut frame = vec![131, if sent.fragment { 69 } else { 68 }];
        if sent.fragment {
            // The last one: to be read by itself.
            frame.extend(u64::from(sent.sender).to_be_bytes());
            frame.extend(1u64.to_be_bytes());
        }
        let entries: Vec<_> = atoms.iter().map(|atom| self.entry(atom)).collect();
        frame.extend(header(&entries));
        // SEND_SENDER, of a process of the first atom's node, or of one without a header.
        frame.extend([104, 3, 97, 22]);
        for id in [sent.sender, 99] {
            frame.extend(if atoms.is_empty() { vec![88, 119, 1, b'n'] } else { vec![88, 82, 0] });
            frame.extend([id, 0, 1].into_iter().flat_map(u32::to_be_bytes));
        }
        (frame, atoms)
    }

    fn entry(&mut self, atom: &str) -> (usize, Option<String>) {
        let slot = self.slot(atom);
        let before = self.slots.insert(slot, atom.to_owned());
        (slot, (before.as_deref() != Some(atom)).then(|| atom.to_owned()))
    }
}

/// The count of atoms, their flags and what is said of each.
fn header(entries: &[(usize, Option<String>)]) -> Vec<u8> {
    let mut bytes = vec![entries.len() as u8];
    if entries.is_empty() {
        return bytes;
    }
    let long = entries.iter().flat_map(|(_, text)| text).any(|text| text.len() > 255);
    let new = |text: &Option<String>| u8::from(text.is_some()) << 3;
    let mut halves: Vec<u8> =
        entries.iter().map(|(slot, text)| new(text) | (slot >> 8) as u8).collect();
    halves.extend([u8::from(long), 0]);
    bytes.extend(halves.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
    for (slot, text) in entries {
        bytes.push(*slot as u8);
        if let Some(text) = text {
            let len = (text.len() as u16).to_be_bytes();
            bytes.extend(if long { &len[..] } else { &len[1..] });
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// The emulator that receives.
#[derive(Default)]
struct Receiving {
    slots: HashMap<usize, String>,
}

impl Receiving {
    /// The atoms of a frame, and what follows them.
    fn atoms<'a>(&mut self, frame: &'a [u8]) -> (Vec<String>, &'a [u8]) {
        let head = if frame[1] == 69 { 18 } else { 2 };
        let (count, mut rest) = (usize::from(frame[head]), &frame[head + 1..]);
        if count == 0 {
            return (Vec::new(), rest);
        }
        let flags: Vec<u8> =
            rest[..count / 2 + 1].iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
        rest = &rest[count / 2 + 1..];
        let mut take = |len: usize| {
            let (taken, left) = rest.split_at(len);
            rest = left;
            taken
        };
        let atoms = (0..count).map(|at| {
            let slot = usize::from(flags[at] & 7) << 8 | usize::from(take(1)[0]);
            if flags[at] & 8 != 0 {
                let len = if flags[count] & 1 == 0 { 1 } else { 2 };
                let len = take(len).iter().fold(0, |read, byte| read << 8 | usize::from(*byte));
                let text = String::from_utf8(take(len).to_vec()).unwrap();
                self.slots.insert(slot, text);
            }
            self.slots.get(&slot).expect("a slot that has no atom").clone()
        });
        let atoms = atoms.collect();
        (atoms, rest)
    }
}

/// What is to be written for a frame, and whither.
fn written(lanes: &mut Lanes, frame: &[u8], cut: usize) -> (Way, Vec<u8>) {
    let (head, tail) = frame.split_at(cut % frame.len());
    let way = match lanes.place([head, &[], tail]) {
        Place::Lane { flow, .. } => Some(flow),
        Place::Fence { .. } => None,
        Place::Control => panic!("it is not empty"),
    };
    let bytes = match lanes.header() {
        Some(header) => [header.bytes, &frame[header.replaces..]].concat(),
        None => frame.to_vec(),
    };
    (way, bytes)
}

/// A frame on its way, and what the receiver is to read.
struct Travelling {
    frame: Vec<u8>,
    atoms: Vec<String>,
    rest: Vec<u8>,
}

/// Frames that may overtake each other, those of each flow in their order.
struct Road<'a, R> {
    flows: BTreeMap<(u16, u16), VecDeque<Travelling>>,
    receiving: Receiving,
    chances: &'a mut R,
}

impl<R: Iterator<Item = Index>> Road<'_, R> {
    /// Some of them arrive, or all.
    fn arrive(&mut self, all: bool) {
        while !self.flows.is_empty() && (all || self.chance(4) == 0) {
            let at = self.chance(self.flows.len());
            let flow = *self.flows.keys().nth(at).unwrap();
            let frame = self.flows.get_mut(&flow).and_then(VecDeque::pop_front).unwrap();
            self.flows.retain(|_, frames| !frames.is_empty());
            self.read(&frame);
        }
    }

    fn read(&mut self, Travelling { frame, atoms, rest }: &Travelling) {
        assert_eq!(self.receiving.atoms(frame), (atoms.clone(), &rest[..]));
    }

    fn chance(&mut self, below: usize) -> usize {
        self.chances.next().unwrap().index(below)
    }
}

/// Sends all, lets them overtake each other as far as they may, and reads them. How many fences there were.
fn converse(sent: &[Sent], modulo: usize, lanes: u16, chances: &[Index]) -> usize {
    let mut sending = Sending { slots: HashMap::new(), modulo };
    let mut lanes = Lanes::new(lanes);
    let chances = &mut chances.iter().copied().cycle();
    let mut road = Road { flows: BTreeMap::new(), receiving: Receiving::default(), chances };
    let mut fences = 0;
    for sent in sent {
        let (frame, atoms) = sending.frame(sent);
        let rest = Receiving { slots: sending.slots.clone() }.atoms(&frame).1.to_vec();
        let (way, frame) = written(&mut lanes, &frame, road.chance(1000));
        let frame = Travelling { frame, atoms, rest };
        if let Some(Flow { lane, number }) = way {
            road.flows.entry((lane, number)).or_default().push_back(frame);
            road.arrive(false);
        } else {
            road.arrive(true);
            road.read(&frame);
            fences += 1;
        }
    }
    road.arrive(true);
    fences
}

fn sent(atoms: impl Strategy<Value = String>) -> impl Strategy<Value = Sent> {
    (0..20u32, prop::bool::weighted(0.2), prop::collection::vec(atoms, 0..9)).prop_map(
        |(sender, fragment, mut atoms)| {
            atoms.sort();
            atoms.dedup();
            Sent { sender, fragment, atoms }
        },
    )
}

fn name(number: usize) -> String {
    // Some are longer than one byte can tell.
    let len = if number % 50 == 7 { 300 } else { 0 };
    format!("atom{number}{}", "é".repeat(len / 2))
}

fn chances() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Also where atoms keep taking each other's slot in the emulator that sends.
    #[test]
    fn atoms_are_those_that_were_meant(
        sent in prop::collection::vec(sent((0..60usize).prop_map(name)), 1..150),
        modulo in prop_oneof![1..20usize, Just(SLOTS)],
        lanes in 1..6u16,
        chances in chances(),
    ) {
        prop_assert_eq!(converse(&sent, modulo, lanes, &chances), 0);
    }
}

/// More of them than there are slots, again and again.
#[test]
fn when_all_slots_are_taken_a_fence_frees_them() {
    let all: Vec<Sent> = (0..3 * SLOTS)
        .map(|first| {
            // New ones, and some that have been there before: just now, and often.
            let atoms = [first + 50, first / 2 + 50, first % 50].map(name).into();
            Sent { sender: first as u32 % 7, fragment: first % 5 == 0, atoms }
        })
        .collect();
    let distinct = all.iter().flat_map(|sent| &sent.atoms).collect::<HashSet<_>>().len();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let chances = chances().new_tree(&mut runner).unwrap().current();
    let fences = converse(&all, SLOTS, 3, &chances);
    assert!((1..=distinct / SLOTS + 1).contains(&fences), "{fences} for {distinct}");
}

/// Once a way knows its atoms, headers are as short as the emulator's.
#[test]
fn a_text_goes_each_way_once() {
    let mut sending = Sending { slots: HashMap::new(), modulo: SLOTS };
    let mut lanes = Lanes::new(4);
    let mut lengths = Vec::new();
    for sender in [1, 2, 1, 2] {
        let atoms = vec!["node@host".to_owned(), "ok".to_owned()];
        let (frame, _) = sending.frame(&Sent { sender, fragment: false, atoms });
        lengths.push((frame.len(), written(&mut lanes, &frame, 0).1.len()));
    }
    let short = lengths[3].0;
    assert_eq!(
        lengths,
        [(short + 13, short + 13), (short, short + 13), (short, short), (short, short)]
    );
}

/// What names no atom that there is, as only somebody's own frames do, is left as it is, behind a fence.
#[test]
fn what_no_emulator_sends_is_fenced_as_it_is() {
    let mut lanes = Lanes::new(4);
    let control = [104, 3, 97, 22, 88, 82, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1];
    let unknown = [&[131, 68, 1, 3, 77][..], &control].concat();
    assert_eq!(written(&mut lanes, &unknown, 3), (None, unknown));
    for cut in 3..7 {
        let early = &[131, 68, 2, 0x88, 0, 1, b'a', 9, 1, b'b'][..cut];
        assert_eq!(written(&mut lanes, early, 2), (None, early.to_vec()));
    }
}

#[test]
fn a_sender_is_found_behind_atoms() {
    let mut sending = Sending { slots: HashMap::new(), modulo: SLOTS };
    for (fragment, count) in [(false, 1), (false, 20), (false, 255), (true, 3)] {
        let atoms = (0..count).map(name).collect();
        let (frame, _) = sending.frame(&Sent { sender: 17, fragment, atoms });
        let sender = Sender { id: 17, serial: 0, creation: 1 };
        let expected = match fragment {
            false => Signal::From(sender),
            true => Signal::Begins { sender: Some(sender), sequence: 17, last: true },
        };
        let refs = &mut Refs::default();
        assert_eq!(signal::classify([&frame[..]], refs), expected);
        assert_eq!(signal::classify(frame.chunks(1), refs), expected);
    }
}
