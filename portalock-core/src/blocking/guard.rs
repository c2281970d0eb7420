//! What a synchronous program holds.

use super::drive::call;
use crate::{
    FencingToken, LockBackend, LockError, LockName, LostSignal, Mode, OwnerId, Permits, Semaphore,
};

macro_rules! guard_methods {
    () => {
        /// What is held.
        pub fn name(&self) -> &LockName {
            self.guard.name()
        }

        /// The identity of this acquisition.
        pub fn owner(&self) -> OwnerId {
            self.guard.owner()
        }

        /// The fencing token to send along with every write, where the backend has tokens.
        pub fn token(&self) -> Option<FencingToken> {
            self.guard.token()
        }

        /// Whether ownership is no longer certain. Reads the clock too: it needs no task to have run.
        pub fn is_lost(&self) -> bool {
            self.guard.is_lost()
        }

        /// A signal that fires if this ownership is lost, for a task or a thread that awaits it.
        pub fn lost_signal(&self) -> LostSignal {
            self.guard.lost_signal()
        }

        /// An error if ownership is no longer certain: to be called before what must not be done without it.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] with the reason.
        pub fn ensure_held(&self) -> Result<(), LockError> {
            self.guard.ensure_held()
        }

        /// Gives it back, and says how that went. If the service fails, releasing goes on in the background.
        ///
        /// # Errors
        ///
        /// As [`Guard::release`](crate::Guard::release).
        pub fn release(self) -> Result<(), LockError> {
            let name = self.guard.name().clone();
            call(&name, self.needs_runtime, self.guard.release())
        }
    };
}

/// A lock that is held; see [`crate::Guard`].
///
/// # On drop
///
/// The lock is released: at once where the backend can, else in the background.
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct Guard<B: LockBackend> {
    guard: crate::Guard<B>,
    needs_runtime: bool,
}

impl<B: LockBackend> Guard<B> {
    pub(super) fn new(guard: crate::Guard<B>, needs_runtime: bool) -> Self {
        Self {
            guard,
            needs_runtime,
        }
    }

    /// Whether it is held exclusively or shared.
    pub fn mode(&self) -> Mode {
        self.guard.mode()
    }

    guard_methods!();
}

/// Permits that are held; see [`crate::PermitGuard`].
///
/// # On drop
///
/// The permits are given back, as a [`Guard`]'s lock is.
#[derive(Debug)]
#[must_use = "the permits are given back as soon as the guard is dropped"]
pub struct PermitGuard<S: Semaphore> {
    guard: crate::PermitGuard<S>,
    needs_runtime: bool,
}

impl<S: Semaphore> PermitGuard<S> {
    pub(super) fn new(guard: crate::PermitGuard<S>, needs_runtime: bool) -> Self {
        Self {
            guard,
            needs_runtime,
        }
    }

    /// How many permits are held, of how many.
    pub fn permits(&self) -> Permits {
        self.guard.permits()
    }

    guard_methods!();
}
