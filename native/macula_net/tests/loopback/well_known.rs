//! The well-known port of a machine: who comes there is sent to the node it wants.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use macula_core::hello::Refusal;
use macula_net::registry::Registration;
use macula_net::{Cookie, DialError, DialRequest, Endpoint, EndpointConfig};

use crate::support::*;

/// The directory of a registry, removed at the end.
struct Machine(PathBuf);

impl Machine {
    fn new(test: &str) -> Machine {
        let name = format!("macula-well-known-{test}-{}", std::process::id());
        let machine = Machine(std::env::temp_dir().join(name));
        let _ = std::fs::remove_dir_all(&machine.0);
        machine
    }

    /// A node of this machine at `at`, which may stand in at the port of `well_known`.
    fn node(
        &self,
        name: &str,
        at: SocketAddr,
        well_known: Option<SocketAddr>,
    ) -> (Endpoint, Registration) {
        let config = EndpointConfig {
            registry: Some(self.0.clone()),
            well_known_port: well_known.map(|address| address.port()),
            ..config(Some(at.ip()), at.port(), name)
        };
        let endpoint = Endpoint::open(&config, Arc::new(Knows(COOKIE))).unwrap();
        let entry = Registration::publish(&self.0, name, endpoint.address()).unwrap();
        (endpoint, entry)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A free port of a loopback address that only one test uses.
fn place(last: u8) -> SocketAddr {
    let socket = std::net::UdpSocket::bind((IpAddr::from([127, 0, 78, last]), 0)).unwrap();
    socket.local_addr().unwrap()
}

fn any(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), 0)
}

/// Dials until somebody is there.
async fn reach(a: &Endpoint, address: SocketAddr, target: &str) {
    soon("reaching a node", async {
        while dial(a, &[address], target).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proves_the_cookie_is_sent_to_a_node_beside() {
    let (machine, at) = (Machine::new("beside"), place(1));
    let (owner, _owner) = machine.node("owner", at, None);
    let (b, _b) = machine.node("b", any(at), None);
    let a = open_at(Some(at.ip()), 0, "a");
    let link = dial(&a, &[at], "b").await.unwrap();
    assert_eq!((link.address(), link.peer().name.as_str()), (b.address(), "b"));
    let stranger =
        DialRequest { cookie: Cookie::new(b"another".to_vec()), ..request(&[at], "b", HANG) };
    let failures = soon("a dial", a.dial(stranger)).await.err().unwrap();
    assert_eq!(failures, [(Way::Address(at), DialError::Refused(Refusal::Proof))]);
    assert_eq!(failure_of(&a, at, "nobody").await, DialError::Refused(Refusal::WrongName));
    drop(owner);
}

async fn failure_of(a: &Endpoint, at: SocketAddr, target: &str) -> DialError {
    dial(a, &[at], target).await.err().unwrap().remove(0).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_owner_goes_another_node_stands_in() {
    let (machine, at) = (Machine::new("stand-in"), place(2));
    let (owner, owners) = machine.node("owner", at, None);
    let (b, bs) = machine.node("b", any(at), Some(at));
    let (c, _cs) = machine.node("c", any(at), Some(at));
    let a = open_at(Some(at.ip()), 0, "a");
    drop(owners);
    owner.shut_down().await;
    reach(&a, at, "b").await;
    reach(&a, at, "c").await;
    // Whichever of the two it was, the other one can do it as well.
    drop(bs);
    b.shut_down().await;
    reach(&a, at, "c").await;
    c.shut_down().await;
    assert!(std::net::UdpSocket::bind(at).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_is_given_back_to_who_is_configured_for_it() {
    let (machine, at) = (Machine::new("back"), place(3));
    let (_b, _bs) = machine.node("b", any(at), Some(at));
    let a = open_at(Some(at.ip()), 0, "a");
    reach(&a, at, "b").await;
    let open = || machine.node("owner", at, None);
    let (owner, _owners) = tokio::task::block_in_place(open);
    assert_eq!(owner.address(), at);
    let link = dial(&a, &[at], "owner").await.unwrap();
    assert_eq!(link.address(), at);
    reach(&a, at, "b").await;
}
