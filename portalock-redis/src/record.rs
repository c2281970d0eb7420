//! A holder as it is stored in Redis, and script answers of one word.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use portalock_core::Holder;
use redis::Value;
use serde::{Deserialize, Serialize};

/// The script adds the start time, by the server's clock, which all clients share.
#[derive(Serialize)]
struct Record<'a> {
    host: &'a str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
}

#[derive(Deserialize)]
struct Stored {
    host: Arc<str>,
    pid: u32,
    label: Option<Arc<str>>,
}

/// Encodes a holder for storage. `label` is used if the holder has no label.
pub(crate) fn encode(holder: &Holder, label: Option<&str>) -> String {
    let record = Record {
        host: &holder.host,
        pid: holder.pid,
        label: holder.label.as_deref().or(label),
    };
    // The record is for people: a request doesn't fail if it can't be encoded.
    serde_json::to_string(&record).unwrap_or_default()
}

/// Reads a holder; `None` if portalock did not write it.
pub(crate) fn decode(who: &str, since: &str) -> Option<Holder> {
    let stored: Stored = serde_json::from_str(who).ok()?;
    let since = Duration::from_millis(since.parse().ok()?);
    let since: SystemTime = UNIX_EPOCH.checked_add(since)?;
    Some(Holder::new(stored.host, stored.pid, stored.label, since))
}

/// The text of a script's answer of one word.
pub(crate) fn text(answer: &Value) -> Option<&str> {
    match answer {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_survives_the_way_through_redis() {
        let holder = Holder::this_process(Some("a|b\"c\n".into()));
        let read = decode(&encode(&holder, Some("nightly")), "1500").unwrap();
        assert_eq!(read.label.as_deref(), Some("a|b\"c\n"));
        assert_eq!(read.pid, std::process::id());
        assert_eq!(read.since, UNIX_EPOCH + Duration::from_millis(1500));
    }

    #[test]
    fn a_backends_label_stands_in_for_a_missing_one() {
        let who = encode(&Holder::this_process(None), Some("nightly"));
        assert_eq!(decode(&who, "0").unwrap().label.as_deref(), Some("nightly"));
    }
}
