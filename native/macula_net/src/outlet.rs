//! The output of a link: its control stream and, with a peer that agrees, lanes beside it. Frames are
//! placed here, and who sends more than its lane takes is held back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use macula_core::dist::brake::{Brake, Queued, Taken};
use macula_core::dist::frame;
use macula_core::dist::lane::{MARKER, Opening};
use macula_core::dist::lanes::{Lanes, Place};
use macula_core::dist::signal::Sender;
use parking_lot::{Mutex, MutexGuard};
use quinn::SendStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::link::{LinkState, SendState};
use crate::queue::{Queue, TICK};

/// The control stream goes before the lanes: ticks are on it, and what all lanes wait for.
const CONTROL_PRIORITY: i32 = 1;

/// Which stream a frame goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The control stream of a link without lanes.
    Control,
    /// A lane.
    Lane(u16),
    /// The control stream, and a marker goes to each of these lanes.
    Fence(Vec<u16>),
}

/// One stream of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The one that every link has.
    Control,
    /// One of those beside it.
    Lane(u16),
}

/// What became of a batch of frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Whether the producer may go on.
    pub state: SendState,
    /// Processes that are to be suspended. Each is named again in [`crate::Owner::resume`].
    pub suspend: Vec<Sender>,
}

/// The streams of a link that are written to.
pub(crate) struct Outlet {
    control: Queue,
    lanes: Option<Mutex<Open>>,
    brake: Mutex<Brake>,
    writers: Mutex<JoinSet<()>>,
    runtime: Handle,
    /// Bytes written to the streams.
    pub(crate) bytes_out: AtomicU64,
}

/// The lanes opened so far.
struct Open {
    lanes: Lanes,
    queues: Vec<Option<Arc<Queue>>>,
    closed: bool,
}

/// Frames on their way to the streams of a link. One at a time: they keep their order.
pub struct Batch<'a> {
    link: &'a Arc<LinkState>,
    open: Option<MutexGuard<'a, Open>>,
    frames: u64,
    queued: Queued,
    suspend: Vec<Sender>,
}

impl Outlet {
    /// For a link with so many lanes; none: it has its control stream alone. Must be called within a
    /// tokio runtime.
    pub(crate) fn new(lanes: Option<u16>) -> Outlet {
        let open = |count: u16| Open {
            lanes: Lanes::new(count),
            queues: vec![None; usize::from(count)],
            closed: false,
        };
        Outlet {
            control: Queue::default(),
            lanes: lanes.map(|count| Mutex::new(open(count))),
            brake: Mutex::new(lanes.map_or_else(Brake::without_lanes, Brake::new)),
            writers: Mutex::default(),
            runtime: Handle::current(),
            bytes_out: AtomicU64::new(0),
        }
    }

    /// Adds bytes to the control stream: of a link that has no lanes, or not yet.
    pub(crate) fn push(&self, chunks: impl IntoIterator<Item = Bytes>) -> SendState {
        let chunks: Vec<_> = chunks.into_iter().collect();
        let bytes = chunks.iter().map(Bytes::len).sum();
        // Counted first: what is queued may be written at once.
        let pause = self.brake.lock().queued(&CONTROL, bytes).pause;
        match (self.control.push(chunks), pause) {
            (false, _) => SendState::Closed,
            (true, true) => SendState::Wait,
            (true, false) => SendState::Ready,
        }
    }

    /// Adds a tick, ahead of whatever waits. False when the link is closing.
    pub(crate) fn tick(&self) -> bool {
        self.brake.lock().queued(&CONTROL, TICK.len());
        self.control.tick()
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.brake.lock().waiting()
    }

    /// So many bytes were written to a stream.
    pub(crate) fn written(&self, stream: Stream, bytes: usize) -> Taken {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
        let lane = match stream {
            Stream::Control => None,
            Stream::Lane(index) => Some(index),
        };
        self.brake.lock().taken(lane, bytes)
    }

    /// Takes nothing more; what waits is still written.
    pub(crate) fn close(&self) {
        if let Some(lanes) = &self.lanes {
            let mut open = lanes.lock();
            open.closed = true;
            open.queues.iter().flatten().for_each(|queue| queue.close());
        }
        self.control.close();
    }
}

/// Where what is not on any lane goes.
const CONTROL: Place = Place::Fence { lanes: 0 };

