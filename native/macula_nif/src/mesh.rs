//! This node in a mesh, for Erlang. What waits for relays answers by message.

use std::time::Duration;

use macula_core::mesh::retry::Pace;
use macula_core::relay::message::Refusal;
use macula_net::{
    BindError, CertificateFiles, Cookie, JoinError, MeshConfig, RelayError, RelayUrl, State,
    TunnelInfo,
};
use rustler::{Binary, Encoder, Env, Error, NifMap, NifResult, ResourceArc, Term};

use crate::atoms;
use crate::endpoint::{EndpointResource, map};
use crate::measure::measured;
use crate::runtime::{self, post};
use crate::term::{Address, Exact, File, Given, Text, binary, error, fault_atom, file_error};

#[derive(NifMap)]
struct Options<'a> {
    id: i64,
    relays: Vec<(Term<'a>, Term<'a>, Term<'a>)>,
    realm: Term<'a>,
    identity: Term<'a>,
    token: Term<'a>,
    verify: bool,
    authorities: Term<'a>,
    certificate: Term<'a>,
    interval: u64,
    attempts: u32,
    timeout: u64,
    keep: bool,
}

impl Options<'_> {
    fn config(&self) -> NifResult<MeshConfig> {
        let authorities: Given<File> = self.authorities.decode()?;
        let own: Given<(File, File)> = self.certificate.decode()?;
        Ok(MeshConfig {
            relays: self.relays.iter().map(relay_url).collect::<NifResult<_>>()?,
            realm: self.realm.decode::<Text>()?.0,
            identity: self.identity.decode::<Given<Text>>()?.0.map(|text| text.0),
            token: self.token.decode::<Binary<'_>>()?.to_vec().into(),
            verify: self.verify,
            certificates: CertificateFiles {
                authorities: authorities.0.map(|file| file.0),
                own: own.0.map(|(certificate, key)| (certificate.0, key.0)),
            },
            pace: Pace { interval: Duration::from_millis(self.interval), attempts: self.attempts },
            keep: self.keep,
        })
    }
}

/// The whole of a relay's URL, its host and its port.
pub(crate) fn relay_url(
    (text, host, port): &(Term<'_>, Term<'_>, Term<'_>),
) -> NifResult<RelayUrl> {
    Ok(RelayUrl {
        text: text.decode::<Text>()?.0,
        host: host.decode::<Text>()?.0,
        port: port.decode::<Exact<u16>>()?.0,
    })
}

/// The caller gets `{macula_mesh, Id, Result}`.
#[rustler::nif]
fn mesh_join<'a>(
    env: Env<'a>,
    endpoint: ResourceArc<EndpointResource>,
    options: Term<'a>,
) -> NifResult<Term<'a>> {
    measured!("mesh_join", normal);
    let options: Options<'a> = options.decode().map_err(|_| Error::BadArg)?;
    let (config, id, caller) = (options.config()?, options.id, env.pid());
    let limit = Duration::from_millis(options.timeout);
    let endpoint = endpoint.endpoint.clone();
    let Some(runtime) = runtime::running() else {
        return Ok(error(env, atoms::closed()));
    };
    runtime.spawn(async move {
        let joined = endpoint.join_mesh(config, limit).await;
        post(caller, move |env| {
            let result = match &joined {
                Ok(()) => atoms::ok().encode(env),
                Err(why) => error(env, join_error(env, why)),
            };
            (atoms::macula_mesh(), id, result).encode(env)
        });
    });
    Ok(atoms::ok().encode(env))
}

/// The caller gets `{macula_mesh, Id, ok}`.
#[rustler::nif]
fn mesh_leave(env: Env<'_>, endpoint: ResourceArc<EndpointResource>, id: i64) -> Term<'_> {
    measured!("mesh_leave", normal);
    let (endpoint, caller) = (endpoint.endpoint.clone(), env.pid());
    let Some(runtime) = runtime::running() else {
        return error(env, atoms::closed());
    };
    runtime.spawn(async move {
        endpoint.leave_mesh().await;
        post(caller, move |env| (atoms::macula_mesh(), id, atoms::ok()).encode(env));
    });
    atoms::ok().encode(env)
}

/// What fails shows when a node is called under such a cookie.
#[rustler::nif]
fn mesh_cookies<'a>(
    env: Env<'a>,
    endpoint: ResourceArc<EndpointResource>,
    cookies: Vec<Binary<'a>>,
) -> Term<'a> {
    measured!("mesh_cookies", normal);
    let cookies: Vec<_> = cookies.iter().map(|cookie| Cookie::new(cookie.to_vec())).collect();
    let endpoint = endpoint.endpoint.clone();
    if let Some(runtime) = runtime::running() {
        runtime.spawn(async move {
            let _ = endpoint.use_cookies(&cookies).await;
        });
    }
    atoms::ok().encode(env)
}

