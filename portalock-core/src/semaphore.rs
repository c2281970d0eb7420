//! The second trait, for backends that count permits themselves. Same verbs as [`LockBackend`](crate::LockBackend).

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;

use crate::{
    Attempt, BackendError, Capabilities, Inspection, LockName, PermitRequest, Released, Wakeups,
    backend::short_type_name,
};

/// Any semaphore, chosen at run time. It is a [`Semaphore`] itself.
pub type DynSemaphore = Arc<dyn Semaphore>;

/// A store of semaphores: names with a number of permits each.
///
/// Any [`LockBackend`](crate::LockBackend) becomes one by [`SlotSemaphore`](crate::SlotSemaphore). Implement this trait
/// where the service can count: then permits are granted in order, and a large request is not starved by small ones.
///
/// # For implementers
///
/// All rules of [`LockBackend`](crate::LockBackend#for-implementers) hold, and two more (group `semaphore`):
///
/// 1. The permits of all holders never exceed the smallest [`capacity`](crate::Permits::capacity) that a present holder
///    asked with.
/// 2. A request gets all its permits or none.
///
/// Semaphores and locks of one backend have separate names: the semaphore `a` and the lock `a` don't meet.
#[async_trait]
pub trait Semaphore: Debug + Send + Sync + 'static {
    /// What this semaphore guarantees; [`shared`](Capabilities::shared) says nothing here.
    fn capabilities(&self) -> Capabilities;

    /// What kind of backend this is, for metrics and logs. By default the type's own name without its path.
    fn kind(&self) -> &'static str {
        short_type_name::<Self>()
    }

    /// One attempt; never waits for another holder. See [`LockBackend::try_acquire`](crate::LockBackend::try_acquire).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed.
    async fn try_acquire(&self, request: &PermitRequest) -> Result<Attempt, BackendError>;

    /// Gives back what the owner holds, or takes it out of the queue. Idempotent; harmless if it was never granted.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed: the engine tries again in the background.
    async fn release(&self, request: &PermitRequest) -> Result<Released, BackendError>;

    /// Opens the line on which a waiter is woken. See [`LockBackend::subscribe`](crate::LockBackend::subscribe).
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the service failed.
    async fn subscribe(&self, request: &PermitRequest) -> Result<Option<Wakeups>, BackendError> {
        let _ = request;
        Ok(None)
    }

    /// Gives back at once, without I/O that can wait. See [`LockBackend::release_now`](crate::LockBackend::release_now).
    fn release_now(&self, request: &PermitRequest) -> bool {
        let _ = request;
        false
    }

    /// Who holds permits of `name` and who waits for them, by now perhaps no longer true.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unsupported`](crate::BackendErrorKind::Unsupported) by default; [`BackendError`] if the service
    /// failed.
    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        let _ = name;
        Err(BackendError::unsupported("way to look at a semaphore"))
    }

    /// Ends this object's session in good order. See [`LockBackend::close`](crate::LockBackend::close).
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
