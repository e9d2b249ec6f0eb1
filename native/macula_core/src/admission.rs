//! Who may try to get in: a bounded number of strangers at once, from everywhere and from each
//! address, and those who keep failing only slowly.
//!
//! A source address can be forged until something sent to it came back. So what comes unvalidated
//! takes no place from what is validated: forged packets cost an honest node of that address a
//! round trip (RFC 9000, 8.1.2), never its way in. And those who hold a place without getting on
//! lose it to those who come after: an honest node needs it for milliseconds.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::relay::limits::Bucket;

/// Strangers inside at once.
pub const STRANGERS: usize = 256;

/// Strangers inside at once from which on addresses have to be validated: the other places are for
/// those that are.
const CROWDED: usize = STRANGERS / 2;

/// Strangers inside at once of one address, validated and not. All nodes behind a NAT share one,
/// and may all start after the same power cut.
const OF_ONE_ADDRESS: usize = 64;

/// Strangers of one address that are let in in a second, validated and not, and as many at once. All
/// nodes of a large site are in within seconds, and one that comes and goes all the time leaves
/// others their turn: each costs some tenths of a millisecond of CPU.
const OF_ONE_ADDRESS_A_SECOND: u64 = 350;

/// Failures an address may have at once: a node with a wrong cookie tries every few seconds.
const FAILURES: u32 = 30;

/// One failure is forgiven in this time. So a cookie is guessed once a second, not thousands of
/// times.
const FORGIVE: Duration = Duration::from_secs(1);

/// Addresses remembered. Beyond that only the limit for all counts.
const ADDRESSES: usize = 4096;

/// Stands for a stranger inside.
pub type Pass = u64;

/// What to do with a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it in; [`Admission::leave`] must follow.
    Admit(Pass),
    /// Let it in, and turn out the other one, which has been inside the longest.
    Replace(Pass, Pass),
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
    last: Pass,
    /// In the order they came.
    inside: BTreeMap<Pass, Stranger>,
    addresses: HashMap<IpAddr, Record>,
}

#[derive(Clone, Copy, Debug)]
struct Stranger {
    address: IpAddr,
    validated: bool,
}

#[derive(Debug, Default)]
struct Record {
    validated: usize,
    unvalidated: usize,
    failures: u32,
    /// How many more may come at once, unvalidated and validated.
    allowance: [Option<Bucket>; 2],
    /// When the last failure was forgiven, or the first one counted.
    since: Duration,
}

impl Admission {
    /// Judges a stranger at the time `now` (any clock that only goes forward). `validated`: what
    /// was sent to its address came back.
    pub fn knock(&mut self, now: Duration, address: IpAddr, validated: bool) -> Verdict {
        let address = network(address);
        let record = self.addresses.get_mut(&address);
        let (failing, hasty, full, unvalidated) =
            record.map_or((false, false, false, 0), |record| {
                record.forgive(now);
                let (failing, hasty) =
                    (record.failures >= FAILURES, record.is_hasty(now, validated));
                (failing, hasty, record.validated >= OF_ONE_ADDRESS, record.unvalidated)
            });
        let suspicious = failing || hasty || full || unvalidated >= OF_ONE_ADDRESS;
        if !validated && (suspicious || self.inside.len() >= CROWDED) {
            return Verdict::Validate;
        }
        if failing || hasty {
            return Verdict::Refuse;
        }
        let oldest = if full {
            self.oldest(|stranger| stranger.address == address && stranger.validated)
        } else if self.inside.len() >= STRANGERS {
            self.oldest(|_| true)
        } else {
            None
        };
        if let Some(oldest) = oldest {
            self.leave(now, oldest, Outcome::Harmless);
        }
        let pass = self.admit(now, Stranger { address, validated });
        oldest.map_or(Verdict::Admit(pass), |oldest| Verdict::Replace(pass, oldest))
    }

