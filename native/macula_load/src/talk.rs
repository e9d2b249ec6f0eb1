//! Two nodes that talk: one asks at a steady pace, the other answers with what it was asked. Both
//! see whether anything is missing, twice there, or out of order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use macula_core::dist::frame::{self, Piece};
use macula_core::dist::signal::Sender;
use macula_net::{Closed, DialRequest, Endpoint, Inbox, Link, Owner, Way};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{interval, timeout};

use crate::Error;
use crate::latency::Latencies;
use crate::node::{cookie_of_all, name};

/// How long the last answers may take.
const LAST: Duration = Duration::from_secs(10);

/// How long a link may take to be opened.
const DIAL: Duration = Duration::from_secs(30);

/// Bytes of frames taken at once.
const TAKEN: usize = 64 * 1024;

/// What came of a talk.
#[derive(Clone, Debug, Default)]
pub struct Talk {
    /// Questions asked.
    pub asked: u64,
    /// Questions that were not answered.
    pub lost: u64,
    /// Questions or answers that were not the next one.
    pub disordered: u64,
    /// The times between question and answer.
    pub times: Latencies,
}

/// A pair of nodes with a link between them.
pub struct Pair {
    link: Arc<Link>,
    answers: UnboundedReceiver<(u64, Instant)>,
    asked: u64,
    answered: u64,
    disordered: Arc<AtomicU64>,
    _other: Arc<Link>,
}

impl Pair {
    /// Opens a link from one node to another, whose numbers are given, in one of these ways.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn connect(
        (from, number): (&Endpoint, usize),
        (to, target): (&Endpoint, usize),
        way: Way,
    ) -> Result<Pair, Error> {
        let request = DialRequest {
            ways: vec![way],
            name: name(number),
            target: name(target),
            cookie: cookie_of_all(),
            limit: DIAL,
        };
        let (dialled, accepted) = tokio::join!(from.dial(request), timeout(DIAL, to.accept()));
        let link = dialled.map_err(|failures| format!("no link: {failures:?}"))?;
        let other = accepted?.ok_or("the endpoint is closed")?;
        let disordered = Arc::new(AtomicU64::new(0));
        let (answer, answers) = unbounded_channel();
        for end in [&link, &other] {
            end.set_owner(Box::new(Quiet));
        }
        let next = || AtomicU64::new(0);
        let disorder = disordered.clone();
        let echo = Echo { frames: Frames::new(&other), next: next(), disordered: disorder };
        other.establish(name(number), echo);
        link.establish(name(target), Ear { frames: Frames::new(&link), answer });
        Ok(Pair { link, answers, asked: 0, answered: 0, disordered, _other: other })
    }

    /// Asks `rate` times a second with `size` bytes, for as long as told.
    pub async fn talk(&mut self, rate: u32, size: usize, length: Duration) -> Talk {
        let mut talk = Talk::default();
        let (began, before) = (Instant::now(), self.disordered.load(Relaxed));
        let mut sent = HashMap::new();
        let mut due = interval(Duration::from_secs(1) / rate);
        loop {
            tokio::select! {
                biased;
                Some((number, at)) = self.answers.recv() => self.note(number, at, &mut sent, &mut talk),
                _ = due.tick() => {
                    if began.elapsed() >= length {
                        break;
                    }
                    sent.insert(self.asked, Instant::now());
                    self.link.send([question(self.asked, size)], 1);
                    self.asked += 1;
                    talk.asked += 1;
                }
            }
        }
        while !sent.is_empty() {
            match timeout(LAST, self.answers.recv()).await {
                Ok(Some((number, at))) => self.note(number, at, &mut sent, &mut talk),
                _ => break,
            }
        }
        talk.lost = sent.len() as u64;
        talk.disordered += self.disordered.load(Relaxed) - before;
        talk
    }

    fn note(
        &mut self,
        number: u64,
        at: Instant,
        sent: &mut HashMap<u64, Instant>,
        talk: &mut Talk,
    ) {
        talk.disordered += u64::from(number != self.answered);
        self.answered = number + 1;
        if let Some(asked) = sent.remove(&number) {
            talk.times.add(at.duration_since(asked));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.link.close();
    }
}

/// A frame with a number in it.
fn question(number: u64, size: usize) -> Bytes {
    let mut body = vec![0; size.max(8)];
    body[..8].copy_from_slice(&number.to_be_bytes());
    framed(&body)
}

fn framed(body: &[u8]) -> Bytes {
    // Only for bodies beyond 4 GiB is there none.
    let header = frame::header(body.len()).unwrap_or_default();
    [&header[..], body].concat().into()
}

fn number(body: &[u8]) -> u64 {
    body.first_chunk().map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes))
}

struct Quiet;

impl Owner for Quiet {
    fn resume(&self, _senders: Vec<Sender>) {}

    fn writable(&self) {}
    fn closed(&self, _reason: &Closed) {}
}

/// Takes the answers.
struct Ear {
    frames: Frames,
    answer: UnboundedSender<(u64, Instant)>,
}

impl Inbox for Ear {
    fn readable(&self) {
        self.frames.take(|frame| {
            // Nobody listens any more once the talk is over.
            let _ = self.answer.send((number(frame), Instant::now()));
        });
    }

    fn closed(&self, _reason: &Closed) {}
}

/// Answers with the question.
struct Echo {
    frames: Frames,
    next: AtomicU64,
    disordered: Arc<AtomicU64>,
}

impl Inbox for Echo {
    fn readable(&self) {
        self.frames.take(|frame| {
            let number = number(frame);
            if self.next.swap(number.wrapping_add(1), Relaxed) != number {
                self.disordered.fetch_add(1, Relaxed);
            }
            self.frames.link.send([framed(frame)], 1);
        });
    }

    fn closed(&self, _reason: &Closed) {}
}

/// What comes over a link, put together.
struct Frames {
    link: Arc<Link>,
    begun: Mutex<Vec<u8>>,
}

impl Frames {
    fn new(link: &Arc<Link>) -> Frames {
        Frames { link: link.clone(), begun: Mutex::default() }
    }

    /// Gives each frame that is there.
    fn take(&self, mut each: impl FnMut(&[u8])) {
        // Poisoned by a panic, which ended the load.
        let Ok(mut begun) = self.begun.lock() else {
            return;
        };
        let mut piece = |_, piece: Piece<'_>| match piece {
            Piece::Start(_) => begun.clear(),
            Piece::Body(bytes) => begun.extend_from_slice(bytes),
            Piece::End => each(&begun),
            Piece::Tick => {}
        };
        while self.link.receive(TAKEN, &mut piece) {}
    }
}
