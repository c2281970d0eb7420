//! A lock file that is there only while the lock is held.

use std::{fs::File, path::Path};

use portalock_core::{LockError, Mode, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    forms::{guard_methods, lock_methods},
    owned::{Owned, once},
    spec::Spec,
};
use crate::locking::{FsError, LockKind};

/// A lock whose file exists only while it is held. portalocker's `TemporaryFileLock`.
///
/// - The file is removed *while it is still locked*: between an unlock and a removal somebody could lock the file that is
///   about to go, and somebody else a new one.
/// - Once locked, the path must still name the locked file; else it was removed under a waiter, which opens the new one.
/// - The guard removes only the very file it locked. If that was removed or replaced by somebody else, what stands at the
///   path is left alone.
/// - By default a lock that is held is an error at once: a lock file that exists mostly has a live owner.
///   [`with_policy`](Self::with_policy) makes it wait.
///
/// What a killed process leaves is a file without a lock, which the next one takes over. `std::process::exit` runs no
/// destructor, so it leaves that too. A forked child that inherits the guard neither unlocks nor removes: the lock is its
/// parent's.
///
/// A path that is a symbolic link is refused: a lock file in a shared directory must not be led elsewhere.
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
    share: Mode,
    policy: Policy,
}

impl TemporaryFileLock {
    /// The lock with the lock file at `path`. Nothing is created yet.
    ///
    /// # Errors
    ///
    /// [`FsError`] if `path` is empty or can't be made absolute.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, FsError> {
        let mut spec = Spec::new(path.as_ref())?;
        spec.mode = FileMode::WriteRead;
        spec.follow = false;
        spec.goes_with_lock = true;
        Ok(Self {
            spec,
            share: Mode::Exclusive,
            policy: Policy::default().with_fail_when_locked(true),
        })
    }

    /// Locks shared rather than exclusively: others may share it, none may hold it exclusively. Default exclusive.
    ///
    /// The file goes with the last one who shares it: until then a newcomer must meet the others at it. It is not emptied,
    /// and writes go to its end. If the last two release at the same instant it may stay, without a lock.
    #[must_use]
    pub const fn shared(mut self) -> Self {
        self.share = Mode::Shared;
        self.spec.mode = FileMode::AppendRead;
        self
    }

    lock_methods!(TemporaryGuard);
}

/// A temporary lock that is held.
///
/// # On drop
///
/// The file is removed and unlocked, in this order. A failure is logged; [`release`](Self::release) reports it. On Windows
/// an open file can't be removed: it is unlocked and closed, then removed unless the next holder has it by then, which may
/// take 31 ms if a virus scanner looks at it.
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct TemporaryGuard(Owned);

impl TemporaryGuard {
    /// The open lock file: empty at first, and free to be written.
    pub fn file(&self) -> &File {
        self.0.file()
    }

    guard_methods!();
}
