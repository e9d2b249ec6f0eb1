//! The tokio runtime all native work runs on, and posting from it to Erlang processes.

use std::io;
use std::sync::OnceLock;

use rustler::{Env, LocalPid, OwnedEnv, Term};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{halt, measure};

/// It lives as long as the VM: its threads cannot be stopped from a library that may be purged.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Starts the runtime with `threads` workers, or returns the one that runs.
pub(crate) fn start(threads: usize) -> io::Result<&'static Handle> {
    if let Some(handle) = running() {
        return Ok(handle);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name("macula")
        .enable_all()
        .build()?;
    // Two endpoints opened at once race here; the loser's runtime is dropped unused.
    let handle = RUNTIME.get_or_init(|| runtime).handle();
    halt::hang_up_at_exit(handle);
    measure::report(handle);
    Ok(handle)
}

/// The runtime, once started.
pub(crate) fn running() -> Option<&'static Handle> {
    RUNTIME.get().map(Runtime::handle)
}

/// Sends `pid` the message that `build` makes. From any thread: the emulator lets only threads
/// that are not its own send like this, so a call on a scheduler is passed to the runtime.
pub(crate) fn post(
    pid: LocalPid,
    build: impl for<'a> FnOnce(Env<'a>) -> Term<'a> + Send + 'static,
) {
    let send = move || {
        if !halt::begun() {
            // A dead receiver is no error: its links are closed by its monitor.
            let _ = OwnedEnv::new().send_and_clear(&pid, build);
        }
    };
    if Handle::try_current().is_ok() {
        send();
    } else if let Some(handle) = running() {
        handle.spawn(async move { send() });
    }
}
