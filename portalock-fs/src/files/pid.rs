//! The "only one instance of this daemon" lock, which says who the one instance is.

use std::path::{Path, PathBuf};

use portalock_core::{LockError, Mode, Policy};

use super::{
    file_mode::FileMode,
    owned::{Owned, once},
    pid_record::{self, PidHolder},
    spec::{Ending, Spec, Witness},
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
    path: PathBuf,
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
        let anchored = Spec::new(path.as_ref())?.path;
        let mut spec = Spec::new(&pid_record::sidecar_of(&anchored))?;
        spec.mode = FileMode::AppendRead;
        spec.follow = false;
        spec.ending = Ending::Remove {
            companion: Some(anchored.clone()),
        };
        spec.witness = Witness::Written(pid_record::holder_beside);
        Ok(Self {
            spec,
            path: anchored,
            policy: Policy::default().with_fail_when_locked(true),
        })
    }

    /// Sets how [`acquire`](Self::acquire) waits. Default: 5 s, but fails at once when locked.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets which of the system's locks to use. Default [`LockKind::Flock`].
    ///
    /// Choose [`LockKind::Record`] to meet a Python program that sets `portalocker.portalocker.LOCKER` to `fcntl.lockf`.
    #[must_use]
    pub const fn with_kind(mut self, kind: LockKind) -> Self {
        self.spec.kind = kind;
        self
    }

    /// The pid file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks it and publishes this process's pid, waiting as the lock's policy says.
    ///
    /// # Errors
    ///
    /// - [`LockError::AlreadyLocked`] if somebody else holds it and the policy says to fail when locked, as it does by
    ///   default; [`LockError::Timeout`] if it says to wait. Both name the holder's pid if it can be read.
    /// - [`LockError::Backend`] at once if the files can't be written or locked. The lock is not held then.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing stays locked.
    pub async fn acquire(&self) -> Result<PidFileGuard, LockError> {
        self.acquire_with(&self.policy).await
    }

    /// As [`acquire`](Self::acquire), waiting as `policy` says.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    ///
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_with(&self, policy: &Policy) -> Result<PidFileGuard, LockError> {
        let owned = Owned::acquire(&self.spec, Mode::Exclusive, policy).await?;
        self.publish(owned)
    }

    /// Locks it if it is free. It does not wait, so there is nothing async about it.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<PidFileGuard, LockError> {
        self.blocking_acquire_with(&once())
    }

    /// [`acquire`](Self::acquire) for synchronous code: it parks the thread.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn blocking_acquire(&self) -> Result<PidFileGuard, LockError> {
        self.blocking_acquire_with(&self.policy)
    }

    /// [`acquire_with`](Self::acquire_with) for synchronous code: it parks the thread.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn blocking_acquire_with(&self, policy: &Policy) -> Result<PidFileGuard, LockError> {
        self.publish(Owned::blocking_acquire(
            &self.spec,
            Mode::Exclusive,
            policy,
        )?)
    }

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
        pid_record::read_pid(&self.path)
    }

    /// The pid in the file, and what is known of the process it was written by.
    ///
    /// It says nothing about the lock: a process may have written its pid and released the lock since.
    pub fn read_holder(&self) -> Option<PidHolder> {
        pid_record::read_holder(&self.path)
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

    /// The sidecar is locked: says who did it. If that fails, dropping `owned` frees it.
    fn publish(&self, owned: Owned) -> Result<PidFileGuard, LockError> {
        pid_record::write(&self.path, owned.file()).map_err(|error| owned.failed(error))?;
        Ok(PidFileGuard {
            owned,
            path: self.path.clone(),
        })
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
pub struct PidFileGuard {
    owned: Owned,
    path: PathBuf,
}

impl PidFileGuard {
    /// The pid file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error if the lock file was removed or replaced: then a second instance may run.
    ///
    /// It looks at the file system; what it found is true for that moment.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`]; [`LockError::Backend`] if the file system can't be asked.
    pub fn ensure_held(&self) -> Result<(), LockError> {
        self.owned.ensure_held()
    }

    /// Removes both files and frees the lock, and says how that went. The lock is freed in any case.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if the lock file had been removed or replaced, and a second instance may have run.
    /// [`LockError::Backend`] with the first failure, if a file could not be removed or the system refused to unlock it.
    pub fn release(self) -> Result<(), LockError> {
        self.owned.release()
    }
}
