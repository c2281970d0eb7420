//! The memory backend: what the engine itself costs, and how that grows.

use std::{
    collections::HashMap,
    hint::black_box,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    plot::{self, Series},
    report::{Target, per_second, row, table},
};
use portalock_core::{Guard, Lock, MemoryBackend, Mode, Policy};

use crate::{
    Effort, PLOTS,
    flavours::{Flavour, flavours},
};

const PAIRS_WANTED: f64 = 1e6;
const SIZES: [u32; 5] = [10, 100, 1_000, 10_000, 100_000];

pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    pairs(effort)?;
    growth(effort)
}

fn pairs(effort: Effort) -> Result<(), Failure> {
    table("Memory: acquire and drop, nobody else wants it (the ratio is to 1,000,000/s)");
    let pairs = effort.of(100_000);
    let held = Mutex::new(HashMap::new());
    let flavours = flavours()?;
    let mut contestants = vec![Contestant::repeating(
        "a locked map: insert and remove",
        pairs,
        || {
            let mut map = held.lock().map_err(|_| "poisoned")?;
            map.insert(black_box(String::from("nightly")), 1);
            map.remove("nightly");
            Ok(())
        },
    )];
    for Flavour {
        name: kind,
        runtime,
    } in &flavours
    {
        let lock = Lock::new(MemoryBackend::new(), "nightly")?;
        contestants.push(Contestant::new(format!("portalock, {kind}"), move || {
            runtime.block_on(async {
                let started = Instant::now();
                for _ in 0..pairs {
                    drop(lock.acquire().await?);
                }
                Ok(started.elapsed() / pairs)
            })
        }));
    }
    let lock = portalock_core::blocking::Lock::new(MemoryBackend::new(), "nightly")?;
    contestants.push(Contestant::repeating(
        "portalock, blocking",
        pairs,
        move || {
            drop(lock.acquire()?);
            Ok(())
        },
    ));
    for outcome in contest(effort.rounds(), contestants)? {
        let target = if outcome.name.starts_with("portalock") {
            Target::AtLeast(1.0)
        } else {
            Target::None
        };
        let rate = 1.0 / outcome.time.as_secs_f64() / PAIRS_WANTED;
        row(&outcome.name, per_second(outcome.time), rate, target);
    }
    Ok(())
}

/// What else the store has to keep while a pair is measured.
#[derive(Debug, Clone, Copy)]
enum Crowd {
    /// So many other names are held.
    Names,
    /// So many share the lock that is measured.
    Holders,
    /// So many wait for one lock, which goes from each to the next.
    Waiters,
}

fn growth(effort: Effort) -> Result<(), Failure> {
    table("Memory: the cost of a pair beside so many others, to that beside the fewest");
    let [Flavour { runtime, .. }, _] = flavours()?;
    let most = if effort == Effort::Full { 5 } else { 2 };
    let mut series: Vec<Series> = Vec::new();
    for (crowd, name) in [
        (Crowd::Names, "names held"),
        (Crowd::Holders, "holders that share it"),
        (Crowd::Waiters, "waiters in line"),
    ] {
        let mut points = Vec::new();
        for size in &SIZES[..most] {
            let time = runtime.block_on(beside(crowd, *size, effort))?;
            points.push((f64::from(*size), time.as_secs_f64() * 1e6));
            let first = points.first().map_or(1.0, |(_, first)| *first);
            let ratio = time.as_secs_f64() * 1e6 / first;
            row(
                &format!("{size} {name}"),
                per_second(time),
                ratio,
                Target::None,
            );
        }
        series.push((name.into(), points));
    }
    if effort == Effort::Full {
        plot::write(
            &Path::new(PLOTS).join("memory.svg"),
            "Memory: cost of a pair beside so many others",
            "others",
            "µs",
            &series,
        )?;
    }
    Ok(())
}

async fn beside(crowd: Crowd, size: u32, effort: Effort) -> Result<Duration, Failure> {
    let backend = MemoryBackend::new();
    let times = effort.of(50_000);
    let mut held: Vec<Guard<MemoryBackend>> = Vec::new();
    let (measured, mode) = match crowd {
        Crowd::Names => {
            for number in 0..size {
                let lock = Lock::new(backend.clone(), format!("name {number}"))?;
                held.push(lock.acquire().await?);
            }
            (Lock::new(backend, "nightly")?, Mode::Exclusive)
        }
        Crowd::Holders => {
            let lock = Lock::new(backend, "nightly")?;
            for _ in 0..size {
                held.push(lock.acquire_shared().await?);
            }
            (lock, Mode::Shared)
        }
        Crowd::Waiters => return line(backend, size).await,
    };
    let started = Instant::now();
    for _ in 0..times {
        drop(match mode {
            Mode::Exclusive => measured.acquire().await?,
            Mode::Shared => measured.acquire_shared().await?,
        });
    }
    Ok(started.elapsed() / times)
}

/// The time from grant to grant down a line of waiters.
async fn line(backend: MemoryBackend, size: u32) -> Result<Duration, Failure> {
    let lock = Lock::new(backend, "nightly")?.with_policy(Policy::forever());
    let first = lock.acquire().await?;
    let mut waits = Vec::new();
    for _ in 0..size {
        let lock = lock.clone();
        waits.push(tokio::spawn(async move { lock.acquire().await.map(drop) }));
    }
    // All are in line once the store says so.
    while (lock.inspect().await?.waiters.len() as u64) < u64::from(size) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let started = Instant::now();
    drop(first);
    for wait in waits {
        wait.await??;
    }
    Ok(started.elapsed() / size)
}
