//! A named semaphore, without async.

use std::sync::Arc;

use super::{PermitGuard, drive::call};
use crate::{Inspection, LockError, LockName, Policy, Semaphore};

/// A named semaphore; see [`crate::Pool`].
#[derive(Debug, Clone)]
pub struct Pool<S> {
    pool: crate::Pool<S>,
}

impl<S: Semaphore> Pool<S> {
    /// The semaphore called `name`, with `capacity` permits in all. No I/O is done.
    ///
    /// # Errors
    ///
    /// As [`Pool::new`](crate::Pool::new).
    pub fn new(semaphore: S, name: impl AsRef<str>, capacity: u32) -> Result<Self, LockError> {
        crate::Pool::new(semaphore, name, capacity).map(Self::from)
    }

    /// Sets how [`acquire`](Self::acquire) waits. Default: [`Policy::default`].
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.pool = self.pool.with_policy(policy);
        self
    }

    /// Sets a label, which errors of other processes show. Default: none.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.pool = self.pool.with_label(label);
        self
    }

    /// The semaphore's name.
    pub fn name(&self) -> &LockName {
        self.pool.name()
    }

    /// The number of permits in all.
    pub fn capacity(&self) -> u32 {
        self.pool.capacity()
    }

    /// Acquires `count` permits if they are free, and doesn't wait for a holder.
    ///
    /// # Errors
    ///
    /// As [`Pool::try_acquire`](crate::Pool::try_acquire).
    pub fn try_acquire(&self, count: u32) -> Result<PermitGuard<S>, LockError> {
        self.run(move |pool| async move { pool.try_acquire(count).await })
    }

    /// Acquires `count` permits, all or none, and waits for them according to the pool's policy.
    ///
    /// # Errors
    ///
    /// As [`Pool::acquire`](crate::Pool::acquire).
    pub fn acquire(&self, count: u32) -> Result<PermitGuard<S>, LockError> {
        self.run(move |pool| async move { pool.acquire(count).await })
    }

    /// Like [`acquire`](Self::acquire), with another policy.
    ///
    /// # Errors
    ///
    /// As [`Pool::acquire`](crate::Pool::acquire).
    pub fn acquire_with(&self, count: u32, policy: &Policy) -> Result<PermitGuard<S>, LockError> {
        let policy = policy.clone();
        self.run(move |pool| async move { pool.acquire_with(count, &policy).await })
    }

    /// Returns the holders and the waiters. The answer may be out of date when it arrives.
    ///
    /// # Errors
    ///
    /// As [`Pool::inspect`](crate::Pool::inspect).
    pub fn inspect(&self) -> Result<Inspection, LockError> {
        let pool = self.pool.clone();
        call(self.name(), self.needs_runtime(), async move {
            pool.inspect().await
        })
    }

    fn run<F>(&self, acquire: impl FnOnce(crate::Pool<S>) -> F) -> Result<PermitGuard<S>, LockError>
    where
        F: Future<Output = Result<crate::PermitGuard<S>, LockError>> + Send + 'static,
    {
        let needs_runtime = self.needs_runtime();
        let guard = call(self.name(), needs_runtime, acquire(self.pool.clone()))?;
        Ok(PermitGuard::new(guard, needs_runtime))
    }

    fn needs_runtime(&self) -> bool {
        self.pool.semaphore().capabilities().needs_runtime
    }
}

impl<S> From<crate::Pool<S>> for Pool<S> {
    fn from(pool: crate::Pool<S>) -> Self {
        Self { pool }
    }
}
