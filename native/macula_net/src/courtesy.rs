//! The runtime under quinn: tokio's, whose threads let others have their processor after each piece of work.
//!
//! That is after a piece, and not within it, where quinn holds the lock of a connection.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Instant;

use macula_core::courtesy::Courtesy;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

/// The moment from which the times of all threads count.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

thread_local! {
    static COURTESY: Cell<Courtesy> = Cell::default();
}

/// Tokio's, but for how its threads behave.
#[derive(Debug)]
pub(crate) struct Courteous;

impl Runtime for Courteous {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    /// quinn has a task for each connection, and one for each endpoint.
    fn spawn(&self, mut task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(Box::pin(poll_fn(move |cx| {
            let done = task.as_mut().poll(cx);
            yield_if_due();
            done
        })));
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// This thread has sent or received so many bytes.
pub(crate) fn carried(bytes: usize) {
    let mut courtesy = COURTESY.get();
    courtesy.carried(bytes);
    COURTESY.set(courtesy);
}

fn yield_if_due() {
    let (mut courtesy, now) = (COURTESY.get(), START.elapsed());
    if courtesy.is_due(now) {
        thread::yield_now();
        courtesy.yielded(now, START.elapsed());
        COURTESY.set(courtesy);
    }
}
