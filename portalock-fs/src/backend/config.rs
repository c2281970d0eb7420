//! The backend's settings, from code or from a configuration file.

use std::{path::PathBuf, sync::Arc, time::Duration};

use portalock_core::settings::{InvalidSetting, RawDuration, serialize_duration};
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

use crate::locking::LockKind;

/// The settings of a [`FsBackend`](crate::FsBackend). All have defaults except the directory.
///
/// ```
/// use portalock_fs::FsSettings;
///
/// let settings: FsSettings = toml::from_str(r#"
///     directory = "/run/lock/billing"
///     file_mode = "660"
/// "#)?;
/// assert_eq!(settings.file_mode(), 0o660);
///
/// let error = toml::from_str::<FsSettings>(r#"
///     directory = "/run/lock/billing"
///     file_mode = "666"
/// "#).unwrap_err();
/// assert!(error.to_string().contains("`file_mode`"));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSettings")]
pub struct FsSettings {
    directory: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) label: Option<Arc<str>>,
    lock: LockKind,
    watch: Watch,
    calls: Calls,
    #[serde(serialize_with = "serialize_mode")]
    file_mode: u32,
    #[serde(serialize_with = "serialize_duration")]
    poll_interval: Duration,
}

/// Whether the backend watches its directory, so that a release wakes waiters and a removed lock file is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Watch {
    /// Watch if possible: on Linux, on a local file system, within the system's limits. Otherwise waiters poll.
    #[default]
    Auto,
    /// Watch, and fail to open the backend if that is not possible.
    On,
    /// Don't watch: waiters poll, and a removed lock file is not noticed.
    Off,
}

/// The threads on which file system calls run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Calls {
    /// [`Inline`](Self::Inline) on a local file system, and [`Offload`](Self::Offload) on a network file system or
    /// FUSE.
    #[default]
    Auto,
    /// The calling thread. On a local file system the calls take microseconds.
    Inline,
    /// The runtime's threads for blocking calls, if there is a runtime, so that a stalled file server doesn't block the
    /// runtime.
    Offload,
}

impl FsSettings {
    /// The longest pause between two looks where nothing can be watched.
    pub const DEFAULT_POLL_INTERVAL: Duration = Duration::from_millis(50);
    /// Only the owner can open lock files: every user who can open one can hold its lock forever.
    pub const DEFAULT_FILE_MODE: u32 = 0o600;

    /// Settings with defaults, for locks in `directory`, which is created if it doesn't exist.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            label: None,
            lock: LockKind::Flock,
            watch: Watch::Auto,
            calls: Calls::Auto,
            file_mode: Self::DEFAULT_FILE_MODE,
            poll_interval: Self::DEFAULT_POLL_INTERVAL,
        }
    }

    /// Sets the label of holders without a label of their own. Default: none.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the kind of lock. All programs that share the directory must use the same kind. Default
    /// [`LockKind::Flock`].
    #[must_use]
    pub const fn with_lock(mut self, kind: LockKind) -> Self {
        self.lock = kind;
        self
    }

    /// Sets whether the directory is watched. Default [`Watch::Auto`].
    #[must_use]
    pub const fn with_watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// Sets the threads on which file system calls run. Default [`Calls::Auto`].
    #[must_use]
    pub const fn with_calls(mut self, calls: Calls) -> Self {
        self.calls = calls;
        self
    }

    /// Sets the Unix permissions of new lock files. Default `0o600`.
    ///
    /// The process's umask does not affect these permissions. If the group may write, and the directory for the locks
    /// is created, it gets the permissions `2775`, so that its files belong to its group.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if the owner can't read and write, if everybody can write, or if other bits than read and
    /// write permissions are set.
    pub fn with_file_mode(mut self, mode: u32) -> Result<Self, InvalidSetting> {
        if mode & 0o600 != 0o600 || mode & !0o664 != 0 {
            let right =
                "let the owner read and write, optionally the group too, and nobody else write";
            return Err(InvalidSetting::new(
                "file_mode",
                format!("is \"{mode:o}\": {right}, such as \"600\" or \"660\""),
            ));
        }
        self.file_mode = mode;
        Ok(self)
    }

    /// Sets the longest pause of a waiter that polls, because the directory can't be watched. The pauses start at half
    /// a millisecond and double. Default 50 ms. If the directory is watched, a waiter tries every 20 s, or after this
    /// interval if it is longer.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is zero.
    pub fn with_poll_interval(mut self, interval: Duration) -> Result<Self, InvalidSetting> {
        if interval.is_zero() {
            return Err(InvalidSetting::new(
                "poll_interval",
                "is zero: give a longer duration",
            ));
        }
        self.poll_interval = interval;
        Ok(self)
    }

    /// The directory of the lock files.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// The label of holders without a label of their own.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// The kind of lock.
    pub const fn lock(&self) -> LockKind {
        self.lock
    }

    /// Whether the directory is watched.
    pub const fn watch(&self) -> Watch {
        self.watch
    }

    /// The threads on which file system calls run.
    pub const fn calls(&self) -> Calls {
        self.calls
    }

    /// The Unix permissions of new lock files.
    pub const fn file_mode(&self) -> u32 {
        self.file_mode
    }

    /// The longest pause between two looks where nothing can be watched.
    pub const fn poll_interval(&self) -> Duration {
        self.poll_interval
    }
}

