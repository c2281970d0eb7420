//! Sets of locks, without async.

use std::sync::Arc;

use super::drive::drive_set;
use crate::{
    FencingToken, InvalidName, LockBackend, LockError, LockName, LostSignal, Mode, Policy,
};

/// Several locks of one backend, acquired together, all or none; see [`crate::LockSet`].
#[derive(Debug, Clone)]
pub struct LockSet<B> {
    set: crate::LockSet<B>,
    needs_runtime: bool,
}

impl<B: LockBackend + Clone> LockSet<B> {
    /// The locks called `names` in `backend`: sorted, each name once.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] for the first name that is not valid.
    pub fn new<N: AsRef<str>>(
        backend: B,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, InvalidName> {
        let needs_runtime = backend.capabilities().needs_runtime;
        Ok(Self {
            set: crate::LockSet::new(backend, names)?,
            needs_runtime,
        })
    }

    /// Sets how [`acquire`](Self::acquire) waits. Default: [`Policy::default`].
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.set = self.set.with_policy(policy);
        self
    }

    /// Sets a label, which errors of other processes show. Default: none.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.set = self.set.with_label(label);
        self
    }

    /// Sets whether the locks are exclusive (the default) or shared.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.set = self.set.with_mode(mode);
        self
    }

    /// The names, sorted, each once.
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.set.names()
    }

    /// Acquires all locks if all are free, and doesn't wait for a holder.
    ///
    /// # Errors
    ///
    /// As [`LockSet::try_acquire`](crate::LockSet::try_acquire).
    pub fn try_acquire(&self) -> Result<LockSetGuard<B>, LockError> {
        self.run(|set| async move { set.try_acquire().await })
    }

    /// Acquires all locks, and waits for them according to the set's policy, with one deadline for all.
    ///
    /// # Errors
    ///
    /// As [`LockSet::acquire`](crate::LockSet::acquire).
    pub fn acquire(&self) -> Result<LockSetGuard<B>, LockError> {
        self.run(|set| async move { set.acquire().await })
    }

    /// Like [`acquire`](Self::acquire), with another policy.
    ///
    /// # Errors
    ///
    /// As [`LockSet::acquire`](crate::LockSet::acquire).
    pub fn acquire_with(&self, policy: &Policy) -> Result<LockSetGuard<B>, LockError> {
        let policy = policy.clone();
        self.run(move |set| async move { set.acquire_with(&policy).await })
    }

    fn run<F>(
        &self,
        acquire: impl FnOnce(crate::LockSet<B>) -> F,
    ) -> Result<LockSetGuard<B>, LockError>
    where
        F: Future<Output = Result<crate::LockSetGuard<B>, LockError>> + Send + 'static,
    {
        let guard = drive_set(
            self.set.names().next(),
            self.needs_runtime,
            acquire(self.set.clone()),
        )?;
        Ok(LockSetGuard {
            guard,
            needs_runtime: self.needs_runtime,
        })
    }
}

/// Several held locks; see [`crate::LockSetGuard`].
///
/// # On drop
///
/// All locks are released in reverse order.
#[derive(Debug)]
#[must_use = "the locks are released as soon as the guard is dropped"]
pub struct LockSetGuard<B: LockBackend> {
    guard: crate::LockSetGuard<B>,
    needs_runtime: bool,
}

impl<B: LockBackend> LockSetGuard<B> {
    /// The held names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.guard.names()
    }

    /// The fencing token of each name; `None` if the backend has no tokens.
    pub fn tokens(&self) -> impl Iterator<Item = (&LockName, Option<FencingToken>)> {
        self.guard.tokens()
    }

    /// Whether any of the locks is lost.
    pub fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// One signal for all locks: it fires when the first of them is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.guard.lost_signal()
    }

    /// Returns an error if any of the locks is lost. Call it before an action that needs them.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] for the first lost lock.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.guard.ensure_held()
    }

    /// Releases all locks concurrently.
    ///
    /// # Errors
    ///
    /// As [`LockSetGuard::release`](crate::LockSetGuard::release).
    pub fn release(self) -> Result<(), LockError> {
        let first = self.guard.names().next().cloned();
        drive_set(first.as_ref(), self.needs_runtime, self.guard.release())
    }
}

/// The same hold, for async code.
impl<B: LockBackend> From<LockSetGuard<B>> for crate::LockSetGuard<B> {
    fn from(guard: LockSetGuard<B>) -> Self {
        guard.guard
    }
}
