//! Whether anything at all came from an address while it was dialled: something that answers, but
//! not in QUIC, is no silent port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use macula_core::path::demux;
use parking_lot::Mutex;

/// What is said of such an address.
pub(crate) const NOT_IN_QUIC: &str = "something answers, but not in QUIC";

/// What came from the labels that are dialled now.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// As many as are expected: mostly none, and then a received datagram costs no lock.
    expected: AtomicUsize,
    by_label: Mutex<HashMap<SocketAddr, Expected>>,
}

#[derive(Debug, Default)]
struct Expected {
    dials: usize,
    came: bool,
    /// Something of it may have been QUIC.
    in_quic: bool,
}

/// One dial of a label, for as long as it lasts.
#[derive(Debug)]
pub(crate) struct Answer {
    answers: Arc<Answers>,
    label: SocketAddr,
}

impl Answers {
    /// From now on it is noted when something comes from `label`.
    pub(crate) fn expect(self: &Arc<Self>, label: SocketAddr) -> Answer {
        self.by_label.lock().entry(label).or_default().dials += 1;
        self.expected.fetch_add(1, Relaxed);
        Answer { answers: self.clone(), label }
    }

    /// `datagram` came from `label`.
    pub(crate) fn note(&self, label: SocketAddr, datagram: &[u8]) {
        if self.expected.load(Relaxed) > 0
            && let Some(expected) = self.by_label.lock().get_mut(&label)
        {
            expected.came = true;
            expected.in_quic |= demux::may_begin_quic(datagram);
        }
    }
}

impl Answer {
    /// Whether something came.
    pub(crate) fn came(&self) -> bool {
        self.is(|expected| expected.came)
    }

    /// Whether something came, and nothing of it was QUIC: however slow the way is, what answers
    /// does not speak it.
    pub(crate) fn is_foreign(&self) -> bool {
        self.is(|expected| expected.came && !expected.in_quic)
    }

    fn is(&self, so: impl FnOnce(&Expected) -> bool) -> bool {
        self.answers.by_label.lock().get(&self.label).is_some_and(so)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.answers.expected.fetch_sub(1, Relaxed);
        let mut by_label = self.answers.by_label.lock();
        if let Some(expected) = by_label.get_mut(&self.label) {
            expected.dials -= 1;
            if expected.dials == 0 {
                by_label.remove(&self.label);
            }
        }
    }
}
