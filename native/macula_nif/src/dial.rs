//! Dialling another node, for Erlang.

use std::time::Duration;

use rustler::{Encoder, Env, LocalPid, NifMap, NifResult, Resource, ResourceArc, Term};
use tokio::task::AbortHandle;

use crate::atoms;
use crate::endpoint::EndpointResource;
use crate::link::LinkResource;
use crate::measure::measured;
use crate::runtime::{self, post};
use crate::term::{Address, Text, dial_error, error};

/// A dial under way: cancelled when Erlang forgets it.
struct Dial(AbortHandle);

#[rustler::resource_impl]
impl Resource for Dial {}

impl Drop for Dial {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(NifMap)]
struct Request<'a> {
    id: i64,
    addresses: Vec<Address>,
    target: Term<'a>,
    name: Term<'a>,
    timeout: u64,
}

#[rustler::nif]
fn dial<'a>(
    env: Env<'a>,
    endpoint: ResourceArc<EndpointResource>,
    request: Request<'a>,
) -> NifResult<Term<'a>> {
    measured!("dial", normal);
    let target = request.target.decode::<Text>()?.0;
    let name = request.name.decode::<Text>()?.0;
    let addresses = request.addresses.into_iter().map(|address| address.0).collect();
    let (id, limit, caller) = (request.id, Duration::from_millis(request.timeout), env.pid());
    let endpoint = endpoint.endpoint.clone();
    let Some(runtime) = runtime::running() else {
        return Ok(error(env, atoms::closed()));
    };
    let task = runtime.spawn(async move {
        let dialled = endpoint.dial(addresses, name, target, limit).await;
        post(caller, move |env| result(env, id, dialled, caller));
    });
    Ok((atoms::ok(), ResourceArc::new(Dial(task.abort_handle()))).encode(env))
}

type Dialled =
    Result<std::sync::Arc<macula_net::Link>, Vec<(std::net::SocketAddr, macula_net::DialError)>>;

fn result(env: Env<'_>, id: i64, dialled: Dialled, caller: LocalPid) -> Term<'_> {
    let result = match dialled {
        Ok(link) => (atoms::ok(), LinkResource::owned_by(link, caller)).encode(env),
        Err(failures) => {
            let row = |(address, reason): &(_, _)| {
                (Address(*address), dial_error(env, reason)).encode(env)
            };
            error(env, failures.iter().map(row).collect::<Vec<_>>())
        }
    };
    (atoms::macula_dial(), id, result).encode(env)
}

#[rustler::nif]
fn dial_cancel(dial: ResourceArc<Dial>) -> rustler::Atom {
    measured!("dial_cancel", normal);
    dial.0.abort();
    atoms::ok()
}
