//! Carries out the hello of `macula_core::hello` on the first stream of a connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use macula_core::hello::{
    self, Acceptor, Asked, Dialler, Failure, Local, MAX_MESSAGE, Peer, Refusal, Step, Wanted,
};
use macula_core::keys::CookieKey;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::time::timeout;

use crate::certificate::CertificateFault;
use crate::endpoint::Shared;
use crate::framing::{self, NoMessage};
use crate::registry;
use crate::tls::{self, shown};

/// The label of the keying material a hello is bound to (RFC 8446, 7.5; RFC 5705, 4).
const EXPORTER: &[u8] = b"EXPORTER-macula-hello-v1";

/// How long a side that is refused may take to hear why. It may be gone already.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    /// This side refused the other one's certificate. Named is who showed it, as far as known.
    Certificate(CertificateFault, String),
    /// The other side refused this one's certificate.
    OwnCertificate(CertificateFault),
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
    let greeting = async {
        check_chain(connection, node)?;
        accept_hello(connection, node, name).await
    };
    greeting.await.map_err(|error| explained(connection, error))
}

async fn accept_hello(
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
            Step::Verify(asked) => {
                claimed.clone_from(&asked.name);
                judge(&mut acceptor, connection, node, &asked).await?
            }
            step => step,
        };
        match step {
            Step::Done(peer) => return Ok(Greeted { send, receive, peer }),
            step => answer(&mut send, step, &claimed).await?,
        }
    }
}

/// What to answer to a node that asks for this.
async fn judge(
    acceptor: &mut Acceptor,
    connection: &Connection,
    node: &Shared,
    asked: &Asked,
) -> Result<Step, GreetError> {
    let key = node.key_shared_with(&asked.cookie_of).await.map_err(GreetError::Unable)?;
    let wanted = match acceptor.verify(&key) {
        Ok(wanted) => wanted,
        Err(refused) => return Ok(refused),
    };
    check_name(connection, node, &asked.name)?;
    Ok(match wanted {
        Wanted::Here(peer) if node.is_free(&peer).await => acceptor.welcome(&key),
        Wanted::Here(_) => acceptor.turn_away(Refusal::NameTaken),
        Wanted::Elsewhere(name) => match beside(node, name).await {
            Some(address) => acceptor.redirect(&key, address),
            None => acceptor.turn_away(Refusal::WrongName),
        },
    })
}

/// Where on this machine the node `name` runs.
async fn beside(node: &Shared, name: String) -> Option<SocketAddr> {
    let registry = node.registry()?.clone();
    let find = tokio::task::spawn_blocking(move || registry::find(&registry, &name));
    let address = find.await.ok()?.ok()??;
    // Loopback stands for all addresses in the registry: here, for the one dialled.
    match address.ip().is_loopback() {
        true => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port())),
        false => Some(address),
    }
}

/// The dialling side: returns when the other side has proved to be `target`, before choosing it.
pub(crate) async fn dial(
    connection: &Connection,
    node: &Shared,
    name: String,
    target: String,
    key: Arc<CookieKey>,
) -> Result<Greeted, GreetError> {
    let greeting = async {
        check_chain(connection, node)?;
        // Before the claim: its proof is something to guess the cookie by.
        check_name(connection, node, &target)?;
        dial_hello(connection, node, name, target, key).await
    };
    greeting.await.map_err(|error| explained(connection, error))
}

async fn dial_hello(
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

fn check_chain(connection: &Connection, node: &Shared) -> Result<(), GreetError> {
    let judged = node.tls().credentials.judge(&shown(connection));
    judged.map_err(|fault| refuse_certificate(connection, fault, ""))
}

fn check_name(connection: &Connection, node: &Shared, name: &str) -> Result<(), GreetError> {
    let judged = node.tls().credentials.judge_name(&shown(connection), name);
    judged.map_err(|fault| refuse_certificate(connection, fault, name))
}

/// The code of the close tells the other side why.
fn refuse_certificate(connection: &Connection, fault: CertificateFault, name: &str) -> GreetError {
    connection.close(fault.code(), b"certificate");
    GreetError::Certificate(fault, name.to_owned())
}

/// The reason the other side has closed the connection for, if that tells more than `error`.
fn explained(connection: &Connection, error: GreetError) -> GreetError {
    match (&error, connection.close_reason()) {
        (GreetError::Lost(_), Some(ConnectionError::ApplicationClosed(close))) => {
            CertificateFault::of_code(close.error_code).map_or(error, GreetError::OwnCertificate)
        }
        _ => error,
    }
}

/// Tells the other side that this link is the one chosen.
pub(crate) async fn begin(greeted: &mut Greeted) -> Result<(), GreetError> {
    greeted.send.write_all(&hello::begin()).await.map_err(lost)
}

fn local(connection: &Connection, node: &Shared, name: String) -> Result<Local, GreetError> {
    let exporter = tls::exporter(connection, EXPORTER)
        .ok_or_else(|| GreetError::Unable("TLS gave no keying material".into()))?;
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
                let _ = timeout(LAST_WORDS, send.stopped()).await;
            }
            Err(GreetError::Hello(failure, other.to_owned()))
        }
        // Both are taken care of by the callers, each for its side.
        Step::Verify(_) | Step::Done(_) => Err(malformed()),
    }
}

async fn read_message(receive: &mut RecvStream) -> Result<Vec<u8>, GreetError> {
    framing::read(receive, MAX_MESSAGE).await.map_err(|none| match none {
        NoMessage::TooLong(_) | NoMessage::Ended => malformed(),
        NoMessage::Lost(text) => GreetError::Lost(text),
    })
}

fn malformed() -> GreetError {
    GreetError::Hello(Failure::Malformed, String::new())
}

fn lost(error: impl std::fmt::Display) -> GreetError {
    GreetError::Lost(error.to_string())
}
