//! The well-known port of a machine, when the node that owned it has gone: another one takes it as
//! well, and sends those who come there to the node they want, until the port is asked back.
//!
//! Who stands in holds a lock on a file beside the registry; who wants the port back for itself
//! leaves another file there. Both are of one user and one network namespace, as the registry is.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quinn::VarInt;
use tokio::time::sleep;

use crate::accept;
use crate::endpoint::Shared;
use crate::marker;
use crate::socket::MeshSocket;

/// How often a node looks whether the port is free. Node names without a port do not reach this
/// machine as long as nobody has it.
const LOOK: Duration = Duration::from_secs(1);

/// How often who stands in looks whether the port is wanted back.
const WANTED: Duration = Duration::from_millis(100);

/// How long a node waits for a port it asked back.
const ASK: Duration = Duration::from_secs(2);

/// How long the goodbyes of those who are still being sent elsewhere may take.
const GOODBYE: Duration = Duration::from_millis(100);

/// What this node does at the well-known port, if it stands in there.
#[derive(Default)]
pub(crate) struct WellKnown(Mutex<Option<Door>>);

struct Door {
    quinn: quinn::Endpoint,
    socket: Arc<MeshSocket>,
}

impl WellKnown {
    /// Takes new certificates into use.
    pub(crate) fn renew(&self, server: quinn::ServerConfig) {
        if let Some(door) = &*self.0.lock() {
            door.quinn.set_server_config(Some(server));
        }
    }

    /// Stops standing in, once those who are being sent elsewhere know, and returns when the port
    /// is free.
    pub(crate) async fn close(&self) {
        let door = self.0.lock().take();
        if let Some(Door { quinn, socket }) = door {
            quinn.close(VarInt::from_u32(0), b"closed");
            let _ = tokio::time::timeout(GOODBYE, quinn.wait_idle()).await;
            socket.close();
        }
    }

    /// Stops standing in at once.
    pub(crate) fn hang_up(&self) {
        if let Some(Door { quinn, socket }) = self.0.lock().take() {
            quinn.close(VarInt::from_u32(0), b"closed");
            socket.close();
        }
    }
}

/// Takes the port whenever nobody has it, for as long as the endpoint is there.
pub(crate) async fn run(shared: Weak<Shared>, port: u16, registry: PathBuf) {
    loop {
        sleep(LOOK).await;
        let Some(endpoint) = shared.upgrade().filter(|endpoint| !endpoint.is_closing()) else {
            return;
        };
        let Some((socket, _post)) = take(&registry, endpoint.interface(), port) else {
            continue;
        };
        let Ok(quinn) = endpoint.open_beside(socket.clone()) else {
            continue;
        };
        *endpoint.well_known.0.lock() = Some(Door { quinn: quinn.clone(), socket });
        if endpoint.is_closing() {
            // Whoever closes it may not have seen this door.
            endpoint.well_known.hang_up();
            return;
        }
        tokio::spawn(accept::run(endpoint.clone(), quinn, accept::Door::Shared));
        drop(endpoint);
        while !is_wanted(&registry, port) && is_open(&shared) {
            sleep(WANTED).await;
        }
        if let Some(endpoint) = shared.upgrade() {
            endpoint.well_known.close().await;
        }
        // Whoever asked for it binds it now.
        sleep(ASK).await;
        let _ = fs::remove_file(wanted(&registry, port));
    }
}

fn is_open(shared: &Weak<Shared>) -> bool {
    shared.upgrade().is_some_and(|endpoint| endpoint.well_known.0.lock().is_some())
}

/// The port and the lock of who stands in there, if both are free.
fn take(registry: &Path, ip: Option<IpAddr>, port: u16) -> Option<(Arc<MeshSocket>, File)> {
    let post = marker::open(&post(registry, port)).ok()?;
    post.try_lock().ok()?;
    Some((MeshSocket::bind(ip, port).ok()?, post))
}

/// The port, if a node stands in there and gives it back. Waits for that.
pub(crate) fn ask_back(registry: &Path, ip: Option<IpAddr>, port: u16) -> Option<Arc<MeshSocket>> {
    let post = File::open(post(registry, port)).ok()?;
    if post.try_lock().is_ok() {
        return None;
    }
    let wanted = wanted(registry, port);
    marker::open(&wanted).ok()?;
    let asked = Instant::now();
    let mut socket = None;
    while socket.is_none() && asked.elapsed() < ASK {
        std::thread::sleep(WANTED / 2);
        socket = MeshSocket::bind(ip, port).ok();
    }
    let _ = fs::remove_file(wanted);
    socket
}

fn is_wanted(registry: &Path, port: u16) -> bool {
    wanted(registry, port).exists()
}

// Names that are no entries of the registry.

fn post(registry: &Path, port: u16) -> PathBuf {
    registry.join(format!(".stands-in-{port}"))
}

fn wanted(registry: &Path, port: u16) -> PathBuf {
    registry.join(format!(".wanted-{port}"))
}
