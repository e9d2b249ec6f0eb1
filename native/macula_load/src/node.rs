//! Whole nodes: an endpoint of `macula_net` each, with a key and an address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use macula_core::mesh::retry::Pace;
use macula_core::secret::Secret;
use macula_net::{
    CertificateFiles, CertificateNews, Cookie, CookieKeys, Endpoint, EndpointConfig, Incident,
    MeshConfig, Node, RelayUrl, State,
};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::latency::Latencies;
use crate::{COOKIE, Error, REALM};

/// The first of the addresses that nodes have.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);

/// How long a node may take to join.
const JOIN: Duration = Duration::from_secs(120);

/// A node of a load, which has one cookie with all others and keeps what it hears to itself.
#[derive(Debug)]
pub struct Member;

impl Node for Member {
    fn cookie(&self, _name: &str) -> oneshot::Receiver<Cookie> {
        let (answer, cookie) = oneshot::channel();
        // Who asks may have gone.
        let _ = answer.send(cookie_of_all());
        cookie
    }

    fn refused(&self, _address: SocketAddr, _name: &str, _why: Incident) {}

    fn certificate(&self, _news: CertificateNews) {}

    fn relay(&self, _url: &str, _state: &State) {}
}

/// The cookie of all nodes of a load.
pub fn cookie_of_all() -> Cookie {
    Cookie::new(COOKIE.to_vec())
}

/// The name of the `n`th node.
pub fn name(n: usize) -> String {
    format!("load{n}@loopback")
}

/// The address of the `n`th node.
pub fn address(n: usize) -> IpAddr {
    Ipv4Addr::from_bits(FIRST.to_bits().wrapping_add(n as u32 % (1 << 20))).into()
}

/// Nodes, all opened, whether joined or not.
#[derive(Default)]
pub struct Crowd {
    first: usize,
    nodes: Vec<Arc<Endpoint>>,
    keys: CookieKeys,
}

impl Crowd {
    /// None yet. The first one will be that with the number `first`, and all share `keys` with
    /// whoever has them.
    pub fn new(first: usize, keys: CookieKeys) -> Crowd {
        Crowd { first, keys, nodes: Vec::new() }
    }

    /// Opens `count` more nodes. `one_address`: all of them have the same one, as behind a NAT.
    ///
    /// # Errors
    /// The system refuses a socket.
    pub fn open(&mut self, count: usize, one_address: bool) -> Result<(), Error> {
        let next = self.first + self.nodes.len();
        for n in next..next + count {
            let config = EndpointConfig {
                ip: Some(address(if one_address { 0 } else { n })),
                ports: vec![0],
                name: name(n),
                keys: self.keys.clone(),
                ..EndpointConfig::default()
            };
            let node = Endpoint::open(&config, Arc::new(Member));
            self.nodes.push(Arc::new(node.map_err(|error| format!("node {n}: {error:?}"))?));
        }
        Ok(())
    }

    /// All of them.
    pub fn nodes(&self) -> &[Arc<Endpoint>] {
        &self.nodes
    }

    /// Has these nodes join at once; gives the time each took.
    ///
    /// # Errors
    /// One could not.
    pub async fn join(&self, which: Range<usize>, relay: SocketAddr) -> Result<Latencies, Error> {
        let mut joining = JoinSet::new();
        for node in self.nodes.get(which).unwrap_or_default() {
            let node = node.clone();
            joining.spawn(async move {
                let began = Instant::now();
                let joined = node.join_mesh(mesh(relay), JOIN).await;
                joined.map(|()| began.elapsed()).map_err(|error| format!("{error:?}"))
            });
        }
        let mut times = Latencies::default();
        while let Some(joined) = joining.join_next().await {
            times.add(joined??);
        }
        Ok(times)
    }

    /// How many are attached.
    pub fn attached(&self) -> usize {
        self.nodes.iter().filter(|node| is_attached(node)).count()
    }

    /// All are gone, without a word.
    pub fn vanish(&self) {
        self.nodes.iter().for_each(|node| node.vanish());
    }

    /// All leave at once, and their ports are closed.
    pub async fn leave(self) {
        let mut leaving = JoinSet::new();
        for node in self.nodes {
            leaving.spawn(async move { node.shut_down().await });
        }
        while leaving.join_next().await.is_some() {}
    }
}

fn is_attached(node: &Endpoint) -> bool {
    let relays = node.relays().unwrap_or_default();
    relays.iter().any(|relay| matches!(relay.state, State::Attached { .. }))
}

fn mesh(relay: SocketAddr) -> MeshConfig {
    let (host, port) = (relay.ip().to_string(), relay.port());
    MeshConfig {
        relays: vec![RelayUrl { text: format!("https://{relay}"), host, port }],
        realm: REALM.into(),
        identity: None,
        token: Secret::default(),
        verify: false,
        certificates: CertificateFiles::default(),
        pace: Pace::default(),
        keep: false,
    }
}
