//! Locking one file, for the backend and for the locks on a user's own files.
//!
//! | file | what |
//! |---|---|
//! | `error` | file system errors, by kind |
//! | `handle` | plain locks on any open file |
//! | `lock_file` | one lock file: opened, locked, checked to be still at its path, and unlocked |
//! | `contender` | attempts to lock a file, and a watch between them |

mod contender;
mod error;
mod handle;
mod lock_file;

pub use error::FsError;
pub(crate) use error::{BAD_NAME, FOREIGN, FORKED, NOT_A_FILE, TOO_MANY_WATCHES};
pub use handle::{LockKind, lock, try_lock, unlock};

pub(crate) use contender::Contender;
pub(crate) use lock_file::{Location, LockFile, says_gone};
