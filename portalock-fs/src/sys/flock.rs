//! The locks that every system has: `flock` on Unix, `LockFileEx` on Windows.

use std::{fs::File, io};

use portalock_core::Mode;

pub(crate) fn lock(file: &File, mode: Mode) -> io::Result<()> {
    match mode {
        Mode::Exclusive => fs4::FileExt::lock(file),
        Mode::Shared => fs4::FileExt::lock_shared(file),
    }
}

/// False if another owner holds the lock.
pub(crate) fn try_lock(file: &File, mode: Mode) -> io::Result<bool> {
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

pub(crate) fn unlock(file: &File) -> io::Result<()> {
    fs4::FileExt::unlock(file)
}
