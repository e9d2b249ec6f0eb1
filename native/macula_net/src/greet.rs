//! Carries out the hello of `macula_core::hello` on the first stream of a connection.

use std::sync::Arc;

use macula_core::hello::{
    self, Acceptor, Dialler, Failure, Local, MAX_MESSAGE, Peer, Refusal, Step,
};
use macula_core::keys::{self, CookieKey};
use quinn::{Connection, ReadExactError, RecvStream, SendStream};

use crate::endpoint::Shared;

/// The label of the keying material a hello is bound to (RFC 8446, 7.5; RFC 5705, 4).
const EXPORTER: &[u8] = b"EXPORTER-macula-hello-v1";

/// The stream of a link with what its hello told of the other side.
pub(crate) struct Greeted {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) peer: Peer,
}

/// Why there was no hello.
#[derive(Debug)]
pub(crate) enum GreetError {
    /// The other side, or this one, refused. Named is who was refused, as far as known.
    Hello(Failure, String),
    /// The connection ended.
    Lost(String),
    /// This side could not go on.
    Unable(String),
}

/// The accepting side: opens the stream, and returns once the dialler has chosen this link.
pub(crate) async fn accept(
    connection: &Connection,
    node: &Shared,
    name: String,
) -> Result<Greeted, GreetError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
    let (mut acceptor, offer) = Acceptor::new(local(connection, node, name)?);
    send.write_all(&offer).await.map_err(lost)?;
    let mut claimed = String::new();
    loop {
        let message = read_message(&mut receive).await?;
        let step = match acceptor.receive(&message) {
            Step::Verify(name) => {
                claimed.clone_from(&name);
                judge(&mut acceptor, node, &name).await?
            }
            step => step,
        };
        match step {
            Step::Done(peer) => return Ok(Greeted { send, receive, peer }),
            step => answer(&mut send, step, &claimed).await?,
        }
    }
}

/// What to answer to a node that claims to be `name`.
async fn judge(acceptor: &mut Acceptor, node: &Shared, name: &str) -> Result<Step, GreetError> {
    let key = node.key_shared_with(name).await.map_err(GreetError::Unable)?;
    Ok(match acceptor.verify(&key) {
        Err(refused) => refused,
        Ok(peer) if node.is_free(&peer).await => acceptor.welcome(&key),
        Ok(_) => acceptor.turn_away(Refusal::NameTaken),
    })
}

/// The dialling side: returns when the other side has proved to be `target`, before choosing it.
pub(crate) async fn dial(
    connection: &Connection,
    node: &Shared,
    name: String,
    target: String,
    key: Arc<CookieKey>,
) -> Result<Greeted, GreetError> {
    let (mut send, mut receive) = connection.accept_bi().await.map_err(lost)?;
    let mut dialler = Dialler::new(local(connection, node, name)?, target.clone());
    loop {
        let message = read_message(&mut receive).await?;
        match dialler.receive(&message, &key) {
            Step::Done(peer) => return Ok(Greeted { send, receive, peer }),
            step => answer(&mut send, step, &target).await?,
        }
    }
}

/// Tells the other side that this link is the one chosen.
pub(crate) async fn begin(greeted: &mut Greeted) -> Result<(), GreetError> {
    greeted.send.write_all(&hello::begin()).await.map_err(lost)
}

fn local(connection: &Connection, node: &Shared, name: String) -> Result<Local, GreetError> {
    let mut exporter = [0; keys::LEN];
    connection
        .export_keying_material(&mut exporter, EXPORTER, b"")
        .map_err(|_| GreetError::Unable("TLS gave no keying material".into()))?;
    node.local(name, exporter).map_err(|error| GreetError::Unable(error.to_string()))
}

/// Sends what a step says, and fails when it says so.
async fn answer(send: &mut SendStream, step: Step, other: &str) -> Result<(), GreetError> {
    match step {
        Step::Reply(reply) => send.write_all(&reply).await.map_err(lost),
        Step::Failed(reply, failure) => {
            if let Some(reply) = reply {
                send.write_all(&reply).await.map_err(lost)?;
                let _ = send.finish();
                // Closing the connection now would discard the reason just written.
                let _ = send.stopped().await;
            }
            Err(GreetError::Hello(failure, other.to_owned()))
        }
        // Both are taken care of by the callers, each for its side.
        Step::Verify(_) | Step::Done(_) => Err(malformed()),
    }
}

async fn read_message(receive: &mut RecvStream) -> Result<Vec<u8>, GreetError> {
    let mut len = [0; 2];
    receive.read_exact(&mut len).await.map_err(ended)?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > MAX_MESSAGE {
        return Err(malformed());
    }
    let mut message = vec![0; len];
    receive.read_exact(&mut message).await.map_err(ended)?;
    Ok(message)
}

fn malformed() -> GreetError {
    GreetError::Hello(Failure::Malformed, String::new())
}

fn ended(error: ReadExactError) -> GreetError {
    match error {
        ReadExactError::FinishedEarly(_) => malformed(),
        ReadExactError::ReadError(error) => lost(error),
    }
}

fn lost(error: impl std::fmt::Display) -> GreetError {
    GreetError::Lost(error.to_string())
}
