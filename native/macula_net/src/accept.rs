//! The way in: strangers are admitted, greeted, and become links or are sent elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use macula_core::admission::{Admission, Outcome, Pass, Verdict};
use macula_core::hello::{Failure, Refusal};
use macula_core::keys::LEN;
use macula_core::relay::limits::Bucket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::endpoint::{Incident, Shared};
use crate::greet::{self, GreetError};
use crate::link::Link;
use crate::relay::{self, RelayService};
use crate::socket::from_label;
use crate::{mtu, tls, transport};

/// How long a stranger may take from its first packet to the end of its hello.
const ADMISSION: Duration = Duration::from_secs(10);

/// Handshakes that are begun in a second, at most, and as many at once as take some milliseconds: each
/// costs up to a millisecond of CPU, and a storm of them must leave the rest to the links and
/// attachments that there are. Who comes meanwhile waits for its turn.
const HANDSHAKES: u64 = 500;
const AT_ONCE: f64 = 8.0;

/// How often it is looked whether the next one may begin.
const TURN: Duration = Duration::from_millis(1);

/// The strangers inside.
#[derive(Default)]
pub(crate) struct Strangers {
    admission: Admission,
    visits: HashMap<Pass, AbortHandle>,
}

impl Strangers {
    fn turn_out(&mut self, pass: Pass) {
        if let Some(visit) = self.visits.remove(&pass) {
            visit.abort();
        }
    }

    fn left(&mut self, now: Duration, pass: Pass, outcome: Outcome) {
        self.admission.leave(now, pass, outcome);
        self.visits.remove(&pass);
    }
}

/// Whose door a stranger came to.
#[derive(Clone)]
pub(crate) enum Door {
    /// This node's own: its links go here.
    Own(mpsc::Sender<Arc<Link>>),
    /// The well-known port, kept for all nodes of this machine: everybody is sent elsewhere.
    Shared,
}

/// Lets strangers in at the door `quinn` until that is closed.
pub(crate) async fn run(shared: Arc<Shared>, quinn: quinn::Endpoint, door: Door) {
    let mut pace = Bucket::holding(AT_ONCE, HANDSHAKES, shared.now());
    while let Some(incoming) = quinn.accept().await {
        let ip = incoming.remote_address().ip();
        let validated = incoming.remote_address_validated();
        let verdict = shared.strangers.lock().admission.knock(shared.now(), ip, validated);
        let pass = match verdict {
            // Costs an honest source a round trip (RFC 9000, 8.1.2), a forged one everything.
            Verdict::Validate if incoming.may_retry() => {
                shared.validated.fetch_add(1, Relaxed);
                let _ = incoming.retry();
                continue;
            }
            Verdict::Validate | Verdict::Refuse => {
                shared.refused.fetch_add(1, Relaxed);
                incoming.refuse();
                continue;
            }
            Verdict::Admit(pass) => pass,
            Verdict::Replace(pass, oldest) => {
                shared.refused.fetch_add(1, Relaxed);
                shared.strangers.lock().turn_out(oldest);
                pass
            }
        };
        while !pace.has(shared.now(), 1) {
            sleep(TURN).await;
        }
        pace.take(1);
        // Under the lock, so that a visit is in the list before it leaves.
        let mut strangers = shared.strangers.lock();
        let visit = tokio::spawn(visit(shared.clone(), incoming, door.clone(), pass));
        strangers.visits.insert(pass, visit.abort_handle());
    }
}

async fn visit(shared: Arc<Shared>, incoming: quinn::Incoming, door: Door, pass: Pass) {
    let admitted = admit(&shared, incoming, &door).await;
    let outcome = admitted.as_ref().err().copied().unwrap_or(Outcome::Harmless);
    shared.strangers.lock().left(shared.now(), pass, outcome);
    match (admitted, door) {
        (Ok(Guest::Link(link)), Door::Own(links)) => drop(links.send(link).await),
        (Ok(Guest::Relayed), _) => {}
        _ => drop(shared.failed.fetch_add(1, Relaxed)),
    }
}

