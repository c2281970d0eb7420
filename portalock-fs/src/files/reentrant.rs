//! A reentrant lock on a user's own data file.

use std::{fs::File, ops::Deref, sync::Arc};

use futures_util::FutureExt;
use portalock_core::{LockError, Mode, Policy, ReentrantGuard, ReentrantLock, blocking};

use super::{acquisition::Acquisition, file_lock::FileLock};
use crate::locking::LockFile;

/// A [`FileLock`] that can be acquired again while it is held, and gives the same open file each time. portalocker's
/// `RLock`.
///
/// The owner is this object with its clones. The file is always locked exclusively, and stays open and locked until the
/// last guard is dropped or released.
///
/// ```
/// use std::io::Write;
/// use portalock_fs::{FileLock, ReentrantFileLock};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ledger.csv");
///
/// let ledger = ReentrantFileLock::new(FileLock::new(&path)?)?;
/// let outer = ledger.blocking_acquire()?;
/// let inner = ledger.blocking_acquire()?;
/// writeln!(&*inner, "rent,-950")?;
/// inner.release()?;
/// assert!(FileLock::new(&path)?.try_acquire().is_err());
/// outer.release()?;
/// assert!(FileLock::new(&path)?.try_acquire().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ReentrantFileLock {
    lock: ReentrantLock<Acquisition>,
    policy: Policy,
}

impl ReentrantFileLock {
    /// Counts the acquisitions of `lock` that are made through this object and its clones.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidName`] if the file's path can't be a lock's name.
    pub fn new(lock: FileLock) -> Result<Self, LockError> {
        let mut spec = lock.spec;
        spec.share = Mode::Exclusive;
        Ok(Self {
            lock: ReentrantLock::new(Acquisition::lock_on(spec)?),
            policy: lock.policy,
        })
    }

    /// The number of guards.
    pub fn count(&self) -> usize {
        self.lock.count()
    }

    /// Opens and locks the file, or acquires it once more. It waits according to the lock's policy.
    ///
    /// # Errors
    ///
    /// As [`FileLock::acquire`].
    ///
    /// # Cancel safety
    ///
    /// As [`FileLock::acquire`].
    pub async fn acquire(&self) -> Result<ReentrantFileGuard, LockError> {
        self.guard(self.lock.acquire_with(&self.policy).await)
    }

    /// [`acquire`](Self::acquire) for synchronous code: it blocks the thread.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn blocking_acquire(&self) -> Result<ReentrantFileGuard, LockError> {
        let lock = blocking::ReentrantLock::from(self.lock.clone());
        self.guard(lock.acquire_with(&self.policy).map(Into::into))
    }

    fn guard(
        &self,
        acquired: Result<ReentrantGuard<Acquisition>, LockError>,
    ) -> Result<ReentrantFileGuard, LockError> {
        let backend = self.lock.lock().backend();
        let guard = acquired.map_err(|error| backend.name_holder(error))?;
        let file = backend.held().1;
        Ok(ReentrantFileGuard { file, guard })
    }
}

/// One of the counted acquisitions. It derefs to the open [`File`].
///
/// # On drop
///
/// The count decreases. The last guard unlocks and closes the file.
#[derive(Debug)]
#[must_use = "the acquisition ends as soon as the guard is dropped"]
pub struct ReentrantFileGuard {
    /// Declared before the guard, so that the guard closes the file.
    file: Arc<LockFile>,
    guard: ReentrantGuard<Acquisition>,
}

impl ReentrantFileGuard {
    /// Ends this acquisition. The last one unlocks and closes the file, and reports errors.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the path no longer led to the locked file; [`LockError::Backend`] if the system
    /// refused to unlock it.
    pub fn release(self) -> Result<(), LockError> {
        drop(self.file);
        // Releasing a file does not wait, so the first poll completes it.
        self.guard.release().now_or_never().unwrap_or(Ok(()))
    }
}

impl Deref for ReentrantFileGuard {
    type Target = File;

    fn deref(&self) -> &File {
        self.file.file()
    }
}
