//! A lock that its owner can acquire again: portalocker's `RLock`.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::coop::unconstrained;

use crate::{
    BackendError, BackendErrorKind, Guard, InvalidName, Lock, LockBackend, LockError, Loss,
    LostSignal, Mode, OwnerId, Policy,
    clock::Instant,
    engine::{deadline::Deadline, held::while_held, wait::Resolve},
    wakeups::run_wake_ups,
};

/// A lock that can be acquired again while it is held; the acquisitions are counted. The owner is this object with its
/// clones, because tasks have no reliable identity. To share the lock between tasks, share the object.
///
/// The underlying lock is released when the last guard is dropped or released. A forked child has copies of its
/// parent's guards, but they don't admit the child.
///
/// ```
/// use portalock_core::{Lock, LockError, MemoryBackend, ReentrantLock};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
/// let lock = ReentrantLock::new(Lock::new(MemoryBackend::new(), "deploy")?);
/// let outer = lock.acquire().await?;
/// let inner = lock.acquire().await?;
/// assert_eq!(lock.count(), 2);
/// inner.release().await?;
/// outer.release().await?;
/// assert_eq!(lock.count(), 0);
/// # Ok(()) }
/// ```
pub struct ReentrantLock<B: LockBackend> {
    inner: Arc<Inner<B>>,
}

struct Inner<B: LockBackend> {
    lock: Lock<B>,
    /// Held by the one task that acquires the underlying lock; other tasks wait here.
    first: tokio::sync::Mutex<()>,
    state: Mutex<State<B>>,
}

/// The turn of one task. Dropping it wakes the next one.
struct Turn<'l>(Option<tokio::sync::MutexGuard<'l, ()>>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // A panic here would leak the guard that `run` is about to return.
        run_wake_ups(|| drop(self.0.take()));
    }
}

struct State<B: LockBackend> {
    count: usize,
    guard: Option<Guard<B>>,
}

impl<B: LockBackend> ReentrantLock<B> {
    /// Counts the acquisitions of `lock` made through this object and its clones.
    pub fn new(lock: Lock<B>) -> Self {
        let state = Mutex::new(State {
            count: 0,
            guard: None,
        });
        Self {
            inner: Arc::new(Inner {
                lock,
                first: tokio::sync::Mutex::new(()),
                state,
            }),
        }
    }

    /// A reentrant lock on the lock called `name` in `backend`.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] as [`Lock::new`].
    pub fn named(backend: B, name: impl AsRef<str>) -> Result<Self, InvalidName> {
        Lock::new(backend, name).map(Self::new)
    }

    /// The underlying lock.
    pub fn lock(&self) -> &Lock<B> {
        &self.inner.lock
    }

    /// The number of guards.
    pub fn count(&self) -> usize {
        self.inner.state().count
    }

    /// Acquires the lock once more if it is free or held through this object. Doesn't wait for another holder.
    ///
    /// # Errors
    ///
    /// As [`Lock::try_acquire`]. [`LockError::Lost`] if the lock was held through this object and is lost: drop all
    /// guards first. [`LockError::AlreadyLocked`] also if another task waits for the lock through this object.
    ///
    /// # Cancel safety
    ///
    /// Safe: the count does not change.
    pub async fn try_acquire(&self) -> Result<ReentrantGuard<B>, LockError> {
        self.run(self.lock().policy(), Resolve::Try).await
    }

