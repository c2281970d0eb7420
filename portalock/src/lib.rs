//! One locking API over files on one machine, Redis, etcd or Postgres across machines, or a store of your own.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let address = format!("fs:{}", directory.path().display());
//! // such as "fs:/run/lock/billing", "redis://cache.example/3", "etcd://etcd-1,etcd-2"
//! let lock = portalock::open(&address).await?.lock("nightly-report")?;
//! let guard = lock.acquire().await?; // waits 5 s by default; the error names the holder
//! guard.run(async { /* your work: stopped if the lock is lost */ }).await?;
//! guard.release().await?; // or drop it
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//!
//! Use it to keep *processes* apart: cron jobs on several hosts, migrations, one worker per customer, one leader. For tasks and
//! threads of one process use [`tokio::sync`](https://docs.rs/tokio/latest/tokio/sync) or [`std::sync`], which cost nanoseconds.
//! A lock service can't stop a holder that stands still beyond its lease. If that must do no harm, give the [fencing
//! token](Guard::token) to what the holder writes to.
//!
//! # The three ways to a backend
//!
//! | | |
//! |---|---|
//! | by a type | `Lock::new(fs::FsBackend::open(directory)?, name)`: the functions you write are generic over [`LockBackend`] |
//! | by an address | [`open`]: the table below |
//! | by a key in a configuration file | [`Config`]: the place for a password, which does not belong on a command line |
//!
//! Everything of `portalock-core` is here at the root: [`Lock`], [`Pool`] (semaphores), [`LockSet`], [`ReentrantLock`],
//! [`Election`], and all of it without async in [`blocking`]. [`LockBackend`] is the trait for a backend of your own.
//!
//! # Addresses
//!
//! | address | backend | feature |
//! |---|---|---|
//! | `fs:DIR`, `fs:///DIR` | lock files in a directory, which is made if it isn't there | `fs` (default) |
//! | `redis://[user:password@]host[:port][/database]` | a Redis or Valkey server | `redis` |
//! | `redis+sentinel://[user:password@]host[:port][,host...]/master-name[/database]` | the Redis primary that these sentinels name | `redis` |
//! | `redis+cluster://[user:password@]host[:port][,host...]` | the Redis cluster of these nodes | `redis` |
//! | `rediss://...`, `rediss+sentinel://...`, `rediss+cluster://...` | the same over TLS | `redis` and `tls` |
//! | `unix:///path/to/socket[?db=3]` | a Redis or Valkey server on this host | `redis` |
//! | `etcd://[user:password@]host[:port][,host...][/prefix]` | an etcd cluster | `etcd` |
//! | `etcds://...` | the same over TLS | `etcd` and `tls` |
//! | `postgres://[user[:password]@]host[:port]/database` | a PostgreSQL database, over TLS if built with `tls` and asked for | `postgres` |
//! | `memory:` | a new store in this process, for tests | always there |
//!
//! `fs:` alone is [a directory of the user's own](default_directory). [`open`] refuses a scheme whose feature is not enabled,
//! and names the feature.
//!
//! # When things fail
//!
//! [`LockError`] tells contention, loss, misuse and failures of the service apart. A server that is down never reads as
//! "locked". A lost lock fires [`Guard::lost`]; each backend's [`Capabilities`] say whether that comes before another can hold it.
//! The repository's `docs/guarantees.md` lists every fault and what it does.
//!
//! # Features
//!
//! | feature | what it adds | what building it needs |
//! |---|---|---|
//! | `fs` (default) | `fs`: OS file locks, and what Python's portalocker has for files | Rust |
//! | `redis` | `redis`: locks and semaphores on Redis and Valkey | Rust |
//! | `etcd` | `etcd`: locks and semaphores on etcd, and `Fence` for your own transactions | `protoc` |
//! | `postgres` | `postgres`: locks and semaphores on PostgreSQL, and `Fence` for your own transactions | Rust |
//! | `tls` | TLS by rustls, for the servers among the features | a C compiler |
//! | `metrics` | waits, holds and losses for the `metrics` facade | Rust |
//! | `testkit` | `testkit`: the conformance suite for a backend of your own | Rust |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod open;

#[doc(inline)]
pub use portalock_core::*;

#[cfg(feature = "etcd")]
#[doc(inline)]
pub use portalock_etcd as etcd;
#[cfg(feature = "fs")]
#[doc(inline)]
pub use portalock_fs as fs;
#[cfg(feature = "postgres")]
#[doc(inline)]
pub use portalock_postgres as postgres;
#[cfg(feature = "redis")]
#[doc(inline)]
pub use portalock_redis as redis;
#[cfg(feature = "testkit")]
#[doc(inline)]
pub use portalock_testkit as testkit;

pub use open::{AnyBackend, Config, OpenError, Scheme, default_directory, migrate, open};
