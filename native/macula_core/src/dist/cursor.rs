//! Reads numbers and terms across the parts of a frame, wherever these are cut.

const SMALL_INTEGER: u8 = 97;
const INTEGER: u8 = 98;
const SMALL_BIG: u8 = 110;
const ATOM_CACHE_REF: u8 = 82;
const ATOM_UTF8: u8 = 118;
const SMALL_ATOM_UTF8: u8 = 119;
const NEW_PID: u8 = 88;
const NEWER_REFERENCE: u8 = 90;

/// `id`, `serial` and `creation` of a process, as they are in a frame.
pub(super) type Pid = [u8; 12];

/// Where reading has come to. Every signal passes here: inlined, it takes a third fewer
/// instructions (`./dev bench core`).
pub(super) struct Cursor<'a, P> {
    part: &'a [u8],
    parts: P,
}

impl<'a, P: Iterator<Item = &'a [u8]>> Cursor<'a, P> {
    /// At the start of the frame that has these parts.
    #[inline]
    pub(super) fn new(parts: P) -> Cursor<'a, P> {
        Cursor { part: &[], parts }
    }

    #[inline]
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        loop {
            if let Some((bytes, rest)) = self.part.split_first_chunk() {
                self.part = rest;
                return Some(*bytes);
            }
            if !self.part.is_empty() {
                return self.gather();
            }
            self.part = self.parts.next()?;
        }
    }

    /// As [`Self::array`], of bytes that several parts hold.
    #[cold]
    fn gather<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            [*byte] = self.array()?;
        }
        Some(bytes)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Reads as many bytes as there is room for.
    pub(super) fn copy_to(&mut self, mut bytes: &mut [u8]) -> Option<()> {
        while !bytes.is_empty() {
            if self.part.is_empty() {
                self.part = self.parts.next()?;
            }
            let (now, rest) = self.part.split_at(bytes.len().min(self.part.len()));
            let (filled, empty) = bytes.split_at_mut(now.len());
            filled.copy_from_slice(now);
            (self.part, bytes) = (rest, empty);
        }
        Some(())
    }

    /// What the part at hand has left.
    #[inline]
    pub(super) fn ahead(&self) -> &'a [u8] {
        self.part
    }

    #[inline(always)]
    pub(super) fn skip(&mut self, mut bytes: usize) -> Option<()> {
        while bytes > self.part.len() {
            bytes -= self.part.len();
            self.part = self.parts.next()?;
        }
        self.part = self.part.split_at(bytes).1;
        Some(())
    }

    /// The pid that follows, without its node; none when another term does.
    #[inline(always)]
    pub(super) fn pid(&mut self) -> Option<Pid> {
        let [NEW_PID, atom @ ..] = self.array::<3>()? else {
            return None;
        };
        let node = self.atom(atom)?;
        self.skip(node)?;
        self.array()
    }

    /// The length of the atom that begins with these bytes; what follows is its text.
    #[inline(always)]
    fn atom(&mut self, [kind, len]: [u8; 2]) -> Option<usize> {
        match kind {
            SMALL_ATOM_UTF8 => Some(usize::from(len)),
            // Its text is in the frame's header.
            ATOM_CACHE_REF => Some(0),
            _ => self.long_atom([kind, len]),
        }
    }

    #[cold]
    fn long_atom(&mut self, [kind, len]: [u8; 2]) -> Option<usize> {
        match kind {
            ATOM_UTF8 => Some(usize::from(u16::from_be_bytes([len, self.byte()?]))),
            _ => None,
        }
    }

    /// Skips what may stand before a sender: a reference, or an integer.
    #[inline(always)]
    pub(super) fn skip_term(&mut self) -> Option<()> {
        match self.byte()? {
            SMALL_INTEGER => self.skip(1),
            INTEGER => self.skip(4),
            // Its sign has a byte of its own.
            SMALL_BIG => {
                let len = usize::from(self.byte()?);
                self.skip(1 + len)
            }
            NEWER_REFERENCE => {
                let [high, low, atom @ ..] = self.array::<4>()?;
                let words = usize::from(u16::from_be_bytes([high, low]));
                let node = self.atom(atom)?;
                self.skip(node + 4 + 4 * words)
            }
            _ => None,
        }
    }
}
