//! The line of a client to its store, on which an attempt can be late.

use std::sync::{Arc, Mutex};

use portalock_core::{BackendError, BackendErrorKind, LockRequest};

use super::locked;

/// Clones are the same line.
#[derive(Debug, Clone, Default)]
pub(super) struct Line(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    /// Attempts arrive at once.
    #[default]
    Fast,
    /// The next attempt will be late.
    Slow,
    /// This attempt has not arrived. Later ones overtake it.
    Late {
        attempt: LockRequest,
        released: bool,
    },
}

impl Line {
    /// The next attempt will be late.
    pub(super) fn delay_next(&self) {
        *locked(&self.0) = State::Slow;
    }

    /// Sends an attempt.
    ///
    /// # Errors
    ///
    /// [`BackendErrorKind::Unavailable`] if it is late.
    pub(super) fn send(&self, attempt: &LockRequest) -> Result<(), BackendError> {
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
    pub(super) fn note_release(&self, of: &LockRequest) {
        if let State::Late { attempt, released } = &mut *locked(&self.0) {
            *released |= attempt.owner == of.owner;
        }
    }

    /// The late attempt, which arrives now, and whether its owner was released meanwhile.
    pub(super) fn deliver(&self) -> Option<(LockRequest, bool)> {
        match std::mem::take(&mut *locked(&self.0)) {
            State::Late { attempt, released } => Some((attempt, released)),
            State::Fast | State::Slow => None,
        }
    }
}
