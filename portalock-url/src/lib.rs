//! Any portalock backend, chosen at run time: from a URL, or by its key in a TOML file.
//!
//! A program that is generic over [`LockBackend`](portalock_core::LockBackend) chooses its backend when it is compiled.
//! This crate is for the others: command line tools, and services whose configuration says where their locks live.
//!
//! ```
//! use portalock_core::{Lock, Pool};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let address = format!("fs:{}", directory.path().display());
//! // such as "fs:/run/lock/billing", "redis://cache.example/3", "etcd://etcd-1,etcd-2"
//! let backend = portalock_url::open(&address).await?;
//!
//! let guard = Lock::new(backend.locks.clone(), "invoices")?.acquire().await?;
//! let permit = Pool::new(backend.semaphores.clone(), "workers", 3)?.acquire(1).await?;
//! # drop((guard, permit));
//! # Ok(()) }
//! ```
//!
//! # Addresses
//!
//! | address | backend | feature |
//! |---|---|---|
//! | `fs:DIR`, `fs:///DIR` | lock files in a directory, which is made if it isn't there | `fs` (default) |
//! | `redis://[user:password@]host[:port][/database]` | a Redis or Valkey server | `redis` |
//! | `rediss://...` | the same over TLS | `redis` and `tls` |
//! | `unix:///path/to/socket[?db=3]` | a Redis or Valkey server on this host | `redis` |
//! | `etcd://[user:password@]host[:port][,host...][/prefix]` | an etcd cluster | `etcd` |
//! | `etcds://...` | the same over TLS | `etcd` and `tls` |
//! | `memory:` | a new store in this process, for tests | always there |
//!
//! `fs:` alone is [a directory of the user's own](default_directory). A scheme whose feature is not enabled is refused
//! with an error that says so. etcd's client is built with `protoc`, and TLS with a C
//! compiler; nothing else here needs more than Rust.
//!
//! # Configuration files
//!
//! [`Config`] reads a TOML file with backends by key, each a URL or a table with all the backend's settings. It is the
//! place for a password, which does not belong on a command line where other users see it.

mod any;
mod config;
mod directory;
mod error;
mod memory;
mod open;
mod scheme;

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "fs")]
mod fs;
#[cfg(feature = "redis")]
mod redis;

pub use any::AnyBackend;
pub use config::Config;
pub use directory::default_directory;
pub use error::OpenError;
pub use open::open;
pub use scheme::Scheme;
