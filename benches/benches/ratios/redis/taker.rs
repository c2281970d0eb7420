//! Those who are compared on Redis: each connects, and takes and gives back one lock.

use std::{
    fmt,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use distkit::{
    DistkitRedisKey,
    lock::{LockOptions, Mutex},
};
use distributed_lock_core::{DistributedLock, LockHandle, LockProvider, error::LockError};
use distributed_lock_redis::{RedisDistributedLock, RedisLockProvider};
use portalock_benches::Failure;
use portalock_core::{Lock, Policy};
use portalock_redis::{RedisBackend, RedisSettings};
use redis::{
    Client as RedisClient, Value,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};
use rslock::LockManager;
use tokio::task::yield_now;

use super::bare;
use crate::locks::{Exclusive, Observed};

/// Who is compared, and with which settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Set,
    Token,
    Portalock,
    WithoutNotice,
    Rslock,
    EagerRslock,
    Distkit,
    EagerDistkit,
    TryDistkit,
    DistributedLock,
}

impl Kind {
    const ALL: [(Self, &str); 10] = [
        (Self::Set, "floor: `SET NX PX` and compare-and-delete"),
        (Self::Token, "floor: a token by `BLPOP` and `RPUSH`"),
        (Self::Portalock, "portalock"),
        (Self::WithoutNotice, "portalock, release_without_notice"),
        (Self::Rslock, "rslock"),
        (Self::EagerRslock, "rslock, eager"),
        (Self::Distkit, "distkit"),
        (Self::EagerDistkit, "distkit, eager"),
        (Self::TryDistkit, "distkit, `try_lock`"),
        (Self::DistributedLock, "distributed-lock-redis"),
    ];

    /// The published crates. Their settings don't matter where nobody waits.
    pub(crate) const PEERS: [Self; 3] = [Self::Rslock, Self::Distkit, Self::DistributedLock];

    /// Those that wait by trying again, with the settings that they have and with the best ones.
    pub(crate) const POLLERS: [Self; 5] = [
        Self::Rslock,
        Self::EagerRslock,
        Self::Distkit,
        Self::EagerDistkit,
        Self::DistributedLock,
    ];