/// The settings as written. Errors about a value are created when the field's name is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "FsSettings")]
struct RawSettings {
    directory: PathBuf,
    label: Option<Arc<str>>,
    lock: Option<Value>,
    watch: Option<Value>,
    calls: Option<Value>,
    file_mode: Option<Value>,
    poll_interval: Option<RawDuration>,
}

/// Parses one of `words`, the texts of the values of `T`.
fn choose<T: DeserializeOwned + Default>(
    field: &'static str,
    value: Option<Value>,
    words: &str,
) -> Result<T, InvalidSetting> {
    let wrong = |_| InvalidSetting::new(field, format!("is not one of its values: write {words}"));
    value.map_or(Ok(T::default()), |value| {
        serde_json::from_value(value).map_err(wrong)
    })
}

/// Octal digits in text. A number is refused: JSON has decimal numbers only, and 600 would mean `1130`.
fn octal(field: &'static str, value: &Value) -> Result<u32, InvalidSetting> {
    let digits = value.as_str();
    digits
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
        .ok_or_else(|| InvalidSetting::new(field, "is not octal text: write it as \"600\""))
}

impl TryFrom<RawSettings> for FsSettings {
    type Error = InvalidSetting;

    fn try_from(raw: RawSettings) -> Result<Self, InvalidSetting> {
        if raw.directory.as_os_str().is_empty() {
            return Err(InvalidSetting::new(
                "directory",
                "is empty: name the directory of the lock files",
            ));
        }
        let mut settings = Self::new(raw.directory);
        settings.label = raw.label;
        settings.lock = choose("lock", raw.lock, "\"flock\" or \"record\"")?;
        settings.watch = choose("watch", raw.watch, "\"auto\", \"on\" or \"off\"")?;
        settings.calls = choose("calls", raw.calls, "\"auto\", \"inline\" or \"offload\"")?;
        if let Some(mode) = raw.file_mode {
            settings = settings.with_file_mode(octal("file_mode", &mode)?)?;
        }
        if let Some(interval) = raw.poll_interval {
            settings = settings.with_poll_interval(interval.check_positive("poll_interval")?)?;
        }
        Ok(settings)
    }
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
fn serialize_mode<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mode:o}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip() {
        let settings = FsSettings::new("/run/lock/x")
            .with_label("nightly")
            .with_lock(LockKind::Record)
            .with_watch(Watch::Off)
            .with_calls(Calls::Offload)
            .with_file_mode(0o640)
            .unwrap()
            .with_poll_interval(Duration::from_millis(7))
            .unwrap();
        let text = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<FsSettings>(&text).unwrap(), settings);
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<FsSettings>(&text).unwrap(), settings);
    }

    #[test]
    fn only_the_directory_must_be_given() {
        let settings: FsSettings = toml::from_str(r#"directory = "locks""#).unwrap();
        assert_eq!(settings, FsSettings::new("locks"));
    }

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_field() {
        for (field, json) in [
            ("directory", r#"{"directory": ""}"#),
            ("directory", r"{}"),
            ("direktory", r#"{"direktory": "x"}"#),
            ("lock", r#"{"directory": "x", "lock": "lockf"}"#),
            ("watch", r#"{"directory": "x", "watch": true}"#),
            ("calls", r#"{"directory": "x", "calls": ""}"#),
            ("file_mode", r#"{"directory": "x", "file_mode": 600}"#),
            ("file_mode", r#"{"directory": "x", "file_mode": "rw"}"#),
            ("file_mode", r#"{"directory": "x", "file_mode": "666"}"#),
            ("file_mode", r#"{"directory": "x", "file_mode": "700"}"#),
            ("file_mode", r#"{"directory": "x", "file_mode": "440"}"#),
            (
                "poll_interval",
                r#"{"directory": "x", "poll_interval": "0s"}"#,
            ),
            ("poll_interval", r#"{"directory": "x", "poll_interval": 5}"#),
        ] {
            let error = serde_json::from_str::<FsSettings>(json)
                .expect_err(json)
                .to_string();
            assert!(error.contains(&format!("`{field}`")), "{json}: {error}");
        }
    }
}
