//! Others want the lock: how soon the next one has it, and how often it passes on in a second.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest, to},
    report::{Target, rates, table, times},
};
use tokio::runtime::Runtime;

use super::{
    children::{Process, now, turns},
    taker::{Kind, Taker, current_thread, distributed, multi_thread, ours},
};
use crate::{
    Effort,
    locks::{Exclusive, contend_for},
};

const PROCESSES: u32 = 32;
const TASKS: u32 = 64;
/// What a handoff inside one process may take.
const WANTED: Duration = Duration::from_micros(10);
/// Until a child that was told to wait does so. Nothing depends on it but how honest the figure is.
const SETTLE: Duration = Duration::from_millis(3);

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    latency(effort)?;
    processes(effort)?;
    one_process(effort)
}

fn latency(effort: Effort) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let handoffs = effort.of(50);
    let contestants = [
        Kind::Flock,
        Kind::Blocking,
        Kind::CurrentThread,
        Kind::MultiThread,
        Kind::FdLock,
        Kind::FsLock,
        Kind::DistributedLock,
    ]
    .map(|kind| passing_on(kind, directory.path(), handoffs));
    let contestants = contestants.into_iter().collect::<Result<Vec<_>, _>>()?;
    table("Files: from one process's release to another's acquire");
    let outcomes = contest(effort.rounds().min(7), contestants)?;
    times(&outcomes, Target::AtMost(3.0));
    Ok(())
}

/// This process frees what a child waits for. Both read the same clock.
fn passing_on(kind: Kind, directory: &Path, handoffs: u32) -> Result<Contestant<'static>, Failure> {
    let taker = Taker::new(kind, directory)?;
    let mut child = Process::start(&["wait", &kind.to_string()], directory, &[])?;
    Ok(Contestant::new(kind.to_string(), move || {
        let mut all = Vec::new();
        for _ in 0..handoffs {
            let freed = taker.take(|| {
                child.tell()?;
                settle();
                Ok(now())
            })?;
            all.push(child.hear()?.parse::<i64>()? - freed);
        }
        all.sort_unstable();
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        Ok(Duration::from_nanos(u64::try_from(median)?))
    }))
}

#[expect(clippy::disallowed_methods, reason = "a child that waits can't say so")]
fn settle() {
    thread::sleep(SETTLE);
}

fn processes(effort: Effort) -> Result<(), Failure> {
    let time = Duration::from_millis(effort.of(1_000).into());
    let spread = Mutex::new(Vec::new());
    let contestants = [
        Kind::Flock,
        Kind::Blocking,
        Kind::CurrentThread,
        Kind::FdLock,
        Kind::OpenFdLock,
        Kind::FsLock,
        Kind::OpenFsLock,
        Kind::DistributedLock,
    ]
    .map(|kind| {
        let spread = &spread;
        Contestant::new(kind.to_string(), move || {
            let turns = turns(kind, PROCESSES, time)?;
            let mut spread = spread.lock().unwrap_or_else(PoisonError::into_inner);
            spread.push((kind, turns.each));
            Ok(turns.handoff)
        })
    });
    table(&format!(
        "Files: {PROCESSES} processes and one lock, handoffs to another process"
    ));
    let outcomes = contest(effort.rounds().min(5), contestants.into())?;
    rates(&outcomes, Target::AtLeast(0.4));
    println!();
    for kind in [Kind::Flock, Kind::Blocking, Kind::CurrentThread] {
        let spread = spread.lock().unwrap_or_else(PoisonError::into_inner);
        let turns = || {
            let of_kind = spread.iter().filter(|(of, _)| *of == kind);
            of_kind.flat_map(|(_, each)| each)
        };
        let (fewest, most) = (turns().min(), turns().max());
        println!(
            "Turns of one process in {} ms, {kind}: from {} to {}.",
            time.as_millis(),
            fewest.unwrap_or(&0),
            most.unwrap_or(&0)
        );
    }
    Ok(())
}

fn one_process(effort: Effort) -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let time = Duration::from_millis(effort.of(500).into());
    let threads = |kind: Kind| {
        Contestant::new(format!("{kind}, threads"), move || {
            threads_take_turns(kind, directory, time)
        })
    };
    table(&format!(
        "Files: {TASKS} threads or tasks of one process and one lock, handoffs to another, to 100,000/s"
    ));
    let outcomes = contest(
        effort.rounds().min(7),
        vec![
            threads(Kind::Flock),
            threads(Kind::Blocking),
            tasks(
                Kind::CurrentThread,
                ours(directory, "tasks")?,
                current_thread()?,
                time,
            ),
            tasks(
                Kind::MultiThread,
                ours(directory, "tasks")?,
                multi_thread()?,
                time,
            ),
            threads(Kind::FdLock),
            threads(Kind::OpenFdLock),
            threads(Kind::FsLock),
            threads(Kind::OpenFsLock),
            tasks(
                Kind::DistributedLock,
                distributed(directory)?,
                multi_thread()?,
                time,
            ),
        ],
    )?;
    rates(&to(WANTED, outcomes), Target::AtLeast(1.0));
    Ok(())
}

fn tasks<'a, L: Exclusive>(
    kind: Kind,
    lock: L,
    runtime: Runtime,
    time: Duration,
) -> Contestant<'a> {
    Contestant::new(format!("{kind}, tasks"), move || {
        let locks = vec![lock.clone(); TASKS as usize];
        Ok(runtime.block_on(contend_for(locks, time))?.0)
    })
}

/// Whose turn it was last, and how often it passed on.
#[derive(Debug, Default)]
struct Ledger(Mutex<(Option<u32>, u32)>);

impl Ledger {
    fn note(&self, me: u32) {
        let mut ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.0 != Some(me) {
            *ledger = (Some(me), ledger.1 + 1);
        }
    }

    fn handoff(&self, took: Duration) -> Duration {
        let ledger = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        took / ledger.1.max(1)
    }
}

fn threads_take_turns(kind: Kind, directory: &Path, time: Duration) -> Result<Duration, Failure> {
    let takers = Taker::many(kind, directory, TASKS)?;
    let ledger = Ledger::default();
    let started = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = takers
            .into_iter()
            .zip(0..)
            .map(|(taker, me)| {
                let ledger = &ledger;
                scope.spawn(move || -> Result<(), Failure> {
                    while started.elapsed() < time {
                        taker.take(|| {
                            ledger.note(me);
                            Ok(())
                        })?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a thread panicked".into()))
        })
    })?;
    Ok(ledger.handoff(started.elapsed()))
}
