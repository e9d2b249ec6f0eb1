//! In which order the servers of a DNS SRV answer are tried (RFC 2782).

use crate::random::Random;

/// One server of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Lower ones are tried first.
    pub priority: u16,
    /// Its share among those of its priority.
    pub weight: u16,
    /// The name of its host; empty: the service is decidedly not offered.
    pub host: String,
    /// Where it listens there.
    pub port: u16,
}

/// The servers that can be tried, in the order to do so: by priority, and among those of one by
/// chance, each as often in front as its weight says. One without weight has a small chance.
pub fn in_order(mut servers: Vec<Server>, random: &mut Random) -> Vec<Server> {
    servers.retain(|server| !server.host.is_empty() && server.port != 0);
    // Those without weight come first in the running sum, or none of them would ever be in front.
    servers.sort_by_key(|server| (server.priority, server.weight != 0));
    let mut ordered = Vec::with_capacity(servers.len());
    while let Some(first) = servers.first() {
        let priority = first.priority;
        let equals = servers.iter().take_while(|server| server.priority == priority);
        let total = equals.map(|server| u32::from(server.weight)).sum();
        let drawn = random.up_to(total);
        ordered.push(servers.remove(reached(&servers, drawn)));
    }
    ordered
}

/// The first server at which the running sum of weights is `drawn` or more.
fn reached(servers: &[Server], drawn: u32) -> usize {
    let mut sum = 0;
    let short = servers.iter().take_while(|server| {
        sum += u32::from(server.weight);
        sum < drawn
    });
    short.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server(priority: u16, weight: u16, host: &str) -> Server {
        Server { priority, weight, host: host.into(), port: 4433 }
    }

    fn any_server() -> impl Strategy<Value = Server> {
        (0u16..4, 0u16..=u16::MAX, "[a-z]{0,3}", 0u16..4)
            .prop_map(|(priority, weight, host, port)| Server { priority, weight, host, port })
    }

    /// How often each host is in front.
    fn in_front(servers: &[Server], hosts: &[&str], rounds: u64) -> Vec<usize> {
        let firsts: Vec<String> = (0..rounds)
            .map(|seed| in_order(servers.to_vec(), &mut Random::new(seed))[0].host.clone())
            .collect();
        hosts.iter().map(|host| firsts.iter().filter(|first| first == host).count()).collect()
    }

    proptest! {
        /// What can be tried is tried, once, and by rising priority.
        #[test]
        fn orders_all_that_can_be_tried(
            servers in proptest::collection::vec(any_server(), 0..20),
            seed: u64,
        ) {
            let ordered = in_order(servers.clone(), &mut Random::new(seed));
            prop_assert!(ordered.is_sorted_by_key(|server| server.priority));
            let key = |server: &Server| {
                (server.priority, server.weight, server.host.clone(), server.port)
            };
            let mut expected = servers;
            expected.retain(|server| !server.host.is_empty() && server.port != 0);
            expected.sort_by_key(key);
            let mut found = ordered;
            found.sort_by_key(key);
            prop_assert_eq!(found, expected);
        }

        /// The more weight, the more often in front, in that proportion.
        #[test]
        fn weights_are_shares(light in 1u16..50, times in 2u16..10) {
            let servers = [server(1, light, "light"), server(1, light * times, "heavy")];
            let rounds = 2_000;
            let found = in_front(&servers, &["light", "heavy"], rounds);
            let share = found[0] as f64 / rounds as f64;
            // Drawing 0 falls to the first, so its share is a little more than its weight's.
            let fair = f64::from(light + 1) / f64::from(light * (times + 1) + 1);
            prop_assert!((share - fair).abs() < 0.06, "{share} instead of {fair}");
        }
    }

    #[test]
    fn one_without_weight_is_rarely_in_front_but_sometimes() {
        let servers = [server(1, 0, "spare"), server(1, 9, "main")];
        let found = in_front(&servers, &["spare"], 2_000)[0];
        assert!((100..350).contains(&found), "{found} of 2000, where one in ten is fair");
    }

    #[test]
    fn those_without_any_weight_stay_as_they_came() {
        let hosts = ["a", "b"];
        let servers = hosts.map(|host| server(1, 0, host));
        // RFC 2782 leaves it open; the first of the answer is in front, and servers rotate those.
        assert_eq!(in_front(&servers, &hosts, 10), [10, 0]);
    }

    #[test]
    fn a_lower_priority_is_in_front_whatever_it_weighs() {
        let servers = [server(2, u16::MAX, "later"), server(1, 0, "first")];
        assert_eq!(in_front(&servers, &["first"], 100), [100]);
    }

    #[test]
    fn a_service_that_is_not_offered_has_no_servers() {
        assert_eq!(in_order(vec![server(0, 0, "")], &mut Random::new(1)), []);
    }
}
