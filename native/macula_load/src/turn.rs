//! Another relay to stand beside: coturn, and as much of TURN (RFC 8656) as it takes to have it pass
//! datagrams on. The answers are those of a server that was started here, and believed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ring::hmac;
use tokio::net::UdpSocket;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::process::Usage;

/// Debian's package coturn has it.
const PROGRAM: &str = "turnserver";

const USER: &str = "load";
const REALM: &str = "load";

/// What stands for a password (RFC 8489, 9.2.2), which coturn takes as it is.
const KEY: [u8; 16] = *b"of a load's user";

/// How long the server may take for an answer, and how long to get ready.
const ANSWER: Duration = Duration::from_millis(500);
const READY: Duration = Duration::from_secs(10);

const HEADER: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Kind, length and HMAC-SHA1.
const INTEGRITY_LEN: usize = 24;

const ALLOCATE: u16 = 0x0003;
const CHANNEL_BIND: u16 = 0x0009;
const SUCCESS: u16 = 0x0100;

const USERNAME_ATTRIBUTE: u16 = 0x0006;
const INTEGRITY: u16 = 0x0008;
const CHANNEL_NUMBER: u16 = 0x000c;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const REALM_ATTRIBUTE: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;

const UDP: u8 = 17;

/// The first of the numbers that channels have, and its prefix of every datagram.
const CHANNEL: u16 = 0x4000;
const CHANNEL_HEADER: usize = 4;

/// A server of this machine's loopback, which ends with this.
#[derive(Debug)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    child: Child,
    home: PathBuf,
}

