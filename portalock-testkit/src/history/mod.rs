//! What happened, in order, and whether it is what a lock allows.
//!
//! A [`History`] is the events of many clients, in the order in which they were seen to happen. [`History::check`] holds
//! them against what a backend claims, and finds every [`Violation`]: holders that overlap, tokens that do not grow, waiters
//! that were forgotten or overtaken.
//!
//! An event may be recorded late but never early, a grant and a loss once they are known, the end of a hold before it is
//! begun; then a violation found is a violation that happened.
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

use portalock_core::{FencingToken, LockName, Mode};

pub(crate) use recorder::Recorder;

pub use random::{random_clients, seed, stress_time};

/// What happened to one acquisition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Happened {
    /// A client is about to ask for a lock: the first event of an acquisition.
    Asked {
        /// Which client, by any number.
        client: usize,
        /// What is asked for.
        name: LockName,
        /// In which mode.
        mode: Mode,
    },
    /// An attempt was answered with contention: the request has its place, where the backend keeps one.
    Queued,
    /// The lock was granted.
    Granted {
        /// With this token.
        token: Option<FencingToken>,
    },
    /// The holder knows that it has lost the lock.
    Lost,
    /// Somebody is about to take away what it holds or may just have been granted, or is doing so as it asks.
    TakenAway,
    /// The holder is about to release the lock, or to drop its guard.
    Releasing,
    /// The release has returned.
    Released,
    /// The wait was given up by the caller, who had its reasons.
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
    /// Which acquisition it happened to, by any number.
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

/// Something that a lock must not do. Acquisitions are told by their numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Two that exclude each other held at once.
    #[error(
        "the holds of {name} by acquisitions {earlier} and {later} overlap: {later} was granted at {at:?}, before {earlier} had let go or knew of a loss"
    )]
    Overlap {
        /// What both held.
        name: LockName,
        /// The one who was granted first.
        earlier: u64,
        /// The one who was granted while the other held.
        later: u64,
        /// When that was.
        at: Duration,
    },
    /// A grant has no token, or one that is not larger than an earlier one.
    #[error("acquisition {acquisition} was granted {name} with token {token:?} after {before:?}")]
    Token {
        /// What was granted.
        name: LockName,
        /// To whom.
        acquisition: u64,
        /// The token that came with it.
        token: Option<FencingToken>,
        /// One that had been granted before, or at the same time with the same value.
        before: Option<FencingToken>,
    },
    /// A waiter was granted a lock before another who had its place first.
    #[error("acquisition {later} was granted {name} before {earlier}, which had its place first")]
    Overtaken {
        /// What both waited for.
        name: LockName,
        /// The one who was in line.
        earlier: u64,
        /// The one who came after and was served before.
        later: u64,
    },
    /// A waiter timed out though nobody held the lock.
    #[error(
        "acquisition {acquisition} timed out waiting for {name}, which nobody held for {idle:?}"
    )]
    Forgotten {
        /// What it waited for.
        name: LockName,
        /// The one who waited.
        acquisition: u64,
        /// How long the lock had been free.
        idle: Duration,
    },
    /// An acquisition never came to an end.
    #[error("acquisition {acquisition} of {name} was neither granted nor given up")]
    Unanswered {
        /// What it asked for.
        name: LockName,
        /// The one who asked.
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
