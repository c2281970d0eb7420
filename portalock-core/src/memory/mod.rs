//! The reference backend: locks and semaphores in this process's memory, first come, first served.
//!
//! Use it in unit tests. The conformance suite itself is tested on it.

mod table;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use self::table::Table;
use crate::{
    Attempt, BackendError, Capabilities, CrashRelease, Fairness, FencingToken, Holder, HolderWatch,
    Inspect, Inspection, LockBackend, LockName, LockRequest, Loss, LossNotice, Marked, OwnerId,
    PermitRequest, Released, Scope, Semaphore, Tokens, Wakeups,
};

/// Locks and semaphores in memory: fair, with tokens, and without I/O.
///
/// Clones share one store; [`new`](Self::new) creates another. If your code takes any [`LockBackend`], its tests need
/// no server:
///
/// ```
/// use portalock_core::{Lock, LockBackend, LockError, MemoryBackend};
///
/// async fn nightly<B: LockBackend>(lock: &Lock<B>) -> Result<&'static str, LockError> {
///     let _guard = lock.acquire().await?;
///     Ok("done")
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
/// let lock = Lock::new(MemoryBackend::new(), "nightly")?;
/// assert_eq!(nightly(&lock).await?, "done");
/// # Ok(()) }
/// ```
///
/// [`lose`](Self::lose) takes a lock away from its holders, to test how your code reacts.
#[derive(Clone, Default)]
pub struct MemoryBackend {
    store: Arc<Store>,
}

/// Locks and semaphores have separate names.
#[derive(Default)]
struct Store {
    locks: Mutex<Table>,
    semaphores: Mutex<Table>,
}

impl MemoryBackend {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another client of the same store: the same as a clone.
    #[must_use]
    pub fn client(&self) -> Self {
        self.clone()
    }

    /// Takes the lock `name` away from all its holders: their `lost` fires, and then the next waiter is granted. For
    /// tests of code that must handle a loss. Returns the number of holders.
    pub fn lose(&self, name: &LockName) -> usize {
        let loss = Loss::Removed("taken away by MemoryBackend::lose".into());
        self.locks(|table| table.lose(name, &loss))
    }

    /// The number of names with holders or waiters, for tests that nothing was left behind.
    pub fn names_in_use(&self) -> usize {
        let locks = self.locks(|table| table.len());
        locks + self.semaphores(|table| table.len())
    }

    fn locks<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        change(&self.store.locks, act)
    }

    fn semaphores<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        change(&self.store.semaphores, act)
    }

    const fn promises() -> Capabilities {
        Capabilities::new(Scope::Process)
            .with_shared(true)
            .with_fairness(Fairness::FirstCome)
            .with_tokens(Tokens::Growing)
            .with_crash_release(CrashRelease::WithProcess)
            .with_loss(LossNotice::BeforeSuccessor)
            .with_inspect(Inspect::HoldersAndWaiters)
            .with_breaks(true)
            .with_releases_now(true)
            .with_needs_runtime(false)
    }
}

#[async_trait]
impl LockBackend for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        Self::promises()
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        Ok(self.locks(|table| table.attempt(request)))
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        Ok(let_go(&self.store.locks, &request.name, request.owner))
    }

    async fn subscribe(&self, request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(Some(
            self.locks(|table| table.listen(&request.name, request.owner)),
        ))
    }

    fn release_now(&self, request: &LockRequest) -> bool {
        let_go(&self.store.locks, &request.name, request.owner);
        true
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        Ok(self.locks(|table| table.inspect(name)))
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        Ok(Some(self.locks(|table| table.watch(name))))
    }

    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        Ok(self.locks(|table| table.names()))
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        let loss = Loss::Broken(Arc::new(by.clone()));
        Ok(self.locks(|table| {
            let hold = table.held_with(name, owner)?.get();
            table.lose_some(name, &[owner], &loss);
            Some(Marked::new(Duration::ZERO, hold))
        }))
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        let loss = Loss::Removed("its holder did not respond".into());
        Ok(self.locks(|table| {
            if table.held_with(name, owner).map(FencingToken::get) != Some(hold) {
                return Released::NotHeld;
            }
            table.lose_some(name, &[owner], &loss);
            Released::Freed
        }))
    }
}

#[async_trait]
impl Semaphore for MemoryBackend {
    fn capabilities(&self) -> Capabilities {
        Self::promises()
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        Ok(self.semaphores(|table| table.attempt(request)))
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        Ok(let_go(&self.store.semaphores, &request.name, request.owner))
    }

    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        Ok(Some(self.semaphores(|table| {
            table.listen(&request.name, request.owner)
        })))
    }

    fn release_now(&self, request: &PermitRequest) -> bool {
        let_go(&self.store.semaphores, &request.name, request.owner);
        true
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        Ok(self.semaphores(|table| table.inspect(name)))
    }
}

