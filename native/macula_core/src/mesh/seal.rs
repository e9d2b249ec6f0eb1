//! Sealing: what two nodes send each other through relays, only they can open.
//!
//! ```text
//! nonce (12): session (6), counter (6)  |  AES-256-GCM ciphertext of: kind (1), content  |  tag (16)
//! ```
//!
//! There is a key for each pair of nodes, direction and session; a sender takes a random session
//! each time it starts, so no nonce comes twice under one key. Both tags are authenticated beside
//! it. A relay that changes, repeats or misdirects anything is noticed. Sessions of a sender that
//! was stopped long ago can still be opened: what is sealed here must either be protected against
//! repetition by itself (QUIC is) or carry a token of the receiver's.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::claim::{TAG, Tag};
use super::key::{MeshKey, Session};
use crate::replay::ReplayWindow;

/// Bytes that sealing adds.
pub const OVERHEAD: usize = NONCE + 1 + GCM_TAG;

/// How many of these are in front of the content.
pub const FRONT: usize = NONCE + 1;

const NONCE: usize = 12;
const GCM_TAG: usize = 16;

/// Datagrams sealed under one key, at most: far below what AES-GCM bears (NIST SP 800-38D, 8.3),
/// and below the counter's end. Sixteen minutes of a million datagrams a second.
const MAX_SEALED: u64 = 1 << 30;

/// Sessions of one sender that are remembered: it has one, another after it started again or
/// renewed it, and what is still under way of the one before.
const SESSIONS: usize = 4;

/// What is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole datagram.
    Whole,
    /// The first half of one, which begins with the number of the datagram.
    First,
    /// The second half of one.
    Second,
}

/// Why something cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It is too short, or of a kind of a later version.
    Malformed,
    /// It was not sealed by that sender, for this receiver, under this cookie; or was changed.
    Forged,
    /// It came before, or is too old to tell.
    Replayed,
}

/// Seals what one node sends to another.
pub struct Sealer {
    key: Option<LessSafeKey>,
    session: Session,
    counter: u64,
    ad: [u8; 2 * TAG],
}

/// Opens what one node sends to another.
pub struct Opener {
    from: Tag,
    to: Tag,
    /// The one used last comes first.
    sessions: Vec<Opened>,
}

struct Opened {
    session: Session,
    key: LessSafeKey,
    window: ReplayWindow,
}

impl Sealer {
    /// Seals what `from` sends to `to`. `session`: fresh random bytes.
    pub fn new(key: &MeshKey, from: Tag, to: Tag, session: Session) -> Sealer {
        Sealer {
            key: aead(&*key.sealing(&from, &to, &session)),
            session,
            counter: 0,
            ad: both(&from, &to),
        }
    }

    /// Whether it is time for another one, with a new session.
    pub fn is_worn(&self) -> bool {
        self.counter >= MAX_SEALED
    }

    /// Adds `prefix` and `content`, sealed together, to `out`. False, and nothing is added, when
    /// too much was sealed already.
    pub fn seal(&mut self, kind: Kind, prefix: &[u8], content: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(key) = self.key.as_ref().filter(|_| self.counter < 2 * MAX_SEALED) else {
            return false;
        };
        let mut nonce = [0; NONCE];
        nonce[..6].copy_from_slice(&self.session);
        nonce[6..].copy_from_slice(&self.counter.to_be_bytes()[2..]);
        self.counter += 1;
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.push(kind.code());
        out.extend_from_slice(prefix);
        out.extend_from_slice(content);
        let (nonce, ad) = (Nonce::assume_unique_for_key(nonce), Aad::from(&self.ad));
        match key.seal_in_place_separate_tag(nonce, ad, &mut out[start..]) {
            Ok(tag) => out.extend_from_slice(tag.as_ref()),
            Err(_) => {
                out.truncate(start - NONCE);
                return false;
            }
        }
        true
    }
}

impl Opener {
    /// Opens what `from` sends to `to`.
    pub fn new(from: Tag, to: Tag) -> Opener {
        Opener { from, to, sessions: Vec::with_capacity(SESSIONS) }
    }

