//! Writes the lanes of a link, in turns, and has QUIC take no more ahead than the path is worth.
//!
//! What QUIC has taken goes out a packet of each lane after the other. What it has not taken yet waits
//! here, where a process that has little to say can still go first: its lane before others
//! (`macula_core::dist::turns`), itself before others on the lane (`macula_core::dist::flows`), and what it says
//! before what QUIC has of other lanes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use macula_core::dist::flows::{Flows, Fresh};
use macula_core::dist::lane::{MARKER, Opening};
use macula_core::dist::lanes::Flow;
use macula_core::dist::turns::{Ended, LITTLE, TURN, Turn, Turns};
use quinn::{SendStream, WriteError};

use crate::ahead::RESERVE;
use crate::congestion::{Company, Window};
use crate::hops::{self, Hop};
use crate::link::LinkState;
use crate::outlet::Output;

/// Lanes that have something to send within so long are in each other's way.
const COMPANY: Duration = Duration::from_millis(50);

/// Bytes that QUIC is handed in one piece while several lanes write: room for more comes when all of a
/// piece is acknowledged. With large ones, of many lanes at once, that is seldom on a slow line.
const PIECE: usize = 2 * 1024;

/// So much of what has come at once keeps its room for what comes next.
const OUTPUTS: usize = 64;

/// QUIC's priority of a lane that has little to write, for a process that had nothing to say before. Others have 0.
pub(crate) const HURRY: i32 = 1;

/// Writes all lanes. One task for all of them: what is to go at the same time is then in the same
/// packets, as QUIC's own task runs only after it.
pub(crate) async fn write(link: Arc<LinkState>) {
    let mut lanes = Writing::new(link.connection());
    while let Some(opening) = poll_fn(|cx| lanes.poll(&link, cx)).await {
        let Ok(mut stream) = link.connection().open_uni().await else {
            return;
        };
        if stream.write_all(&opening.encode()).await.is_err() {
            return;
        }
        lanes.lanes.push(Lane::new(opening.index, stream));
    }
    for lane in &mut lanes.lanes {
        let _ = lane.stream.finish();
    }
    for lane in &mut lanes.lanes {
        let _ = lane.stream.stopped().await;
    }
}

/// The lanes, and which of them writes next.
struct Writing {
    /// By their index: in this order they are opened, and before anything is written to any.
    lanes: Vec<Lane>,
    turns: Turns,
    company: Company,
    /// Since when it is noted who writes, and the lane that did.
    noted: (Instant, Option<u16>),
    several: bool,
    window: Window,
    /// What has come, until it is put to its lane.
    outputs: Vec<Output>,
    /// Counts the rounds.
    round: u64,
}

struct Lane {
    index: u16,
    stream: SendStream,
    /// What is to be written to it.
    flows: Flows<Bytes>,
    /// The round in which QUIC was told last that it hurries; none since it was told that it does not.
    hurried: Option<u64>,
}

impl Writing {
    fn new(connection: &quinn::Connection) -> Writing {
        Writing {
            lanes: Vec::new(),
            turns: Turns::default(),
            company: Company::of(connection),
            noted: (Instant::now(), None),
            several: false,
            window: Window::of(connection),
            outputs: Vec::new(),
            round: 0,
        }
    }

    /// Notes that there is something to write to a lane.
    fn note(&mut self, lane: u16) {
        let (since, known) = &mut self.noted;
        let other = *known.get_or_insert(lane) != lane;
        if other {
            self.several = true;
            self.company.set(true);
        }
        if since.elapsed() > COMPANY {
            self.company.set(self.several);
            self.noted = (Instant::now(), None);
            self.several = false;
        }
    }