/// Changes a table, and then tells of it.
///
/// If another call is telling the watches, or this one is called by a wake-up, that call also tells them of this change, so
/// that changes stay in order. Grants and losses have no order, so each call tells its own: it would not end if it told those
/// of many others.
fn change<T>(table: &Mutex<Table>, act: impl FnOnce(&mut Table) -> T) -> T {
    let mut locked = lock(table);
    let changed = act(&mut locked);
    let news = locked.news();
    let mut change = locked.next_change();
    drop(locked);
    for message in news {
        message.tell();
    }
    while let Some(message) = change {
        message.tell();
        change = lock(table).change_after_one();
    }
    changed
}

fn let_go(table: &Mutex<Table>, name: &LockName, owner: OwnerId) -> Released {
    // A forked child drops copies of its parent's guards. If a thread of the parent had the mutex during the fork, it is never
    // free here.
    if table.try_lock().is_err() && owner.is_inherited() {
        return Released::NotHeld;
    }
    change(table, |table| table.release(name, owner))
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // No code of others runs while it is held.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend")
            .field("names_in_use", &self.names_in_use())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::mpsc,
        task::{Context, Wake},
        thread,
        time::Duration,
    };

    use futures_util::FutureExt;

    use super::*;
    use crate::{Mode, Patience, Permits, request::tests::of_a_parent};

    #[test]
    fn a_forked_child_that_drops_a_guard_waits_for_no_thread_of_its_parent() {
        let backend = MemoryBackend::new();
        let name = LockName::new("a").unwrap();
        let parents = of_a_parent();
        let mut lock_request = LockRequest::new(name.clone(), Mode::Exclusive, Patience::Once);
        lock_request.owner = parents;
        let one = Permits::new(1, 1).unwrap();
        let mut permit_request = PermitRequest::new(name, one, Patience::Once);
        permit_request.owner = parents;
        let child = backend.clone();
        let (sender, released) = mpsc::channel();
        // As threads of the parent during the fork.
        let (locks, semaphores) = (lock(&backend.store.locks), lock(&backend.store.semaphores));
        thread::spawn(move || {
            let lock = LockBackend::release_now(&child, &lock_request);
            let permit = Semaphore::release_now(&child, &permit_request);
            sender.send((lock, permit)).unwrap();
        });
        let released = released.recv_timeout(Duration::from_secs(60));
        drop((locks, semaphores));
        assert_eq!(released, Ok((true, true)));
    }

    /// As one whose lock is broken between its attempt and its subscription. The engine would poll if the line were only silent, with
    /// the check interval of its policy, which may be an hour.
    #[tokio::test]
    async fn a_waiter_that_lost_its_place_before_it_listens_is_told_to_take_another() {
        let backend = MemoryBackend::new();
        let name = LockName::new("a").unwrap();
        let [held, waiting] = [(); 2].map(|()| {
            let request = LockRequest::new(name.clone(), Mode::Exclusive, Patience::Queue);
            let attempt = LockBackend::try_acquire(&backend, &request).now_or_never();
            let _kept = attempt.unwrap().unwrap();
            request
        });
        LockBackend::release_now(&backend, &held);
        assert_eq!(backend.lose(&name), 1);
        let line = LockBackend::subscribe(&backend, &waiting).await.unwrap();
        let told = line.unwrap().next().await;
        assert!(
            matches!(&told, crate::Wake::Failed(error) if error.is_retryable()),
            "{told:?}"
        );
    }

    /// As that of an executor that polls at once.
    struct Uses(MemoryBackend);

    impl Wake for Uses {
        fn wake(self: Arc<Self>) {
            self.0.names_in_use();
        }
    }

    #[test]
    fn a_waiter_that_still_listens_is_woken_after_its_release() {
        let (sender, released) = mpsc::channel();
        thread::spawn(move || {
            let backend = MemoryBackend::new();
            let [_, waiting] = [(); 2].map(|()| {
                let name = LockName::new("a").unwrap();
                let request = LockRequest::new(name, Mode::Exclusive, Patience::Queue);
                let attempt = LockBackend::try_acquire(&backend, &request).now_or_never();
                let _kept = attempt.unwrap().unwrap();
                request
            });
            let listen = || LockBackend::subscribe(&backend, &waiting).now_or_never();
            let [mut first, mut again] = [(); 2].map(|()| listen().unwrap().unwrap().unwrap());
            let uses = Arc::new(Uses(backend.clone())).into();
            let mut context = Context::from_waker(&uses);
            let mut next = pin!(again.next());
            assert!(next.as_mut().poll(&mut context).is_pending());
            LockBackend::release_now(&backend, &waiting);
            let wakes = [next.now_or_never(), first.next().now_or_never()];
            sender.send(wakes.map(|wake| wake.is_some()))
        });
        let released = released.recv_timeout(Duration::from_secs(60));
        assert_eq!(released, Ok([true, true]));
    }
}