    /// Opens `sealed` in place and gives what is inside.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open<'a>(
        &mut self,
        mesh: &MeshKey,
        sealed: &'a mut [u8],
    ) -> Result<(Kind, &'a mut [u8]), OpenError> {
        let (nonce, content) =
            sealed.split_first_chunk_mut::<NONCE>().ok_or(OpenError::Malformed)?;
        let [s0, s1, s2, s3, s4, s5, counter @ ..] = *nonce;
        let session = [s0, s1, s2, s3, s4, s5];
        let counter = counter.iter().fold(0, |counter, byte| counter << 8 | u64::from(*byte));
        let known = self.sessions.iter().position(|opened| opened.session == session);
        let mut opened = match known {
            Some(0) => None,
            Some(at) => Some(self.sessions.remove(at)),
            // Only a sender that holds the key can make one be remembered.
            None => Some(self.begin(mesh, session).ok_or(OpenError::Forged)?),
        };
        let current = match &mut opened {
            Some(opened) => opened,
            None => self.sessions.first_mut().ok_or(OpenError::Forged)?,
        };
        let result = current.open(both(&self.from, &self.to), *nonce, counter, content);
        if let Some(opened) = opened
            && (known.is_some() || result.is_ok())
        {
            self.sessions.truncate(SESSIONS - 1);
            let at = if result.is_ok() { 0 } else { known.unwrap_or(0) };
            self.sessions.insert(at.min(self.sessions.len()), opened);
        }
        let plain = result?;
        let (kind, content) = plain.split_first_mut().ok_or(OpenError::Malformed)?;
        Ok((Kind::from_code(*kind).ok_or(OpenError::Malformed)?, content))
    }

    fn begin(&self, mesh: &MeshKey, session: Session) -> Option<Opened> {
        let key = aead(&*mesh.sealing(&self.from, &self.to, &session))?;
        Some(Opened { session, key, window: ReplayWindow::default() })
    }
}

impl Opened {
    fn open<'a>(
        &mut self,
        ad: [u8; 2 * TAG],
        nonce: [u8; NONCE],
        counter: u64,
        content: &'a mut [u8],
    ) -> Result<&'a mut [u8], OpenError> {
        if !self.window.is_new(counter) {
            return Err(OpenError::Replayed);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = self.key.open_in_place(nonce, Aad::from(ad), content);
        let plain = plain.map_err(|_| OpenError::Forged)?;
        self.window.note(counter);
        Ok(plain)
    }
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Whole => 0,
            Kind::First => 1,
            Kind::Second => 2,
        }
    }

    fn from_code(code: u8) -> Option<Kind> {
        [Kind::Whole, Kind::First, Kind::Second].into_iter().find(|kind| kind.code() == code)
    }
}

/// A name is padded to a multiple of this: its length would tell a relay much of it.
const BLOCK: usize = 64;

/// What follows the name in its last block, before zeros (ISO/IEC 7816-4).
const END: u8 = 0x80;

/// Seals a name under the directory's key with a random nonce: nodes of a cookie write so few that
/// no nonce comes twice (NIST SP 800-38D, 8.2.2).
pub fn seal_name(key: &MeshKey, tag: &Tag, name: &str, nonce: [u8; NONCE]) -> Vec<u8> {
    let mut out = nonce.to_vec();
    let mut text = padded(name);
    let nonce = Nonce::assume_unique_for_key(nonce);
    if let Some(key) = aead(&*key.directory())
        && key.seal_in_place_append_tag(nonce, Aad::from(tag.0), &mut text).is_ok()
    {
        out.append(&mut text);
    }
    out
}

/// The name sealed for the directory as that of the holder of `tag`.
pub fn open_name(key: &MeshKey, tag: &Tag, sealed: &[u8]) -> Option<String> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE>()?;
    let mut text = text.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let padded = aead(&*key.directory())?.open_in_place(nonce, Aad::from(tag.0), &mut text).ok()?;
    String::from_utf8(unpadded(padded)?.to_vec()).ok()
}

fn padded(name: &str) -> Vec<u8> {
    let mut text = name.as_bytes().to_vec();
    text.push(END);
    text.resize(text.len().next_multiple_of(BLOCK), 0);
    text
}

fn unpadded(text: &[u8]) -> Option<&[u8]> {
    let last = text.iter().rposition(|byte| *byte != 0)?;
    text.get(..last).filter(|_| text.get(last) == Some(&END))
}

fn aead(key: &[u8]) -> Option<LessSafeKey> {
    // Fails only for keys of another length.
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?))
}

