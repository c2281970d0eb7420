//! Settings: each option, its default, and its effect.

mod raw;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use portalock_core::settings::{InvalidSetting, at_least, within};
use serde::Deserialize;

use self::raw::RawSettings;
use crate::address::Address;

/// How to connect to Redis, and how sessions and locks behave there.
///
/// The settings can be read from TOML or JSON, with readable durations; only `url` is required. The password appears
/// neither in [`Debug`](fmt::Debug) output nor in any error or log.
///
/// ```
/// use std::time::Duration;
/// use portalock_redis::RedisSettings;
///
/// let settings: RedisSettings = toml::from_str(r#"
///     url = "redis://worker:secret@db.example/3"
///     prefix = "billing"
///     session_ttl = "20s"
/// "#)?;
/// assert_eq!(settings.session_ttl(), Duration::from_secs(20));
/// assert!(!format!("{settings:?}").contains("secret"));
///
/// let error = toml::from_str::<RedisSettings>(r#"url = "http://db.example""#).unwrap_err();
/// assert!(error.to_string().contains("`url`"));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Clone, Deserialize)]
#[serde(try_from = "RawSettings")]
pub struct RedisSettings {
    address: Address,
    authority: Option<PathBuf>,
    prefix: Arc<str>,
    label: Option<Arc<str>>,
    session_ttl: Duration,
    restart_wait: Option<Duration>,
    release_without_notice: bool,
    tick_interval: Duration,
    connect_timeout: Duration,
    response_timeout: Duration,
    wait_replicas: u32,
    cluster_tags: u16,
}

