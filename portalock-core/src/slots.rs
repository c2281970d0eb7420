//! A semaphore made of locks: one lock per permit.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures_util::future::join_all;

use crate::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Contention, Fairness, Grant, Inspect,
    LockBackend, LockName, LockRequest, LostSignal, Mode, OwnerId, Patience, PermitRequest,
    Released, Semaphore, Tokens,
};

/// A [`Semaphore`] on any [`LockBackend`]: permit `i` of the semaphore `pool` is the lock `pool#slot-i`.
///
/// A request locks one slot for each permit, in a fixed order, all or none. The semaphore is not fair, has no tokens,
/// and its waiters poll. Use the backend's native semaphore if there is one. Names may have up to 239 bytes, because a
/// slot's name is longer. A lower capacity affects new requests only: they don't take slots beyond it, and current
/// holders keep their slots.
///
/// ```
/// use portalock_core::{LockError, MemoryBackend, Pool, SlotSemaphore};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
/// let pool = Pool::new(SlotSemaphore::new(MemoryBackend::new()), "workers", 2)?;
/// let first = pool.acquire(1).await?;
/// let second = pool.acquire(1).await?;
/// assert!(pool.try_acquire(1).await.is_err());
/// # Ok(()) }
/// ```
pub struct SlotSemaphore<B> {
    inner: Arc<Inner<B>>,
}

struct Inner<B> {
    backend: B,
    /// The process that made it.
    process: u32,
    /// The slots that each owner may hold. A slot is recorded here before the attempt, so that a release of the owner
    /// finds it whatever the attempt's outcome.
    taken: Mutex<HashMap<OwnerId, Taken>>,
}

#[derive(Default, Clone)]
struct Taken {
    /// By their numbers.
    slots: BTreeMap<u32, LockRequest>,
    grant: Option<Grant>,
}

impl<B: LockBackend> SlotSemaphore<B> {
    /// Semaphores whose slots are locks in `backend`.
    pub fn new(backend: B) -> Self {
        Self {
            inner: Arc::new(Inner {
                backend,
                process: std::process::id(),
                taken: Mutex::default(),
            }),
        }
    }

    /// The backend of the slots.
    pub fn backend(&self) -> &B {
        &self.inner.backend
    }

