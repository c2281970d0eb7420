//! Settings in one line, for a backend that is selected at run time.

use std::{str::FromStr, time::Duration};

use portalock_core::settings::{InvalidSetting, RawDuration, percent_decode};
use tokio_postgres::{
    Config,
    config::{SslMode, TargetSessionAttrs},
};

use crate::PostgresSettings;

const LIBPQ_KEEPALIVES_IDLE: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a connection may be silent before it is given up, at either end.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

impl PostgresSettings {
    /// Reads settings from a URL in the format of libpq:
    /// `postgres://[user[:password]@]host[:port][,…][/database][?option=value[&…]]`. The options `host` and `port` can
    /// also list hosts and ports; a host that is a path is the directory of a Unix socket.
    ///
    /// The options are those of [`tokio_postgres::Config`], and `lease_time`, `request_timeout` (such as `15s`) and
    /// `sslrootcert`, the file of [`with_ca_file`](Self::with_ca_file). `sslmode` is `disable`, `prefer` (TLS if the
    /// server supports it) or `require`; the default is `disable`, or `require` with an `sslrootcert`. With TLS, the
    /// server's certificate and name are verified, so `verify-ca` and `verify-full` mean the same as `require`. Of
    /// several hosts, the first one that accepts writes is used, but no former primary: the crate's front page has more.
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
    /// [`InvalidSetting`], which names the problem. It never shows the URL, which may contain a password.
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
        let mut lists = Vec::new();
        let mut has_mode = false;
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((name @ ("lease_time" | "request_timeout" | "sslrootcert"), value)) => {
                    ours.push((name, percent_decode("url", value)?));
                }
                Some((name @ ("host" | "hostaddr" | "port"), list)) => lists.push((name, list)),
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
        let urls = if lists.is_empty() {
            each_host(address)
                .map(|url| format!("{url}?{options}"))
                .collect()
        } else {
            each_listed(address, &lists, &options)?
        };
        let mut servers = Vec::new();
        for url in &urls {
            let mut server = parsed(url)?;
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

/// Splits a URL: the scheme with the user, the hosts, and the rest.
fn parts(address: &str) -> (&str, &str, &str) {
    let authority = address.find("://").map_or(0, |at| at + "://".len());
    let end = address[authority..].find('/');
    let (before, path) = address.split_at(end.map_or(address.len(), |at| authority + at));
    let hosts = before[authority..].rfind('@').map_or(0, |at| at + 1);
    let (user, hosts) = before.split_at(authority + hosts);
    (user, hosts, path)
}

/// The same URL for each of its hosts.
fn each_host(address: &str) -> impl Iterator<Item = String> {
    let (user, hosts, path) = parts(address);
    hosts
        .split(',')
        .map(move |host| format!("{user}{host}{path}"))
}

/// The host and the port of one server in a URL, as `host` and `port` name them in options.
fn host_and_port(server: &str) -> (&str, &str) {
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (server, ""),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

/// The same URL for each of the hosts in its options. As in libpq, each option replaces what the URL itself says of it, and a
/// single port is used for all hosts.
fn each_listed(
    address: &str,
    lists: &[(&str, &str)],
    options: &str,
) -> Result<Vec<String>, InvalidSetting> {
    let (user, own, path) = parts(address);
    let (hosts, ports): (Vec<_>, Vec<_>) = own.split(',').map(host_and_port).unzip();
    let mut lists: Vec<(&str, Vec<String>)> = lists
        .iter()
        .map(|(name, list)| {
            let list = list.replace("%2C", ",").replace("%2c", ",");
            (*name, list.split(',').map(str::to_owned).collect())
        })
        .collect();
    for (name, list) in [("host", hosts), ("port", ports)] {
        let is_said = list.iter().any(|one| !one.is_empty());
        if is_said && lists.iter().all(|(listed, _)| *listed != name) {
            lists.push((name, list.into_iter().map(str::to_owned).collect()));
        }
    }
    let count = lists.iter().map(|(_, list)| list.len()).max().unwrap_or(0);
    let is_odd = |(name, list): &(&str, Vec<String>)| {
        list.len() != count && (*name != "port" || list.len() != 1)
    };
    if lists.iter().any(is_odd) {
        return Err(InvalidSetting::new(
            "url",
            "lists hosts and ports that don't match: give each host a port, or one for all",
        ));
    }
    let of = |index: usize| {
        let mut url = format!("{user}{path}?{options}");
        for (name, list) in &lists {
            let value = list.get(index).or(list.first());
            url = format!("{url}&{name}={}", value.map_or("", |value| value));
        }
        url
    };
    Ok((0..count).map(of).collect())
}

/// Parses the URL of one server, without the options of this crate.
fn parsed(url: &str) -> Result<Config, InvalidSetting> {
    let url = url.trim_end_matches('?').replace("?&", "?");
    // The cause is not kept, because it could repeat a part of the URL.
    let mut server = Config::from_str(&url).map_err(|_| {
        InvalidSetting::new(
            "url",
            "is no URL of a Postgres server: write postgres://user:password@host:port/database, with options that \
             libpq and tokio-postgres know",
        )
    })?;
    if server.get_hosts().is_empty() {
        return Err(InvalidSetting::new("url", "names no host"));
    }
    // With this, a connection that has died in silence is noticed even if nothing is sent. libpq's default is two
    // hours.
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
    use tokio_postgres::config::Host;

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
    fn hosts_may_be_listed_in_an_option() {
        let of = |url: &str| -> Vec<(Host, u16)> {
            let settings = PostgresSettings::from_url(url).unwrap();
            let each = settings.servers.iter();
            each.map(|server| {
                assert_eq!(server.get_user(), Some("u"));
                assert_eq!(server.get_dbname(), Some("app"));
                assert_eq!(server.get_hosts().len(), 1);
                (server.get_hosts()[0].clone(), server.get_ports()[0])
            })
            .collect()
        };
        let tcp = |host: &str| Host::Tcp(host.to_owned());
        let both = vec![(tcp("a"), 1), (tcp("::1"), 2)];
        assert_eq!(of("postgres://u@/app?host=a,::1&port=1,2"), both);
        assert_eq!(of("postgres://u@c:9/app?port=1%2C2&host=a%2c::1"), both);
        let one_port = vec![(tcp("a"), 7), (tcp("b"), 7)];
        assert_eq!(
            of("postgres://u@/app?host=a,b&port=7&connect_timeout=1"),
            one_port
        );
        assert_eq!(of("postgres://u@a,[::1]/app?port=1,2"), both);
        assert_eq!(
            of("postgres://u@a:1,[::1]:2/app?hostaddr=192.0.2.1,192.0.2.2"),
            both
        );
        assert_eq!(of("postgres://u@c:7/app?host=a,b"), one_port);
        let socket = of("postgres://u@/app?host=%2Frun%2Fpg&port=1");
        assert_eq!(socket, [(Host::Unix("/run/pg".into()), 1)]);
        for (url, count) in [("postgres://u@/app?host=a", 1), ("postgres://u@a,b/app", 2)] {
            let settings = PostgresSettings::from_url(url).unwrap();
            let follows = |server: &Config| {
                server.get_target_session_attrs() == TargetSessionAttrs::ReadWrite
            };
            assert_eq!(settings.servers.len(), count);
            assert!(
                settings
                    .servers
                    .iter()
                    .all(|server| follows(server) == (count > 1))
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_shown() {
        for (word, url) in [
            ("ports", "postgres://u:hunter2@/app?host=a,b,c&port=1,2"),
            ("ports", "postgres://u:hunter2@/app?host=a&port=1,2"),
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
