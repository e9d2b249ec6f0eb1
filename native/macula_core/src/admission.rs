//! Who may try to get in: a bounded number of strangers at once, from everywhere and from each
//! address, and those who keep failing only slowly.
//!
//! A source address can be forged until something sent to it came back. So what comes unvalidated
//! takes no place from what is validated: forged packets cost an honest node of that address a
//! round trip (RFC 9000, 8.1.2), never its way in.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Strangers inside at once.
pub const STRANGERS: usize = 256;

/// Strangers inside at once from which on addresses have to be validated: the other places are for
/// those that are.
const CROWDED: usize = STRANGERS / 2;

/// Strangers inside at once of one address, validated and not. All nodes behind a NAT share one, and may all start
/// after the same power cut.
const OF_ONE_ADDRESS: usize = 64;

/// Failures an address may have at once: a node with a wrong cookie tries every few seconds.
const FAILURES: u32 = 30;

/// One failure is forgiven in this time. So a cookie is guessed once a second, not thousands of
/// times.
const FORGIVE: Duration = Duration::from_secs(1);

/// Addresses remembered. Beyond that only the limit for all counts.
const ADDRESSES: usize = 4096;

/// What to do with a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it in; [`Admission::leave`] must follow.
    Admit,
    /// Have it validate its address first.
    Validate,
    /// Turn it away.
    Refuse,
}

/// How a stranger's stay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is a stranger no more, or went away before its address was validated.
    Harmless,
    /// From a validated address it did not prove what it had to.
    Failed,
}

/// Strangers inside and failures not yet forgiven.
#[derive(Debug, Default)]
pub struct Admission {
    inside: usize,
    addresses: HashMap<IpAddr, Record>,
}

#[derive(Debug, Default)]
struct Record {
    validated: usize,
    unvalidated: usize,
    failures: u32,
    /// When the last failure was forgiven, or the first one counted.
    since: Duration,
}

impl Admission {
    /// Judges a stranger at the time `now` (any clock that only goes forward). `validated`: what
    /// was sent to its address came back.
    pub fn knock(&mut self, now: Duration, address: IpAddr, validated: bool) -> Verdict {
        let key = network(address);
        let (full, must_validate) = match self.addresses.get_mut(&key) {
            None => (false, false),
            Some(record) => {
                record.forgive(now);
                let failing = record.failures >= FAILURES;
                let full = failing || record.validated >= OF_ONE_ADDRESS;
                (full, full || record.unvalidated >= OF_ONE_ADDRESS)
            }
        };
        if !validated && (must_validate || self.inside >= CROWDED) {
            return Verdict::Validate;
        }
        if full || self.inside >= STRANGERS {
            return Verdict::Refuse;
        }
        self.inside += 1;
        if let Some(record) = self.record(now, key) {
            *record.inside(validated) += 1;
        }
        Verdict::Admit
    }

    /// A stranger that was admitted is inside no more. `validated`: as it was when it knocked.
    pub fn leave(&mut self, now: Duration, address: IpAddr, validated: bool, outcome: Outcome) {
        self.inside = self.inside.saturating_sub(1);
        let Some(record) = self.addresses.get_mut(&network(address)) else {
            return;
        };
        let inside = record.inside(validated);
        *inside = inside.saturating_sub(1);
        record.forgive(now);
        if outcome == Outcome::Failed {
            if record.failures == 0 {
                record.since = now;
            }
            record.failures += 1;
        }
        if record.is_blank() {
            self.addresses.remove(&network(address));
        }
    }

    /// How many strangers are inside.
    pub fn inside(&self) -> usize {
        self.inside
    }

    fn record(&mut self, now: Duration, key: IpAddr) -> Option<&mut Record> {
        if self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&key) {
            self.addresses.retain(|_, record| {
                record.forgive(now);
                !record.is_blank()
            });
            if self.addresses.len() >= ADDRESSES {
                return None;
            }
        }
        Some(self.addresses.entry(key).or_default())
    }
}

impl Record {
    fn inside(&mut self, validated: bool) -> &mut usize {
        if validated { &mut self.validated } else { &mut self.unvalidated }
    }

    fn forgive(&mut self, now: Duration) {
        let periods = now.saturating_sub(self.since).as_nanos() / FORGIVE.as_nanos();
        let forgiven = u32::try_from(periods).unwrap_or(u32::MAX).min(self.failures);
        self.failures -= forgiven;
        self.since = self.since.saturating_add(FORGIVE.saturating_mul(forgiven));
    }

    fn is_blank(&self) -> bool {
        self.validated == 0 && self.unvalidated == 0 && self.failures == 0
    }
}

