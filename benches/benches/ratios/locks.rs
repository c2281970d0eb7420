//! What is done to a lock to measure it, whatever its backend.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use portalock_benches::{Failure, contest::median};
use portalock_core::{Guard, Lock, LockBackend};
use tokio::task::{JoinSet, yield_now};

/// A lock that a client takes and gives back: ours, a peer's, or a floor.
pub(crate) trait Exclusive: Clone + Send + Sync + 'static {
    /// What its holder has.
    type Held: Send + 'static;

    /// Waits until it has the lock.
    fn take(&self) -> impl Future<Output = Result<Self::Held, Failure>> + Send;

    /// Frees the lock.
    fn give(held: Self::Held) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// One that can say when somebody waits for it.
pub(crate) trait Observed: Exclusive {
    /// Returns when somebody waits for the lock.
    fn waited_for(&self) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl<B: LockBackend> Exclusive for Lock<B> {
    type Held = Guard<B>;

    async fn take(&self) -> Result<Guard<B>, Failure> {
        Ok(self.acquire().await?)
    }

    async fn give(held: Guard<B>) -> Result<(), Failure> {
        Ok(held.release().await?)
    }
}

impl<B: LockBackend> Observed for Lock<B> {
    async fn waited_for(&self) -> Result<(), Failure> {
        while self.inspect().await?.waiters.is_empty() {
            yield_now().await;
        }
        Ok(())
    }
}

/// Takes and gives back, `times` times: how long one pair took.
pub(crate) async fn pair<L: Exclusive>(lock: L, times: u32) -> Result<Duration, Failure> {
    let started = Instant::now();
    for _ in 0..times {
        L::give(lock.take().await?).await?;
    }
    Ok(started.elapsed() / times)
}

/// Takes and gives back until the lock has changed hands so often: the time of one handoff, and the most turns of one
/// client to the fewest of another.
pub(crate) async fn contend<L: Exclusive>(
    locks: Vec<L>,
    handoffs: u32,
) -> Result<(Duration, f64), Failure> {
    take_turns(locks, Until::Handoffs(handoffs)).await
}

/// The same, for so long: nobody knows beforehand how often a lock without a queue changes hands.
pub(crate) async fn contend_for<L: Exclusive>(
    locks: Vec<L>,
    time: Duration,
) -> Result<(Duration, f64), Failure> {
    take_turns(locks, Until::Time(time)).await
}

#[derive(Clone, Copy)]
enum Until {
    Handoffs(u32),
    Time(Duration),
}

/// Whose turn it was last, and how often it was another's before.
struct Turns {
    until: Until,
    started: Instant,
    last: AtomicU32,
    handoffs: AtomicU32,
}

impl Turns {
    fn go_on(&self) -> bool {
        match self.until {
            Until::Handoffs(handoffs) => self.handoffs.load(Ordering::Relaxed) < handoffs,
            Until::Time(time) => self.started.elapsed() < time,
        }
    }

    fn note(&self, me: u32) {
        if self.last.swap(me, Ordering::Relaxed) != me && self.go_on() {
            self.handoffs.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn handoff(&self) -> Duration {
        let took = match self.until {
            Until::Handoffs(_) => self.started.elapsed(),
            Until::Time(time) => time,
        };
        took / self.handoffs.load(Ordering::Relaxed).max(1)
    }
}

async fn take_turns<L: Exclusive>(locks: Vec<L>, until: Until) -> Result<(Duration, f64), Failure> {
    let turns = Arc::new(Turns {
        until,
        started: Instant::now(),
        last: AtomicU32::new(0),
        handoffs: AtomicU32::new(0),
    });
    let mut tasks = JoinSet::new();
    for (lock, me) in locks.into_iter().zip(1..) {
        let turns = turns.clone();
        tasks.spawn(async move {
            let mut had = 0;
            while turns.go_on() {
                let held = lock.take().await?;
                turns.note(me);
                // A task that awaits nothing keeps its thread, and no other one gets to ask.
                yield_now().await;
                L::give(held).await?;
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
    Ok((turns.handoff(), f64::from(most) / f64::from(fewest.max(1))))
}

/// The median time from before a release until another, who waits, has the lock.
pub(crate) async fn passed<L: Observed>(locks: [L; 2], times: u32) -> Result<Duration, Failure> {
    let [mut here, mut there] = locks;
    let mut held = here.take().await?;
    let mut took = Vec::new();
    for _ in 0..times {
        let waiter = tokio::spawn({
            let there = there.clone();
            async move { Ok::<_, Failure>((there.take().await?, Instant::now())) }
        });
        here.waited_for().await?;
        let released = Instant::now();
        L::give(held).await?;
        let (taken, at) = waiter.await??;
        took.push(at.duration_since(released).as_secs_f64());
        held = taken;
        std::mem::swap(&mut here, &mut there);
    }
    L::give(held).await?;
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
