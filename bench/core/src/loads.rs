//! The loads: each prepares what it needs, then does the same work every time it is called.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use macula_core::admission::Admission;
use macula_core::dist::atoms::Refs;
use macula_core::dist::brake::Brake;
use macula_core::dist::credit::Credit;
use macula_core::dist::flows::{Flows, Frames};
use macula_core::dist::frame::{self, FrameReader, Piece};
use macula_core::dist::lanes::{Lanes, Place};
use macula_core::dist::memory::Memory;
use macula_core::dist::merge::Merge;
use macula_core::dist::signal;
use macula_core::path::demux;
use macula_core::path::table::LabelTable;

/// Calls of the function in question at each call of a load: enough that the load itself does not
/// show.
const CALLS: usize = 1000;

/// What a QUIC packet carries of a stream on a link with MTU 1500.
const CHUNK: usize = 1400;

/// Lanes of a link.
const LANES: u16 = 16;

type Load = Box<dyn FnMut()>;
type Prepare = fn() -> Load;

const LOADS: [(&str, Prepare); 18] = [
    ("classify_1000_datagrams", classify),
    ("look_up_1000_labels", || look_up(0)),
    ("look_up_1000_moved_labels", || look_up(100)),
    ("write_1000_frame_headers", headers),
    ("read_1000_frames_of_64_B", || read_frames(64, CALLS)),
    ("read_16_frames_of_64_KiB", || read_frames(64 * 1024, 16)),
    ("credit_of_1000_batches", credit),
    ("knock_1000_strangers", knock),
    ("read_1000_sends", || read_signals(&send())),
    ("read_1000_alias_sends", || read_signals(&alias_send())),
    ("read_1000_spawn_replies", || read_signals(&spawn_reply())),
    ("read_1000_fragments", || read_signals(&fragment())),
    ("read_1000_sends_with_atoms", || read_signals(&send_with_atoms(80, false))),
    ("place_1000_sends", place_sends),
    ("place_1000_sends_with_atoms", place_sends_with_atoms),
    ("merge_1000_frames", merge),
    ("brake_1000_frames", brake),
    ("write_1000_batches_of_16_frames", flows),
];

/// All names, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    LOADS.iter().map(|(name, _)| *name)
}

/// The load of that name, ready to be called.
pub fn prepared(name: &str) -> Load {
    let found = LOADS.iter().find(|(known, _)| *known == name);
    let (_, prepare) = found.unwrap_or_else(|| panic!("there is no load {name}"));
    prepare()
}

fn classify() -> Load {
    // Nearly all are QUIC; the others are what a scan sends.
    let datagrams: Vec<[u8; 20]> = (0..CALLS)
        .map(|n| [if n % 50 == 0 { (n / 50) as u8 } else { 0x40 | n as u8 }; 20])
        .collect();
    Box::new(move || {
        for datagram in &datagrams {
            black_box(demux::classify(black_box(datagram)));
        }
    })
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(((n as u32 | 0x0a00_0000).to_be_bytes(), 4433))
}

/// As for each datagram received, with so many peers that have moved.
fn look_up(moved: usize) -> Load {
    let mut table = LabelTable::default();
    for n in 0..moved {
        table.alias(address(n), address(10_000 + n));
    }
    Box::new(move || {
        for n in 0..CALLS {
            let source = address(n % 200);
            if !black_box(table.is_empty()) {
                black_box(table.label(black_box(source)));
            }
        }
    })
}

fn headers() -> Load {
    Box::new(|| {
        for len in 0..CALLS {
            black_box(frame::header(black_box(len)));
        }
    })
}

fn read_frames(len: usize, count: usize) -> Load {
    let mut wire = Vec::new();
    for _ in 0..count {
        wire.extend(frame::header(len).unwrap());
        wire.resize(wire.len() + len, 7);
    }
    Box::new(move || {
        let mut reader = FrameReader::default();
        for chunk in wire.chunks(CHUNK) {
            let mut input = chunk;
            while let Some(piece) = reader.next(&mut input) {
                match piece {
                    Piece::Start(len) => _ = black_box(len),
                    Piece::Body(bytes) => _ = black_box(bytes),
                    Piece::End | Piece::Tick => {}
                }
            }
        }
    })
}

/// Batches of 64 KiB, written a packet at a time.
fn credit() -> Load {
    Box::new(|| {
        let mut credit = Credit::output();
        for _ in 0..CALLS {
            black_box(credit.queued(black_box(64 * 1024)));
            while credit.waiting() > 0 {
                black_box(credit.taken(black_box(CHUNK)));
            }
        }
    })
}

/// Strangers that all stay: those who come make room for themselves.
fn knock() -> Load {
    Box::new(|| {
        let mut admission = Admission::default();
        for n in 0..CALLS {
            let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | n as u32));
            black_box(admission.knock(Duration::from_millis(n as u64), address, true));
        }
    })
}

/// A frame as the emulator hands it out: its header, the control message, the payload.
type Iovec = [Vec<u8>; 3];

