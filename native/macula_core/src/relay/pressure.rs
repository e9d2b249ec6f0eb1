//! Who may attach at once, and who has to come again, when many come at the same time: those who are
//! sent away are told moments to come again that lie as far apart as the relay can take them. A realm
//! to which many come may have a rate of its own, so that those of other realms need not wait for it.

use std::collections::HashMap;
use std::time::Duration;

use super::limits::Bucket;

/// The soonest that a node is asked to come again: earlier it would only find the same crowd.
const SOONEST: Duration = Duration::from_millis(500);

/// The latest. Nodes that come then and still find a crowd are told again.
const LATEST: Duration = Duration::from_secs(30);

/// How many may attach in a second. None: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// To all realms together.
    pub relay: Option<u64>,
    /// To each realm.
    pub realm: Option<u64>,
}

/// Those who come to a relay, and to each of its realms. Times are since any fixed moment.
#[derive(Debug, Default)]
pub struct Crowds {
    relay: Option<Pressure>,
    realms: HashMap<String, Pressure>,
}

impl Crowds {
    /// Takes who comes to `realm` at `now`. Whom the realm sends away takes no place of others.
    ///
    /// # Errors
    /// It has to come again, after this time.
    pub fn arrive(&mut self, now: Duration, realm: &str, rates: Rates) -> Result<(), Duration> {
        if let Some(rate) = rates.realm
            && !self.realms.contains_key(realm)
        {
            self.realms.insert(realm.to_owned(), Pressure::new(rate, now));
        }
        if let Some(rate) = rates.relay {
            self.relay.get_or_insert_with(|| Pressure::new(rate, now));
        }
        let of_realm = self.realms.get_mut(realm);
        let mut crowds: Vec<_> = of_realm.into_iter().chain(&mut self.relay).collect();
        if let Some(full) =
            crowds.iter_mut().find_map(|crowd| (!crowd.has_room(now)).then_some(crowd))
        {
            return Err(full.again(now));
        }
        crowds.iter_mut().for_each(|crowd| crowd.bucket.take(1));
        Ok(())
    }

    /// Forgets the realms to which nobody has come lately: there is no end of names for them.
    pub fn forget(&mut self, now: Duration) {
        self.realms.retain(|_, crowd| !crowd.is_over(now));
    }
}

/// Those who come to one place.
#[derive(Debug)]
struct Pressure {
    rate: u64,
    bucket: Bucket,
    /// The last moment that a node was told to come again.
    promised: Duration,
}

impl Pressure {
    /// For a place that takes `rate` nodes a second, and as many at once.
    fn new(rate: u64, now: Duration) -> Pressure {
        Pressure { rate: rate.max(1), bucket: Bucket::new(rate.max(1), now), promised: now }
    }

    fn has_room(&mut self, now: Duration) -> bool {
        self.bucket.has(now, 1)
    }

    /// Whether it is as if nobody had ever come.
    fn is_over(&mut self, now: Duration) -> bool {
        self.bucket.has(now, self.rate) && self.promised <= now
    }

    /// When somebody is to come again who finds no room.
    fn again(&mut self, now: Duration) -> Duration {
        let apart = Duration::from_secs(1).div_f64(self.rate as f64);
        self.promised = (self.promised.max(now) + apart).min(now + LATEST);
        (self.promised - now).max(SOONEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn a_crowded_realm_takes_no_place_of_others() {
        let rates = Rates { relay: Some(4), realm: Some(2) };
        let mut crowds = Crowds::default();
        let crowd: Vec<_> = (0..20).map(|_| crowds.arrive(NOW, "crowded", rates)).collect();
        assert_eq!(crowd.iter().filter(|arrived| arrived.is_ok()).count(), 2);
        assert_eq!(crowd[2], Err(Duration::from_millis(500)));
        assert_eq!(crowd[3], Err(Duration::from_secs(1)));
        assert_eq!(crowds.arrive(NOW, "quiet", rates), Ok(()));
        assert_eq!(crowds.arrive(NOW, "quiet", rates), Ok(()));
        // Now the relay itself has taken as many as it takes, whatever their realm.
        assert!(crowds.arrive(NOW, "third", rates).is_err());
        let second = Duration::from_secs(1);
        assert_eq!(crowds.arrive(second, "third", rates), Ok(()));
    }

    #[test]
    fn who_is_sent_away_by_the_relay_takes_no_place_of_its_realm() {
        let rates = Rates { relay: Some(1), realm: Some(1) };
        let mut crowds = Crowds::default();
        assert_eq!(crowds.arrive(NOW, "a", rates), Ok(()));
        assert!(crowds.arrive(NOW, "b", rates).is_err());
        assert!(crowds.realms.get_mut("b").unwrap().has_room(NOW));
    }

    #[test]
    fn a_realm_is_remembered_for_as_long_as_it_matters() {
        let rates = Rates { relay: None, realm: Some(10) };
        let mut crowds = Crowds::default();
        let taken = (0..11).filter(|_| crowds.arrive(NOW, "crowded", rates).is_ok());
        assert_eq!(taken.count(), 10);
        assert_eq!(crowds.arrive(NOW, "quiet", rates), Ok(()));
        let after = |ms| Duration::from_millis(ms);
        crowds.forget(after(90));
        assert_eq!(crowds.realms.len(), 2);
        crowds.forget(after(110));
        assert!(crowds.realms.contains_key("crowded") && crowds.realms.len() == 1);
        crowds.forget(after(1010));
        assert!(crowds.realms.is_empty());
    }

    proptest! {
        /// However many come at once: if they come again as they are told, no second sees more than
        /// the rate and one burst taken, and all are in after about the time that takes.
        #[test]
        fn a_storm_is_spread_out(nodes in 1u64..3000, rate in 50u64..1000, seed in any::<u32>()) {
            let (mut crowds, rates) = (Crowds::default(), Rates { relay: Some(rate), realm: None });
            let (mut taken, mut dice) = (0, seed);
            let mut due: BTreeSet<_> = (0..nodes).map(|node| (Duration::ZERO, node)).collect();
            let mut last = Duration::ZERO;
            while let Some((now, node)) = due.pop_first() {
                last = now;
                match crowds.arrive(now, "r", rates) {
                    Ok(()) => taken += 1,
                    Err(again) => {
                        prop_assert!(again >= SOONEST && again <= LATEST);
                        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let again = crate::mesh::retry::told(again, dice);
                        due.insert((now + again, node));
                    }
                }
                prop_assert!(taken as f64 <= rate as f64 * (1.0 + now.as_secs_f64()) + 1.0);
            }
            prop_assert_eq!(taken, nodes);
            let needed = nodes as f64 / rate as f64;
            prop_assert!(last.as_secs_f64() <= 2.5 * needed + 3.0, "{last:?}, needed {needed} s");
        }
    }
}
