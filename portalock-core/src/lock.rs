//! A named lock in a backend: what users make, keep and acquire.

use std::{fmt, sync::Arc};

use crate::{
    Broken, Guard, Holder, Inspection, InvalidName, LockBackend, LockError, LockName, LockRequest,
    Mode, OwnerId, Patience, Policy,
    clock::Instant,
    engine::{
        breaking,
        service::Locks,
        wait::{Resolve, acquire},
    },
};

/// A name in a backend, with a policy of waiting. It holds nothing until it is acquired, and one `Lock` can be acquired
/// by any number of tasks: each acquisition is its own.
///
/// ```
/// use portalock_core::{Lock, LockError, MemoryBackend};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
/// let lock = Lock::new(MemoryBackend::new(), "deploy")?;
/// let guard = lock.acquire().await?;
/// assert!(lock.try_acquire().await.is_err());
/// guard.release().await?;
/// # Ok(()) }
/// ```
pub struct Lock<B> {
    backend: Arc<B>,
    name: LockName,
    policy: Policy,
    label: Option<Arc<str>>,
}

impl<B: LockBackend> Lock<B> {
    /// The lock called `name` in `backend`. No I/O is done.
    ///
    /// # Errors
    ///
    /// [`InvalidName`] if `name` is empty, longer than 255 bytes or has a NUL.
    pub fn new(backend: B, name: impl AsRef<str>) -> Result<Self, InvalidName> {
        let name = LockName::new(name)?;
        Ok(Self {
            backend: Arc::new(backend),
            name,
            policy: Policy::default(),
            label: None,
        })
    }

    /// Sets how [`acquire`](Self::acquire) waits. Default: [`Policy::default`].
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets what other people's errors will say of this program, beside its host and process id. Default: nothing.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Another lock of the same backend and policy.
    pub(crate) fn beside(&self, name: LockName) -> Self {
        Self {
            name,
            ..self.clone()
        }
    }

    /// What is locked.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// Where it is locked.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// How [`acquire`](Self::acquire) waits.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Acquires the lock if it is free, and doesn't wait for a holder. The service's answer is awaited for at most the
    /// policy's timeout.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if somebody holds it, or waits for it where waiters are served in order;
    /// [`LockError::Timeout`] if the service did not answer in time; [`LockError::Backend`] if it failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: what the attempt may have won is released in the background.
    pub async fn try_acquire(&self) -> Result<Guard<B>, LockError> {
        self.run(Mode::Exclusive, &self.policy, Resolve::Try, None)
            .await
    }

    /// Acquires the lock, waiting as the lock's policy says.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`] if it was not granted in time, naming the holder where the backend can know;
    /// [`LockError::AlreadyLocked`] at once if the policy says to fail when locked; [`LockError::Backend`] if the service
    /// failed for good, or more often in a row than the policy allows.
    ///
    /// # Cancel safety
    ///
    /// Safe to drop at any point: no lock and no waiter stays behind. The place in the queue is lost.
    ///
    /// # Fairness
    ///
    /// As the backend's [`Capabilities::fairness`](crate::Capabilities::fairness) says. Toward other tasks of the runtime each
    /// call counts as one step of [cooperative scheduling](tokio::task::coop), even if the lock was free.
    pub async fn acquire(&self) -> Result<Guard<B>, LockError> {
        self.run(Mode::Exclusive, &self.policy, Resolve::Wait, None)
            .await
    }

    /// As [`acquire`](Self::acquire), waiting as `policy` says.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_with(&self, policy: &Policy) -> Result<Guard<B>, LockError> {
        self.run(Mode::Exclusive, policy, Resolve::Wait, None).await
    }

    /// As [`try_acquire`](Self::try_acquire), for a shared lock: others may share it, none may hold it exclusively.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire), and [`LockError::Unsupported`] if the backend has no shared locks.
    ///
    /// # Cancel safety
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub async fn try_acquire_shared(&self) -> Result<Guard<B>, LockError> {
        self.run(Mode::Shared, &self.policy, Resolve::Try, None)
            .await
    }

    /// As [`acquire`](Self::acquire), for a shared lock.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`LockError::Unsupported`] if the backend has no shared locks.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_shared(&self) -> Result<Guard<B>, LockError> {
        self.run(Mode::Shared, &self.policy, Resolve::Wait, None)
            .await
    }

    /// As [`acquire_with`](Self::acquire_with), for a shared lock.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`LockError::Unsupported`] if the backend has no shared locks.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_shared_with(&self, policy: &Policy) -> Result<Guard<B>, LockError> {
        self.run(Mode::Shared, policy, Resolve::Wait, None).await
    }

    /// Who holds the lock and who waits for it, by now perhaps no longer true. For people: nothing can be decided by it.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the backend can't tell; [`LockError::Backend`] if the service failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: it changes nothing.
    pub async fn inspect(&self) -> Result<Inspection, LockError> {
        if self.backend.capabilities().inspect == crate::Inspect::None {
            return Err(LockError::Unsupported {
                what: "way to look at a lock",
                instead: "its capabilities say `Inspect::None`",
            });
        }
        let inspection = self.backend.inspect(&self.name).await;
        inspection.map_err(|source| LockError::Backend {
            name: self.name.clone(),
            source,
        })
    }

    /// Takes the lock away from `owner`, for an operator who knows that its holder must not go on. [`inspect`](Self::inspect)
    /// tells the owner; an owner is one acquisition, so whoever holds next is never hit by mistake.
    ///
    /// The holder's guard is lost by [`Loss::Broken`](crate::Loss::Broken), which names this process and the lock's
    /// [label](Self::with_label), and its client gives the lock back. A client that does not respond is waited for as long as it
    /// may still rely on the lock, which is its session's lease at most; then its hold is ended by force. Waiters keep their
    /// places, and the next token is larger.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the backend can't; [`LockError::Backend`] if the service failed. Call it again then: an
    /// owner that is gone is success, and says so.
    ///
    /// # Cancel safety
    ///
    /// Safe, but not undone: the holder may have been told. If it is dropped, nobody ends the hold of a client that does not
    /// respond.
    pub async fn break_holder(&self, owner: OwnerId) -> Result<Broken, LockError> {
        let by = Holder::this_process(self.label.clone());
        breaking::break_holder(&*self.backend, &self.name, owner, &by, &self.policy).await
    }

    /// The deadline counts from `since`, or from now.
    pub(crate) async fn run(
        &self,
        mode: Mode,
        policy: &Policy,
        resolve: Resolve,
        since: Option<Instant>,
    ) -> Result<Guard<B>, LockError> {
        if mode == Mode::Shared && !self.backend.capabilities().shared {
            return Err(LockError::Unsupported {
                what: "shared locks",
                instead: "acquire it exclusively, or choose a backend whose capabilities have `shared`",
            });
        }
        let request = LockRequest::new(self.name.clone(), mode, Patience::Once)
            .with_label(self.label.clone());
        let service = Locks(self.backend.clone());
        acquire(&service, request, policy, resolve, since)
            .await
            .map(Guard::new)
    }
}

impl<B> Clone for Lock<B> {
    fn clone(&self) -> Self {
        Self {
            backend: self.backend.clone(),
            name: self.name.clone(),
            policy: self.policy.clone(),
            label: self.label.clone(),
        }
    }
}

impl<B: fmt::Debug> fmt::Debug for Lock<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("name", &self.name)
            .field("backend", &self.backend)
            .field("policy", &self.policy)
            .field("label", &self.label)
            .finish()
    }
}