    /// Writes what there is room for. Ready with a lane that is to be opened first, or with none when the
    /// link is closing and all is written, or lost.
    fn poll(&mut self, link: &LinkState, cx: &mut Context<'_>) -> Poll<Option<Opening>> {
        let closing = {
            let mut waiting = link.outlet.lanes.lock();
            if let Some(opening) = waiting.openings.pop_front() {
                return Poll::Ready(Some(opening));
            }
            std::mem::swap(&mut waiting.outputs, &mut self.outputs);
            waiting.writer = Some(cx.waker().clone());
            waiting.closing
        };
        self.sort();
        if self.turns.len() > 1 {
            self.several = true;
            self.company.set(true);
        }
        link.outlet.ahead.keep(link.connection(), self.window.bytes());
        self.round(link, cx);
        if closing && self.turns.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Puts what has come to the lanes that it is for.
    fn sort(&mut self) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Control(_) => {}
                Output::Lane(Flow { lane, number }, frames) => {
                    self.put(lane, |flows| flows.add(number, frames));
                    self.note(lane);
                }
                Output::Markers(lanes) => {
                    let marker = || Bytes::from_static(&MARKER);
                    let mark = |flows: &mut Flows<_>, lane| {
                        flows.mark(Flow::of_nobody(lane).number, marker(), MARKER.len());
                    };
                    lanes.into_iter().for_each(|lane| self.put(lane, |flows| mark(flows, lane)));
                }
            }
        }
        outputs.shrink_to(OUTPUTS);
        self.outputs = outputs;
    }

    /// Puts something behind, or among, what is to be written to a lane.
    fn put(&mut self, index: u16, put: impl FnOnce(&mut Flows<Bytes>)) {
        let Some(lane) = self.lanes.get_mut(usize::from(index)) else {
            return;
        };
        let had_nothing = lane.flows.is_empty();
        put(&mut lane.flows);
        if had_nothing {
            self.turns.filled(index);
        } else if lane.urgent().is_some() {
            self.turns.promote(index);
        }
    }

    /// Writes what there is room for.
    fn round(&mut self, link: &LinkState, cx: &mut Context<'_>) {
        self.round += 1;
        while let Some(Turn { of: index, fresh }) = self.turns.begin() {
            let alone = self.turns.is_empty();
            let Some(lane) = self.lanes.get_mut(usize::from(index)) else {
                continue;
            };
            let ended = match lane.urgent() {
                Some(most) => {
                    lane.hurry(self.round);
                    lane.write_urgent(most, fresh && most <= LITTLE, link, cx)
                }
                None => {
                    lane.take_time(self.round);
                    lane.write(if alone { usize::MAX } else { TURN }, link, cx)
                }
            };
            self.turns.ended(index, ended);
        }
    }
}

impl Lane {
    fn new(index: u16, stream: SendStream) -> Lane {
        Lane { index, stream, flows: Flows::default(), hurried: None }
    }

    /// Bytes to write until what is not to wait has been: what little processes have to say that said nothing before,
    /// unless more than a frame or so is before it.
    fn urgent(&self) -> Option<usize> {
        let Fresh { bytes, until } = self.flows.fresh()?;
        (bytes <= LITTLE && until <= TURN + 2 * LITTLE).then_some(until)
    }

    /// Has QUIC send what is of this lane before what it has of others. A lane of which it has something already is
    /// moved up when it comes to it.
    fn hurry(&mut self, round: u64) {
        if self.hurried.replace(round).is_none() {
            self.set_priority(HURRY);
        }
    }

    /// No more so; but not in the round in which it was told to, which is over before QUIC sends anything.
    fn take_time(&mut self, round: u64) {
        if self.hurried.take_if(|hurried| *hurried != round).is_some() {
            self.set_priority(0);
        }
    }

    fn set_priority(&self, priority: i32) {
        // Fails only when the stream has ended.
        let _ = self.stream.set_priority(priority);
    }

