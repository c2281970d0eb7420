//! Locking a file that is already open, with a deadline.

use std::fs::File;

use cap_std::io_lifetimes::AsFilelike;
use portalock_core::{LockError, LockName, Mode, Policy};

use super::{
    acquisition::Acquisition,
    owned::{Owned, failed},
    spec::{OPEN_FILE, Spec},
};
use crate::locking::{FsError, LockKind};

/// Locks `handle`, and waits for the lock according to `policy`.
///
/// Like [`lock`](crate::lock), but with a deadline, and without blocking the thread. The file is unlocked by
/// [`unlock`](crate::unlock), or when the last copy of the handle is closed. On Linux the call wakes up when another
/// handle of the file is closed. Unlocking a handle without closing it wakes nobody, so the call also polls, with
/// pauses up to [`check_interval`](Policy::check_interval).
///
/// # Errors
///
/// [`LockError::Timeout`] if another owner held the lock all the time; [`LockError::AlreadyLocked`] at once if the lock
/// is held and the policy has `fail_when_locked`; [`LockError::Backend`] at once if the file can't be locked at all.
///
/// # Cancel safety
///
/// Safe: if the call is dropped or fails, it has locked nothing. On Unix, a failed attempt to change the mode of a held
/// lock may drop that lock (`flock(2)`).
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
/// // Nobody else has it.
/// unlock(&file, LockKind::Flock)?;
/// # Ok(()) }
/// ```
pub async fn lock_with<H: AsFilelike>(
    handle: &H,
    mode: Mode,
    kind: LockKind,
    policy: &Policy,
) -> Result<(), LockError> {
    let lock = Acquisition::lock_on(spec(handle, mode, kind)?)?;
    Owned::acquire(lock, policy).await?.keep();
    Ok(())
}

/// [`lock_with`] for synchronous code: it blocks the thread.
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
    let lock = Acquisition::lock_on(spec(handle, mode, kind)?)?;
    Owned::blocking_acquire(lock, policy)?.keep();
    Ok(())
}

fn spec<H: AsFilelike>(handle: &H, share: Mode, kind: LockKind) -> Result<Spec, LockError> {
    match handle.as_filelike_view::<File>().try_clone() {
        Ok(copy) => Ok(Spec::of_open(copy, share, kind)),
        Err(error) => {
            let error = FsError::new("copy the handle of", error);
            Err(failed(LockName::new(OPEN_FILE)?, error))
        }
    }
}
