//! What a user holds: the lock is theirs until they release or drop it, or until it is lost.

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
        /// What is held.
        pub fn name(&self) -> &LockName {
            self.0.name()
        }

        /// The identity of this acquisition.
        pub fn owner(&self) -> OwnerId {
            self.0.owner()
        }

        /// The fencing token to send along with every write, where the backend has tokens.
        pub fn token(&self) -> Option<FencingToken> {
            self.0.token()
        }

        /// Whether ownership is no longer certain. Reads the clock too: it needs no task to have run.
        pub fn is_lost(&self) -> bool {
            self.0.loss().is_some()
        }

        /// A signal that fires if this ownership is lost, to be kept and awaited anywhere. It never fires once the guard
        /// is released or dropped, and can be read late.
        pub fn lost_signal(&self) -> LostSignal {
            self.0.lost_signal().clone()
        }

        /// Waits until this ownership is lost, and says why. Never returns where it can't be lost.
        ///
        /// # Cancel safety
        ///
        /// Safe: it can be awaited again.
        pub async fn lost(&self) -> Loss {
            self.0.lost_signal().lost().await
        }

        /// An error if ownership is no longer certain: to be called before what must not be done without it.
        ///
        /// It is a look at this machine's own knowledge, without I/O, and true for the moment it is made. Only a resource
        /// that checks [`token`](Self::token) is safe against a process that is stopped just after it looked.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] with the reason.
        pub fn ensure_held(&self) -> Result<(), LockError> {
            self.0.ensure_held()
        }

        /// Runs `work` for as long as ownership is certain: if the lock is lost, `work` is dropped where it stands.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] if the lock was lost before `work` had ended, or while it ended.
        ///
        /// # Cancel safety
        ///
        /// Dropping the returned future drops `work`; the lock stays held.
        pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, LockError> {
            self.0.run(work).await
        }

        /// Gives the lock back, and says how that went.
        ///
        /// Whatever it answers, there is nothing to do again: if the service fails, releasing goes on in the background
        /// for as long as there is something to free.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] if ownership had been lost before; [`LockError::NotHeld`] if the store says that somebody
        /// else removed it; [`LockError::Backend`] if the service failed or did not answer within 5 s.
        ///
        /// # Cancel safety
        ///
        /// Safe: if the future is dropped, releasing goes on in the background.
        pub async fn release(self) -> Result<(), LockError> {
            self.0.release().await
        }
    };
}

/// A lock that is held. Owned: it borrows nothing, and can be moved to another task or thread.
///
/// # On drop
///
/// The lock is released: at once where the backend can ([`Capabilities::releases_now`]), else in the background on the
/// runtime it was acquired on. It never blocks and never panics, also outside a runtime. Call
/// [`shutdown`](crate::shutdown) at a program's end to wait for what goes on in the background.
///
/// [`Capabilities::releases_now`]: crate::Capabilities::releases_now
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct Guard<B: LockBackend>(Held<Locks<B>, Mode>);

impl<B: LockBackend> Guard<B> {
    pub(crate) fn new(held: Held<Locks<B>, Mode>) -> Self {
        Self(held)
    }

    /// Whether it is held exclusively or shared.
    pub fn mode(&self) -> Mode {
        *self.0.demand()
    }

    guard_methods!();
}

/// Permits that are held. Owned: it borrows nothing, and can be moved to another task or thread.
///
/// # On drop
///
/// The permits are given back, as a [`Guard`]'s lock is.
#[derive(Debug)]
#[must_use = "the permits are given back as soon as the guard is dropped"]
pub struct PermitGuard<S: Semaphore>(Held<PermitsOf<S>, Permits>);

impl<S: Semaphore> PermitGuard<S> {
    pub(crate) fn new(held: Held<PermitsOf<S>, Permits>) -> Self {
        Self(held)
    }

    /// How many permits are held, of how many.
    pub fn permits(&self) -> Permits {
        *self.0.demand()
    }

    guard_methods!();
}
