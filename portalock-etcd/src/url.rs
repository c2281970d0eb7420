//! Settings in one line, for a backend that is selected at run time.

use std::str::FromStr;

use portalock_core::settings::{InvalidSetting, RawDuration, percent_decode};

use crate::{
    EtcdSettings, EtcdTls,
    config::{RawSettings, Secret},
};

impl EtcdSettings {
    /// Reads settings from a URL: `etcd://[user:password@]host[:port][,host[:port]…][/prefix][?option=value[&…]]`, with
    /// `etcds://` for TLS. The options are `lease_time`, `connect_timeout`, `request_timeout` and, with TLS, `ca_file`,
    /// `cert_file`, `key_file` and `server_name`. User, password, prefix and values may be percent-encoded. Plain
    /// endpoints, `host:port[,host:port…]`, are also accepted.
    ///
    /// ```
    /// use portalock_etcd::EtcdSettings;
    ///
    /// let settings = EtcdSettings::from_url(
    ///     "etcd://billing:hunter2@etcd-1:2379,etcd-2:2379/team/locks?lease_time=15s",
    /// )?;
    /// assert_eq!(settings.endpoints(), ["etcd-1:2379", "etcd-2:2379"]);
    /// assert_eq!(settings.prefix(), "team/locks");
    /// # Ok::<(), portalock_core::settings::InvalidSetting>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidSetting`], which names the problem. It never shows the password.
    pub fn from_url(url: &str) -> Result<Self, InvalidSetting> {
        let (tls, rest) = match url.split_once("://") {
            Some(("etcd", rest)) => (None, rest),
            Some(("etcds", rest)) => (Some(EtcdTls::default()), rest),
            Some(("http" | "https", _)) | None => return Self::new(url.split(',')),
            // The scheme of another endpoint after the first.
            Some((endpoints, _)) if endpoints.contains(',') => return Self::new(url.split(',')),
            Some(_) => {
                return Err(InvalidSetting::new(
                    "url",
                    "has an unknown scheme: begin it with etcd:// or etcds://",
                ));
            }
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        if credentials.is_none() && (prefix.contains('@') || query.contains('@')) {
            // Most likely a password, which must be neither a prefix at etcd nor a part of an error.
            let problem = "has an @ after the hosts: write it as %40, and in a password / as %2F and ? as %3F";
            return Err(InvalidSetting::new("url", problem));
        }
        let scheme = if tls.is_some() { "https://" } else { "" };
        let mut raw = RawSettings {
            endpoints: hosts
                .split(',')
                .map(|host| format!("{scheme}{host}"))
                .collect(),
            prefix: Some(percent_decode("prefix", prefix)?).filter(|prefix| !prefix.is_empty()),
            tls,
            ..RawSettings::default()
        };
        if let Some(credentials) = credentials {
            let Some((user, password)) = credentials.split_once(':') else {
                return Err(InvalidSetting::new(
                    "password",
                    "is missing in the url: write user:password@",
                ));
            };
            raw.user = Some(percent_decode("user", user)?);
            raw.password = Some(Secret(percent_decode("password", password)?));
        }
        for option in query.split('&').filter(|option| !option.is_empty()) {
            set(&mut raw, option)?;
        }
        raw.try_into()
    }
}

impl FromStr for EtcdSettings {
    type Err = InvalidSetting;

    /// As [`from_url`](Self::from_url).
    fn from_str(url: &str) -> Result<Self, InvalidSetting> {
        Self::from_url(url)
    }
}

fn set(raw: &mut RawSettings, option: &str) -> Result<(), InvalidSetting> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let value = percent_decode("url", value)?;
    match (name, raw.tls.as_mut()) {
        ("lease_time", _) => raw.lease_time = Some(RawDuration::Text(value)),
        ("connect_timeout", _) => raw.connect_timeout = Some(RawDuration::Text(value)),
        ("request_timeout", _) => raw.request_timeout = Some(RawDuration::Text(value)),
        ("ca_file", Some(tls)) => tls.ca_file = Some(value.into()),
        ("cert_file", Some(tls)) => tls.cert_file = Some(value.into()),
        ("key_file", Some(tls)) => tls.key_file = Some(value.into()),
        ("server_name", Some(tls)) => tls.server_name = Some(value),
        ("ca_file" | "cert_file" | "key_file" | "server_name", None) => {
            return Err(InvalidSetting::new(
                "url",
                format!("sets {name}, but has no TLS: begin it with etcds://"),
            ));
        }
        _ => {
            return Err(InvalidSetting::new(
                "url",
                format!(
                    "has an unknown option {name:?}: there are lease_time, connect_timeout, request_timeout, ca_file, \
                     cert_file, key_file and server_name"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_part_is_read() {
        let settings = EtcdSettings::from_url(
            "etcd://u%40x:p%3Aq@a:1,b/team%20one/x?lease_time=7s&connect_timeout=1s&request_timeout=3s",
        )
        .unwrap();
        assert_eq!(settings.endpoints(), ["a:1", "b:2379"]);
        assert_eq!(settings.prefix(), "team one/x");
        assert_eq!(settings.lease_time(), Duration::from_secs(7));
        assert_eq!(settings.connect_timeout(), Duration::from_secs(1));
        assert_eq!(settings.request_timeout(), Duration::from_secs(3));
        let (user, password) = settings.user.unwrap();
        assert_eq!((user.as_str(), password.0.as_str()), ("u@x", "p:q"));
    }

    #[test]
    fn plain_endpoints_are_enough() {
        let settings = EtcdSettings::from_url("a:1,http://b:2").unwrap();
        assert_eq!(settings.endpoints(), ["a:1", "http://b:2"]);
        assert_eq!(settings.prefix(), EtcdSettings::DEFAULT_PREFIX);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_shown() {
        for (word, url) in [
            ("scheme", "redis://u:hunter2@a"),
            ("password", "etcd://hunter2@a"),
            ("endpoints", "etcd://"),
            ("lease_time", "etcd://u:hunter2@a?lease_time=0s"),
            ("unknown option", "etcd://u:hunter2@a?lease=3s"),
            ("TLS", "etcd://u:hunter2@a?ca_file=x"),
            ("percent", "etcd://u:hunter2%zz@a"),
            ("%3F", "etcd://u:a?hunter2@a"),
            ("%2F", "etcd://u:a/hunter2@a"),
            ("user", "u:hunter2@a:1"),
        ] {
            let error = EtcdSettings::from_url(url).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }
}
