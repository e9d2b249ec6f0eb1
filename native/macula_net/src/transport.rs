//! QUIC's parameters for links, each with its reason. Public for those who measure plain QUIC with
//! the same ones.

use std::sync::Arc;
use std::time::Duration;

use macula_core::dist::memory::{Memory, Shares};
use macula_core::mesh::packet::HEADER;
use macula_core::mesh::seal::OVERHEAD;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::congestion::{Congestion, PerPathConfig};
use crate::identity::Identity;
use crate::tls::Tls;
use crate::{ahead, mtu};

/// Lanes of a link whose sides have agreed on so many streams; with one there is the control stream
/// alone.
pub(crate) fn lanes(streams: u8) -> Option<u16> {
    (streams > 1).then(|| u16::from(streams))
}

/// The streams that the acceptor opens for the hello, or a relay for its messages: one.
const FIRST_STREAM: u32 = 1;

/// How often a silent link is checked: NAT bindings live 30 s and more, and a peer killed on a
/// host that still answers is noticed within this time.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The first guess of a round trip: what is lost of a handshake is sent again after three of them. On a LAN that loses a
/// tenth of its packets connecting takes 95 ms in the mean, and with a third of a second (RFC 9002's default) 273 and now
/// and then 3 s. With 25 ms it takes 27; but then a node that is crowded by strangers takes what honest diallers repeat
/// for more of them, and sends these away.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Bytes of a stranger that are held at most: its hello, and no more until that is done.
const STRANGER_WINDOW: u32 = 64 * 1024;

/// Bytes handed to QUIC and not yet acknowledged, at most, of a link without lanes. More would only
/// make a small message wait longer behind a large one.
const SEND_WINDOW: u64 = 4 * 1024 * 1024;

/// Bytes received before an acknowledgement is due: 20 packets of the usual size. Every second one, the default, spends a
/// third of the CPU on acknowledgements when both ends share a machine.
const ACK_EVERY: u32 = 20 * mtu::USUAL as u32;

/// As of RFC 9000, 13.2.2.
const ACK_EVERY_PACKETS: u32 = 2;

/// When one is due at the latest. On a line where packets get lost the window is smaller than
/// [`ACK_EVERY`], and each of its round trips takes so much longer. With 25 ms (RFC 9000's
/// default) a stream over 40 ms and 1 % loss had three fifths of its rate, and what was lost last was
/// sent again as much later. Where packets come in numbers, so many come earlier.
const ACK_WITHIN: Duration = Duration::from_millis(5);

/// Bytes of datagrams that wait to be sent to a relay, or to a node attached to one; then the oldest
/// go. Some 20 ms at 50 MB/s: more would be latency.
pub(crate) const DATAGRAM_QUEUE: usize = 1024 * 1024;

/// How long a relay, or a node attached to one, may be silent, in answer to keep-alives, before it
/// counts as gone.
pub(crate) const RELAY_SILENCE: Duration = Duration::from_secs(8);

/// The largest datagram of a link as relays pass it on.
pub(crate) const RELAYED: usize = mtu::RELAYED as usize + HEADER + OVERHEAD;

/// What the user of an endpoint decides about its links.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) congestion: Congestion,
    pub(crate) memory: Memory,
    /// The most lanes that a link may have.
    pub(crate) lanes: Option<u16>,
}

impl Settings {
    /// The parameters of links on which the other side may open so many streams, and whose datagrams have so many bytes at
    /// most.
    fn links(&self, streams: u32, largest: u16) -> Arc<TransportConfig> {
        let mut transport = parameters(streams, self.congestion, largest);
        transport.stream_receive_window(self.memory.shares(self.lanes).window.into());
        Arc::new(transport)
    }
}

/// Strangers who wait for their turn to be let in: as many as get it within half a second. Others are
/// sent away at once, rather than let in when they have given up.
const WAITING_ROOM: usize = 256;

/// Bytes of messages on their way to an attached node, at most: the larger part of a directory. Most
/// of what it is sent are datagrams, which do not count.
const MESSAGES_WINDOW: u64 = 256 * 1024;

/// Has a node that attaches hold no more memory than it needs.
pub(crate) fn attached(connection: &quinn::Connection) {
    connection.set_send_window(MESSAGES_WINDOW);
}

