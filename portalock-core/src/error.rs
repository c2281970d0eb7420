//! Errors: separate variants for contention, loss, misuse and failures of the service.

use std::{borrow::Cow, error::Error, fmt, sync::Arc, time::Duration};

use crate::{Holder, InvalidName, InvalidPermits, LockName, Loss, Permits, policy::InvalidPolicy};

/// Why an acquisition or a release failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another owner holds the lock, and the call does not wait.
    #[error("{name} {}{}", refused(*.permits), by(.holder.as_deref()))]
    AlreadyLocked {
        /// The name of the lock or semaphore.
        name: LockName,
        /// The permits that the call wanted, of a semaphore.
        permits: Option<Permits>,
        /// One of the holders, if the backend knows it.
        holder: Option<Box<Holder>>,
    },
    /// The deadline passed before the lock was granted.
    #[error("{name} was not granted within {} after {attempts} {}{}", brief(*.waited), plural(*.attempts), by(.holder.as_deref()))]
    Timeout {
        /// The name of the lock or semaphore.
        name: LockName,
        /// How long the call lasted.
        waited: Duration,
        /// The number of attempts, including one without an answer yet.
        attempts: u32,
        /// One of the holders at the last attempt, if the backend knows it.
        holder: Option<Box<Holder>>,
        /// The last failure of the service, if there was no answer after it. A server that is down never reads as
        /// "locked".
        #[source]
        last_error: Option<BackendError>,
    },
    /// The lock was held, and is lost.
    #[error("{name} was lost")]
    Lost {
        /// The name of the lock or semaphore.
        name: LockName,
        /// The reason.
        #[source]
        loss: Loss,
    },
    /// The store has no record of this hold: somebody removed it.
    #[error("{name} was no longer held when it was released")]
    NotHeld {
        /// The name of the lock or semaphore.
        name: LockName,
    },
    /// The name is not valid.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// This number of permits can never be granted.
    #[error(transparent)]
    InvalidPermits(#[from] InvalidPermits),
    /// The policy is not valid.
    #[error(transparent)]
    InvalidPolicy(#[from] InvalidPolicy),
    /// The backend does not support the request. No I/O was done.
    #[error("this backend has no {what}: {instead}")]
    Unsupported {
        /// What the backend does not support.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The service failed with an error that a retry can't fix, or more often than the policy allows.
    #[error("{name}: the lock service failed")]
    Backend {
        /// The name of the lock or semaphore.
        name: LockName,
        /// The failure.
        #[source]
        source: BackendError,
    },
}

impl LockError {
    /// Whether the error means that another owner holds the lock: [`AlreadyLocked`](Self::AlreadyLocked), or a
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

    /// Whether the same call may succeed later, without a change of the program or of the service's configuration.
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

    /// One of the holders, if the error is contention and the backend knows it.
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

/// Clear that the permits are those that the call wanted, and not those that others hold.
fn refused(permits: Option<Permits>) -> impl fmt::Display {
    permits.map_or_else(
        || "is already locked".to_owned(),
        |permits| format!("has no room for {permits}"),
    )
}

fn plural(attempts: u32) -> &'static str {
    if attempts == 1 { "attempt" } else { "attempts" }
}

fn brief(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(Duration::from_millis(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    ))
}

/// The kind of a service's failure, for decisions in a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// The service did not answer, or the connection to it broke. Retried.
    Unavailable,
    /// The session ended, and with it its locks and queue places; a later call starts a new session. Retried.
    SessionEnded,
    /// The service is reachable but out of a resource for the moment, such as connections, open files or memory.
    /// Retried.
    Exhausted,
    /// The service refused the caller: wrong password, missing permission.
    PermissionDenied,
    /// The store can't be written: a read-only directory, a replica.
    ReadOnly,
    /// The store is full.
    OutOfSpace,
    /// The store does not exist: a deleted directory, a wrong address.
    NotFound,
    /// The store has a damaged record, or other data, in the place of the lock.
    Corrupt,
    /// The service or the file system lacks something that a lock needs.
    Unsupported,
    /// The backend's settings are not valid.
    Misconfigured,
    /// Anything else. Not retried.
    Other,
}

/// A failure of the service. It says nothing about who holds the lock.
#[derive(Debug, Clone)]
pub struct BackendError {
    kind: BackendErrorKind,
    message: Cow<'static, str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl BackendError {
    /// A failure of this kind. `message` says what failed and what to do about it, in lower case, without a full stop,
    /// and without secrets.
    pub fn new(kind: BackendErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// The failure of a call in a forked child that uses what its parent has made, such as a connection.
    pub fn forked() -> Self {
        Self::new(
            BackendErrorKind::Misconfigured,
            "the backend was opened before this process was forked: open one in the child",
        )
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The error of a backend that has no `what`.
    pub fn unsupported(what: &'static str) -> Self {
        Self::new(
            BackendErrorKind::Unsupported,
            format!("this backend has no {what}"),
        )
    }

    /// The kind of failure.
    pub const fn kind(&self) -> BackendErrorKind {
        self.kind
    }

    /// Whether the engine tries again, because the failure may be temporary.
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

    #[tokio::test]
    async fn a_refusal_says_what_was_wanted() {
        let backend = crate::MemoryBackend::new();
        let pool = crate::Pool::new(backend.clone(), "workers", 3).unwrap();
        let _two = pool.try_acquire(2).await.unwrap();
        let refused = pool.try_acquire(2).await.unwrap_err().to_string();
        let wanted = "workers has no room for 2 of 3 permits, held by pid ";
        assert!(refused.starts_with(wanted), "{refused}");
        let lock = crate::Lock::new(backend, "deploy").unwrap();
        let _held = lock.try_acquire().await.unwrap();
        let refused = lock.try_acquire().await.unwrap_err().to_string();
        assert!(refused.starts_with("deploy is already locked, held by pid "));
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
