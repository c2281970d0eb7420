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

mod acquire;
mod acquisition;
mod atomic;
mod backend;
mod config;
mod error;
mod file_lock;
mod file_mode;
mod grant;
mod handle;
mod inspect;
mod lock_file;
mod name;
mod open_handle;
mod owned;
mod pid;
mod pid_record;
mod queue;
mod record;
mod reentrant;
mod release;
mod semaphore;
mod spec;
mod store;
mod sys;
mod temp_file;
mod temporary;
mod watch;

pub use atomic::{AtomicError, AtomicFile, open_atomic};
pub use backend::FsBackend;
pub use config::{Calls, FsSettings, Watch};
pub use error::{FsError, FsErrorKind};
pub use file_lock::{FileGuard, FileLock};
pub use file_mode::{FileMode, InvalidFileMode};
pub use handle::{LockKind, lock, try_lock, unlock};
pub use open_handle::{blocking_lock_with, lock_with};
pub use pid::{PidFileGuard, PidFileLock, PidFileOutcome};
pub use pid_record::{PidHolder, PidState};
pub use portalock_core::Mode;
pub use reentrant::{ReentrantFileGuard, ReentrantFileLock};
pub use semaphore::{BoundedSemaphore, SlotGuard};
pub use temporary::{TemporaryFileLock, TemporaryGuard};
