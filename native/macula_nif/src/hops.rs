//! For measuring (feature `hops`): `macula_net::hops`, for Erlang.

use macula_net::hops::{HOPS, pass, taken};
use rustler::{Atom, Encoder, Env, Error, NifResult, Term};

use crate::atoms;

#[rustler::nif]
fn hop(name: Term<'_>) -> NifResult<Atom> {
    let name = name.atom_to_string()?;
    let (hop, _) = HOPS.iter().find(|(_, known)| *known == name).ok_or(Error::BadArg)?;
    pass(*hop);
    Ok(atoms::ok())
}

// Dirty, as there may be many stamps.
#[rustler::nif(schedule = "DirtyCpu")]
fn hops(env: Env<'_>) -> NifResult<Term<'_>> {
    let Some(stamps) = taken() else {
        return Ok(atoms::not_recorded().encode(env));
    };
    let stamps: Result<Vec<_>, Error> = stamps
        .into_iter()
        .map(|(name, ns)| Ok((Atom::from_str(env, name)?, ns).encode(env)))
        .collect();
    Ok(stamps?.encode(env))
}
