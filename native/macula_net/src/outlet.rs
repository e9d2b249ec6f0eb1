//! The output of a link: its control stream and, with a peer that agrees, lanes beside it. Frames are
//! placed here, and who sends more than its lane takes is held back.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use macula_core::dist::atoms::Header;
use macula_core::dist::brake::{Brake, LOOKS, Queued, Taken};
use macula_core::dist::flows::Frames;
use macula_core::dist::frame;
use macula_core::dist::lane::{FENCE_PREFIX, MARKER, Opening};
use macula_core::dist::lanes::{Flow, Lanes, Place};
use macula_core::dist::memory::Shares;
use macula_core::dist::signal::Sender;
use parking_lot::{Mutex, MutexGuard};
use quinn::SendStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::ahead::Ahead;
use crate::lanes;
use crate::link::{LinkState, SendState};
use crate::queue::{Queue, TICK};

/// The control stream goes before the lanes, those in a hurry included: ticks are on it, and what all lanes wait for.
const CONTROL_PRIORITY: i32 = lanes::HURRY + 1;

/// Bytes around a fenced frame.
const FENCED: usize = frame::HEADER + FENCE_PREFIX;

/// A link that takes nothing for so long stands still. Longer than what a change of path takes, and a fraction of what
/// callers wait for.
const STANDS: Duration = Duration::from_millis(500);

/// How often it is looked at while somebody waits.
const LOOK: Duration = Duration::from_millis(STANDS.as_millis() as u64 / LOOKS as u64);

/// Which stream a frame goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The control stream, of a link without lanes or of what is empty.
    Control,
    /// A lane, by this flow.
    Lane(Flow),
    /// The control stream, and a marker goes to each of these lanes.
    Fence(Vec<u16>),
}

/// What a batch sends, bit by bit: frames whole, and in order on each stream and of each flow.
#[derive(Debug)]
pub enum Output {
    /// On the control stream.
    Control(Vec<Bytes>),
    /// On a lane.
    Lane(Flow, Frames<Bytes>),
    /// A marker on each of these lanes.
    Markers(Vec<u16>),
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
    sorter: Option<Mutex<Lanes>>,
    pub(crate) lanes: Mutex<Waiting>,
    brake: Mutex<Brake>,
    /// Somebody was suspended.
    braked: Notify,
    /// Bytes written to the streams.
    pub(crate) bytes_out: AtomicU64,
    pub(crate) ahead: Ahead,
}

/// What waits for the lanes' writer.
#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) outputs: Vec<Output>,
    pub(crate) openings: VecDeque<Opening>,
    pub(crate) closing: bool,
    pub(crate) writer: Option<Waker>,
}

/// Frames on their way to the streams of a link. One at a time: they keep their order.
pub struct Batch<'a> {
    link: &'a Arc<LinkState>,
    sorter: Option<MutexGuard<'a, Lanes>>,
    openings: Vec<Opening>,
    frames: u64,
    pause: bool,
    suspend: Vec<Sender>,
}

impl Outlet {
    /// For a link with so many lanes, none: it has its control stream alone, that may hold so much.
    ///
    /// All lanes are opened at once. To a reader a lane that begins is another event than one that goes
    /// on, without an order between them: what opens a lane would overtake what was sent before it.
    pub(crate) fn new(lanes: Option<u16>, shares: &Shares) -> Outlet {
        let mut sorter = lanes.map(Lanes::new);
        let openings = sorter.iter_mut().flat_map(Lanes::open_all).collect();
        let brake = lanes.map_or_else(Brake::without_lanes, |lanes| Brake::new(lanes, shares));
        Outlet {
            control: Queue::default(),
            sorter: sorter.map(Mutex::new),
            lanes: Mutex::new(Waiting { openings, ..Waiting::default() }),
            brake: Mutex::new(brake),
            braked: Notify::new(),
            bytes_out: AtomicU64::new(0),
            ahead: Ahead::new(shares.ahead),
        }
    }

    /// Adds bytes to the control stream: of a link that has no lanes, or not yet.
    pub(crate) fn push(&self, chunks: impl IntoIterator<Item = Bytes>) -> SendState {
        let chunks: Vec<_> = chunks.into_iter().collect();
        let bytes = chunks.iter().map(Bytes::len).sum();
        // Counted first: what is queued may be written at once.
        let pause = self.brake.lock().queued(&Place::Control, bytes).pause;
        send_state(self.control.push(chunks), pause)
    }

    /// Adds a tick, ahead of whatever waits. False when the link is closing.
    pub(crate) fn tick(&self) -> bool {
        self.brake.lock().queued(&Place::Control, TICK.len());
        self.control.tick()
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.brake.lock().waiting()
    }

    /// Whether there are lanes beside the control stream.
    pub(crate) fn has_lanes(&self) -> bool {
        self.sorter.is_some()
    }

    /// So many bytes of a flow were written to its lane, or to the control stream.
    pub(crate) fn written(&self, flow: Option<Flow>, bytes: usize) -> Taken {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
        self.brake.lock().taken(flow, bytes)
    }

    /// Resolves when the link stands still while processes are suspended for it: with these, to be resumed.
    async fn stands(&self) -> Vec<Sender> {
        loop {
            if !self.brake.lock().holds() {
                self.braked.notified().await;
            }
            sleep(LOOK).await;
            let resume = self.brake.lock().look();
            if !resume.is_empty() {
                return resume;
            }
        }
    }

