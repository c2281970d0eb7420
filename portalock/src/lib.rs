//! Locks between processes, with one API: OS file locks on one machine, Redis, etcd or Postgres across machines, or a
//! backend of your own.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let address = format!("fs:{}", directory.path().display());
//! // for example "fs:/run/lock/billing", "redis://cache.example/3", "etcd://etcd-1,etcd-2"
//! let lock = portalock::open(&address).await?.lock("nightly-report")?;
//! let guard = lock.acquire().await?; // waits 5 s by default; the error names the holder
//! guard.run(async { /* your work: stopped if the lock is lost */ }).await?;
//! guard.release().await?; // or drop it, and call `shutdown` at the end
//! # Ok(()) }
//! ```
//!
//! The backends on servers need a tokio runtime with I/O and time: `Builder::enable_all`, as `#[tokio::main]` has it. In a program
//! without async use [`blocking`], which needs no runtime.
//!
//! # When to use it, and when not
//!
//! Use it to run one of several *processes* at a time: cron jobs on several hosts, migrations, one worker per customer, one
//! leader. For tasks and threads of one process use [`tokio::sync`](https://docs.rs/tokio/latest/tokio/sync) or
//! [`std::sync`], which take nanoseconds. To lock a file and block without a deadline, [`std::fs::File::lock`] is enough.
//!
//! No lock can stop a holder that is paused for longer than its lease and then continues to write. If such a write would do harm,
//! send the [fencing token](Guard::token) with each write, so that the resource can refuse it.
//!
//! # The common operations
//!
//! ```
//! use std::time::Duration;
//! use portalock::{Lock, LockSet, MemoryBackend, Policy, Pool, shutdown};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let backend = MemoryBackend::new(); // or any other backend
//! let lock = Lock::new(backend.clone(), "report")?.with_policy(Policy::new().with_timeout(Duration::from_secs(30)));
//!
//! // Try, and don't wait.
//! match lock.try_acquire().await {
//!     Ok(guard) => drop(guard),
//!     Err(error) if error.is_contention() => println!("{error}"), // names the holder
//!     Err(error) => return Err(error.into()),
//! }
//!
//! // Share a lock between readers; a writer excludes them.
//! let readers = [lock.acquire_shared().await?, lock.acquire_shared().await?];
//! drop(readers);
//!
//! // Lock several names, all or none, without deadlocks.
//! let both = LockSet::new(backend.clone(), ["alice", "bob"])?.acquire().await?;
//! both.release().await?;
//!
//! // At most three at once.
//! let permit = Pool::new(backend.clone(), "workers", 3)?.acquire(1).await?;
//! permit.release().await?;
//!
//! // At the end of the program: wait for releases in the background.
//! shutdown(Duration::from_secs(5)).await?;
//! # Ok(()) }
//! ```
//!
//! For leader election see [`Election`], for synchronous programs [`blocking`].
//!
//! # Choosing a backend
//!
//! | | |
//! |---|---|
//! | by a type | `Lock::new(fs::FsBackend::open(directory)?, name)`; your functions can be generic over [`LockBackend`] |
//! | by an address | [`open`]: see the table below |
//! | by a key in a configuration file | [`Config`]; use it for passwords, which other users could read on a command line |
//!
//! All items of `portalock-core` are at the root of this crate: [`Lock`], [`Pool`] (semaphores), [`LockSet`], [`ReentrantLock`],
//! [`Election`]. The module [`blocking`] has all of them without async. [`LockBackend`] is the trait for a backend of your own.
//!
//! # Addresses
//!
//! | address | backend | feature |
//! |---|---|---|
//! | `fs:DIR`, `fs:///DIR` | lock files in a directory, which is created if it doesn't exist | `fs` (default) |
//! | `redis://[user:password@]host[:port][/database]` | a Redis or Valkey server | `redis` |
//! | `redis+sentinel://[user:password@]host[:port][,host...]/master-name[/database]` | the Redis primary that these sentinels name | `redis` |
//! | `redis+cluster://[user:password@]host[:port][,host...]` | the Redis cluster of these nodes | `redis` |
//! | `rediss://...`, `rediss+sentinel://...`, `rediss+cluster://...` | the same over TLS | `redis` and `tls` |
//! | `unix:///path/to/socket[?db=3]` | a Redis or Valkey server on this host | `redis` |
//! | `etcd://[user:password@]host[:port][,host...][/prefix]` | an etcd cluster | `etcd` |
//! | `etcds://...` | the same over TLS | `etcd` and `tls` |
//! | `postgres://[user[:password]@]host[:port]/database` | a PostgreSQL database; over TLS if the feature `tls` is enabled and `sslmode` asks for it | `postgres` |
//! | `memory:` | a new store in this process, for tests | always there |
//!
//! `fs:` alone is [a default directory](default_directory) for the user. If the feature of a scheme is not enabled, [`open`] fails and
//! names the feature.
//!
//! # When things fail
//!
//! [`LockError`] has separate variants for contention, loss, misuse and failures of the service. A server that is down never reads as
//! "locked". If a lock is lost, [`Guard::lost`] fires. [`Capabilities`] say whether this happens before another process can
//! get the lock. The repository's `docs/guarantees.md` lists every fault and its effect.
//!
//! # How a call waits
//!
//! A [`Policy`] has the options of a call:
//!
//! | option | default | what it sets |
//! |---|---|---|
//! | `timeout` | 5 s | when a call gives up; [`Policy::forever`] waits without end |
//! | `fail_when_locked` | `false` | fail at once if the lock is held |
//! | `check_interval` | 250 ms | the longest pause between two attempts; most backends wake a waiter sooner |
//! | `max_failures` | 5 | how many failures of the service in a row are retried, about a second; longer with a place in a queue |
//!
//! # Features
//!
//! | feature | what it adds | what building it needs |
//! |---|---|---|
//! | `fs` (default) | `fs`: OS file locks, and everything that Python's portalocker has for files | Rust |
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
