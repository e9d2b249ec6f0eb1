//! A peer that was spoken to and says nothing: has it started again?
//!
//! A node that starts again with another key cannot tell its peers that it forgot them (stateless
//! reset needs the former key). So a peer whose answer stays out is asked, on a connection of its
//! own, which life it is in.

use std::time::Duration;

/// How long an answer may stay out before the peer is asked the first time.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long the peer may take to say which life it is in. It is not asked again before.
pub const ANSWER: Duration = Duration::from_secs(2);

/// The longest pause between two questions, each pause being twice the one before: the network may
/// be cut for long.
const LONGEST: Duration = Duration::from_secs(8);

/// Watches one connection.
#[derive(Debug, Default)]
pub struct Silence {
    received: u64,
    sent: u64,
    unanswered_since: Option<Duration>,
    pause: Duration,
}

impl Silence {
    /// Looks at the counts of what was sent that asks for an answer, and of what was received, at
    /// the time `now`. True: ask the peer.
    pub fn look(&mut self, now: Duration, sent: u64, received: u64) -> bool {
        if received != self.received {
            *self = Silence { received, sent, ..Silence::default() };
            return false;
        }
        let Some(since) = self.unanswered_since else {
            if sent != self.sent {
                (self.unanswered_since, self.pause) = (Some(now), PATIENCE);
            }
            return false;
        };
        if now.saturating_sub(since) < self.pause {
            return false;
        }
        self.unanswered_since = Some(now);
        self.pause = (self.pause * 2).clamp(ANSWER, LONGEST);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_idle_peer_is_left_alone() {
        let mut silence = Silence::default();
        assert!((0..100).all(|at| !silence.look(ms(at * 500), 7, 7)));
    }

    #[test]
    fn a_silent_peer_is_asked_ever_more_rarely() {
        let mut silence = Silence::default();
        assert!(!silence.look(ms(0), 1, 1));
        let asked: Vec<u64> =
            (1..=60).map(|n| n * 500).filter(|at| silence.look(ms(*at), 2, 1)).collect();
        assert_eq!(asked, [1000, 3000, 7000, 15000, 23000]);
    }

    proptest! {
        /// As long as something comes between two looks, nobody is asked; and nobody is asked
        /// earlier than half a second after it was spoken to.
        #[test]
        fn who_answers_is_never_asked(
            looks in proptest::collection::vec((1u64..400, 0u64..3, 0u64..3), 1..200),
        ) {
            let mut silence = Silence::default();
            let (mut now, mut sent, mut received, mut heard) = (0, 0, 0, 0);
            for (pause, more_sent, more_received) in looks {
                now += pause;
                sent += more_sent;
                received += more_received;
                if more_received > 0 {
                    heard = now;
                }
                if silence.look(ms(now), sent, received) {
                    prop_assert!(now - heard >= 500);
                }
            }
        }
    }
}
