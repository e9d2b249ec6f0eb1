//! Valid Initial packets of QUIC v1 (RFC 9000, 17.2.2; RFC 9001, 5): a ClientHello that a node takes
//! for the beginning of a link, under any connection id, thousands a second.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, Suite, Version};
use rustls::{CipherSuite, Side};

use crate::foreign::{ALPN, Credulous, ring};
use crate::random::Random;

/// What a server asks an Initial datagram to have at least.
const DATAGRAM: usize = 1200;

/// Bytes of our own connection id, which the transport parameters name.
const SOURCE_ID: [u8; 8] = *b"attacker";

/// Makes Initial packets that differ in the connection id they are for.
pub struct Initials {
    suite: Suite,
    hello: Vec<u8>,
}

impl Initials {
    pub fn new() -> Initials {
        let provider = ring();
        let suite = provider
            .cipher_suites
            .iter()
            .find(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256)
            .and_then(|suite| suite.tls13()?.quic_suite())
            .unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let name = ServerName::try_from("macula").unwrap();
        // Only initial_source_connection_id is required (RFC 9000, 18.2).
        let parameters = [&[0x0f, SOURCE_ID.len() as u8][..], &SOURCE_ID].concat();
        let mut client =
            ClientConnection::new(Arc::new(config), Version::V1, name, parameters).unwrap();
        let mut hello = Vec::new();
        client.write_hs(&mut hello);
        Initials { suite, hello }
    }

    /// An Initial to a server that is to be called `id`: at first any random bytes, after a Retry
    /// what that says, with its `token`.
    pub fn packet(&self, id: &[u8], token: &[u8]) -> Vec<u8> {
        let keys = self.suite.keys(id, Side::Client, Version::V1).local;
        // Long header, Initial, a packet number of one byte.
        let mut packet = vec![0xc0, 0, 0, 0, 1, id.len() as u8];
        packet.extend(id);
        packet.push(SOURCE_ID.len() as u8);
        packet.extend(SOURCE_ID);
        packet.extend(varint(token.len()));
        packet.extend(token);
        let tag = keys.packet.tag_len();
        // What follows the length: packet number, frames, tag.
        let rest = DATAGRAM - packet.len() - 2;
        packet.extend(varint(rest));
        let number_at = packet.len();
        packet.push(0);
        let mut frames = vec![0x06, 0];
        frames.extend(varint(self.hello.len()));
        frames.extend(&self.hello);
        frames.resize(rest - 1 - tag, 0);
        let sealed = keys.packet.encrypt_in_place(0, &packet, &mut frames).unwrap();
        packet.extend(frames);
        packet.extend(sealed.as_ref());
        // The sample begins where a packet number of four bytes would end.
        let sample_at = number_at + 4;
        let sample = packet[sample_at..sample_at + keys.header.sample_len()].to_vec();
        let (head, tail) = packet.split_at_mut(number_at);
        keys.header.encrypt_in_place(&sample, &mut head[0], &mut tail[..1]).unwrap();
        packet
    }

    /// The first packet of a new handshake.
    pub fn fresh(&self, random: &mut Random) -> Vec<u8> {
        self.packet(&random.bytes::<8>(), &[])
    }
}

/// The connection id and the token of a Retry packet (RFC 9000, 17.2.5); none when it is none.
pub fn retry(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = packet.split_at_checked(5)?;
    if header[0] & 0xf0 != 0xf0 || header[1..] != [0, 0, 0, 1] {
        return None;
    }
    let (_, rest) = rest.split_at_checked(1 + usize::from(*rest.first()?))?;
    let (id, rest) = rest.split_at_checked(1 + usize::from(*rest.first()?))?;
    let token = rest.split_at_checked(rest.len().checked_sub(16)?)?.0;
    Some((&id[1..], token))
}

/// A variable-length integer of two bytes (RFC 9000, 16), whatever its value needs.
fn varint(value: usize) -> [u8; 2] {
    assert!(value < 1 << 14);
    (value as u16 | 0x4000).to_be_bytes()
}
