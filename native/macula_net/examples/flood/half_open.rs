//! Handshakes that are begun and never ended, each from an address of its own.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use crate::forge::Forger;
use crate::initial::{self, Initials};
use crate::random::Random;

/// How often the sockets are looked at, and handshakes given up by the node begun again.
const ROUND: Duration = Duration::from_millis(20);

/// How often a handshake is begun anew: nodes bear with one for some seconds.
const AGAIN: Duration = Duration::from_secs(5);

/// From addresses that nobody has: no answer ever arrives anywhere.
pub fn forged(target: SocketAddrV4, network: Ipv4Addr, count: usize, limit: Duration) {
    let (initials, mut forger, mut random) = (Initials::new(), Forger::new(), Random(2));
    let began = Instant::now();
    let mut sent = 0u64;
    while began.elapsed() < limit {
        let round = Instant::now();
        for _ in 0..count {
            let packet = initials.fresh(&mut random);
            sent += u64::from(forger.send(random.source(network), target, &packet));
        }
        println!("begun {sent}");
        std::thread::sleep(AGAIN.min(limit).saturating_sub(round.elapsed()));
    }
}

/// From addresses that receive: each answers a Retry, and then falls silent.
pub fn real(target: SocketAddrV4, network: Ipv4Addr, count: usize, limit: Duration) {
    let (initials, mut random) = (Initials::new(), Random(3));
    let mut strangers: Vec<Stranger> =
        (0..count).map(|n| Stranger::new(network, n as u32 + 1, target)).collect();
    let began = Instant::now();
    let mut said = Instant::now() - AGAIN;
    while began.elapsed() < limit {
        for stranger in &mut strangers {
            stranger.go_on(&initials, &mut random);
        }
        if said.elapsed() >= AGAIN {
            said = Instant::now();
            let open = strangers.iter().filter(|stranger| stranger.open).count();
            println!("begun {count}, answered {open}");
        }
        std::thread::sleep(ROUND);
    }
}

struct Stranger {
    socket: UdpSocket,
    began: Option<Instant>,
    /// The node has said more than Retry.
    open: bool,
}

impl Stranger {
    fn new(network: Ipv4Addr, host: u32, target: SocketAddrV4) -> Stranger {
        let ip = Ipv4Addr::from_bits(network.to_bits() | host);
        let socket = UdpSocket::bind(SocketAddrV4::new(ip, 0)).expect("an address of the network");
        socket.connect(target).unwrap();
        socket.set_nonblocking(true).unwrap();
        Stranger { socket, began: None, open: false }
    }

    /// Begins, begins again, or answers what has come.
    fn go_on(&mut self, initials: &Initials, random: &mut Random) {
        if self.began.is_none_or(|began| began.elapsed() >= AGAIN) {
            self.began = Some(Instant::now());
            self.send(&initials.fresh(random));
        }
        let mut buffer = [0; 2048];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) => match initial::retry(&buffer[..len]) {
                    Some((id, token)) => self.send(&initials.packet(id, token)),
                    None => self.open = true,
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    fn send(&self, packet: &[u8]) {
        // A full queue here is one packet less, as on any network.
        let _ = self.socket.send(packet);
    }
}
