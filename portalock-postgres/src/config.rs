//! The settings: the server, and how long a session outlives its process.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use portalock_core::settings::{InvalidSetting, RawDuration, at_least};
use serde::Deserialize;
use tokio_postgres::Config;

/// The settings of a Postgres backend. Only the URL has no default.
///
/// They can be loaded from TOML or JSON. Neither [`Debug`](fmt::Debug) nor any error or log shows the password.
///
/// ```
/// use std::time::Duration;
/// use portalock_postgres::PostgresSettings;
///
/// let settings: PostgresSettings = toml::from_str(r#"
///     url = "postgres://worker:hunter2@db.example/app"
///     lease_time = "15s"
/// "#)?;
/// assert_eq!(settings.lease_time(), Duration::from_secs(15));
/// assert!(!format!("{settings:?}").contains("hunter2"));
///
/// let error = toml::from_str::<PostgresSettings>(r#"url = "http://db.example""#).unwrap_err();
/// assert!(error.to_string().contains("`url`"));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Deserialize)]
#[serde(try_from = "RawSettings")]
pub struct PostgresSettings {
    /// One for each host of the URL; one that accepts writes is used, in the order of `route.rs`.
    pub(crate) servers: Vec<Config>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) lease_time: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) release_without_notice: bool,
}

/// The shortest lease: with a shorter one, a busy machine would lose locks without a fault.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

impl PostgresSettings {
    pub(crate) const DEFAULT_APPLICATION_NAME: &str = "portalock";
    /// How long a session outlives its process, by default.
    pub const DEFAULT_LEASE_TIME: Duration = Duration::from_secs(10);
    /// How long connecting may take, by default.
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long one statement may take, by default.
    pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

    /// The defaults, with servers that were already parsed.
    pub(crate) fn of(servers: Vec<Config>) -> Self {
        Self {
            servers,
            ca_file: None,
            lease_time: Self::DEFAULT_LEASE_TIME,
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            request_timeout: Self::DEFAULT_REQUEST_TIMEOUT,
            release_without_notice: false,
        }
    }

    /// Sets how long locks stay held after their process has crashed or is cut off; default 10 s. With a short time,
    /// locks pass on sooner after a crash, but a short stall of the network can lose them.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is shorter than a second or longer than a year.
    pub fn with_lease_time(mut self, lease_time: Duration) -> Result<Self, InvalidSetting> {
        self.lease_time = at_least(SHORTEST_LEASE, "lease_time", lease_time)?;
        Ok(self)
    }

    /// Sets how long connecting may take, for any number of hosts that are tried; default 5 s.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is shorter than a millisecond or longer than a year.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Result<Self, InvalidSetting> {
        self.connect_timeout = at_least(SHORTEST_TIMEOUT, "connect_timeout", timeout)?;
        Ok(self)
    }

    /// Sets how long one statement may take; default 5 s. The server has the same limit, and aborts a statement that
    /// takes longer.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is shorter than a millisecond or longer than a year.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Result<Self, InvalidSetting> {
        self.request_timeout = at_least(SHORTEST_TIMEOUT, "request_timeout", timeout)?;
        Ok(self)
    }

    /// Sets whether the server frees a session's locks when its connection ends. Default no.
    ///
    /// With this option a waiting session checks every 200 ms whether the server process of the holder's connection still
    /// exists. So it notices a crash within 200 ms, instead of after the [lease](Self::with_lease_time). The price: all locks
    /// of a session are lost whenever its connection ends, although its process lives. And a holder learns of the loss one
    /// network delay after its lock may have been granted to another, or up to one lease later if it doesn't learn that its
    /// connection has ended.
    ///
    /// Clients with and without this option can share locks; the server judges each session by its own setting.
    #[must_use]
    pub fn with_release_without_notice(mut self, at_once: bool) -> Self {
        self.release_without_notice = at_once;
        self
    }

    /// Sets a PEM file of certificate authorities to trust instead of the system's, if `sslmode` in the URL asks for
    /// TLS.
    #[must_use]
    pub fn with_ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(file.into());
        self
    }

    /// How long locks stay held after their process has crashed.
    pub const fn lease_time(&self) -> Duration {
        self.lease_time
    }

    /// How long connecting may take.
    pub const fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How long one statement may take.
    pub const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Whether a session ends with its connection.
    pub const fn release_without_notice(&self) -> bool {
        self.release_without_notice
    }

    /// The PEM file of the certificate authorities to trust.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// The name of the connections in `pg_stat_activity`: `portalock`, unless the URL sets `application_name`.
    pub fn application_name(&self) -> &str {
        let first = self.servers.first();
        first
            .and_then(Config::get_application_name)
            .unwrap_or(Self::DEFAULT_APPLICATION_NAME)
    }
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The `Debug` output of a config contains no password.
        f.debug_struct("PostgresSettings")
            .field("servers", &self.servers)
            .field("ca_file", &self.ca_file)
            .field("lease_time", &self.lease_time)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("release_without_notice", &self.release_without_notice)
            .finish()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename = "PostgresSettings")]
struct RawSettings {
    url: String,
    ca_file: Option<PathBuf>,
    lease_time: Option<RawDuration>,
    connect_timeout: Option<RawDuration>,
    request_timeout: Option<RawDuration>,
    release_without_notice: Option<bool>,
}

impl TryFrom<RawSettings> for PostgresSettings {
    type Error = InvalidSetting;

    fn try_from(raw: RawSettings) -> Result<Self, InvalidSetting> {
        let mut settings = Self::from_url(&raw.url)?;
        if let Some(file) = raw.ca_file {
            settings = settings.with_ca_file(file);
        }
        if let Some(time) = raw.lease_time {
            settings = settings.with_lease_time(time.check("lease_time")?)?;
        }
        if let Some(timeout) = raw.connect_timeout {
            settings = settings.with_connect_timeout(timeout.check("connect_timeout")?)?;
        }
        if let Some(timeout) = raw.request_timeout {
            settings = settings.with_request_timeout(timeout.check("request_timeout")?)?;
        }
        if let Some(at_once) = raw.release_without_notice {
            settings = settings.with_release_without_notice(at_once);
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_field() {
        for (field, toml) in [
            ("url", ""),
            ("url", "url = 'http://a'"),
            (
                "lease_time",
                "url = 'postgres://u:hunter2@a'\nlease_time = '0s'",
            ),
            (
                "lease_time",
                "url = 'postgres://u:hunter2@a'\nlease_time = 10",
            ),
            (
                "connect_timeout",
                "url = 'postgres://u@a'\nconnect_timeout = '0s'",
            ),
            (
                "request_timeout",
                "url = 'postgres://u@a'\nrequest_timeout = 'x'",
            ),
            ("laese_time", "url = 'postgres://u@a'\nlaese_time = '1s'"),
        ] {
            let error = toml::from_str::<PostgresSettings>(toml)
                .expect_err(toml)
                .message()
                .to_owned();
            assert!(error.contains(&format!("`{field}`")), "{toml}: {error}");
            assert!(!error.contains("hunter2"), "{toml}: {error}");
        }
    }
}