    /// Whether this is a forked child, which holds nothing. A thread of its parent may have had the mutex during the fork.
    fn is_inherited(&self) -> bool {
        self.inner.process != std::process::id()
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<OwnerId, Taken>> {
        self.inner
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn slots_of(&self, owner: OwnerId) -> Option<Taken> {
        self.taken().get(&owner).cloned()
    }

    async fn give_back(&self, owner: OwnerId) -> Result<Released, BackendError> {
        let Some(taken) = self.slots_of(owner) else {
            return Ok(Released::NotHeld);
        };
        // If one fails for good, nobody asks for the others again.
        let releases = taken.slots.iter().map(async |(number, slot)| {
            let released = self.inner.backend.release(slot).await?;
            // A repeated release asks only for the slots that are left: all at once rarely succeed at a service that often
            // fails. And an owner without this slot no longer has its permits.
            if let Some(left) = self.taken().get_mut(&owner) {
                left.slots.remove(number);
                left.grant = None;
            }
            Ok(released)
        });
        let mut all = if taken.grant.is_some() {
            Released::Freed
        } else {
            Released::NotHeld
        };
        let mut failed: Option<BackendError> = None;
        for released in join_all(releases).await {
            match released {
                Ok(Released::NotHeld) => all = Released::NotHeld,
                // The engine does not repeat a release that fails for good, so a failure that may pass counts more.
                Err(error) if failed.as_ref().is_none_or(|it| !it.is_retryable()) => {
                    failed = Some(error);
                }
                Ok(Released::Freed) | Err(_) => {}
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.taken().remove(&owner);
        Ok(all)
    }

    /// Locks slots until there are enough. Locked slots are recorded for the owner in any case.
    async fn take(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        let (wanted, capacity) = (request.demand.count(), request.demand.capacity());
        let mut grants = Vec::new();
        let mut holder = None;
        for number in 0..capacity {
            let left = capacity - number;
            let missing = wanted - u32::try_from(grants.len()).unwrap_or(wanted);
            if missing == 0 || left < missing {
                break;
            }
            let slot = slot_request(request, number)?;
            self.taken()
                .entry(request.owner)
                .or_default()
                .slots
                .insert(number, slot.clone());
            match self.inner.backend.try_acquire(&slot).await? {
                Attempt::Granted(grant) => grants.push(grant),
                Attempt::Contended(contention) => {
                    self.taken()
                        .entry(request.owner)
                        .or_default()
                        .slots
                        .remove(&number);
                    holder = holder.or(contention.holder);
                }
            }
        }
        if grants.len() < wanted as usize {
            return Ok(Attempt::Contended(Contention::new().with_holder(holder)));
        }
        let grant =
            Grant::new().with_lost(LostSignal::any(grants.into_iter().map(|grant| grant.lost)));
        self.taken().entry(request.owner).or_default().grant = Some(grant.clone());
        Ok(Attempt::Granted(grant))
    }
}

fn slot_request(request: &PermitRequest, number: u32) -> Result<LockRequest, BackendError> {
    let name = LockName::new(format!("{}#slot-{number}", request.name)).map_err(|error| {
        let message = "a semaphore made of slots needs a name of at most 239 bytes";
        BackendError::new(BackendErrorKind::Misconfigured, message).with_source(error)
    })?;
    let mut slot = LockRequest::new(name, Mode::Exclusive, Patience::Once);
    slot.holder = request.holder.clone();
    Ok(slot)
}

#[async_trait]
impl<B: LockBackend> Semaphore for SlotSemaphore<B> {
    fn capabilities(&self) -> Capabilities {
        // `inspect` gets a name without a capacity, so it doesn't know the number of slots.
        let slots = self.inner.backend.capabilities();
        slots
            .with_fairness(Fairness::None)
            .with_tokens(Tokens::None)
            .with_inspect(Inspect::None)
    }

    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
        if self.is_inherited() {
            return Err(BackendError::forked());
        }
        if let Some(taken) = self.slots_of(request.owner) {
            if let Some(grant) = taken.grant {
                return Ok(Attempt::Granted(grant));
            }
            // An earlier attempt for this owner locked only some of the slots.
            self.give_back(request.owner).await?;
        }
        let attempt = self.take(request).await?;
        if matches!(attempt, Attempt::Contended(_)) {
            self.give_back(request.owner).await?;
        }
        Ok(attempt)
    }

    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
        if self.is_inherited() {
            return Ok(Released::NotHeld);
        }
        self.give_back(request.owner).await
    }

    fn release_now(&self, request: &PermitRequest) -> bool {
        if self.is_inherited() {
            return true;
        }
        let Some(taken) = self.slots_of(request.owner) else {
            return true;
        };
        let all = taken
            .slots
            .values()
            .all(|slot| self.inner.backend.release_now(slot));
        if all {
            self.taken().remove(&request.owner);
        }
        all
    }

    async fn close(&self) -> Result<(), BackendError> {
        self.inner.backend.close().await
    }
}

impl<B> Clone for SlotSemaphore<B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for SlotSemaphore<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotSemaphore")
            .field("backend", &self.inner.backend)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicI32, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::{MemoryBackend, Permits, Pool};
    use futures_util::FutureExt;

    #[tokio::test]
    async fn all_or_none() {
        let backend = MemoryBackend::new();
        let pool = Pool::new(SlotSemaphore::new(backend.clone()), "p", 3).unwrap();
        let two = pool.try_acquire(2).await.unwrap();
        assert!(pool.try_acquire(2).await.is_err());
        assert_eq!(backend.names_in_use(), 2, "the failed request kept a slot");
        drop(two);
        assert_eq!(backend.names_in_use(), 0);
        let three = pool.try_acquire(3).await.unwrap();
        assert_eq!(backend.names_in_use(), 3);
        three.release().await.unwrap();
        assert_eq!(backend.names_in_use(), 0);
    }

    /// Grants, and loses the answer.
    #[derive(Debug)]
    struct Unheard(MemoryBackend);

    #[async_trait]
    impl LockBackend for Unheard {
        fn capabilities(&self) -> Capabilities {
            LockBackend::capabilities(&self.0)
        }

        async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
            let _unheard = LockBackend::try_acquire(&self.0, request).await?;
            Err(BackendError::new(
                BackendErrorKind::Other,
                "the answer was lost",
            ))
        }

        async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
            LockBackend::release(&self.0, request).await
        }
    }

    #[tokio::test]
    async fn a_slot_granted_without_an_answer_is_given_back() {
        let backend = MemoryBackend::new();
        let semaphore = SlotSemaphore::new(Unheard(backend.clone()));
        let name = LockName::new("p").unwrap();
        let request = PermitRequest::new(name, Permits::new(1, 1).unwrap(), Patience::Once);
        assert!(semaphore.try_acquire(&request).await.is_err());
        assert_eq!(backend.names_in_use(), 1);
        semaphore.release(&request).await.unwrap();
        assert_eq!(backend.names_in_use(), 0);
    }

    /// Fails to release the first slot for good, or not, and any other this number of times.
    #[derive(Debug)]
    struct Fails {
        store: MemoryBackend,
        is_stuck: bool,
        left: AtomicI32,
    }

    #[async_trait]
    impl LockBackend for Fails {
        fn capabilities(&self) -> Capabilities {
            LockBackend::capabilities(&self.store)
        }

        async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
            LockBackend::try_acquire(&self.store, request).await
        }

        async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
            let is_first = request.name.as_str().ends_with("-0");
            let kind = if is_first && self.is_stuck {
                BackendErrorKind::Corrupt
            } else if self.left.fetch_sub(1, Ordering::AcqRel) > 0 {
                BackendErrorKind::Unavailable
            } else {
                return LockBackend::release(&self.store, request).await;
            };
            Err(BackendError::new(kind, "told to fail"))
        }
    }

    /// The lease of the others goes on.
    #[tokio::test]
    async fn the_other_slots_are_given_back_though_one_is_lost_and_the_service_fails() {
        for is_stuck in [true, false] {
            for drops in [true, false] {
                let backend = MemoryBackend::new();
                let fails = Fails {
                    store: backend.clone(),
                    is_stuck,
                    left: AtomicI32::new(7),
                };
                let pool = Pool::new(SlotSemaphore::new(fails), "p", 3).unwrap();
                let three = pool.acquire(3).await.unwrap();
                assert_eq!(backend.lose(&LockName::new("p#slot-0").unwrap()), 1);
                if drops {
                    drop(three);
                } else {
                    assert!(three.release().await.is_err());
                }
                crate::shutdown(Duration::from_secs(60)).await.unwrap();
                assert_eq!(
                    backend.names_in_use(),
                    0,
                    "stuck: {is_stuck}, dropped: {drops}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_lost_slot_is_a_lost_permit() {
        let backend = MemoryBackend::new();
        let pool = Pool::new(SlotSemaphore::new(backend.clone()), "p", 3).unwrap();
        let two = pool.acquire(2).await.unwrap();
        assert_eq!(backend.lose(&LockName::new("p#slot-1").unwrap()), 1);
        assert!(two.is_lost());
    }

    #[tokio::test]
    async fn a_forked_childs_copy_waits_for_no_thread_of_its_parent() {
        let mut semaphore = SlotSemaphore::new(MemoryBackend::new());
        Arc::get_mut(&mut semaphore.inner).unwrap().process += 1;
        let child = semaphore.clone();
        let (sender, outcome) = std::sync::mpsc::channel();
        // As a thread of the parent during the fork.
        let taken = semaphore.taken();
        std::thread::spawn(move || {
            let name = LockName::new("p").unwrap();
            let request = PermitRequest::new(name, Permits::new(1, 1).unwrap(), Patience::Once);
            let at_once = child.release_now(&request);
            let released = child.release(&request).now_or_never();
            let acquired = Pool::new(child, "p", 1).unwrap().acquire(1).now_or_never();
            let refused = acquired.unwrap().unwrap_err();
            sender.send((at_once, released.unwrap().unwrap(), refused))
        });
        let outcome = outcome.recv_timeout(std::time::Duration::from_secs(60));
        drop(taken);
        let (at_once, released, refused) = outcome.unwrap();
        assert!(at_once && released == Released::NotHeld);
        assert!(!refused.is_contention() && !refused.is_retryable());
    }

    #[tokio::test]
    async fn a_name_too_long_for_its_slots_is_a_typed_error() {
        let semaphore = SlotSemaphore::new(MemoryBackend::new());
        let name = LockName::new("n".repeat(255)).unwrap();
        let request = PermitRequest::new(name, Permits::new(1, 1).unwrap(), Patience::Once);
        let error = semaphore.try_acquire(&request).await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Misconfigured);
    }
}
