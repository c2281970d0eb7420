//! The correct backend to which each flaw is added: the in-memory reference, with a session for each client.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, CrashRelease, Holder, HolderWatch,
    Inspection, Lease, LockBackend, LockName, LockRequest, Loss, LossNotice, LostSignal, Marked,
    MemoryBackend, OwnerId, Patience, PermitRequest, Released, Semaphore, Wake, Wakeups, wakeups,
};
use tokio::{sync::watch, task::AbortHandle};

/// How long the store waits for a silent client before it ends the client's session.
pub const LEASE: Duration = Duration::from_millis(100);

/// One client of a store in memory. Its locks end with its session.
///
/// [`MemoryBackend`] has no clients that could crash. Here each client has a session: [`cut_off`](Self::cut_off) stops
/// all messages between client and store, and [`expire`](Self::expire) ends the client's session at the store. So this
/// store can have the bugs of a service.
///
/// Clones are the same client.
#[derive(Debug, Clone)]
pub struct Sound(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: u64,
    memory: MemoryBackend,
    /// While it is set, calls get no answer.
    stalled: watch::Sender<bool>,
    session: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    reachable: bool,
    /// Requests take effect, but their answers are lost.
    deaf: bool,
    lease: Lease,
    /// What must be released at the end of the session.
    asked: HashMap<OwnerId, Asked>,
}

#[derive(Debug)]
enum Asked {
    Lock(LockRequest),
    Permits(PermitRequest),
}

