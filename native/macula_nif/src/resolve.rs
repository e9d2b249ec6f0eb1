//! Asking DNS, for Erlang.

use std::net::SocketAddr;
use std::time::Duration;

use macula_net::resolve::{self, LookupError};
use rustler::{Encoder, Env, Term};

use crate::atoms;
use crate::measure::measured;
use crate::runtime::{self, post};
use crate::term::{Address, Text, binary, error};

/// The caller gets the answer as a message. Needs the runtime, which the first endpoint starts.
#[rustler::nif]
fn srv_lookup(env: Env<'_>, id: i64, host: Text, timeout: u64) -> Term<'_> {
    measured!("srv_lookup", normal);
    let caller = env.pid();
    let Some(runtime) = runtime::running() else {
        return error(env, atoms::closed());
    };
    runtime.spawn(async move {
        let found = resolve::service_of(&host.0, Duration::from_millis(timeout)).await;
        post(caller, move |env| (atoms::macula_srv(), id, result(env, &found)).encode(env));
    });
    atoms::ok().encode(env)
}

fn result<'a>(env: Env<'a>, found: &Result<Vec<SocketAddr>, LookupError>) -> Term<'a> {
    match found {
        Ok(addresses) => {
            let addresses = addresses.iter().map(|address| Address(*address).encode(env));
            (atoms::ok(), addresses.collect::<Vec<_>>()).encode(env)
        }
        Err(LookupError::NotFound) => error(env, atoms::not_found()),
        Err(LookupError::NotOffered) => error(env, atoms::not_offered()),
        Err(LookupError::Timeout) => error(env, atoms::timeout()),
        Err(LookupError::Failed(why)) => error(env, (atoms::dns(), binary(env, why.as_bytes()))),
    }
}
