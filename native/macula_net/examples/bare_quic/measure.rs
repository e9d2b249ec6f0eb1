//! The side that measures.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;

use macula_core::dist::memory::Memory;
use macula_net::transport;

use crate::{ECHO, SINK, SMALL, TIMED_SINK};

pub async fn run(
    endpoint: Endpoint,
    address: SocketAddr,
    mut lines: mpsc::UnboundedReceiver<String>,
) {
    let connection = connect(&endpoint, address).await;
    println!("up");
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        let figures = match words[..] {
            ["round_trip", ms] => round_trips(&connection, millis(ms)).await,
            ["stream", size, ms] => stream(&connection, size.parse().unwrap(), millis(ms)).await,
            ["slow_stream", size, ms] => {
                slow_stream(&connection, size.parse().unwrap(), millis(ms)).await
            }
            ["connect", count] => handshakes(&endpoint, address, count.parse().unwrap()).await,
            _ => panic!("no such load: {line}"),
        };
        let figures: Vec<String> = figures.iter().map(u64::to_string).collect();
        println!("{}", figures.join(" "));
    }
}

fn millis(text: &str) -> Duration {
    Duration::from_millis(text.parse().unwrap())
}

async fn connect(endpoint: &Endpoint, address: SocketAddr) -> Connection {
    let connection = endpoint.connect(address, "macula").unwrap().await.unwrap();
    transport::admit(&connection, None, &Memory::default().shares(None));
    connection
}

async fn open(connection: &Connection, kind: u8) -> (SendStream, RecvStream) {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(&[kind]).await.unwrap();
    (send, receive)
}

async fn round_trips(connection: &Connection, limit: Duration) -> Vec<u64> {
    let (mut send, mut receive) = open(connection, ECHO).await;
    let mut message = [7; SMALL];
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < limit {
        let sent = Instant::now();
        send.write_all(&message).await.unwrap();
        receive.read_exact(&mut message).await.unwrap();
        times.push(nanos(sent));
    }
    send.finish().unwrap();
    times
}

async fn stream(connection: &Connection, size: usize, limit: Duration) -> Vec<u64> {
    let (mut send, mut receive) = open(connection, SINK).await;
    let message = Bytes::from(vec![7; size]);
    let began = Instant::now();
    while began.elapsed() < limit {
        send.write_chunk(message.clone()).await.unwrap();
    }
    send.finish().unwrap();
    let mut received = [0; 8];
    receive.read_exact(&mut received).await.unwrap();
    vec![u64::from_be_bytes(received), nanos(began)]
}

async fn slow_stream(connection: &Connection, size: usize, limit: Duration) -> Vec<u64> {
    let (mut send, mut receive) = open(connection, TIMED_SINK).await;
    send.write_all(&(limit.as_millis() as u64).to_be_bytes()).await.unwrap();
    let message = Bytes::from(vec![7; size]);
    let mut figures = [0; 16];
    tokio::select! {
        read = receive.read_exact(&mut figures) => read.unwrap(),
        () = fill(&mut send, message) => unreachable!(),
    }
    let _ = send.reset(VarInt::from_u32(0));
    let (bytes, ns) = figures.split_at(8);
    [bytes, ns].iter().map(|figure| u64::from_be_bytes((*figure).try_into().unwrap())).collect()
}

/// Sends until the other side wants no more, and then waits for ever.
async fn fill(send: &mut SendStream, message: Bytes) {
    while send.write_chunk(message.clone()).await.is_ok() {}
    std::future::pending().await
}

async fn handshakes(endpoint: &Endpoint, address: SocketAddr, count: usize) -> Vec<u64> {
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let connection = connect(endpoint, address).await;
        times.push(nanos(began));
        connection.close(VarInt::from_u32(0), b"");
    }
    times
}

fn nanos(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}
