//! The settings: the endpoints, the user, and how long a session outlives its process.

use std::{fmt, path::PathBuf, time::Duration};

use portalock_core::settings::{InvalidSetting, RawDuration, at_least};
use serde::Deserialize;

/// The settings of an etcd backend. Only the endpoints have no default.
///
/// The settings can be loaded from TOML or JSON:
///
/// ```
/// use std::time::Duration;
/// use portalock_etcd::EtcdSettings;
///
/// let settings: EtcdSettings = toml::from_str(
///     r#"
///     endpoints = ["etcd-1:2379", "etcd-2:2379", "etcd-3:2379"]
///     prefix = "billing/locks"
///     lease_time = "15s"
///     user = "billing"
///     password = "hunter2"
///     "#,
/// )?;
/// assert_eq!(settings.lease_time(), Duration::from_secs(15));
/// assert!(!format!("{settings:?}").contains("hunter2"));
///
/// let error = toml::from_str::<EtcdSettings>(r#"endpoints = ["etcd"]
/// lease_time = 15"#).unwrap_err();
/// assert!(error.to_string().contains("`lease_time`"));
/// # Ok::<(), toml::de::Error>(())
/// ```
///
/// They can also be read from a URL, see [`from_url`](Self::from_url).
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "RawSettings")]
pub struct EtcdSettings {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) lease_time: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) user: Option<(String, Secret)>,
    pub(crate) tls: Option<EtcdTls>,
}

/// etcd counts leases in whole seconds.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// The settings of TLS connections; all fields have defaults. Needs the feature `tls`.
///
/// Each new connection reads the files again, so it uses certificates that were renewed meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EtcdTls {
    /// The PEM file of the certificate authorities to trust. Default: those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The PEM file of the client certificate, if the client has one. Needs `key_file`.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// The PEM file with the private key of `cert_file`.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The name to expect in the servers' certificates, if it isn't the endpoint's host.
    #[serde(default)]
    pub server_name: Option<String>,
}

impl EtcdSettings {
    /// The default prefix of the keys.
    pub const DEFAULT_PREFIX: &str = "portalock";
    /// How long a session outlives its process, by default.
    pub const DEFAULT_LEASE_TIME: Duration = Duration::from_secs(10);
    /// How long connecting may take, by default.
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
    /// How long one request may take, by default.
    pub const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

    /// The defaults, with these endpoints: `host:port`, optionally with `http://` or `https://` in front. They are the
    /// members of one cluster. One member is used at a time, and the next one if it fails.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if there is no endpoint, or one is not an address, or one contains a user name or a path.
    pub fn new<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
    ) -> Result<Self, InvalidSetting> {
        let endpoints: Vec<String> = endpoints
            .into_iter()
            .map(|endpoint| checked_endpoint(&endpoint.into()))
            .collect::<Result<_, _>>()?;
        if endpoints.is_empty() {
            return Err(InvalidSetting::new(
                "endpoints",
                "is empty: give at least one, such as \"127.0.0.1:2379\"",
            ));
        }
        Ok(Self {
            endpoints,
            prefix: Self::DEFAULT_PREFIX.to_owned(),
            lease_time: Self::DEFAULT_LEASE_TIME,
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            request_timeout: Self::DEFAULT_REQUEST_TIMEOUT,
            user: None,
            tls: None,
        })
    }

    /// Sets the prefix of all keys; default `portalock`. Programs that share locks need the same prefix.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is empty, ends with a slash, or contains two slashes in a row or a NUL.
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Result<Self, InvalidSetting> {
        let prefix = prefix.into();
        if prefix.is_empty()
            || prefix.ends_with('/')
            || prefix.contains("//")
            || prefix.contains('\0')
        {
            let problem =
                "it can't be empty or end with a slash, nor have two in a row or a NUL in it";
            return Err(InvalidSetting::new(
                "prefix",
                format!("is {prefix:?}: {problem}"),
            ));
        }
        self.prefix = prefix;
        Ok(self)
    }

    /// Sets how long locks stay held after their process has crashed or is cut off; default 10 s.
    ///
    /// etcd counts in whole seconds, so the time is rounded up to a whole second. etcd also raises a time that is below
    /// its minimum: 1.5 times its election timeout, by default 2 s. With a short time, locks pass on sooner after a
    /// crash, but a short stall of the network can lose them.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is shorter than a second or longer than a year.
    pub fn with_lease_time(mut self, lease_time: Duration) -> Result<Self, InvalidSetting> {
        self.lease_time = at_least(SHORTEST_LEASE, "lease_time", lease_time)?;
        Ok(self)
    }

    /// Sets how long connecting may take; default 2 s.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is shorter than a millisecond or longer than a year.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Result<Self, InvalidSetting> {
        self.connect_timeout = at_least(SHORTEST_TIMEOUT, "connect_timeout", timeout)?;
        Ok(self)
    }

    /// Sets how long one request may take in total, for any number of endpoints that are tried; default 5 s.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if it is shorter than a millisecond or longer than a year.
    pub fn with_request_timeout(mut self, timeout: Duration) -> Result<Self, InvalidSetting> {
        self.request_timeout = at_least(SHORTEST_TIMEOUT, "request_timeout", timeout)?;
        Ok(self)
    }

    /// Sets the user for authentication; default none.
    #[must_use]
    pub fn with_user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((user.into(), Secret(password.into())));
        self
    }

    /// Sets the options of TLS connections. An endpoint that starts with `https://` uses TLS also without them.
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] if only one of `cert_file` and `key_file` is set, or if the crate was built without the
    /// feature `tls`.
    pub fn with_tls(mut self, tls: EtcdTls) -> Result<Self, InvalidSetting> {
        if tls.cert_file.is_some() != tls.key_file.is_some() {
            return Err(InvalidSetting::new(
                "tls",
                "has only one of `cert_file` and `key_file`: they go together",
            ));
        }
        if cfg!(not(feature = "tls")) {
            return Err(no_tls("tls"));
        }
        self.tls = Some(tls);
        Ok(self)
    }

    /// The endpoints of the members.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The prefix of all keys.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How long locks stay held after their process has crashed.
    pub const fn lease_time(&self) -> Duration {
        self.lease_time
    }

    /// How long connecting may take.
    pub const fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How long one request may take.
    pub const fn request_timeout(&self) -> Duration {
        self.request_timeout
    }
}

