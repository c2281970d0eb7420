//! Redis: what a lock costs beyond the commands that it needs.

mod bare;
mod contended;
mod kept;
mod lone;
mod passing;

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, table, times},
};
use portalock_core::Lock;
use portalock_redis::RedisBackend;
use portalock_testkit::servers::RedisServer;
use redis::aio::MultiplexedConnection;
use rslock::LockManager;
use tokio::task::JoinSet;

use crate::{
    Effort,
    flavours::{Flavour, flavours},
    growth,
    locks::{pair, rates},
};
use bare::{Bare, noop};

pub(crate) use kept::{CHILD, child};

/// How many tasks of one process, each with its own name.
const TASKS: u32 = 64;

/// One client.
pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    let server = RedisServer::start()?;
    let url = server.url();
    pairs(&url, effort)?;
    lone::run(&url, effort)?;
    distinct_names(&url, effort)
}

/// Several clients that want the same lock.
pub(crate) fn contended(effort: Effort) -> Result<(), Failure> {
    let server = RedisServer::start()?;
    contended::run(&server.url(), effort)?;
    passing::run(&server.url(), effort)
}

/// What is held.
pub(crate) fn kept(effort: Effort) -> Result<(), Failure> {
    let server = RedisServer::start()?;
    kept::run(&server.url(), effort)
}

/// Over three decades.
pub(crate) fn growth(effort: Effort) -> Result<(), Failure> {
    let server = RedisServer::start()?;
    let url = server.url();
    growth::run("Redis", effort, 300, async || {
        RedisBackend::connect(&url).await
    })
}

fn pairs(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: acquire and release, nobody else wants it");
    let times_each = effort.of(2_000);
    for flavour in flavours()? {
        let (bare, lock) = flavour.runtime.block_on(async {
            let backend = RedisBackend::connect(url).await?;
            Ok::<_, Failure>((bare::connection(url).await?, Lock::new(backend, "nightly")?))
        })?;
        let peer = LockManager::new(vec![url]);
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::new(
                    format!("floor: two no-op `EVALSHA`, {}", flavour.name),
                    || flavour.run(noop_pairs(bare.clone(), times_each)),
                ),
                Contestant::new(format!("portalock, {}", flavour.name), || {
                    flavour.run(pair(lock.clone(), times_each))
                }),
                Contestant::new(format!("rslock, {}", flavour.name), || {
                    flavour.run(peer_pairs(peer.clone(), times_each))
                }),
            ],
        )?;
        times(&outcomes, Target::AtMost(1.2));
    }
    Ok(())
}

async fn noop_pairs(mut bare: MultiplexedConnection, times: u32) -> Result<Duration, Failure> {
    let hash = noop(&mut bare).await?;
    let started = Instant::now();
    for _ in 0..times {
        bare::evalsha(&mut bare, &hash).await?;
        bare::evalsha(&mut bare, &hash).await?;
    }
    Ok(started.elapsed() / times)
}

async fn peer_pairs(peer: LockManager, times: u32) -> Result<Duration, Failure> {
    let started = Instant::now();
    for _ in 0..times {
        let lock = peer.lock("rslock", Duration::from_secs(10)).await?;
        peer.unlock(&lock).await;
    }
    Ok(started.elapsed() / times)
}

fn distinct_names(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: 64 tasks of one process, each with its own lock, on one connection");
    let times_each = effort.of(200);
    for flavour in flavours()? {
        let (bare, backend) = flavour.runtime.block_on(async {
            let backend = RedisBackend::connect(url).await?;
            Ok::<_, Failure>((Bare::open(url).await?, backend))
        })?;
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::new("floor", || {
                    together(&flavour, |task| bare.pairs(task, times_each))
                }),
                Contestant::new("portalock", || {
                    together(&flavour, |task| {
                        let lock = Lock::new(backend.clone(), format!("task-{task}"));
                        async move { pair(lock?, times_each).await }
                    })
                }),
            ],
        )?;
        rates(
            &[
                format!("floor: the same `EVALSHA`s, {}", flavour.name),
                format!("portalock, {}", flavour.name),
            ],
            &outcomes,
            Target::AtLeast(0.8),
        );
    }
    Ok(())
}

/// So many tasks at once: the time of one pair among all.
fn together<F>(flavour: &Flavour, mut work: impl FnMut(u32) -> F) -> Result<Duration, Failure>
where
    F: Future<Output = Result<Duration, Failure>> + Send + 'static,
{
    let works: Vec<F> = (0..TASKS).map(&mut work).collect();
    flavour.run(async move {
        let mut tasks: JoinSet<Result<Duration, Failure>> = works.into_iter().collect();
        let mut sum = Duration::ZERO;
        while let Some(took) = tasks.join_next().await {
            sum += took??;
        }
        // All of them ran side by side.
        Ok(sum / TASKS / TASKS)
    })
}
