//! The emulator's atom cache, for frames that may overtake each other.
//!
//! Atoms of a control message and its payload stand in the header of a frame (erl_ext_dist, "Distribution Header"):
//! a slot of 2048 each, and the text where that is new. The receiver's emulator keeps what it reads in slots of its own,
//! so a text must come before whatever names its slot, and a slot must not be given another text while frames that mean
//! the former one may still be on their way. The emulator that sends sees to both by the order of its frames. On lanes
//! there is no such order, and so headers are written anew here:
//!
//! - each way (a flow, or the control stream) is told every text itself, in the first of its frames that names it;
//! - an atom keeps its slot, and when all are given the first frame that needs another one is a fence, behind which all
//!   are given afresh.
//!
//! The receiver need not know of it: to its emulator these are headers as any other's. At the default of 64 lanes that
//! takes some 20 kB a link, and 1 MB of one that has named 2048 atoms.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::Cursor;

/// Slots of the cache.
const SLOTS: usize = 2048;

/// Of the four bits that a header has of each atom: its text follows. The others are the upper ones of its slot.
const NEW: u8 = 8;

/// Of what is noted of each atom: its text followed. The others are its slot.
const WITH_TEXT: u16 = 1 << 15;

/// What is before the atoms of a first fragment; less before those of a whole frame.
const LONGEST_HEAD: usize = 18;

/// A header's atoms as the emulator wrote them; none at first. To be used for one frame after the other, for its memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refs {
    head: [u8; LONGEST_HEAD],
    head_len: usize,
    /// Bytes of the frame's header.
    len: usize,
    /// The slot of each, and whether its text followed.
    refs: Vec<u16>,
    /// Where in `bytes` the texts are.
    texts: Vec<Range<usize>>,
    bytes: Vec<u8>,
}

impl Refs {
    /// There are none.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.refs.clear();
    }

    /// Reads those that follow `head`, with which the frame begins. None when they end early: then there are none.
    #[inline(always)]
    pub(super) fn read<'a>(
        &mut self,
        head: &[u8],
        frame: &mut Cursor<'a, impl Iterator<Item = &'a [u8]>>,
    ) -> Option<()> {
        let count = frame.byte()?;
        if count == 0 {
            return Some(());
        }
        self.head[..head.len()].copy_from_slice(head);
        self.head_len = head.len();
        match self.parse(count.into(), frame.ahead()) {
            Ok(len) => frame.skip(len),
            Err(_) => self.gather(count.into(), frame),
        }
    }

    /// As [`Self::parse`], of bytes that several parts hold. Emulators have the header in one.
    #[cold]
    fn gather<'a>(
        &mut self,
        count: usize,
        frame: &mut Cursor<'a, impl Iterator<Item = &'a [u8]>>,
    ) -> Option<()> {
        let mut bytes = Vec::new();
        while let Err(least) = self.parse(count, &bytes) {
            let had = bytes.len();
            bytes.resize(least, 0);
            if frame.copy_to(&mut bytes[had..]).is_none() {
                *self = Refs::default();
                return None;
            }
        }
        Some(())
    }

    /// How many of these bytes so many of them are. An error says how many there must be at least, and are not.
    fn parse(&mut self, count: usize, bytes: &[u8]) -> Result<usize, usize> {
        let take = |at: usize, len: usize| bytes.get(at..at + len).ok_or(at + len);
        self.refs.clear();
        self.texts.clear();
        self.bytes.clear();
        let flags = take(0, flags_len(count))?;
        let mut at = flags.len();
        let len_bytes = if half_byte(flags, count) & 1 == 0 { 1 } else { 2 };
        for number in 0..count {
            let flags = half_byte(flags, number);
            let lower = *bytes.get(at).ok_or(at + 1)?;
            let slot = u16::from(flags & !NEW) << 8 | u16::from(lower);
            at += 1;
            if flags & NEW == 0 {
                self.refs.push(slot);
                continue;
            }
            let len =
                take(at, len_bytes)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
            at += len_bytes;
            let start = self.bytes.len();
            self.bytes.extend_from_slice(take(at, len)?);
            at += len;
            self.texts.push(start..self.bytes.len());
            self.refs.push(slot | WITH_TEXT);
        }
        self.len = self.head_len + 1 + at;
        Ok(at)
    }
}