    /// Acquires the lock once more. If it is not held through this object, the call waits according to the lock's
    /// policy.
    ///
    /// # Errors
    ///
    /// As [`Lock::acquire`]. [`LockError::Lost`] if the lock was held through this object and is lost: drop all guards
    /// first. If another task waits for the lock through this object, the lock counts as held.
    ///
    /// # Cancel safety
    ///
    /// Safe: the count does not change.
    pub async fn acquire(&self) -> Result<ReentrantGuard<B>, LockError> {
        self.acquire_with(self.lock().policy()).await
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
    pub async fn acquire_with(&self, policy: &Policy) -> Result<ReentrantGuard<B>, LockError> {
        self.run(policy, Resolve::Wait).await
    }

    async fn run(&self, policy: &Policy, resolve: Resolve) -> Result<ReentrantGuard<B>, LockError> {
        if let Some(guard) = self.count_one()? {
            return Ok(guard);
        }
        let start = Instant::now();
        let first = if resolve == Resolve::Try || policy.fail_when_locked() {
            let first = self.inner.first.try_lock();
            first.map_err(|_| LockError::AlreadyLocked {
                name: self.lock().name().clone(),
                permits: None,
                holder: None,
            })?
        } else {
            // Unconstrained: a task that must yield first would miss a deadline that is now, although nobody is ahead.
            let first = unconstrained(self.inner.first.lock());
            let first = Deadline::after(start, policy.timeout()).bound(first);
            first.await.ok_or_else(|| LockError::Timeout {
                name: self.lock().name().clone(),
                waited: start.elapsed(),
                attempts: 0,
                holder: None,
                last_error: None,
            })?
        };
        let _turn = Turn(Some(first));
        if let Some(guard) = self.count_one()? {
            return Ok(guard);
        }
        let lock = self.lock();
        lock.run(Mode::Exclusive, policy, resolve, Some(start))
            .await
            .map(|guard| self.begin(guard))
    }

    fn count_one(&self) -> Result<Option<ReentrantGuard<B>>, LockError> {
        let mut state = self.inner.state();
        let Some(guard) = &state.guard else {
            return Ok(None);
        };
        if guard.owner().is_inherited() {
            return Err(self.is_parents());
        }
        guard.ensure_held()?;
        let (owner, lost) = (guard.owner(), guard.lost_signal());
        state.count += 1;
        Ok(Some(self.guard(owner, lost)))
    }

    /// A forked child has copies of its parent's guards, but holds nothing.
    fn is_parents(&self) -> LockError {
        let held = "it is held by the process that this one was forked from";
        LockError::Backend {
            name: self.lock().name().clone(),
            source: BackendError::new(BackendErrorKind::Misconfigured, held),
        }
    }

    fn begin(&self, guard: Guard<B>) -> ReentrantGuard<B> {
        let (owner, lost) = (guard.owner(), guard.lost_signal());
        let mut state = self.inner.state();
        state.count = 1;
        state.guard = Some(guard);
        self.guard(owner, lost)
    }

    fn guard(&self, owner: OwnerId, lost: LostSignal) -> ReentrantGuard<B> {
        ReentrantGuard {
            inner: self.inner.clone(),
            owner,
            lost,
            counted: true,
        }
    }
}

impl<B: LockBackend> Inner<B> {
    fn state(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes one guard of `owner`. The last one returns the underlying guard.
    fn uncount(&self, owner: OwnerId) -> Option<Guard<B>> {
        let mut state = if owner.is_inherited() {
            // A thread of this forked child's parent may have had the mutex during the fork.
            self.state.try_lock().ok()?
        } else {
            self.state()
        };
        state.count -= 1;
        if state.count == 0 {
            state.guard.take()
        } else {
            None
        }
    }
}

impl<B: LockBackend> Clone for ReentrantLock<B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<B: LockBackend> fmt::Debug for ReentrantLock<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReentrantLock")
            .field("lock", &self.inner.lock)
            .field("count", &self.count())
            .finish_non_exhaustive()
    }
}

/// One of the counted acquisitions.
///
/// # On drop
///
/// The count decreases. The last guard releases the lock, as a [`Guard`] does.
#[must_use = "the acquisition ends as soon as the guard is dropped"]
pub struct ReentrantGuard<B: LockBackend> {
    inner: Arc<Inner<B>>,
    /// Of the underlying guard.
    owner: OwnerId,
    lost: LostSignal,
    counted: bool,
}

impl<B: LockBackend> ReentrantGuard<B> {
    /// Whether the underlying lock is lost.
    pub fn is_lost(&self) -> bool {
        self.lost.is_lost()
    }

    /// A signal that fires if the underlying lock is lost.
    pub fn lost_signal(&self) -> LostSignal {
        self.lost.clone()
    }

    /// The fencing token of the underlying lock; `None` if the backend has no tokens.
    pub fn token(&self) -> Option<crate::FencingToken> {
        self.inner.state().guard.as_ref().and_then(Guard::token)
    }

