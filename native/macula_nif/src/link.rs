//! One link, for Erlang.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use macula_core::dist::frame::Piece;
use macula_core::dist::signal::Sender;
use macula_net::hops::{self, Hop};
use macula_net::{Closed, Link, Owner, PacketWaiter, SendState, Sent};
use parking_lot::Mutex;
use rustler::{
    Atom, Binary, Encoder, Env, LocalPid, Monitor, NifResult, Resource, ResourceArc, Term,
};

use crate::inbox::{Assembly, InputHandler, post_closed};
use crate::measure::measured;
use crate::runtime::post;
use crate::term::{Address, Text, binary, error};
use crate::{atoms, output};

/// Bytes received that one call takes, as it runs on a normal scheduler: small frames of so many take
/// some 100 us.
const RECEIVE: usize = 64 * 1024;

/// A link, closed when the process that owns it dies or when Erlang forgets it. No task holds it.
pub(crate) struct LinkResource {
    link: Arc<Link>,
    /// The monitor of the owner of the moment: a former owner may die without harm.
    monitor: Mutex<Option<Monitor>>,
    assembly: Mutex<Assembly>,
}

#[rustler::resource_impl]
impl Resource for LinkResource {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _owner: LocalPid, monitor: Monitor) {
        if self.monitor.lock().as_ref() == Some(&monitor) {
            self.link.close();
        }
    }
}

impl LinkResource {
    /// A resource for `link`, owned by the process `owner`. Only for threads of the runtime.
    pub(crate) fn owned_by(link: Arc<Link>, owner: LocalPid) -> ResourceArc<LinkResource> {
        let assembly = Mutex::new(Assembly::new(link.has_atom_cache()));
        let resource = ResourceArc::new(LinkResource { link, monitor: Mutex::default(), assembly });
        *resource.monitor.lock() = resource.monitor(None, &owner);
        resource
    }
}

/// Tells a process of its link's changes.
struct Process {
    id: u64,
    pid: LocalPid,
}

impl Owner for Process {
    fn writable(&self) {
        let id = self.id;
        post(self.pid, move |env| (atoms::macula_link(), id, atoms::writable()).encode(env));
    }

    fn resume(&self, senders: Vec<Sender>) {
        let id = self.id;
        post(self.pid, move |env| {
            (atoms::macula_link(), id, (atoms::resume(), numbers(&senders))).encode(env)
        });
    }

    fn closed(&self, reason: &Closed) {
        post_closed(self.pid, self.id, reason);
    }
}

/// Processes, by the numbers of their pids: Erlang knows the node's name.
fn numbers(senders: &[Sender]) -> Vec<(u32, u32, u32)> {
    senders.iter().map(|sender| (sender.id, sender.serial, sender.creation)).collect()
}

impl PacketWaiter for Process {
    fn packet(self: Box<Self>, packet: &[u8]) {
        let (id, packet) = (self.id, packet.to_vec());
        post(self.pid, move |env| {
            (atoms::macula_link(), id, (atoms::packet(), binary(env, &packet))).encode(env)
        });
    }

    fn closed(self: Box<Self>, reason: &Closed) {
        post_closed(self.pid, self.id, reason);
    }
}

#[rustler::nif]
fn link_id(link: ResourceArc<LinkResource>) -> u64 {
    measured!("link_id", normal);
    link.link.id()
}

#[rustler::nif]
fn link_own(env: Env<'_>, link: ResourceArc<LinkResource>, owner: LocalPid) -> Atom {
    measured!("link_own", normal);
    let monitor = env.monitor(&link, &owner);
    let alive = monitor.is_some();
    if let Some(former) = std::mem::replace(&mut *link.monitor.lock(), monitor) {
        env.demonitor(&link, &former);
    }
    if alive {
        link.link.set_owner(Box::new(Process { id: link.link.id(), pid: owner }));
    } else {
        link.link.close();
    }
    atoms::ok()
}