    /// How long it may be until its next try.
    fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Self::Rslock => 200,
            Self::Distkit => 50,
            _ => 5,
        })
    }

    /// How long a killed holder's lock stays held at most.
    pub(crate) fn time_to_live(self) -> Duration {
        match self {
            // A session's time, and one look of the last waiter.
            Self::Portalock => Duration::from_millis(4200),
            Self::WithoutNotice => Duration::from_millis(150),
            // It has no default. Its README's examples say so.
            Self::Rslock | Self::EagerRslock => Duration::from_secs(1),
            _ => Duration::from_secs(30),
        }
    }

    /// A client with a connection of its own.
    pub(crate) async fn connect(self, url: &str) -> Result<Client, Failure> {
        let link = match self {
            Self::Set => {
                let mut connection = bare::connection(url).await?;
                let delete = bare::load(&mut connection, COMPARE_AND_DELETE).await?;
                Link::Set(connection, delete)
            }
            Self::Token => Link::Token(bare::connection(url).await?),
            Self::Portalock | Self::WithoutNotice => {
                let without_notice = self == Self::WithoutNotice;
                let settings = RedisSettings::new(url)?.with_release_without_notice(without_notice);
                Link::Portalock(RedisBackend::with_settings(settings).await?)
            }
            Self::Rslock | Self::EagerRslock => {
                let mut manager = LockManager::new(vec![url]);
                if self == Self::EagerRslock {
                    // Each pause is a random number of whole milliseconds below that.
                    manager.set_retry(u32::MAX, self.pause());
                }
                Link::Rslock(manager)
            }
            Self::Distkit | Self::EagerDistkit | Self::TryDistkit => {
                // As long as it takes: when 64 try again and again, a busy machine doesn't always answer in time.
                let config = ConnectionManagerConfig::new().set_response_timeout(None);
                let client = RedisClient::open(url)?;
                Link::Distkit(client.get_connection_manager_with_config(config).await?)
            }
            Self::DistributedLock => Link::DistributedLock(RedisLockProvider::new(url).await?),
        };
        Ok(Client { kind: self, link })
    }

    /// A lock of this name, over a connection of its own.
    pub(crate) async fn lock(self, url: &str, name: &str) -> Result<Taker, Failure> {
        self.connect(url).await?.lock(name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Kind {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let kind = Self::ALL.iter().find(|(_, name)| *name == text);
        kind.map(|(kind, _)| *kind)
            .ok_or_else(|| format!("no kind is called {text:?}").into())
    }
}

/// A connection, over which there can be many locks.
pub(crate) struct Client {
    kind: Kind,
    link: Link,
}

enum Link {
    Set(MultiplexedConnection, String),
    Token(MultiplexedConnection),
    Portalock(RedisBackend),
    Rslock(LockManager),
    Distkit(ConnectionManager),
    DistributedLock(RedisLockProvider),
}

impl Client {
    pub(crate) fn lock(&self, name: &str) -> Result<Taker, Failure> {
        let name = name.to_owned();
        let lock = match &self.link {
            Link::Set(connection, delete) => {
                Contended::Set(connection.clone(), delete.clone(), name)
            }
            Link::Token(connection) => Contended::Token(connection.clone(), name),
            Link::Portalock(backend) => Contended::Portalock(
                Lock::new(backend.clone(), name)?.with_policy(Policy::forever()),
            ),
            Link::Rslock(manager) => Contended::Rslock(manager.clone(), format!("rslock/{name}")),
            Link::Distkit(connection) => {
                let key = DistkitRedisKey::try_from(name)?;
                let mut options = LockOptions::new(key, connection.clone());
                options.retry_interval = self.kind.pause();
                Contended::Distkit(Mutex::new(options))
            }
            Link::DistributedLock(provider) => {
                Contended::DistributedLock(Arc::new(provider.create_lock(&name)))
            }
        };
        Ok(Taker {
            kind: self.kind,
            lock,
        })
    }
}

/// One of them, ready to take its lock.
#[derive(Clone)]
pub(crate) struct Taker {
    kind: Kind,
    lock: Contended,
}

#[derive(Clone)]
enum Contended {
    Set(MultiplexedConnection, String, String),
    Token(MultiplexedConnection, String),
    Portalock(Lock<RedisBackend>),
    Rslock(LockManager, String),
    Distkit(Arc<Mutex>),
    DistributedLock(Arc<RedisDistributedLock>),
}

const COMPARE_AND_DELETE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// What gives a lock back.
pub(crate) type Release = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

impl Exclusive for Taker {
    type Held = Release;

    async fn take(&self) -> Result<Release, Failure> {
        Ok(match &self.lock {
            Contended::Set(connection, delete, key) => {
                let (mut connection, delete, key) =
                    (connection.clone(), delete.clone(), key.clone());
                let owner = fastrand::u64(..);
                let _: Value = redis::cmd("SET")
                    .arg(&key)
                    .arg(owner)
                    .arg("NX")
                    .arg("PX")
                    .arg(30_000)
                    .query_async(&mut connection)
                    .await?;
                Box::pin(async move {
                    let mut command = redis::cmd("EVALSHA");
                    command.arg(delete).arg(1).arg(key).arg(owner);
                    let _: Value = command.query_async(&mut connection).await?;
                    Ok(())
                })
            }
            Contended::Token(connection, key) => {
                let (mut connection, key) = (connection.clone(), key.clone());
                let mut command = redis::cmd("BLPOP");
                command.arg(&key).arg(0);
                let _: Value = command.query_async(&mut connection).await?;
                Box::pin(async move { push(&mut connection, &key).await })
            }
            Contended::Portalock(lock) => {
                let guard = lock.acquire().await?;
                Box::pin(async move { Ok(guard.release().await?) })
            }
            Contended::Rslock(manager, key) => {
                let guard = manager
                    .acquire(key.as_str(), self.kind.time_to_live())
                    .await?;
                Box::pin(async move {
                    guard.release().await;
                    Ok(())
                })
            }
            Contended::Distkit(mutex) => {
                let guard = match self.kind {
                    Kind::TryDistkit => mutex.try_lock().await?,
                    _ => mutex.lock().await?,
                };
                Box::pin(async move {
                    guard.release().await?;
                    Ok(())
                })
            }
            Contended::DistributedLock(lock) => {
                let handle = loop {
                    match lock.acquire(None).await {
                        // It doesn't wait for a holder, whatever its timeout.
                        Err(LockError::Timeout(_)) => tokio::time::sleep(self.kind.pause()).await,
                        answer => break answer?,
                    }
                };
                Box::pin(async move { Ok(handle.release().await?) })
            }
        })
    }

    async fn give(held: Release) -> Result<(), Failure> {
        held.await
    }
}

impl Observed for Taker {
    async fn waited_for(&self) -> Result<(), Failure> {
        if let Contended::Portalock(lock) = &self.lock {
            return lock.waited_for().await;
        }
        // No peer says who waits: until the first try has failed, and then any moment before the next one. A timer would
        // end together with the peer's.
        let phase = self.kind.pause().mul_f64(fastrand::f64());
        let moment = Instant::now() + Duration::from_millis(2) + phase;
        while Instant::now() < moment {
            yield_now().await;
        }
        Ok(())
    }
}

/// Puts the token back, or there for the first time.
pub(crate) async fn push(connection: &mut MultiplexedConnection, key: &str) -> Result<(), Failure> {
    let mut command = redis::cmd("RPUSH");
    command.arg(key).arg("token");
    let _: Value = command.query_async(connection).await?;
    Ok(())
}
