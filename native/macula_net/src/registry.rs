//! This machine's registry of running nodes: a file per node, locked for as long as it runs.
//!
//! The lock is the operating system's: it goes with the process however that ends, so a stale file
//! never passes for a node. Whoever finds one removes it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::marker;

/// The longest entry read, in bytes: an address in text.
const MAX_ENTRY: u64 = 64;

/// Why a node could not be registered.
#[derive(Debug)]
pub enum RegisterError {
    /// A running node has that name.
    Taken,
    /// The directory cannot be used.
    Io(io::Error),
}

impl From<io::Error> for RegisterError {
    fn from(error: io::Error) -> RegisterError {
        RegisterError::Io(error)
    }
}

/// A node's place in the registry, until dropped.
#[derive(Debug)]
pub struct Registration {
    directory: PathBuf,
    path: PathBuf,
    file: File,
}

impl Registration {
    /// Registers the node `name`, to be reached at `address`, in `directory`, which is made if
    /// need be and must belong to this user alone.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub fn publish(
        directory: &Path,
        name: &str,
        address: SocketAddr,
    ) -> Result<Registration, RegisterError> {
        prepare(directory)?;
        let _guard = guard(directory)?;
        let path = directory.join(file_name(name));
        if let Entry::Running(_) = read_entry(&path)? {
            return Err(RegisterError::Taken);
        }
        let new = directory.join(format!(".new-{}", std::process::id()));
        // Left by an earlier process with our number that was killed here; the guard is ours.
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.lock()?;
        file.write_all(address.to_string().as_bytes())?;
        fs::rename(&new, &path)?;
        Ok(Registration { directory: directory.into(), path, file })
    }
}

impl Drop for Registration {
    /// Removes the entry unless it has become another's. Left over, it would only be stale.
    fn drop(&mut self) {
        if let Ok(_guard) = guard(&self.directory)
            && is_at(&self.path, &self.file)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether `path` still leads to this file.
fn is_at(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(here)) => (there.dev(), there.ino()) == (here.dev(), here.ino()),
        _ => false,
    }
}

/// The address of the running node `name`.
///
/// # Errors
/// The directory cannot be read or is not ours; a missing one is merely empty.
pub fn find(directory: &Path, name: &str) -> io::Result<Option<SocketAddr>> {
    if !checked(directory)? {
        return Ok(None);
    }
    look_up(directory, &directory.join(file_name(name)))
}

/// All running nodes with their addresses.
///
/// # Errors
/// As for [`find`].
pub fn list(directory: &Path) -> io::Result<Vec<(String, SocketAddr)>> {
    if !checked(directory)? {
        return Ok(Vec::new());
    }
    let mut nodes = Vec::new();
    for entry in fs::read_dir(directory)? {
        let file = entry?.file_name();
        let Some(name) = file.to_str().and_then(node_name) else {
            continue;
        };
        if let Some(address) = look_up(directory, &directory.join(&file))? {
            nodes.push((name, address));
        }
    }
    Ok(nodes)
}

/// The address in the entry at `path`, if its owner runs. A stale entry is removed, but only while
/// nobody publishes: else it could be the new owner's by then.
fn look_up(directory: &Path, path: &Path) -> io::Result<Option<SocketAddr>> {
    loop {
        match read_entry(path)? {
            Entry::Missing => return Ok(None),
            Entry::Running(address) => return Ok(address),
            // A new owner has just replaced it.
            Entry::Stale(file) if !is_at(path, &file) => {}
            Entry::Stale(file) => {
                if let Ok(lock) = lock_file(directory)
                    && lock.try_lock().is_ok()
                    && is_at(path, &file)
                {
                    let _ = fs::remove_file(path);
                }
                return Ok(None);
            }
        }
    }
}

/// What is found where a node would have its entry.
enum Entry {
    Missing,
    /// Its owner holds it.
    Running(Option<SocketAddr>),
    /// Nobody holds it.
    Stale(File),
}

fn read_entry(path: &Path) -> io::Result<Entry> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entry::Missing),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => return Ok(Entry::Stale(file)),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut text = String::new();
    Read::by_ref(&mut file).take(MAX_ENTRY).read_to_string(&mut text)?;
    Ok(Entry::Running(text.parse().ok()))
}

/// Makes the directory, and checks that nobody else can write to it.
fn prepare(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    checked(directory).map(|_| ())
}

