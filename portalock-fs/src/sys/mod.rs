//! What differs between operating systems, behind one face: each module gives the same functions.
//!
//! | function | what |
//! |---|---|
//! | `flock` | the locks that every system has |
//! | `record`, `HAS_RECORD_LOCKS` | record locks over the whole file, where they belong to the open file |
//! | `lock_holder` | who holds a file, where the system tells |
//! | `set_open_flags` | never hangs in `open`, follows links only if asked; nobody removes an open file where that can be had |
//! | `set_lock_file_flags`, `set_read_flags` | the same for the backend's files, and for those that are only read |
//! | `let_group_write`, `apply_file_mode`, `permit_as` | permissions for other users, whatever the umask says |
//! | `patiently` | again for a moment, where somebody's open file is in the way |
//! | `look_at`, `look_for`, `look_along` | which file a handle, a name in a directory or a path leads to |
//! | `LOCKED_FILES_STAY`, `remove_lock_file`, `remove_file` | whether and how a lock file, or one beside it, is removed |
//! | `replace`, `publish` | moves a file to a name, over what is there or only if it is free |
//! | `rename_exclusive` | a rename that replaces nothing, where there is one |
//! | `sync`, `sync_directory` | makes content, or a rename, last |
//! | `process_exists`, `process_life` | whether a process is there, and since when: tells a pid from a re-used one |
//! | `Watcher`, `Registration`, `Watched`, `Change` | being told of changes in a directory |
//! | `is_remote` | whether a directory's file system answers from elsewhere |
//! | `read_at`, `write_at` | reading and writing without a cursor |
//! | `Origin` | telling a forked child from its parent |
//! | `says`; `NO_HARD_LINKS`, `NO_LOCKS`, `IN_USE`, `TOO_MANY_FILES`, `WRONG_ACCESS`, `NOT_A_FILE` | codes that `io::ErrorKind` has no word for |

pub(crate) mod flock;
mod fork;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod inotify;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod no_proc;
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
pub(crate) mod no_record;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod no_watch;
mod positioned;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod proc;
mod publish;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) mod record;
mod remote;
#[cfg(unix)]
mod unix;
mod watched;
#[cfg(windows)]
mod windows;

#[cfg(windows)]
pub(crate) use flock as record;
pub(crate) use fork::Origin;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use inotify::{Registration, Watcher};
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use no_proc::{lock_holder, process_life};
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
pub(crate) use no_record as record;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use no_watch::{Registration, Watcher};
pub(crate) use positioned::{read_at, write_at};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use proc::{lock_holder, process_life};
pub(crate) use publish::publish;
pub(crate) use remote::is_remote;
pub(crate) use watched::{Change, Watched};

#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

/// Removes a file, if the system can.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    patiently(|| std::fs::remove_file(path))
}

/// Removes a lock file, unless the next holder has it: then that one will.
pub(crate) fn remove_lock_file(path: &Path) -> io::Result<()> {
    match remove_file(path) {
        Err(error) if says(&error, IN_USE) => Ok(()),
        done => done,
    }
}

/// Moves `from` to `to`, over what may stand there.
pub(crate) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    patiently(|| std::fs::rename(from, to))
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// What a file is, as far as a lock file must know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) id: FileId,
    /// How many names it has.
    pub(crate) links: u64,
    pub(crate) is_file: bool,
}

/// What tells one life of a pid from the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessLife {
    /// The boot that it lives in.
    pub(crate) boot: String,
    /// The namespace that its pid is counted in.
    pub(crate) namespace: String,
    /// When it started, in ticks since the boot.
    pub(crate) start: u64,
}

/// Whether there are record locks that belong to the open file, as the other locks do, and not to the process.
pub(crate) const HAS_RECORD_LOCKS: bool =
    cfg!(any(target_os = "linux", target_os = "android", windows));
