//! Many processes that compete for one lock, and detect that two of them are inside.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use portalock_core::{Guard, Lock, LockBackend, LockError, clock::Instant};

use crate::{section::STAY, trial::eager, verdict::CaseResult};

/// How long they compete: some bugs need an unlucky moment.
const CROWDED: Duration = Duration::from_secs(1);
/// How often each gets the lock at least, even if that takes longer.
const VISITS: u32 = 100;
/// The lock is slow: this must do.
const SLOW: Duration = Duration::from_secs(8);

/// Acquires the lock repeatedly, and calls `visit` each time, while others do the same.
pub(crate) async fn crowd<B: LockBackend + Clone>(
    backend: B,
    name: &str,
    mut visit: impl FnMut() -> CaseResult,
) -> CaseResult {
    let started = Instant::now();
    for round in 0_u32.. {
        let lasted = started.elapsed();
        if (round >= VISITS && lasted >= CROWDED) || (round > 0 && lasted >= SLOW) {
            break;
        }
        // A new lock object each time, like a program that takes a lock from time to time.
        let lock = Lock::new(backend.clone(), name)?;
        let guard = if round % 4 == 0 {
            lock.acquire_with(&eager()?).await?
        } else {
            crate::verdict::soon("a turn", without_a_pause(&lock)).await??
        };
        visit()?;
        guard.release().await?;
    }
    Ok(())
}

/// Tries until it is granted, with no pause in between: so somebody tries at every instant of another's release.
async fn without_a_pause<B: LockBackend>(lock: &Lock<B>) -> Result<Guard<B>, LockError> {
    loop {
        match lock.try_acquire().await {
            Ok(guard) => return Ok(guard),
            Err(error) if error.is_contention() => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

/// A critical section that processes of one machine share: a file exists while a process is inside.
#[derive(Debug)]
pub(crate) struct Doorway(PathBuf);

impl Doorway {
    /// A new, empty section. Dropping it removes its file.
    pub(crate) fn new() -> Self {
        let name = format!(
            "portalock-testkit-{}-{:016x}",
            std::process::id(),
            fastrand::u64(..)
        );
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Doorway {
    fn drop(&mut self) {
        // Usually the file is already gone.
        let _ = fs::remove_file(&self.0);
    }
}

/// Stays inside for a moment. False if another process was already inside.
pub(crate) fn pass(doorway: &Path) -> io::Result<bool> {
    let entered = match fs::File::create_new(doorway) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error),
    };
    let until = Instant::now() + STAY;
    while Instant::now() < until {
        std::thread::yield_now();
    }
    if entered {
        fs::remove_file(doorway)?;
    }
    Ok(entered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_at_once_are_noticed_and_one_after_the_other_is_fine() {
        let doorway = Doorway::new();
        assert!(pass(doorway.path()).unwrap());
        assert!(pass(doorway.path()).unwrap());
        fs::File::create_new(doorway.path()).unwrap();
        assert!(!pass(doorway.path()).unwrap());
        let path = doorway.path().to_owned();
        drop(doorway);
        assert!(!path.exists());
    }
}