/// What a stranger turned out to be.
enum Guest {
    /// A node at the other end of a link.
    Link(Arc<Link>),
    /// A node that is served by the relay here, or was told that there is none.
    Relayed,
}

/// What a stranger turns out to be; else what is to be held against its address.
async fn admit(
    shared: &Arc<Shared>,
    incoming: quinn::Incoming,
    door: &Door,
) -> Result<Guest, Outcome> {
    let deadline = Instant::now() + ADMISSION;
    let largest = mtu::of_label(incoming.remote_address());
    let server = transport::server(&shared.tls(), &shared.settings(), largest);
    let connecting = incoming.accept_with(Arc::new(server));
    let connecting = connecting.map_err(|_| Outcome::Harmless)?;
    let connection = match timeout_at(deadline, connecting).await {
        Ok(Ok(connection)) => connection,
        // As far as is known here, nobody lives at that address.
        _ => return Err(Outcome::Harmless),
    };
    if tls::protocol(&connection).as_deref() == Some(tls::RELAY) {
        return match (door, shared.relay()) {
            (Door::Own(_), Some(relay)) => {
                let own = shared.tls().relay_id();
                attach(relay, connection, own, deadline).await
            }
            _ => {
                connection.close(relay::NOT_A_RELAY, b"no relay");
                Ok(Guest::Relayed)
            }
        };
    }
    let name = match door {
        Door::Own(_) => shared.name(),
        Door::Shared => String::new(),
    };
    match timeout_at(deadline, greet::accept(&connection, shared, name)).await {
        Ok(Ok(greeted)) => Ok(Guest::Link(shared.link(connection, greeted))),
        Ok(Err(error)) => Err(failed(shared, &connection, error)),
        Err(_) => Err(Outcome::Failed),
    }
}

/// Hands a connection over to the relay, and returns when it is attached.
async fn attach(
    relay: Arc<RelayService>,
    connection: quinn::Connection,
    own: [u8; LEN],
    deadline: Instant,
) -> Result<Guest, Outcome> {
    let (welcome, welcomed) = oneshot::channel();
    let serving = tokio::spawn(relay.serve(connection, own, || {
        // Whoever waits for it has given up.
        let _ = welcome.send(());
    }));
    // One that is turned out is not to be waited for any longer.
    let mut served = Served(Some(serving.abort_handle()));
    match timeout_at(deadline, welcomed).await {
        Ok(Ok(())) => {
            served.0 = None;
            Ok(Guest::Relayed)
        }
        // Its realm, its token or its certificate was wrong, or it said nothing.
        _ => Err(Outcome::Failed),
    }
}

/// One who is served, and who goes when this does.
struct Served(Option<AbortHandle>);

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(serving) = self.0.take() {
            serving.abort();
        }
    }
}

/// Tells the node what it should know of a hello that failed.
fn failed(shared: &Shared, connection: &quinn::Connection, error: GreetError) -> Outcome {
    let (incident, claimed) = match error {
        GreetError::Hello(Failure::Refusing(why), claimed) => (Incident::Refused(why), claimed),
        GreetError::Certificate(fault, claimed) => (Incident::Certificate(fault), claimed),
        GreetError::OwnCertificate(fault) => (Incident::OwnCertificate(fault), String::new()),
        // Most often a dialler that reached this node at another of its addresses first.
        GreetError::Hello(..) | GreetError::Lost(_) | GreetError::Unable(_) => {
            return Outcome::Harmless;
        }
    };
    let address = from_label(connection.remote_address());
    shared.node.refused(address, &claimed, incident);
    match incident {
        Incident::Refused(Refusal::Proof | Refusal::Malformed) | Incident::Certificate(_) => {
            Outcome::Failed
        }
        Incident::Refused(_) | Incident::OwnCertificate(_) => Outcome::Harmless,
    }
}
