//! The loads: each prepares what it needs, then does the same work every time it is called.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use macula_core::admission::Admission;
use macula_core::dist::credit::Credit;
use macula_core::dist::frame::{self, FrameReader, Piece};
use macula_core::path::demux;
use macula_core::path::table::LabelTable;

/// Calls of the function in question at each call of a load: enough that the load itself does not
/// show.
const CALLS: usize = 1000;

/// What a QUIC packet carries of a stream on a link with MTU 1500.
const CHUNK: usize = 1400;

type Load = Box<dyn FnMut()>;
type Prepare = fn() -> Load;

const LOADS: [(&str, Prepare); 8] = [
    ("classify_1000_datagrams", classify),
    ("look_up_1000_labels", || look_up(0)),
    ("look_up_1000_moved_labels", || look_up(100)),
    ("write_1000_frame_headers", headers),
    ("read_1000_frames_of_64_B", || read_frames(64, CALLS)),
    ("read_16_frames_of_64_KiB", || read_frames(64 * 1024, 16)),
    ("credit_of_1000_batches", credit),
    ("knock_1000_strangers", knock),
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
