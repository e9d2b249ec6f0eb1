//! The relay of an endpoint, for Erlang.

use std::collections::HashMap;
use std::time::Duration;

use macula_core::relay::limits::Limits;
use macula_core::relay::pressure::Rates;
use macula_net::{PeerInfo, PeerState, RealmAccess, RelayConfig};
use rustler::{Binary, Encoder, Env, Error, NifMap, NifResult, ResourceArc, Term};

use crate::atoms;
use crate::endpoint::{EndpointResource, counts};
use crate::measure::measured;
use crate::mesh::{relay_error, relay_url};
use crate::runtime;
use crate::term::{Address, File, Given, Text, binary, error, file_error};

#[derive(NifMap)]
struct Options<'a> {
    certificate: Term<'a>,
    realms: Term<'a>,
    nodes: Term<'a>,
    nodes_per_realm: Term<'a>,
    attachments_per_second: Term<'a>,
    attachments_per_realm: Term<'a>,
    memory: Term<'a>,
    bytes_per_node: Term<'a>,
    datagrams_per_node: Term<'a>,
    bytes_per_realm: Term<'a>,
    datagrams_per_realm: Term<'a>,
    peers: Vec<(Term<'a>, Term<'a>, Term<'a>)>,
}

impl Options<'_> {
    fn config(&self) -> NifResult<RelayConfig> {
        let count = |term: &Term<'_>| Ok::<_, Error>(term.decode::<Given<u64>>()?.0);
        let realms: Given<Vec<(Term<'_>, Term<'_>)>> = self.realms.decode()?;
        let realms = realms.0.map(|realms| {
            let realm = |(name, access): &(Term<'_>, Term<'_>)| {
                Ok((name.decode::<Text>()?.0, realm_access(*access)?))
            };
            realms.iter().map(realm).collect::<NifResult<HashMap<_, _>>>()
        });
        let nodes = |term: &Term<'_>| {
            let nodes = count(term)?;
            Ok::<_, Error>(nodes.map(|nodes| usize::try_from(nodes).unwrap_or(usize::MAX)))
        };
        let certificate: Given<(File, File)> = self.certificate.decode()?;
        Ok(RelayConfig {
            certificate: certificate.0.map(|(certificate, key)| (certificate.0, key.0)),
            realms: realms.transpose()?,
            nodes: nodes(&self.nodes)?,
            nodes_per_realm: nodes(&self.nodes_per_realm)?,
            attachments: Rates {
                relay: count(&self.attachments_per_second)?,
                realm: count(&self.attachments_per_realm)?,
            },
            memory: count(&self.memory)?,
            per_node: Limits {
                bytes: count(&self.bytes_per_node)?,
                datagrams: count(&self.datagrams_per_node)?,
            },
            per_realm: Limits {
                bytes: count(&self.bytes_per_realm)?,
                datagrams: count(&self.datagrams_per_realm)?,
            },
            peers: self.peers.iter().map(relay_url).collect::<NifResult<_>>()?,
        })
    }
}

/// `open`, `{tokens, [Token]}` or `{cacertfile, File}`.
fn realm_access(term: Term<'_>) -> NifResult<RealmAccess> {
    if term.decode::<rustler::Atom>().is_ok_and(|atom| atom == atoms::open()) {
        return Ok(RealmAccess::Open);
    }
    let (kind, value): (rustler::Atom, Term<'_>) = term.decode()?;
    if kind == atoms::tokens() {
        let tokens: Vec<Binary<'_>> = value.decode()?;
        return Ok(RealmAccess::Tokens(tokens.iter().map(|token| token.to_vec().into()).collect()));
    }
    Ok(RealmAccess::Authority(value.decode::<File>()?.0))
}

/// Reads files.
#[rustler::nif(schedule = "DirtyIo")]
fn relay_start<'a>(
    env: Env<'a>,
    endpoint: ResourceArc<EndpointResource>,
    options: Term<'a>,
) -> NifResult<Term<'a>> {
    measured!("relay_start", dirty);
    let options: Options<'a> = options.decode().map_err(|_| Error::BadArg)?;
    // There is a runtime where there is an endpoint.
    let _within = runtime::running().map(tokio::runtime::Handle::enter);
    Ok(match endpoint.endpoint.start_relay(options.config()?) {
        Ok(()) => atoms::ok().encode(env),
        Err(file) => error(env, file_error(env, &file)),
    })
}

/// Tells the relay's nodes that it goes, and ends their attachments after `grace` ms.
#[rustler::nif]
fn relay_stop(endpoint: ResourceArc<EndpointResource>, grace: u64) -> rustler::Atom {
    measured!("relay_stop", normal);
    let endpoint = endpoint.endpoint.clone();
    if let Some(runtime) = runtime::running() {
        runtime.spawn(async move { endpoint.stop_relay(Duration::from_millis(grace)).await });
    }
    atoms::ok()
}

/// The peers: `[{Name, {peered | called, Address} | {down, Reason}}]`.
#[rustler::nif]
fn relay_peers<'a>(env: Env<'a>, endpoint: ResourceArc<EndpointResource>) -> Term<'a> {
    measured!("relay_peers", normal);
    match endpoint.endpoint.relay_peers() {
        None => atoms::undefined().encode(env),
        Some(peers) => {
            let row = |peer: &PeerInfo| {
                let state = peer_state(env, &peer.state, peer.called);
                (binary(env, peer.name.as_bytes()), state)
            };
            peers.iter().map(row).collect::<Vec<_>>().encode(env)
        }
    }
}

/// How a relay stands with a peer. `called`: it has called this one.
pub(crate) fn peer_state<'a>(env: Env<'a>, state: &PeerState, called: bool) -> Term<'a> {
    match state {
        PeerState::Up { address } => {
            let how = if called { atoms::called() } else { atoms::peered() };
            (how, Address(*address)).encode(env)
        }
        PeerState::Down(why) => (atoms::down(), relay_error(env, why)).encode(env),
    }
}

#[rustler::nif]
fn relay_stats<'a>(env: Env<'a>, endpoint: ResourceArc<EndpointResource>) -> NifResult<Term<'a>> {
    measured!("relay_stats", normal);
    match endpoint.endpoint.relay_counters() {
        None => Ok(atoms::undefined().encode(env)),
        Some(counters) => counts(env, counters),
    }
}
