//! The keys of the cookies in use, stretched once each.

use std::sync::Arc;

use macula_core::keys::{self, CookieKey, StretchError};
use macula_core::mesh::key::MeshKey;
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

/// Keys remembered of each kind. A node has one cookie, and perhaps others for a few peers; the cache
/// is only there to stretch each once, so the oldest may go.
const CACHED: usize = 64;

/// The keys of cookies seen so far, of links and of realms. Clones share them: where several
/// endpoints are in one process, a cookie need not be stretched for each.
#[derive(Clone, Default)]
pub struct CookieKeys(Arc<Caches>);

#[derive(Default)]
struct Caches {
    links: Cache<CookieKey>,
    realms: Cache<MeshKey>,
}

impl CookieKeys {
    /// The key of `cookie` for links.
    pub(crate) async fn link(&self, cookie: &Cookie) -> Result<Arc<CookieKey>, String> {
        self.0.links.key(cookie, "", |base, _| CookieKey::stretch(base)).await
    }

    /// The key of `cookie` in the mesh of `realm`.
    pub(crate) async fn realm(&self, cookie: &Cookie, realm: &str) -> Result<Arc<MeshKey>, String> {
        self.0.realms.key(cookie, realm, MeshKey::stretch).await
    }
}

impl std::fmt::Debug for CookieKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CookieKeys(..)")
    }
}

/// What a cookie comes to before it is stretched.
type Base = Zeroizing<[u8; keys::LEN]>;

struct Cache<K>(Mutex<Vec<Cached<K>>>);

struct Cached<K> {
    base: Base,
    realm: String,
    key: Arc<K>,
}

impl<K> Default for Cache<K> {
    fn default() -> Cache<K> {
        Cache(Mutex::default())
    }
}

impl<K: Send + 'static> Cache<K> {
    /// The key of `cookie`. The first time this takes some 100 ms of a thread of its own; whoever
    /// asks meanwhile waits, rather than stretch another one beside it.
    async fn key(
        &self,
        cookie: &Cookie,
        realm: &str,
        stretch: fn(&[u8; keys::LEN], &str) -> Result<K, StretchError>,
    ) -> Result<Arc<K>, String> {
        let base = keys::base(cookie);
        let mut cached = self.0.lock().await;
        let known = cached.iter().find(|known| known.base == base && known.realm == realm);
        if let Some(known) = known {
            return Ok(known.key.clone());
        }
        let (input, name) = (base.clone(), realm.to_owned());
        let stretched = tokio::task::spawn_blocking(move || stretch(&input, &name)).await;
        let key = Arc::new(stretched.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?);
        if cached.len() == CACHED {
            cached.remove(0);
        }
        cached.push(Cached { base, realm: realm.to_owned(), key: key.clone() });
        Ok(key)
    }
}
