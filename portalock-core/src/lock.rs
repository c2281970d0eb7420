//! A named lock in a backend, which users create and acquire.

use std::{fmt, sync::Arc};

use crate::{
    Broken, Guard, Holder, Inspection, InvalidName, LockBackend, LockError, LockName, LockRequest,
    Mode, OwnerId, Patience, Policy,
    clock::Instant,
    engine::{
        answer::answer,
        breaking,
        service::Locks,
        wait::{Resolve, acquire},
    },
};

/// A named lock in a backend, with a policy for waiting. Creating a `Lock` acquires nothing. Any number of tasks can
/// acquire the same `Lock`; their acquisitions exclude each other.
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

    /// Sets a label, which errors of other processes show beside this process's host and process id. Default: none.
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

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The policy of [`acquire`](Self::acquire).
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Acquires the lock if it is free, and doesn't wait for a holder. It waits for the service's answer for at most
    /// the policy's timeout, or 5 s if the policy waits forever.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if another owner holds the lock, or waits for it on a backend that serves waiters
    /// in order; [`LockError::Timeout`] if the service did not answer in time; [`LockError::Backend`] if it failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: if the dropped attempt got the lock, the lock is released in the background.
    pub async fn try_acquire(&self) -> Result<Guard<B>, LockError> {
        self.run(Mode::Exclusive, &self.policy, Resolve::Try, None)
            .await
    }

    /// Acquires the lock, and waits for it according to the lock's policy.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`] if the lock was not granted in time; the error names the holder if the backend knows it.
    /// [`LockError::AlreadyLocked`] at once if the lock is held and the policy has `fail_when_locked`.
    /// [`LockError::Backend`] if the service failed with an error that a retry can't fix, or more often in a row than
    /// the policy allows.
    ///
    /// # Cancel safety
    ///
    /// Safe to drop at any point: no lock and no waiter is left behind. The place in the queue is lost.
    ///
    /// # Fairness
    ///
    /// [`Capabilities::fairness`](crate::Capabilities::fairness) of the backend says in which order waiters get the
    /// lock. Each call counts as one step of [cooperative scheduling](tokio::task::coop), even if the lock was free, so
    /// that other tasks of the runtime get their turn.
    pub async fn acquire(&self) -> Result<Guard<B>, LockError> {
        self.run(Mode::Exclusive, &self.policy, Resolve::Wait, None)
            .await
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
    pub async fn acquire_with(&self, policy: &Policy) -> Result<Guard<B>, LockError> {
        self.run(Mode::Exclusive, policy, Resolve::Wait, None).await
    }

    /// Like [`try_acquire`](Self::try_acquire), for a shared lock: any number of owners can share it, and none can hold
    /// it exclusively meanwhile.
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

    /// Like [`acquire`](Self::acquire), for a shared lock.
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

    /// Like [`acquire_with`](Self::acquire_with), for a shared lock.
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

    /// Returns the holders and the waiters. The answer may be out of date when it arrives, so show it to people but
    /// don't base decisions on it.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the backend can't tell; [`LockError::Backend`] if the service failed or did not
    /// answer within 5 s.
    ///
    /// # Cancel safety
    ///
    /// Safe: it changes nothing.
    pub async fn inspect(&self) -> Result<Inspection, LockError> {
        if self.backend.capabilities().inspect == crate::Inspect::None {
            return Err(LockError::Unsupported {
                what: "way to inspect a lock",
                instead: "its capabilities say `Inspect::None`",
            });
        }
        answer(&self.name, self.backend.inspect(&self.name)).await
    }

    /// Takes the lock away from `owner`, for an operator who knows that the holder must stop.
    /// [`inspect`](Self::inspect) returns the owner. An owner is one acquisition, so the break can't hit the next
    /// holder by mistake.
    ///
    /// The holder's guard is lost with [`Loss::Broken`](crate::Loss::Broken), which names this process and the lock's
    /// [label](Self::with_label), and the holder's client releases the lock. If that client does not respond, the call
    /// waits for as long as the client may still rely on the lock, which is at most its session's lease. Then it ends
    /// the hold by force. Waiters keep their places, and the next token is larger.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the backend can't break locks; [`LockError::Backend`] if the service failed, or could not end the
    /// hold by force, which is retried as often as [`max_failures`](Policy::with_max_failures) says. In that case call it again: if the
    /// owner is already gone, the call succeeds and says so.
    ///
    /// # Cancel safety
    ///
    /// Safe, but a break that has started is not undone: the holder may have been told. If the call is dropped, the
    /// hold of a client that does not respond is not ended.
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
