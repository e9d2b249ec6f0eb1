//! Finds out whether a peer that says nothing any more has started again: on a connection of its
//! own, whose hello tells which life of the node answers.

use std::sync::Arc;
use std::time::Instant;

use macula_core::path::silence::{ANSWER, Silence};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::dial;
use crate::endpoint::Shared;
use crate::greet;
use crate::link::Link;

/// Whether a link's peer is still the one that it was, as far as can be told from what it says.
pub(crate) struct Doubt {
    began: Instant,
    silence: Mutex<Silence>,
}

impl Doubt {
    pub(crate) fn new() -> Doubt {
        Doubt { began: Instant::now(), silence: Mutex::default() }
    }

    /// Whether to ask the peer now: see [`Silence::look`].
    pub(crate) fn look(&self, sent: u64, received: u64) -> bool {
        self.silence.lock().look(self.began.elapsed(), sent, received)
    }
}

/// Asks a link's peer which life it is in, and ends the link when that is another one.
pub(crate) async fn ask(shared: Arc<Shared>, link: Arc<Link>) {
    if let Ok(Some(true)) = timeout(ANSWER, lives_anew(&shared, &link)).await {
        link.replace();
    }
}

/// Whether the peer's boot id is another one now; none when it cannot be asked.
async fn lives_anew(shared: &Arc<Shared>, link: &Link) -> Option<bool> {
    let peer = link.peer();
    let key = shared.key_shared_with(&peer.name).await.ok()?;
    let connection = dial::connect_to(shared, link.dialled(), &peer.name).await.ok()?;
    let (name, target) = (shared.name(), peer.name.clone());
    let greeted = greet::dial(&connection, shared, name, target, key).await.ok()?;
    // Dropped without being chosen, so the other node never hears of it.
    Some(greeted.peer.boot_id != peer.boot_id)
}