    /// Writes `most` bytes, and no others in what is kept in reserve for that.
    fn write_urgent(
        &mut self,
        most: usize,
        with_reserve: bool,
        link: &LinkState,
        cx: &mut Context<'_>,
    ) -> Ended {
        let mut ended = self.write(most, link, cx);
        if with_reserve && ended == (Ended::NoRoom { wrote: false }) {
            ended = link.with_reserve(RESERVE, || self.write(most, link, cx));
        }
        if matches!(ended, Ended::NoRoom { .. }) { Ended::Urgent } else { ended }
    }

    /// Writes about `most` bytes, if there is room for them.
    fn write(&mut self, most: usize, link: &LinkState, cx: &mut Context<'_>) -> Ended {
        hops::pass(Hop::Writing);
        let in_pieces = (LITTLE + 1..usize::MAX).contains(&most);
        let mut bytes = 0;
        while bytes < most {
            let Some(next) = self.flows.front() else {
                return Ended::Empty;
            };
            let flow = Flow { lane: self.index, number: next.flow };
            let taken = if in_pieces || !next.all || next.most > most - bytes {
                write_pieces(&mut self.stream, next.chunks, next.most.min(most - bytes), cx)
            } else {
                write_chunks(&mut self.stream, next.chunks, cx)
            };
            match taken {
                Poll::Pending => return Ended::NoRoom { wrote: bytes > 0 },
                Poll::Ready(Ok(taken)) => {
                    bytes += taken;
                    self.flows.wrote(taken);
                    link.written(Some(flow), taken);
                }
                // The connection is lost, or nobody reads on.
                Poll::Ready(Err(_)) => self.flows.clear(),
            }
        }
        if self.flows.is_empty() { Ended::Empty } else { Ended::Over }
    }
}

/// Writes what there is room for; how much that was.
fn write_chunks(
    stream: &mut SendStream,
    chunks: &mut VecDeque<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, WriteError>> {
    let taken = ready!(pin!(stream.write_chunks(chunks.make_contiguous())).poll(cx))?;
    chunks.drain(..taken.chunks);
    Poll::Ready(Ok(taken.bytes))
}

/// The same of the first `most` bytes, in pieces.
fn write_pieces(
    stream: &mut SendStream,
    chunks: &mut VecDeque<Bytes>,
    most: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, WriteError>> {
    let taken = ready!(pin!(stream.write_chunks(&mut pieces(chunks, most))).poll(cx))?;
    advance(chunks, taken.bytes);
    Poll::Ready(Ok(taken.bytes))
}

/// The first `most` bytes in pieces.
fn pieces(chunks: &VecDeque<Bytes>, most: usize) -> Vec<Bytes> {
    let (mut pieces, mut left) = (Vec::new(), most);
    for chunk in chunks {
        let mut chunk = chunk.slice(..left.min(chunk.len()));
        left -= chunk.len();
        while !chunk.is_empty() {
            pieces.push(chunk.split_to(PIECE.min(chunk.len())));
        }
        if left == 0 {
            break;
        }
    }
    pieces
}

/// Takes off the first `bytes`.
fn advance(chunks: &mut VecDeque<Bytes>, mut bytes: usize) {
    while let Some(chunk) = chunks.front_mut().filter(|_| bytes > 0) {
        let taken = bytes.min(chunk.len());
        bytes -= taken;
        chunk.advance(taken);
        if chunk.is_empty() {
            chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_pieces_is_taken_off_byte_by_byte() {
        let content: Vec<u8> = (0..10_000).map(|at| at as u8).collect();
        let whole = Bytes::from(content.clone());
        let mut chunks: VecDeque<_> =
            [whole.slice(..1), whole.slice(1..7000), whole.slice(7000..)].into();
        let mut at = 0;
        for most in [1, PIECE, 5000, 1, 4000] {
            let pieces = pieces(&chunks, most);
            assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE));
            let bytes = pieces.concat();
            assert_eq!(bytes, content[at..content.len().min(at + most)]);
            advance(&mut chunks, bytes.len());
            at += bytes.len();
        }
        assert!(chunks.is_empty());
    }
}
