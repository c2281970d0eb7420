//! OS file locks between the processes of one machine, without a server.
//!
//! [`FsBackend`] keeps each lock as a file in one directory. When a process dies, the operating system frees its locks at once.
//! On Linux a release wakes the waiters, so they don't poll. Each grant has a fencing token.
//!
//! ```
//! use portalock_core::Lock;
//! use portalock_fs::FsBackend;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let directory = dir.path().join("locks");
//! let lock = Lock::new(FsBackend::open(&directory)?, "nightly-build")?;
//! let guard = lock.acquire().await?;
//! // No other process on this machine builds now.
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # When to use it, and when not
//!
//! Use it between processes of one host. Between hosts use a backend with a server: a lock on a network file system is only as
//! reliable as the file system. To lock a file and block without a deadline, [`std::fs::File::lock`] is enough. On Unix the
//! locks are advisory: a program that doesn't lock can still read and write.
//!
//! # When things fail
//!
//! The kernel frees a crashed holder's lock at once. If a lock file is deleted or replaced, its holder loses the lock; on Linux it
//! is told within a second. A file system without locks, a read-only or full disk, and missing permissions are errors of their
//! own [kind](portalock_core::BackendErrorKind), never "locked". `docs/guarantees.md` lists every fault.
//!
//! # Options
//!
//! [`FsSettings`] has the options of [`FsBackend`]:
//!
//! | option | default | what it sets |
//! |---|---|---|
//! | `directory` | none | where the lock files are; it is created if it does not exist |
//! | `lock` | [`LockKind::Flock`] | the kind of lock; all programs that share the directory must use the same |
//! | `watch` | [`Watch::Auto`] | whether a release wakes waiters; otherwise they poll |
//! | `poll_interval` | 50 ms | the longest pause of a waiter that polls |
//! | `calls` | [`Calls::Auto`] | whether file system calls run on the calling thread or on threads for blocking calls |
//! | `file_mode` | `600` | the Unix permissions of new lock files |
//! | `label` | none | what errors of other processes say about this one |
//!
//! # Modules
//!
//! - `backend/`: [`FsBackend`]. Its `mod.rs` describes the path of a request.
//! - `files/`: locks on a file that you name or have open: [`FileLock`], [`TemporaryFileLock`], [`PidFileLock`],
//!   [`BoundedSemaphore`], [`open_atomic`] and the other functions of portalocker.
//! - `locking/`: what both use: opening, locking, checking and freeing one file, plain [`lock`]s, and errors.
//! - `sys/`: code for each operating system.

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
pub use locking::{FsError, LockKind, lock, try_lock, unlock};
pub use portalock_core::Mode;
