//! The keys of the cookies in use, stretched once each.

use std::sync::Arc;

use macula_core::keys::{self, CookieKey};
use tokio::sync::{Mutex, watch};
use zeroize::Zeroizing;

use crate::endpoint::Shared;

/// A cookie, wiped from memory when dropped.
pub type Cookie = Zeroizing<Vec<u8>>;

/// Has this node's own cookie stretched before the first hello needs it: a node that starts often
/// has little time for its first call (a slow machine, a short `net_setuptime`, a one-shot tool).
pub(crate) async fn prepare(shared: Arc<Shared>, mut closed: watch::Receiver<bool>) {
    tokio::select! {
        // What goes wrong goes wrong again, and is told, when the key is needed.
        _ = shared.key_shared_with("") => {}
        // An endpoint may close before this runs at all, and then nobody answers for its cookie.
        _ = closed.wait_for(|closed| *closed) => {}
    }
}

/// Keys remembered. A node has one cookie, and perhaps others for a few peers; the cache is only
/// there to stretch each once, so the oldest may go.
const CACHED: usize = 64;

/// The keys of cookies seen so far.
#[derive(Default)]
pub(crate) struct CookieKeys(Mutex<Vec<Cached>>);

struct Cached {
    base: Zeroizing<[u8; keys::LEN]>,
    key: Arc<CookieKey>,
}

impl CookieKeys {
    /// The key of `cookie`. The first time this takes some 100 ms of a thread of its own; whoever
    /// asks meanwhile waits, rather than stretch another one beside it.
    pub(crate) async fn key(&self, cookie: &Cookie) -> Result<Arc<CookieKey>, String> {
        let base = keys::base(cookie);
        let mut cached = self.0.lock().await;
        if let Some(known) = cached.iter().find(|known| known.base == base) {
            return Ok(known.key.clone());
        }
        let input = base.clone();
        let stretched = tokio::task::spawn_blocking(move || CookieKey::stretch(&input)).await;
        let key = stretched.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let key = Arc::new(key);
        if cached.len() == CACHED {
            cached.remove(0);
        }
        cached.push(Cached { base, key: key.clone() });
        Ok(key)
    }
}