#[rustler::nif]
fn link_address(env: Env<'_>, link: ResourceArc<LinkResource>) -> Term<'_> {
    measured!("link_address", normal);
    Address(link.link.address()).encode(env)
}

#[rustler::nif]
fn link_peer(env: Env<'_>, link: ResourceArc<LinkResource>) -> Term<'_> {
    measured!("link_peer", normal);
    binary(env, link.link.peer().name.as_bytes())
}

#[rustler::nif]
fn link_has_atom_cache(link: ResourceArc<LinkResource>) -> bool {
    measured!("link_has_atom_cache", normal);
    link.link.has_atom_cache()
}

#[rustler::nif]
fn link_send_packet<'a>(
    env: Env<'a>,
    link: ResourceArc<LinkResource>,
    data: Term<'a>,
) -> NifResult<Term<'a>> {
    measured!("link_send_packet", normal);
    let data = Binary::from_iolist(data)?;
    let Ok(len) = u16::try_from(data.len()) else {
        return Ok(error(env, atoms::too_large()));
    };
    let mut packet = BytesMut::with_capacity(2 + data.len());
    packet.put_u16(len);
    packet.put_slice(&data);
    Ok(match link.link.send_packet(packet.freeze()) {
        SendState::Closed => error(env, atoms::closed()),
        SendState::Ready | SendState::Wait => atoms::ok().encode(env),
    })
}

#[rustler::nif]
fn link_recv_packet(env: Env<'_>, link: ResourceArc<LinkResource>) -> Atom {
    measured!("link_recv_packet", normal);
    link.link.receive_packet(Box::new(Process { id: link.link.id(), pid: env.pid() }));
    atoms::ok()
}

#[rustler::nif]
fn link_established(link: ResourceArc<LinkResource>, node: Text, input: LocalPid) -> Atom {
    measured!("link_established", normal);
    link.link.establish(node.0, InputHandler { id: link.link.id(), pid: input });
    atoms::ok()
}

#[rustler::nif]
fn link_send<'a>(
    env: Env<'a>,
    link: ResourceArc<LinkResource>,
    frames: Term<'a>,
) -> NifResult<Term<'a>> {
    measured!("link_send", normal);
    send(env, &link, frames)
}

/// A frame can have a part for every few bytes, and each takes its time: what `link_send` does, of
/// frames that are too large for a normal scheduler.
#[rustler::nif(schedule = "DirtyCpu")]
fn link_send_large<'a>(
    env: Env<'a>,
    link: ResourceArc<LinkResource>,
    frames: Term<'a>,
) -> NifResult<Term<'a>> {
    measured!("link_send_large", dirty);
    send(env, &link, frames)
}

fn send<'a>(env: Env<'a>, link: &LinkResource, frames: Term<'a>) -> NifResult<Term<'a>> {
    hops::pass(Hop::Called);
    let Sent { state, suspend } = output::send(&link.link, frames)?;
    let state = match state {
        SendState::Ready => atoms::ok(),
        SendState::Wait => atoms::wait(),
        SendState::Closed => return Ok(error(env, atoms::closed())),
    };
    Ok(if suspend.is_empty() { state.encode(env) } else { (state, numbers(&suspend)).encode(env) })
}

#[rustler::nif]
fn link_tick(env: Env<'_>, link: ResourceArc<LinkResource>) -> Term<'_> {
    measured!("link_tick", normal);
    if link.link.tick() { atoms::ok().encode(env) } else { error(env, atoms::closed()) }
}

#[rustler::nif]
fn link_receive(env: Env<'_>, link: ResourceArc<LinkResource>) -> (Vec<Term<'_>>, usize, Atom) {
    measured!("link_receive", normal);
    let mut assembly = link.assembly.lock();
    let (mut frames, mut bytes) = (Vec::new(), 0);
    let more = link.link.receive(RECEIVE, |stream, piece| {
        if let Piece::Body(body) = &piece {
            bytes += body.len();
        }
        frames.extend(assembly.add(env, stream, piece));
    });
    (frames, bytes, if more { atoms::more() } else { atoms::none() })
}

#[rustler::nif]
fn link_stat(env: Env<'_>, link: ResourceArc<LinkResource>) -> Term<'_> {
    measured!("link_stat", normal);
    match link.link.stat() {
        Some((received, sent, waiting)) => (atoms::ok(), received, sent, waiting).encode(env),
        None => error(env, atoms::closed()),
    }
}

#[rustler::nif]
fn link_close(link: ResourceArc<LinkResource>) -> Atom {
    measured!("link_close", normal);
    link.link.close();
    atoms::ok()
}
