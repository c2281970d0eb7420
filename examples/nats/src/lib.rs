//! A networked lock backend in 600 lines: the key-value store of NATS, on [`portalock_core::session`].
//!
//! `docs/writing-a-backend.md` explains it. The store has no locks, leases or queues. It has one operation that is
//! enough to build them: an update that fails if the key has changed since it was read.
//!
//! - **A lock is one key** (`state.rs`): its holders, its waiters in order, and the last token, as JSON. An attempt and
//!   a release are one read and one conditional update each. If the key has changed meanwhile, they start again.
//! - **A session is one key** (`session.rs`), in a bucket whose entries expire. It is renewed by conditional updates,
//!   so an expired session can't come back.
//! - **Grants arrive** over a watch on the bucket of locks: the update that frees a lock contains the next holder.
//! - **A late request fails**: if a request got no answer, its release updates the key, which changes the revision.
//!
//! # What it costs
//!
//! Each client receives every change of every lock, each change rewrites the queue, and many clients on one name make
//! each other's updates fail. It suits tens of clients that wait for a lock, not thousands.
//!
//! # What the server must keep
//!
//! NATS writes streams to disk and, by default, syncs every two minutes. A crash of the server process loses nothing. A
//! crash of the machine may lose grants and tokens, unless `sync_interval: always` is set or the stream has replicas.

mod backend;
mod server;
mod session;
mod state;

pub use backend::{NatsBackend, NatsSettings};
