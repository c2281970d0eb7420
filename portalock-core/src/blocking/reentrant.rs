//! A lock that its owner can acquire again, without async.

use super::drive::call;
use crate::{FencingToken, InvalidName, LockBackend, LockError, LockName, LostSignal, Policy};

/// A lock that can be acquired again while it is held; see [`crate::ReentrantLock`].
#[derive(Debug, Clone)]
pub struct ReentrantLock<B: LockBackend> {
    lock: crate::ReentrantLock<B>,
}

impl<B: LockBackend> ReentrantLock<B> {
    /// Counts the acquisitions of `lock` made through this object and its clones.
    pub fn new(lock: crate::Lock<B>) -> Self {
        Self {
            lock: crate::ReentrantLock::new(lock),
        }
    }

    /// A reentrant lock on the lock called `name` in `backend`.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if `name` is empty, longer than 255 bytes or has a NUL.
    pub fn named(backend: B, name: impl AsRef<str>) -> Result<Self, InvalidName> {
        crate::Lock::new(backend, name).map(Self::new)
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        self.lock.lock().name()
    }

    /// The number of guards.
    pub fn count(&self) -> usize {
        self.lock.count()
    }

    /// Acquires the lock once more if it is free or held through this object.
    ///
    /// # Errors
    ///
    /// As [`ReentrantLock::try_acquire`](crate::ReentrantLock::try_acquire).
    pub fn try_acquire(&self) -> Result<ReentrantGuard<B>, LockError> {
        self.run(|lock| async move { lock.try_acquire().await })
    }

    /// Acquires the lock once more. If it is not held through this object, the call waits according to the lock's policy.
    ///
    /// # Errors
    ///
    /// As [`ReentrantLock::acquire`](crate::ReentrantLock::acquire).
    pub fn acquire(&self) -> Result<ReentrantGuard<B>, LockError> {
        self.run(|lock| async move { lock.acquire().await })
    }

    /// Like [`acquire`](Self::acquire), with another policy.
    ///
    /// # Errors
    ///
    /// As [`ReentrantLock::acquire`](crate::ReentrantLock::acquire).
    pub fn acquire_with(&self, policy: &Policy) -> Result<ReentrantGuard<B>, LockError> {
        let policy = policy.clone();
        self.run(move |lock| async move { lock.acquire_with(&policy).await })
    }

    fn run<F>(
        &self,
        acquire: impl FnOnce(crate::ReentrantLock<B>) -> F,
    ) -> Result<ReentrantGuard<B>, LockError>
    where
        F: Future<Output = Result<crate::ReentrantGuard<B>, LockError>> + Send + 'static,
    {
        let needs_runtime = self.lock.lock().backend().capabilities().needs_runtime;
        let guard = call(self.name(), needs_runtime, acquire(self.lock.clone()))?;
        Ok(ReentrantGuard {
            guard,
            name: self.name().clone(),
            needs_runtime,
        })
    }
}

/// The same lock, with the same count, for synchronous code.
impl<B: LockBackend> From<crate::ReentrantLock<B>> for ReentrantLock<B> {
    fn from(lock: crate::ReentrantLock<B>) -> Self {
        Self { lock }
    }
}

/// One of the counted acquisitions; see [`crate::ReentrantGuard`].
///
/// # On drop
///
/// The count decreases. The last guard releases the lock.
#[derive(Debug)]
#[must_use = "the acquisition ends as soon as the guard is dropped"]
pub struct ReentrantGuard<B: LockBackend> {
    guard: crate::ReentrantGuard<B>,
    name: LockName,
    needs_runtime: bool,
}

impl<B: LockBackend> ReentrantGuard<B> {
    /// Whether the underlying lock is lost.
    pub fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// A signal that fires if the underlying lock is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.guard.lost_signal()
    }

    /// The fencing token of the underlying lock; `None` if the backend has no tokens, and in a forked child.
    pub fn token(&self) -> Option<FencingToken> {
        self.guard.token()
    }

    /// Returns an error if the underlying lock is lost. Call it before an action that needs the lock.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] with the reason.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.guard.ensure_held()
    }

    /// Ends this acquisition. The last one releases the lock, and reports errors.
    ///
    /// # Errors
    ///
    /// As [`ReentrantGuard::release`](crate::ReentrantGuard::release).
    pub fn release(self) -> Result<(), LockError> {
        call(&self.name, self.needs_runtime, self.guard.release())
    }
}

/// The same acquisition, for async code.
impl<B: LockBackend> From<ReentrantGuard<B>> for crate::ReentrantGuard<B> {
    fn from(guard: ReentrantGuard<B>) -> Self {
        guard.guard
    }
}
