//! The Erlang process an endpoint belongs to: asked for cookies, told of refusals.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use macula_net::{CertificateNews, Cookie, Incident, Node, PeerState, State};
use parking_lot::Mutex;
use rustler::{Encoder, LocalPid};
use tokio::sync::oneshot;

use crate::atoms;
use crate::mesh::relay_state;
use crate::relay::peer_state;
use crate::runtime::post;
use crate::term::{Address, binary, file_error, incident};

/// Refusals are told at most this often: strangers must not fill a mailbox.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// The owner of an endpoint.
pub(crate) struct NodeProcess {
    pid: LocalPid,
    questions: Mutex<Questions>,
    told: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Questions {
    last: u64,
    /// Bounded by the number of strangers admitted at once.
    open: HashMap<u64, oneshot::Sender<Cookie>>,
}

impl NodeProcess {
    pub(crate) fn new(pid: LocalPid) -> NodeProcess {
        NodeProcess { pid, questions: Mutex::default(), told: Mutex::default() }
    }

    /// Passes on the node's answer to a question.
    pub(crate) fn answer(&self, question: u64, cookie: Cookie) {
        if let Some(asker) = self.questions.lock().open.remove(&question) {
            // An asker that has gone needs no answer.
            let _ = asker.send(cookie);
        }
    }

    fn ask(&self) -> (u64, oneshot::Receiver<Cookie>) {
        let (asker, answer) = oneshot::channel();
        let mut questions = self.questions.lock();
        questions.open.retain(|_, asker| !asker.is_closed());
        questions.last += 1;
        let question = questions.last;
        questions.open.insert(question, asker);
        (question, answer)
    }
}

impl Node for NodeProcess {
    fn cookie(&self, name: &str) -> oneshot::Receiver<Cookie> {
        let (question, answer) = self.ask();
        let name = name.to_owned();
        post(self.pid, move |env| {
            (atoms::macula_cookie(), question, binary(env, name.as_bytes())).encode(env)
        });
        answer
    }

    fn refused(&self, address: SocketAddr, name: &str, why: Incident) {
        let mut told = self.told.lock();
        if told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        let name = name.to_owned();
        post(self.pid, move |env| {
            let name = binary(env, name.as_bytes());
            (atoms::macula_refused(), Address(address), name, incident(env, why)).encode(env)
        });
    }

    fn certificate(&self, news: CertificateNews) {
        post(self.pid, move |env| {
            let news = match &news {
                CertificateNews::Renewed => atoms::renewed().encode(env),
                CertificateNews::NotRenewed(error) => {
                    (atoms::not_renewed(), file_error(env, error)).encode(env)
                }
                CertificateNews::Ending(left) => (atoms::ending(), left.as_secs()).encode(env),
                CertificateNews::Expired => atoms::expired().encode(env),
            };
            (atoms::macula_certificate(), news).encode(env)
        });
    }

    fn relay(&self, url: &str, state: &State) {
        let (url, state) = (url.to_owned(), state.clone());
        post(self.pid, move |env| {
            (atoms::macula_relay(), binary(env, url.as_bytes()), relay_state(env, &state))
                .encode(env)
        });
    }

    fn peer(&self, name: &str, state: &PeerState) {
        let (name, state) = (name.to_owned(), state.clone());
        post(self.pid, move |env| {
            let state = peer_state(env, &state, false);
            (atoms::macula_peer(), binary(env, name.as_bytes()), state).encode(env)
        });
    }

    fn moved(&self, name: &str, relay: Option<&str>, address: SocketAddr) {
        let (name, relay) = (name.to_owned(), relay.map(str::to_owned));
        post(self.pid, move |env| {
            let name = binary(env, name.as_bytes());
            let relay = match &relay {
                Some(url) => binary(env, url.as_bytes()).encode(env),
                None => rustler::types::atom::undefined().encode(env),
            };
            (atoms::macula_moved(), name, relay, Address(address)).encode(env)
        });
    }

    fn forged(&self, count: u64) {
        post(self.pid, move |env| (atoms::macula_forged(), count).encode(env));
    }
}
