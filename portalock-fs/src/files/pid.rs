//! The "only one instance of this daemon" lock, which says who the one instance is.

use std::path::Path;

use portalock_core::{LockError, Mode, Policy};

use super::{
    acquisition::Acquisition,
    file_mode::FileMode,
    forms::{guard_methods, lock_methods},
    owned::{Owned, once},
    pid_record::{self, PidHolder},
    spec::Spec,
};
use crate::locking::{FsError, LockKind};

/// A lock that publishes its holder's process id. portalocker's `PidFileLock`.
///
/// Two files take part: `path` holds the pid as text, as any pid file does, and `path` + `.lock` beside it carries the
/// lock. So the pid can be read while the lock is held, on Windows too, where locks are mandatory. portalocker uses the
/// same two files: its processes and ours exclude each other.
///
/// - [`acquire`](Self::acquire) gives a guard only to the holder: it *fails closed*. The error names the other's pid.
/// - [`acquire_or_holder`](Self::acquire_or_holder) answers with who holds it instead. It never mistakes a pid that
///   can't be read for "nobody".
/// - The pid is published in one step: a reader sees the old one or the new one, never half of it.
/// - Both files are removed on release, while they are still locked, and only if the lock file is still this holder's own.
/// - What a killed process leaves is a file without a lock: the next one takes it over.
/// - A pid is re-used sooner or later. The holder also records when it started, so [`read_holder`](Self::read_holder) can
///   tell the holder from a stranger with its number (Linux; elsewhere it says that it doesn't know).
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
    /// Of the sidecar: that is what is locked.
    spec: Spec,
    share: Mode,
    policy: Policy,
}

/// Who has it: the caller, or somebody else.
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it, and it is taken apart at once"
)]
pub enum PidFileOutcome {
    /// The caller, for as long as it keeps the guard.
    Acquired(PidFileGuard),
    /// Somebody else.
    HeldBy(PidHolder),
}

impl PidFileLock {
    /// The lock with the pid file at `path`. Nothing is created yet.
    ///
    /// # Errors
    ///
    /// [`FsError`] if `path` is empty or can't be made absolute.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, FsError> {
        let pid_file = Spec::new(path.as_ref())?.path;
        let mut spec = Spec::new(&pid_record::sidecar_of(&pid_file))?;
        spec.mode = FileMode::AppendRead;
        spec.follow = false;
        spec.goes_with_lock = true;
        spec.pid_file = Some(pid_file);
        Ok(Self {
            spec,
            share: Mode::Exclusive,
            policy: Policy::default().with_fail_when_locked(true),
        })
    }

    lock_methods!(PidFileGuard);

    /// As [`acquire`](Self::acquire), but that somebody else holds it is an answer: who it is. What portalocker's
    /// `with PidFileLock(..) as pid` does.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and the contention itself if the holder's pid can't be read, or belongs to a process
    /// that can't be the holder: then nothing is known of who holds it, except that it is not the caller.
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_or_holder(&self) -> Result<PidFileOutcome, LockError> {
        self.outcome(self.acquire().await)
    }

    /// [`acquire_or_holder`](Self::acquire_or_holder) for synchronous code: it parks the thread if the policy says to
    /// wait.
    ///
    /// # Errors
    ///
    /// As [`acquire_or_holder`](Self::acquire_or_holder).
    pub fn blocking_acquire_or_holder(&self) -> Result<PidFileOutcome, LockError> {
        self.outcome(self.blocking_acquire())
    }

    /// The pid in the file, if there is one. `None` if the file is missing, can't be read, or holds anything but a positive
    /// number.
    ///
    /// It says who *wrote* the file. That process may be gone, and its number another's: see
    /// [`read_holder`](Self::read_holder).
    pub fn read_pid(&self) -> Option<u32> {
        pid_record::read_pid(self.path())
    }

    /// The pid in the file, and what is known of the process it was written by.
    ///
    /// It says nothing about the lock: a process may have written its pid and released the lock since.
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

/// A pid file that is held.
///
/// # On drop
///
/// The pid file and the lock file beside it are removed, then the lock is freed. A failure is logged;
/// [`release`](Self::release) reports it.
#[derive(Debug)]
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct PidFileGuard(Owned);

impl PidFileGuard {
    guard_methods!();
}
