//! The async shell of macula: what `macula_core` decides is carried out here with tokio and quinn.
//!
//! [`Endpoint`] is one UDP port; a [`Link`] is one QUIC connection to another node, carrying one
//! distribution connection; [`registry`] lists the nodes that run on this machine, [`mdns`]
//! those of its link, [`resolve`] asks DNS. Nothing here knows of Erlang: whoever uses a link
//! gives it an [`Owner`] and an [`Inbox`].
#![forbid(unsafe_code)]

mod accept;
mod ahead;
mod answers;
mod certificate;
mod congestion;
mod cookies;
mod courtesy;
mod dial;
mod endpoint;
mod framing;
mod greet;
mod identity;
mod intake;
mod lanes;
mod link;
mod marker;
mod mesh;
mod outlet;
mod paths;
mod probe;
mod queue;
mod reader;
mod relay;
mod renewal;
mod restart;
mod socket;
mod stand_in;
mod tls;
mod unreachable;

pub mod hops;
pub mod mdns;
pub mod mtu;
pub mod registry;
pub mod resolve;
pub mod transport;

pub use certificate::{CertificateFault, CertificateFiles, FileError, KeyFiles};
pub use congestion::Congestion;
pub use cookies::{Cookie, CookieKeys};
pub use dial::{DialError, DialRequest, Way};
pub use endpoint::{BindError, Endpoint, EndpointConfig, Incident, Node};
pub use identity::{Identity, Origin};
pub use link::{Closed, Link, LinkInfo, Owner, SendState};
pub use mesh::{JoinError, MeshConfig, RelayError, RelayInfo, RelayUrl, State, TunnelInfo};
pub use outlet::{Batch, Output, Route, Sent, Stream};
pub use reader::{Inbox, PacketWaiter};
pub use relay::{PeerInfo, PeerState, RealmAccess, RelayConfig};
pub use renewal::CertificateNews;
pub use socket::Counters;
pub use tls::SUITE;
