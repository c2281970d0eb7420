//! The trait for backends with native semaphores. It has the same methods as [`LockBackend`](crate::LockBackend).

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::{
    Attempt, BackendError, Capabilities, Inspection, LockName, PermitRequest, Released, Wakeups,
    backend::short_type_name,
};

/// A semaphore backend that is selected at run time. It also implements [`Semaphore`].
pub type DynSemaphore = Arc<dyn Semaphore>;

/// A store of semaphores: names with a number of permits each.
///
/// [`SlotSemaphore`](crate::SlotSemaphore) makes a semaphore of any [`LockBackend`](crate::LockBackend). Implement this
/// trait if the service can count permits: then they are granted in order, and small requests don't starve a large one.
///
/// # For implementers
///
/// All rules of [`LockBackend`](crate::LockBackend#for-implementers) hold, and two more (group `semaphore`):
///
/// 1. The permits of all holders never exceed the smallest [`capacity`](crate::Permits::capacity) in the requests of
///    the current holders.
/// 2. A request gets all its permits or none.
///
/// Semaphores and locks of one backend have separate names: the semaphore `a` and the lock `a` are independent.
#[async_trait]
pub trait Semaphore: Debug + Send + Sync + 'static {
    /// What this semaphore guarantees; [`shared`](Capabilities::shared) has no meaning here.
    fn capabilities(&self) -> Capabilities;

    /// The kind of backend, for metrics and logs. By default the type's name without its path.
    fn kind(&self) -> &'static str {
        short_type_name::<Self>()
    }

    /// Makes one attempt, and never waits until permits are free. See
    /// [`LockBackend::try_acquire`](crate::LockBackend::try_acquire).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed.
    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError>;

    /// Releases the owner's permits, or removes the owner from the queue. Idempotent; does nothing if the owner was
    /// never granted.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed: the engine tries again in the background.
    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError>;

    /// Returns the channel that wakes a waiter. See [`LockBackend::subscribe`](crate::LockBackend::subscribe).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed.
    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        let _ = request;
        Ok(None)
    }

    /// Releases at once, without I/O that can wait. See [`LockBackend::release_now`](crate::LockBackend::release_now).
    fn release_now(&self, request: &PermitRequest) -> bool {
        let _ = request;
        false
    }

    /// Returns the holders and the waiters of `name`. The answer may be out of date when it arrives.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let _ = name;
        Err(BackendError::unsupported("way to inspect a semaphore"))
    }

    /// Ends this object's session. See [`LockBackend::close`](crate::LockBackend::close).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service could not be told.
    async fn close(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

macro_rules! forward_semaphore {
    ($($wrapper:ty),+) => {$(
        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<S: Semaphore + ?Sized> Semaphore for $wrapper {
            fn capabilities(&self) -> Capabilities {
                (**self).capabilities()
            }

            fn kind(&self) -> &'static str {
                (**self).kind()
            }

            async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError> {
                (**self).try_acquire(request).await
            }

            async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError> {
                (**self).release(request).await
            }

            async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
                (**self).subscribe(request).await
            }

            fn release_now(&self, request: &PermitRequest) -> bool {
                (**self).release_now(request)
            }

            async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
                (**self).inspect(name).await
            }

            async fn close(&self) -> Result<(), BackendError> {
                (**self).close().await
            }
        }
    )+};
}

forward_semaphore!(Arc<S>, Box<S>);
