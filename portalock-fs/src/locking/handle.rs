//! Plain locks on any open file: the primitive that everything else here stands on.

use std::{fs::File, io};

use cap_std::io_lifetimes::AsFilelike;
use portalock_core::Mode;
use serde::{Deserialize, Serialize};

use super::error::FsError;
use crate::sys;

/// Which of the operating system's locks to use. Locks of different kinds don't see each other: choose what the other
/// programs use that share the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LockKind {
    /// `flock` on Unix, `LockFileEx` on Windows. It belongs to the open file, and needs no particular access mode on a
    /// local file system.
    #[default]
    Flock,
    /// Record locks over the whole file: what `fcntl` and `lockf` take.
    ///
    /// - Linux and Android: open-file-description locks. They meet the record locks of other programs, exclude two
    ///   handles of one process, and end with the open file.
    /// - Other Unix systems: refused ([`FsErrorKind::NoLocks`](crate::FsErrorKind::NoLocks)). Record locks belong to the process
    ///   there, so that closing any other handle of the file drops the lock.
    /// - Windows: the same as [`Flock`](Self::Flock).
    ///
    /// An exclusive one needs a handle that can write, a shared one a handle that can read.
    Record,
}

/// Locks `handle`, waiting for as long as it takes.
///
/// It blocks the thread inside the operating system and can't be interrupted; [`try_lock`] does not wait, and a
/// [`FileLock`](crate::FileLock) waits with a deadline.
///
/// `handle` is anything with a descriptor: a [`File`], a `cap_std` file, an `OwnedFd`, a `BorrowedFd`, a `tokio` file. On
/// Windows anything with a handle. The lock lives as long as the open file does: until [`unlock`], or until the last copy
/// of the handle is closed, whether or not this one was the one to lock it. Locking again changes the mode; on Unix that
/// is **not** atomic, and another may get in between, while on Windows it waits for itself for ever.
///
/// On Windows locks are mandatory, and over the whole range of bytes: no other handle can read or write the file while it is
/// locked exclusively, and none at all can write it while it is shared.
///
/// # Errors
///
/// [`FsError`] if the file system has no such locks, or the handle was opened for too little
/// ([`FsErrorKind::WrongAccess`](crate::FsErrorKind::WrongAccess)).
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
    uninterrupted(|| match kind {
        LockKind::Flock => sys::flock::lock(&file, mode),
        LockKind::Record => sys::record::lock(&file, mode),
    })
    .map_err(|error| FsError::new("lock", error))
}

/// Locks `handle` if that is possible at once. `false` says that somebody else holds it, and nothing else.
///
/// See [`lock`] for what the lock is. A failed attempt to change the mode of a lock that is already held may drop it on
/// Unix (`flock(2)`).
///
/// # Errors
///
/// As [`lock`].
pub fn try_lock<H: AsFilelike>(handle: &H, mode: Mode, kind: LockKind) -> Result<bool, FsError> {
    let file = handle.as_filelike_view::<File>();
    uninterrupted(|| match kind {
        LockKind::Flock => sys::flock::try_lock(&file, mode),
        LockKind::Record => sys::record::try_lock(&file, mode),
    })
    .map_err(|error| FsError::new("lock", error))
}

/// Unlocks `handle`. On Unix it is no error if it was not locked; on Windows it is.
///
/// # Errors
///
/// [`FsError`] if the operating system refuses.
pub fn unlock<H: AsFilelike>(handle: &H, kind: LockKind) -> Result<(), FsError> {
    let file = handle.as_filelike_view::<File>();
    uninterrupted(|| match kind {
        LockKind::Flock => sys::flock::unlock(&file),
        LockKind::Record => sys::record::unlock(&file),
    })
    .map_err(|error| FsError::new("unlock", error))
}

/// A signal that has a handler interrupts a wait for a lock: it is not a failure.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
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
        assert_eq!(error.kind(), crate::FsErrorKind::WrongAccess);
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
