//! Records datagrams that pass this host: what an eavesdropper has to replay.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// ETH_P_IP of linux/if_ether.h.
const ETH_P_IP: u16 = 0x0800;

/// The largest datagram that goes over Ethernet in one piece; the kernel shows us larger ones that it
/// has yet to cut.
const LARGEST: usize = 1472;

/// Writes up to `count` datagrams to or from `port` to `file`, each behind its length.
pub fn run(port: u16, count: usize, limit: Duration, file: &str) {
    let protocol = Protocol::from(i32::from(ETH_P_IP.to_be()));
    // DGRAM: without the link's own header.
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut file = File::create(file).unwrap();
    let (began, mut recorded, mut buffer) = (Instant::now(), 0, vec![0; 65536]);
    while recorded < count && began.elapsed() < limit {
        let Ok(len) = socket.read(&mut buffer) else { continue };
        if let Some(datagram) = datagram(&buffer[..len], port) {
            file.write_all(&(datagram.len() as u16).to_be_bytes()).unwrap();
            file.write_all(datagram).unwrap();
            recorded += 1;
        }
    }
    println!("recorded {recorded}");
}

fn datagram(packet: &[u8], port: u16) -> Option<&[u8]> {
    let header = 4 * usize::from(packet.first()? & 0x0f);
    let is_udp = *packet.get(9)? == 17;
    let (ports, datagram) = packet.get(header..)?.split_at_checked(8)?;
    let port = port.to_be_bytes();
    let ours = ports[..2] == port || ports[2..4] == port;
    (is_udp && ours && (1..=LARGEST).contains(&datagram.len())).then_some(datagram)
}

/// What [`run`] wrote.
pub fn read(file: &str) -> Vec<Vec<u8>> {
    let mut file = BufReader::new(File::open(file).unwrap());
    let (mut all, mut len) = (Vec::new(), [0; 2]);
    while file.read_exact(&mut len).is_ok() {
        let mut datagram = vec![0; usize::from(u16::from_be_bytes(len))];
        file.read_exact(&mut datagram).unwrap();
        all.push(datagram);
    }
    assert!(!all.is_empty(), "nothing was recorded");
    all
}
