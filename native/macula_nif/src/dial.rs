//! Dialling another node, for Erlang.

use std::time::Duration;

use macula_net::{Cookie, DialRequest};
use rustler::{
    Binary, Encoder, Env, Error, LocalPid, NifMap, NifResult, Resource, ResourceArc, Term,
};
use tokio::task::AbortHandle;

use crate::atoms;
use crate::endpoint::EndpointResource;
use crate::link::LinkResource;
use crate::measure::measured;
use crate::runtime::{self, post};
use crate::term::{Candidate, Text, dial_error, error};

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
    addresses: Vec<Candidate>,
    target: Term<'a>,
    name: Term<'a>,
    cookie: Term<'a>,
    timeout: u64,
}

#[rustler::nif]
fn dial<'a>(
    env: Env<'a>,
    endpoint: ResourceArc<EndpointResource>,
    request: Term<'a>,
) -> NifResult<Term<'a>> {
    measured!("dial", normal);
    let request: Request<'a> = request.decode().map_err(|_| Error::BadArg)?;
    let target = request.target.decode::<Text>()?.0;
    let name = request.name.decode::<Text>()?.0;
    let (id, caller) = (request.id, env.pid());
    let request = DialRequest {
        ways: request.addresses.into_iter().map(|candidate| candidate.0).collect(),
        name,
        target,
        cookie: Cookie::new(request.cookie.decode::<Binary<'a>>()?.to_vec()),
        limit: Duration::from_millis(request.timeout),
    };
    let endpoint = endpoint.endpoint.clone();
    let Some(runtime) = runtime::running() else {
        return Ok(error(env, atoms::closed()));
    };
    let task = runtime.spawn(async move {
        let dialled = endpoint.dial(request).await;
        post(caller, move |env| result(env, id, dialled, caller));
    });
    Ok((atoms::ok(), ResourceArc::new(Dial(task.abort_handle()))).encode(env))
}

type Dialled =
    Result<std::sync::Arc<macula_net::Link>, Vec<(macula_net::Way, macula_net::DialError)>>;

fn result(env: Env<'_>, id: i64, dialled: Dialled, caller: LocalPid) -> Term<'_> {
    let result = match dialled {
        Ok(link) => (atoms::ok(), LinkResource::owned_by(link, caller)).encode(env),
        Err(failures) => {
            let row =
                |(way, reason): &(_, _)| (Candidate(*way), dial_error(env, reason)).encode(env);
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
