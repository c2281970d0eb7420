//! Windows: `LockFileEx` is both kinds of lock. It is mandatory, and held by the open file.

use std::{
    fs::{File, OpenOptions},
    io,
    os::windows::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::Duration,
};

use portalock_core::{Holder, Mode};

use crate::LockKind;

/// An open lock file can't be removed: see [`set_open_flags`].
pub(crate) const LOCKED_FILES_STAY: bool = true;

const ERROR_INVALID_FUNCTION: i32 = 1;
const ERROR_TOO_MANY_OPEN_FILES: i32 = 4;
const ERROR_INVALID_HANDLE: i32 = 6;
const ERROR_SHARING_VIOLATION: i32 = 32;
const ERROR_NOT_SUPPORTED: i32 = 50;
const ERROR_TOO_MANY_LINKS: i32 = 1142;
const ERROR_CANT_ACCESS_FILE: i32 = 1920;

const FILE_SHARE_READ: u32 = 1;
const FILE_SHARE_WRITE: u32 = 2;
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// A scanner may have a file open for a moment after it was closed.
const REMOVALS: u32 = 5;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(10);

/// Without the right to share deletion nobody can remove or replace the file while we have it open.
pub(crate) fn set_open_flags(options: &mut OpenOptions, follow: bool) {
    options.share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE);
    if !follow {
        options.custom_flags(FILE_FLAG_OPEN_REPARSE_POINT);
    }
}

/// It does for as long as the file is open: see [`set_open_flags`].
#[allow(
    clippy::unnecessary_wraps,
    reason = "the same face as on other systems"
)]
pub(crate) fn path_names_file(_path: &Path, _follow: bool, _file: &File) -> io::Result<bool> {
    Ok(true)
}

#[allow(
    clippy::disallowed_methods,
    reason = "a scanner that has the file open gives no sign when it is done"
)]
pub(crate) fn remove_lock_file(path: &Path) -> io::Result<()> {
    let mut left = REMOVALS;
    loop {
        let Err(error) = std::fs::remove_file(path) else {
            return Ok(());
        };
        let is_open = error.raw_os_error() == Some(ERROR_SHARING_VIOLATION);
        let may_pass = is_open || error.kind() == io::ErrorKind::PermissionDenied;
        left -= 1;
        if may_pass && left > 0 {
            thread::sleep(BETWEEN_REMOVALS);
        } else if is_open {
            // The next holder has it, and will remove it.
            return Ok(());
        } else {
            return Err(error);
        }
    }
}

/// A hard link does it here: see [`publish`](super::publish()).
pub(crate) fn rename_exclusive(_from: &Path, _to: &Path) -> Option<io::Result<()>> {
    None
}

/// The file system's own journal does that.
#[allow(
    clippy::unnecessary_wraps,
    reason = "the same face as on other systems"
)]
pub(crate) fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}

/// Not to be had without a call that is not safe.
pub(crate) fn process_exists(_pid: u32) -> Option<bool> {
    None
}

/// Not to be had without a call that is not safe.
pub(crate) fn process_life(_pid: u32) -> Option<super::ProcessLife> {
    None
}

pub(crate) fn says_no_hard_links(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ERROR_INVALID_FUNCTION | ERROR_NOT_SUPPORTED | ERROR_TOO_MANY_LINKS)
    )
}

/// Locks belong to the open file here: closing one handle does nothing to another.
pub(crate) fn close(file: File, _kind: LockKind) {
    drop(file);
}

/// The system does not tell.
pub(crate) fn lock_holder(_file: &File) -> Option<Holder> {
    None
}

pub(crate) fn lock_record(file: &File, mode: Mode) -> io::Result<()> {
    match mode {
        Mode::Exclusive => fs4::FileExt::lock(file),
        Mode::Shared => fs4::FileExt::lock_shared(file),
    }
}

pub(crate) fn try_lock_record(file: &File, mode: Mode) -> io::Result<bool> {
    let tried = match mode {
        Mode::Exclusive => fs4::FileExt::try_lock(file),
        Mode::Shared => fs4::FileExt::try_lock_shared(file),
    };
    match tried {
        Ok(()) => Ok(true),
        Err(fs4::TryLockError::WouldBlock) => Ok(false),
        Err(fs4::TryLockError::Error(error)) => Err(error),
    }
}

pub(crate) fn unlock_record(file: &File) -> io::Result<()> {
    fs4::FileExt::unlock(file)
}

pub(crate) fn says_no_locks(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(ERROR_INVALID_FUNCTION | ERROR_NOT_SUPPORTED)
    )
}

pub(crate) fn says_too_many_files(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_TOO_MANY_OPEN_FILES)
}

pub(crate) fn says_wrong_access(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_INVALID_HANDLE)
}

pub(crate) fn says_not_a_file(error: &io::Error) -> bool {
    error.raw_os_error() == Some(ERROR_CANT_ACCESS_FILE)
}
