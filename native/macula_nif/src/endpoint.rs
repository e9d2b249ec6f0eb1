//! The endpoint of this VM, for Erlang.

use std::sync::Arc;
use std::time::Duration;

use macula_core::dist::memory::Memory;
use macula_net::{
    BindError, CertificateFiles, Congestion, Cookie, CookieKeys, Endpoint, EndpointConfig, Link,
    LinkInfo, Origin,
};
use rustler::{
    Binary, Encoder, Env, Error, LocalPid, Monitor, NifMap, NifResult, Resource, ResourceArc, Term,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::link::LinkResource;
use crate::measure::measured;
use crate::node::NodeProcess;
use crate::runtime::{self, post};
use crate::term::{Address, Exact, File, Given, Ip, Text, binary, error, file_error};
use crate::{atoms, halt};

/// How long a dial may wait for its key before its time counts: some 100 ms are usual, and many
/// nodes that start at once on one machine may take seconds.
const PREPARE: Duration = Duration::from_secs(5);

/// Closes the endpoint when its owner dies or when Erlang forgets it.
pub(crate) struct EndpointResource {
    pub(crate) endpoint: Arc<Endpoint>,
    node: Arc<NodeProcess>,
    acceptor: watch::Sender<Option<LocalPid>>,
}

#[rustler::resource_impl]
impl Resource for EndpointResource {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, _monitor: Monitor) {
        self.shut_down_later();
    }
}

impl EndpointResource {
    fn shut_down_later(&self) {
        let endpoint = self.endpoint.clone();
        if let Some(runtime) = runtime::running() {
            runtime.spawn(async move { endpoint.shut_down().await });
        }
    }
}

impl Drop for EndpointResource {
    fn drop(&mut self) {
        self.shut_down_later();
    }
}

#[derive(NifMap)]
struct Options<'a> {
    owner: LocalPid,
    ip: Term<'a>,
    ports: Term<'a>,
    name: Term<'a>,
    threads: usize,
    home: Term<'a>,
    authorities: Term<'a>,
    certificate: Term<'a>,
    registry: Term<'a>,
    well_known_port: Term<'a>,
    dist_streams: u8,
    link_memory: u64,
    congestion: rustler::Atom,
}

