//! What is held back for a peer that is not heard: passed on when it is there again.
//!
//! When a way is cut, QUIC asks ever more rarely whether it is there again. The last of these
//! questions, passed on late, is answered at once, where the next one would come after as long again
//! as the way was cut. Of what is held, therefore, the newest is worth most.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::keys::LEN;

/// Datagrams held for a peer, at most: some of each of a hundred links.
const MOST: usize = 256;

/// What is older than this was asked again since, or nobody waits for it any more.
const STALE: Duration = Duration::from_secs(15);

/// What is held back for each peer, by the hash of its key: it may come back on another connection.
#[derive(Debug)]
pub struct Held<T> {
    peers: HashMap<[u8; LEN], VecDeque<(Duration, T)>>,
}

impl<T> Default for Held<T> {
    fn default() -> Held<T> {
        Held { peers: HashMap::new() }
    }
}

impl<T> Held<T> {
    /// Holds a datagram; true when an older one had to make room.
    pub fn hold(&mut self, now: Duration, peer: [u8; LEN], datagram: T) -> bool {
        let held = self.peers.entry(peer).or_default();
        let is_full = held.len() >= MOST;
        if is_full {
            held.pop_front();
        }
        held.push_back((now, datagram));
        is_full
    }

    /// All that is held for a peer and not stale, in order.
    pub fn release(&mut self, now: Duration, peer: &[u8; LEN]) -> Vec<T> {
        let held = self.peers.remove(peer).unwrap_or_default();
        let fresh = held.into_iter().filter(|(since, _)| now.saturating_sub(*since) < STALE);
        fresh.map(|(_, datagram)| datagram).collect()
    }

    /// Forgets what is stale; gives how much that was.
    pub fn expire(&mut self, now: Duration) -> usize {
        let mut stale = 0;
        self.peers.retain(|_, held| {
            let before = held.len();
            held.retain(|(since, _)| now.saturating_sub(*since) < STALE);
            stale += before - held.len();
            !held.is_empty()
        });
        stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: [u8; LEN] = [1; LEN];

    #[test]
    fn the_newest_are_released_once_and_in_order() {
        let (mut held, now) = (Held::default(), Duration::from_secs(1));
        let dropped = (0..MOST + 10).filter(|n| held.hold(now, PEER, *n)).count();
        assert_eq!(dropped, 10);
        assert_eq!(held.release(now, &[2; LEN]), []);
        assert_eq!(held.release(now, &PEER), (10..MOST + 10).collect::<Vec<_>>());
        assert_eq!(held.release(now, &PEER), []);
    }

    #[test]
    fn what_is_stale_is_forgotten() {
        let mut held = Held::default();
        held.hold(Duration::ZERO, PEER, 1);
        held.hold(STALE / 2, PEER, 2);
        assert_eq!(held.expire(STALE), 1);
        assert_eq!(held.release(STALE, &PEER), [2]);
        held.hold(Duration::ZERO, PEER, 3);
        assert_eq!(held.release(STALE, &PEER), []);
    }
}
