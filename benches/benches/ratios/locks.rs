//! What is done to a lock to measure it, whatever its backend.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use portalock_benches::{
    Failure,
    contest::{Outcome, median},
    report::{Target, per_second, row},
};
use portalock_core::{Guard, Lock, LockBackend};
use tokio::task::JoinSet;

/// Acquires and releases, `times` times: how long one pair took.
pub(crate) async fn pair<B: LockBackend>(lock: Lock<B>, times: u32) -> Result<Duration, Failure> {
    let started = Instant::now();
    for _ in 0..times {
        lock.acquire().await?.release().await?;
    }
    Ok(started.elapsed() / times)
}

/// Acquires and releases until so many have been had among all: the time of one, and the most acquisitions of one client
/// to the fewest of another.
pub(crate) async fn contend<B: LockBackend>(
    locks: Vec<Lock<B>>,
    handoffs: u32,
) -> Result<(Duration, f64), Failure> {
    let done = Arc::new(AtomicU32::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for lock in locks {
        let done = done.clone();
        tasks.spawn(async move {
            let mut had = 0;
            while done.fetch_add(1, Ordering::Relaxed) < handoffs {
                lock.acquire().await?.release().await?;
                had += 1;
            }
            Ok::<u32, Failure>(had)
        });
    }
    let (mut most, mut fewest) = (0, u32::MAX);
    while let Some(had) = tasks.join_next().await {
        let had = had??;
        most = most.max(had);
        fewest = fewest.min(had);
    }
    let time = started.elapsed() / handoffs;
    Ok((time, f64::from(most) / f64::from(fewest.max(1))))
}

/// The median time from before a release until another, who waits, has the lock.
pub(crate) async fn passed<B: LockBackend>(
    locks: [Lock<B>; 2],
    times: u32,
) -> Result<Duration, Failure> {
    let [mut here, mut there] = locks;
    let mut guard = here.acquire().await?;
    let mut took = Vec::new();
    for _ in 0..times {
        let waiter = tokio::spawn({
            let there = there.clone();
            async move {
                let guard = there.acquire().await?;
                Ok::<_, Failure>((guard, Instant::now()))
            }
        });
        while here.inspect().await?.waiters.is_empty() {
            tokio::task::yield_now().await;
        }
        let released = Instant::now();
        guard.release().await?;
        let (granted, at) = waiter.await??;
        took.push(at.duration_since(released).as_secs_f64());
        guard = granted;
        std::mem::swap(&mut here, &mut there);
    }
    Ok(Duration::from_secs_f64(median(took)))
}

/// Holds so many, one after the other.
pub(crate) async fn hold<B: LockBackend + Clone>(
    backend: &B,
    count: u32,
    name: impl Fn(u32) -> String,
    shared: bool,
) -> Result<Vec<Guard<B>>, Failure> {
    let mut held = Vec::new();
    for number in 0..count {
        let lock = Lock::new(backend.clone(), name(number))?;
        held.push(if shared {
            lock.acquire_shared().await?
        } else {
            lock.acquire().await?
        });
    }
    Ok(held)
}

/// Releases them all.
pub(crate) async fn free<B: LockBackend>(held: Vec<Guard<B>>) -> Result<(), Failure> {
    for guard in held {
        guard.release().await?;
    }
    Ok(())
}

/// The rows of a contest as so many in a second.
pub(crate) fn rates(names: &[String], outcomes: &[Outcome], target: Target) {
    for (name, outcome) in names.iter().zip(outcomes) {
        let target = if name.starts_with("portalock") {
            target
        } else {
            Target::None
        };
        let rate = per_second(outcome.time);
        row(name, rate, 1.0 / outcome.ratio, target);
    }
}
