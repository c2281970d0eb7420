//! Locks and semaphores on etcd for [portalock](portalock_core): first come, first served, with fencing tokens, and released
//! when their client is gone.
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
//! It needs a tokio runtime with I/O and time: `Builder::enable_all`, as `#[tokio::main]` has it. In a program without async use
//! [`blocking`](portalock_core::blocking), which needs no runtime.
//!
//! # How it works
//!
//! A backend has one lease at etcd, its *session*, which it renews on the library's own thread. A request for a lock is one
//! transaction: it puts a key with that lease into the name's queue, and counts the other keys there. If there are none, the
//! lock is granted, in one round trip. Otherwise the client reads the queue and watches the key ahead of its own. When that
//! key is deleted, the client checks that its own key still exists, and then holds the lock. The order of the queue is the
//! order in which etcd created the keys, and a key's create revision is the fencing token. A release deletes the key, and
//! the session uses the same key for a later request. If the process dies, etcd deletes all its keys when the lease ends.
//!
//! A shared lock only waits for the exclusive ones ahead of it. A request for permits waits until those ahead of it leave
//! enough permits. [`EtcdSettings`] has the options. With a [`Fence`], a write to the same etcd depends on the lock.
//!
//! # What it takes
//!
//! etcd 3.4 or later. To build this crate you need `protoc`, because the etcd client compiles its protocol (Debian and
//! Ubuntu: `apt-get install protobuf-compiler`). The feature `tls` adds connections over TLS, by rustls.

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

/// The etcd client that this crate uses. [`Fence::compare`] returns a condition for a transaction of this version.
pub use etcd_client;
