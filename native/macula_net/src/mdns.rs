//! Nodes of this link by multicast DNS (RFC 6762, 6763): says that this one is here, and tells a
//! listener of the others. What is heard proves nothing.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use mdns_sd::{
    IfKind, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo, TxtProperty,
};

/// What we are looked up by, and look up.
const SERVICE_TYPE: &str = "_macula._udp.local.";

/// How long a goodbye may take to leave; it is one datagram per interface.
const GOODBYE: Duration = Duration::from_millis(500);

/// What a listener is told each second at most: a stranger can send as much as the link carries.
const MAX_PER_SECOND: u32 = 500;

/// A label of DNS.
const MAX_LABEL: usize = 63;

/// The interface to use, if not all.
#[derive(Debug, Clone)]
pub enum Interface {
    /// By its name.
    Named(String),
    /// By an address it has.
    With(IpAddr),
}

/// How a node presents itself.
#[derive(Debug, Clone)]
pub struct Service {
    /// Shown in lists of services; made unique by the others' answers if need be.
    pub instance: String,
    /// A host name of its own, without the domain.
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// Its addresses; none for all that the interfaces have, now and later.
    pub addresses: Vec<IpAddr>,
    /// What else is to be known of it.
    pub properties: Vec<(String, String)>,
}

/// Another node.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its full name as a service, by which it is told of as gone.
    pub instance: String,
    /// Where it listens.
    pub port: u16,
    /// Its addresses; those that mean something only on a link if there are no others.
    pub addresses: Vec<IpAddr>,
    /// What it says of itself.
    pub properties: Vec<(String, String)>,
}

/// What a listener is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node is here, or something about it is new. Our own service is among them.
    Here(Found),
    /// The one of this name is gone, or was not heard of for its time to live.
    Gone(String),
}

/// Presence on the link, until it is dropped.
pub struct Mdns {
    daemon: ServiceDaemon,
    fullname: String,
}

impl Mdns {
    /// Announces `service` and tells `listener` of all others. Both run on threads of their own.
    ///
    /// # Errors
    /// In words, when the port of multicast DNS cannot be used or the service cannot be said in it.
    pub fn start(
        service: Service,
        interface: Option<Interface>,
        listener: impl FnMut(Event) + Send + 'static,
    ) -> Result<Mdns, String> {
        let info = info(service).map_err(|error| error.to_string())?;
        let fullname = info.get_fullname().to_owned();
        let daemon = ServiceDaemon::new().map_err(|error| error.to_string())?;
        // From here on dropping ends the daemon's thread.
        let mdns = Mdns { daemon, fullname };
        mdns.run(info, interface, listener).map_err(|error| error.to_string())?;
        Ok(mdns)
    }

    fn run(
        &self,
        info: ServiceInfo,
        interface: Option<Interface>,
        mut listener: impl FnMut(Event) + Send + 'static,
    ) -> mdns_sd::Result<()> {
        if let Some(interface) = interface {
            self.daemon.disable_interface(IfKind::All)?;
            self.daemon.enable_interface(match interface {
                Interface::Named(name) => IfKind::Name(name),
                Interface::With(ip) => IfKind::Addr(ip),
            })?;
        }
        let events = self.daemon.browse(SERVICE_TYPE)?;
        self.daemon.register(info)?;
        let listen = move || {
            let mut bound = Bound::new();
            // Ends when the daemon does.
            while let Ok(event) = events.recv() {
                if let Some(event) = told(event).filter(|_| bound.admits(Instant::now())) {
                    listener(event);
                }
            }
        };
        let thread = thread::Builder::new().name("macula-mdns".into()).spawn(listen);
        thread.map(drop).map_err(|error| mdns_sd::Error::Msg(error.to_string()))
    }

    /// Says goodbye and ends; waits, but not long, until it is said.
    pub fn stop(self) {
        if let Ok(done) = self.daemon.unregister(&self.fullname) {
            // If it takes longer the others find out by the time to live.
            let _ = done.recv_timeout(GOODBYE);
        }
    }
}

