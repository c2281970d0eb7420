//! A lock file that exists only while the lock is held.

use std::{fs::File, path::Path};

use portalock_core::{Lock, LockError, Mode, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    forms::{acquire_methods, guard_methods, lock_methods},
    owned::{Owned, once},
    spec::Spec,
};
use crate::locking::{FsError, LockKind};

/// A lock whose file exists only while it is held. portalocker's `TemporaryFileLock`.
///
/// - The file is removed *while it is still locked*: between an unlock and the removal, one process could lock the old
///   file and another a new one.
/// - After locking, the path must still lead to the locked file. If not, the file was removed, and the waiter opens the
///   new one.
/// - The guard removes only the file that it has locked. If somebody else removed or replaced that file, the file at
///   the path is not changed.
/// - By default an acquisition fails at once if the lock is held, because an existing lock file usually has a live
///   owner. Change this with [`with_policy`](Self::with_policy).
///
/// A killed process leaves an unlocked file, which the next holder takes over. So does `std::process::exit`, which runs
/// no destructors. A forked child with an inherited guard neither unlocks nor removes the file, because the lock
/// belongs to its parent.
///
/// A symbolic link at the path is refused, so that nobody can redirect a lock file in a shared directory.
///
/// ```
/// use portalock_fs::TemporaryFileLock;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("build.lock");
///
/// let lock = TemporaryFileLock::new(&path)?;
/// let guard = lock.blocking_acquire()?;
/// assert!(path.exists());
/// assert!(lock.try_acquire().is_err());
/// guard.release()?;
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct TemporaryFileLock {
    spec: Spec,
    policy: Policy,
}

impl TemporaryFileLock {
    /// A lock with the lock file at `path`. Nothing is created yet.
    ///
    /// # Errors
    ///
    /// [`FsError`] if `path` is empty or can't be made absolute.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, FsError> {
        let mut spec = Spec::of_lock_file(path.as_ref(), FileMode::WriteRead)?;
        spec.goes_with_lock = true;
        Ok(Self {
            spec,
            policy: Policy::default().with_fail_when_locked(true),
        })
    }

    /// Makes the lock shared: any number of owners can share it, and none can hold it exclusively meanwhile. Default:
    /// exclusive.
    ///
    /// The last holder removes the file, because until then newcomers must lock the same file as the others. The file
    /// is not truncated, and writes go to its end. If the last two holders release at the same instant, the unlocked
    /// file may stay. The last one locks the file alone while it removes it: a call in these microseconds that does not wait
    /// finds the lock held.
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.spec.share = Mode::Shared;
        self.spec.mode = FileMode::AppendRead;
        self
    }

    lock_methods!(TemporaryGuard);
}

/// A held temporary lock.
///
/// # On drop
///
/// The file is removed and then unlocked. A failure is logged; [`release`](Self::release) reports it. On Windows an
/// open file can't be removed: it is unlocked and closed, and then removed, unless the next holder has opened it. This
/// may take 31 ms if a virus scanner has the file open.
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct TemporaryGuard(Owned);

impl TemporaryGuard {
    /// The open lock file. It is empty at first, and you may write to it.
    pub fn file(&self) -> &File {
        self.0.file()
    }

    guard_methods!();
}