    /// Returns an error if the underlying lock is lost.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] with the reason.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.lost
            .loss()
            .map_or(Ok(()), |loss| Err(self.lost_by(loss)))
    }

    /// Runs `work` while the lock is held; see [`Guard::run`].
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if the lock was lost before `work` had ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future drops `work`; the acquisition goes on.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LockError> {
        let lost = async { self.lost_by(self.lost.lost().await) };
        while_held(lost, || self.ensure_held(), work).await
    }

    fn lost_by(&self, loss: Loss) -> LockError {
        LockError::Lost {
            name: self.inner.lock.name().clone(),
            loss,
        }
    }

    /// Ends this acquisition. The last one releases the lock, and reports errors.
    ///
    /// # Errors
    ///
    /// As [`Guard::release`] for the last guard. [`LockError::Lost`] for an earlier guard if the lock is lost.
    ///
    /// # Cancel safety
    ///
    /// Safe: if the future is dropped, the release continues in the background.
    pub async fn release(mut self) -> Result<(), LockError> {
        let held = self.ensure_held();
        self.counted = false;
        match self.inner.uncount(self.owner) {
            Some(last) => last.release().await,
            None => held,
        }
    }
}

impl<B: LockBackend> Drop for ReentrantGuard<B> {
    fn drop(&mut self) {
        if self.counted {
            drop(self.inner.uncount(self.owner));
        }
    }
}

