//! What a place's key says: whose it is, for people, and its token.

use std::sync::atomic::{AtomicU64, Ordering};

use portalock_core::{BackendError, BackendErrorKind, FencingToken, Holder, OwnerId};
use serde::{Deserialize, Serialize};

/// What a place's key holds: for people whose it is, for operators which acquisition, and for its own client which use of the key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(flatten)]
    pub(crate) holder: Holder,
    pub(crate) owner: Option<OwnerId>,
    usage: Option<u64>,
}

/// The fencing token of a place.
pub(crate) fn token(revision: i64) -> FencingToken {
    FencingToken::new(u64::try_from(revision).unwrap_or(0))
}

/// Who a place belongs to, as other clients read it; and like no other place of this process.
pub(crate) fn encode(holder: &Holder, owner: OwnerId) -> Vec<u8> {
    static USES: AtomicU64 = AtomicU64::new(0);
    let usage = USES.fetch_add(1, Ordering::Relaxed);
    let record = Record {
        holder: holder.clone(),
        owner: Some(owner),
        usage: Some(usage),
    };
    // Who it is, is for people: a request doesn't fail for want of it.
    serde_json::to_vec(&record).unwrap_or_else(|_| format!("{owner} {usage}").into_bytes())
}

/// Who a place belongs to, if its value says so: it is for people, and decides nothing.
pub(crate) fn decode(value: &[u8]) -> Option<Record> {
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