fn both(from: &Tag, to: &Tag) -> [u8; 2 * TAG] {
    let mut both = [0; 2 * TAG];
    both[..TAG].copy_from_slice(&from.0);
    both[TAG..].copy_from_slice(&to.0);
    both
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::key::tests::KEY;
    use crate::relay::message::MAX_SEALED;
    use proptest::prelude::*;

    fn pair() -> (Tag, Tag) {
        (Tag([1; TAG]), Tag([2; TAG]))
    }

    fn sealed(sealer: &mut Sealer, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(sealer.seal(Kind::Whole, &[], content, &mut out));
        assert_eq!(out.len(), content.len() + OVERHEAD);
        out
    }

    #[test]
    fn what_is_sealed_opens_once_for_its_receiver() {
        let (a, b) = pair();
        let (mut sealer, mut opener) = (Sealer::new(&KEY, a, b, [7; 6]), Opener::new(a, b));
        let first = sealed(&mut sealer, b"first");
        let second = sealed(&mut sealer, b"second");
        let (kind, content) = (Kind::Whole, b"second".to_vec());
        assert_eq!(opener.open(&KEY, &mut second.clone()), Ok((kind, &mut content.clone()[..])));
        assert_eq!(opener.open(&KEY, &mut second.clone()), Err(OpenError::Replayed));
        assert_eq!(opener.open(&KEY, &mut first.clone()).unwrap().1, b"first");
        for (from, to) in [(b, a), (a, a), (b, b)] {
            let mut stranger = Opener::new(from, to);
            assert_eq!(stranger.open(&KEY, &mut first.clone()), Err(OpenError::Forged));
            assert!(stranger.sessions.is_empty());
        }
    }

    #[test]
    fn a_sender_that_starts_again_is_understood_at_once() {
        let (a, b) = pair();
        let mut opener = Opener::new(a, b);
        for life in 0..10 {
            let mut sealer = Sealer::new(&KEY, a, b, [life; 6]);
            let first = sealed(&mut sealer, b"first");
            for _ in 0..2 {
                assert!(opener.open(&KEY, &mut sealed(&mut sealer, b"hello")).is_ok());
            }
            assert!(opener.open(&KEY, &mut first.clone()).is_ok());
            assert_eq!(opener.open(&KEY, &mut first.clone()), Err(OpenError::Replayed));
            assert!(opener.sessions.len() <= SESSIONS);
        }
    }

    #[test]
    fn names_of_the_directory_open_for_their_tag() {
        let (a, b) = pair();
        let sealed = seal_name(&KEY, &a, "a@host", [3; NONCE]);
        assert!(!sealed.windows(6).any(|bytes| bytes == b"a@host"));
        assert_eq!(open_name(&KEY, &a, &sealed).as_deref(), Some("a@host"));
        assert_eq!(open_name(&KEY, &b, &sealed), None);
        assert_eq!(open_name(&KEY, &a, &sealed[..5]), None);
    }

    proptest! {
        /// Whatever a name is, a relay keeps the whole of it and learns its length to a block.
        #[test]
        fn the_length_of_a_name_does_not_show(name in ".{0,255}", other in "[a-z]{0,63}") {
            let (a, _) = pair();
            let sealed = seal_name(&KEY, &a, &name, [3; NONCE]);
            prop_assert_eq!(open_name(&KEY, &a, &sealed), Some(name));
            prop_assert!(sealed.len() <= MAX_SEALED);
            prop_assert_eq!((sealed.len() - NONCE - GCM_TAG) % BLOCK, 0);
            let one_block = seal_name(&KEY, &a, &other, [3; NONCE]);
            prop_assert_eq!(one_block.len(), NONCE + BLOCK + GCM_TAG);
        }

        /// What was sealed by somebody who pads in another way is no name.
        #[test]
        fn padding_is_strict(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            match unpadded(&text) {
                Some(name) => {
                    let zeros = text.len() - name.len() - 1;
                    prop_assert_eq!([name, &[END], &vec![0; zeros][..]].concat(), text);
                }
                None => prop_assert!(text.iter().rfind(|byte| **byte != 0) != Some(&END)),
            }
        }

        /// Whatever a relay makes of something sealed, it is either the same or refused.
        #[test]
        fn nothing_changed_opens(
            content in proptest::collection::vec(any::<u8>(), 0..64),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
            cut in any::<prop::sample::Index>(),
        ) {
            let (a, b) = pair();
            let (mut sealer, mut opener) = (Sealer::new(&KEY, a, b, [7; 6]), Opener::new(a, b));
            let good = sealed(&mut sealer, &content);
            let mut changed = good.clone();
            changed[at.index(good.len())] ^= flip;
            prop_assert_eq!(opener.open(&KEY, &mut changed), Err(OpenError::Forged));
            let len = cut.index(good.len());
            prop_assert!(opener.open(&KEY, &mut good[..len].to_vec()).is_err());
            prop_assert!(opener.sessions.is_empty());
            let mut good = good;
            prop_assert_eq!(opener.open(&KEY, &mut good).unwrap().1, &content[..]);
        }
    }
}
