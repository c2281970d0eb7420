//! The holder of a claim, for people, as stored in the table.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use portalock_core::Holder;
use serde::{Deserialize, Serialize};

/// The time is not part of it: the table has a column for the time, from the one clock that all clients share.
#[derive(Serialize)]
struct Written<'a> {
    host: &'a str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
}

#[derive(Deserialize)]
struct Read {
    host: Arc<str>,
    pid: u32,
    label: Option<Arc<str>>,
}

pub(crate) fn encode(holder: &Holder) -> String {
    let written = Written {
        host: &holder.host,
        pid: holder.pid,
        label: holder.label.as_deref(),
    };
    // The value is for people, so the request continues if it can't be encoded.
    serde_json::to_string(&written).unwrap_or_default()
}

/// Decodes a holder; `None` if this crate did not write the value.
pub(crate) fn decode(who: &str, since_micros: i64) -> Option<Holder> {
    let read: Read = serde_json::from_str(who).ok()?;
    let since = Duration::from_micros(u64::try_from(since_micros).ok()?);
    Some(Holder::new(
        read.host,
        read.pid,
        read.label,
        UNIX_EPOCH.checked_add(since)?,
    ))
}
