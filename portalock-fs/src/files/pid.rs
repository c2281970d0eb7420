//! The lock for a single instance of a daemon, which publishes the process id of that instance.

use std::path::Path;

use portalock_core::{Lock, LockError, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    forms::{acquire_methods, guard_methods, lock_methods},
    owned::{Owned, once},
    pid_record::{self, PidHolder},
    spec::Spec,
};
use crate::locking::{FsError, LockKind};

/// A lock that publishes its holder's process id. portalocker's `PidFileLock`.
///
/// It uses two files: `path` contains the pid as text, like any pid file, and `path` + `.lock` beside it is locked. So
/// the pid can be read while the lock is held, even on Windows, where locks are mandatory. portalocker uses the same
/// two files, so Python and Rust programs exclude each other.
///
/// - [`acquire`](Self::acquire) *fails closed*: without the lock there is no guard, and the error names the holder's
///   pid. By default it doesn't wait; change this with [`with_policy`](Self::with_policy).
/// - [`acquire_or_holder`](Self::acquire_or_holder) returns the holder instead of an error. If the pid can't be read,
///   the answer is never "nobody".
/// - The pid is published in one step: a reader sees the old pid or the new one, never a part of it.
/// - A release removes both files while the lock is still held, and only if the lock file is still this holder's own.
/// - A killed process leaves an unlocked file, which the next holder takes over.
/// - Pids are reused. The holder also records its start time, so [`read_holder`](Self::read_holder) can distinguish the
///   holder from another process with the same pid (on Linux; on other systems the answer is `Unknown`).
///
/// ```
/// use portalock_fs::PidFileLock;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("daemon.pid");
///
/// let lock = PidFileLock::new(&path)?;
/// let guard = lock.blocking_acquire()?;
/// assert_eq!(lock.read_pid(), Some(std::process::id()));
///
/// let error = lock.try_acquire().unwrap_err();
/// assert_eq!(error.holder().map(|holder| holder.pid), Some(std::process::id()));
/// guard.release()?;
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PidFileLock {
    /// The spec of the sidecar, which is locked.
    spec: Spec,
    policy: Policy,
}

/// The result of [`acquire_or_holder`](PidFileLock::acquire_or_holder).
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it, and it is taken apart at once"
)]
pub enum PidFileOutcome {
    /// The caller holds the lock, as long as it keeps the guard.
    Acquired(PidFileGuard),
    /// Another process holds the lock.
    HeldBy(PidHolder),
}

impl PidFileLock {
    /// A lock with the pid file at `path`. Nothing is created yet.
    ///
    /// # Errors
    ///
    /// [`FsError`] if `path` is empty or can't be made absolute.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, FsError> {
        let pid_file = Spec::new(path.as_ref())?.path;
        let sidecar = pid_record::sidecar_of(&pid_file);
        let mut spec = Spec::of_lock_file(&sidecar, FileMode::AppendRead)?;
        spec.goes_with_lock = true;
        spec.pid_file = Some(pid_file);
        Ok(Self {
            spec,
            policy: Policy::default().with_fail_when_locked(true),
        })
    }

    lock_methods!(PidFileGuard);

    /// Like [`acquire`](Self::acquire), but if another process holds the lock, returns that process instead of an
    /// error, like portalocker's `with PidFileLock(..) as pid`.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire). The contention error is returned if the holder's pid can't be read, or belongs to
    /// a process that can't be the holder: then the holder is unknown.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_or_holder(&self) -> Result<PidFileOutcome, LockError> {
        self.outcome(self.acquire().await)
    }

    /// [`acquire_or_holder`](Self::acquire_or_holder) for synchronous code: it blocks the thread if the policy waits.
    ///
    /// # Errors
    ///
    /// As [`acquire_or_holder`](Self::acquire_or_holder).
    pub fn blocking_acquire_or_holder(&self) -> Result<PidFileOutcome, LockError> {
        self.outcome(self.blocking_acquire())
    }

    /// The pid in the file. `None` if the file is missing, can't be read, or contains anything but a positive number.
    ///
    /// This is the process that *wrote* the file. It may be gone, and its pid may be reused: see
    /// [`read_holder`](Self::read_holder).
    pub fn read_pid(&self) -> Option<u32> {
        pid_record::read_pid(self.path())
    }

    /// The pid in the file, and what is known about the process that wrote it.
    ///
    /// This says nothing about the lock: the process may have released it since.
    pub fn read_holder(&self) -> Option<PidHolder> {
        pid_record::read_holder(self.path())
    }

    fn outcome(
        &self,
        acquired: Result<PidFileGuard, LockError>,
    ) -> Result<PidFileOutcome, LockError> {
        match acquired {
            Ok(guard) => Ok(PidFileOutcome::Acquired(guard)),
            Err(error) if error.is_contention() => self
                .read_holder()
                .filter(PidHolder::may_be_holding)
                .map(PidFileOutcome::HeldBy)
                .ok_or(error),
            Err(error) => Err(error),
        }
    }
}

/// A held pid file.
///
/// # On drop
///
/// The pid file and the lock file beside it are removed, and then the lock is released. A failure is logged;
/// [`release`](Self::release) reports it.
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct PidFileGuard(Owned);

impl PidFileGuard {
    guard_methods!();
}
