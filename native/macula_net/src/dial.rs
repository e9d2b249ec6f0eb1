//! Dialling a node: all its addresses, staggered and raced; the first good hello wins.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use macula_core::hello::{Failure, Refusal};
use macula_core::keys::CookieKey;
use quinn::{Connection, ConnectionError, TransportErrorCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::answers::NOT_IN_QUIC;
use crate::certificate::CertificateFault;
use crate::cookies::Cookie;
use crate::endpoint::{Endpoint, Shared};
use crate::greet::{self, GreetError, Greeted};
use crate::link::Link;
use crate::socket::to_label;
use crate::{mtu, tls, transport};

/// How long an attempt runs alone before the next address is tried beside it (RFC 8305, 5 asks
/// for 100 ms to 2 s and recommends 250 ms; our addresses are sorted by likelihood already).
const STAGGER: Duration = Duration::from_millis(150);

/// Ways tried at most: nobody has more addresses, and a hostile name server may say so.
const MAX_WAYS: usize = 16;

/// Pauses before a busy node is tried again: it may just have too many strangers.
const BUSY_MS: [u64; 4] = [100, 200, 400, 800];

/// Why an address gave no link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialError {
    /// Nothing answered in time.
    Timeout,
    /// It speaks our protocol, but said no hello in time.
    NoHello,
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
    /// Its certificate was refused here.
    Certificate(CertificateFault),
    /// It refused the certificate of this node.
    OwnCertificate(CertificateFault),
    /// The TLS handshake failed.
    Tls(String),
    /// The connection could not be tried or broke off.
    Io(String),
    /// No mesh is joined.
    NoMesh,
    /// No relay of the mesh knows of a node of that name, under that cookie, in that realm.
    NotInMesh,
}

/// A way to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Straight to an address.
    Address(SocketAddr),
    /// Through the mesh that is joined.
    Mesh,
}

/// Whom to dial, and as whom.
#[derive(Clone)]
pub struct DialRequest {
    /// The ways to try, likeliest first.
    pub ways: Vec<Way>,
    /// This node's name; empty: to be given one.
    pub name: String,
    /// The node wanted.
    pub target: String,
    /// The cookie shared with it.
    pub cookie: Cookie,
    /// How long the whole may take.
    pub limit: Duration,
}

type Failures = Vec<(Way, DialError)>;

impl Endpoint {
    /// Opens a link to a node in one of these ways.
    ///
    /// # Errors
    /// The reason of each way tried.
    pub async fn dial(&self, request: DialRequest) -> Result<Arc<Link>, Failures> {
        let DialRequest { ways, name, target, cookie, limit } = request;
        let deadline = Instant::now() + limit;
        let call = match self.shared.keys().link(&cookie).await {
            Ok(key) => Call { shared: self.shared.clone(), name, target, cookie, key, deadline },
            Err(error) => {
                let failed = |way| (way, DialError::Io(error.clone()));
                return Err(ways.into_iter().map(failed).collect());
            }
        };
        let mut waiting = ways.into_iter().take(MAX_WAYS);
        let mut attempts = JoinSet::new();
        let mut failures = Vec::new();
        loop {
            if let Some(way) = waiting.next() {
                let call = call.clone();
                attempts.spawn(async move { (way, call.take(way).await) });
            }
            let next = if waiting.len() == 0 { deadline } else { Instant::now() + STAGGER };
            tokio::select! {
                ended = attempts.join_next() => match ended {
                    None if waiting.len() == 0 => return Err(failures),
                    // A panic in an attempt: it is over like any other that failed.
                    None | Some(Err(_)) => {}
                    Some(Ok((_, Ok(link)))) => return Ok(link),
                    Some(Ok((way, Err(error)))) => failures.push((way, error)),
                },
                () = sleep_until(next), if waiting.len() > 0 => {}
            }
        }
    }
}

/// What all attempts of a dial have in common. Whatever is waited for ends at the deadline, with the
/// name of what was missing.
#[derive(Clone)]
struct Call {
    shared: Arc<Shared>,
    name: String,
    target: String,
    cookie: Cookie,
    key: Arc<CookieKey>,
    deadline: Instant,
}

impl Call {
    async fn take(&self, way: Way) -> Result<Arc<Link>, DialError> {
        match way {
            Way::Address(address) => self.open(address).await,
            Way::Mesh => self.open_through_mesh().await,
        }
    }

    async fn open_through_mesh(&self) -> Result<Arc<Link>, DialError> {
        let mesh = self.shared.mesh().ok_or(DialError::NoMesh)?;
        let route = timeout_at(self.deadline, mesh.route(&self.target, &self.cookie));
        let route = route.await.map_err(|_| DialError::Timeout)?.map_err(DialError::Io)?;
        tokio::select! {
            opened = self.open(route.label) => opened,
            () = route.nobody() => Err(DialError::NotInMesh),
        }
    }

