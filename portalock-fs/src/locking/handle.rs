//! Plain locks on any open file, which everything else here uses.

use std::{fs::File, io};

use cap_std::io_lifetimes::AsFilelike;
use portalock_core::Mode;
use serde::{Deserialize, Serialize};

use super::error::FsError;
use crate::sys;

/// The kind of lock of the operating system. Locks of different kinds don't exclude each other, so use the same kind as
/// the other programs that lock the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LockKind {
    /// `flock` on Unix, `LockFileEx` on Windows. It belongs to the open file, and needs no particular access mode on a
    /// local file system.
    #[default]
    Flock,
    /// Record locks over the whole file, as `fcntl` and `lockf` take them.
    ///
    /// - Linux and Android: open-file-description locks. They exclude the record locks of other programs, and two
    ///   handles of one process, and end with the open file.
    /// - Other Unix systems: refused ([`Unsupported`](portalock_core::BackendErrorKind::Unsupported)). There, record locks
    ///   belong to the process, so closing any other handle of the file drops the lock.
    /// - Windows: the same as [`Flock`](Self::Flock).
    ///
    /// An exclusive lock needs a handle with write access, and a shared lock one with read access.
    Record,
}

/// Locks `handle`, and waits without a time limit.
///
/// It blocks the thread in the operating system and can't be interrupted. [`try_lock`] does not wait, and a
/// [`FileLock`](crate::FileLock) waits with a deadline.
///
/// `handle` is anything with a descriptor: a [`File`], a `cap_std` file, an `OwnedFd`, a `BorrowedFd`, a `tokio` file.
/// On Windows anything with a handle. The lock ends with [`unlock`], or when the last copy of the handle is closed,
/// whichever copy locked the file. Locking again changes the mode. On Unix this is **not** atomic, and another program
/// may get the lock in between. On Windows the call waits for its own lock forever.
///
/// On Windows locks are mandatory, and cover the whole range of bytes. While the file is locked exclusively, no other
/// handle can read or write it. While it is shared, no handle can write it.
///
/// # Errors
///
/// [`FsError`] if the file system has no such locks, or if the handle has too little access
/// ([`Misconfigured`](portalock_core::BackendErrorKind::Misconfigured)).
///
/// ```
/// use portalock_fs::{LockKind, Mode, lock, try_lock, unlock};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ledger");
/// let ours = std::fs::File::create(&path)?;
/// let theirs = std::fs::File::open(&path)?;
///
/// lock(&ours, Mode::Exclusive, LockKind::Flock)?;
/// assert!(!try_lock(&theirs, Mode::Shared, LockKind::Flock)?);
/// unlock(&ours, LockKind::Flock)?;
/// assert!(try_lock(&theirs, Mode::Shared, LockKind::Flock)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn lock<H: AsFilelike>(handle: &H, mode: Mode, kind: LockKind) -> Result<(), FsError> {
    let file = handle.as_filelike_view::<File>();
    with_locks(kind, || match kind {
        LockKind::Flock => sys::flock::lock(&file, mode),
        LockKind::Record => sys::record::lock(&file, mode),
    })
    .map_err(|error| FsError::new("lock", error))
}

/// Locks `handle` if that is possible at once. `false` always means that another owner holds the lock.
///
/// [`lock`] describes the lock. On Unix, a failed attempt to change the mode of a held lock may drop that lock
/// (`flock(2)`).
///
/// # Errors
///
/// As [`lock`].
pub fn try_lock<H: AsFilelike>(handle: &H, mode: Mode, kind: LockKind) -> Result<bool, FsError> {
    let file = handle.as_filelike_view::<File>();
    with_locks(kind, || match kind {
        LockKind::Flock => sys::flock::try_lock(&file, mode),
        LockKind::Record => sys::record::try_lock(&file, mode),
    })
    .map_err(|error| FsError::new("lock", error))
}

/// Unlocks `handle`. If it was not locked, this is an error on Windows only.
///
/// # Errors
///
/// [`FsError`] if the operating system refuses.
pub fn unlock<H: AsFilelike>(handle: &H, kind: LockKind) -> Result<(), FsError> {
    let file = handle.as_filelike_view::<File>();
    with_locks(kind, || match kind {
        LockKind::Flock => sys::flock::unlock(&file),
        LockKind::Record => sys::record::unlock(&file),
    })
    .map_err(|error| FsError::new("unlock", error))
}