#[rustler::nif]
fn mesh_relays(env: Env<'_>, endpoint: ResourceArc<EndpointResource>) -> Term<'_> {
    measured!("mesh_relays", normal);
    match endpoint.endpoint.relays() {
        None => atoms::undefined().encode(env),
        Some(relays) => {
            let row = |relay: &macula_net::RelayInfo| {
                (binary(env, relay.url.as_bytes()), relay_state(env, &relay.state))
            };
            relays.iter().map(row).collect::<Vec<_>>().encode(env)
        }
    }
}

/// The caller gets `{macula_mesh_nodes, Id, undefined | [Name]}`.
#[rustler::nif]
fn mesh_nodes(env: Env<'_>, endpoint: ResourceArc<EndpointResource>, id: i64) -> Term<'_> {
    measured!("mesh_nodes", normal);
    let (endpoint, caller) = (endpoint.endpoint.clone(), env.pid());
    let Some(runtime) = runtime::running() else {
        return error(env, atoms::closed());
    };
    runtime.spawn(async move {
        let nodes = endpoint.mesh_nodes().await;
        post(caller, move |env| {
            let nodes = match &nodes {
                None => atoms::undefined().encode(env),
                Some(nodes) => {
                    let names = nodes.iter().map(|name| binary(env, name.as_bytes()));
                    names.collect::<Vec<_>>().encode(env)
                }
            };
            (atoms::macula_mesh_nodes(), id, nodes).encode(env)
        });
    });
    atoms::ok().encode(env)
}

#[rustler::nif]
fn mesh_tunnels(env: Env<'_>, endpoint: ResourceArc<EndpointResource>) -> Term<'_> {
    measured!("mesh_tunnels", normal);
    let tunnels = endpoint.endpoint.tunnels();
    tunnels.iter().map(|tunnel| tunnel_term(env, tunnel)).collect::<Vec<_>>().encode(env)
}

fn tunnel_term<'a>(env: Env<'a>, tunnel: &TunnelInfo) -> Term<'a> {
    let fields = [
        (atoms::bytes_out(), tunnel.bytes_out),
        (atoms::bytes_in(), tunnel.bytes_in),
        (atoms::msgs_out(), tunnel.msgs_out),
        (atoms::msgs_in(), tunnel.msgs_in),
        (atoms::decrypt_failed(), tunnel.decrypt_failed),
        (atoms::replayed(), tunnel.replayed),
    ];
    let (keys, values): (Vec<_>, Vec<_>) =
        fields.into_iter().map(|(key, count)| (key, count.encode(env))).unzip();
    (binary(env, &tunnel.id), map(env, &keys, &values)).encode(env)
}

fn join_error<'a>(env: Env<'a>, why: &JoinError) -> Term<'a> {
    match why {
        JoinError::Certificates(BindError::File(file)) => file_error(env, file),
        JoinError::Certificates(BindError::InUse) => atoms::eaddrinuse().encode(env),
        JoinError::Certificates(BindError::Failed(text)) => {
            (atoms::tls(), binary(env, text.as_bytes())).encode(env)
        }
        JoinError::Key(text) => (atoms::key(), binary(env, text.as_bytes())).encode(env),
        JoinError::NameTaken(name) => {
            (atoms::name_taken(), binary(env, name.as_bytes())).encode(env)
        }
        JoinError::Relays(relays) => {
            let row = |(url, why): &(RelayUrl, RelayError)| {
                (binary(env, url.text.as_bytes()), relay_error(env, why))
            };
            (atoms::relays(), relays.iter().map(row).collect::<Vec<_>>()).encode(env)
        }
    }
}

/// How a node stands with a relay.
pub(crate) fn relay_state<'a>(env: Env<'a>, state: &State) -> Term<'a> {
    match state {
        State::Attached { observed } => (atoms::attached(), Address(*observed)).encode(env),
        State::Draining => atoms::draining().encode(env),
        State::Down(why) => (atoms::down(), relay_error(env, why)).encode(env),
    }
}

pub(crate) fn relay_error<'a>(env: Env<'a>, why: &RelayError) -> Term<'a> {
    let text = |tag: rustler::Atom, text: &str| (tag, binary(env, text.as_bytes())).encode(env);
    match why {
        RelayError::Trying => atoms::trying().encode(env),
        RelayError::Name(why) => text(atoms::no_address(), why),
        RelayError::Timeout => atoms::timeout().encode(env),
        RelayError::PortClosed => atoms::port_closed().encode(env),
        RelayError::NotARelay(why) => text(atoms::not_a_relay(), why),
        RelayError::NoRelayHere => atoms::no_relay_started().encode(env),
        RelayError::Version(low, high) => (atoms::version_mismatch(), *low, *high).encode(env),
        RelayError::Certificate(fault) => (atoms::certificate(), fault_atom(*fault)).encode(env),
        RelayError::OwnCertificate(fault) => {
            (atoms::own_certificate(), fault_atom(*fault)).encode(env)
        }
        RelayError::Refused(Refusal::Busy(ms)) => {
            (atoms::refused(), (atoms::busy(), *ms)).encode(env)
        }
        RelayError::Refused(refusal) => (atoms::refused(), refusal_atom(*refusal)).encode(env),
        RelayError::Lost(why) => text(atoms::lost(), why),
    }
}

fn refusal_atom(refusal: Refusal) -> rustler::Atom {
    match refusal {
        Refusal::Version => atoms::version_mismatch(),
        Refusal::Malformed => atoms::malformed(),
        Refusal::UnknownRealm => atoms::unknown_realm(),
        Refusal::Token => atoms::token(),
        Refusal::Certificate => atoms::certificate(),
        Refusal::Full => atoms::full(),
        Refusal::Busy(_) => atoms::busy(),
        Refusal::Proof => atoms::proof(),
        Refusal::Replaced => atoms::replaced(),
        Refusal::Itself => atoms::itself(),
        Refusal::Other(_) => atoms::later_version(),
    }
}