impl<B: LockBackend> fmt::Debug for ReentrantGuard<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReentrantGuard")
            .field("lock", &self.inner.lock)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Grant, LockRequest, Loss, MemoryBackend, Patience,
        engine::{held::Held, service::Locks},
    };
    use std::{
        task::{Context, Wake},
        time::Duration,
    };
    use tokio::task::JoinHandle;

    /// A lock that another client holds, and the guard of that client.
    async fn held_by_another() -> (ReentrantLock<MemoryBackend>, Guard<MemoryBackend>) {
        let backend = MemoryBackend::new();
        let other = Lock::new(backend.clone(), "r").unwrap();
        let held = other.acquire().await.unwrap();
        (ReentrantLock::named(backend, "r").unwrap(), held)
    }

    /// Another task that waits through the same object.
    async fn sibling(
        lock: &ReentrantLock<MemoryBackend>,
        policy: Policy,
    ) -> JoinHandle<Result<(), LockError>> {
        let lock = lock.clone();
        let waiting = tokio::spawn(async move { lock.acquire_with(&policy).await.map(drop) });
        tokio::task::yield_now().await;
        waiting
    }

    #[tokio::test]
    async fn the_lock_is_released_with_the_last_guard_in_any_order() {
        let backend = MemoryBackend::new();
        let lock = ReentrantLock::named(backend.clone(), "r").unwrap();
        let other = Lock::new(backend, "r").unwrap();
        let first = lock.acquire().await.unwrap();
        let second = lock.acquire().await.unwrap();
        let third = lock.try_acquire().await.unwrap();
        drop(first);
        second.release().await.unwrap();
        assert!(other.try_acquire().await.is_err());
        drop(third);
        assert!(other.try_acquire().await.is_ok());
    }

    #[tokio::test]
    async fn tasks_that_start_together_share_one_acquisition() {
        let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let lock = lock.clone();
                tokio::spawn(async move { lock.acquire().await.unwrap() })
            })
            .collect();
        let mut guards = Vec::new();
        for task in tasks {
            guards.push(task.await.unwrap());
        }
        assert_eq!(lock.count(), 20);
        let tokens: std::collections::HashSet<_> =
            guards.iter().map(ReentrantGuard::token).collect();
        assert_eq!(tokens.len(), 1);
        drop(guards);
        assert_eq!(lock.count(), 0);
    }

    #[tokio::test]
    async fn a_free_lock_needs_no_time_however_often_a_task_takes_it() {
        let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
        let at_once = Policy::new().with_timeout(Duration::ZERO);
        // More often than a task may go on before it must yield.
        for _ in 0..1000 {
            drop(lock.acquire_with(&at_once).await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_deadline_covers_waiting_for_a_sibling() {
        let (lock, held) = held_by_another().await;
        let waiting = sibling(&lock, Policy::forever()).await;
        let start = Instant::now();
        let policy = Policy::new().with_timeout(Duration::from_secs(2));
        assert!(
            lock.acquire_with(&policy)
                .await
                .unwrap_err()
                .is_contention()
        );
        assert_eq!(start.elapsed().as_secs(), 2);
        drop(held);
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn time_spent_behind_a_sibling_is_not_there_for_the_lock() {
        let (lock, _held) = held_by_another().await;
        let policy = Policy::new().with_timeout(Duration::from_secs(1));
        let gives_up = sibling(&lock, policy).await;
        let start = Instant::now();
        let policy = Policy::new().with_timeout(Duration::from_secs(3));
        assert!(lock.acquire_with(&policy).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 3);
        assert!(gives_up.await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn fail_when_locked_does_not_wait_behind_a_sibling() {
        let (lock, _held) = held_by_another().await;
        let waiting = sibling(&lock, Policy::forever()).await;
        let start = Instant::now();
        let policy = Policy::new().with_fail_when_locked(true);
        let error = lock.acquire_with(&policy).await.unwrap_err();
        assert!(matches!(error, LockError::AlreadyLocked { .. }), "{error}");
        assert_eq!(start.elapsed(), Duration::ZERO);
        waiting.abort();
    }

    #[tokio::test]
    async fn a_siblings_waker_that_panics_costs_nobody_the_lock() {
        /// As the waker of an event loop that has ended.
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("this executor has ended");
            }
        }
        let (lock, held) = held_by_another().await;
        let first = sibling(&lock, Policy::forever()).await;
        let forever = Policy::forever();
        let mut second = Box::pin(lock.acquire_with(&forever));
        let panics = Arc::new(Panics).into();
        let waits = second.as_mut().poll(&mut Context::from_waker(&panics));
        assert!(waits.is_pending());
        drop(held);
        first.await.unwrap().unwrap();
        assert_eq!(lock.count(), 0);
        drop(second);
        lock.acquire().await.unwrap().release().await.unwrap();
    }

    /// A guard that was acquired before a fork, in the child.
    fn inherited(lock: &ReentrantLock<MemoryBackend>) -> ReentrantGuard<MemoryBackend> {
        let mut request =
            LockRequest::new(lock.lock().name().clone(), Mode::Exclusive, Patience::Once);
        request.owner = format!("1-{:x}-1", std::process::id() + 1).parse().unwrap();
        let service = Locks(Arc::new(lock.lock().backend().clone()));
        let held = Held::new(service, Arc::new(request), Grant::new());
        lock.begin(Guard::new(held))
    }

    #[tokio::test]
    async fn a_forked_child_is_not_let_in_by_its_parents_guard() {
        let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
        let parents = inherited(&lock);
        let error = lock.acquire().await.unwrap_err();
        assert!(!error.is_contention() && !error.is_retryable(), "{error}");
        drop(parents);
        lock.acquire().await.unwrap().release().await.unwrap();
    }

    #[test]
    fn a_forked_child_that_drops_a_guard_waits_for_no_thread_of_its_parent() {
        let lock = ReentrantLock::named(MemoryBackend::new(), "r").unwrap();
        let parents = inherited(&lock);
        let (sender, dropped) = std::sync::mpsc::channel();
        // As a thread of the parent during the fork.
        let state = lock.inner.state();
        std::thread::spawn(move || {
            drop(parents);
            sender.send(()).unwrap();
        });
        let dropped = dropped.recv_timeout(Duration::from_secs(60));
        drop(state);
        dropped.unwrap();
    }

    #[tokio::test]
    async fn a_lost_lock_is_not_entered_again() {
        let backend = MemoryBackend::new();
        let lock = ReentrantLock::named(backend.clone(), "r").unwrap();
        let guard = lock.acquire().await.unwrap();
        backend.lose(lock.lock().name());
        assert!(matches!(
            lock.acquire().await,
            Err(LockError::Lost {
                loss: Loss::Removed(_),
                ..
            })
        ));
        assert!(guard.release().await.is_err());
        assert!(
            lock.acquire().await.is_ok(),
            "a new acquisition starts once all lost guards are gone"
        );
    }
}
