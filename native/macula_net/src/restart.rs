//! Finds out whether a peer that says nothing any more has started again: on a connection of its
//! own, whose hello tells which life of the node answers.

use std::sync::{Arc, Weak};
use std::time::Duration;

use macula_core::path::silence::Silence;
use tokio::time::{Instant, sleep, timeout};

use crate::dial;
use crate::endpoint::Shared;
use crate::greet;
use crate::link::Link;

/// How often a link is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long a peer may take to say which life it is in.
const ANSWER: Duration = Duration::from_secs(2);

/// Watches a link until it ends, and ends it when its peer turns out to live another life.
pub(crate) async fn watch(shared: Weak<Shared>, link: Weak<Link>) {
    let began = Instant::now();
    let mut silence = Silence::default();
    loop {
        sleep(LOOK).await;
        let (Some(shared), Some(link)) = (shared.upgrade(), link.upgrade()) else {
            return;
        };
        let Some((sent, received)) = link.traffic() else {
            return;
        };
        if silence.look(began.elapsed(), sent, received)
            && let Ok(Some(true)) = timeout(ANSWER, lives_anew(&shared, &link)).await
        {
            link.replace();
            return;
        }
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
