//! What one node seals for another, and a relay that hands over anything: it opens when it is what
//! was sealed, once, and never else.
//!
//! An input is a list of deeds: seal something, in one of the sender's lives or as somebody else;
//! or hand something over, whole, changed, cut, joined, or made up.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use macula_core::keys;
use macula_core::mesh::claim::{TAG, Tag};
use macula_core::mesh::key::MeshKey;
use macula_core::mesh::seal::{Kind, OVERHEAD, Opener, Sealer, open_name, seal_name};

use super::choices::Choices;

pub static KEY: LazyLock<MeshKey> =
    LazyLock::new(|| MeshKey::stretch(&keys::base(b"cookie"), "realm").expect("a key"));

const A: Tag = Tag([1; TAG]);
const B: Tag = Tag([2; TAG]);
const KINDS: [Kind; 3] = [Kind::Whole, Kind::First, Kind::Second];

/// Lives of the sender: as many as a receiver remembers.
const LIVES: usize = 4;

struct Sealed {
    bytes: Vec<u8>,
    /// None: not by the sender for B.
    says: Option<(Kind, Vec<u8>)>,
    opened: bool,
}

pub fn run(input: &[u8]) {
    let mut choices = Choices(input);
    let a = sender(input);
    let pairs = (0..LIVES as u8).map(|life| (a, B, [life; 6]));
    // Somebody else, and what B itself sends, which comes back to it.
    let pairs = pairs.chain([(Tag([3; TAG]), B, [0; 6]), (B, a, [0; 6])]);
    let mut sealers: Vec<_> =
        pairs.map(|(from, to, life)| Sealer::new(&KEY, from, to, life)).collect();
    let mut opener = Opener::new(a, B);
    let mut all: Vec<Sealed> = Vec::new();
    while !choices.0.is_empty() {
        let what = choices.next();
        match what % 4 {
            0 => {
                let by = choices.next() % sealers.len();
                let (kind, len) = (KINDS[what / 4 % 3], choices.next() % 32);
                let content = choices.take(len);
                let (prefix, rest) = content.split_at(content.len() / 2);
                let mut bytes = Vec::new();
                assert!(sealers[by].seal(kind, prefix, rest, &mut bytes));
                assert_eq!(bytes.len(), content.len() + OVERHEAD);
                let says = (by < LIVES).then_some((kind, content));
                all.push(Sealed { bytes, says, opened: false });
            }
            1 => {
                let len = choices.next();
                hand_over(&mut opener, &mut all, choices.take(len));
            }
            2 if !all.is_empty() => {
                let bytes = changed(&mut choices, &all);
                hand_over(&mut opener, &mut all, bytes);
            }
            _ => directory(&mut choices),
        }
    }
}

/// The sender of this input alone: a fuzzer that remembers what was sealed once would else bring it
/// along in another input, where it opens as well.
fn sender(input: &[u8]) -> Tag {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let mut tag = A;
    tag.0[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    tag
}

fn hand_over(opener: &mut Opener, all: &mut [Sealed], bytes: Vec<u8>) {
    let known = all.iter_mut().find(|sealed| sealed.bytes == bytes);
    let mut open = bytes;
    let result = opener.open(&KEY, &mut open);
    match (result, known) {
        (Ok((kind, content)), Some(sealed)) => {
            assert_eq!(sealed.says, Some((kind, content.to_vec())));
            assert!(!sealed.opened, "it opened twice");
            sealed.opened = true;
        }
        (Ok(opened), None) => panic!("{opened:?} was never sealed"),
        (Err(_), Some(sealed)) => assert!(sealed.opened || sealed.says.is_none()),
        (Err(_), None) => {}
    }
}

fn changed(choices: &mut Choices<'_>, all: &[Sealed]) -> Vec<u8> {
    let how = choices.next();
    let mut bytes = all[choices.next() % all.len()].bytes.clone();
    match how % 5 {
        0 | 1 => {}
        2 => {
            let at = choices.next() % bytes.len();
            bytes[at] ^= choices.next() as u8;
        }
        3 => bytes.truncate(choices.next()),
        _ => {
            let at = choices.next() % bytes.len();
            let other = &all[choices.next() % all.len()].bytes;
            bytes.truncate(at);
            bytes.extend(other.get(at..).unwrap_or_default());
        }
    }
    bytes
}

/// A name of the directory, sealed for one tag and read under another, or changed.
fn directory(choices: &mut Choices<'_>) {
    let len = choices.next() % 16;
    let name = String::from_utf8_lossy(&choices.take(len)).into_owned();
    let sealed = seal_name(&KEY, &A, &name, [choices.next() as u8; 12]);
    assert_eq!(open_name(&KEY, &A, &sealed), Some(name));
    assert_eq!(open_name(&KEY, &B, &sealed), None);
    let mut other = sealed.clone();
    let at = choices.next() % other.len();
    other[at] ^= choices.next() as u8;
    other.truncate(sealed.len() - choices.next() % 2);
    if other != sealed {
        assert_eq!(open_name(&KEY, &A, &other), None);
    }
}
