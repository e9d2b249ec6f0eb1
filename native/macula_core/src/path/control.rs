//! What the two ends of a link ask each other about the paths between them, sealed.
//!
//! ```text
//! 4 (1)  |  link (8)  |  counter (8)  |  AES-256-GCM ciphertext of: kind (1), token (8)  |  tag (16)
//! ```
//!
//! The keys come from the link's own TLS session, so that nothing recorded of one link is of use in
//! another one, and a replay window takes care of the rest. It looks the same on every path; the
//! first byte tells it from QUIC (`demux`), and the number of the link says whose it is.

use hkdf::Hkdf;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::keys::LEN;
use crate::replay::ReplayWindow;

/// The first byte: one of those that `demux` takes for sealed packets.
const FIRST: u8 = 4;

const COUNTER: usize = 8;
const BODY: usize = 1 + 8;
const TAG: usize = 16;

/// Bytes of a control packet.
pub const PACKET: usize = 1 + LINK + COUNTER + BODY + TAG;

const LINK: usize = 8;

/// Which link a control packet is about. Visible to whoever sees it, and only known from that.
pub type LinkId = [u8; LINK];

/// What one end says to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Is this path alive?
    Ping {
        /// To be repeated by the answer.
        token: u64,
        /// Whether the asking side sends its data this path.
        in_use: bool,
    },
    /// It is: the answer to the ping with this token, on the path that it came.
    Pong {
        /// Of the ping.
        token: u64,
    },
}

/// Seals and opens the control packets of one end of a link.
pub struct ControlSeal {
    link: LinkId,
    sealing: LessSafeKey,
    opening: LessSafeKey,
    counter: u64,
    window: ReplayWindow,
}

impl ControlSeal {
    /// For the end of a link that `dialled` or did not. `exporter`: keying material of the link's
    /// TLS session. None: the keys could not be made.
    pub fn new(exporter: &[u8; LEN], dialled: bool) -> Option<ControlSeal> {
        let hkdf = Hkdf::<Sha256>::new(None, exporter);
        let mut link = [0; LINK];
        hkdf.expand(b"macula path v1 link", &mut link).ok()?;
        let key = |info: &[u8]| {
            let mut key = Zeroizing::new([0; LEN]);
            hkdf.expand(info, &mut *key).ok()?;
            Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).ok()?))
        };
        let forth = key(b"macula path v1 dialler")?;
        let back = key(b"macula path v1 acceptor")?;
        let (sealing, opening) = if dialled { (forth, back) } else { (back, forth) };
        Some(ControlSeal { link, sealing, opening, counter: 0, window: ReplayWindow::default() })
    }

    /// The link's number, the same at both ends.
    pub fn link(&self) -> LinkId {
        self.link
    }

    /// The packet that says `control`. None only when AES-GCM fails, which it does not for lengths
    /// like these.
    pub fn seal(&mut self, control: Control) -> Option<[u8; PACKET]> {
        let mut packet = [0; PACKET];
        let counter = self.counter.to_be_bytes();
        self.counter += 1;
        let (header, rest) = packet.split_at_mut(1 + LINK + COUNTER);
        header[0] = FIRST;
        header[1..=LINK].copy_from_slice(&self.link);
        header[1 + LINK..].copy_from_slice(&counter);
        let (body, tag) = rest.split_at_mut(BODY);
        let (kind, token) = match control {
            Control::Ping { token, in_use: false } => (0, token),
            Control::Ping { token, in_use: true } => (1, token),
            Control::Pong { token } => (2, token),
        };
        body[0] = kind;
        body[1..].copy_from_slice(&token.to_be_bytes());
        let ad = Aad::from(&*header);
        let sealed = self.sealing.seal_in_place_separate_tag(nonce(counter), ad, body).ok()?;
        tag.copy_from_slice(sealed.as_ref());
        Some(packet)
    }

    /// What `packet` says; none when it is not the other end's, was changed or has come before.
    pub fn open(&mut self, packet: &[u8]) -> Option<Control> {
        let mut packet: [u8; PACKET] = packet.try_into().ok()?;
        let (header, body) = packet.split_at_mut(1 + LINK + COUNTER);
        let counter: [u8; COUNTER] = header[1 + LINK..].try_into().ok()?;
        let number = u64::from_be_bytes(counter);
        if !self.window.is_new(number) {
            return None;
        }
        let ad = Aad::from(&*header);
        let plain = self.opening.open_in_place(nonce(counter), ad, body).ok()?;
        self.window.note(number);
        let (kind, token) = plain.split_first()?;
        let token = u64::from_be_bytes(token.try_into().ok()?);
        match kind {
            0 => Some(Control::Ping { token, in_use: false }),
            1 => Some(Control::Ping { token, in_use: true }),
            2 => Some(Control::Pong { token }),
            _ => None,
        }
    }
}

impl std::fmt::Debug for ControlSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ControlSeal({:02x?})", self.link)
    }
}

/// The number of the link that `packet` says it is about; none when it is no control packet.
pub fn link_of(packet: &[u8]) -> Option<LinkId> {
    let (first, rest) = packet.split_first()?;
    (*first == FIRST && packet.len() == PACKET).then(|| rest.first_chunk().copied())?
}

fn nonce(counter: [u8; COUNTER]) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter);
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::demux;
    use proptest::prelude::*;

    fn ends() -> (ControlSeal, ControlSeal) {
        let end = |dialled| ControlSeal::new(&[7; LEN], dialled).unwrap();
        (end(true), end(false))
    }

    #[test]
    fn what_one_end_says_the_other_hears_once() {
        let (mut a, mut b) = ends();
        let said = [
            Control::Ping { token: 1, in_use: false },
            Control::Ping { token: u64::MAX, in_use: true },
            Control::Pong { token: 3 },
        ];
        for control in said {
            let packet = a.seal(control).unwrap();
            assert_eq!(demux::classify(&packet), demux::Kind::Sealed);
            assert_eq!(link_of(&packet), Some(b.link()));
            assert_eq!(b.open(&packet), Some(control));
            assert_eq!(b.open(&packet), None);
            assert_eq!(a.open(&packet), None, "an end took its own words for the other's");
        }
    }

    #[test]
    fn another_session_hears_nothing() {
        let (mut a, _) = ends();
        let mut other = ControlSeal::new(&[8; LEN], false).unwrap();
        assert_eq!(other.open(&a.seal(Control::Pong { token: 1 }).unwrap()), None);
    }

    proptest! {
        #[test]
        fn a_changed_packet_says_nothing(at in 0..PACKET, flip in 1u8..=255) {
            let (mut a, mut b) = ends();
            let mut packet = a.seal(Control::Ping { token: 5, in_use: true }).unwrap();
            packet[at] ^= flip;
            prop_assert_eq!(b.open(&packet), None);
        }

        #[test]
        fn anything_can_be_read(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            let (_, mut b) = ends();
            let _ = link_of(&packet);
            prop_assert_eq!(b.open(&packet), None);
        }
    }
}
