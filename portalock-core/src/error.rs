//! Errors: contention, loss, misuse and the service's own failures, told apart by type.

use std::{borrow::Cow, error::Error, fmt, sync::Arc, time::Duration};

use crate::{Holder, InvalidName, InvalidPermits, LockName, Loss, policy::InvalidPolicy};

/// Why an acquisition or a release did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds the lock, and the caller did not want to wait.
    #[error("{name} is already locked{}", by(.holder.as_deref()))]
    AlreadyLocked {
        /// What was asked for.
        name: LockName,
        /// One of those who hold it, where the backend can know.
        holder: Option<Box<Holder>>,
    },
    /// The deadline passed before the lock was granted.
    #[error("{name} was not granted within {} after {attempts} {}{}", brief(*.waited), plural(*.attempts), by(.holder.as_deref()))]
    Timeout {
        /// What was asked for.
        name: LockName,
        /// How long the call lasted.
        waited: Duration,
        /// How many attempts the backend answered or was still working on.
        attempts: u32,
        /// One of those who held it when last seen, where the backend can know.
        holder: Option<Box<Holder>>,
        /// The last failure of the service, if it failed since its last answer. A dead server never reads as "locked".
        #[source]
        last_error: Option<BackendError>,
    },
    /// The lock was held, and is no longer certainly so.
    #[error("{name} was lost")]
    Lost {
        /// What was held.
        name: LockName,
        /// How it was lost.
        #[source]
        loss: Loss,
    },
    /// The store says that this acquisition does not hold: somebody removed it.
    #[error("{name} was not held any more when it was released")]
    NotHeld {
        /// What should have been held.
        name: LockName,
    },
    /// The name can't be locked.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// So many permits can never be granted.
    #[error(transparent)]
    InvalidPermits(#[from] InvalidPermits),
    /// The policy makes no sense.
    #[error(transparent)]
    InvalidPolicy(#[from] InvalidPolicy),
    /// The backend does not have what was asked for. No I/O was done.
    #[error("this backend has no {what}: {instead}")]
    Unsupported {
        /// What it lacks.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The service failed, for good or more often than the policy allows.
    #[error("{name}: the lock service failed")]
    Backend {
        /// What was asked for.
        name: LockName,
        /// How it failed.
        #[source]
        source: BackendError,
    },
}

impl LockError {
    /// Whether it says that somebody else holds the lock: [`AlreadyLocked`](Self::AlreadyLocked), or a
    /// [`Timeout`](Self::Timeout) while the service was answering.
    pub const fn is_contention(&self) -> bool {
        matches!(
            self,
            Self::AlreadyLocked { .. }
                | Self::Timeout {
                    last_error: None,
                    ..
                }
        )
    }

    /// Whether the same call may succeed later without anybody changing the program or the service's set-up.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::AlreadyLocked { .. }
            | Self::Timeout { .. }
            | Self::Lost { .. }
            | Self::NotHeld { .. } => true,
            Self::Backend { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    /// One of those who hold the lock, where the error is contention and the backend can know.
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Self::AlreadyLocked { holder, .. } | Self::Timeout { holder, .. } => holder.as_deref(),
            _ => None,
        }
    }
}

fn by(holder: Option<&Holder>) -> impl fmt::Display {
    holder.map_or_else(String::new, |holder| format!(", held by {holder}"))
}

fn plural(attempts: u32) -> &'static str {
    if attempts == 1 { "attempt" } else { "attempts" }
}

fn brief(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_millis(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    ))
}

/// What kind of failure a service reports: what a program can decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// The service did not answer, or the connection to it broke. Retried.
    Unavailable,
    /// The session that ownership and queue places live in has ended; a later call starts a new one. Retried.
    SessionEnded,
    /// The service is there but too busy or too full for the moment: too many open files, no memory. Retried.
    Exhausted,
    /// The service refused the caller: wrong password, missing permission.
    PermissionDenied,
    /// The store can't be written: a read-only directory, a replica.
    ReadOnly,
    /// The store is full.
    OutOfSpace,
    /// Where the locks should be, there is nothing: a deleted directory, a wrong address.
    NotFound,
    /// The store holds something else where the lock should be, or a damaged record.
    Corrupt,
    /// The service, or the file system, can't do what a lock needs.
    Unsupported,
    /// The backend's settings make no sense.
    Misconfigured,
    /// Anything else. Not retried.
    Other,
}

/// The service's own failure: never a word about who holds the lock.
#[derive(Debug, Clone)]
pub struct BackendError {
    kind: BackendErrorKind,
    message: Cow<'static, str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl BackendError {
    /// A failure of this kind. `message` says what failed and what to do, in lower case, without a full stop or a secret.
    pub fn new(kind: BackendErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Keeps what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The answer of a backend that lacks `what`.
    pub fn unsupported(what: &'static str) -> Self {
        Self::new(
            BackendErrorKind::Unsupported,
            format!("this backend has no {what}"),
        )
    }

    /// What kind of failure it is.
    pub const fn kind(&self) -> BackendErrorKind {
        self.kind
    }

    /// Whether the engine tries again: the failure may pass by itself.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            BackendErrorKind::Unavailable
                | BackendErrorKind::SessionEnded
                | BackendErrorKind::Exhausted
        )
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for BackendError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn contention_names_the_holder() {
        let holder = Holder::new("db1", 42, Some("nightly".into()), UNIX_EPOCH);
        let error = LockError::Timeout {
            name: LockName::new("deploy").unwrap(),
            waited: Duration::from_secs(5),
            attempts: 21,
            holder: Some(Box::new(holder)),
            last_error: None,
        };
        assert_eq!(
            error.to_string(),
            "deploy was not granted within 5s after 21 attempts, held by pid 42 on db1 (nightly) since 1970-01-01T00:00:00Z"
        );
        assert!(error.is_contention() && error.is_retryable());
    }

    #[test]
    fn a_dead_server_never_reads_as_locked() {
        let error = LockError::Timeout {
            name: LockName::new("deploy").unwrap(),
            waited: Duration::from_millis(1),
            attempts: 1,
            holder: None,
            last_error: Some(BackendError::new(
                BackendErrorKind::Unavailable,
                "connection refused",
            )),
        };
        assert!(!error.is_contention());
        assert_eq!(error.source().unwrap().to_string(), "connection refused");
    }

    #[test]
    fn the_cause_is_chained_and_not_repeated() {
        let cause = std::io::Error::other("disk on fire");
        let error =
            BackendError::new(BackendErrorKind::Other, "can't write the holder").with_source(cause);
        assert_eq!(error.to_string(), "can't write the holder");
        assert_eq!(error.source().unwrap().to_string(), "disk on fire");
    }
}