impl Server {
    /// Starts one. None: there is no such program here.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start() -> Result<Option<Server>, Error> {
        let port = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let home = std::env::temp_dir().join(format!("macula_load-turn-{}", std::process::id()));
        std::fs::create_dir_all(&home)?;
        let child = command(port, &home).spawn();
        let missing = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        if child.as_ref().is_err_and(missing) {
            std::fs::remove_dir(&home)?;
            return Ok(None);
        }
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let server = Server { address, child: child?, home };
        let began = Instant::now();
        loop {
            match End::open(server.address).await {
                Ok(_) => return Ok(Some(server)),
                Err(_) if began.elapsed() < READY => sleep(ANSWER / 5).await,
                Err(error) => return Err(format!("{PROGRAM} does not get ready: {error}").into()),
            }
        }
    }

    /// What its process has used.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self) -> Result<Usage, Error> {
        Usage::of(self.child.id().ok_or("the TURN server has ended")?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        // What is left there is of no use to anybody.
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// UDP alone, on loopback alone, without anything that is written or listened to beside that.
fn command(port: u16, home: &Path) -> Command {
    let key: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = Command::new(PROGRAM);
    command.args(["-n", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp", "--no-rfc5780"]);
    command.args(["--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1"]);
    command.args(["--listening-port", &port.to_string(), "--allow-loopback-peers"]);
    command.args(["--lt-cred-mech", "--realm", REALM, "--user", &format!("{USER}:0x{key}")]);
    command.args(["--no-stdout-log", "--simple-log", "--log-file"]).arg(home.join("log"));
    command.arg("--pidfile").arg(home.join("pid")).arg("--userdb").arg(home.join("users"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

/// An allocation, and the one channel on it.
#[derive(Debug)]
pub struct End {
    socket: UdpSocket,
    nonce: Vec<u8>,
    /// Where others reach it.
    pub relayed: SocketAddr,
}

impl End {
    /// Has an address allocated.
    ///
    /// # Errors
    /// The server does not answer, or not as it should.
    pub async fn open(server: SocketAddr) -> Result<End, Error> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(server).await?;
        let transport = (REQUESTED_TRANSPORT, vec![UDP, 0, 0, 0]);
        // Refused, with the nonce that is asked for.
        let refusal = ask(&socket, &Message::new(ALLOCATE).with(&transport).encode(None)).await?;
        let nonce = refusal.attribute(NONCE).ok_or("the TURN server names no nonce")?.to_vec();
        let relayed = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut end = End { socket, nonce, relayed };
        let answer = end.request(Message::new(ALLOCATE).with(&transport)).await?;
        let relayed = answer.attribute(XOR_RELAYED_ADDRESS).and_then(unmasked);
        end.relayed = relayed.ok_or("the TURN server names no address")?;
        Ok(end)
    }

    /// Binds the channel to who is at `peer`, who from then on may also send.
    ///
    /// # Errors
    /// The server refuses it.
    pub async fn bind(&self, peer: SocketAddr) -> Result<(), Error> {
        let number = [CHANNEL.to_be_bytes(), [0; 2]].concat();
        let bind = Message::new(CHANNEL_BIND).with(&(CHANNEL_NUMBER, number));
        self.request(bind.with(&(XOR_PEER_ADDRESS, masked(peer)?))).await.map(drop)
    }

    /// Sends a datagram to the peer.
    ///
    /// # Errors
    /// The system refuses it.
    pub async fn send(&self, payload: &[u8]) -> std::io::Result<()> {
        let mut data = Vec::with_capacity(CHANNEL_HEADER + payload.len());
        data.extend(CHANNEL.to_be_bytes());
        data.extend((payload.len() as u16).to_be_bytes());
        data.extend(payload);
        self.socket.send(&data).await.map(drop)
    }

    /// Takes the next datagram of the peer, and gives its length.
    ///
    /// # Errors
    /// The system has none.
    pub async fn receive(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(self.socket.recv(buffer).await?.saturating_sub(CHANNEL_HEADER))
    }

    async fn request(&self, message: Message) -> Result<Message, Error> {
        let credentials = [
            (USERNAME_ATTRIBUTE, USER.as_bytes().to_vec()),
            (REALM_ATTRIBUTE, REALM.as_bytes().to_vec()),
            (NONCE, self.nonce.clone()),
        ];
        let message = credentials.iter().fold(message, |message, one| message.with(one));
        let answer = ask(&self.socket, &message.encode(Some(&KEY))).await?;
        match answer.kind == message.kind | SUCCESS {
            true => Ok(answer),
            false => Err(format!("the TURN server answers {:#06x}", answer.kind).into()),
        }
    }
}

async fn ask(socket: &UdpSocket, question: &[u8]) -> Result<Message, Error> {
    socket.send(question).await?;
    let mut answer = [0; 2048];
    let len = timeout(ANSWER, socket.recv(&mut answer)).await??;
    let answer = answer.get(..len).and_then(Message::decode);
    Ok(answer.ok_or("the TURN server answers with something else")?)
}

/// A STUN message (RFC 8489, 5).
#[derive(Debug)]
struct Message {
    kind: u16,
    transaction: [u8; 12],
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Message {
    fn new(kind: u16) -> Message {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let mut transaction = [0; 12];
        transaction[..8].copy_from_slice(&LAST.fetch_add(1, Relaxed).to_be_bytes());
        transaction[8..].copy_from_slice(&std::process::id().to_be_bytes());
        Message { kind, transaction, attributes: Vec::new() }
    }

    fn with(mut self, attribute: &(u16, Vec<u8>)) -> Message {
        self.attributes.push(attribute.clone());
        self
    }

    fn attribute(&self, kind: u16) -> Option<&[u8]> {
        let mut of_kind = self.attributes.iter().filter(|attribute| attribute.0 == kind);
        of_kind.next().map(|(_, value)| &value[..])
    }

    /// With a proof that its sender has `key`.
    fn encode(&self, key: Option<&[u8]>) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in &self.attributes {
            attribute(&mut body, *kind, value);
        }
        // The proof counts what it covers as if it were there already (14.5).
        let len = body.len() + key.map_or(0, |_| INTEGRITY_LEN);
        let mut out = self.kind.to_be_bytes().to_vec();
        out.extend((len as u16).to_be_bytes());
        out.extend(COOKIE);
        out.extend(self.transaction);
        out.extend(body);
        if let Some(key) = key {
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
            let proof = hmac::sign(&key, &out);
            attribute(&mut out, INTEGRITY, proof.as_ref());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Message> {
        let (header, mut body) = bytes.split_at_checked(HEADER)?;
        let kind = u16::from_be_bytes(*header.first_chunk()?);
        let transaction = *header.last_chunk()?;
        let mut attributes = Vec::new();
        while let Some((head, rest)) = body.split_first_chunk::<4>() {
            let [a, b, c, d] = *head;
            let len = usize::from(u16::from_be_bytes([c, d]));
            attributes.push((u16::from_be_bytes([a, b]), rest.get(..len)?.to_vec()));
            body = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(Message { kind, transaction, attributes })
    }
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(kind.to_be_bytes());
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
    // The header is as long as a multiple of four.
    out.resize(out.len().next_multiple_of(4), 0);
}

/// An address as XOR-PEER-ADDRESS has it (RFC 8489, 14.2).
fn masked(address: SocketAddr) -> Result<Vec<u8>, Error> {
    let IpAddr::V4(ip) = address.ip() else {
        return Err("only IPv4 is spoken with a TURN server".into());
    };
    let plain = [&address.port().to_be_bytes()[..], &ip.octets()].concat();
    Ok([&[0, 1][..], &mask(&plain)].concat())
}

fn unmasked(value: &[u8]) -> Option<SocketAddr> {
    let plain = mask(value.get(2..8)?);
    let (port, ip) = plain.split_first_chunk()?;
    Some((*ip.first_chunk::<4>()?, u16::from_be_bytes(*port)).into())
}

fn mask(plain: &[u8]) -> Vec<u8> {
    let mask = COOKIE[..2].iter().chain(&COOKIE);
    plain.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_masked_and_unmasked() {
        let address = SocketAddr::from(([192, 0, 2, 1], 32853));
        // The sample of RFC 5769, 2.2.
        let value = [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        assert_eq!(masked(address).unwrap(), value);
        assert_eq!(unmasked(&value), Some(address));
        assert_eq!(unmasked(&value[..7]), None);
    }

    #[test]
    fn a_message_says_what_was_put_in() {
        let message = Message::new(ALLOCATE).with(&(NONCE, b"seven b".to_vec()));
        let bytes = message.encode(Some(&KEY));
        assert_eq!(bytes.len(), HEADER + 4 + 8 + INTEGRITY_LEN);
        let decoded = Message::decode(&bytes).unwrap();
        assert_eq!((decoded.kind, decoded.transaction), (ALLOCATE, message.transaction));
        assert_eq!(decoded.attribute(NONCE), Some(&b"seven b"[..]));
        assert_eq!(decoded.attribute(INTEGRITY).map(<[u8]>::len), Some(20));
        assert!(Message::decode(&bytes[..19]).is_none());
        assert!(Message::decode(&bytes[..30]).is_none());
    }
}
