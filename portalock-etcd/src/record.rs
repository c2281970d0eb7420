//! The value of a place's key, and the token of a place.

use std::sync::atomic::{AtomicU64, Ordering};

use portalock_core::{BackendError, BackendErrorKind, FencingToken, Holder, OwnerId};
use serde::{Deserialize, Serialize};

/// The value of a place's key: the holder for people, the owner for operators, and the use of the key for its own
/// client.
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

/// Encodes a place's holder for other clients. The value differs from those of all other places of this process.
pub(crate) fn encode(holder: &Holder, owner: OwnerId) -> Vec<u8> {
    static USES: AtomicU64 = AtomicU64::new(0);
    let usage = USES.fetch_add(1, Ordering::Relaxed);
    let record = Record {
        holder: holder.clone(),
        owner: Some(owner),
        usage: Some(usage),
    };
    // The holder is for people, so the request continues if it can't be encoded.
    serde_json::to_vec(&record).unwrap_or_else(|_| format!("{owner} {usage}").into_bytes())
}

/// Decodes the holder of a place, if the value contains it. It is for people, and decides nothing.
pub(crate) fn decode(value: &[u8]) -> Option<Record> {
    serde_json::from_slice(value).ok()
}

/// The error for a key in the queue that this crate did not put there.
pub(crate) fn foreign(key: &[u8]) -> BackendError {
    BackendError::new(
        BackendErrorKind::Corrupt,
        format!(
            "there is a foreign key in a queue: delete {:?}, or choose another prefix",
            String::from_utf8_lossy(key)
        ),
    )
}
