//! A named lock, without async.

use std::sync::Arc;

use super::{Guard, drive::call};
use crate::{Broken, Inspection, InvalidName, LockBackend, LockError, LockName, OwnerId, Policy};

/// A named lock in a backend; see [`crate::Lock`].
#[derive(Debug, Clone)]
pub struct Lock<B> {
    lock: crate::Lock<B>,
}

impl<B: LockBackend> Lock<B> {
    /// The lock called `name` in `backend`. No I/O is done.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if `name` is empty, longer than 255 bytes or has a NUL.
    pub fn new(backend: B, name: impl AsRef<str>) -> Result<Self, InvalidName> {
        crate::Lock::new(backend, name).map(Self::from)
    }

    /// Sets how [`acquire`](Self::acquire) waits. Default: [`Policy::default`].
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.lock = self.lock.with_policy(policy);
        self
    }

    /// Sets a label, which errors of other processes show. Default: none.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.lock = self.lock.with_label(label);
        self
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        self.lock.name()
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        self.lock.backend()
    }

    /// Acquires the lock if it is free, and doesn't wait for a holder.
    ///
    /// # Errors
    ///
    /// As [`Lock::try_acquire`](crate::Lock::try_acquire).
    pub fn try_acquire(&self) -> Result<Guard<B>, LockError> {
        self.run(|lock| async move { lock.try_acquire().await })
    }

    /// Acquires the lock, and waits for it according to the lock's policy.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`](crate::Lock::acquire).
    pub fn acquire(&self) -> Result<Guard<B>, LockError> {
        self.run(|lock| async move { lock.acquire().await })
    }

    /// Like [`acquire`](Self::acquire), with another policy.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`](crate::Lock::acquire).
    pub fn acquire_with(&self, policy: &Policy) -> Result<Guard<B>, LockError> {
        let policy = policy.clone();
        self.run(move |lock| async move { lock.acquire_with(&policy).await })
    }

    /// Like [`try_acquire`](Self::try_acquire), for a shared lock.
    ///
    /// # Errors
    ///
    /// As [`Lock::try_acquire_shared`](crate::Lock::try_acquire_shared).
    pub fn try_acquire_shared(&self) -> Result<Guard<B>, LockError> {
        self.run(|lock| async move { lock.try_acquire_shared().await })
    }

    /// Like [`acquire`](Self::acquire), for a shared lock.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire_shared`](crate::Lock::acquire_shared).
    pub fn acquire_shared(&self) -> Result<Guard<B>, LockError> {
        self.run(|lock| async move { lock.acquire_shared().await })
    }

    /// Like [`acquire_with`](Self::acquire_with), for a shared lock.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire_shared_with`](crate::Lock::acquire_shared_with).
    pub fn acquire_shared_with(&self, policy: &Policy) -> Result<Guard<B>, LockError> {
        let policy = policy.clone();
        self.run(move |lock| async move { lock.acquire_shared_with(&policy).await })
    }

    /// Returns the holders and the waiters. The answer may be out of date when it arrives.
    ///
    /// # Errors
    ///
    /// As [`Lock::inspect`](crate::Lock::inspect).
    pub fn inspect(&self) -> Result<Inspection, LockError> {
        let lock = self.lock.clone();
        call(self.name(), self.needs_runtime(), async move {
            lock.inspect().await
        })
    }

    /// Takes the lock away from `owner`.
    ///
    /// # Errors
    ///
    /// As [`Lock::break_holder`](crate::Lock::break_holder).
    pub fn break_holder(&self, owner: OwnerId) -> Result<Broken, LockError> {
        let lock = self.lock.clone();
        call(self.name(), self.needs_runtime(), async move {
            lock.break_holder(owner).await
        })
    }

    fn run<F>(&self, acquire: impl FnOnce(crate::Lock<B>) -> F) -> Result<Guard<B>, LockError>
    where
        F: Future<Output = Result<crate::Guard<B>, LockError>> + Send + 'static,
    {
        let needs_runtime = self.needs_runtime();
        let guard = call(self.name(), needs_runtime, acquire(self.lock.clone()))?;
        Ok(Guard::new(guard, needs_runtime))
    }

    fn needs_runtime(&self) -> bool {
        self.backend().capabilities().needs_runtime
    }
}

impl<B> From<crate::Lock<B>> for Lock<B> {
    fn from(lock: crate::Lock<B>) -> Self {
        Self { lock }
    }
}
