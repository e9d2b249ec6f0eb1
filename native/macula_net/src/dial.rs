//! Dialling a node: all its addresses, staggered and raced; the first good hello wins.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use macula_core::hello::{Failure, Refusal};
use macula_core::keys::CookieKey;
use quinn::{Connection, ConnectionError, TransportErrorCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::cookies::Cookie;
use crate::endpoint::{Endpoint, Shared};
use crate::greet::{self, GreetError, Greeted};
use crate::link::Link;
use crate::socket::to_label;
use crate::tls;

/// How long an attempt runs alone before the next address is tried beside it (RFC 8305, 5 asks
/// for 100 ms to 2 s and recommends 250 ms; our addresses are sorted by likelihood already).
const STAGGER: Duration = Duration::from_millis(150);

/// Addresses tried at most: nobody has more, and a hostile name server may say so.
const MAX_ADDRESSES: usize = 16;

/// Reports of a closed port before an attempt is given up: one may be about something older.
const CLOSED_PORT_REPORTS: u32 = 2;

/// Why an address gave no link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialError {
    /// Nothing answered in time.
    Timeout,
    /// Nothing listens on that port.
    PortClosed,
    /// It takes no new connections now: it is shutting down, or has too many strangers.
    Busy,
    /// The hello was refused by the other side.
    Refused(Refusal),
    /// The other side speaks these protocol versions only.
    Version(u8, u8),
    /// What answers is not macula.
    NotMacula(String),
    /// The TLS handshake failed.
    Tls(String),
    /// The connection could not be tried or broke off.
    Io(String),
}

/// Whom to dial, and as whom.
#[derive(Clone)]
pub struct DialRequest {
    /// Where the node may be, likeliest first.
    pub addresses: Vec<SocketAddr>,
    /// This node's name; empty: to be given one.
    pub name: String,
    /// The node wanted.
    pub target: String,
    /// The cookie shared with it.
    pub cookie: Cookie,
    /// How long the whole may take.
    pub limit: Duration,
}

type Failures = Vec<(SocketAddr, DialError)>;

impl Endpoint {
    /// Opens a link to a node at one of its addresses.
    ///
    /// # Errors
    /// The reason of each address tried.
    pub async fn dial(&self, request: DialRequest) -> Result<Arc<Link>, Failures> {
        let DialRequest { addresses, name, target, cookie, limit } = request;
        let deadline = Instant::now() + limit;
        let key = match self.shared.keys.key(&cookie).await {
            Ok(key) => key,
            Err(error) => {
                let failed = |address| (address, DialError::Io(error.clone()));
                return Err(addresses.into_iter().map(failed).collect());
            }
        };
        let mut waiting = addresses.into_iter().take(MAX_ADDRESSES);
        let mut attempts = JoinSet::new();
        let mut failures = Vec::new();
        loop {
            if let Some(address) = waiting.next() {
                let open =
                    open(self.shared.clone(), address, name.clone(), target.clone(), key.clone());
                attempts.spawn(async move {
                    let link = timeout_at(deadline, open).await;
                    (address, link.unwrap_or(Err(DialError::Timeout)))
                });
            }
            let next = if waiting.len() == 0 { deadline } else { Instant::now() + STAGGER };
            tokio::select! {
                ended = attempts.join_next() => match ended {
                    None if waiting.len() == 0 => return Err(failures),
                    // A panic in an attempt: it is over like any other that failed.
                    None | Some(Err(_)) => {}
                    Some(Ok((_, Ok(link)))) => return Ok(link),
                    Some(Ok((address, Err(error)))) => failures.push((address, error)),
                },
                () = sleep_until(next), if waiting.len() > 0 => {}
            }
        }
    }
}

async fn open(
    shared: Arc<Shared>,
    address: SocketAddr,
    name: String,
    target: String,
    key: Arc<CookieKey>,
) -> Result<Arc<Link>, DialError> {
    let connection = connect(&shared, address).await?;
    let greeted = greet::dial(&connection, &shared, name, target, key).await;
    let mut greeted = greeted.map_err(not_greeted)?;
    choose(&mut greeted).await?;
    Ok(shared.link(connection, greeted))
}

/// The attempts that lose are dropped before they get here, so that the other node hears of one
/// link only; two that win at the very same time are sorted out by OTP's handshake.
async fn choose(greeted: &mut Greeted) -> Result<(), DialError> {
    greet::begin(greeted).await.map_err(not_greeted)
}

async fn connect(shared: &Shared, address: SocketAddr) -> Result<Connection, DialError> {
    let label = to_label(address);
    let reports = shared.reports.watch(label);
    let connecting = shared.quinn.connect(label, tls::SERVER_NAME).map_err(io)?;
    let port_closed = async {
        for _ in 0..CLOSED_PORT_REPORTS {
            reports.next().await;
        }
    };
    tokio::select! {
        connection = connecting => connection.map_err(not_connected),
        () = port_closed => Err(DialError::PortClosed),
    }
}

fn io(error: impl std::fmt::Display) -> DialError {
    DialError::Io(error.to_string())
}

fn not_connected(error: ConnectionError) -> DialError {
    /// The TLS alert "no application protocol" as a QUIC error (RFC 9001, 4.8).
    const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
    match error {
        ConnectionError::VersionMismatch => {
            DialError::NotMacula("it speaks another version of QUIC".into())
        }
        ConnectionError::ConnectionClosed(close)
            if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL =>
        {
            DialError::NotMacula("a QUIC server of another protocol".into())
        }
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            DialError::Busy
        }
        ConnectionError::TransportError(error) => DialError::Tls(error.to_string()),
        ConnectionError::ConnectionClosed(close) => DialError::Tls(close.to_string()),
        other => io(other),
    }
}

fn not_greeted(error: GreetError) -> DialError {
    match error {
        GreetError::Hello(Failure::Refused(refusal) | Failure::Refusing(refusal), _) => {
            DialError::Refused(refusal)
        }
        GreetError::Hello(Failure::Version(low, high), _) => DialError::Version(low, high),
        GreetError::Hello(Failure::Malformed, _) => {
            DialError::NotMacula("its hello cannot be read".into())
        }
        GreetError::Lost(text) | GreetError::Unable(text) => DialError::Io(text),
    }
}
