//! Fencing tokens: a number that grows with every grant of a name.

use std::{fmt, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock;

/// A number that strictly grows with every grant of a name.
///
/// A process may be paused right after it checked that it holds a lock, and write after the lock has passed on. No lock
/// can prevent that. The resource can, if every write carries the token and the resource refuses a token smaller than
/// the largest that it has seen (Kleppmann, "How to do distributed locking", 2016).
///
/// ```
/// use portalock_core::FencingToken;
///
/// let first = FencingToken::after(None);
/// let second = FencingToken::after(Some(first));
/// assert!(second > first);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// A token that a store has assigned, such as a revision.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number, to send with a write.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The token to grant after `last`: `last` plus one, or the wall clock in microseconds if that is larger.
    ///
    /// If the store loses its data, the clock keeps tokens growing. If the clock is set back, `last` does. A token can
    /// repeat only if both happen at once.
    pub fn after(last: Option<Self>) -> Self {
        Self::after_at(last, clock::wall_clock())
    }

    /// Like [`after`](Self::after), for a caller that has just read the wall clock.
    pub(crate) fn after_at(last: Option<Self>, now: SystemTime) -> Self {
        let next = last.map_or(1, |token| token.0.saturating_add(1));
        Self(next.max(clock::micros_since_epoch(now)))
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<FencingToken> for u64 {
    fn from(token: FencingToken) -> Self {
        token.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_set_back_does_not_lower_the_token() {
        let far_ahead = FencingToken::new(u64::MAX - 10);
        assert_eq!(FencingToken::after(Some(far_ahead)).get(), u64::MAX - 9);
    }

    #[test]
    fn lost_data_does_not_lower_the_token() {
        let before = FencingToken::after(None);
        assert!(FencingToken::after(None) >= before);
    }
}