/// The iovec of a signal whose control message has these elements.
fn iovec(operation: u8, elements: &[Vec<u8>]) -> Iovec {
    let mut control = vec![104, elements.len() as u8 + 1, 97, operation];
    control.extend(elements.concat());
    [vec![131, 68, 0], control, vec![7; 40]]
}

/// A term that belongs to a node: its tag, the node, numbers.
fn of_node(tag: &[u8], numbers: &[u32]) -> Vec<u8> {
    let node = b"a_node@host.example.org";
    let mut term = [tag, &[119, node.len() as u8], node].concat();
    term.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    term
}

fn pid(id: u32) -> Vec<u8> {
    of_node(&[88], &[id, 0, 7])
}

fn reference() -> Vec<u8> {
    of_node(&[90, 0, 3], &[7, 1, 2, 3])
}

fn send() -> Iovec {
    iovec(22, &[pid(80), pid(81)])
}

/// As of OTP 28.
fn alias_send() -> Iovec {
    iovec(37, &[vec![97, 4], pid(80), reference()])
}

fn spawn_reply() -> Iovec {
    iovec(31, &[reference(), pid(80), vec![97, 3], pid(81)])
}

fn fragment() -> Iovec {
    let mut header = vec![131, 70];
    header.extend([5u64, 200].map(u64::to_be_bytes).concat());
    [header, vec![7; 64 * 1024], vec![]]
}

fn parts(iovec: &Iovec) -> impl Iterator<Item = &[u8]> + Clone {
    iovec.iter().map(Vec::as_slice)
}

fn read_signals(iovec: &Iovec) -> Load {
    let iovec = iovec.clone();
    let mut atoms = Refs::default();
    Box::new(move || {
        for _ in 0..CALLS {
            black_box(signal::classify(parts(black_box(&iovec)), &mut atoms));
        }
    })
}

fn place_sends() -> Load {
    let sends: Vec<Iovec> = (0..CALLS).map(|n| iovec(22, &[pid(n as u32), pid(81)])).collect();
    let mut lanes = Lanes::new(LANES);
    Box::new(move || {
        for iovec in &sends {
            black_box(lanes.place(parts(black_box(iovec))));
        }
    })
}

/// A message of an emulator with an atom cache: the nodes of its pids and an atom of its payload, with their texts when
/// these are new.
fn send_with_atoms(from: u32, new: bool) -> Iovec {
    let mut header = vec![131, 68, 3, if new { 0x99 } else { 0x11 }, if new { 0x09 } else { 0x01 }];
    for (slot, text) in [(7, "a_node@host.example.org"), (8, "b_node@host.example.org"), (9, "ok")]
    {
        header.push(slot);
        if new {
            header.push(text.len() as u8);
            header.extend(text.bytes());
        }
    }
    let pid = |node, id: u32| {
        [&[88, 82, node][..], &id.to_be_bytes(), &[0, 0, 0, 0, 0, 0, 0, 7]].concat()
    };
    [header, [vec![104, 3, 97, 22], pid(0, from), pid(1, 81)].concat(), vec![7; 40]]
}

/// Every lane knows the atoms.
fn place_sends_with_atoms() -> Load {
    let mut lanes = Lanes::new(LANES);
    let _ = lanes.place(parts(&send_with_atoms(0, true)));
    let sends: Vec<Iovec> = (0..CALLS).map(|n| send_with_atoms(n as u32, false)).collect();
    sends.iter().for_each(|send| {
        lanes.place(parts(send));
    });
    Box::new(move || {
        for iovec in &sends {
            black_box(lanes.place(parts(black_box(iovec))));
            black_box(lanes.header());
        }
    })
}

/// Lanes that all are open, none of them at a fence.
fn merge() -> Load {
    let mut lanes = Lanes::new(LANES);
    let mut merge = Merge::new(LANES);
    for id in 0..u32::from(LANES) {
        let iovec = iovec(22, &[pid(id), pid(81)]);
        if let Place::Lane { opening: Some(opening), .. } = lanes.place(parts(&iovec)) {
            merge.opened(opening).unwrap();
        }
    }
    Box::new(move || {
        for n in 0..CALLS {
            black_box(merge.may_read(black_box(n as u16 % LANES)));
        }
    })
}

/// Each frame is queued and leaves again.
fn brake() -> Load {
    let mut lanes = Lanes::new(LANES);
    let place = lanes.place(parts(&send()));
    let Place::Lane { flow, .. } = place else { unreachable!("it has a sender") };
    let mut brake = Brake::new(LANES, &Memory::default().shares(Some(LANES)));
    Box::new(move || {
        for _ in 0..CALLS {
            black_box(brake.queued(black_box(&place), 100));
            black_box(brake.taken(black_box(Some(flow)), 100));
        }
    })
}

/// Small frames of two processes that share a lane, each batch in a chunk.
fn flows() -> Load {
    let mut flows = Flows::default();
    let mut add = move |flow| {
        let lengths = vec![100; 16];
        flows.add(flow, Frames { chunks: vec![()], lengths });
        if flow == 0 {
            return;
        }
        while let Some(next) = flows.front() {
            let most = next.most;
            flows.wrote(black_box(most));
        }
    };
    Box::new(move || (0..CALLS).for_each(|n| add(black_box(n as u16 % 2))))
}
