//! A QUIC peer that is no node of ours, for tests of what a node says about it.
//!
//! ```text
//! foreigner h3                        a server of another protocol
//! foreigner silent                    one of our protocol that never says anything
//! foreigner offers LOW HIGH           one that speaks these versions of the hello
//! foreigner claims VERSION ADDRESS    a client that speaks this version of it
//! ```
//!
//! A server says on which port of 127.0.0.1 it listens, and stays until it is killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/shared/foreign.rs"]
#[allow(dead_code)] // Others need the rest of it.
mod foreign;

use std::net::SocketAddr;

use foreign::{ALPN, foreign_client, foreign_server};
use quinn::{Connection, RecvStream, SendStream};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["h3"] => serve(b"h3", &[]).await,
        ["silent"] => serve(ALPN, &[]).await,
        ["offers", low, high] => serve(ALPN, &offer(number(low), number(high))).await,
        ["claims", version, address] => claim(number(version), address.parse().unwrap()).await,
        _ => panic!("usage: see the first lines of examples/foreigner/main.rs"),
    }
}

fn number(text: &str) -> u8 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number below 256"))
}

fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u16 + 1).to_be_bytes()[..], &[kind], &body].concat()
}

/// An OFFER of some later version, which may lay out the rest in another way.
fn offer(low: u8, high: u8) -> Vec<u8> {
    message(1, &[b"macula", &[low, high], b"who knows what"])
}

/// Opens each connection with `first`, if there is anything to say.
async fn serve(alpn: &[u8], first: &[u8]) {
    let (server, address) = foreign_server(&[alpn]);
    println!("listening {}", address.port());
    while let Some(incoming) = server.accept().await {
        let first = first.to_vec();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            let said = match &first[..] {
                [] => None,
                first => Some(say(&connection, first).await),
            };
            connection.closed().await;
            drop(said);
        });
    }
}

/// A stream on which this was said; it ends when it is dropped.
async fn say(connection: &Connection, first: &[u8]) -> (SendStream, RecvStream) {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(first).await.unwrap();
    (send, receive)
}

/// Says what it was answered to a CLAIM of `version`.
async fn claim(version: u8, address: SocketAddr) {
    let connection = foreign_client().connect(address, "node").unwrap().await.unwrap();
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let fields: [&[u8]; 6] =
        [&[version], &[0; 8], &[1], &[2; 48], b"\0\x01a\0\x01b", b"\x01\0\x01x"];
    send.write_all(&message(2, &fields)).await.unwrap();
    let answer = receive.read_to_end(4096).await.unwrap_or_default();
    let offer = 2 + usize::from(u16::from_be_bytes([answer[0], answer[1]]));
    println!("answered {:?}", &answer[offer..]);
}
