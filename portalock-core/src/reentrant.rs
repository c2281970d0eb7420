//! A lock that its owner can acquire again: portalocker's `RLock`.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::coop::{consume_budget, unconstrained};

use crate::{
    BackendError, Guard, InvalidName, Lock, LockBackend, LockError, Loss, LostSignal, Mode,
    OwnerId, Policy,
    clock::Instant,
    engine::{deadline::Deadline, held::while_held, wait::Resolve},
    wakeups::run_wake_ups,
};

/// A lock that can be acquired again while it is held; the acquisitions are counted. The owner is this object with its
/// clones, because tasks have no reliable identity. To share the lock between tasks, share the object.
///
/// The underlying lock is released when the last guard is dropped or released. A forked child has copies of its
/// parent's guards, but an inherited object refuses to lock.
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
    /// The process that made it.
    process: u32,
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
                process: std::process::id(),
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

    /// The number of guards. None in a forked child, which holds nothing.
    pub fn count(&self) -> usize {
        if self.inner.is_inherited() {
            return 0;
        }
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
        if self.inner.is_inherited() {
            return Err(LockError::Backend {
                name: self.lock().name().clone(),
                source: BackendError::forked(),
            });
        }
        // As `Lock::acquire`, also if the lock is already held: a task that does so in a loop would never let others run.
        consume_budget().await;
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
        guard.ensure_held()?;
        let (owner, lost) = (guard.owner(), guard.lost_signal());
        state.count += 1;
        Ok(Some(self.guard(owner, lost)))
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
    /// Whether this is a forked child, which holds nothing. A thread of its parent may have had a mutex during the fork, or its turn.
    fn is_inherited(&self) -> bool {
        self.process != std::process::id()
    }

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

    /// The fencing token of the underlying lock; `None` if the backend has no tokens, and in a forked child.
    pub fn token(&self) -> Option<crate::FencingToken> {
        if self.inner.is_inherited() {
            return None;
        }
        self.inner.state().guard.as_ref().and_then(Guard::token)
    }

    /// Returns an error if the underlying lock is lost.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] with the reason.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.lost
            .loss_of(self.owner)
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
mod tests;
