//! Whether anything at all came from an address while it was dialled: something that answers, but
//! not in QUIC, is no silent port.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

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

    /// Something came from `label`.
    pub(crate) fn note(&self, label: SocketAddr) {
        if self.expected.load(Relaxed) > 0
            && let Some(expected) = self.by_label.lock().get_mut(&label)
        {
            expected.came = true;
        }
    }
}

impl Answer {
    /// Whether something came.
    pub(crate) fn came(&self) -> bool {
        self.answers.by_label.lock().get(&self.label).is_some_and(|expected| expected.came)
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
