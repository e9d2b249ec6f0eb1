//! Both ends of many streams: whatever frames are placed come out once each, and a peer that says
//! anything at all about its lanes is told what is wrong with it.
//!
//! An input is a number of lanes, and choices: frames with their lengths, or what a peer says.

use std::collections::VecDeque;

use macula_core::dist::frame::Piece;
use macula_core::dist::lane::{FenceReader, Opening, fence_header};
use macula_core::dist::lanes::{Lanes, Place};
use macula_core::dist::merge::Merge;

use super::choices::Choices;

/// Frames that are placed; those there is no room for are as good as those there is.
const FRAMES: usize = 500;

pub fn between(input: &[u8]) {
    let mut choices = Choices(input);
    let count = 1 + (choices.next() % 70) as u16;
    let mut lanes = Lanes::new(count);
    let mut streams = vec![VecDeque::new(); usize::from(count)];
    let mut control = VecDeque::new();
    let mut placed = 0;
    while !choices.0.is_empty() && placed < FRAMES {
        let len = choices.next();
        let frame = choices.take(len);
        let place = lanes.place([&frame[..]]);
        if let Some(header) = lanes.header() {
            assert!(!header.bytes.is_empty() && (1..=frame.len()).contains(&header.replaces));
        }
        match place {
            Place::Lane { flow, opening, .. } => {
                let stream = &mut streams[usize::from(flow.lane)];
                stream.extend(opening.map(|opening| Item::Opening(opening.encode())));
                stream.push_back(Item::Frame(placed));
            }
            Place::Fence { lanes: open } => {
                assert_eq!(lanes.open().count(), usize::from(open));
                lanes.open().for_each(|index| streams[usize::from(index)].push_back(Item::Marker));
                control.push_back((open, placed));
            }
            Place::Control => {
                assert!(frame.is_empty());
                continue;
            }
        }
        assert!(!frame.is_empty(), "an empty frame would be a marker, or no fence");
        placed += 1;
    }
    let delivered = deliver(count, streams, control);
    assert_eq!(delivered, placed);
}

#[derive(Clone, Copy)]
enum Item {
    Opening([u8; Opening::LEN]),
    Frame(usize),
    Marker,
}

/// Reads each lane as far as it goes, the highest one first; returns how many frames came.
fn deliver(
    count: u16,
    mut streams: Vec<VecDeque<Item>>,
    mut control: VecDeque<(u16, usize)>,
) -> usize {
    let mut merge = Merge::new(count);
    let mut fence = None;
    let mut delivered = 0;
    loop {
        for (index, stream) in (0..count).zip(&mut streams).rev() {
            delivered += read(&mut merge, index, stream, fence);
        }
        if merge.fence_ready() {
            fence = None;
            delivered += 1;
            merge.fence_delivered().expect("we keep the rules");
        } else if let Some((lanes, number)) = control.pop_front() {
            assert!(merge.may_read_control());
            fence = Some(number);
            merge.fenced(lanes).expect("we keep the rules");
        } else {
            return delivered;
        }
    }
}

fn read(merge: &mut Merge, index: u16, stream: &mut VecDeque<Item>, fence: Option<usize>) -> usize {
    let mut delivered = 0;
    while let Some(item) = stream.front().copied() {
        match item {
            Item::Opening(bytes) => merge.opened(Opening::decode(bytes)).expect("it is our own"),
            _ if !merge.may_read(index) => return delivered,
            Item::Marker => merge.marker(index).expect("it may be read"),
            Item::Frame(number) => {
                assert!(fence.is_none_or(|fence| number < fence), "a fence was passed");
                delivered += 1;
            }
        }
        stream.pop_front();
    }
    delivered
}

/// What a peer says, in any order, of any lane.
pub fn hostile(input: &[u8]) {
    let mut choices = Choices(input);
    let count = 1 + (choices.next() % 8) as u16;
    let mut merge = Merge::new(count);
    let mut marked = vec![0u64; usize::from(count)];
    let mut delivered = 0;
    while !choices.0.is_empty() {
        let said = match choices.next() % 4 {
            0 => {
                let mut bytes = [0; Opening::LEN];
                // Low bytes, or hardly anything would be near what may be said.
                bytes[1] = choices.next() as u8;
                bytes[2] = (choices.next() == 255) as u8;
                bytes[9] = choices.next() as u8;
                merge.opened(Opening::decode(bytes))
            }
            1 => {
                let lane = choices.next() as u16;
                let may = merge.may_read(lane);
                let said = merge.marker(lane);
                assert_eq!(may, said.is_ok());
                if said.is_ok() {
                    assert!(!merge.may_read(lane));
                    marked[usize::from(lane)] += 1;
                }
                said
            }
            2 => {
                let len = 3 + choices.next() % 8;
                let mut frame = choices.take(len);
                frame.resize(len, 1);
                fenced(&mut merge, &frame)
            }
            _ => {
                delivered += u64::from(merge.fence_ready());
                merge.fence_delivered()
            }
        };
        if said.is_err_and(|violation| !violation.to_string().is_empty()) {
            break;
        }
        // A lane is never ahead of the fences by more than the one it waits for.
        assert!(marked.iter().all(|marked| *marked <= delivered + 1));
    }
}

fn fenced(merge: &mut Merge, frame: &[u8]) -> Result<(), macula_core::dist::merge::Violation> {
    let mut fence = FenceReader::default();
    let Some(Piece::Start(len)) = fence.next(Piece::Start(frame.len())) else {
        panic!("it is long enough");
    };
    assert_eq!(fence.next(Piece::Body(frame)), Some(Piece::Body(&frame[2..])));
    let lanes = fence.lanes().expect("it is long enough");
    let header = fence_header(len, lanes).expect("it is short enough");
    assert_eq!(&header[4..], &frame[..2]);
    if merge.may_read_control() { merge.fenced(lanes) } else { Ok(()) }
}
