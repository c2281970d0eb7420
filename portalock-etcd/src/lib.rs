//! Locks and semaphores on etcd, for [`portalock_core`]: first come, first served, fenced, gone with their client.
//!
//! ```no_run
//! use portalock_core::Lock;
//! use portalock_etcd::EtcdBackend;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let backend = EtcdBackend::connect("etcd-1:2379,etcd-2:2379,etcd-3:2379").await?;
//! let guard = Lock::new(backend, "nightly-report")?.acquire().await?;
//! println!("mine, by token {:?}", guard.token());
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # How it works
//!
//! A backend has one lease at etcd, its *session*, renewed on the library's own thread. A request for a lock is one
//! transaction: it puts a key under that lease into the name's queue and counts who is there. If nobody else is, the lock is
//! granted, in one round trip. Otherwise the request reads the queue and watches the key ahead of it. When that key is
//! deleted, it checks that its own key is still there, and holds. The order of the queue is the order in which etcd created
//! the keys; a key's create revision is the fencing token. A release deletes the key, and the session may use it again. If
//! the process dies, etcd deletes all its keys when the lease ends.
//!
//! Shared locks wait for the exclusive ones before them only, semaphores for enough permits of those before them; see
//! [`EtcdSettings`] for what can be set and [`Fence`] for making writes to the same etcd depend on a lock.
//!
//! # What it takes
//!
//! etcd 3.4 or later. Building needs `protoc`, with which the etcd client compiles its protocol (Debian and Ubuntu:
//! `apt-get install protobuf-compiler`). The feature `tls` adds connections over TLS, by rustls.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod begin;
mod blockers;
mod breaking;
mod client;
mod config;
mod endpoints;
mod error;
mod fence;
mod inspect;
mod keys;
mod look;
mod numbers;
mod observe;
mod place;
mod queue;
mod record;
mod semaphore;
mod session;
mod stream;
mod tls;
mod url;
mod watch;
mod witness;

pub use backend::EtcdBackend;
pub use config::{EtcdSettings, EtcdTls};
pub use fence::Fence;

/// The client that this crate speaks to etcd with: what [`Fence::compare`] goes into is a transaction of this version's.
pub use etcd_client;
