//! One function for every backend: a type parameter selects the backend.
//!
//! ```sh
//! cargo run --example generic_job
//! ```
//!
//! `nightly_report` does not depend on memory, files or servers. Three workers call it at the same time, first with
//! locks in memory, as in a unit test, and then with lock files. For locks across machines, change only the type, to
//! `portalock::redis::RedisBackend` or `portalock::etcd::EtcdBackend`, and how it is opened.

use std::{error::Error, sync::Arc, time::Duration};

use portalock::fs::FsBackend;
use portalock::{DynBackend, Lock, LockBackend, LockError, MemoryBackend};
use tokio::time::sleep;

/// This is the one line to change.
type Production = FsBackend;

/// The result of one worker's call.
#[derive(Debug, PartialEq)]
enum Outcome {
    /// It wrote the report.
    Wrote,
    /// Another worker was writing it.
    LeftToAnother,
}

/// Writes the report, unless another worker is writing it. If the lock is lost, the work stops.
async fn nightly_report<B: LockBackend>(lock: &Lock<B>) -> Result<Outcome, LockError> {
    let guard = match lock.try_acquire().await {
        Ok(guard) => guard,
        Err(error) if error.is_contention() => return Ok(Outcome::LeftToAnother),
        Err(error) => return Err(error),
    };
    guard.run(write_report()).await?;
    guard.release().await?;
    Ok(Outcome::Wrote)
}

async fn write_report() {
    sleep(Duration::from_millis(200)).await;
}

/// Three workers at once, on locks of any kind.
async fn three_workers<B: LockBackend>(title: &str, backend: B) -> Result<(), LockError> {
    let lock = Lock::new(backend, "nightly-report")?;
    let (a, b, c) = tokio::join!(
        nightly_report(&lock),
        nightly_report(&lock),
        nightly_report(&lock)
    );
    let outcomes = [a?, b?, c?];
    let wrote = outcomes
        .iter()
        .filter(|outcome| **outcome == Outcome::Wrote)
        .count();
    let left = outcomes.len() - wrote;
    println!("{title:<16} {wrote} wrote the report, {left} left it to another");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;

    three_workers("in memory:", MemoryBackend::new()).await?;
    three_workers("in files:", Production::open(directory.path())?).await?;

    // If a setting selects the backend instead of a type, use a `DynBackend`.
    let chosen: DynBackend = Arc::new(Production::open(directory.path())?);
    three_workers("at run time:", chosen).await?;
    Ok(())
}
