//! Guards: the lock is held until its guard is released or dropped, or until the lock is lost.

use std::future::Future;

use crate::{
    FencingToken, LockBackend, LockError, LockName, Loss, LostSignal, Mode, OwnerId, Permits,
    Semaphore,
    engine::{
        held::Held,
        service::{Locks, PermitsOf},
    },
};

macro_rules! guard_methods {
    () => {
        /// The name of the lock or semaphore.
        pub fn name(&self) -> &LockName {
            self.0.name()
        }

        /// The id of this acquisition.
        pub fn owner(&self) -> OwnerId {
            self.0.owner()
        }

        /// The fencing token, to send with every write; `None` if the backend has no tokens.
        pub fn token(&self) -> Option<FencingToken> {
            self.0.token()
        }

        /// Whether the lock is lost. It also compares the lease with the clock, so it is right even if no task has run
        /// since the lease ended.
        pub fn is_lost(&self) -> bool {
            self.0.loss().is_some()
        }

        /// A signal that fires if the lock is lost. It can be kept, moved and awaited anywhere, also after it has
        /// fired. If the guard is released or dropped first, it never fires.
        pub fn lost_signal(&self) -> LostSignal {
            self.0.lost_signal().clone()
        }

        /// Waits until the lock is lost, and returns the reason. Never returns if the lock can't be lost.
        ///
        /// # Cancel safety
        ///
        /// Safe: call it again.
        pub async fn lost(&self) -> Loss {
            self.0.lost_signal().lost().await
        }

        /// Returns an error if the lock is lost. Call it before an action that needs the lock.
        ///
        /// The check uses what this process knows, without I/O, and is true for this moment only: the process can be
        /// paused right after it. Only a resource that checks the [`token`](Self::token) is safe against that.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] with the reason.
        pub fn ensure_held(&self) -> Result<(), LockError> {
            self.0.ensure_held()
        }

        /// Runs `work` while the lock is held. If the lock is lost, `work` is dropped at its current await point.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] if the lock was lost before `work` had ended, or at that moment.
        ///
        /// # Cancel safety
        ///
        /// Dropping the returned future drops `work`; the lock stays held.
        pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LockError> {
            self.0.run(work).await
        }

        /// Releases the lock, and reports errors.
        ///
        /// After an error you need not call it again: if the service fails, the release is retried in the background
        /// until there is nothing left to free.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] if the lock had been lost before; [`LockError::NotHeld`] if the store has no record of
        /// this hold, because somebody removed it; [`LockError::Backend`] if the service failed or did not answer
        /// within 5 s.
        ///
        /// # Cancel safety
        ///
        /// Safe: if the future is dropped, the release continues in the background.
        pub async fn release(self) -> Result<(), LockError> {
            self.0.release().await
        }
    };
}

/// A held lock. It borrows nothing, so it can be moved to another task or thread.
///
/// # On drop
///
/// The lock is released: at once if the backend can ([`Capabilities::releases_now`]), otherwise in the background, on a
/// thread of the library. Dropping never blocks and never panics, even outside a runtime. At the end of a program, call
/// [`shutdown`](crate::shutdown) to wait for releases in the background.
///
/// [`Capabilities::releases_now`]: crate::Capabilities::releases_now
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct Guard<B: LockBackend>(Held<Locks<B>, Mode>);

impl<B: LockBackend> Guard<B> {
    pub(crate) fn new(held: Held<Locks<B>, Mode>) -> Self {
        Self(held)
    }

    /// Whether the lock is held exclusively or shared.
    pub fn mode(&self) -> Mode {
        *self.0.demand()
    }

    guard_methods!();
}

/// Held permits. The guard borrows nothing, so it can be moved to another task or thread.
///
/// # On drop
///
/// The permits are released, in the same way as a [`Guard`]'s lock.
#[derive(Debug)]
#[must_use = "the permits are given back as soon as the guard is dropped"]
pub struct PermitGuard<S: Semaphore>(Held<PermitsOf<S>, Permits>);

impl<S: Semaphore> PermitGuard<S> {
    pub(crate) fn new(held: Held<PermitsOf<S>, Permits>) -> Self {
        Self(held)
    }

    /// The number of held permits, and the capacity.
    pub fn permits(&self) -> Permits {
        *self.0.demand()
    }

    guard_methods!();
}
