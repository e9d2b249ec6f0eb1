//! This machine's registry of running nodes, for Erlang. All on dirty schedulers: it is files.

use std::path::Path;

use macula_net::registry::{self, RegisterError};
use parking_lot::Mutex;
use rustler::{Encoder, Env, Resource, ResourceArc, Term};

use crate::atoms;
use crate::measure::measured;
use crate::term::{Address, Text, binary, error};

struct Registration(Mutex<Option<registry::Registration>>);

#[rustler::resource_impl]
impl Resource for Registration {}

#[rustler::nif(schedule = "DirtyIo")]
fn registry_publish(env: Env<'_>, directory: Text, name: Text, address: Address) -> Term<'_> {
    measured!("registry_publish", dirty);
    match registry::Registration::publish(Path::new(&directory.0), &name.0, address.0) {
        Ok(registration) => {
            let resource = ResourceArc::new(Registration(Mutex::new(Some(registration))));
            (atoms::ok(), resource).encode(env)
        }
        Err(RegisterError::Taken) => error(env, atoms::taken()),
        Err(RegisterError::Io(cause)) => io_error(env, &cause),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn registry_withdraw(registration: ResourceArc<Registration>) -> rustler::Atom {
    measured!("registry_withdraw", dirty);
    drop(registration.0.lock().take());
    atoms::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn registry_find(env: Env<'_>, directory: Text, name: Text) -> Term<'_> {
    measured!("registry_find", dirty);
    match registry::find(Path::new(&directory.0), &name.0) {
        Ok(Some(address)) => (atoms::ok(), Address(address)).encode(env),
        Ok(None) => error(env, atoms::not_found()),
        Err(cause) => io_error(env, &cause),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn registry_list(env: Env<'_>, directory: Text) -> Term<'_> {
    measured!("registry_list", dirty);
    match registry::list(Path::new(&directory.0)) {
        Ok(nodes) => {
            let row = |(name, address): &(String, _)| {
                (binary(env, name.as_bytes()), Address(*address)).encode(env)
            };
            let rows: Vec<Term<'_>> = nodes.iter().map(row).collect();
            (atoms::ok(), rows).encode(env)
        }
        Err(cause) => io_error(env, &cause),
    }
}

fn io_error<'a>(env: Env<'a>, cause: &std::io::Error) -> Term<'a> {
    error(env, (atoms::io(), binary(env, cause.to_string().as_bytes())))
}