impl<'a> Batch<'a> {
    pub(crate) fn new(link: &'a Arc<LinkState>) -> Batch<'a> {
        let open = link.outlet.lanes.as_ref().map(Mutex::lock);
        Batch { link, open, frames: 0, queued: Queued::default(), suspend: Vec::new() }
    }

    /// Which way the next frame goes, that has these parts, `size` bytes in all.
    pub fn place<'p>(&mut self, parts: impl IntoIterator<Item = &'p [u8]>, size: usize) -> Route {
        self.frames += 1;
        let Some(open) = &mut self.open else {
            return Route::Control;
        };
        let place = open.lanes.place(parts);
        match place {
            Place::Lane { index, opening, .. } => {
                if let Some(opening) = opening {
                    self.open_lane(opening);
                }
                self.count(&place, frame::HEADER + size);
                Route::Lane(index)
            }
            Place::Fence { .. } => {
                let marked: Vec<_> = open.lanes.open().collect();
                for &index in &marked {
                    let marker = Place::Lane { index, opening: None, sender: None };
                    self.count(&marker, MARKER.len());
                }
                self.count(&place, FENCED + size);
                Route::Fence(marked)
            }
        }
    }

    fn count(&mut self, place: &Place, bytes: usize) {
        let Queued { suspend, pause } = self.link.outlet.brake.lock().queued(place, bytes);
        self.suspend.extend(suspend);
        self.queued.pause = pause;
    }

    fn open_lane(&mut self, opening: Opening) {
        let Some(open) = self.open.as_mut().filter(|open| !open.closed) else {
            return;
        };
        let queue = Arc::new(Queue::default());
        open.queues[usize::from(opening.index)] = Some(queue.clone());
        let outlet = &self.link.outlet;
        outlet.writers.lock().spawn_on(write_lane(self.link.clone(), queue, opening), &outlet.runtime);
    }

    /// Sends what was placed: for each stream the chunks of its frames, markers included.
    pub fn send(self, chunks: impl IntoIterator<Item = (Stream, Vec<Bytes>)>) -> Sent {
        let Batch { link, open, frames, queued, suspend } = self;
        link.counters.msgs_out.fetch_add(frames, Relaxed);
        let outlet = &link.outlet;
        let Some(open) = open else {
            let chunks = chunks.into_iter().flat_map(|(_, chunks)| chunks);
            return Sent { state: outlet.push(chunks), suspend };
        };
        let taken = chunks.into_iter().all(|(stream, chunks)| match stream {
            Stream::Control => outlet.control.push(chunks),
            Stream::Lane(index) => {
                let queue = open.queues.get(usize::from(index)).and_then(Option::as_ref);
                queue.is_some_and(|queue| queue.push(chunks))
            }
        });
        let state = match (taken, queued.pause) {
            (false, _) => SendState::Closed,
            (true, true) => SendState::Wait,
            (true, false) => SendState::Ready,
        };
        Sent { state, suspend }
    }
}

/// Bytes around a fenced frame.
const FENCED: usize = frame::HEADER + macula_core::dist::lane::FENCE_PREFIX;

/// Writes the control stream until the link closes, then ends it after all lanes: at its end the
/// peer has all of them.
pub(crate) async fn write(link: &Arc<LinkState>, stream: &mut SendStream, patience: Duration) {
    let outlet = &link.outlet;
    if outlet.lanes.is_some() {
        // Fails only when the connection has.
        let _ = stream.set_priority(CONTROL_PRIORITY);
    }
    outlet.control.write_to(stream, |bytes| link.written(Stream::Control, bytes)).await;
    let writers = std::mem::take(&mut *outlet.writers.lock());
    drained(outlet, writers, patience).await;
    let _ = stream.finish();
    let _ = timeout(patience, stream.stopped()).await;
}

/// Resolves when the lanes are written and acknowledged, or when nothing more goes out.
async fn drained(outlet: &Outlet, mut writers: JoinSet<()>, patience: Duration) {
    while !writers.is_empty() {
        let before = outlet.bytes_out.load(Relaxed);
        let next = timeout(patience, writers.join_next()).await;
        if next.is_err() && outlet.bytes_out.load(Relaxed) == before {
            return;
        }
    }
}

async fn write_lane(link: Arc<LinkState>, queue: Arc<Queue>, opening: Opening) {
    let lane = Stream::Lane(opening.index);
    let Ok(mut stream) = link.connection().open_uni().await else {
        return;
    };
    if stream.write_all(&opening.encode()).await.is_ok() {
        queue.write_to(&mut stream, |bytes| link.written(lane, bytes)).await;
        let _ = stream.finish();
        let _ = stream.stopped().await;
    }
}
