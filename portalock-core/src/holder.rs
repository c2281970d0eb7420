//! Descriptions of holders and waiters, for people.

use std::{
    fmt::{self, Write},
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::clock;

/// A process that holds a lock or waits for it, as errors and `inspect` describe it.
///
/// This is for people. Only the [`OwnerId`](crate::OwnerId) decides ownership.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Holder {
    /// The host's name.
    pub host: Arc<str>,
    /// The process id on that host.
    pub pid: u32,
    /// The program's label, if it has set one: see [`Lock::with_label`](crate::Lock::with_label).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Arc<str>>,
    /// Since when the process has held or waited, by its own wall clock.
    pub since: SystemTime,
}

impl Holder {
    /// This process, from this moment.
    pub fn this_process(label: Option<Arc<str>>) -> Self {
        Self::this_host(std::process::id(), label)
    }

    pub(crate) fn this_host(pid: u32, label: Option<Arc<str>>) -> Self {
        Self::new(host_name(), pid, label, clock::wall_clock())
    }

    /// Another process, as read from a store.
    pub fn new(
        host: impl Into<Arc<str>>,
        pid: u32,
        label: Option<Arc<str>>,
        since: SystemTime,
    ) -> Self {
        Self {
            host: host.into(),
            pid,
            label,
            since,
        }
    }

    /// The same process from this moment; a backend stores this when it grants.
    #[must_use]
    pub fn since_now(self) -> Self {
        self.since(clock::wall_clock())
    }

    pub(crate) fn since(mut self, since: SystemTime) -> Self {
        self.since = since;
        self
    }
}

/// 9999-12-31T23:59:59Z.
const END_OF_9999: u64 = 253_402_300_799;

fn host_name() -> Arc<str> {
    static HOST: OnceLock<Arc<str>> = OnceLock::new();
    HOST.get_or_init(|| gethostname::gethostname().to_string_lossy().into())
        .clone()
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_with(f, "since")
    }
}

impl Holder {
    /// Who it is, and what its time means.
    fn write_with(&self, f: &mut fmt::Formatter<'_>, time: &str) -> fmt::Result {
        write!(f, "pid {} on {}", self.pid, Printable(&self.host))?;
        if let Some(label) = &self.label {
            write!(f, " ({})", Printable(label))?;
        }
        // A store can contain any year, and formatting a year out of range would fail or panic.
        let seconds = self
            .since
            .duration_since(UNIX_EPOCH)
            .map(|time| time.as_secs());
        match seconds {
            Ok(0..=END_OF_9999) => {
                let at = humantime::format_rfc3339_seconds(self.since);
                write!(f, " {time} {at}")
            }
            _ => write!(f, " {time} an unknown time"),
        }
    }
}

/// Shows a process that did something at this time, not since this time.
pub(crate) struct Doer<'h>(pub(crate) &'h Holder);

impl fmt::Display for Doer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write_with(f, "at")
    }
}

/// A text of another user, with control characters escaped: in a log they could look like lines of its own.
struct Printable<'t>(&'t str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| {
            if character.is_control() {
                character.escape_default().fmt(f)
            } else {
                f.write_char(character)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_holder_is_one_line_whatever_its_label_is() {
        let label = "ü\n2026 ERROR\u{1b}[2J".into();
        let holder = Holder::new("a\tb", 42, Some(label), UNIX_EPOCH);
        let text = r"pid 42 on a\tb (ü\n2026 ERROR\u{1b}[2J) since 1970-01-01T00:00:00Z";
        assert_eq!(holder.to_string(), text);
    }

    #[test]
    fn a_holder_reads_as_a_sentence_part() {
        let holder = Holder::new(
            "db1",
            42,
            Some("nightly".into()),
            UNIX_EPOCH + Duration::from_secs(1_000_000_000),
        );
        assert_eq!(
            holder.to_string(),
            "pid 42 on db1 (nightly) since 2001-09-09T01:46:40Z"
        );
    }

    #[test]
    fn a_time_that_no_calendar_has_is_still_text() {
        let far = Duration::from_secs(1 << 40);
        for since in [UNIX_EPOCH - far, UNIX_EPOCH + far] {
            let text = Holder::new("db1", 42, None, since).to_string();
            assert_eq!(text, "pid 42 on db1 since an unknown time");
        }
    }

    #[test]
    fn a_holder_survives_a_round_trip_through_json() {
        let holder = Holder::this_process(None);
        let text = serde_json::to_string(&holder).unwrap();
        assert_eq!(serde_json::from_str::<Holder>(&text).unwrap(), holder);
    }
}
