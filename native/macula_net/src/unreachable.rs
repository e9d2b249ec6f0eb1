//! "Port unreachable" reports: read off the socket's error queue and passed to whom they concern.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Room for the largest control message of the error queue: a report and an IPv6 address.
const CONTROL: usize = 128;

/// Takes the next report off the error queue: the address a datagram was refused at, or none when
/// the report is of another kind.
///
/// # Errors
/// `WouldBlock` when the queue is empty.
pub(crate) fn next_report(socket: &tokio::net::UdpSocket) -> io::Result<Option<SocketAddr>> {
    let fd: RawFd = socket.as_raw_fd();
    // The report quotes the datagram it is about, of which nothing is needed.
    let mut quoted = [0u8; 64];
    let mut iov = [IoSliceMut::new(&mut quoted)];
    let mut control = nix::cmsg_space!([u8; CONTROL]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let report = recvmsg::<SockaddrStorage>(fd, &mut iov, Some(&mut control), flags)?;
    let refused = report.cmsgs()?.any(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            error.ee_errno == Errno::ECONNREFUSED as u32
        }
        _ => false,
    });
    Ok(report.address.filter(|_| refused).and_then(to_std))
}

fn to_std(address: SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port())))
}

/// Who wants to hear of reports about which label.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    watchers: Mutex<HashMap<SocketAddr, Vec<Weak<Notify>>>>,
}

/// Hears of the reports about one label for as long as it lives.
#[derive(Debug)]
pub(crate) struct Watch {
    reports: Arc<Reports>,
    label: SocketAddr,
    notify: Arc<Notify>,
}

impl Reports {
    /// Watches `label`.
    pub(crate) fn watch(self: &Arc<Self>, label: SocketAddr) -> Watch {
        let notify = Arc::new(Notify::new());
        self.watchers.lock().entry(label).or_default().push(Arc::downgrade(&notify));
        Watch { reports: self.clone(), label, notify }
    }

    /// Passes on a report about `label`.
    pub(crate) fn report(&self, label: SocketAddr) {
        let watchers = self.watchers.lock();
        let concerned = watchers.get(&label).into_iter().flatten();
        concerned.filter_map(Weak::upgrade).for_each(|notify| notify.notify_one());
    }
}

impl Watch {
    /// Waits for the next report; several in quick succession may count as one.
    pub(crate) async fn next(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watchers = self.reports.watchers.lock();
        if let Some(of_label) = watchers.get_mut(&self.label) {
            let mine = Arc::downgrade(&self.notify);
            of_label.retain(|other| !other.ptr_eq(&mine));
            if of_label.is_empty() {
                watchers.remove(&self.label);
            }
        }
    }
}
