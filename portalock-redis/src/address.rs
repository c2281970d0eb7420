//! The address of the server, read from a URL: a fixed address, or the sentinels or cluster nodes that know the current
//! one.

use std::{fmt, sync::Arc};

use portalock_core::settings::InvalidSetting;
use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion};

/// The default port of a sentinel.
const SENTINEL_PORT: u16 = 26379;

#[derive(Clone)]
pub(crate) enum Address {
    Fixed(ConnectionInfo),
    Sentinels(SentinelAddress),
    Cluster(ClusterAddress),
}

/// Some nodes of a cluster, and the login for each.
#[derive(Clone)]
pub(crate) struct ClusterAddress {
    pub(crate) nodes: Vec<ConnectionInfo>,
    /// Everything that a connection to a node needs, except its address.
    pub(crate) server: ConnectionInfo,
}

/// The sentinels that know the address of the server, and the login for the server.
#[derive(Clone)]
pub(crate) struct SentinelAddress {
    pub(crate) sentinels: Vec<ConnectionInfo>,
    /// The name of the primary at the sentinels.
    pub(crate) master: Arc<str>,
    /// Everything that a connection to the primary needs, except its address.
    pub(crate) server: ConnectionInfo,
}

impl Address {
    /// Reads a URL. No error contains a part of the URL: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self, InvalidSetting> {
        let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
        let plain = match scheme {
            "redis+sentinel" | "valkey+sentinel" => "redis",
            "rediss+sentinel" | "valkeys+sentinel" => "rediss",
            "redis+cluster" | "valkey+cluster" => {
                return ClusterAddress::parse("redis", rest).map(Self::Cluster);
            }
            "rediss+cluster" | "valkeys+cluster" => {
                return ClusterAddress::parse("rediss", rest).map(Self::Cluster);
            }
            _ => return Ok(Self::Fixed(server(url, WRONG)?)),
        };
        SentinelAddress::parse(plain, rest).map(Self::Sentinels)
    }

    /// Whether this is the address of a cluster.
    pub(crate) const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// The database number.
    pub(crate) fn database(&self) -> i64 {
        let server = match self {
            Self::Fixed(server) => server,
            Self::Sentinels(sentinels) => &sentinels.server,
            // A cluster has only database 0.
            Self::Cluster(_) => return 0,
        };
        server.redis_settings().db()
    }
}

impl ClusterAddress {
    /// `[user:password@]host[:port][,host[:port]...][/]`
    fn parse(scheme: &str, rest: &str) -> Result<Self, InvalidSetting> {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, hosts) = split_login(rest);
        if hosts.contains(['/', '?', '#']) {
            return Err(InvalidSetting::new("url", WRONG_CLUSTER));
        }
        let node = |host: &str| server(&format!("{scheme}://{login}{host}"), WRONG_CLUSTER);
        Ok(Self {
            nodes: hosts.split(',').map(node).collect::<Result<_, _>>()?,
            server: node("localhost")?,
        })
    }
}

/// The login with its `@`, if the URL has one, and the hosts.
fn split_login(authority: &str) -> (&str, &str) {
    let end = authority.rfind('@').map_or(0, |at| at + 1);
    authority.split_at(end)
}