impl Sound {
    /// A new client of the store `memory`, with a session of its own.
    pub fn new(memory: MemoryBackend) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Inner {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            memory,
            stalled: watch::Sender::new(false),
            session: Mutex::new(Session {
                reachable: true,
                deaf: false,
                lease: Lease::unbounded(),
                asked: HashMap::new(),
            }),
        }))
    }

    /// Identifies this client in this process.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// The store itself, which all its clients share.
    pub fn memory(&self) -> &MemoryBackend {
        &self.0.memory
    }

    /// Leaves the client's calls without an answer, until told otherwise.
    pub fn stall(&self, stalled: bool) {
        self.0.stalled.send_replace(stalled);
    }

    /// Stops all messages between the client and the store.
    pub fn cut_off(&self) {
        self.session().reachable = false;
    }

    /// Loses the store's answers to the client, until this is turned off.
    pub fn lose_answers(&self, lost: bool) {
        self.session().deaf = lost;
    }

    /// Whether the client can reach the store.
    pub fn is_reachable(&self) -> bool {
        self.session().reachable
    }

    /// Lets messages through again. If the session has ended, the next call starts a new one.
    pub fn reconnect(&self) {
        let mut session = self.session();
        session.reachable = true;
        if session.lease.loss().is_some() {
            session.lease = Lease::unbounded();
        }
    }

    /// Ends the session in the correct order: first the client's guards are lost, then its holds and places are
    /// released.
    pub async fn expire(&self, loss: Loss) {
        self.end_lease(loss);
        self.free_all().await;
    }

    /// The first half of [`expire`](Self::expire): the client's guards are lost.
    pub fn end_lease(&self, loss: Loss) {
        self.lease().end(loss);
    }

    /// The second half of [`expire`](Self::expire): the store releases the client's holds and places.
    pub async fn free_all(&self) {
        self.free(|_| true).await;
    }

    /// The store releases the client's permits, and its places in the queues for permits.
    pub async fn free_permits(&self) {
        self.free(|asked| matches!(asked, Asked::Permits(_))).await;
    }

    async fn free(&self, is_freed: impl Fn(&Asked) -> bool) {
        let asked: Vec<_> = self
            .session()
            .asked
            .extract_if(|_, asked| is_freed(asked))
            .map(|(_, asked)| asked)
            .collect();
        for asked in asked {
            // The store in memory doesn't fail.
            let _ = match asked {
                Asked::Lock(request) => LockBackend::release(self.memory(), &request).await,
                Asked::Permits(request) => Semaphore::release(self.memory(), &request).await,
            };
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.0
            .session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> Lease {
        self.session().lease.clone()
    }

    /// Waits for as long as the store is stalled.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unavailable`] if the client is cut off.
    async fn reach(&self) -> Result<(), BackendError> {
        // The sender lives as long as `self`.
        let _ = self
            .0
            .stalled
            .subscribe()
            .wait_for(|stalled| !stalled)
            .await;
        if self.is_reachable() {
            return Ok(());
        }
        let silence = "the store can't be reached";
        Err(BackendError::new(BackendErrorKind::Unavailable, silence))
    }

    /// Delivers `answer` to the client, or loses it.
    fn hear<T>(&self, answer: T) -> Result<T, BackendError> {
        if self.session().deaf {
            let silence = "the store's answer was lost";
            return Err(BackendError::new(BackendErrorKind::Unavailable, silence));
        }
        Ok(answer)
    }

    /// Records a request before it is made, so that the end of the session releases it whatever its outcome.
    fn note(&self, owner: OwnerId, asked: Asked) -> Lease {
        let mut session = self.session();
        session.asked.insert(owner, asked);
        session.lease.clone()
    }

    /// Takes a request out of what is released at the end of the session.
    pub(super) fn forget(&self, owner: OwnerId) {
        self.session().asked.remove(&owner);
    }

    /// Attaches a grant to its session.
    fn tie(attempt: Attempt, lease: &Lease) -> Attempt {
        match attempt {
            Attempt::Granted(grant) => {
                let lost = LostSignal::any([grant.lost.clone(), lease.signal()]);
                Attempt::Granted(grant.with_lost(lost))
            }
            contended @ Attempt::Contended(_) => contended,
        }
    }

    /// Wakes a waiter to try again when the store grants it the lock, so that every grant comes from an attempt.
    fn relay(&self, mut line: Wakeups) -> Wakeups {
        let (sender, wakeups) = wakeups();
        let session = self.lease().signal();
        let relaying = crate::spawn(async move {
            loop {
                tokio::select! {
                    _ = session.lost() => {
                        let ended = "the session that kept the place in the queue has ended";
                        sender.fail(BackendError::new(BackendErrorKind::SessionEnded, ended));
                        return;
                    }
                    wake = line.next() => match wake {
                        Wake::Silent => return,
                        Wake::Failed(error) => {
                            sender.fail(error);
                        }
                        _ => {
                            sender.wake();
                        }
                    },
                }
            }
        });
        wakeups.with_subscription(AbortOnDrop(relaying.abort_handle()))
    }

    fn claims(&self) -> Capabilities {
        LockBackend::capabilities(self.memory())
            .with_crash_release(CrashRelease::Within(LEASE))
            .with_loss(LossNotice::BeforeSuccessor)
            .with_needs_runtime(true)
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The methods that both traits share, and those of one of them.
macro_rules! serve {
    ($service:ident, $request:ident, $asked:path { $($more:tt)* }) => {
#[async_trait]
impl $service for Sound {
        fn capabilities(&self) -> Capabilities {
            self.claims()
        }

        async fn try_acquire(&self, request: &$request) -> Result<Attempt, BackendError> {
            self.reach().await?;
            let lease = self.note(request.owner, $asked(request.clone()));
            let attempt = self.hear($service::try_acquire(self.memory(), request).await?)?;
            if lease.loss().is_some() {
                $service::release(self.memory(), request).await?;
                let ended = "the session ended while the store answered";
                return Err(BackendError::new(BackendErrorKind::SessionEnded, ended));
            }
            if matches!(attempt, Attempt::Contended(_)) && request.patience == Patience::Once {
                self.forget(request.owner);
            }
            Ok(Self::tie(attempt, &lease))
        }

        async fn release(&self, request: &$request) -> Result<Released, BackendError> {
            self.reach().await?;
            self.forget(request.owner);
            self.hear($service::release(self.memory(), request).await?)
        }

        async fn subscribe(&self, request: &$request) -> Result<Option<Wakeups>, BackendError> {
            self.reach().await?;
            let line = $service::subscribe(self.memory(), request).await?;
            Ok(line.map(|line| self.relay(line)))
        }

        fn release_now(&self, request: &$request) -> bool {
            if !self.is_reachable() || *self.0.stalled.borrow() {
                return false;
            }
            self.forget(request.owner);
            $service::release_now(self.memory(), request)
        }

        async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
            self.reach().await?;
            self.hear($service::inspect(self.memory(), name).await?)
        }

        async fn close(&self) -> Result<(), BackendError> {
            self.reach().await?;
            self.expire(Loss::SessionEnded("it was closed".into())).await;
            self.reconnect();
            Ok(())
        }

        $($more)*
}
    };
}

serve!(LockBackend, LockRequest, Asked::Lock {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        self.reach().await?;
        self.memory().names().await
    }

    async fn watch(&self, name: &LockName) -> Result<Option<HolderWatch>, BackendError> {
        self.reach().await?;
        self.memory().watch(name).await
    }

    async fn mark_broken(
        &self,
        name: &LockName,
        owner: OwnerId,
        by: &Holder,
    ) -> Result<Option<Marked>, BackendError> {
        self.reach().await?;
        self.hear(self.memory().mark_broken(name, owner, by).await?)
    }

    async fn evict(
        &self,
        name: &LockName,
        owner: OwnerId,
        hold: u64,
    ) -> Result<Released, BackendError> {
        self.reach().await?;
        self.hear(self.memory().evict(name, owner, hold).await?)
    }
});

serve!(Semaphore, PermitRequest, Asked::Permits {});
