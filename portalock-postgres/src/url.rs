//! Settings in one line, for a backend that is chosen at run time.

use std::{str::FromStr, time::Duration};

use portalock_core::settings::{InvalidSetting, RawDuration, percent_decode};
use tokio_postgres::{
    Config,
    config::{SslMode, TargetSessionAttrs},
};

use crate::PostgresSettings;

const LIBPQ_KEEPALIVES_IDLE: Duration = Duration::from_secs(2 * 60 * 60);
const SILENCE: Duration = Duration::from_secs(30);

impl PostgresSettings {
    /// Reads settings from a URL as libpq knows it: `postgres://[user[:password]@]host[:port][,…][/database][?option=value[&…]]`.
    ///
    /// Beside what [`tokio_postgres::Config`] takes, the options are `lease_time`, `request_timeout` (such as `15s`) and
    /// `sslrootcert`, the file of [`with_ca_file`](Self::with_ca_file). `sslmode` is `disable`, `prefer` (TLS where the server has
    /// it) or `require`; the default is `disable`, or `require` with an `sslrootcert`. Where there is TLS the server's certificate
    /// and name are verified, so `verify-ca` and `verify-full` mean the same as `require`. Of several hosts the one is used that
    /// takes writes.
    ///
    /// ```
    /// use portalock_postgres::PostgresSettings;
    ///
    /// PostgresSettings::from_url("postgres://worker:hunter2@db-1,db-2/app?lease_time=15s")?;
    /// # Ok::<(), portalock_core::settings::InvalidSetting>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`] naming what is wrong. It never shows the URL, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self, InvalidSetting> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(InvalidSetting::new(
                "url",
                "has an unknown scheme: begin it with postgres://",
            ));
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        let mut has_mode = false;
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((name @ ("lease_time" | "request_timeout" | "sslrootcert"), value)) => {
                    ours.push((name, percent_decode("url", value)?));
                }
                Some(("sslmode", "verify-ca" | "verify-full")) => {
                    has_mode = true;
                    theirs.push("sslmode=require");
                }
                _ => {
                    has_mode |= option.starts_with("sslmode=");
                    theirs.push(option);
                }
            }
        }
        let mode = if ours.iter().any(|(name, _)| *name == "sslrootcert") {
            SslMode::Require
        } else {
            SslMode::Disable
        };
        let options = theirs.join("&");
        let urls = each_host(address);
        let mut servers = Vec::new();
        for url in &urls {
            let mut server = parsed(&format!("{url}?{options}"))?;
            if !has_mode {
                server.ssl_mode(mode);
            }
            if server.get_ssl_mode() != SslMode::Disable && cfg!(not(feature = "tls")) {
                return Err(InvalidSetting::new(
                    "url",
                    "asks for TLS, which this build has not: enable the feature `tls` of portalock-postgres",
                ));
            }
            if urls.len() > 1 {
                server.target_session_attrs(TargetSessionAttrs::ReadWrite);
            }
            servers.push(server);
        }
        let connect_timeout = servers
            .first()
            .and_then(Config::get_connect_timeout)
            .copied();
        let mut settings = Self::of(servers);
        if let Some(timeout) = connect_timeout {
            settings = settings.with_connect_timeout(timeout)?;
        }
        for (name, value) in ours {
            let time = |field| RawDuration::Text(value.clone()).check(field);
            settings = match name {
                "lease_time" => settings.with_lease_time(time("lease_time")?)?,
                "request_timeout" => settings.with_request_timeout(time("request_timeout")?)?,
                _ => settings.with_ca_file(value),
            };
        }
        Ok(settings)
    }
}

impl FromStr for PostgresSettings {
    type Err = InvalidSetting;

    /// As [`from_url`](Self::from_url).
    fn from_str(url: &str) -> Result<Self, InvalidSetting> {
        Self::from_url(url)
    }
}

/// The same URL for each of its hosts.
fn each_host(address: &str) -> Vec<String> {
    let (scheme, rest) = address.split_once("://").unwrap_or(("postgres", address));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    hosts
        .split(',')
        .map(|host| format!("{scheme}://{user}{host}{path}"))
        .collect()
}

/// One server, by a URL that has nothing of ours in it.
fn parsed(url: &str) -> Result<Config, InvalidSetting> {
    // The cause is not kept: it could repeat a part of the URL.
    let mut server = Config::from_str(url.trim_end_matches('?')).map_err(|_| {
        InvalidSetting::new(
            "url",
            "is no URL of a Postgres server: write postgres://user:password@host:port/database, with options that \
             libpq and tokio-postgres know",
        )
    })?;
    if server.get_hosts().is_empty() {
        return Err(InvalidSetting::new("url", "names no host"));
    }
    // A line that has died in silence is noticed also where nothing is sent. libpq's default is two hours.
    if server.get_keepalives_idle() == LIBPQ_KEEPALIVES_IDLE {
        server.keepalives_idle(SILENCE);
    }
    if server.get_tcp_user_timeout().is_none() {
        server.tcp_user_timeout(SILENCE);
    }
    if server.get_application_name().is_none() {
        server.application_name(PostgresSettings::DEFAULT_APPLICATION_NAME);
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_read() {
        let settings = PostgresSettings::from_url(
            "postgresql://u%40x:p%3Aq@a:1,b:2/app?lease_time=7s&connect_timeout=1&request_timeout=1500ms&sslmode=disable&sslrootcert=%2Fca.pem",
        )
        .unwrap();
        assert_eq!(settings.servers.len(), 2);
        for (server, port) in settings.servers.iter().zip([1, 2]) {
            assert_eq!(server.get_hosts().len(), 1);
            assert_eq!(server.get_ports(), [port]);
            assert_eq!(server.get_user(), Some("u@x"));
            assert_eq!(server.get_password(), Some("p:q".as_bytes()));
            assert_eq!(server.get_dbname(), Some("app"));
        }
        assert_eq!(settings.lease_time(), Duration::from_secs(7));
        assert_eq!(settings.connect_timeout(), Duration::from_secs(1));
        assert_eq!(settings.request_timeout(), Duration::from_millis(1500));
        assert_eq!(settings.ca_file(), Some("/ca.pem".as_ref()));
        assert!(!format!("{settings:?}").contains("p:q"));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_shown() {
        for (word, url) in [
            ("scheme", "redis://u:hunter2@a"),
            ("host", "postgres:///app"),
            ("lease_time", "postgres://u:hunter2@a?lease_time=0s"),
            ("libpq", "postgres://u:hunter2@a?lease=3s"),
            ("percent", "postgres://u:hunter2@a?sslrootcert=%zz"),
            ("libpq", "postgres://u:hunter2@a:port"),
        ] {
            let error = PostgresSettings::from_url(url).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_is_refused_by_a_build_without_it() {
        let error = PostgresSettings::from_url("postgres://u@a?sslmode=verify-full").unwrap_err();
        assert!(error.to_string().contains("feature `tls`"), "{error}");
    }
}