/// The parameters of an attachment to a relay, or of a peering with one.
pub(crate) fn attachment(
    tls: &Arc<QuicClientConfig>,
    congestion: Congestion,
) -> quinn::ClientConfig {
    let mut client = quinn::ClientConfig::new(tls.clone());
    let mut transport = parameters(FIRST_STREAM, congestion, mtu::USUAL);
    transport.max_idle_timeout(IdleTimeout::try_from(RELAY_SILENCE).ok());
    client.transport_config(Arc::new(transport));
    client
}

/// The accepting side's parameters, for datagrams of so many bytes at most. Of links and attachments alike: which one it is
/// shows later.
pub(crate) fn server(tls: &Tls, settings: &Settings, largest: u16) -> quinn::ServerConfig {
    let mut server = quinn::ServerConfig::with_crypto(tls.server.clone());
    // The socket moves links between addresses; QUIC must not do so on its own.
    server.migration(false);
    server.max_incoming(WAITING_ROOM);
    server.transport_config(settings.links(0, largest));
    server
}

/// The dialling side's parameters, for datagrams of so many bytes at most.
pub(crate) fn client(tls: &Tls, settings: &Settings, largest: u16) -> quinn::ClientConfig {
    let mut client = quinn::ClientConfig::new(tls.client.clone());
    client.transport_config(settings.links(FIRST_STREAM, largest));
    client
}

/// Lets a peer that is a stranger no more send at full rate, on so many lanes.
pub fn admit(connection: &quinn::Connection, lanes: Option<u16>, shares: &Shares) {
    let ahead = if lanes.is_some() { ahead::LEAST } else { SEND_WINDOW };
    connection.set_send_window(ahead.min(shares.ahead));
    let lanes = lanes.map_or(0, u32::from);
    let window = window_of(lanes + FIRST_STREAM, shares.window);
    connection.set_receive_window(VarInt::from_u32(window));
    connection.set_max_concurrent_uni_streams(lanes.into());
}

/// Bytes of so many streams of a window each that the peer may have under way, so that none of them, however full, keeps out another one.
/// quinn tells the peer of room on a connection only when that is an eighth of its window: an eighth is not to be counted on.
fn window_of(streams: u32, each: u32) -> u32 {
    (streams * each).div_ceil(7) * 8
}

/// Counts what a connection has sent that asks for an acknowledgement. Of what QUIC sends when none
/// comes much is IMMEDIATE_ACK alone (draft-ietf-quic-ack-frequency).
pub(crate) fn asking(stats: &quinn::ConnectionStats) -> u64 {
    let sent = &stats.frame_tx;
    sent.stream + sent.datagram + sent.ping + sent.immediate_ack
}

/// The port's parameters.
pub(crate) fn endpoint(identity: &Identity) -> quinn::EndpointConfig {
    let mut config = identity.quic();
    // A greased fixed bit would make QUIC packets look like something else on our port.
    config.grease_quic_bit(false);
    take_large_datagrams(&mut config);
    config
}

/// Takes datagrams of any size that [`mtu::largest`] gives. Unlike their content, a port's buffers for them are hardly ever
/// filled, and so not resident.
pub fn take_large_datagrams(config: &mut quinn::EndpointConfig) {
    // Fails only beyond what UDP has, or below what QUIC needs.
    let _ = config.max_udp_payload_size(mtu::MOST);
}

/// The parameters both sides have. `streams`: how many the other side may open. The acceptor opens
/// them, as it speaks first. `largest`: bytes of its datagrams, at most.
pub fn parameters(streams: u32, congestion: Congestion, largest: u16) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    let packets = (ACK_EVERY / u32::from(largest)).max(ACK_EVERY_PACKETS);
    acks.ack_eliciting_threshold(VarInt::from_u32(packets)).max_ack_delay(Some(ACK_WITHIN));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(largest).minimum_change(mtu::step(largest));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        // For attachments; all that links send so are empty probes.
        .datagram_receive_buffer_size(Some(DATAGRAM_QUEUE))
        .datagram_send_buffer_size(DATAGRAM_QUEUE)
        // net_ticktime decides about an established link; before that, bounds of our own.
        .max_idle_timeout(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(Memory::default().shares(None).window.into())
        .receive_window(STRANGER_WINDOW.into())
        .send_window(SEND_WINDOW)
        .congestion_controller_factory(Arc::new(PerPathConfig::new(congestion)))
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks));
    transport
}