/// One site holds a whole /64 of IPv6 (RFC 6177), and could use each address of it once.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn address(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    fn admit(admission: &mut Admission, count: usize, address: IpAddr) {
        for _ in 0..count {
            assert_eq!(admission.knock(NOW, address, true), Verdict::Admit);
        }
    }

    #[test]
    fn the_places_of_one_address_are_limited() {
        let mut admission = Admission::default();
        admit(&mut admission, OF_ONE_ADDRESS, address(1));
        assert_eq!(admission.knock(NOW, address(1), false), Verdict::Validate);
        assert_eq!(admission.knock(NOW, address(1), true), Verdict::Refuse);
        assert_eq!(admission.knock(NOW, address(2), false), Verdict::Admit);
        admission.leave(NOW, address(1), true, Outcome::Harmless);
        assert_eq!(admission.knock(NOW, address(1), true), Verdict::Admit);
    }

    #[test]
    fn a_crowd_has_to_validate_and_a_full_house_refuses() {
        let mut admission = Admission::default();
        (0..CROWDED).for_each(|n| admit(&mut admission, 1, address(n as u32)));
        assert_eq!(admission.knock(NOW, address(9999), false), Verdict::Validate);
        (CROWDED..STRANGERS).for_each(|n| admit(&mut admission, 1, address(n as u32)));
        assert_eq!(admission.knock(NOW, address(9999), true), Verdict::Refuse);
        assert_eq!(admission.inside(), STRANGERS);
    }

    #[test]
    fn who_keeps_failing_is_admitted_once_a_second() {
        let mut admission = Admission::default();
        let mut admitted = 0;
        // Sixty seconds, a hundred tries each.
        for at in 0..6000 {
            let now = NOW + Duration::from_millis(at * 10);
            if admission.knock(now, address(1), true) == Verdict::Admit {
                admitted += 1;
                admission.leave(now, address(1), true, Outcome::Failed);
            }
        }
        assert!((80..=91).contains(&admitted), "{admitted}");
        // A quiet minute later all is forgiven, and forgotten.
        let later = NOW + Duration::from_secs(120);
        assert_eq!(admission.knock(later, address(1), false), Verdict::Admit);
        admission.leave(later, address(1), false, Outcome::Harmless);
        assert!(admission.addresses.is_empty());
    }

    #[test]
    fn a_site_of_ipv6_is_one_address() {
        let mut admission = Admission::default();
        for n in 0..OF_ONE_ADDRESS {
            admit(&mut admission, 1, format!("2001:db8::{n:x}").parse().unwrap());
        }
        let verdict = |admission: &mut Admission, text: &str| {
            admission.knock(NOW, text.parse().unwrap(), true)
        };
        assert_eq!(verdict(&mut admission, "2001:db8::ffff"), Verdict::Refuse);
        assert_eq!(verdict(&mut admission, "2001:db8:0:1::1"), Verdict::Admit);
        // An IPv4 address is the same in IPv6 clothes.
        admit(&mut admission, OF_ONE_ADDRESS, address(1));
        assert_eq!(verdict(&mut admission, "::ffff:10.0.0.1"), Verdict::Refuse);
    }

    proptest! {
        /// Whatever comes from whom, in whatever order: the house is never over full, memory is
        /// bounded, and once all have left and time has passed, nothing is left of them.
        #[test]
        fn nothing_grows_without_bound(
            knocks in proptest::collection::vec((0u32..6000, any::<bool>(), any::<bool>(), 0u64..50), 1..9000),
        ) {
            let mut admission = Admission::default();
            let (mut now, mut inside) = (NOW, Vec::new());
            for (n, validated, failed, pause) in knocks {
                now += Duration::from_millis(pause);
                if admission.knock(now, address(n), validated) == Verdict::Admit {
                    inside.push((n, validated, failed));
                } else if let Some((n, validated, failed)) = inside.pop() {
                    let outcome = if failed { Outcome::Failed } else { Outcome::Harmless };
                    admission.leave(now, address(n), validated, outcome);
                }
                prop_assert!(admission.inside() <= STRANGERS);
                prop_assert_eq!(admission.inside(), inside.len());
                prop_assert!(admission.addresses.len() <= ADDRESSES);
            }
            for (n, validated, _) in inside.drain(..) {
                admission.leave(now, address(n), validated, Outcome::Harmless);
            }
            let later = now + Duration::from_secs(6000);
            for record in admission.addresses.values_mut() {
                record.forgive(later);
                prop_assert!(record.is_blank());
            }
        }

        /// Strangers whose address is forged never keep a node of that address out.
        #[test]
        fn forged_sources_lock_nobody_out(forged in proptest::collection::vec((0u32..3, any::<bool>()), 0..2000)) {
            let mut admission = Admission::default();
            let mut inside = Vec::new();
            for (n, leaves) in forged {
                if admission.knock(NOW, address(n), false) == Verdict::Admit {
                    inside.push(n);
                }
                if leaves && let Some(n) = inside.pop() {
                    // Nothing sent to a forged address comes back, so it is never validated.
                    admission.leave(NOW, address(n), false, Outcome::Harmless);
                }
                prop_assert_eq!(admission.knock(NOW, address(1), true), Verdict::Admit);
                admission.leave(NOW, address(1), true, Outcome::Harmless);
            }
        }
    }
}
