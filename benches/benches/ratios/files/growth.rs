//! How the cost of one operation grows with what is there besides: names, holders, waiters.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use portalock_benches::{Failure, contest::median, plot, report::micros};
use portalock_core::{Lock, blocking};
use portalock_fs::FsBackend;
use tokio::task::yield_now;

use super::{
    children::turns,
    taker::{Kind, current_thread, ours},
};
use crate::{Effort, PLOTS};

const DECADES: [u32; 4] = [10, 100, 1_000, 10_000];
const PROCESSES: [u32; 4] = [2, 8, 32, 128];

/// How long one operation takes beside so many.
type Measure = fn(&Path, u32) -> Result<Duration, Failure>;

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    let lines: [(&str, &[u32], Measure); 5] = [
        ("pair, names used", &DECADES, names),
        ("pair, locks held", &DECADES, held),
        ("shared pair, readers", &DECADES[..3], readers),
        ("handoff, tasks waiting", &DECADES, waiting_tasks),
        ("handoff, processes", &PROCESSES, processes),
    ];
    println!("\n### Files: how the cost grows\n");
    println!("| what | beside | takes |");
    println!("|---|---:|---:|");
    let mut series = Vec::new();
    for (what, counts, measure) in lines {
        let mut points = Vec::new();
        let few = if effort == Effort::Quick {
            1
        } else {
            counts.len()
        };
        for count in &counts[..few] {
            let directory = tempfile::tempdir()?;
            let time = measure(directory.path(), *count)?;
            println!("| {what} | {count} | {} |", micros(time));
            points.push((f64::from(*count), time.as_secs_f64() * 1e6));
        }
        series.push((what.to_owned(), points));
    }
    if effort == Effort::Full {
        fs::create_dir_all(PLOTS)?;
        let title = "Files: one operation beside many others";
        let path = Path::new(PLOTS).join("files-growth.svg");
        plot::write(&path, title, "how many", "µs", &series)?;
    }
    Ok(())
}

const RUNS: usize = 9;
const PAIRS: u32 = 1_000;

/// The median of some runs.
fn typical(
    runs: usize,
    mut run: impl FnMut() -> Result<Duration, Failure>,
) -> Result<Duration, Failure> {
    let times = (0..runs)
        .map(|_| Ok(run()?.as_secs_f64()))
        .collect::<Result<_, Failure>>()?;
    Ok(Duration::from_secs_f64(median(times)))
}

fn names(directory: &Path, count: u32) -> Result<Duration, Failure> {
    let locks = many(directory, count)?;
    let locks: Vec<blocking::Lock<_>> = locks.into_iter().map(Into::into).collect();
    for lock in &locks {
        drop(lock.acquire()?);
    }
    let mut round = locks.iter().cycle();
    typical(RUNS, || {
        let started = Instant::now();
        for lock in round.by_ref().take(PAIRS as usize) {
            drop(lock.acquire()?);
        }
        Ok(started.elapsed() / PAIRS)
    })
}

fn held(directory: &Path, count: u32) -> Result<Duration, Failure> {
    let locks = many(directory, count + 1)?;
    let locks: Vec<blocking::Lock<_>> = locks.into_iter().map(Into::into).collect();
    let (one, others) = locks.split_first().ok_or("no lock")?;
    let _others = others
        .iter()
        .map(blocking::Lock::acquire)
        .collect::<Result<Vec<_>, _>>()?;
    typical(RUNS, || {
        let started = Instant::now();
        for _ in 0..PAIRS {
            drop(one.acquire()?);
        }
        Ok(started.elapsed() / PAIRS)
    })
}

fn readers(directory: &Path, count: u32) -> Result<Duration, Failure> {
    let lock: blocking::Lock<_> = ours(directory, "nightly")?.into();
    let _others = (0..count)
        .map(|_| lock.acquire_shared())
        .collect::<Result<Vec<_>, _>>()?;
    typical(RUNS, || {
        let started = Instant::now();
        for _ in 0..PAIRS {
            drop(lock.acquire_shared()?);
        }
        Ok(started.elapsed() / PAIRS)
    })
}

fn waiting_tasks(directory: &Path, count: u32) -> Result<Duration, Failure> {
    let lock = ours(directory, "nightly")?;
    let runtime = current_thread()?;
    typical(5, || runtime.block_on(queue_passes(&lock, count)))
}

/// So many tasks wait, and each has the lock once.
async fn queue_passes(lock: &Lock<FsBackend>, count: u32) -> Result<Duration, Failure> {
    let held = lock.acquire().await?;
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move { lock.acquire().await.map(drop) })
        })
        .collect();
    while lock.inspect().await?.waiters.len() < tasks.len() {
        yield_now().await;
    }
    let started = Instant::now();
    drop(held);
    for task in tasks {
        task.await??;
    }
    Ok(started.elapsed() / count)
}

fn processes(_directory: &Path, count: u32) -> Result<Duration, Failure> {
    typical(3, || {
        Ok(turns(Kind::Blocking, count, Duration::from_secs(1))?.handoff)
    })
}

fn many(directory: &Path, count: u32) -> Result<Vec<Lock<FsBackend>>, Failure> {
    let lock = ours(directory, "first")?;
    (0..count)
        .map(|name| Ok(Lock::new(lock.backend().clone(), name.to_string())?))
        .collect()
}
