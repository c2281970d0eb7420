//! What portalocker has for files: locks on a file that a user names, or has open.
//!
//! | file | what |
//! |---|---|
//! | `file_mode` | how a file is opened |
//! | `spec` | what is locked, and how it is opened and left |
//! | `acquisition` | one acquisition, as the engine sees it |
//! | `owned` | what is held, which the guards wrap |
//! | `forms` | the methods that all locks on a file have, and all guards |
//! | `file_lock`, `reentrant` | a data file, locked and handed out |
//! | `open_handle` | a file that is open already |
//! | `temporary` | a file that is there only while it is locked |
//! | `pid`, `pid_record` | one instance of a daemon, and who it is |
//! | `semaphore` | so many at once |
//! | `atomic`, `temp_file` | a file that appears whole or not at all |

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
