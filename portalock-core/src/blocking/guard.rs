//! Guards for synchronous programs.

use super::drive::call;
use crate::{
    FencingToken, LockBackend, LockError, LockName, LostSignal, Mode, OwnerId, Permits, Semaphore,
};

macro_rules! guard_methods {
    () => {
        /// The name of the lock or semaphore.
        pub fn name(&self) -> &LockName {
            self.guard.name()
        }

        /// The id of this acquisition.
        pub fn owner(&self) -> OwnerId {
            self.guard.owner()
        }

        /// The fencing token, to send with every write; `None` if the backend has no tokens.
        pub fn token(&self) -> Option<FencingToken> {
            self.guard.token()
        }

        /// Whether the lock is lost. It also compares the lease with the clock.
        pub fn is_lost(&self) -> bool {
            self.guard.is_lost()
        }

        /// A signal that fires if the lock is lost, for a task that awaits it.
        pub fn lost_signal(&self) -> LostSignal {
            self.guard.lost_signal()
        }

        /// Returns an error if the lock is lost. Call it before an action that needs the lock.
        ///
        /// # Errors
        ///
        /// [`LockError::Lost`] with the reason.
        pub fn ensure_held(&self) -> Result<(), LockError> {
            self.guard.ensure_held()
        }

        /// Releases the lock, and reports errors. If the service fails, the release is retried in the background.
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

/// A held lock; see [`crate::Guard`].
///
/// # On drop
///
/// The lock is released: at once if the backend can, otherwise in the background.
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

    /// Whether the lock is held exclusively or shared.
    pub fn mode(&self) -> Mode {
        self.guard.mode()
    }

    guard_methods!();
}

/// The same hold, for async code.
impl<B: LockBackend> From<Guard<B>> for crate::Guard<B> {
    fn from(guard: Guard<B>) -> Self {
        guard.guard
    }
}

/// Held permits; see [`crate::PermitGuard`].
///
/// # On drop
///
/// The permits are released, in the same way as a [`Guard`]'s lock.
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

    /// The number of held permits, and the capacity.
    pub fn permits(&self) -> Permits {
        self.guard.permits()
    }

    guard_methods!();
}

/// The same hold, for async code.
impl<S: Semaphore> From<PermitGuard<S>> for crate::PermitGuard<S> {
    fn from(guard: PermitGuard<S>) -> Self {
        guard.guard
    }
}
