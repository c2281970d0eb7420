//! A networked lock backend in 600 lines: the key-value store of NATS, on [`portalock_core::session`].
//!
//! `docs/writing-a-backend.md` tells how it came about. The store has no locks, no leases and no queues. It has one thing that
//! all of that can be made of: an update that fails if the key was changed since it was read.
//!
//! - **A lock is one key** (`state.rs`): its holders, those who wait in order, and the last token, as JSON. An attempt and a release
//!   are each one read and one conditional update; whoever is overtaken reads again.
//! - **A session is one key** (`session.rs`), in a bucket whose entries expire. It is renewed by conditional updates, so a session
//!   that has expired can't come back.
//! - **A grant is heard** by watching the bucket of locks: the update that frees a lock names the next holder.
//! - **A request that is late** is void: a release of one without an answer updates the key, and so changes its revision.
//!
//! # What it costs
//!
//! Each client hears of every change of every lock, each change rewrites the queue, and many clients at one name update in each
//! other's way. It suits tens of clients that wait for a lock, not thousands.
//!
//! # What the server must keep
//!
//! NATS writes streams to disk and, by default, syncs every two minutes. A server process may die at any time; a machine that loses
//! its memory may lose grants and tokens, unless `sync_interval: always` is set or the stream has replicas.

mod backend;
mod server;
mod session;
mod state;

pub use backend::{NatsBackend, NatsSettings};
