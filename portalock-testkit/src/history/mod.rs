//! Histories: what happened, in order, and whether a lock allows it.
//!
//! A [`History`] has the events of many clients, in the order in which they were observed. [`History::check`] compares
//! them with the claims of a backend, and finds every [`Violation`]: holders that overlap, permits that don't exist, tokens
//! that don't grow, and waiters that were forgotten or overtaken.
//!
//! Record a grant and a loss after they are known, and the end of a hold before it starts. Then every violation that
//! the checker finds has really happened.
//!
//! ```
//! use std::time::Duration;
//! use portalock_core::{Capabilities, LockName, Mode, Scope};
//! use portalock_testkit::history::{Happened, History};
//!
//! let job = LockName::new("job")?;
//! let mut history = History::default();
//! let mut at = |millis, acquisition, what| history.push(Duration::from_millis(millis), acquisition, what);
//! at(0, 1, Happened::Asked { client: 0, name: job.clone(), mode: Mode::Exclusive });
//! at(1, 2, Happened::Asked { client: 1, name: job, mode: Mode::Exclusive });
//! at(2, 1, Happened::Granted { token: None });
//! at(3, 2, Happened::Granted { token: None });
//! let violations = history.check(&Capabilities::new(Scope::Network));
//! assert!(violations[0].to_string().contains("overlap"));
//! # Ok::<(), portalock_core::InvalidName>(())
//! ```

mod check;
mod random;
mod recorder;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use portalock_core::{FencingToken, LockName, Mode, Permits};

pub(crate) use recorder::Recorder;

pub use random::{random_clients, random_clients_of_both, random_pool_clients, seed, stress_time};

/// What happened to one acquisition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Happened {
    /// A client is about to request a lock: the first event of an acquisition.
    Asked {
        /// The number of the client.
        client: usize,
        /// The requested name.
        name: LockName,
        /// The mode.
        mode: Mode,
    },
    /// A client is about to request permits of a semaphore: the first event of such an acquisition.
    AskedPermits {
        /// The number of the client.
        client: usize,
        /// The semaphore's name. A lock may have the same name.
        name: LockName,
        /// The wanted permits, and the capacity.
        permits: Permits,
    },
    /// An attempt was contended: the request has its place in the queue, if the backend has one.
    Queued,
    /// The lock was granted.
    Granted {
        /// The token of the grant.
        token: Option<FencingToken>,
    },
    /// The holder knows that it has lost the lock.
    Lost,
    /// Its lock is about to be taken away, or is being taken away while it requests it.
    TakenAway,
    /// The holder is about to release the lock, or to drop its guard.
    Releasing,
    /// The release has returned.
    Released,
    /// The caller gave up the wait, for its own reasons.
    GaveUp,
    /// The wait ended because its long timeout had passed.
    TimedOut,
    /// The client is about to be crashed.
    Crashed,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// When it was recorded, on a monotonic clock.
    pub at: Duration,
    /// The number of the acquisition.
    pub acquisition: u64,
    /// What happened.
    pub what: Happened,
}

/// Events in the order in which they happened.
#[derive(Debug, Clone, Default)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// Adds what happened next.
    pub fn push(&mut self, at: Duration, acquisition: u64, what: Happened) {
        self.events.push(Event {
            at,
            acquisition,
            what,
        });
    }

    /// The events so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many locks were granted.
    pub fn grants(&self) -> usize {
        self.events
            .iter()
            .filter(|event| matches!(event.what, Happened::Granted { .. }))
            .count()
    }
}

/// Something that a lock or a semaphore must not do. Acquisitions are identified by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Two acquisitions that exclude each other held the lock at once.
    #[error(
        "the holds of {name} by acquisitions {earlier} and {later} overlap: {later} was granted at {at:?}, before {earlier} had let go or knew of a loss"
    )]
    Overlap {
        /// The name of the lock.
        name: LockName,
        /// The acquisition that was granted first.
        earlier: u64,
        /// The acquisition that was granted while the other one held the lock.
        later: u64,
        /// When that was.
        at: Duration,
    },
    /// More permits were held than there are.
    #[error(
        "{held} of {capacity} permits of {name} were held when acquisition {acquisition} was granted at {at:?}"
    )]
    Crowded {
        /// The name of the semaphore.
        name: LockName,
        /// The acquisition that was granted last.
        acquisition: u64,
        /// The permits that were held then, with its own.
        held: u64,
        /// The smallest capacity that these holders know.
        capacity: u32,
        /// When that was.
        at: Duration,
    },
    /// A grant has no token, or one that is not larger than an earlier one.
    #[error("acquisition {acquisition} was granted {name} with token {token:?} after {before:?}")]
    Token {
        /// The name of the lock.
        name: LockName,
        /// The acquisition.
        acquisition: u64,
        /// Its token.
        token: Option<FencingToken>,
        /// A token that had been granted before, or an equal one.
        before: Option<FencingToken>,
    },
    /// A waiter was granted the lock before an earlier waiter.
    #[error("acquisition {later} was granted {name} before {earlier}, which had its place first")]
    Overtaken {
        /// The name of the lock.
        name: LockName,
        /// The earlier waiter.
        earlier: u64,
        /// The later waiter, which was granted first.
        later: u64,
    },
    /// A waiter timed out although the lock was free.
    #[error(
        "acquisition {acquisition} timed out waiting for {name}, which nobody held for {idle:?}"
    )]
    Forgotten {
        /// The name of the lock.
        name: LockName,
        /// The waiter.
        acquisition: u64,
        /// How long the lock had been free.
        idle: Duration,
    },
    /// An acquisition never came to an end.
    #[error("acquisition {acquisition} of {name} was neither granted nor given up")]
    Unanswered {
        /// The name of the lock.
        name: LockName,
        /// The acquisition.
        acquisition: u64,
    },
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for event in &self.events {
            writeln!(
                f,
                "{:>12?}  {:>5}  {:?}",
                event.at, event.acquisition, event.what
            )?;
        }
        Ok(())
    }
}