impl Drop for Mdns {
    fn drop(&mut self) {
        // A daemon that has ended already is what we want.
        let _ = self.daemon.shutdown();
    }
}

fn info(service: Service) -> mdns_sd::Result<ServiceInfo> {
    let instance = label(&service.instance);
    let host = format!("{}.local.", label(&service.host));
    let auto = service.addresses.is_empty();
    let info = ServiceInfo::new(
        SERVICE_TYPE,
        instance,
        &host,
        &service.addresses[..],
        service.port,
        &service.properties[..],
    )?;
    Ok(if auto { info.enable_addr_auto() } else { info })
}

/// As much of a text as fits a label.
fn label(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_LABEL)]
}

fn told(event: ServiceEvent) -> Option<Event> {
    match event {
        ServiceEvent::ServiceResolved(service) => Some(Event::Here(found(&service))),
        ServiceEvent::ServiceRemoved(_, instance) => Some(Event::Gone(instance)),
        _ => None,
    }
}

fn found(service: &ResolvedService) -> Found {
    let addresses = service.addresses.iter().map(ScopedIp::to_ip_addr);
    let property = |p: &TxtProperty| (p.key().to_owned(), p.val_str().to_owned());
    Found {
        instance: service.fullname.clone(),
        port: service.port,
        addresses: dialable(addresses),
        properties: service.txt_properties.iter().map(property).collect(),
    }
}

/// Addresses that mean something without an interface come alone; where there are none, those of
/// IPv6 that need one have to do.
fn dialable(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (mut of_link, mut others): (Vec<_>, Vec<_>) = addresses.partition(is_link_local);
    of_link.retain(IpAddr::is_ipv6);
    let dialable = if others.is_empty() { &mut of_link } else { &mut others };
    dialable.sort_unstable();
    std::mem::take(dialable)
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Counts what was told within a second.
struct Bound {
    since: Instant,
    told: u32,
}

impl Bound {
    fn new() -> Bound {
        Bound { since: Instant::now(), told: 0 }
    }

    fn admits(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Bound { since: now, told: 0 };
        }
        self.told += 1;
        self.told <= MAX_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_cut_between_characters() {
        assert_eq!(label("node@host"), "node@host");
        assert_eq!(label(&"x".repeat(80)).len(), MAX_LABEL);
        assert_eq!(label(&"ä".repeat(80)).len(), MAX_LABEL - 1);
    }

    #[test]
    fn a_listener_is_told_so_much_a_second() {
        let mut bound = Bound::new();
        let now = bound.since;
        let admitted = (0..2 * MAX_PER_SECOND).filter(|_| bound.admits(now)).count();
        assert_eq!(admitted, MAX_PER_SECOND as usize);
        assert!(bound.admits(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_link_local_address_is_for_those_without_another() {
        let dialable = |texts: &[&str]| {
            let ips = texts.iter().map(|text| text.parse().expect("an address"));
            dialable(ips).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(dialable(&["fe80::1", "192.0.2.7", "169.254.1.1"]), ["192.0.2.7"]);
        assert_eq!(dialable(&["fe80::2", "169.254.1.1", "fe80::1"]), ["fe80::1", "fe80::2"]);
    }

    #[test]
    fn a_service_says_what_it_was_given() {
        let service = Service {
            instance: "a@host.example".into(),
            host: "macula-0102".into(),
            port: 4433,
            addresses: vec!["192.0.2.7".parse().expect("an address")],
            properties: vec![("node".into(), "a@host.example".into())],
        };
        let info = info(service).expect("a service");
        assert_eq!(info.get_hostname(), "macula-0102.local.");
        assert_eq!(info.get_port(), 4433);
        assert_eq!(info.get_property_val_str("node"), Some("a@host.example"));
        assert!(!info.is_addr_auto());
    }
}
