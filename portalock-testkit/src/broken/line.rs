//! The line of a client to its store, on which an attempt can be late.

use std::sync::{Arc, Mutex};

use portalock_core::{BackendError, BackendErrorKind, Request};

use super::locked;

/// Clones are the same line. `D` is what its requests demand.
#[derive(Debug)]
pub(super) struct Line<D>(Arc<Mutex<State<D>>>);

#[derive(Debug)]
enum State<D> {
    /// Attempts arrive at once.
    Fast,
    /// The next attempt will be late.
    Slow,
    /// This attempt has not arrived. Later ones overtake it.
    Late { attempt: Request<D>, released: bool },
}

impl<D> Default for Line<D> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State::Fast)))
    }
}

impl<D> Clone for Line<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Clone> Line<D> {
    /// The next attempt will be late.
    pub(super) fn delay_next(&self) {
        *locked(&self.0) = State::Slow;
    }

    /// Sends an attempt.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unavailable`] if it is late.
    pub(super) fn send(&self, attempt: &Request<D>) -> Result<(), BackendError> {
        let state = &mut *locked(&self.0);
        if !matches!(state, State::Slow) {
            return Ok(());
        }
        *state = State::Late {
            attempt: attempt.clone(),
            released: false,
        };
        let reset = "the connection to the store was reset";
        Err(BackendError::new(BackendErrorKind::Unavailable, reset))
    }

    /// Notes that an owner is released, whose attempt may be late.
    pub(super) fn note_release(&self, of: &Request<D>) {
        if let State::Late { attempt, released } = &mut *locked(&self.0) {
            *released |= attempt.owner == of.owner;
        }
    }

    /// The late attempt, which arrives now, and whether its owner was released meanwhile.
    pub(super) fn deliver(&self) -> Option<(Request<D>, bool)> {
        match std::mem::replace(&mut *locked(&self.0), State::Fast) {
            State::Late { attempt, released } => Some((attempt, released)),
            State::Fast | State::Slow => None,
        }
    }
}