/// Bytes of the flags of so many atoms, four bits each, and of four more.
fn flags_len(count: usize) -> usize {
    count / 2 + 1
}

fn half_byte(flags: &[u8], at: usize) -> u8 {
    flags[at / 2] >> (at % 2 * 4) & 0xf
}

/// What is written in place of a frame's first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// The header.
    pub bytes: &'a [u8],
    /// How many bytes of the frame it stands for.
    pub replaces: usize,
}

impl Header<'_> {
    /// The bytes, with this header, of a frame that had `size` of them.
    pub fn resized(&self, size: usize) -> usize {
        size - self.replaces + self.bytes.len()
    }
}

/// What is known of a frame's atoms, of which each slot is named once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// All have a slot, and slots are as before; or there are none.
    Yes,
    /// They have, but slots have been given anew: the frame must be behind all before it and before all behind it.
    Anew,
    /// One is of a slot that never had a text. No emulator sends that; who makes such a frame gets what he asks for: the
    /// receiver reads it with whatever is in its slots.
    No,
}

/// What each way has been told.
#[derive(Debug)]
pub(super) struct Atoms {
    ways: usize,
    /// For each slot of the emulator that sends, the atom; empty until there is one.
    slots: Vec<Option<u16>>,
    atoms: Vec<Atom>,
    numbers: HashMap<Arc<[u8]>, u16>,
    /// Which slots are given; empty until one is.
    given: Vec<bool>,
    /// None is free before this one.
    none_before: usize,
    /// Those of the frame at hand.
    named: Vec<u16>,
    /// The emulator's slots that they are of, each once: mostly the next frame names the same.
    named_by: Vec<u16>,
    header: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Atom {
    text: Arc<[u8]>,
    /// The one it has on the way.
    slot: Option<u16>,
    /// A bit for each way that knows.
    told: Box<[u64]>,
}

/// Why a frame's atoms cannot be named as things are.
enum Trouble {
    /// All slots are given.
    AllGiven,
    /// A slot has none.
    NoAtom,
}

/// A bit of [`Atom::told`].
#[derive(Clone, Copy)]
struct Way {
    word: usize,
    bit: u64,
}

impl Atom {
    fn is_known(&self, Way { word, bit }: Way) -> bool {
        self.told[word] & bit != 0
    }
}

impl Atoms {
    pub(super) fn new(ways: usize) -> Atoms {
        Atoms {
            ways,
            slots: Vec::new(),
            atoms: Vec::new(),
            numbers: HashMap::new(),
            given: Vec::new(),
            none_before: 0,
            named: Vec::new(),
            named_by: Vec::new(),
            header: Vec::new(),
        }
    }

    /// Takes note of the next frame's atoms.
    #[inline]
    pub(super) fn know(&mut self, refs: &Refs) -> Known {
        self.header.clear();
        // A slot whose text follows is never among those, as their bit for that is off.
        if refs.refs == self.named_by { Known::Yes } else { self.know_others(refs) }
    }

    fn know_others(&mut self, refs: &Refs) -> Known {
        self.named.clear();
        self.named_by.clear();
        if refs.refs.is_empty() {
            return Known::Yes;
        }
        if self.slots.is_empty() {
            self.slots = vec![None; SLOTS];
            self.given = vec![false; SLOTS];
        }
        let known = match self.resolve(refs) {
            Err(Trouble::AllGiven) => {
                self.start_anew();
                self.resolve(refs).map(|()| Known::Anew)
            }
            resolved => resolved.map(|()| Known::Yes),
        };
        match known {
            Ok(_) => self.named_by.extend(refs.refs.iter().map(|of| of & !WITH_TEXT)),
            Err(_) => self.named.clear(),
        }
        known.unwrap_or(Known::No)
    }

