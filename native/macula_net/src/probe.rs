//! Has a connection try again at once what is lost, now that there may be a path once more.
//!
//! QUIC finds out by itself, but the pauses between its probes double (RFC 9002, 6.2.1): what was cut
//! off for twenty seconds would stand still for up to twenty more.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError};
use tokio::time::sleep;

use crate::congestion::Epoch;

/// The next datagram that is more than a probe.
///
/// # Errors
/// The connection has ended.
pub(crate) async fn next_datagram(connection: &Connection) -> Result<Bytes, ConnectionError> {
    loop {
        let datagram = connection.read_datagram().await?;
        if !datagram.is_empty() {
            return Ok(datagram);
        }
    }
}

/// The next datagrams that are more than probes: one at least, of those that are there already so many
/// at most.
///
/// # Errors
/// The connection has ended.
pub(crate) async fn next_datagrams(
    connection: &Connection,
    most: usize,
    datagrams: &mut Vec<Bytes>,
) -> Result<(), ConnectionError> {
    datagrams.push(next_datagram(connection).await?);
    while datagrams.len() < most
        && let Some(Ok(next)) = at_once(next_datagram(connection)).await
    {
        datagrams.push(next);
    }
    Ok(())
}

/// What comes of `future` without waiting.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Probes one connection.
///
/// A fresh packet is worth more than a former one sent again: that would be acknowledged as well, but
/// as one that took as long as the path was dead, and what QUIC makes of such a round trip is another
/// long pause.
#[derive(Debug)]
pub(crate) struct Probe {
    connection: Connection,
    epoch: Epoch,
}

impl Probe {
    /// For this connection, whose peer takes datagrams and leaves empty ones alone.
    pub(crate) fn new(connection: Connection) -> Probe {
        Probe { epoch: Epoch::of(&connection), connection }
    }

    /// Sends something that asks for an acknowledgement, whatever else is under way: with the answer
    /// QUIC knows what was lost.
    pub(crate) fn send(&self) {
        self.epoch.advance();
        // Fails only when the connection has ended.
        let _ = self.connection.send_datagram(Bytes::new());
    }

    /// The same again and again.
    pub(crate) async fn insist<Never>(&self, pause: Duration) -> Never {
        loop {
            self.send();
            sleep(pause).await;
        }
    }
}
