//! Where the service `_macula._udp` of a host is, as DNS says (RFC 2782).
//!
//! Only that is asked here. A host's own addresses are the operating system's to look up, which
//! knows more than DNS.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{Name, RData};
use macula_core::random::Random;
use macula_core::srv::{self, Server};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// What nodes are looked up by.
const SERVICE: &str = "_macula._udp";

/// Labels that [`SERVICE`] puts before a host name.
const SERVICE_LABELS: usize = 2;

/// How long a name server may take before it is asked again, or another one: a lookup is worth two
/// seconds (`macula_dist_resolver`), and a lost datagram must not be the end of it.
const TRY: Duration = Duration::from_millis(600);

/// Times a question is asked again.
const TRIES_MORE: usize = 2;

/// Servers taken from one answer: nobody has more, and a hostile name server may say so.
const MAX_SERVERS: usize = 16;

/// Why DNS gave no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// There is no such record.
    NotFound,
    /// There is one that says that the host does not offer the service.
    NotOffered,
    /// No name server answered in time.
    Timeout,
    /// No name server is configured, or it failed.
    Failed(String),
}

/// The addresses at which the nodes of `host` say they can be reached, in the order to try them;
/// after `limit` at the latest.
///
/// # Errors
/// Why there are none.
pub async fn service_of(host: &str, limit: Duration) -> Result<Vec<SocketAddr>, LookupError> {
    let deadline = Instant::now() + limit;
    let name = service_name(host)?;
    let resolver =
        timeout_at(deadline, system_resolver()).await.map_err(|_| LookupError::Timeout)??;
    let answer = timeout_at(deadline, resolver.srv_lookup(name)).await;
    let answer = answer.map_err(|_| LookupError::Timeout)?.map_err(failed)?;
    let seed = getrandom::u64().map_err(other)?;
    let servers = srv::in_order(servers(&answer), &mut Random::new(seed));
    if servers.is_empty() {
        return Err(LookupError::NotOffered);
    }
    let known = addresses_beside(&answer);
    match addresses(resolver, servers, known, deadline).await {
        none if none.is_empty() => Err(LookupError::NotFound),
        addresses => Ok(addresses),
    }
}

fn service_name(host: &str) -> Result<Name, LookupError> {
    // What DNS cannot even be asked for it does not know.
    Name::from_str_relaxed(format!("{SERVICE}.{host}")).map_err(|_| LookupError::NotFound)
}

/// By the system's configuration of this moment: computers move from one network to another. It is
/// read on a thread that may wait for a disk.
async fn system_resolver() -> Result<TokioResolver, LookupError> {
    let build = tokio::task::spawn_blocking(|| {
        let mut builder = TokioResolver::builder_tokio()?;
        let options = builder.options_mut();
        options.timeout = TRY;
        options.attempts = TRIES_MORE;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        // Whether a host is looked up in the search domains first is decided by its own dots.
        options.ndots += SERVICE_LABELS;
        builder.build()
    });
    build.await.map_err(other)?.map_err(other)
}

fn servers(answer: &Lookup) -> Vec<Server> {
    let records = answer.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(srv) => Some(srv),
        _ => None,
    });
    let server = |srv: &hickory_resolver::proto::rr::rdata::SRV| Server {
        priority: srv.priority,
        weight: srv.weight,
        host: if srv.target.is_root() { String::new() } else { srv.target.to_ascii() },
        port: srv.port,
    };
    records.map(server).take(MAX_SERVERS).collect()
}

/// What a name server adds to its answer, to save us the next question.
fn addresses_beside(answer: &Lookup) -> HashMap<String, Vec<IpAddr>> {
    let mut known: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for record in answer.additionals() {
        if let Some(ip) = record.data.ip_addr() {
            known.entry(record.name.to_ascii()).or_default().push(ip);
        }
    }
    known
}

/// The addresses of the servers, in the order of these; the hosts are looked up together. Those
/// that take too long are left out.
async fn addresses(
    resolver: TokioResolver,
    servers: Vec<Server>,
    mut known: HashMap<String, Vec<IpAddr>>,
    deadline: Instant,
) -> Vec<SocketAddr> {
    let mut lookups = JoinSet::new();
    let mut hosts: Vec<&String> = servers.iter().map(|server| &server.host).collect();
    hosts.sort_unstable();
    hosts.dedup();
    for host in hosts.into_iter().filter(|host| !known.contains_key(*host)).cloned() {
        let resolver = resolver.clone();
        lookups.spawn(async move {
            let found = timeout_at(deadline, resolver.lookup_ip(host.as_str())).await;
            (
                host,
                found.ok().and_then(Result::ok).map_or_else(Vec::new, |ips| ips.iter().collect()),
            )
        });
    }
    while let Some(found) = lookups.join_next().await {
        known.extend(found);
    }
    let at = |server: &Server| {
        let ips = known.get(&server.host).into_iter().flatten();
        ips.map(|ip| SocketAddr::new(*ip, server.port)).collect::<Vec<_>>()
    };
    servers.iter().flat_map(at).collect()
}

fn failed(error: NetError) -> LookupError {
    match error {
        NetError::Timeout => LookupError::Timeout,
        error if error.is_no_records_found() => LookupError::NotFound,
        error => other(error),
    }
}

fn other(error: impl std::fmt::Display) -> LookupError {
    LookupError::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_stands_before_the_host() {
        let name = service_name("host.example").expect("a name");
        assert_eq!(name.to_ascii(), "_macula._udp.host.example");
        assert!(!name.is_fqdn());
        assert!(service_name("host.example.").expect("a name").is_fqdn());
    }

    #[test]
    fn a_host_that_dns_cannot_be_asked_for_is_unknown() {
        for host in ["a host", "a..b", &"x".repeat(70)] {
            assert_eq!(service_name(host), Err(LookupError::NotFound), "{host}");
        }
    }
}
