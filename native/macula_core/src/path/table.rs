//! Labels and paths: the address quinn knows a peer by, and the address its datagrams really take.
//!
//! A peer's label is the address it was first reached at or heard from, which costs no state (a
//! flood from spoofed sources leaves nothing behind). Only a link whose datagrams must go elsewhere
//! has an entry here.

use std::collections::HashMap;
use std::net::SocketAddr;

/// The paths that differ from their label.
#[derive(Debug, Default)]
pub struct PathTable {
    path_of: HashMap<SocketAddr, SocketAddr>,
    label_of: HashMap<SocketAddr, SocketAddr>,
}

impl PathTable {
    /// Sends the datagrams of `label` to `path` from now on, and takes what comes from `path` as
    /// coming from `label`. A path belongs to one label: its former one goes back to itself.
    pub fn attach(&mut self, label: SocketAddr, path: SocketAddr) {
        self.detach(label);
        if let Some(former) = self.label_of.remove(&path) {
            self.path_of.remove(&former);
        }
        if label != path {
            self.path_of.insert(label, path);
            self.label_of.insert(path, label);
        }
    }

    /// Forgets the path of `label`: it is its own path again.
    pub fn detach(&mut self, label: SocketAddr) {
        if let Some(path) = self.path_of.remove(&label) {
            self.label_of.remove(&path);
        }
    }

    /// Where datagrams for `label` go.
    pub fn path(&self, label: SocketAddr) -> SocketAddr {
        self.path_of.get(&label).copied().unwrap_or(label)
    }

    /// Under which label quinn knows what came from `source`.
    pub fn label(&self, source: SocketAddr) -> SocketAddr {
        self.label_of.get(&source).copied().unwrap_or(source)
    }

    /// True when every label is its own path, which the hot path asks first.
    pub fn is_empty(&self) -> bool {
        self.path_of.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, n], 4433))
    }

    #[test]
    fn a_label_is_its_own_path_until_one_is_attached() {
        let mut table = PathTable::default();
        assert_eq!(table.path(address(1)), address(1));
        assert_eq!(table.label(address(1)), address(1));
        table.attach(address(1), address(2));
        assert_eq!(table.path(address(1)), address(2));
        assert_eq!(table.label(address(2)), address(1));
        table.detach(address(1));
        assert!(table.is_empty());
        assert_eq!(table.label(address(2)), address(2));
    }

    proptest! {
        /// What is sent to a label's path comes back under that label, after any history.
        #[test]
        fn both_directions_agree(steps in proptest::collection::vec((any::<bool>(), 1u8..6, 1u8..12), 0..60)) {
            let mut table = PathTable::default();
            for (attach, label, path) in steps {
                if attach {
                    table.attach(address(label), address(path));
                } else {
                    table.detach(address(label));
                }
            }
            prop_assert_eq!(table.path_of.len(), table.label_of.len());
            for (label, path) in &table.path_of {
                prop_assert_ne!(label, path);
                prop_assert_eq!(table.label(*path), *label);
            }
        }
    }
}
