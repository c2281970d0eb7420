//! The file functions of portalocker: locks on a file that a user names or has open.
//!
//! | file | what |
//! |---|---|
//! | `file_mode` | how a file is opened |
//! | `spec` | what is locked, and how it is opened and closed |
//! | `acquisition` | one acquisition, as a backend for the engine |
//! | `owned` | the held files, which the guards contain |
//! | `forms` | the methods that all file locks and guards have |
//! | `file_lock`, `reentrant` | locks on a data file, which the guard gives access to |
//! | `open_handle` | locks on a file that is already open |
//! | `temporary` | a lock file that exists only while it is locked |
//! | `pid`, `pid_record` | one instance of a daemon, and its process id |
//! | `semaphore` | a limited number at once |
//! | `atomic`, `temp_file` | a file that appears completely or not at all |

mod acquisition;
mod atomic;
mod file_lock;
mod file_mode;
mod forms;
mod open_handle;
mod owned;
mod pid;
mod pid_record;
mod reentrant;
mod semaphore;
mod spec;
mod temp_file;
mod temporary;

pub use atomic::{AtomicError, AtomicFile, open_atomic};
pub use file_lock::{FileGuard, FileLock};
pub use file_mode::FileMode;
pub use open_handle::{blocking_lock_with, lock_with};
pub use pid::{PidFileGuard, PidFileLock, PidFileOutcome};
pub use pid_record::{PidHolder, PidState};
pub use reentrant::{ReentrantFileGuard, ReentrantFileLock};
pub use semaphore::{BoundedSemaphore, SlotGuard};
pub use temporary::{TemporaryFileLock, TemporaryGuard};
