//! Carries out the hello of `macula_core::hello` on the first stream of a connection.

use macula_core::hello::{self, Acceptor, Dialler, Failure, Local, MAX_MESSAGE, Peer, Step};
use quinn::{Connection, ReadExactError, RecvStream, SendStream};

/// The stream of a link with what its hello told of the other side.
pub(crate) struct Greeted {
    pub(crate) send: SendStream,
    pub(crate) receive: RecvStream,
    pub(crate) peer: Peer,
}

/// Why there was no hello.
#[derive(Debug)]
pub(crate) enum GreetError {
    /// The other side, or this one, refused.
    Hello(Failure),
    /// The connection ended.
    Lost(String),
}

/// The accepting side: opens the stream, and returns once the dialler has chosen this link.
pub(crate) async fn accept(connection: &Connection, local: Local) -> Result<Greeted, GreetError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
    let (mut acceptor, offer) = Acceptor::new(local);
    send.write_all(&offer).await.map_err(lost)?;
    let step = |message: &[u8]| acceptor.receive(message);
    let peer = exchange(&mut send, &mut receive, step).await?;
    Ok(Greeted { send, receive, peer })
}

/// The dialling side: returns when the other side is known to be `target`, before choosing it.
pub(crate) async fn dial(
    connection: &Connection,
    local: Local,
    target: String,
) -> Result<Greeted, GreetError> {
    let (mut send, mut receive) = connection.accept_bi().await.map_err(lost)?;
    let mut dialler = Dialler::new(local, target);
    let step = |message: &[u8]| dialler.receive(message);
    let peer = exchange(&mut send, &mut receive, step).await?;
    Ok(Greeted { send, receive, peer })
}

/// Tells the other side that this link is the one chosen.
pub(crate) async fn begin(greeted: &mut Greeted) -> Result<(), GreetError> {
    greeted.send.write_all(&hello::begin()).await.map_err(lost)
}

async fn exchange(
    send: &mut SendStream,
    receive: &mut RecvStream,
    mut step: impl FnMut(&[u8]) -> Step,
) -> Result<Peer, GreetError> {
    loop {
        let message = read_message(receive).await?;
        match step(&message) {
            Step::Reply(reply) => send.write_all(&reply).await.map_err(lost)?,
            Step::Done(peer) => return Ok(peer),
            Step::Failed(reply, failure) => {
                if let Some(reply) = reply {
                    send.write_all(&reply).await.map_err(lost)?;
                    let _ = send.finish();
                    // Closing the connection now would discard the reason just written.
                    let _ = send.stopped().await;
                }
                return Err(GreetError::Hello(failure));
            }
        }
    }
}

async fn read_message(receive: &mut RecvStream) -> Result<Vec<u8>, GreetError> {
    let mut len = [0; 2];
    receive.read_exact(&mut len).await.map_err(ended)?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > MAX_MESSAGE {
        return Err(GreetError::Hello(Failure::Malformed));
    }
    let mut message = vec![0; len];
    receive.read_exact(&mut message).await.map_err(ended)?;
    Ok(message)
}

fn ended(error: ReadExactError) -> GreetError {
    match error {
        ReadExactError::FinishedEarly(_) => GreetError::Hello(Failure::Malformed),
        ReadExactError::ReadError(error) => lost(error),
    }
}

fn lost(error: impl std::fmt::Display) -> GreetError {
    GreetError::Lost(error.to_string())
}
