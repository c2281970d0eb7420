//! A locked file in hand, however it was acquired: what the guards of this crate wrap.

use std::sync::Arc;

use futures_util::FutureExt;
use portalock_core::{Guard, Lock, LockError, LockName, Mode, Policy, blocking};

use crate::{
    FsError,
    one_file::OneFile,
    spec::{Handle, Spec},
};

/// How an acquisition waits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait<'p> {
    /// It doesn't.
    Once,
    /// As the policy says.
    As(&'p Policy),
}

/// One locked file. Freed when dropped.
#[derive(Debug)]
pub(crate) struct Owned {
    /// Declared before the guard, so that the guard closes the file: some systems remove only what is closed.
    handle: Option<Arc<Handle>>,
    guard: AnyGuard,
    lock: Lock<OneFile>,
}

/// The engine's guard, whichever way it was acquired.
#[derive(Debug)]
enum AnyGuard {
    Async(Guard<OneFile>),
    Blocking(blocking::Guard<OneFile>),
}

impl Owned {
    pub(crate) async fn acquire(
        spec: &Spec,
        mode: Mode,
        wait: Wait<'_>,
    ) -> Result<Self, LockError> {
        let lock = new_lock(spec)?;
        let guard = match (mode, wait) {
            (Mode::Exclusive, Wait::Once) => lock.try_acquire().await?,
            (Mode::Exclusive, Wait::As(policy)) => lock.acquire_with(policy).await?,
            (Mode::Shared, Wait::Once) => lock.try_acquire_shared().await?,
            (Mode::Shared, Wait::As(policy)) => lock.acquire_shared_with(policy).await?,
        };
        Ok(Self::new(lock, AnyGuard::Async(guard)))
    }

    pub(crate) fn blocking_acquire(
        spec: &Spec,
        mode: Mode,
        wait: Wait<'_>,
    ) -> Result<Self, LockError> {
        let lock = new_lock(spec)?;
        let engine = blocking::Lock::from(lock.clone());
        let guard = match (mode, wait) {
            (Mode::Exclusive, Wait::Once) => engine.try_acquire()?,
            (Mode::Exclusive, Wait::As(policy)) => engine.acquire_with(policy)?,
            (Mode::Shared, Wait::Once) => engine.try_acquire_shared()?,
            (Mode::Shared, Wait::As(policy)) => engine.acquire_shared_with(policy)?,
        };
        Ok(Self::new(lock, AnyGuard::Blocking(guard)))
    }

    fn new(lock: Lock<OneFile>, guard: AnyGuard) -> Self {
        Self {
            handle: lock.backend().handle(),
            guard,
            lock,
        }
    }

    pub(crate) fn name(&self) -> &LockName {
        self.lock.name()
    }

    pub(crate) fn spec(&self) -> &Spec {
        self.lock.backend().spec()
    }

    #[allow(
        clippy::expect_used,
        reason = "the handle is only taken by `release`, which consumes `self`"
    )]
    pub(crate) fn handle(&self) -> &Handle {
        self.handle
            .as_ref()
            .expect("the handle is there until release")
    }

    /// Whether the path still names the locked file.
    pub(crate) fn ensure_held(&self) -> Result<(), LockError> {
        match self.lock.backend().check() {
            Ok(None) => Ok(()),
            Ok(Some(loss)) => Err(LockError::Lost {
                name: self.name().clone(),
                loss,
            }),
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(crate) fn release(mut self) -> Result<(), LockError> {
        self.handle = None;
        let released = match self.guard {
            // Freeing a file waits for nothing, so the first poll is the last.
            AnyGuard::Async(guard) => guard.release().now_or_never().unwrap_or(Ok(())),
            AnyGuard::Blocking(guard) => guard.release(),
        };
        released.map_err(|error| match error {
            LockError::NotHeld { name } => LockError::Lost {
                name,
                loss: self.lock.backend().spec().loss(),
            },
            error => error,
        })
    }

    pub(crate) fn failed(&self, error: FsError) -> LockError {
        LockError::Backend {
            name: self.name().clone(),
            source: error.into(),
        }
    }
}

fn new_lock(spec: &Spec) -> Result<Lock<OneFile>, LockError> {
    Ok(Lock::new(OneFile::new(spec.clone()), spec.name()?)?)
}
