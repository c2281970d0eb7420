//! Sets of locks: several names, all or none, without deadlocks.

use std::{future::Future, pin::pin, time::Duration};

use futures_util::future::{Either, join_all, select};

use crate::{
    FencingToken, Guard, InvalidName, Lock, LockBackend, LockError, LockName, LostSignal, Mode,
    Policy,
    clock::Instant,
    engine::{deadline::bound, held::while_held, wait::Resolve},
};

/// How long a failed acquisition waits for the release of the locks that it had acquired.
const GIVE_BACK: Duration = Duration::from_secs(1);

/// Several locks of one backend, acquired together.
///
/// The locks are acquired in the order of their names, each name once. So two sets can't deadlock.
///
/// ```
/// use portalock_core::{LockError, LockSet, MemoryBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
/// let accounts = LockSet::new(MemoryBackend::new(), ["bob", "alice", "bob"])?;
/// let guard = accounts.acquire().await?;
/// assert_eq!(guard.names().map(|name| name.as_str()).collect::<Vec<_>>(), ["alice", "bob"]);
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct LockSet<B> {
    locks: Vec<Lock<B>>,
    mode: Mode,
    policy: Policy,
}

impl<B: LockBackend + Clone> LockSet<B> {
    /// The locks called `names` in `backend`: sorted, each name once. An empty set is acquired at once.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] for the first name that is not valid.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "takes a backend as every constructor does"
    )]
    pub fn new<N: AsRef<str>>(
        backend: B,
        names: impl IntoIterator<Item = N>,
    ) -> Result<Self, InvalidName> {
        let mut names = names
            .into_iter()
            .map(LockName::new)
            .collect::<Result<Vec<_>, _>>()?;
        names.sort_unstable();
        names.dedup();
        let locks = names
            .into_iter()
            .map(|name| Lock::new(backend.clone(), name))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            locks,
            mode: Mode::Exclusive,
            policy: Policy::default(),
        })
    }
}

impl<B: LockBackend> LockSet<B> {
    /// Sets how [`acquire`](Self::acquire) waits. Default: [`Policy::default`].
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets whether the locks are exclusive (the default) or shared.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets a label, which errors of other processes show beside this process's host and process id. Default: none.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<std::sync::Arc<str>>) -> Self {
        let label = label.into();
        self.locks = self
            .locks
            .into_iter()
            .map(|lock| lock.with_label(label.clone()))
            .collect();
        self
    }

    /// The names, in the order in which they are acquired.
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.locks.iter().map(Lock::name)
    }

    /// Acquires all locks if all are free, and doesn't wait for a holder. It waits for the service's answers for at
    /// most the timeout of the set's policy, or 5 s if the policy waits forever: one deadline for all names together.
    ///
    /// # Errors
    ///
    /// As [`Lock::try_acquire`], for the first name that was not granted.
    ///
    /// If another owner holds that name, the call releases the names that it had acquired, waits for this for at most a
    /// second, and then returns the error. If the service failed or didn't answer, the call doesn't wait. Locks that
    /// are not released by then are released in the background.
    ///
    /// # Cancel safety
    ///
    /// Safe: acquired locks are released in the background.
    pub async fn try_acquire(&self) -> Result<LockSetGuard<B>, LockError> {
        self.take(&self.policy, Resolve::Try).await
    }

    /// Acquires all locks, and waits for them according to the set's policy, with one deadline for all.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`], for the first name that was not granted. Names acquired before it are released as in
    /// [`try_acquire`](Self::try_acquire). [`LockError::Lost`] at once if one of these names was lost while the call waited
    /// for another.
    ///
    /// # Cancel safety
    ///
    /// Safe: acquired locks are released in the background.
    pub async fn acquire(&self) -> Result<LockSetGuard<B>, LockError> {
        self.acquire_with(&self.policy).await
    }

    /// Like [`acquire`](Self::acquire), with another policy.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_with(&self, policy: &Policy) -> Result<LockSetGuard<B>, LockError> {
        self.take(policy, Resolve::Wait).await
    }

    async fn take(&self, policy: &Policy, resolve: Resolve) -> Result<LockSetGuard<B>, LockError> {
        let start = Instant::now();
        let mut taken = LockSetGuard::new(Vec::with_capacity(self.locks.len()));
        for lock in &self.locks {
            let next = lock.run(self.mode, policy, resolve, Some(start));
            let granted = match select(pin!(next), pin!(taken.first_loss())).await {
                Either::Left((granted, _)) => granted,
                Either::Right((lost, _)) => Err(lost),
            };
            match granted {
                Ok(guard) => taken.guards.push(guard),
                Err(error) => {
                    // If the service does not answer, it would not answer a release either.
                    if error.is_contention() {
                        let until = Instant::now().checked_add(GIVE_BACK);
                        // The call returns the set's own error, not that of a release; the engine continues the
                        // release.
                        let _ = bound(until, taken.release()).await;
                    }
                    return Err(error);
                }
            }
        }
        taken.ensure_held()?;
        taken.lost = taken.merged_signal();
        Ok(taken)
    }
}

/// Several held locks.
///
/// # On drop
///
/// All locks are released in reverse order, each as by dropping a [`Guard`].
#[derive(Debug)]
#[must_use = "the locks are released as soon as the guard is dropped"]
pub struct LockSetGuard<B: LockBackend> {
    guards: Vec<Guard<B>>,
    lost: LostSignal,
}

impl<B: LockBackend> LockSetGuard<B> {
    fn new(guards: Vec<Guard<B>>) -> Self {
        Self {
            guards,
            lost: LostSignal::never(),
        }
    }

    fn merged_signal(&self) -> LostSignal {
        LostSignal::any(self.guards.iter().map(Guard::lost_signal))
    }

    /// Waits until one of the locks is lost.
    async fn first_loss(&self) -> LockError {
        loop {
            if let Err(lost) = self.ensure_held() {
                return lost;
            }
            self.merged_signal().lost().await;
        }
    }

    /// The held names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &LockName> {
        self.guards.iter().map(Guard::name)
    }

    /// The fencing token of each name; `None` if the backend has no tokens.
    pub fn tokens(&self) -> impl Iterator<Item = (&LockName, Option<FencingToken>)> {
        self.guards
            .iter()
            .map(|guard| (guard.name(), guard.token()))
    }

    /// Whether any of the locks is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.is_lost()
    }

    /// One signal for all locks: it fires when the first of them is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.lost.clone()
    }

    /// Returns an error if any of the locks is lost.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] for the first lost lock.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.guards.iter().try_for_each(Guard::ensure_held)
    }

    /// Runs `work` while all locks are held; see [`Guard::run`].
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if one of them was lost before `work` had ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future drops `work`; the locks stay held.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LockError> {
        while_held(self.first_loss(), || self.ensure_held(), work).await
    }

    /// Releases all locks concurrently. It takes no longer than one [`Guard::release`], which waits at most 5 s for the
    /// service.
    ///
    /// # Errors
    ///
    /// The first error of [`Guard::release`], from the last name to the first. The other locks are released
    /// nevertheless.
    ///
    /// # Cancel safety
    ///
    /// Safe: if the future is dropped, the release continues in the background.
    pub async fn release(mut self) -> Result<(), LockError> {
        let releases = self.guards.drain(..).rev().map(Guard::release);
        join_all(releases).await.into_iter().collect()
    }
}

impl<B: LockBackend> Drop for LockSetGuard<B> {
    fn drop(&mut self) {
        while let Some(guard) = self.guards.pop() {
            drop(guard);
        }
    }
}

#[cfg(test)]
mod tests;
