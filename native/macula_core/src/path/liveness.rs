//! Whether the peer of an established link is gone, from "port unreachable" reports.
//!
//! A killed process sends no goodbye, but its host answers our next datagrams with ICMP port
//! unreachable. One such report may be stale, and any number of them forged (RFC 5927), so they only
//! start a trial, in which the peer is asked for a sign of life: the link is given up when reports
//! keep coming and nothing at all arrives from the peer meanwhile. Silence alone proves nothing and
//! is left to `net_ticktime`.

use std::time::Duration;

/// Reports needed: the first may concern a datagram of long ago.
pub const REPORTS: u32 = 3;

/// How long the peer must stay mute. Within it quinn repeats its unanswered datagrams several
/// times on a LAN, where round trips take a millisecond or so.
pub const TRIAL: Duration = Duration::from_millis(500);

/// How many round trips the peer has to answer in, where these are long.
pub const ROUND_TRIPS: u32 = 3;

/// A trial that gets no further report for this long is over: the path works or is merely silent.
pub const FORGET: Duration = Duration::from_secs(10);

/// What is known of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No reason for doubt.
    Alive,
    /// On trial: ask it for a sign of life, and ask here again.
    Doubtful,
    /// Gone.
    Gone,
}

#[derive(Debug)]
struct Trial {
    began: Duration,
    last: Duration,
    reports: u32,
    received: u64,
}

/// The trial of one link, if there is one. Times are since any fixed moment.
#[derive(Debug, Default)]
pub struct Liveness {
    trial: Option<Trial>,
}

impl Liveness {
    /// A datagram for the peer came back as unreachable at `now`; `received` is the number of
    /// datagrams ever received from it.
    pub fn unreachable(&mut self, now: Duration, received: u64) {
        match &mut self.trial {
            Some(trial) => {
                trial.reports += 1;
                trial.last = now;
            }
            None => {
                self.trial = Some(Trial { began: now, last: now, reports: 1, received });
            }
        }
    }

    /// The verdict at `now`, when `received` datagrams have ever arrived from the peer, which answers
    /// in `rtt` at best.
    pub fn verdict(&mut self, now: Duration, received: u64, rtt: Duration) -> Verdict {
        let Some(trial) = &self.trial else {
            return Verdict::Alive;
        };
        let heard = received != trial.received;
        let forgotten = now.saturating_sub(trial.last) > FORGET;
        if heard || forgotten {
            self.trial = None;
            return Verdict::Alive;
        }
        let over = now.saturating_sub(trial.began) >= TRIAL.max(rtt * ROUND_TRIPS);
        if over && trial.reports >= REPORTS { Verdict::Gone } else { Verdict::Doubtful }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn repeated_reports_and_silence_are_death() {
        let mut liveness = Liveness::default();
        assert_eq!(liveness.verdict(Duration::ZERO, 7, MS), Verdict::Alive);
        for ms in [0, 30, 90] {
            liveness.unreachable(ms * MS, 7);
            assert_eq!(liveness.verdict(ms * MS, 7, MS), Verdict::Doubtful);
        }
        assert_eq!(liveness.verdict(TRIAL, 7, MS), Verdict::Gone);
    }

    #[test]
    fn one_datagram_from_the_peer_ends_the_trial() {
        let mut liveness = Liveness::default();
        for ms in 0..20 {
            liveness.unreachable(ms * MS, 7);
        }
        assert_eq!(liveness.verdict(TRIAL * 2, 8, MS), Verdict::Alive);
        assert_eq!(liveness.verdict(TRIAL * 3, 8, MS), Verdict::Alive);
    }

    #[test]
    fn a_distant_peer_has_longer() {
        let mut liveness = Liveness::default();
        for ms in [0, 100, 200] {
            liveness.unreachable(ms * MS, 7);
        }
        let rtt = TRIAL;
        assert_eq!(liveness.verdict(rtt * ROUND_TRIPS - MS, 7, rtt), Verdict::Doubtful);
        assert_eq!(liveness.verdict(rtt * ROUND_TRIPS, 7, rtt), Verdict::Gone);
    }

    #[test]
    fn few_reports_never_kill() {
        let mut liveness = Liveness::default();
        liveness.unreachable(Duration::ZERO, 0);
        liveness.unreachable(1 * MS, 0);
        assert_eq!(liveness.verdict(FORGET, 0, MS), Verdict::Doubtful);
        assert_eq!(liveness.verdict(FORGET + 2 * MS, 0, MS), Verdict::Alive);
    }
}