    async fn open(&self, address: SocketAddr) -> Result<Arc<Link>, DialError> {
        let mut pauses = BUSY_MS.iter();
        loop {
            match self.follow(address).await {
                Err(DialError::Busy) => {
                    let pause = pauses.next().ok_or(DialError::Busy)?;
                    let pause = sleep(Duration::from_millis(*pause));
                    timeout_at(self.deadline, pause).await.map_err(|_| DialError::Busy)?;
                }
                opened => return opened,
            }
        }
    }

    /// Opens a link at `address`, or where the node there says that the target is.
    async fn follow(&self, address: SocketAddr) -> Result<Arc<Link>, DialError> {
        let elsewhere = match self.attempt(address).await {
            Err(Attempt::Redirected(elsewhere)) => elsewhere,
            ended => return ended.map_err(Attempt::into_error),
        };
        let ip = if elsewhere.ip().is_unspecified() { address.ip() } else { elsewhere.ip() };
        let address = SocketAddr::new(ip, elsewhere.port());
        // Once is enough: whoever sends us there has just looked.
        self.attempt(address).await.map_err(Attempt::into_error)
    }

    async fn attempt(&self, address: SocketAddr) -> Result<Arc<Link>, Attempt> {
        let connection = self.connect(address).await.map_err(Attempt::Failed)?;
        let greeted = timeout_at(self.deadline, self.greet(&connection)).await;
        let greeted = greeted.unwrap_or(Err(Attempt::Failed(DialError::NoHello)))?;
        Ok(self.shared.link(connection, greeted))
    }

    async fn greet(&self, connection: &Connection) -> Result<Greeted, Attempt> {
        let Call { shared, name, target, key, .. } = self;
        let greeting = greet::dial(connection, shared, name.clone(), target.clone(), key.clone());
        let mut greeted = match greeting.await {
            Err(GreetError::Hello(Failure::Redirected(elsewhere), _)) => {
                return Err(Attempt::Redirected(elsewhere));
            }
            greeted => greeted.map_err(|error| Attempt::Failed(not_greeted(error)))?,
        };
        choose(&mut greeted).await.map_err(Attempt::Failed)?;
        Ok(greeted)
    }

    async fn connect(&self, address: SocketAddr) -> Result<Connection, DialError> {
        let answer = self.shared.socket.answers.expect(to_label(address));
        match timeout_at(self.deadline, connect_to(&self.shared, address, &self.target)).await {
            Ok(connected) => connected,
            Err(_) if answer.came() => Err(DialError::NotMacula(NOT_IN_QUIC.into())),
            Err(_) => Err(DialError::Timeout),
        }
    }
}

/// Why an attempt gave no link.
enum Attempt {
    Failed(DialError),
    Redirected(SocketAddr),
}

impl Attempt {
    fn into_error(self) -> DialError {
        match self {
            Attempt::Failed(error) => error,
            Attempt::Redirected(_) => DialError::Refused(Refusal::WrongName),
        }
    }
}

/// The attempts that lose are dropped before they get here, so that the other node hears of one
/// link only; two that win at the very same time are sorted out by OTP's handshake.
async fn choose(greeted: &mut Greeted) -> Result<(), DialError> {
    greet::begin(greeted).await.map_err(not_greeted)
}

/// A connection to the node `target` at `address`, which may be the label of a tunnel.
pub(crate) async fn connect_to(
    shared: &Shared,
    address: SocketAddr,
    target: &str,
) -> Result<Connection, DialError> {
    let (tls, settings) = (shared.tls(), shared.settings());
    let config = transport::client(&tls, &settings, mtu::of_label(to_label(address)));
    connect(shared, address, config, target).await
}

/// A connection to `address`, on which the session with `peer` is resumed if there is one.
pub(crate) async fn connect(
    shared: &Shared,
    address: SocketAddr,
    config: quinn::ClientConfig,
    peer: &str,
) -> Result<Connection, DialError> {
    let label = to_label(address);
    let reports = shared.reports.watch(label);
    let session = tls::session_name(peer);
    let connecting = shared.quinn.connect_with(config, label, &session).map_err(io)?;
    let port_closed = async {
        reports.next().await;
        // That may be about something older. QUIC itself sends nothing more for three round trips that it has to guess.
        shared.socket.poke(label);
        reports.next().await;
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
        ConnectionError::ApplicationClosed(close) => {
            match CertificateFault::of_code(close.error_code) {
                Some(fault) => DialError::OwnCertificate(fault),
                None => io(ConnectionError::ApplicationClosed(close)),
            }
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
        GreetError::Hello(Failure::Redirected(_), _) => DialError::Refused(Refusal::WrongName),
        GreetError::Certificate(fault, _) => DialError::Certificate(fault),
        GreetError::OwnCertificate(fault) => DialError::OwnCertificate(fault),
        GreetError::Hello(Failure::Malformed, _) => {
            DialError::NotMacula("its hello cannot be read".into())
        }
        GreetError::Lost(text) | GreetError::Unable(text) => DialError::Io(text),
    }
}
