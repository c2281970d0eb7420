//! Code for each operating system: each module has the same functions.
//!
//! | function | what |
//! |---|---|
//! | `flock` | the locks that every system has |
//! | `record`, `HAS_RECORD_LOCKS` | record locks over the whole file, where they belong to the open file |
//! | `lock_holder` | the holder of a file, if the system knows it |
//! | `set_open_flags` | `open` never blocks, and follows links only if requested; on Windows nobody can remove the open file |
//! | `set_lock_file_flags`, `set_read_flags` | the same for the backend's files, and for files that are only read |
//! | `let_group_write`, `apply_file_mode`, `permit_as` | permissions for other users, independent of the umask |
//! | `uninterrupted` | repeats a call that a signal interrupted |
//! | `patiently` | the same, and retries for a moment if another program has the file open |
//! | `look_at`, `look_for`, `look_along` | the identity of the file that a handle, a name in a directory, or a path leads to |
//! | `LOCKED_FILES_STAY`, `remove_lock_file`, `remove_file` | whether and how a lock file, or one beside it, is removed |
//! | `replace`, `publish` | moves a file to a name, with or without replacing an existing file |
//! | `rename_exclusive` | a rename that replaces nothing, where there is one |
//! | `sync`, `sync_directory` | makes content, or a rename, durable |
//! | `process_exists`, `process_life` | whether a process exists, and since when, to detect a reused pid |
//! | `Watcher`, `Registration`, `Watched`, `Change` | watching a directory |
//! | `is_remote` | whether a directory is on a network file system or FUSE |
//! | `read_at`, `write_at` | reading and writing without a cursor |
//! | `Origin` | distinguishes a forked child from its parent |
//! | `says`; `NO_HARD_LINKS`, `NO_LOCKS`, `IN_USE`, `TOO_MANY_FILES`, `WRONG_ACCESS`, `NOT_A_FILE` | error codes without an `io::ErrorKind` |

pub(crate) mod flock;
mod fork;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod not_linux;
mod positioned;
mod publish;
mod remote;
#[cfg(unix)]
mod unix;
mod watched;
#[cfg(windows)]
mod windows;

pub(crate) use fork::Origin;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::*;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use not_linux::*;
pub(crate) use positioned::{read_at, write_at};
pub(crate) use publish::publish;
pub(crate) use remote::is_remote;
pub(crate) use watched::{Change, Watched};

#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

/// Repeats a call that a signal with a handler interrupted, which is not a failure.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Removes a file, if the system can.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    patiently(|| std::fs::remove_file(path))
}

/// Removes a lock file, unless the next holder has opened it: then that holder removes it.
pub(crate) fn remove_lock_file(path: &Path) -> io::Result<()> {
    match remove_file(path) {
        Err(error) if says(&error, IN_USE) => Ok(()),
        done => done,
    }
}

/// Moves `from` to `to`, and replaces an existing file.
pub(crate) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    patiently(|| std::fs::rename(from, to))
}

/// The identity of a file, independent of its name: its device, and its number there.
pub(crate) type FileId = (u64, u64);

/// The properties of a file that matter for a lock file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) id: FileId,
    /// The number of its names (hard links).
    pub(crate) links: u64,
    pub(crate) is_file: bool,
}

/// The identity of a process among all with the same pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessLife {
    /// The id of the boot.
    pub(crate) boot: String,
    /// The namespace of its pid.
    pub(crate) namespace: String,
    /// When it started, in ticks since the boot.
    pub(crate) start: u64,
}

/// Whether record locks belong to the open file, like the other locks, and not to the process.
pub(crate) const HAS_RECORD_LOCKS: bool =
    cfg!(any(target_os = "linux", target_os = "android", windows));
