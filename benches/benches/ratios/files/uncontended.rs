//! Nobody else wants the lock.

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    contest::{Contestant, Outcome, contest},
    report::{Target, micros, row, table, times},
};
use portalock_core::blocking;
use tokio::runtime::Runtime;

use super::taker::{Kind, Taker, current_thread, multi_thread, ours};
use crate::Effort;

/// What the async form may take more than the blocking one.
const ASYNC_MORE: Duration = Duration::from_micros(10);

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let pairs = effort.of(5_000);
    let taker = |kind: Kind| -> Result<Contestant<'static>, Failure> {
        let taker = Taker::new(kind, directory)?;
        Ok(Contestant::repeating(kind.to_string(), pairs, move || {
            taker.take(|| Ok(()))
        }))
    };
    let asynchronous = |name: &str, runtime: Runtime| -> Result<Contestant<'static>, Failure> {
        let lock = ours(directory, "async")?;
        Ok(Contestant::new(name, move || {
            let lock = lock.clone();
            runtime.block_on(async move {
                let started = Instant::now();
                for _ in 0..pairs {
                    drop(lock.acquire().await?);
                }
                Ok(started.elapsed() / pairs)
            })
        }))
    };
    let released: blocking::Lock<_> = ours(directory, "released")?.into();

    table("Files: acquire and release, nobody else wants it");
    let outcomes = contest(
        effort.rounds(),
        vec![
            taker(Kind::Flock)?,
            taker(Kind::Blocking)?,
            Contestant::repeating(
                "portalock, blocking, `release` for its answer",
                pairs,
                || Ok(released.acquire()?.release()?),
            ),
            asynchronous("portalock, async, current-thread", current_thread()?)?,
            asynchronous("portalock, async, multi-thread", multi_thread()?)?,
            taker(Kind::FdLock)?,
            taker(Kind::OpenFdLock)?,
            taker(Kind::FsLock)?,
            taker(Kind::OpenFsLock)?,
            taker(Kind::DistributedLock)?,
        ],
    )?;
    times(&outcomes, Target::AtMost(1.3));
    for asynchronous in &outcomes[3..5] {
        more_than(&outcomes[1], asynchronous);
    }
    Ok(())
}

/// By how much one takes longer than the blocking form, as a part of what it may.
fn more_than(blocking: &Outcome, other: &Outcome) {
    let more = other.time.saturating_sub(blocking.time);
    let what = format!("{}: more than the blocking form, to 10 µs", other.name);
    let part = more.as_secs_f64() / ASYNC_MORE.as_secs_f64();
    row(&what, micros(more), part, Target::AtMost(1.0));
}