    /// Takes nothing more; what waits is still written.
    pub(crate) fn close(&self) {
        let mut lanes = self.lanes.lock();
        lanes.closing = true;
        wake(lanes);
        self.control.close();
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(link: &'a Arc<LinkState>) -> Batch<'a> {
        let sorter = link.outlet.sorter.as_ref().map(Mutex::lock);
        let (openings, suspend) = (Vec::new(), Vec::new());
        Batch { link, sorter, openings, frames: 0, pause: false, suspend }
    }

    /// Which way the next frame goes, that has these parts, `size` bytes in all, and then its
    /// [`header`](Self::header).
    pub fn place<'p>(
        &mut self,
        parts: impl IntoIterator<Item = &'p [u8], IntoIter: Clone>,
        size: usize,
    ) -> Route {
        self.frames += 1;
        let Some(sorter) = &mut self.sorter else {
            return Route::Control;
        };
        let place = sorter.place(parts);
        let size = sorter.header().unwrap_or_default().resized(size);
        match place {
            Place::Lane { flow, opening, .. } => {
                self.openings.extend(opening);
                self.count(&place, frame::HEADER + size);
                Route::Lane(flow)
            }
            Place::Fence { .. } => {
                let marked: Vec<_> = sorter.open().collect();
                for &lane in &marked {
                    let flow = Flow::of_nobody(lane);
                    let marker = Place::Lane { flow, opening: None, sender: None };
                    self.count(&marker, MARKER.len());
                }
                self.count(&place, FENCED + size);
                Route::Fence(marked)
            }
            Place::Control => {
                self.count(&place, frame::HEADER + size);
                Route::Control
            }
        }
    }

    /// What is to be sent in place of the first bytes of the frame that was placed last; none: it goes as it is.
    pub fn header(&self) -> Option<Header<'_>> {
        self.sorter.as_ref().and_then(|sorter| sorter.header())
    }

    fn count(&mut self, place: &Place, bytes: usize) {
        let Queued { suspend, pause } = self.link.outlet.brake.lock().queued(place, bytes);
        if suspend.is_some() {
            self.link.outlet.braked.notify_one();
        }
        self.suspend.extend(suspend);
        self.pause = pause;
    }

    /// Sends what was placed.
    pub fn send(self, outputs: impl IntoIterator<Item = Output>) -> Sent {
        let Batch { link, sorter, openings, frames, pause, suspend } = self;
        link.counters.msgs_out.fetch_add(frames, Relaxed);
        let outlet = &link.outlet;
        if sorter.is_none() {
            let chunks = outputs.into_iter().flat_map(Output::chunks);
            return Sent { state: outlet.push(chunks), suspend };
        }
        let mut lanes = outlet.lanes.lock();
        lanes.openings.extend(openings);
        let mut taken = !lanes.closing;
        for output in outputs {
            match output {
                Output::Control(chunks) => taken &= outlet.control.push(chunks),
                _ if lanes.closing => {}
                output => lanes.outputs.push(output),
            }
        }
        wake(lanes);
        Sent { state: send_state(taken, pause), suspend }
    }
}

fn send_state(taken: bool, pause: bool) -> SendState {
    match (taken, pause) {
        (false, _) => SendState::Closed,
        (true, true) => SendState::Wait,
        (true, false) => SendState::Ready,
    }
}

impl Output {
    /// Of a link without lanes.
    fn chunks(self) -> Vec<Bytes> {
        match self {
            Output::Control(chunks) | Output::Lane(_, Frames { chunks, .. }) => chunks,
            Output::Markers(_) => Vec::new(),
        }
    }
}

/// Has the writer look, who needs the lock for that.
fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let writer = waiting.writer.take();
    drop(waiting);
    if let Some(writer) = writer {
        writer.wake();
    }
}

/// Writes the streams until the link closes. They all end at once, so that the peer hears of it as soon as it
/// can: it has everything when the last of them has ended there.
pub(crate) async fn write(link: &Arc<LinkState>, stream: &mut SendStream, patience: Duration) {
    let outlet = &link.outlet;
    let lanes = outlet.sorter.as_ref().map(|_| tokio::spawn(lanes::write(link.clone())));
    if lanes.is_some() {
        // Fails only when the connection has.
        let _ = stream.set_priority(CONTROL_PRIORITY);
    }
    tokio::select! {
        () = outlet.control.write_to(stream, link) => {}
        never = release(link) => match never {},
    }
    let _ = stream.finish();
    if let Some(lanes) = lanes {
        drained(outlet, lanes, patience).await;
    }
    let _ = timeout(patience, stream.stopped()).await;
}

/// Has processes go on that wait for a link that stands still, as often as it does.
async fn release(link: &LinkState) -> Infallible {
    loop {
        let senders = link.outlet.stands().await;
        link.tell_owner(|owner| owner.resume(senders.clone()));
    }
}

/// Resolves when the lanes are written and acknowledged, or when nothing more goes out.
async fn drained(outlet: &Outlet, mut lanes: JoinHandle<()>, patience: Duration) {
    let mut before = None;
    while timeout(patience, &mut lanes).await.is_err() {
        let now = outlet.bytes_out.load(Relaxed);
        if before.replace(now) == Some(now) {
            return lanes.abort();
        }
    }
}