fn no_tls(field: &'static str) -> InvalidSetting {
    InvalidSetting::new(
        field,
        "asks for TLS, which this build has not: enable the feature `tls` of portalock-etcd",
    )
}

/// Converts an endpoint to the client's form. The error doesn't show the endpoint, because it may contain a password.
fn checked_endpoint(endpoint: &str) -> Result<String, InvalidSetting> {
    let wrong = |problem: &str| {
        Err(InvalidSetting::new(
            "endpoints",
            format!("{problem}: write host:port, http://host:port or https://host:port"),
        ))
    };
    let address = match endpoint.split_once("://") {
        None => endpoint,
        Some(("http", address)) => address,
        Some(("https", address)) if cfg!(feature = "tls") => address,
        Some(("https", _)) => return Err(no_tls("endpoints")),
        Some(_) => return wrong("has one with an unknown scheme"),
    };
    let address = address.trim_end_matches('/');
    if address.is_empty() {
        return wrong("has an empty one");
    }
    if address.contains('@') {
        return wrong("has one with a user name, which belongs into `user` and `password`");
    }
    if address.contains(|character: char| {
        matches!(character, '/' | '?' | '#' | ',') || character.is_whitespace()
    }) {
        return wrong("has one that is no address");
    }
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let end = endpoint.trim_end_matches('/');
    Ok(if has_port {
        end.to_owned()
    } else {
        format!("{end}:2379")
    })
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename = "EtcdSettings")]
pub(crate) struct RawSettings {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: Option<String>,
    pub(crate) lease_time: Option<RawDuration>,
    pub(crate) connect_timeout: Option<RawDuration>,
    pub(crate) request_timeout: Option<RawDuration>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) tls: Option<EtcdTls>,
}

impl TryFrom<RawSettings> for EtcdSettings {
    type Error = InvalidSetting;

    fn try_from(raw: RawSettings) -> Result<Self, InvalidSetting> {
        let mut settings = Self::new(raw.endpoints)?;
        if let Some(prefix) = raw.prefix {
            settings = settings.with_prefix(prefix)?;
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
        let missing =
            |field, by| InvalidSetting::new(field, format!("is missing: `{by}` needs it"));
        settings.user = match (raw.user, raw.password) {
            (None, None) => None,
            (Some(user), Some(password)) => Some((user, password)),
            (Some(_), None) => return Err(missing("password", "user")),
            (None, Some(_)) => return Err(missing("user", "password")),
        };
        if let Some(tls) = raw.tls {
            settings = settings.with_tls(tls)?;
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_field() {
        for (field, json) in [
            ("endpoints", "{}"),
            ("endpoints", r#"{"endpoints": []}"#),
            ("endpoints", r#"{"endpoints": ["ftp://a"]}"#),
            ("endpoints", r#"{"endpoints": ["a b"]}"#),
            ("endpoints", r#"{"endpoints": ["u:hunter2@a:1"]}"#),
            ("prefix", r#"{"endpoints": ["a"], "prefix": ""}"#),
            ("prefix", r#"{"endpoints": ["a"], "prefix": "a//b"}"#),
            ("prefix", r#"{"endpoints": ["a"], "prefix": "a/"}"#),
            ("lease_time", r#"{"endpoints": ["a"], "lease_time": "0s"}"#),
            ("lease_time", r#"{"endpoints": ["a"], "lease_time": 10}"#),
            (
                "lease_time",
                r#"{"endpoints": ["a"], "lease_time": "-10s"}"#,
            ),
            (
                "connect_timeout",
                r#"{"endpoints": ["a"], "connect_timeout": "0s"}"#,
            ),
            (
                "request_timeout",
                r#"{"endpoints": ["a"], "request_timeout": "x"}"#,
            ),
            ("password", r#"{"endpoints": ["a"], "user": "u"}"#),
            ("user", r#"{"endpoints": ["a"], "password": "hunter2"}"#),
            ("tls", r#"{"endpoints": ["a"], "tls": {"cert_file": "x"}}"#),
            ("laese_time", r#"{"endpoints": ["a"], "laese_time": "1s"}"#),
        ] {
            let error = serde_json::from_str::<EtcdSettings>(json)
                .expect_err(json)
                .to_string();
            assert!(error.contains(&format!("`{field}`")), "{json}: {error}");
            assert!(!error.contains("hunter2"), "{json}: {error}");
        }
    }

    #[test]
    fn a_missing_port_is_etcds() {
        let settings = EtcdSettings::new(["a", "http://b/", "[::1]:4000", "[::1]"]).unwrap();
        assert_eq!(
            settings.endpoints(),
            ["a:2379", "http://b:2379", "[::1]:4000", "[::1]:2379"]
        );
    }

    #[test]
    fn the_password_never_shows() {
        let settings = EtcdSettings::new(["a"]).unwrap().with_user("u", "hunter2");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