/// Settings that are not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Redis settings are not valid: {0}")]
pub struct InvalidRedisSettings(#[from] InvalidSetting);

/// The shortest session: with a shorter one, a busy machine would lose locks without a reason.
const SHORTEST_SESSION: Duration = Duration::from_millis(200);
/// The longest session: the keys of its locks live for half an hour after its last refresh.
const LONGEST_SESSION: Duration = Duration::from_secs(20 * 60);
/// The shortest tick: with a shorter one, waiting would be polling.
const SHORTEST_TICK: Duration = Duration::from_millis(10);
/// The longest tick: the keys of a queue live for half an hour after a new waiter or a check.
const LONGEST_TICK: Duration = Duration::from_secs(10 * 60);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
/// How often the client checks whether another server has become the primary. More often in a short session.
const LOOKING: Duration = Duration::from_secs(1);
/// The largest number of tags: a client may have a session for each.
const MOST_TAGS: u16 = 1024;

impl RedisSettings {
    /// The default of [`prefix`](Self::prefix).
    pub const DEFAULT_PREFIX: &str = "portalock";
    /// The default of [`session_ttl`](Self::session_ttl).
    ///
    /// The lock of a crashed holder becomes free within this time and one tick: before a call with the default timeout
    /// of 5 s ends. The session is refreshed three times in this time, so at any moment it survives a reset or a
    /// restart of two and a half seconds.
    pub const DEFAULT_SESSION_TTL: Duration = Duration::from_secs(4);
    /// The default of [`tick_interval`](Self::tick_interval).
    pub const DEFAULT_TICK_INTERVAL: Duration = Duration::from_millis(200);
    /// The default of [`connect_timeout`](Self::connect_timeout).
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
    /// The default of [`response_timeout`](Self::response_timeout).
    pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
    /// The default of [`cluster_tags`](Self::cluster_tags).
    ///
    /// A client that uses many names has one session for each tag. So the number limits the connections and refreshes of one
    /// client. It is also the number of parts into which the locks are divided among the nodes. A node can do tens of
    /// thousands of locks a second, so a few parts are enough. With 16, each node of a cluster of three to eight has some.
    pub const DEFAULT_CLUSTER_TAGS: u16 = 16;

    /// The defaults, with the server at `url`:
    ///
    /// - `redis://[user:password@]host[:port][/database]`
    /// - `rediss://...` the same over TLS, with the crate's feature `tls`
    /// - `unix:///path/to/socket[?db=3][&user=..&pass=..]`
    /// - `redis+sentinel://[user:password@]host[:port][,host...]/master-name[/database]` the server that these sentinels name
    ///   as the primary, now and after each switch; their port is 26379 by default. User and password are the server's; those
    ///   of the sentinels follow as `?sentinel_user=..&sentinel_password=..`, or by [`with_sentinel_login`].
    /// - `rediss+sentinel://...` the same, with the sentinels and the server over TLS. Certificates must be for the addresses that
    ///   the sentinels tell
    /// - `redis+cluster://[user:password@]host[:port][,host...]` the cluster of these nodes: one that answers is enough. User and
    ///   password must be the same at all nodes
    /// - `rediss+cluster://...` the same over TLS, for a cluster with `tls-cluster yes`. The certificates must be for the host
    ///   names that the nodes announce, or for their addresses if they announce none
    ///
    /// [`with_sentinel_login`]: Self::with_sentinel_login
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if the URL has none of these forms. The error does not contain the URL, which may hold
    /// a password.
    pub fn new(url: &str) -> Result<Self, InvalidRedisSettings> {
        Ok(Self {
            address: Address::parse(url)?,
            authority: None,
            prefix: Self::DEFAULT_PREFIX.into(),
            label: None,
            session_ttl: Self::DEFAULT_SESSION_TTL,
            restart_wait: None,
            release_without_notice: false,
            tick_interval: Self::DEFAULT_TICK_INTERVAL,
            connect_timeout: Self::DEFAULT_CONNECT_TIMEOUT,
            response_timeout: Self::DEFAULT_RESPONSE_TIMEOUT,
            wait_replicas: 0,
            cluster_tags: Self::DEFAULT_CLUSTER_TAGS,
        })
    }

    /// Sets the prefix of every key and channel; default `portalock`. Programs with different prefixes have separate
    /// locks.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if it is empty, longer than 100 bytes, or contains a slash or a control character; for a
    /// cluster also if it contains a brace.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Self, InvalidRedisSettings> {
        if prefix.is_empty()
            || prefix.len() > 100
            || prefix.contains(|character: char| character == '/' || character.is_control())
        {
            return Err(InvalidSetting::new(
                "prefix",
                "is no prefix: give it 1 to 100 bytes of text without a slash or a control character",
            )
            .into());
        }
        // The text between braces decides the slot of a key.
        if self.address.is_cluster() && prefix.contains(['{', '}']) {
            return Err(
                InvalidSetting::new("prefix", "has a brace: a cluster allows none there").into(),
            );
        }
        self.prefix = prefix.into();
        Ok(self)
    }

    /// Sets the name of this program in the errors of other clients, for acquisitions without a label of their own.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets how long a session lives after its last refresh; default 4 s.
    ///
    /// A crashed process keeps its locks for this time. A client has this time to reconnect after its connection has
    /// ended or its server has stopped. The holder counts the same time on its own clock, from its last answered
    /// refresh, so its lost signal fires before the lock is granted to another owner. All clients of one server and
    /// prefix should have the same time.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if the time is under 200 ms or over 20 minutes.
    pub fn with_session_ttl(mut self, ttl: Duration) -> Result<Self, InvalidRedisSettings> {
        self.session_ttl = within(SHORTEST_SESSION, LONGEST_SESSION, "session_ttl", ttl)?;
        Ok(self)
    }

    /// Sets for how long a server that has started or was promoted grants nothing and starts no session; default: the
    /// session's time.
    ///
    /// A server that lost data in a restart, or a replica that lacks the last writes, doesn't know all holders. When
    /// this time has passed, all earlier holders have been told. Sessions that the server still knows continue at once,
    /// with their locks. Behind sentinels the time is longer by half if no [replicas](Self::with_wait_replicas)
    /// confirm. Set it to zero for a server that never loses data (`appendfsync always`), or for tests that start a
    /// server of their own.
    #[must_use]
    pub fn with_restart_wait(mut self, wait: Duration) -> Self {
        self.restart_wait = Some(wait);
        self
    }

    /// Sets whether the server frees a session's locks at the moment its connection ends; default no.
    ///
    /// A crash is then noticed within one [tick](Self::with_tick_interval) instead of within the
    /// [session's time](Self::with_session_ttl). In return, two guarantees are given up. Every reset of the connection
    /// loses all locks of the session, even though its process is alive. And the holder learns of it from the same
    /// event as all others: one network delay after its lock may have been granted to another owner, or after up to the
    /// session's time if the event doesn't reach the holder.
    ///
    /// Each session follows its own setting, so clients with both settings can share locks.
    #[must_use]
    pub fn with_release_without_notice(mut self, at_once: bool) -> Self {
        self.release_without_notice = at_once;
        self
    }

    /// Sets how often the last waiter in a queue checks whether the holder is alive; default 200 ms. A crashed process
    /// runs no script, so this check is what notices a crash, within one interval. The waiters ahead check less often:
    /// the last but one after five times this interval, others after up to thirty times.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if the interval is under 10 ms or over ten minutes.
    pub fn with_tick_interval(mut self, interval: Duration) -> Result<Self, InvalidRedisSettings> {
        self.tick_interval = within(SHORTEST_TICK, LONGEST_TICK, "tick_interval", interval)?;
        Ok(self)
    }

    /// Sets the timeout for connecting, authentication included; default 5 s.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if the timeout is under a millisecond or over a year.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Result<Self, InvalidRedisSettings> {
        self.connect_timeout = at_least(SHORTEST_TIMEOUT, "connect_timeout", timeout)?;
        Ok(self)
    }

    /// Sets the timeout for an answer, after which a call fails as [`Unavailable`]; default 5 s, and never more than
    /// half of the session's time. Waiting for a lock is not limited by this timeout.
    ///
    /// [`Unavailable`]: portalock_core::BackendErrorKind::Unavailable
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if the timeout is under a millisecond or over a year.
    pub fn with_response_timeout(
        mut self,
        timeout: Duration,
    ) -> Result<Self, InvalidRedisSettings> {
        self.response_timeout = at_least(SHORTEST_TIMEOUT, "response_timeout", timeout)?;
        Ok(self)
    }

    /// Sets how many replicas must have a grant before it counts; default 0. If they don't confirm a grant within a
    /// second, or within a quarter of the session's time if that is less, the grant is released and the call fails as
    /// [`Unavailable`](portalock_core::BackendErrorKind::Unavailable). The same rule applies to the session's
    /// refreshes: if replicas are missing, the session ends when its time is over.
    ///
    /// With at least half of the replicas, a holder is always told before its lock is granted to another owner,
    /// whatever a failover does, even if a former primary was cut off and continues; but not if a replica of the new
    /// primary goes back to the former one. It does not guarantee that the promoted replica has the grant: Redis
    /// promotes a replica without checking that. `docs/guarantees.md` lists the cases.
    #[must_use]
    pub fn with_wait_replicas(mut self, replicas: u32) -> Self {
        self.wait_replicas = replicas;
        self
    }

    /// Sets the number of hash tags that spread the names over the slots of a cluster. Default 16. A client has one session, with
    /// its own connection, for each tag that it uses.
    ///
    /// All clients of a cluster and prefix must use the same number. The first client writes it into the cluster, where it stays. A
    /// client with another number fails with [`Misconfigured`](portalock_core::BackendErrorKind::Misconfigured). To change the
    /// number, stop all programs that use these locks, and delete the key that the error names.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if the URL is not of a cluster, or if the number is zero or more than 1024.
    pub fn with_cluster_tags(mut self, tags: u16) -> Result<Self, InvalidRedisSettings> {
        let wrong = if !self.address.is_cluster() {
            "is for a cluster: the URL names none".to_owned()
        } else if tags == 0 || tags > MOST_TAGS {
            format!("is {tags}: it can be 1 to {MOST_TAGS}")
        } else {
            self.cluster_tags = tags;
            return Ok(self);
        };
        Err(InvalidSetting::new("cluster_tags", wrong).into())
    }

    /// Trusts the certificate authorities in this PEM file instead of the system's, for `rediss://` URLs.
    #[must_use]
    pub fn with_authority(mut self, file: impl Into<PathBuf>) -> Self {
        self.authority = Some(file.into());
        self
    }

    /// Sets the login for the sentinels of a `redis+sentinel://` URL. Without a user, the password is the `requirepass`
    /// of each sentinel. By default there is no login at the sentinels: the URL's user and password are for the server.
    ///
    /// # Errors
    ///
    /// [`InvalidRedisSettings`] if the URL is not of sentinels.
    pub fn with_sentinel_login(
        mut self,
        user: Option<&str>,
        password: &str,
    ) -> Result<Self, InvalidRedisSettings> {
        let Address::Sentinels(address) = &mut self.address else {
            return Err(InvalidSetting::new(
                "sentinel_password",
                "is for sentinels: the URL names none",
            )
            .into());
        };
        address.log_in(user, password);
        Ok(self)
    }

    /// The prefix of every key and channel.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of this program in the errors of other clients.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// How long a session lives after its last refresh.
    pub const fn session_ttl(&self) -> Duration {
        self.session_ttl
    }

    /// For how long a server that has started or was promoted grants nothing.
    pub fn restart_wait(&self) -> Duration {
        self.restart_wait.unwrap_or(self.session_ttl)
    }

    /// Whether the server frees locks at the moment the connection ends.
    pub const fn release_without_notice(&self) -> bool {
        self.release_without_notice
    }

    /// How often the last waiter checks whether the holder is alive.
    pub const fn tick_interval(&self) -> Duration {
        self.tick_interval
    }

    /// The timeout for connecting.
    pub const fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// The timeout for an answer.
    pub const fn response_timeout(&self) -> Duration {
        self.response_timeout
    }

    /// How many replicas must have a grant before it counts.
    pub const fn wait_replicas(&self) -> u32 {
        self.wait_replicas
    }

    /// The PEM file of the authorities to trust.
    pub fn authority(&self) -> Option<&std::path::Path> {
        self.authority.as_deref()
    }

    /// The number of hash tags that spread the names over the slots of a cluster.
    pub const fn cluster_tags(&self) -> u16 {
        self.cluster_tags
    }

    pub(crate) const fn prefix_text(&self) -> &Arc<str> {
        &self.prefix
    }

    pub(crate) const fn address(&self) -> &Address {
        &self.address
    }

    /// The longest time between two checks whether another server has become the primary.
    pub(crate) fn look_interval(&self) -> Duration {
        LOOKING.min(self.session_ttl / 3)
    }

    /// The longest wait for one answer: two such waits fit into the session's time.
    pub(crate) fn patience(&self) -> Duration {
        self.response_timeout.min(self.session_ttl / 2)
    }
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSettings")
            .field("server", &self.address)
            .field("database", &self.address.database())
            .field("prefix", &self.prefix)
            .field("label", &self.label)
            .field("session_ttl", &self.session_ttl)
            .field("restart_wait", &self.restart_wait())
            .field("release_without_notice", &self.release_without_notice)
            .field("tick_interval", &self.tick_interval)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("wait_replicas", &self.wait_replicas)
            .field("cluster_tags", &self.cluster_tags)
            .field("authority", &self.authority)
            .finish()
    }
}

impl FromStr for RedisSettings {
    type Err = InvalidRedisSettings;

    fn from_str(url: &str) -> Result<Self, InvalidRedisSettings> {
        Self::new(url)
    }
}

#[cfg(test)]
mod tests;
