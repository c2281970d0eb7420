//! A named semaphore: a number of permits that are shared out.

use std::{fmt, sync::Arc};

use crate::{
    Inspection, LockError, LockName, Patience, PermitGuard, PermitRequest, Permits, Policy,
    Semaphore,
    engine::{
        service::PermitsOf,
        wait::{Resolve, acquire},
    },
};

/// A name in a [`Semaphore`] with a number of permits, and a policy of waiting: at most that many are held at once.
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

    /// Sets what other people's errors will say of this program, beside its host and process id. Default: nothing.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// The semaphore's name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// How many permits there are.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Where the permits are counted.
    pub fn semaphore(&self) -> &S {
        &self.semaphore
    }

    /// How [`acquire`](Self::acquire) waits.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Acquires `count` permits if they are free, and doesn't wait for a holder.
    ///
    /// # Errors
    ///
    /// [`LockError::AlreadyLocked`] if too few are free; [`LockError::InvalidPermits`] if there are never so many;
    /// [`LockError::Timeout`] if the service did not answer in time; [`LockError::Backend`] if it failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: what the attempt may have won is given back in the background.
    pub async fn try_acquire(&self, count: u32) -> Result<PermitGuard<S>, LockError> {
        self.run(count, &self.policy, Resolve::Try).await
    }

    /// Acquires `count` permits, all or none, waiting as the pool's policy says.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`] if they were not granted in time; [`LockError::InvalidPermits`] if there are never so many;
    /// [`LockError::AlreadyLocked`] at once if the policy says to fail when locked; [`LockError::Backend`] if the service
    /// failed.
    ///
    /// # Cancel safety
    ///
    /// Safe to drop at any point: no permit and no waiter stays behind. The place in the queue is lost.
    ///
    /// # Fairness
    ///
    /// As the semaphore's [`Capabilities::fairness`](crate::Capabilities::fairness) says.
    pub async fn acquire(&self, count: u32) -> Result<PermitGuard<S>, LockError> {
        self.run(count, &self.policy, Resolve::Wait).await
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
    pub async fn acquire_with(
        &self,
        count: u32,
        policy: &Policy,
    ) -> Result<PermitGuard<S>, LockError> {
        self.run(count, policy, Resolve::Wait).await
    }

    /// Who holds permits and who waits for them, by now perhaps no longer true.
    ///
    /// # Errors
    ///
    /// [`LockError::Unsupported`] if the semaphore can't tell; [`LockError::Backend`] if the service failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: it changes nothing.
    pub async fn inspect(&self) -> Result<Inspection, LockError> {
        if self.semaphore.capabilities().inspect == crate::Inspect::None {
            return Err(LockError::Unsupported {
                what: "way to look at a semaphore",
                instead: "its capabilities say `Inspect::None`",
            });
        }
        let inspection = self.semaphore.inspect(&self.name).await;
        inspection.map_err(|source| LockError::Backend {
            name: self.name.clone(),
            source,
        })
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
