//! A TAP interface in a network namespace: whole Ethernet frames, so that ARP, IPv6 and multicast
//! pass as on any other wire. Without offloads, so that a packet here is a packet on the wire.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;
use nix::sched::{CloneFlags, setns};

/// An interface, for as long as this is open.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Makes the interface `name` in `namespace`, a file such as `/run/netns/a`.
    pub fn open(namespace: &Path, name: &str) -> io::Result<Tap> {
        let home = File::open("/proc/thread-self/ns/net")?;
        setns(File::open(namespace)?.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let tap = Tap::create(name);
        setns(home.as_fd(), CloneFlags::CLONE_NEWNET)?;
        tap
    }

    fn create(name: &str) -> io::Result<Tap> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let request = request(name)?;
        // SAFETY: TUNSETIFF reads an ifreq, which `request` is and which outlives the call.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &request) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(Tap(file)) }
    }

    /// The next frame, or none when there is none now.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.0).read(buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The interface is down.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a frame. One that the other side does not take is lost, as on any wire.
    pub fn send(&self, frame: &[u8]) {
        let _ = (&self.0).write(frame);
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: name too long"));
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags.try_into().map_err(io::Error::other)?,
        },
    };
    // The last character stays 0.
    let place = request.ifr_name.get_mut(..name.len()).filter(|p| p.len() < libc::IFNAMSIZ);
    for (to, from) in place.ok_or_else(too_long)?.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