    /// A stranger is inside no more. One that was turned out already is of no account.
    pub fn leave(&mut self, now: Duration, pass: Pass, outcome: Outcome) {
        let Some(Stranger { address, validated }) = self.inside.remove(&pass) else {
            return;
        };
        let Some(record) = self.addresses.get_mut(&address) else {
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
        if record.is_blank(now) {
            self.addresses.remove(&address);
        }
    }

    fn oldest(&self, of: impl Fn(&Stranger) -> bool) -> Option<Pass> {
        self.inside.iter().find(|(_, stranger)| of(stranger)).map(|(pass, _)| *pass)
    }

    fn admit(&mut self, now: Duration, stranger: Stranger) -> Pass {
        self.last += 1;
        self.inside.insert(self.last, stranger);
        if let Some(record) = self.record(now, stranger.address) {
            *record.inside(stranger.validated) += 1;
            record.count(now, stranger.validated);
        }
        self.last
    }

    fn record(&mut self, now: Duration, key: IpAddr) -> Option<&mut Record> {
        if self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&key) {
            self.addresses.retain(|_, record| {
                record.forgive(now);
                !record.is_blank(now)
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

    fn allowance(&mut self, validated: bool) -> &mut Option<Bucket> {
        let [unvalidated, of_validated] = &mut self.allowance;
        if validated { of_validated } else { unvalidated }
    }

    /// Whether more come than may.
    fn is_hasty(&mut self, now: Duration, validated: bool) -> bool {
        self.allowance(validated).as_mut().is_some_and(|bucket| !bucket.has(now, 1))
    }

    fn count(&mut self, now: Duration, validated: bool) {
        let full = || Bucket::new(OF_ONE_ADDRESS_A_SECOND, now);
        self.allowance(validated).get_or_insert_with(full).take(1);
    }

    fn is_blank(&mut self, now: Duration) -> bool {
        let mut allowances = self.allowance.iter_mut().flatten();
        let rested = allowances.all(|bucket| bucket.has(now, OF_ONE_ADDRESS_A_SECOND));
        rested && self.validated == 0 && self.unvalidated == 0 && self.failures == 0
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

    fn admit(admission: &mut Admission, count: usize, address: IpAddr) -> Vec<Pass> {
        let pass = |_| match admission.knock(NOW, address, true) {
            Verdict::Admit(pass) => pass,
            other => panic!("{other:?}"),
        };
        (0..count).map(pass).collect()
    }

    #[test]
    fn the_places_of_one_address_are_limited() {
        let mut admission = Admission::default();
        let first = admit(&mut admission, 1, address(1))[0];
        admit(&mut admission, OF_ONE_ADDRESS - 1, address(1));
        let other = admit(&mut admission, 1, address(2))[0];
        assert_eq!(admission.knock(NOW, address(1), false), Verdict::Validate);
        let turned_out = admission.knock(NOW, address(1), true);
        assert_eq!(turned_out, Verdict::Replace(other + 1, first));
        assert_eq!(admission.knock(NOW, address(2), false), Verdict::Admit(other + 2));
    }

    #[test]
    fn a_crowd_has_to_validate_and_in_a_full_house_the_oldest_makes_room() {
        let mut admission = Admission::default();
        (0..CROWDED).for_each(|n| drop(admit(&mut admission, 1, address(n as u32))));
        assert_eq!(admission.knock(NOW, address(9999), false), Verdict::Validate);
        (CROWDED..STRANGERS).for_each(|n| drop(admit(&mut admission, 1, address(n as u32))));
        let next = STRANGERS as Pass + 1;
        assert_eq!(admission.knock(NOW, address(9999), true), Verdict::Replace(next, 1));
        assert_eq!(admission.inside.len(), STRANGERS);
    }

    #[test]
    fn who_keeps_failing_is_admitted_once_a_second() {
        let mut admission = Admission::default();
        let mut admitted = 0;
        // Sixty seconds, a hundred tries each.
        for at in 0..6000 {
            let now = NOW + Duration::from_millis(at * 10);
            if let Verdict::Admit(pass) = admission.knock(now, address(1), true) {
                admitted += 1;
                admission.leave(now, pass, Outcome::Failed);
            }
        }
        assert!((80..=91).contains(&admitted), "{admitted}");
        // A quiet minute later all is forgiven, and forgotten.
        let later = NOW + Duration::from_secs(120);
        let Verdict::Admit(pass) = admission.knock(later, address(1), false) else {
            panic!("not forgiven");
        };
        admission.leave(later + Duration::from_secs(1), pass, Outcome::Harmless);
        assert!(admission.addresses.is_empty());
    }

    #[test]
    fn who_comes_and_goes_all_the_time_is_let_in_at_a_rate() {
        let mut admission = Admission::default();
        let mut admitted = [0, 0];
        // Ten seconds, a thousand times each; and beside it another one, now and then.
        for at in 0..10_000 {
            let now = NOW + Duration::from_millis(at);
            let comers = [(1, true), (2, at % 10 == 0)].into_iter().enumerate();
            for (n, (host, comes)) in comers {
                if comes && let Verdict::Admit(pass) = admission.knock(now, address(host), true) {
                    admitted[n] += 1;
                    admission.leave(now, pass, Outcome::Harmless);
                }
            }
        }
        assert!((3_400..=3_900).contains(&admitted[0]), "{admitted:?}");
        assert_eq!(admitted[1], 1000);
    }

    #[test]
    fn a_site_of_ipv6_is_one_address() {
        let mut admission = Admission::default();
        for n in 0..OF_ONE_ADDRESS {
            admit(&mut admission, 1, format!("2001:db8::{n:x}").parse().unwrap());
        }
        let mut verdict = |text: &str| admission.knock(NOW, text.parse().unwrap(), true);
        assert!(matches!(verdict("2001:db8::ffff"), Verdict::Replace(_, 1)));
        assert!(matches!(verdict("2001:db8:0:1::1"), Verdict::Admit(_)));
        // An IPv4 address is the same in IPv6 clothes.
        admit(&mut admission, OF_ONE_ADDRESS, address(1));
        let mapped = admission.knock(NOW, "::ffff:10.0.0.1".parse().unwrap(), true);
        assert!(matches!(mapped, Verdict::Replace(..)));
    }

    proptest! {
        /// Whatever comes from whom, in whatever order: the house is never over full, memory is
        /// bounded, and once all have left and time has passed, nothing is left of them.
        #[test]
        fn nothing_grows_without_bound(
            knocks in proptest::collection::vec((0u32..6000, any::<bool>(), any::<bool>(), 0u64..50), 1..3000),
        ) {
            let mut admission = Admission::default();
            let (mut now, mut inside) = (NOW, std::collections::BTreeSet::new());
            for (n, validated, failed, pause) in knocks {
                now += Duration::from_millis(pause);
                match admission.knock(now, address(n), validated) {
                    Verdict::Admit(pass) => drop(inside.insert(pass)),
                    Verdict::Replace(pass, oldest) => {
                        prop_assert!(inside.remove(&oldest));
                        inside.insert(pass);
                    }
                    Verdict::Validate | Verdict::Refuse => {
                        if let Some(pass) = inside.pop_last() {
                            let outcome = if failed { Outcome::Failed } else { Outcome::Harmless };
                            admission.leave(now, pass, outcome);
                        }
                    }
                }
                prop_assert!(inside.len() <= STRANGERS);
                prop_assert_eq!(admission.inside.len(), inside.len());
                prop_assert!(admission.addresses.len() <= ADDRESSES);
            }
            prop_assert!(admission.inside.keys().eq(&inside));
            for pass in inside {
                admission.leave(now, pass, Outcome::Harmless);
            }
            let later = now + Duration::from_secs(6000);
            for record in admission.addresses.values_mut() {
                record.forgive(later);
                prop_assert!(record.is_blank(later));
            }
        }

        /// However many strangers hold places, of forged addresses or real ones: who comes with a
        /// validated address of its own gets in, and keeps its place while a hundred more come.
        #[test]
        fn a_flood_keeps_nobody_out(
            before in proptest::collection::vec((0u32..3000, any::<bool>()), 0..2000),
            after in proptest::collection::vec(0u32..3000, 100),
        ) {
            let mut admission = Admission::default();
            for (n, validated) in before {
                admission.knock(NOW, address(n), validated);
            }
            let good = admission.knock(NOW, address(5000), true);
            let (Verdict::Admit(pass) | Verdict::Replace(pass, _)) = good else {
                return Err(TestCaseError::fail(format!("{good:?}")));
            };
            for n in after {
                admission.knock(NOW, address(n), true);
            }
            prop_assert!(admission.inside.contains_key(&pass));
        }

        /// Strangers whose address is forged never keep a node of that address out.
        #[test]
        fn forged_sources_lock_nobody_out(forged in proptest::collection::vec((0u32..3, any::<bool>()), 0..2000)) {
            let (mut admission, mut now) = (Admission::default(), NOW);
            let mut inside = Vec::new();
            for (n, leaves) in forged {
                now += Duration::from_millis(3);
                if let Verdict::Admit(pass) = admission.knock(now, address(n), false) {
                    inside.push(pass);
                }
                if leaves && let Some(pass) = inside.pop() {
                    // Nothing sent to a forged address comes back, so it is never validated.
                    admission.leave(now, pass, Outcome::Harmless);
                }
                let Verdict::Admit(pass) = admission.knock(now, address(1), true) else {
                    return Err(TestCaseError::fail("locked out"));
                };
                admission.leave(now, pass, Outcome::Harmless);
            }
        }
    }
}
