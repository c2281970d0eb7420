//! Several names at once, without async.

use std::sync::Arc;

use super::drive::drive_set;
use crate::{
    FencingToken, InvalidName, LockBackend, LockError, LockName, LostSignal, Mode, Policy,
};

/// Several locks of one backend that are acquired together, all or none; see [`crate::LockSet`].
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
    /// [`InvalidName`] for the first name that can't be locked.
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

    /// Sets what other people's errors will say of this program. Default: nothing.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.set = self.set.with_label(label);
        self
    }

    /// Sets whether the locks are taken exclusively, the default, or shared.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.set = self.set.with_mode(mode);
        self
    }

    /// Acquires all of them if all are free, and waits for nobody.
    ///
    /// # Errors
    ///
    /// As [`LockSet::try_acquire`](crate::LockSet::try_acquire).
    pub fn try_acquire(&self) -> Result<LockSetGuard<B>, LockError> {
        self.run(|set| async move { set.try_acquire().await })
    }

    /// Acquires all of them, waiting as the set's policy says: one deadline for all together.
    ///
    /// # Errors
    ///
    /// As [`LockSet::acquire`](crate::LockSet::acquire).
    pub fn acquire(&self) -> Result<LockSetGuard<B>, LockError> {
        self.run(|set| async move { set.acquire().await })
    }

    /// As [`acquire`](Self::acquire), waiting as `policy` says.
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

/// Several locks that are held together; see [`crate::LockSetGuard`].
///
/// # On drop
///
/// All are released, the last one taken first.
#[derive(Debug)]
#[must_use = "the locks are released as soon as the guard is dropped"]
pub struct LockSetGuard<B: LockBackend> {
    guard: crate::LockSetGuard<B>,
    needs_runtime: bool,
}

impl<B: LockBackend> LockSetGuard<B> {
    /// What is held, sorted.
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.guard.names()
    }

    /// The fencing token of each name, where the backend has tokens.
    pub fn tokens(&self) -> impl Iterator<Item = (&LockName, Option<FencingToken>)> {
        self.guard.tokens()
    }

    /// Whether ownership of any of them is no longer certain.
    pub fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// One signal for all: it fires when the first of them is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.guard.lost_signal()
    }

    /// Releases all of them at the same time.
    ///
    /// # Errors
    ///
    /// As [`LockSetGuard::release`](crate::LockSetGuard::release).
    pub fn release(self) -> Result<(), LockError> {
        let first = self.guard.names().next().cloned();
        drive_set(first.as_ref(), self.needs_runtime, self.guard.release())
    }
}
