//! What differs between operating systems, behind one face: each module gives the same functions.
//!
//! | function | what |
//! |---|---|
//! | `lock_record`, `try_lock_record`, `unlock_record` | record locks over the whole file, where they belong to the open file |
//! | `lock_holder` | who holds a file, where the system tells |
//! | `set_open_flags` | never hangs in `open`, follows links only if asked; nobody removes an open file where that can be had |
//! | `set_lock_file_flags`, `set_read_flags` | the same for the backend's files, and for those that are only read |
//! | `let_group_write`, `apply_file_mode` | permissions for other users, whatever the umask says |
//! | `patiently` | again for a moment, where somebody's open file is in the way |
//! | `look_at`, `look_for`, `look_along` | which file a handle, a name in a directory or a path leads to |
//! | `LOCKED_FILES_STAY`, `remove_lock_file`, `remove_file` | whether and how a lock file, or one beside it, is removed |
//! | `replace`, `publish` | moves a file to a name, over what is there or only if it is free |
//! | `rename_exclusive`, `sync_directory` | a rename that replaces nothing, where there is one; makes a rename last |
//! | `process_exists`, `process_life` | whether a process is there, and since when: tells a pid from a re-used one |
//! | `Watcher`, `Registration`, `Watched` | being told of changes in a directory |
//! | `is_remote` | whether a directory's file system answers from elsewhere |
//! | `read_at`, `write_at` | reading and writing without a cursor |
//! | `HAS_RECORD_LOCKS` | whether there are record locks that belong to the open file |
//! | `Origin` | telling a forked child from its parent |
//! | `says_no_hard_links`, `says_no_locks`, `says_in_use`, `says_too_many_files`, `says_wrong_access`, `says_not_a_file` | codes that `io::ErrorKind` has no word for |

mod fork;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod inotify;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod no_watch;
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
pub(crate) use inotify::{Registration, Watcher};
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use no_watch::{Registration, Watcher};
pub(crate) use positioned::{read_at, write_at};
pub(crate) use publish::publish;
pub(crate) use remote::is_remote;
pub(crate) use watched::Watched;

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::{lock_holder, lock_record, process_life, try_lock_record, unlock_record};
#[cfg(unix)]
pub(crate) use unix::*;
#[cfg(windows)]
pub(crate) use windows::*;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
