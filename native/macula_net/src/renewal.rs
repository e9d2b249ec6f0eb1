//! Keeps a node's certificates fresh: takes new ones as soon as their files change, and tells ahead
//! when they end.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::certificate::{self, FileError, Term};
use crate::endpoint::Shared;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How often the end of a certificate is announced.
const ANNOUNCE: Duration = Duration::from_secs(24 * 3600);

/// What a node is told of its certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateNews {
    /// New ones were read, and are in use from now on.
    Renewed,
    /// The files changed and cannot be used; the former certificates stay in use.
    NotRenewed(FileError),
    /// This node's certificate ends soon.
    Ending(Duration),
    /// This node's certificate has ended: peers that check will refuse it.
    Expired,
}

/// Watches the files until the endpoint is gone. Which ones they are changes with the relay.
pub(crate) async fn watch(shared: Weak<Shared>) {
    let mut paths = Vec::new();
    let mut seen = Vec::new();
    let mut announced: Option<(bool, Instant)> = None;
    let mut changing = false;
    loop {
        let Some(endpoint) = shared.upgrade() else {
            return;
        };
        let former = std::mem::replace(&mut paths, endpoint.certificate_files());
        let now = fingerprints(&paths);
        if paths != former {
            // They were read just now.
            seen = now;
        } else if now != seen {
            // A key may follow its certificate a moment later: wait until they rest.
            (seen, changing) = (now, true);
        } else if changing {
            (changing, announced) = (false, None);
            renew(&endpoint).await;
        }
        announce(&endpoint, &mut announced);
        drop(endpoint);
        sleep(LOOK).await;
    }
}

async fn renew(shared: &Arc<Shared>) {
    let endpoint = shared.clone();
    // Files may be slow.
    if let Ok(renewed) = tokio::task::spawn_blocking(move || endpoint.renew()).await {
        shared.node.certificate(match renewed {
            Ok(()) => CertificateNews::Renewed,
            Err(error) => CertificateNews::NotRenewed(error),
        });
    }
}

fn announce(shared: &Shared, announced: &mut Option<(bool, Instant)>) {
    let Some(validity) = shared.tls().validity() else {
        return;
    };
    let (expired, news) = match certificate::term(validity) {
        Term::Fine => return,
        Term::Ending(left) => (false, CertificateNews::Ending(left)),
        Term::Expired => (true, CertificateNews::Expired),
    };
    let is_old = |(said, when): (bool, Instant)| said == expired && when.elapsed() < ANNOUNCE;
    if !announced.is_some_and(is_old) {
        *announced = Some((expired, Instant::now()));
        shared.node.certificate(news);
    }
}

/// What changes when a file is written anew or replaced, and where a link points elsewhere.
fn fingerprints(paths: &[PathBuf]) -> Vec<Option<(u64, u64, i64, i64)>> {
    let fingerprint = |path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    };
    paths.iter().map(fingerprint).collect()
}
