//! Locks on one machine: OS file locks, and no server.
//!
//! [`FsBackend`] keeps each lock as a file in a directory of its own. A crashed process's locks are free at once, since
//! the operating system frees them; on Linux a waiter is woken by the release instead of polling for it; each grant has a
//! fencing token; and a lock file that is removed under its holder is noticed.
//!
//! ```
//! use portalock_core::Lock;
//! use portalock_fs::FsBackend;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let directory = dir.path().join("locks");
//! let lock = Lock::new(FsBackend::open(&directory)?, "nightly-build")?;
//! let guard = lock.acquire().await?;
//! // Nobody else on this machine builds now.
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # Where what is
//!
//! - `backend/` is [`FsBackend`]; its `mod.rs` tells the way that a request goes.
//! - `files/` is everything for a file that you name or have open: [`FileLock`], [`TemporaryFileLock`], [`PidFileLock`],
//!   [`BoundedSemaphore`], [`open_atomic`] and the rest of what portalocker has.
//! - Both stand on `locking/`: opening, locking, checking and freeing one file, plain [`lock`]s, and errors.
//! - `sys/` is what differs between operating systems.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod files;
mod locking;
mod sys;

pub use backend::{Calls, FsBackend, FsSettings, Watch};
pub use files::{
    AtomicError, AtomicFile, BoundedSemaphore, FileGuard, FileLock, FileMode, PidFileGuard,
    PidFileLock, PidFileOutcome, PidHolder, PidState, ReentrantFileGuard, ReentrantFileLock,
    SlotGuard, TemporaryFileLock, TemporaryGuard, blocking_lock_with, lock_with, open_atomic,
};
pub use locking::{FsError, FsErrorKind, LockKind, lock, try_lock, unlock};
pub use portalock_core::Mode;