impl Options<'_> {
    fn config(&self) -> NifResult<EndpointConfig> {
        let ip = match self.ip.decode::<rustler::Atom>() {
            Ok(atom) if atom == atoms::any() => None,
            _ => Some(self.ip.decode::<Ip>()?.0),
        };
        let ports: Vec<Exact<u16>> = self.ports.decode()?;
        let file =
            |term: &Term<'_>| Ok::<_, Error>(term.decode::<Given<File>>()?.0.map(|file| file.0));
        let own: Given<(File, File)> = self.certificate.decode()?;
        let well_known_port: Given<Exact<u16>> = self.well_known_port.decode()?;
        Ok(EndpointConfig {
            ip,
            ports: ports.into_iter().map(|port| port.0).collect(),
            name: self.name.decode::<Text>()?.0,
            home: file(&self.home)?,
            certificates: CertificateFiles {
                authorities: file(&self.authorities)?,
                own: own.0.map(|(certificate, key)| (certificate.0, key.0)),
            },
            registry: file(&self.registry)?,
            well_known_port: well_known_port.0.map(|port| port.0),
            lanes: self.dist_streams,
            memory: Memory::new(self.link_memory).ok_or(Error::BadArg)?,
            congestion: self.congestion()?,
            keys: CookieKeys::default(),
        })
    }

    fn congestion(&self) -> NifResult<Congestion> {
        match self.congestion {
            cubic if cubic == atoms::cubic() => Ok(Congestion::Cubic),
            bbr if bbr == atoms::bbr() => Ok(Congestion::Bbr),
            _ => Err(Error::BadArg),
        }
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn endpoint_open<'a>(env: Env<'a>, options: Term<'a>) -> NifResult<Term<'a>> {
    measured!("endpoint_open", dirty);
    let options: Options<'a> = options.decode().map_err(|_| Error::BadArg)?;
    let config = options.config()?;
    let node = Arc::new(NodeProcess::new(options.owner));
    Ok(match open(&config, options.threads, node.clone()) {
        Ok(endpoint) => {
            let resource = resource(endpoint, node);
            // A dead owner has no use for it: dropping the resource closes the endpoint.
            env.monitor(&resource, &options.owner);
            (atoms::ok(), resource).encode(env)
        }
        Err(BindError::InUse) => error(env, atoms::eaddrinuse()),
        Err(BindError::File(file)) => error(env, file_error(env, &file)),
        Err(BindError::Failed(text)) => {
            error(env, (atoms::bind_failed(), binary(env, text.as_bytes())))
        }
    })
}

fn open(
    config: &EndpointConfig,
    threads: usize,
    node: Arc<NodeProcess>,
) -> Result<Arc<Endpoint>, BindError> {
    let runtime = runtime::start(threads).map_err(|error| BindError::Failed(error.to_string()))?;
    let _within = runtime.enter();
    Endpoint::open(config, node).map(Arc::new)
}

fn resource(endpoint: Arc<Endpoint>, node: Arc<NodeProcess>) -> ResourceArc<EndpointResource> {
    halt::remember(&endpoint);
    let acceptor = watch::Sender::new(None);
    if let Some(runtime) = runtime::running() {
        runtime.spawn(announce(Arc::downgrade(&endpoint), acceptor.subscribe()));
    }
    ResourceArc::new(EndpointResource { endpoint, node, acceptor })
}

/// Passes accepted links to the acceptor of the moment; until there is one they wait.
async fn announce(
    endpoint: std::sync::Weak<Endpoint>,
    mut acceptor: watch::Receiver<Option<LocalPid>>,
) {
    // The endpoint is held while it waits for a link: closing it ends that wait.
    while let Some(link) = match endpoint.upgrade() {
        Some(endpoint) => endpoint.accept().await,
        None => None,
    } {
        let pid = match acceptor.wait_for(Option::is_some).await {
            Ok(pid) => *pid,
            Err(_) => return,
        };
        if let Some(pid) = pid {
            post(pid, move |env| accepted(env, link, pid));
        }
    }
}

fn accepted(env: Env<'_>, link: Arc<Link>, acceptor: LocalPid) -> Term<'_> {
    let node = binary(env, link.peer().name.as_bytes());
    let address = Address(link.address()).encode(env);
    let keys = [atoms::node(), atoms::address()];
    let peer = map(env, &keys, &[node, address]);
    (atoms::macula_accept(), LinkResource::owned_by(link, acceptor), peer).encode(env)
}

/// The answer to a `macula_cookie` message.
#[rustler::nif]
fn endpoint_cookie<'a>(
    endpoint: ResourceArc<EndpointResource>,
    question: u64,
    cookie: Binary<'a>,
) -> rustler::Atom {
    measured!("endpoint_cookie", normal);
    endpoint.node.answer(question, Cookie::new(cookie.to_vec()));
    atoms::ok()
}

/// Waits until the key of a cookie is known, so that the time it takes counts for no dial.
#[rustler::nif(schedule = "DirtyIo")]
fn endpoint_prepare<'a>(
    endpoint: ResourceArc<EndpointResource>,
    cookie: Binary<'a>,
) -> rustler::Atom {
    measured!("endpoint_prepare", dirty);
    let cookie = Cookie::new(cookie.to_vec());
    if let Some(runtime) = runtime::running() {
        let prepare = async { timeout(PREPARE, endpoint.endpoint.prepare(&cookie)).await };
        // Without the key the dial goes on, and waits for it within its own time.
        let _ = runtime.block_on(prepare);
    }
    atoms::ok()
}