/// Makes the `call` if the system has locks of this kind.
fn with_locks<T>(kind: LockKind, call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    if kind == LockKind::Record && !sys::HAS_RECORD_LOCKS {
        // They belong to the process: closing any other handle of the file drops them.
        return Err(io::ErrorKind::Unsupported.into());
    }
    sys::uninterrupted(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: &[LockKind] = if sys::HAS_RECORD_LOCKS {
        &[LockKind::Flock, LockKind::Record]
    } else {
        &[LockKind::Flock]
    };

    fn two_handles() -> (tempfile::TempDir, File, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .unwrap()
        };
        let (a, b) = (open(), open());
        (dir, a, b)
    }

    #[test]
    fn exclusive_excludes_another_handle_of_this_process() {
        for &kind in KINDS {
            let (_dir, a, b) = two_handles();
            assert!(try_lock(&a, Mode::Exclusive, kind).unwrap());
            assert!(!try_lock(&b, Mode::Exclusive, kind).unwrap(), "{kind:?}");
            assert!(!try_lock(&b, Mode::Shared, kind).unwrap(), "{kind:?}");
            unlock(&a, kind).unwrap();
            assert!(try_lock(&b, Mode::Exclusive, kind).unwrap(), "{kind:?}");
        }
    }

    #[test]
    fn shared_excludes_only_exclusive() {
        for &kind in KINDS {
            let (_dir, a, b) = two_handles();
            assert!(try_lock(&a, Mode::Shared, kind).unwrap());
            assert!(try_lock(&b, Mode::Shared, kind).unwrap(), "{kind:?}");
            unlock(&a, kind).unwrap();
            assert!(!try_lock(&a, Mode::Exclusive, kind).unwrap(), "{kind:?}");
        }
    }

    #[test]
    fn lock_waits_until_it_is_free() {
        for &kind in KINDS {
            let (_dir, a, b) = two_handles();
            lock(&a, Mode::Exclusive, kind).unwrap();
            let waiter = std::thread::spawn(move || lock(&b, Mode::Shared, kind).map(|()| b));
            unlock(&a, kind).unwrap();
            let b = waiter.join().unwrap().unwrap();
            assert!(!try_lock(&a, Mode::Exclusive, kind).unwrap(), "{kind:?}");
            drop(b);
        }
    }

    #[test]
    fn closing_the_file_frees_it() {
        for &kind in KINDS {
            let (_dir, a, b) = two_handles();
            lock(&a, Mode::Exclusive, kind).unwrap();
            drop(a);
            assert!(try_lock(&b, Mode::Exclusive, kind).unwrap(), "{kind:?}");
        }
    }

    #[test]
    fn any_handle_will_do() {
        let (_dir, a, b) = two_handles();
        let a = cap_std::fs::File::from_std(a);
        assert!(try_lock(&a, Mode::Exclusive, LockKind::Flock).unwrap());
        assert!(!try_lock(&b, Mode::Exclusive, LockKind::Flock).unwrap());
        unlock(&a, LockKind::Flock).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_exclusive_record_lock_needs_write_access() {
        let (dir, _a, b) = two_handles();
        let reader = File::open(dir.path().join("file")).unwrap();
        let error = try_lock(&reader, Mode::Exclusive, LockKind::Record).unwrap_err();
        assert_eq!(
            error.kind(),
            portalock_core::BackendErrorKind::Misconfigured
        );
        assert!(try_lock(&reader, Mode::Shared, LockKind::Record).unwrap());
        assert!(!try_lock(&b, Mode::Exclusive, LockKind::Record).unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_record_lock_meets_a_program_that_uses_fcntl() {
        let (_dir, a, b) = two_handles();
        assert!(try_lock(&a, Mode::Exclusive, LockKind::Record).unwrap());
        let plain =
            rustix::fs::fcntl_lock(&b, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        assert_eq!(plain, Err(rustix::io::Errno::AGAIN));
        unlock(&a, LockKind::Record).unwrap();
        rustix::fs::fcntl_lock(&b, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(!try_lock(&a, Mode::Shared, LockKind::Record).unwrap());
    }
}
