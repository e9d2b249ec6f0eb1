//! The end of the VM: tells the peers, so that they need not wait to notice.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Once, Weak};
use std::time::Duration;

use macula_net::Endpoint;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// How long the goodbyes may take: two or three local round trips; a peer farther away still gets
/// its goodbye, only not a second copy.
const GOODBYE: Duration = Duration::from_millis(100);

/// How often the exiting thread looks whether they are sent.
const LOOK: Duration = Duration::from_millis(1);

static BEGUN: AtomicBool = AtomicBool::new(false);
static DONE: AtomicBool = AtomicBool::new(false);
static EXIT: Notify = Notify::const_new();
static ENDPOINTS: Mutex<Vec<Weak<Endpoint>>> = Mutex::new(Vec::new());

/// True once the VM is exiting: its memory allocators may go away under our threads.
pub(crate) fn begun() -> bool {
    BEGUN.load(SeqCst)
}

/// Has `endpoint` say goodbye at the end of the VM.
pub(crate) fn remember(endpoint: &Arc<Endpoint>) {
    let mut endpoints = ENDPOINTS.lock();
    endpoints.retain(|endpoint| endpoint.strong_count() > 0);
    endpoints.push(Arc::downgrade(endpoint));
}

/// Arranges for the goodbyes, once. `halt/0` flushes ports only, and NIF callbacks for it exist
/// from OTP 26 on, so this hangs on the C library's exit.
pub(crate) fn hang_up_at_exit(runtime: &Handle) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        runtime.spawn(hang_up());
        // SAFETY: `exiting` is a plain function without arguments that never unwinds, and the
        // library stays mapped (`-z nodelete`), so that the pointer is valid at exit.
        unsafe {
            libc::atexit(exiting);
        }
    });
}

async fn hang_up() {
    EXIT.notified().await;
    let endpoints: Vec<_> = ENDPOINTS.lock().iter().filter_map(Weak::upgrade).collect();
    for endpoint in endpoints {
        endpoint.hang_up(GOODBYE).await;
    }
    DONE.store(true, SeqCst);
}

/// Runs in the thread that exits. Its thread-local storage is gone by then, so it does nothing but
/// wake the runtime and wait.
extern "C" fn exiting() {
    BEGUN.store(true, SeqCst);
    EXIT.notify_one();
    let mut waited = Duration::ZERO;
    while !DONE.load(SeqCst) && waited < GOODBYE {
        std::thread::sleep(LOOK);
        waited += LOOK;
    }
}
