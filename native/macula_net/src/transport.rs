//! QUIC's parameters for links, each with its reason. Public for those who measure plain QUIC with
//! the same ones.

use std::sync::Arc;
use std::time::Duration;

use macula_core::mesh::packet::HEADER;
use macula_core::mesh::seal::OVERHEAD;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::ahead;
use crate::congestion::{Congestion, PerPathConfig};
use crate::identity::Identity;
use crate::tls::Tls;

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

/// The first guess of a round trip. A third of a second (RFC 9002's default) would make the first
/// lost packet of a LAN handshake cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Bytes of one stream the peer may have under way: 40 ms at 50 MB/s. All lanes may have so many, since
/// behind a fence a lane may have to be kept while others are read (`macula_core::dist::merge`).
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Bytes of a stranger that are held at most: its hello, and no more until that is done.
const STRANGER_WINDOW: u32 = 64 * 1024;

/// Bytes handed to QUIC and not yet acknowledged, at most, of a link without lanes. More would only
/// make a small message wait longer behind a large one.
const SEND_WINDOW: u64 = 2 * STREAM_WINDOW as u64;

/// Packets received before an acknowledgement is due. Every second one, the default, spends a
/// third of the CPU on acknowledgements when both ends share a machine.
const ACK_EVERY: u32 = 20;

/// When one is due at the latest. On a line where packets get lost the window is smaller than
/// [`ACK_EVERY`] packets, and each of its round trips takes so much longer. With 25 ms (RFC 9000's
/// default) a stream over 40 ms and 1 % loss had three fifths of its rate, and what was lost last was
/// sent again as much later. Where packets come in numbers, [`ACK_EVERY`] of them come earlier.
const ACK_WITHIN: Duration = Duration::from_millis(5);

/// Bytes of datagrams that wait to be sent to a relay, or to a node attached to one; then the oldest
/// go. Some 20 ms at 50 MB/s: more would be latency.
pub(crate) const DATAGRAM_QUEUE: usize = 1024 * 1024;

/// How long a relay, or a node attached to one, may be silent, in answer to keep-alives, before it
/// counts as gone.
pub(crate) const RELAY_SILENCE: Duration = Duration::from_secs(8);

/// The largest datagram of a link that goes through a relay: what is left of 1452 bytes (quinn's
/// upper bound for a path) under the attachment's packet and datagram frame (some 40), our own
/// header and seal (62). Larger ones would travel in two halves.
const RELAYED_MTU: u16 = 1340;

/// The largest of these as relays pass them on.
pub(crate) const RELAYED: usize = RELAYED_MTU as usize + HEADER + OVERHEAD;

/// The accepting side's parameters for links through a relay.
pub(crate) fn relayed_server(tls: &Tls, congestion: Congestion) -> quinn::ServerConfig {
    let mut server = server(tls, congestion);
    server.transport_config(Arc::new(relayed(parameters(0, congestion))));
    server
}

/// The dialling side's parameters for a link through a relay.
pub(crate) fn relayed_client(tls: &Tls, congestion: Congestion) -> quinn::ClientConfig {
    let mut client = client(tls, congestion);
    client.transport_config(Arc::new(relayed(parameters(FIRST_STREAM, congestion))));
    client
}

fn relayed(mut transport: TransportConfig) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(RELAYED_MTU);
    transport.mtu_discovery_config(Some(discovery));
    transport
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
    let mut transport = parameters(FIRST_STREAM, congestion);
    transport.max_idle_timeout(IdleTimeout::try_from(RELAY_SILENCE).ok());
    client.transport_config(Arc::new(transport));
    client
}

/// The accepting side's parameters. Of links and attachments alike: which one it is shows later.
pub(crate) fn server(tls: &Tls, congestion: Congestion) -> quinn::ServerConfig {
    let mut server = quinn::ServerConfig::with_crypto(tls.server.clone());
    // The socket moves links between addresses; QUIC must not do so on its own.
    server.migration(false);
    server.max_incoming(WAITING_ROOM);
    server.transport_config(Arc::new(parameters(0, congestion)));
    server
}

/// The dialling side's parameters.
pub(crate) fn client(tls: &Tls, congestion: Congestion) -> quinn::ClientConfig {
    let mut client = quinn::ClientConfig::new(tls.client.clone());
    client.transport_config(Arc::new(parameters(FIRST_STREAM, congestion)));
    client
}

/// Lets a peer that is a stranger no more send at full rate, on so many lanes.
pub fn admit(connection: &quinn::Connection, lanes: Option<u16>) {
    let lanes = lanes.map_or(0, u32::from);
    let streams = lanes + FIRST_STREAM;
    connection.set_receive_window(VarInt::from_u32(window_of(streams)));
    connection.set_max_concurrent_uni_streams(lanes.into());
    if lanes > 0 {
        connection.set_send_window(ahead::LEAST);
    }
}

/// Bytes of so many streams that the peer may have under way, so that none of them, however full, keeps out another one.
/// quinn tells the peer of room on a connection only when that is an eighth of its window: an eighth is not to be counted on.
fn window_of(streams: u32) -> u32 {
    (streams * STREAM_WINDOW).div_ceil(7) * 8
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
    config
}

/// The parameters both sides have. `streams`: how many the other side may open. The acceptor opens
/// them, as it speaks first.
pub fn parameters(streams: u32, congestion: Congestion) -> TransportConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_WITHIN));
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
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(STRANGER_WINDOW.into())
        .send_window(SEND_WINDOW)
        .congestion_controller_factory(Arc::new(PerPathConfig::new(congestion)))
        .ack_frequency_config(Some(acks));
    transport
}
