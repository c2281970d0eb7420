//! A held file, which the guards of this crate contain.

use std::{fs::File, path::Path, sync::Arc};

use futures_util::FutureExt;
use portalock_core::{Guard, Lock, LockError, LockName, Mode, Policy, blocking};

use super::acquisition::Acquisition;
use crate::locking::{FsError, LockFile};

/// The policy of a call that doesn't wait.
pub(crate) fn once() -> Policy {
    Policy::new().with_fail_when_locked(true)
}

/// The error for a file that can't be opened or locked.
pub(crate) fn failed(name: LockName, error: FsError) -> LockError {
    let source = error.into();
    LockError::Backend { name, source }
}

/// A locked file. Released when dropped.
#[derive(Debug)]
pub(crate) struct Owned {
    /// Declared before the guard, so that the guard closes it last: some systems can only remove closed files.
    file: Arc<LockFile>,
    /// Of the file, among those of the acquisition.
    number: usize,
    guard: Guard<Acquisition>,
    lock: Lock<Acquisition>,
}

impl Owned {
    pub(crate) async fn acquire(
        lock: Lock<Acquisition>,
        policy: &Policy,
    ) -> Result<Self, LockError> {
        let acquired = match lock.backend().share() {
            Mode::Exclusive => lock.acquire_with(policy).await,
            Mode::Shared => lock.acquire_shared_with(policy).await,
        };
        Self::new(lock, acquired)
    }

    pub(crate) fn blocking_acquire(
        lock: Lock<Acquisition>,
        policy: &Policy,
    ) -> Result<Self, LockError> {
        let engine = blocking::Lock::from(lock.clone());
        let acquired = match lock.backend().share() {
            Mode::Exclusive => engine.acquire_with(policy),
            Mode::Shared => engine.acquire_shared_with(policy),
        };
        Self::new(lock, acquired.map(Guard::from))
    }

    fn new(
        lock: Lock<Acquisition>,
        acquired: Result<Guard<Acquisition>, LockError>,
    ) -> Result<Self, LockError> {
        let guard = acquired.map_err(|error| lock.backend().name_holder(error))?;
        let (number, file) = lock.backend().held();
        Ok(Self {
            file,
            number,
            guard,
            lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.lock.backend().path(self.number)
    }

    pub(crate) fn file(&self) -> &File {
        self.file.file()
    }

    /// Whether the path still leads to the locked file.
    pub(crate) fn ensure_held(&self) -> Result<(), LockError> {
        let name = self.lock.name().clone();
        match self.lock.backend().loss() {
            Ok(None) => Ok(()),
            Ok(Some(loss)) => Err(LockError::Lost { name, loss }),
            Err(error) => Err(failed(name, error)),
        }
    }

    pub(crate) fn release(self) -> Result<(), LockError> {
        self.ensure_held()?;
        drop(self.file);
        // Releasing a file does not wait, so the first poll completes it.
        self.guard.release().now_or_never().unwrap_or(Ok(()))
    }

    /// Leaves the file locked, for the caller to unlock.
    pub(crate) fn keep(self) {
        self.lock.backend().keep();
    }
}
