//! Labels: the address quinn knows a peer by, whatever address its datagrams come from.
//!
//! A peer's label is the address it was first reached at or heard from, which costs no state (a
//! flood from forged sources leaves nothing behind). Only what comes from elsewhere, and was proved
//! to come from that peer, has an entry here.

use std::collections::HashMap;
use std::net::SocketAddr;

/// The sources that differ from their label.
#[derive(Debug, Default)]
pub struct LabelTable {
    label_of: HashMap<SocketAddr, SocketAddr>,
}

impl LabelTable {
    /// Takes what comes from `source` as coming from `label` from now on.
    pub fn alias(&mut self, source: SocketAddr, label: SocketAddr) {
        if source == label {
            self.label_of.remove(&source);
        } else {
            self.label_of.insert(source, label);
        }
    }

    /// Forgets all sources of `label` but those for which `keep` holds.
    pub fn retain(&mut self, label: SocketAddr, keep: impl Fn(&SocketAddr) -> bool) {
        self.label_of.retain(|source, of| *of != label || keep(source));
    }

    /// Under which label quinn knows what came from `source`.
    pub fn label(&self, source: SocketAddr) -> SocketAddr {
        self.label_of.get(&source).copied().unwrap_or(source)
    }

    /// True when every source is its own label, which the hot path asks first.
    pub fn is_empty(&self) -> bool {
        self.label_of.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, n], 4433))
    }

    #[test]
    fn a_source_is_its_own_label_until_it_is_an_alias() {
        let mut table = LabelTable::default();
        assert_eq!(table.label(address(2)), address(2));
        table.alias(address(2), address(1));
        table.alias(address(3), address(1));
        table.alias(address(5), address(4));
        assert_eq!([2, 3, 5].map(|n| table.label(address(n))), [1, 1, 4].map(address));
        table.retain(address(1), |source| *source == address(3));
        assert_eq!([2, 3, 5].map(|n| table.label(address(n))), [2, 1, 4].map(address));
        table.retain(address(1), |_| false);
        table.retain(address(4), |_| false);
        assert!(table.is_empty());
    }

    #[test]
    fn a_source_that_becomes_a_label_is_no_alias() {
        let mut table = LabelTable::default();
        table.alias(address(2), address(1));
        table.alias(address(2), address(2));
        assert!(table.is_empty());
    }
}
