//! What a place's key says: whose it is, for people, and its token.

use std::sync::atomic::{AtomicU64, Ordering};

use portalock_core::{BackendError, BackendErrorKind, FencingToken, Holder, OwnerId};
use serde::Serialize;

/// What a place's key holds: for people whose it is, and for its own client which use of the key.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    holder: &'a Holder,
    usage: u64,
}

/// The fencing token of a place.
pub(crate) fn token(revision: i64) -> FencingToken {
    FencingToken::new(u64::try_from(revision).unwrap_or(0))
}

/// Who a place belongs to, as other clients read it; and like no other place of this process.
pub(crate) fn encode(holder: &Holder, owner: OwnerId) -> Result<Vec<u8>, BackendError> {
    static USES: AtomicU64 = AtomicU64::new(0);
    let usage = USES.fetch_add(1, Ordering::Relaxed);
    serde_json::to_vec(&Record { holder, usage }).map_err(|error| {
        BackendError::new(
            BackendErrorKind::Other,
            format!("the holder of {owner} can't be written"),
        )
        .with_source(error)
    })
}

/// Who a place belongs to, if its value says so: it is for people, and decides nothing.
pub(crate) fn decode(value: &[u8]) -> Option<Holder> {
    serde_json::from_slice(value).ok()
}

/// A key of the queue that none of us has put there.
pub(crate) fn foreign(key: &[u8]) -> BackendError {
    BackendError::new(
        BackendErrorKind::Corrupt,
        format!(
            "there is a foreign key in a queue: delete {:?}, or choose another prefix",
            String::from_utf8_lossy(key)
        ),
    )
}
