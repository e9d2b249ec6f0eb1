//! Multicast DNS, for Erlang. On dirty schedulers: starting opens sockets, and stopping waits for
//! a goodbye.

use std::net::IpAddr;

use macula_net::mdns::{Event, Found, Interface, Mdns, Service};
use parking_lot::Mutex;
use rustler::{
    Encoder, Env, Error, LocalPid, Monitor, NifMap, NifResult, Resource, ResourceArc, Term,
};

use crate::atoms;
use crate::measure::measured;
use crate::runtime::{self, post};
use crate::term::{Exact, Ip, Text, binary, error};

/// Ends when its owner dies or when Erlang forgets it.
struct MdnsResource(Mutex<Option<Mdns>>);

#[rustler::resource_impl]
impl Resource for MdnsResource {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, _monitor: Monitor) {
        drop(self.0.lock().take());
    }
}

#[derive(NifMap)]
struct Options<'a> {
    owner: LocalPid,
    instance: Term<'a>,
    host: Term<'a>,
    port: Term<'a>,
    addresses: Vec<Term<'a>>,
    properties: Vec<(Term<'a>, Term<'a>)>,
    interface: Term<'a>,
}

#[rustler::nif(schedule = "DirtyIo")]
fn mdns_start<'a>(env: Env<'a>, options: Term<'a>) -> NifResult<Term<'a>> {
    measured!("mdns_start", dirty);
    let options: Options<'a> = options.decode().map_err(|_| Error::BadArg)?;
    let owner = options.owner;
    let interface = interface(options.interface)?;
    let service = service(options)?;
    // Messages to the owner are sent from the runtime's threads.
    let started = runtime::start(1).map_err(|error| error.to_string()).and_then(|_| {
        Mdns::start(service, interface, move |event| post(owner, move |env| message(env, &event)))
    });
    Ok(match started {
        Ok(mdns) => {
            let resource = ResourceArc::new(MdnsResource(Mutex::new(Some(mdns))));
            // A dead owner has no use for it: dropping the resource ends it.
            env.monitor(&resource, &owner);
            (atoms::ok(), resource).encode(env)
        }
        Err(text) => error(env, binary(env, text.as_bytes())),
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn mdns_stop(mdns: ResourceArc<MdnsResource>) -> rustler::Atom {
    measured!("mdns_stop", dirty);
    let running = mdns.0.lock().take();
    if let Some(running) = running {
        running.stop();
    }
    atoms::ok()
}

fn service(options: Options<'_>) -> NifResult<Service> {
    let addresses = options.addresses.iter().map(|ip| Ok(ip.decode::<Ip>()?.0));
    let properties = options.properties.iter().map(|(key, value)| Ok((text(*key)?, text(*value)?)));
    Ok(Service {
        instance: text(options.instance)?,
        host: text(options.host)?,
        port: options.port.decode::<Exact<u16>>()?.0,
        addresses: addresses.collect::<NifResult<Vec<IpAddr>>>()?,
        properties: properties.collect::<NifResult<Vec<(String, String)>>>()?,
    })
}

/// `any`, an address, or a name.
fn interface(term: Term<'_>) -> NifResult<Option<Interface>> {
    match term.decode::<rustler::Atom>() {
        Ok(atom) if atom == atoms::any() => Ok(None),
        Ok(_) => Err(Error::BadArg),
        Err(_) if term.is_tuple() => Ok(Some(Interface::With(term.decode::<Ip>()?.0))),
        Err(_) => Ok(Some(Interface::Named(text(term)?))),
    }
}

fn text(term: Term<'_>) -> NifResult<String> {
    Ok(term.decode::<Text>()?.0)
}

/// `{macula_mdns, found, Instance, Port, Ips, Properties}` or `{macula_mdns, lost, Instance}`.
fn message<'a>(env: Env<'a>, event: &Event) -> Term<'a> {
    match event {
        Event::Here(Found { instance, port, addresses, properties }) => {
            let instance = binary(env, instance.as_bytes());
            let addresses: Vec<Term<'a>> = addresses.iter().map(|ip| Ip(*ip).encode(env)).collect();
            let pair = |(key, value): &(String, String)| {
                (binary(env, key.as_bytes()), binary(env, value.as_bytes())).encode(env)
            };
            let properties: Vec<Term<'a>> = properties.iter().map(pair).collect();
            (atoms::macula_mdns(), atoms::found(), instance, port, addresses, properties)
                .encode(env)
        }
        Event::Gone(instance) => {
            (atoms::macula_mdns(), atoms::lost(), binary(env, instance.as_bytes())).encode(env)
        }
    }
}
