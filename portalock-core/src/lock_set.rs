//! Sets of locks: several names, all or none, without deadlocks.

use std::{future::Future, pin::pin, time::Duration};

use futures_util::future::{Either, join_all, select};

use crate::{
    FencingToken, Guard, InvalidName, Lock, LockBackend, LockError, LockName, LostSignal, Mode,
    Policy,
    clock::Instant,
    engine::{deadline::bound, wait::Resolve},
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

/// Acquires `names` in `backend` exclusively: all or none, with one deadline. See [`LockSet`].
///
/// # Errors
///
/// As [`LockSet::acquire`], and [`LockError::InvalidName`].
///
/// # Cancel safety
///
/// As [`LockSet::acquire`].
pub async fn acquire_all<B, N>(
    backend: B,
    names: impl IntoIterator<Item = N>,
    policy: &Policy,
) -> Result<LockSetGuard<B>, LockError>
where
    B: LockBackend + Clone,
    N: AsRef<str>,
{
    LockSet::new(backend, names)?.acquire_with(policy).await
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
        // The loss is polled first, so that work doesn't continue after a lock was lost.
        match select(pin!(self.first_loss()), pin!(work)).await {
            Either::Left((lost, _)) => Err(lost),
            Either::Right((output, _)) => {
                self.ensure_held()?;
                Ok(output)
            }
        }
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
mod tests {
    use super::*;
    use crate::{Attempt, BackendError, Capabilities, LockRequest, MemoryBackend, Released, Scope};

    #[tokio::test]
    async fn opposite_orders_do_not_deadlock() {
        let backend = MemoryBackend::new();
        let tasks: Vec<_> = (0..8)
            .map(|number| {
                let names = if number % 2 == 0 {
                    ["a", "b", "c"]
                } else {
                    ["c", "b", "a"]
                };
                let backend = backend.clone();
                tokio::spawn(async move {
                    for _ in 0..50 {
                        let guard = acquire_all(backend.clone(), names, &Policy::forever())
                            .await
                            .unwrap();
                        tokio::task::yield_now().await;
                        guard.release().await.unwrap();
                    }
                })
            })
            .collect();
        let all = futures_util::future::join_all(tasks);
        for task in tokio::time::timeout(Duration::from_secs(30), all)
            .await
            .expect("deadlock")
        {
            task.unwrap();
        }
        assert_eq!(backend.names_in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_deadline_for_all_and_none_is_kept() {
        let backend = MemoryBackend::new();
        let last = Lock::new(backend.clone(), "c")
            .unwrap()
            .acquire()
            .await
            .unwrap();
        let start = Instant::now();
        let policy = Policy::new().with_timeout(Duration::from_secs(3));
        let error = acquire_all(backend.clone(), ["a", "b", "c"], &policy)
            .await
            .unwrap_err();
        assert!(error.is_contention());
        assert_eq!(start.elapsed().as_secs(), 3);
        drop(last);
        assert_eq!(backend.names_in_use(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn time_spent_on_one_name_is_not_there_for_the_next() {
        let backend = MemoryBackend::new();
        let lock = |name| Lock::new(backend.clone(), name).unwrap();
        let first = lock("a").acquire().await.unwrap();
        let _last = lock("b").acquire().await.unwrap();
        let start = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(first);
        });
        let policy = Policy::new().with_timeout(Duration::from_secs(3));
        let error = acquire_all(backend.clone(), ["a", "b"], &policy)
            .await
            .unwrap_err();
        assert_eq!(start.elapsed().as_secs(), 3);
        let LockError::Timeout { waited, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(waited.as_secs(), 3, "how long the whole call lasted");
    }

    /// A service that takes its time for every answer.
    #[derive(Debug, Clone)]
    struct Slow {
        store: MemoryBackend,
        grant: Duration,
        release: Duration,
    }

    impl Slow {
        fn new(grant: Duration, release: Duration) -> Self {
            Self {
                store: MemoryBackend::new(),
                grant,
                release,
            }
        }
    }

    #[async_trait::async_trait]
    impl LockBackend for Slow {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new(Scope::Network)
        }

        async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
            tokio::time::sleep(self.grant).await;
            LockBackend::try_acquire(&self.store, request).await
        }

        async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
            tokio::time::sleep(self.release).await;
            LockBackend::release(&self.store, request).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn trying_a_set_ends_at_the_sets_own_timeout() {
        let policy = Policy::new().with_timeout(Duration::from_millis(100));
        let set = LockSet::new(Slow::new(Duration::MAX, Duration::ZERO), ["a", "b"])
            .unwrap()
            .with_policy(policy);
        let start = Instant::now();
        assert!(!set.try_acquire().await.unwrap_err().is_contention());
        assert_eq!(start.elapsed(), Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn one_attempt_each_shares_one_deadline() {
        let set = || {
            let slow = Slow::new(Duration::from_secs(4), Duration::ZERO);
            LockSet::new(slow, ["a", "b", "c"]).unwrap()
        };
        let none = Policy::new().with_timeout(Duration::ZERO);
        let start = Instant::now();
        assert!(set().acquire_with(&none).await.is_err());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        let start = Instant::now();
        assert!(set().try_acquire().await.is_err());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_could_not_be_had_has_given_back_what_it_took() {
        let slow = Slow::new(Duration::ZERO, Duration::from_millis(300));
        let held = Lock::new(slow.clone(), "c").unwrap().acquire().await;
        let set = LockSet::new(slow.clone(), ["a", "b", "c"]).unwrap();
        let start = Instant::now();
        assert!(set.try_acquire().await.unwrap_err().is_contention());
        assert_eq!(
            slow.store.names_in_use(),
            1,
            "only what somebody else holds"
        );
        assert_eq!(
            start.elapsed(),
            Duration::from_millis(300),
            "at the same time"
        );
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_that_hangs_keeps_a_failed_set_for_a_second_only() {
        let hangs = Slow::new(Duration::ZERO, Duration::MAX);
        let _held = Lock::new(hangs.clone(), "c").unwrap().acquire().await;
        let set = LockSet::new(hangs, ["a", "b", "c"]).unwrap();
        let start = Instant::now();
        assert!(set.try_acquire().await.unwrap_err().is_contention());
        assert_eq!(start.elapsed(), GIVE_BACK);
    }

    #[tokio::test(start_paused = true)]
    async fn releasing_a_set_takes_as_long_as_releasing_one() {
        let hangs = Slow::new(Duration::ZERO, Duration::MAX);
        let guard = acquire_all(hangs, ["a", "b", "c"], &Policy::new())
            .await
            .unwrap();
        let start = Instant::now();
        assert!(guard.release().await.is_err());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test]
    async fn one_lost_is_all_lost() {
        let backend = MemoryBackend::new();
        let guard = acquire_all(backend.clone(), ["a", "b"], &Policy::new())
            .await
            .unwrap();
        {
            let mut work = pin!(guard.run(std::future::pending::<()>()));
            assert!(futures_util::poll!(&mut work).is_pending());
            backend.lose(&LockName::new("b").unwrap());
            let lost = work.await;
            assert!(matches!(lost, Err(LockError::Lost { name, .. }) if name.as_str() == "b"));
        }
        assert!(guard.release().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_loss_while_another_name_is_waited_for_ends_the_wait() {
        let backend = MemoryBackend::new();
        let lock = |name| Lock::new(backend.clone(), name).unwrap();
        let held = lock("b").acquire().await.unwrap();
        let set = LockSet::new(backend.clone(), ["a", "b"]).unwrap();
        let forever = Policy::forever();
        {
            let mut waits = pin!(set.acquire_with(&forever));
            assert!(futures_util::poll!(&mut waits).is_pending());
            backend.lose(&LockName::new("a").unwrap());
            let ended = tokio::time::timeout(Duration::from_secs(3600), waits).await;
            let lost = ended.expect("it waits for the other name").unwrap_err();
            assert!(matches!(lost, LockError::Lost { name, .. } if name.as_str() == "a"));
        }
        drop(held);
        assert_eq!(backend.names_in_use(), 0, "nobody waits any more");
    }

    /// Takes the name `a` away while it grants another.
    #[derive(Debug, Clone)]
    struct Fickle(MemoryBackend);

    #[async_trait::async_trait]
    impl LockBackend for Fickle {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new(Scope::Process)
        }

        async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
            if request.name.as_str() != "a" {
                self.0.lose(&LockName::new("a").unwrap());
            }
            LockBackend::try_acquire(&self.0, request).await
        }

        async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
            LockBackend::release(&self.0, request).await
        }
    }

    #[tokio::test]
    async fn a_set_with_a_lost_lock_is_not_granted() {
        let set = LockSet::new(Fickle(MemoryBackend::new()), ["a", "b"]).unwrap();
        let lost = set.acquire().await.map(drop);
        assert!(matches!(lost, Err(LockError::Lost { .. })), "{lost:?}");
    }

    #[tokio::test]
    async fn an_empty_set_is_held_at_once() {
        let none: [&str; 0] = [];
        let guard = acquire_all(MemoryBackend::new(), none, &Policy::new())
            .await
            .unwrap();
        assert_eq!(guard.names().count(), 0);
        guard.release().await.unwrap();
    }
}
