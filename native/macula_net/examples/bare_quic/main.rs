//! Plain QUIC between two processes, with the parameters of a link and nothing of Erlang: the limit
//! that `./dev bench` shows beside macula.
//!
//! ```text
//! bare_quic serve IP          says "port N"
//! bare_quic measure ADDRESS   says "up", then answers each line of its standard input with one:
//!     round_trip MS           times of all round trips of 64 bytes, in ns
//!     stream SIZE MS          bytes and ns, of messages of that size one after another
//!     slow_stream SIZE MS     the same as the receiver sees it, after a fifth of that time
//!     connect COUNT           times of all handshakes, in ns
//! ```
//!
//! Both end with their standard input. One thread each, as a node has on a small machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/shared/foreign.rs"]
#[allow(dead_code)] // Others need the rest of it.
mod foreign;
mod measure;
mod serve;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use macula_net::{Congestion, mtu, transport};
use tokio::sync::mpsc;

/// What a stream is for, said by its first byte.
const ECHO: u8 = b'e';
const SINK: u8 = b's';
const TIMED_SINK: u8 = b't';

/// Bytes of a round trip's message: what a small tuple takes as a distribution frame.
const SMALL: usize = 64;

/// Socket buffers asked for, in bytes, as a node does.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let lines = standard_input();
    match arguments[..] {
        ["serve", ip] => {
            let ip = ip.parse().unwrap();
            serve::run(endpoint(ip, largest_at(ip)), lines).await;
        }
        ["measure", address] => {
            let address: SocketAddr = address.parse().unwrap();
            let largest = mtu::largest(address);
            measure::run(endpoint(any(address), largest), address, lines).await;
        }
        _ => panic!("usage: see the first lines of examples/bare_quic/main.rs"),
    }
}

/// All addresses of the family of `address`.
fn any(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Bytes of the largest datagrams to whoever calls there.
fn largest_at(ip: IpAddr) -> u16 {
    if ip.is_loopback() { mtu::largest((ip, 0).into()) } else { mtu::USUAL }
}

/// An endpoint like that of a node: same parameters, same socket buffers.
fn endpoint(ip: IpAddr, largest: u16) -> quinn::Endpoint {
    let domain = socket2::Domain::for_address(SocketAddr::new(ip, 0));
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None).unwrap();
    socket.set_recv_buffer_size(SOCKET_BUFFER).unwrap();
    socket.set_send_buffer_size(SOCKET_BUFFER).unwrap();
    socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    let mut server = foreign::server_config(&[foreign::ALPN]);
    let parameters = |streams| Arc::new(transport::parameters(streams, Congestion::Cubic, largest));
    server.migration(false).transport_config(parameters(1));
    let mut client = foreign::client_config(foreign::ALPN);
    client.transport_config(parameters(0));
    let mut config = quinn::EndpointConfig::default();
    transport::take_large_datagrams(&mut config);
    let mut endpoint =
        quinn::Endpoint::new(config, Some(server), socket.into(), Arc::new(quinn::TokioRuntime))
            .unwrap();
    endpoint.set_default_client_config(client);
    endpoint
}

/// Lines as they come; the end of them ends the program, whatever it is doing.
fn standard_input() -> mpsc::UnboundedReceiver<String> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
        std::process::exit(0);
    });
    receiver
}
