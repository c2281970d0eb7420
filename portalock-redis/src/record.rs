//! A holder as it is stored in Redis, and script answers of one word.

use std::{
    sync::{Arc, Mutex, PoisonError},
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

/// Encodes holders for storage. It keeps the last one, because the holders of one process are usually the same.
#[derive(Debug, Default)]
pub(crate) struct Encoder(Mutex<Option<(Holder, Arc<str>)>>);

impl Encoder {
    /// `label` is used if the holder has no label. It is always the same.
    pub(crate) fn encode(&self, holder: &Holder, label: Option<&str>) -> Arc<str> {
        // No code panics while it holds the lock.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((of, record)) if is_same(of, holder) => record.clone(),
            _ => {
                let record = encode(holder, label);
                last.insert((holder.clone(), record)).1.clone()
            }
        }
    }
}

/// Whether two holders have the same record. It compares addresses, which is fast; equal texts may have two.
fn is_same(one: &Holder, other: &Holder) -> bool {
    let labels = match (&one.label, &other.label) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
    };
    labels && one.pid == other.pid && Arc::ptr_eq(&one.host, &other.host)
}

fn encode(holder: &Holder, label: Option<&str>) -> Arc<str> {
    let record = Record {
        host: &holder.host,
        pid: holder.pid,
        label: holder.label.as_deref().or(label),
    };
    // The record is for people: a request doesn't fail if it can't be encoded.
    serde_json::to_string(&record).unwrap_or_default().into()
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

    #[test]
    fn each_holder_has_its_own_record() {
        let encoder = Encoder::default();
        let labels = [None, Some("a"), Some("b"), None];
        for label in labels {
            let holder = Holder::this_process(label.map(Into::into));
            let record = encoder.encode(&holder, None);
            assert_eq!(*record, *encode(&holder, None));
            assert!(Arc::ptr_eq(&encoder.encode(&holder, None), &record));
        }
        let mut forked = Holder::this_process(None);
        encoder.encode(&forked, None);
        forked.pid += 1;
        assert_eq!(*encoder.encode(&forked, None), *encode(&forked, None));
    }
}
