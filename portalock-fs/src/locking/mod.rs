//! Locking one file: what the backend and the locks on a user's own files share.
//!
//! | file | what |
//! |---|---|
//! | `error` | what a file system refuses, by kind |
//! | `handle` | plain locks on any open handle |
//! | `lock_file` | one lock file: opened, locked, checked to be still at its place, and freed |
//! | `contender` | one who wants it |
//! | `watch` | being told that a file was closed, or changed |

mod contender;
mod error;
mod handle;
mod lock_file;
mod watch;

pub use error::{FsError, FsErrorKind};
pub use handle::{LockKind, lock, try_lock, unlock};

pub(crate) use contender::Contender;
pub(crate) use lock_file::{Location, LockFile, says_gone};
pub(crate) use watch::{DirectoryWatch, Line};
