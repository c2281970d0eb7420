//! A named semaphore with a number of permits.

use std::{fmt, sync::Arc};

use crate::{
    Inspection, LockError, LockName, Patience, PermitGuard, PermitRequest, Permits, Policy,
    Semaphore,
    engine::{
        answer::answer,
        service::PermitsOf,
        wait::{Resolve, acquire},
    },
};

/// A named semaphore in a [`Semaphore`] backend, with a policy for waiting. At most `capacity` permits are held at
/// once.
///
/// ```
/// use portalock_core::{LockError, MemoryBackend, Pool};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), LockError> {
/// let pool = Pool::new(MemoryBackend::new(), "workers", 3)?;
/// let two = pool.acquire(2).await?;
/// assert!(pool.try_acquire(2).await.is_err());
/// two.release().await?;
/// # Ok(()) }
/// ```
pub struct Pool<S> {
    semaphore: Arc<S>,
    name: LockName,
    capacity: u32,
    policy: Policy,
    label: Option<Arc<str>>,
}

impl<S: Semaphore> Pool<S> {
    /// The semaphore called `name`, with `capacity` permits in all. No I/O is done.
    ///
    /// # Errors
    ///
    /// [`LockError::InvalidName`] for a bad name, [`LockError::InvalidPermits`] for a capacity of zero.
    pub fn new(semaphore: S, name: impl AsRef<str>, capacity: u32) -> Result<Self, LockError> {
        let name = LockName::new(name)?;
        Permits::new(1, capacity)?;
        Ok(Self {
            semaphore: Arc::new(semaphore),
            name,
            capacity,
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

    /// The semaphore's name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The number of permits in all.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The backend.
    pub fn semaphore(&self) -> &S {
        &self.semaphore
    }

    /// The policy of [`acquire`](Self::acquire).
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Acquires `count` permits if they are free, and doesn't wait for a holder.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if too few are free; [`LockError::InvalidPermits`] if `count` is zero or more than
    /// the capacity; [`LockError::Timeout`] if the service did not answer in time; [`LockError::Backend`] if it failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: if the dropped attempt got permits, they are released in the background.
    pub async fn try_acquire(&self, count: u32) -> Result<PermitGuard<S>, LockError> {
        self.run(count, &self.policy, Resolve::Try).await
    }

    /// Acquires `count` permits, all or none, and waits for them according to the pool's policy.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`] if the permits were not granted in time; [`LockError::InvalidPermits`] if `count` is zero
    /// or more than the capacity; [`LockError::AlreadyLocked`] at once if too few are free and the policy has
    /// `fail_when_locked`; [`LockError::Backend`] if the service failed.
    ///
    /// # Cancel safety
    ///
    /// Safe to drop at any point: no permit and no waiter is left behind. The place in the queue is lost.
    ///
    /// # Fairness
    ///
    /// [`Capabilities::fairness`](crate::Capabilities::fairness) of the semaphore says in which order waiters are
    /// served.
    pub async fn acquire(&self, count: u32) -> Result<PermitGuard<S>, LockError> {
        self.run(count, &self.policy, Resolve::Wait).await
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
    pub async fn acquire_with(
        &self,
        count: u32,
        policy: &Policy,
    ) -> Result<PermitGuard<S>, LockError> {
        self.run(count, policy, Resolve::Wait).await
    }

    /// Returns the holders and the waiters. The answer may be out of date when it arrives.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the semaphore can't report them; [`LockError::Backend`] if the service failed or
    /// did not answer within 5 s.
    ///
    /// # Cancel safety
    ///
    /// Safe: it changes nothing.
    pub async fn inspect(&self) -> Result<Inspection, LockError> {
        if self.semaphore.capabilities().inspect == crate::Inspect::None {
            return Err(LockError::Unsupported {
                what: "way to inspect a semaphore",
                instead: "its capabilities say `Inspect::None`",
            });
        }
        answer(&self.name, self.semaphore.inspect(&self.name)).await
    }

    async fn run(
        &self,
        count: u32,
        policy: &Policy,
        resolve: Resolve,
    ) -> Result<PermitGuard<S>, LockError> {
        let permits = Permits::new(count, self.capacity)?;
        let request = PermitRequest::new(self.name.clone(), permits, Patience::Once)
            .with_label(self.label.clone());
        let service = PermitsOf(self.semaphore.clone());
        acquire(&service, request, policy, resolve, None)
            .await
            .map(PermitGuard::new)
    }
}

impl<S> Clone for Pool<S> {
    fn clone(&self) -> Self {
        Self {
            semaphore: self.semaphore.clone(),
            name: self.name.clone(),
            capacity: self.capacity,
            policy: self.policy.clone(),
            label: self.label.clone(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.name)
            .field("capacity", &self.capacity)
            .field("semaphore", &self.semaphore)
            .field("policy", &self.policy)
            .field("label", &self.label)
            .finish()
    }
}