impl SentinelAddress {
    /// `[user:password@]host[:port][,host[:port]...]/master[/database][?sentinel_user=..&sentinel_password=..]`
    fn parse(scheme: &str, rest: &str) -> Result<Self, InvalidSetting> {
        let wrong = || InvalidSetting::new("url", WRONG_SENTINELS);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').ok_or_else(wrong)?;
        let (login, hosts) = split_login(authority);
        let (master, database) = path.split_once('/').unwrap_or((path, ""));
        let is_name = |character: char| {
            character.is_ascii_alphanumeric() || matches!(character, '.' | '-' | '_')
        };
        if master.is_empty() || !master.chars().all(is_name) {
            return Err(wrong());
        }
        let sentinels = hosts
            .split(',')
            .map(|host| {
                let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
                let port = if has_port {
                    String::new()
                } else {
                    format!(":{SENTINEL_PORT}")
                };
                server(&format!("{scheme}://{host}{port}"), WRONG_SENTINELS)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut address = Self {
            sentinels,
            master: master.into(),
            // The sentinels provide the real address.
            server: server(
                &format!("{scheme}://{login}localhost/{database}"),
                WRONG_SENTINELS,
            )?,
        };
        let (mut user, mut password) = (None, None);
        // A valid address, so that `redis` parses the query.
        let query =
            redis::parse_redis_url(&format!("redis://localhost?{query}")).ok_or_else(wrong)?;
        if query.fragment().is_some() {
            return Err(wrong());
        }
        for (key, value) in query.query_pairs() {
            match &*key {
                "sentinel_user" => user = Some(value.into_owned()),
                "sentinel_password" => password = Some(value.into_owned()),
                _ => return Err(wrong()),
            }
        }
        match (user, password) {
            (user, Some(password)) => address.log_in(user.as_deref(), &password),
            (None, None) => {}
            (Some(_), None) => return Err(wrong()),
        }
        Ok(address)
    }

    /// Sets the login for the sentinels.
    pub(crate) fn log_in(&mut self, user: Option<&str>, password: &str) {
        for sentinel in &mut self.sentinels {
            let mut login = sentinel.redis_settings().clone().set_password(password);
            if let Some(user) = user {
                login = login.set_username(user);
            }
            *sentinel = sentinel.clone().set_redis_settings(login);
        }
    }
}

/// Leaves out users and passwords.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(server) => write!(f, "{}", server.addr()),
            Self::Sentinels(address) => {
                write!(f, "{} by ", address.master)?;
                places(&address.sentinels, f)
            }
            Self::Cluster(address) => {
                write!(f, "the cluster of ")?;
                places(&address.nodes, f)
            }
        }
    }
}

fn places(servers: &[ConnectionInfo], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let places = servers.iter().map(|server| server.addr().to_string());
    f.debug_list().entries(places).finish()
}

const WRONG: &str = "is no URL of a Redis server: write redis://[user:password@]host[:port][/database], rediss:// for TLS, \
                     unix:///path/to/socket, redis+sentinel://host,host/master-name, or redis+cluster://host,host";
const WRONG_OPTION: &str = "has an option that it can't have: only unix:// URLs have options, which are db, user and pass. Other settings \
     have fields of their own. In a password write ? as %3F and # as %23";
const WRONG_CLUSTER: &str = "is no URL of a Redis cluster: write redis+cluster://[user:password@]host[:port][,host...], or \
     rediss+cluster:// for TLS. A cluster has no other database than 0";
const WRONG_SENTINELS: &str = "is no URL of sentinels: write \
     redis+sentinel://[user:password@]host[:port][,host...]/master-name[/database], rediss+sentinel:// for TLS, and \
     ?sentinel_user=..&sentinel_password=.. if they want a login. In a password write ? as %3F and # as %23";

