//! Waiting with a deadline for the lock on a file that is open already.

use std::{
    fs::File,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use cap_std::io_lifetimes::AsFilelike;
use portalock_core::{
    Attempt, BackendError, Capabilities, Contention, CrashRelease, Grant, Lock, LockBackend,
    LockError, LockName, LockRequest, Mode, Policy, Released, Scope, Wakeups, blocking, wakeups,
};

use crate::{
    FsError, LockKind,
    line::{Line, Listening},
    sys, try_lock, unlock,
};

/// Locks `handle` as [`lock`](crate::lock) does, waiting as `policy` says.
///
/// # Errors
///
/// [`LockError::Timeout`] if somebody else held it all the time; [`LockError::AlreadyLocked`] at once, if the policy says to
/// fail when locked; [`LockError::Backend`] if the file can't be locked at all.
///
/// # Cancel safety
///
/// Safe: if it is dropped the handle is not locked.
///
/// ```
/// use std::time::Duration;
/// use portalock_core::Policy;
/// use portalock_fs::{LockKind, Mode, lock_with, unlock};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ledger");
/// let file = std::fs::File::create(&path)?;
/// let policy = Policy::new().with_timeout(Duration::from_secs(2));
/// lock_with(&file, Mode::Exclusive, LockKind::Flock, &policy).await?;
/// unlock(&file, LockKind::Flock)?;
/// # Ok(()) }
/// ```
pub async fn lock_with<H: AsFilelike>(
    handle: &H,
    mode: Mode,
    kind: LockKind,
    policy: &Policy,
) -> Result<(), LockError> {
    let lock = new_lock(handle, kind)?;
    let guard = match mode {
        Mode::Exclusive => lock.acquire_with(policy).await?,
        Mode::Shared => lock.acquire_shared_with(policy).await?,
    };
    lock.backend().is_kept.store(true, Ordering::Relaxed);
    drop(guard);
    Ok(())
}

/// [`lock_with`] for synchronous code: it parks the thread.
///
/// # Errors
///
/// As [`lock_with`].
pub fn blocking_lock_with<H: AsFilelike>(
    handle: &H,
    mode: Mode,
    kind: LockKind,
    policy: &Policy,
) -> Result<(), LockError> {
    let lock = new_lock(handle, kind)?;
    let engine = blocking::Lock::from(lock.clone());
    let guard = match mode {
        Mode::Exclusive => engine.acquire_with(policy)?,
        Mode::Shared => engine.acquire_shared_with(policy)?,
    };
    lock.backend().is_kept.store(true, Ordering::Relaxed);
    drop(guard);
    Ok(())
}

fn new_lock<H: AsFilelike>(handle: &H, kind: LockKind) -> Result<Lock<OpenHandle>, LockError> {
    let name = LockName::new("an open file")?;
    let copy = handle.as_filelike_view::<File>().try_clone();
    let file = copy.map_err(|error| LockError::Backend {
        name: name.clone(),
        source: FsError::new("copy the handle of", error).into(),
    })?;
    let handle = OpenHandle {
        file: Some(file),
        kind,
        line: Mutex::default(),
        is_kept: AtomicBool::new(false),
    };
    Ok(Lock::new(handle, name)?)
}

/// A copy of the caller's handle: they have one lock.
#[derive(Debug)]
struct OpenHandle {
    /// There until drop.
    file: Option<File>,
    kind: LockKind,
    line: Mutex<Option<(Line, Option<Listening>)>>,
    /// The lock is the caller's from now on.
    is_kept: AtomicBool,
}

impl OpenHandle {
    fn end(&self) -> Result<Released, FsError> {
        let Some(file) = &self.file else {
            return Ok(Released::NotHeld);
        };
        if !self.is_kept.load(Ordering::Relaxed) {
            unlock(file, self.kind)?;
        }
        Ok(Released::Freed)
    }
}

impl Drop for OpenHandle {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            sys::close(file, self.kind);
        }
    }
}

#[async_trait]
impl LockBackend for OpenHandle {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Scope::Host)
            .with_shared(true)
            .with_crash_release(CrashRelease::WithProcess)
            .with_releases_now(true)
            .with_needs_runtime(false)
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        let Some(file) = &self.file else {
            return Ok(Attempt::Contended(Contention::new()));
        };
        if let Some((line, listening)) =
            &mut *self.line.lock().unwrap_or_else(PoisonError::into_inner)
            && listening.is_none()
        {
            *listening = line.listen(file);
        }
        // After it is listened for: it may have been freed before.
        Ok(if try_lock(file, request.demand, self.kind)? {
            Attempt::Granted(Grant::new())
        } else {
            Attempt::Contended(Contention::new().with_holder(sys::lock_holder(file)))
        })
    }

    async fn subscribe(&self, _request: &LockRequest) -> Result<Option<Wakeups>, BackendError> {
        let (sender, wakeups) = wakeups();
        let Some(line) = Line::new(sender) else {
            return Ok(None);
        };
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = Some((line, None));
        Ok(Some(wakeups))
    }

    async fn release(&self, _request: &LockRequest) -> Result<Released, BackendError> {
        Ok(self.end()?)
    }

    fn release_now(&self, _request: &LockRequest) -> bool {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "an open file could not be unlocked");
        }
        true
    }
}