/// False when there is no such directory.
fn checked(directory: &Path) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata?,
    };
    let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
    if !metadata.is_dir() || !ours || metadata.mode() & 0o077 != 0 {
        let text =
            format!("{} must be a directory of this user with mode 0700", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(true)
}

/// Keeps other writers out until dropped.
fn guard(directory: &Path) -> io::Result<File> {
    let file = lock_file(directory)?;
    file.lock()?;
    Ok(file)
}

fn lock_file(directory: &Path) -> io::Result<File> {
    marker::open(&directory.join(".lock"))
}

/// The file of a node: its name, with all but plain characters as `%` and two hex digits.
fn file_name(name: &str) -> String {
    let mut file = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'@' | b'-' | b'_' => file.push(byte.into()),
            b'.' if !file.is_empty() => file.push('.'),
            other => file.push_str(&format!("%{other:02x}")),
        }
    }
    file
}

/// The node of a file; none when it is not an entry.
fn node_name(file: &str) -> Option<String> {
    if file.starts_with('.') {
        return None;
    }
    let mut name = Vec::with_capacity(file.len());
    let mut bytes = file.bytes();
    while let Some(byte) = bytes.next() {
        name.push(if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of its own for each test, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Scratch {
            let name = format!("macula-registry-{test}-{}", std::process::id());
            let scratch = Scratch(std::env::temp_dir().join(name));
            let _ = fs::remove_dir_all(&scratch.0);
            scratch
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_running_node_is_found_and_its_name_is_taken() {
        let dir = &Scratch::new("found");
        let a = Registration::publish(&dir.0, "a@ho/st:1", address(1)).unwrap();
        assert_eq!(find(&dir.0, "a@ho/st:1").unwrap(), Some(address(1)));
        assert_eq!(list(&dir.0).unwrap(), vec![("a@ho/st:1".into(), address(1))]);
        let taken = Registration::publish(&dir.0, "a@ho/st:1", address(2));
        assert!(matches!(taken, Err(RegisterError::Taken)));
        drop(a);
        assert_eq!(find(&dir.0, "a@ho/st:1").unwrap(), None);
        Registration::publish(&dir.0, "a@ho/st:1", address(3)).unwrap();
    }

    #[test]
    fn a_stale_entry_is_removed_and_its_name_is_free() {
        let dir = &Scratch::new("stale");
        prepare(&dir.0).unwrap();
        fs::write(dir.0.join("dead@host"), "127.0.0.1:9").unwrap();
        assert_eq!(find(&dir.0, "dead@host").unwrap(), None);
        assert!(!dir.0.join("dead@host").exists());
        fs::write(dir.0.join("dead@host"), "127.0.0.1:9").unwrap();
        Registration::publish(&dir.0, "dead@host", address(1)).unwrap();
    }

    /// Who looks for a dead node must not remove the entry of its successor: a stale one stays for
    /// as long as somebody publishes.
    #[test]
    fn nothing_is_removed_while_somebody_publishes() {
        let dir = &Scratch::new("successor");
        prepare(&dir.0).unwrap();
        fs::write(dir.0.join("back@host"), "127.0.0.1:9").unwrap();
        let publishing = guard(&dir.0).unwrap();
        assert_eq!(find(&dir.0, "back@host").unwrap(), None);
        assert!(dir.0.join("back@host").exists());
        drop(publishing);
        assert_eq!(find(&dir.0, "back@host").unwrap(), None);
        assert!(!dir.0.join("back@host").exists());
    }

    #[test]
    fn who_comes_back_is_found_while_others_look() {
        let dir = &Scratch::new("looking");
        prepare(&dir.0).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    find(&dir.0, "back@host").unwrap();
                }
            });
            let lost = (0..500).any(|_| {
                // What a killed node leaves.
                fs::write(dir.0.join("back@host"), "127.0.0.1:9").unwrap();
                let _back = Registration::publish(&dir.0, "back@host", address(1)).unwrap();
                find(&dir.0, "back@host").unwrap() != Some(address(1))
            });
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(!lost);
        });
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = &Scratch::new("open");
        prepare(&dir.0).unwrap();
        fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o777)).unwrap();
        let error = find(&dir.0, "a@host").unwrap_err();
        assert!(error.to_string().contains("0700"), "{error}");
    }

    #[test]
    fn a_missing_directory_is_empty() {
        let dir = &Scratch::new("missing");
        assert_eq!(find(&dir.0, "a@host").unwrap(), None);
        assert!(list(&dir.0).unwrap().is_empty());
    }
}