fn server(url: &str, wrong: &'static str) -> Result<ConnectionInfo, InvalidSetting> {
    let tls = url.starts_with("rediss:") || url.starts_with("valkeys:");
    if tls && !cfg!(feature = "tls") {
        return Err(InvalidSetting::new(
            "url",
            "asks for TLS: build portalock-redis with its feature `tls`",
        ));
    }
    let refused = || InvalidSetting::new("url", wrong);
    let url = redis::parse_redis_url(url).ok_or_else(refused)?;
    // The client library would ignore what it doesn't know, and the locks would be in another database, for example.
    let known: &[&str] = match url.scheme() {
        "unix" | "redis+unix" | "valkey+unix" => &["db", "user", "pass"],
        _ => &[],
    };
    let mut options = url.query_pairs();
    if options.any(|(name, _)| !known.contains(&&*name)) || url.fragment().is_some() {
        return Err(InvalidSetting::new("url", WRONG_OPTION));
    }
    // The cause is dropped: it could contain a part of the URL.
    let server = url.into_connection_info().map_err(|_| refused())?;
    let login = server.redis_settings();
    if login.username().is_some() && login.password().is_none() {
        return Err(InvalidSetting::new(
            "url",
            "has a user without a password: write user:password@, or :password@ for the default user",
        ));
    }
    let handshake = server
        .redis_settings()
        .clone()
        // Commands, answers and messages share one connection, which needs RESP3.
        .set_protocol(ProtocolVersion::RESP3);
    // All tasks share the connection. Without this option, the system holds a command back until the server has
    // confirmed the command that another task sent before. That takes a round trip, or 40 ms if the server has no
    // answer to send yet.
    let tcp = server.tcp_settings().clone().set_nodelay(true);
    Ok(server.set_redis_settings(handshake).set_tcp_settings(tcp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentinels(url: &str) -> SentinelAddress {
        match Address::parse(url).unwrap() {
            Address::Sentinels(address) => address,
            address => panic!("{url} names sentinels: {address:?}"),
        }
    }

    #[test]
    fn sentinels_have_ports_a_master_and_logins_of_their_own() {
        let address = sentinels(
            "redis+sentinel://u:p%40ss@a,b:7,[::1],[::2]:9/my.master-1/3?sentinel_user=watch&sentinel_password=p%26q",
        );
        let places: Vec<_> = address
            .sentinels
            .iter()
            .map(|one| one.addr().to_string())
            .collect();
        assert_eq!(places, ["a:26379", "b:7", "::1:26379", "::2:9"]);
        assert_eq!(&*address.master, "my.master-1");
        for sentinel in &address.sentinels {
            let login = sentinel.redis_settings();
            assert_eq!(
                (login.username(), login.password()),
                (Some("watch"), Some("p&q"))
            );
            assert_eq!(login.db(), 0);
        }
        let login = address.server.redis_settings();
        assert_eq!(
            (login.username(), login.password()),
            (Some("u"), Some("p@ss"))
        );
        assert_eq!(login.db(), 3);
    }

    #[test]
    fn what_is_no_address_of_sentinels_is_refused() {
        for url in [
            "redis+sentinel:",
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel:///m",
            "redis+sentinel://a,/m",
            "redis+sentinel://a/m/x",
            "redis+sentinel://a/m m",
            "redis+sentinel://a:b/m",
            "redis+sentinel://a/m?sentinel_user=u",
            "redis+sentinel://a/m?password=hunter2",
            "redis+sentinels://a/m",
        ] {
            let error = Address::parse(url).map(drop).unwrap_err().to_string();
            assert!(error.contains("redis+sentinel://"), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }

    /// The client library ignores them.
    #[test]
    fn what_would_have_no_effect_is_refused() {
        for (url, word) in [
            ("redis://h?db=3", "option"),
            ("redis://h/3?session_ttl=20s", "option"),
            ("redis://:x?hunter2@h", "no URL"),
            ("redis://h/3?hunter2", "option"),
            ("redis://h/3#hunter2", "%23"),
            ("unix:///s?database=3", "option"),
            ("redis://hunter2@h", "user:password@"),
            ("unix:///s?user=hunter2", "user:password@"),
            ("redis+cluster://hunter2@h", "user:password@"),
            ("redis+sentinel://hunter2@h/m", "user:password@"),
            ("redis+sentinel://h/m/3#hunter2", "%23"),
            ("redis+sentinel://h/m?sentinel_password=a#hunter2", "%23"),
        ] {
            let error = Address::parse(url).map(drop).expect_err(url).to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
        for (url, database) in [("redis://u:p@h/3", 3), ("unix:///s?db=3&user=u&pass=p", 3)] {
            assert_eq!(Address::parse(url).unwrap().database(), database);
        }
    }

    #[test]
    fn every_node_of_a_cluster_has_the_login() {
        let url = "rediss+cluster://u:p%40ss@a,b:7,[::1]:8/";
        if !cfg!(feature = "tls") {
            assert!(Address::parse(url).is_err());
            return;
        }
        let Address::Cluster(address) = Address::parse(url).unwrap() else {
            panic!("{url} names a cluster");
        };
        let places: Vec<_> = address
            .nodes
            .iter()
            .map(|node| node.addr().to_string())
            .collect();
        assert_eq!(places, ["a:6379", "b:7", "::1:8"]);
        for node in &address.nodes {
            let login = node.redis_settings();
            assert_eq!(
                (login.username(), login.password()),
                (Some("u"), Some("p@ss"))
            );
        }
    }

    #[test]
    fn what_is_no_address_of_a_cluster_is_refused() {
        for url in [
            "redis+cluster:",
            "redis+cluster://",
            "redis+cluster://a,",
            "redis+cluster://a/3",
            "redis+cluster://a?password=hunter2",
            "redis+cluster://a:b",
        ] {
            let error = Address::parse(url).map(drop).unwrap_err().to_string();
            assert!(error.contains("redis+cluster://"), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }
}