#[rustler::nif]
fn endpoint_identity(env: Env<'_>, endpoint: ResourceArc<EndpointResource>) -> Term<'_> {
    measured!("endpoint_identity", normal);
    let origin = match endpoint.endpoint.identity().origin() {
        Origin::Kept => atoms::kept().encode(env),
        Origin::Ephemeral(None) => atoms::ephemeral().encode(env),
        Origin::Ephemeral(Some(why)) => {
            (atoms::ephemeral(), binary(env, why.as_bytes())).encode(env)
        }
    };
    (binary(env, &endpoint.endpoint.node_id()), origin).encode(env)
}

/// Reads files.
#[rustler::nif(schedule = "DirtyIo")]
fn endpoint_renew(env: Env<'_>, endpoint: ResourceArc<EndpointResource>) -> Term<'_> {
    measured!("endpoint_renew", dirty);
    match endpoint.endpoint.renew_certificates() {
        Ok(()) => atoms::ok().encode(env),
        Err(file) => error(env, file_error(env, &file)),
    }
}

#[rustler::nif]
fn endpoint_address(env: Env<'_>, endpoint: ResourceArc<EndpointResource>) -> Term<'_> {
    measured!("endpoint_address", normal);
    Address(endpoint.endpoint.address()).encode(env)
}

#[rustler::nif]
fn endpoint_rename(endpoint: ResourceArc<EndpointResource>, name: Text) -> rustler::Atom {
    measured!("endpoint_rename", normal);
    endpoint.endpoint.rename(name.0);
    atoms::ok()
}

#[rustler::nif]
fn endpoint_accept(endpoint: ResourceArc<EndpointResource>, acceptor: LocalPid) -> rustler::Atom {
    measured!("endpoint_accept", normal);
    endpoint.acceptor.send_replace(Some(acceptor));
    atoms::ok()
}

/// Waits until the port is free: the next `listen` may want the same one.
#[rustler::nif(schedule = "DirtyIo")]
fn endpoint_close(endpoint: ResourceArc<EndpointResource>) -> rustler::Atom {
    measured!("endpoint_close", dirty);
    if let Some(runtime) = runtime::running() {
        runtime.block_on(endpoint.endpoint.shut_down());
    }
    atoms::ok()
}

#[rustler::nif]
fn endpoint_links(env: Env<'_>, endpoint: ResourceArc<EndpointResource>) -> Term<'_> {
    measured!("endpoint_links", normal);
    let links = endpoint.endpoint.links();
    links.iter().map(|link| info(env, link)).collect::<Vec<_>>().encode(env)
}

fn info<'a>(env: Env<'a>, link: &LinkInfo) -> Term<'a> {
    let path = if link.relay.is_some() { atoms::relay() } else { atoms::direct() };
    let relay = link.relay.as_ref().map(|url| (atoms::relay(), binary(env, url.as_bytes())));
    let fields = [
        (atoms::node(), binary(env, link.node.as_bytes())),
        (atoms::address(), Address(link.address).encode(env)),
        (atoms::path(), path.encode(env)),
        (atoms::tls(), binary(env, link.suite.as_bytes())),
        (atoms::rtt_us(), (link.rtt.as_micros() as u64).encode(env)),
        (atoms::mtu(), link.mtu.encode(env)),
        (atoms::bytes_in(), link.bytes_in.encode(env)),
        (atoms::bytes_out(), link.bytes_out.encode(env)),
        (atoms::msgs_in(), link.msgs_in.encode(env)),
        (atoms::msgs_out(), link.msgs_out.encode(env)),
        (atoms::queue(), link.queue.encode(env)),
    ];
    let (keys, values): (Vec<_>, Vec<_>) = fields.into_iter().chain(relay).unzip();
    map(env, &keys, &values)
}

#[rustler::nif]
fn endpoint_stats<'a>(
    env: Env<'a>,
    endpoint: ResourceArc<EndpointResource>,
) -> NifResult<Term<'a>> {
    measured!("endpoint_stats", normal);
    counts(env, endpoint.endpoint.counters())
}

/// A map of counts by name.
pub(crate) fn counts<'a>(env: Env<'a>, counts: Vec<(&'static str, u64)>) -> NifResult<Term<'a>> {
    let fields = counts.into_iter().map(|(name, count)| {
        let key = rustler::Atom::from_str(env, name)?;
        Ok((key, count.encode(env)))
    });
    let fields: NifResult<Vec<_>> = fields.collect();
    let (keys, values): (Vec<_>, Vec<_>) = fields?.into_iter().unzip();
    Ok(map(env, &keys, &values))
}

/// A map of distinct keys.
pub(crate) fn map<'a>(env: Env<'a>, keys: &[rustler::Atom], values: &[Term<'a>]) -> Term<'a> {
    // Fails only for keys that occur twice, which ours do not.
    Term::map_from_arrays(env, keys, values).unwrap_or_else(|_| Term::map_new(env))
}
