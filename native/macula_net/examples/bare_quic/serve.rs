//! The side that echoes and counts.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;

use macula_core::dist::memory::Memory;
use macula_net::transport;

use crate::{ECHO, SINK, SMALL, TIMED_SINK};

/// Chunks taken from quinn at once, as a link does.
const CHUNKS: usize = 32;

pub async fn run(endpoint: Endpoint, mut lines: mpsc::UnboundedReceiver<String>) {
    println!("port {}", endpoint.local_addr().unwrap().port());
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                tokio::spawn(connection(incoming.unwrap()));
            }
            _ = lines.recv() => {}
        }
    }
}

async fn connection(incoming: quinn::Incoming) {
    let Ok(connection) = incoming.await else { return };
    transport::admit(&connection, None, &Memory::default().shares(None));
    while let Ok(stream) = connection.accept_bi().await {
        tokio::spawn(serve(connection.clone(), stream));
    }
}

async fn serve(_: Connection, (send, mut receive): (SendStream, RecvStream)) {
    let mut kind = [0];
    if receive.read_exact(&mut kind).await.is_err() {
        return;
    }
    match kind[0] {
        ECHO => echo(send, receive).await,
        SINK => sink(send, receive).await,
        TIMED_SINK => timed_sink(send, receive).await,
        other => panic!("a stream for {other}"),
    }
}

async fn echo(mut send: SendStream, mut receive: RecvStream) {
    let mut message = [0; SMALL];
    while receive.read_exact(&mut message).await.is_ok() {
        send.write_all(&message).await.unwrap();
    }
}

async fn sink(mut send: SendStream, mut receive: RecvStream) {
    let mut received = 0;
    count(&mut receive, &mut received).await;
    // The other side may be gone, as at the end of a run.
    let _ = send.write_all(&received.to_be_bytes()).await;
}

/// What stands in buffers at the end would take a slow line many seconds: so the clock is here.
async fn timed_sink(mut send: SendStream, mut receive: RecvStream) {
    let mut ms = [0; 8];
    if receive.read_exact(&mut ms).await.is_err() {
        return;
    }
    let limit = Duration::from_millis(u64::from_be_bytes(ms));
    let mut received = 0;
    let _ = tokio::time::timeout(limit / 5, count(&mut receive, &mut received)).await;
    received = 0;
    let began = Instant::now();
    let _ = tokio::time::timeout(limit, count(&mut receive, &mut received)).await;
    let figures = [received.to_be_bytes(), (began.elapsed().as_nanos() as u64).to_be_bytes()];
    let _ = send.write_all(&figures.concat()).await;
    let _ = receive.stop(VarInt::from_u32(0));
}

async fn count(receive: &mut RecvStream, received: &mut u64) {
    let mut chunks = vec![Bytes::new(); CHUNKS];
    while let Ok(Some(count)) = receive.read_chunks(&mut chunks).await {
        *received += chunks[..count].iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    }
}