    /// Finds the frame's atoms, and gives them slots.
    fn resolve(&mut self, refs: &Refs) -> Result<(), Trouble> {
        self.named.clear();
        let mut texts = refs.texts.iter();
        for of in &refs.refs {
            let slot = of & !WITH_TEXT;
            let atom = if of & WITH_TEXT == 0 {
                self.slots[usize::from(slot)].ok_or(Trouble::NoAtom)?
            } else {
                let text = texts.next().ok_or(Trouble::NoAtom)?;
                let atom = self.intern(&refs.bytes[text.clone()]);
                self.slots[usize::from(slot)] = Some(atom);
                atom
            };
            if self.atoms[usize::from(atom)].slot.is_none() {
                self.give(atom, slot)?;
            }
            self.named.push(atom);
        }
        Ok(())
    }

    /// The number of the atom with this text. There are fewer than 5000: those in the emulator's 2048 slots when all were
    /// given, as many that have been given one since, and those of one frame.
    fn intern(&mut self, text: &[u8]) -> u16 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let (number, text) = (self.atoms.len() as u16, Arc::<[u8]>::from(text));
        self.numbers.insert(text.clone(), number);
        self.atoms.push(Atom { text, slot: None, told: vec![0; self.ways.div_ceil(64)].into() });
        number
    }

    /// Gives an atom a slot: the one it has in the emulator, so that most headers can stay as they are, or another one.
    fn give(&mut self, atom: u16, wanted: u16) -> Result<(), Trouble> {
        while self.given.get(self.none_before) == Some(&true) {
            self.none_before += 1;
        }
        let free = if self.given[usize::from(wanted)] { self.none_before } else { wanted.into() };
        *self.given.get_mut(free).ok_or(Trouble::AllGiven)? = true;
        self.atoms[usize::from(atom)].slot = Some(free as u16);
        Ok(())
    }

    /// No atom has a slot any more; those that the emulator has in none are forgotten.
    fn start_anew(&mut self) {
        let before = std::mem::take(&mut self.atoms);
        let slots = std::mem::take(&mut self.slots);
        self.numbers.clear();
        self.given.fill(false);
        self.none_before = 0;
        let text = |atom: u16| &before[usize::from(atom)].text;
        self.slots = slots.into_iter().map(|atom| Some(self.intern(text(atom?)))).collect();
    }

    /// Writes the header of the frame that has been taken note of, for the way that it goes, if it differs from the
    /// emulator's.
    #[inline]
    pub(super) fn write(&mut self, refs: &Refs, way: usize) {
        if self.named.is_empty() {
            return;
        }
        let way = Way { word: way / 64, bit: 1 << (way % 64) };
        let stays = |(atom, slot): (&u16, &u16)| {
            let atom = &self.atoms[usize::from(*atom)];
            atom.slot == Some(*slot) && atom.is_known(way)
        };
        if !self.named.iter().zip(&refs.refs).all(stays) {
            self.write_anew(refs, way);
        }
    }

    fn write_anew(&mut self, refs: &Refs, way: Way) {
        let long = self.named.iter().any(|atom| {
            let atom = &self.atoms[usize::from(*atom)];
            atom.text.len() > usize::from(u8::MAX) && !atom.is_known(way)
        });
        let (count, header) = (self.named.len(), &mut self.header);
        header.extend_from_slice(&refs.head[..refs.head_len]);
        header.push(count as u8);
        let flags = header.len();
        header.resize(flags + flags_len(count), 0);
        let set = |header: &mut Vec<u8>, at: usize, half: u8| {
            header[flags + at / 2] |= half << (at % 2 * 4);
        };
        set(header, count, u8::from(long));
        for (at, atom) in self.named.iter().enumerate() {
            let atom = &mut self.atoms[usize::from(*atom)];
            let [high, low] = atom.slot.unwrap_or_default().to_be_bytes();
            header.push(low);
            if atom.is_known(way) {
                set(header, at, high);
                continue;
            }
            set(header, at, high | NEW);
            let len = (atom.text.len() as u16).to_be_bytes();
            header.extend_from_slice(if long { &len } else { &len[1..] });
            header.extend_from_slice(&atom.text);
            atom.told[way.word] |= way.bit;
        }
    }

    /// What was written last; none when the frame's header stays as it is.
    #[inline]
    pub(super) fn header(&self, refs: &Refs) -> Option<Header<'_>> {
        let written = !self.header.is_empty();
        written.then_some(Header { bytes: &self.header, replaces: refs.len })
    }
}
