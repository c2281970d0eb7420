//! What waiters cost that only wait: the processor time of a process that does nothing else.

use std::{path::Path, thread, time::Duration};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest, to},
    report::{Target, table, times},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

use super::{
    children::{Process, say},
    taker::{Kind, Taker, current_thread, distributed, multi_thread, ours},
};
use crate::{Effort, locks::Exclusive};

const WAITERS: u32 = 64;
/// What a waiter may cost in a second.
const WANTED: Duration = Duration::from_micros(10);

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    table(&format!(
        "Files: processor time of one of {WAITERS} idle waiters in a second, to 10 µs"
    ));
    let contestants = [
        Kind::FdLock,
        Kind::Blocking,
        Kind::BackendEach,
        Kind::CurrentThread,
        Kind::MultiThread,
        Kind::DistributedLock,
    ]
    .map(|kind| {
        Contestant::new(kind.to_string(), move || {
            cost(kind, directory, effort.of(3_000))
        })
    });
    let outcomes = contest(1, contestants.into())?;
    times(&to(WANTED, outcomes), Target::AtMost(1.0));
    Ok(())
}

/// This process holds the lock while another one waits for it.
fn cost(kind: Kind, directory: &Path, millis: u32) -> Result<Duration, Failure> {
    Taker::new(kind, directory)?.take(|| {
        let words = ["idle", &kind.to_string()];
        let mut child = Process::start(&words, directory, &[&millis.to_string()])?;
        Ok(Duration::from_nanos(child.hear()?.parse()?))
    })
}

/// Starts the waiters, and says how many nanoseconds one of them costs in a second. They end with the process.
pub(crate) fn wait(kind: Kind, directory: &Path, millis: u64) -> Result<(), Failure> {
    let runtime = match kind {
        Kind::MultiThread => multi_thread()?,
        _ => current_thread()?,
    };
    match kind {
        Kind::CurrentThread | Kind::MultiThread => spawn(&runtime, &ours(directory, "nightly")?),
        Kind::DistributedLock => spawn(&runtime, &distributed(directory)?),
        _ => {
            for taker in Taker::many(kind, directory, WAITERS)? {
                thread::spawn(move || taker.take(|| Ok(())));
            }
        }
    }
    let time = Duration::from_millis(millis);
    runtime.block_on(async {
        // Until all of them wait, and those that wait longer each time have come to do so.
        tokio::time::sleep(time).await;
        let before = spent();
        tokio::time::sleep(time).await;
        let spent = u128::from(spent() - before) * 1_000;
        say(spent / u128::from(millis) / u128::from(WAITERS))
    })
}

fn spawn<L: Exclusive>(runtime: &Runtime, lock: &L) {
    for _ in 0..WAITERS {
        let lock = lock.clone();
        runtime.spawn(async move { lock.take().await });
    }
}

/// The processor time of this process, in nanoseconds.
fn spent() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
