//! Redis: what a lock costs beyond the commands that it needs.

mod bare;
mod contended;
mod kept;
mod lone;
mod passing;
mod taker;

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, rates, table, times},
};
use portalock_redis::RedisBackend;
use portalock_testkit::servers::RedisServer;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use crate::{
    Effort,
    flavours::{Flavour, flavours},
    growth,
    locks::pair,
};
use bare::noop;
use taker::Kind;

pub(crate) use kept::{CHILD, child};

/// Who is compared where nobody waits.
const ALONE: [Kind; 6] = [
    Kind::Set,
    Kind::Portalock,
    Kind::Rslock,
    Kind::Distkit,
    Kind::TryDistkit,
    Kind::DistributedLock,
];
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
    let times_each = effort.of(1_000);
    for flavour in &flavours()? {
        let mut contestants = Vec::new();
        for kind in ALONE {
            let taker = flavour.runtime.block_on(kind.lock(url, "nightly"))?;
            contestants.push(Contestant::new(
                format!("{kind}, {}", flavour.name),
                move || flavour.run(pair(taker.clone(), times_each)),
            ));
        }
        let bare = flavour.runtime.block_on(bare::connection(url))?;
        contestants.push(Contestant::new(
            format!("floor: two no-op `EVALSHA`, {}", flavour.name),
            move || flavour.run(noop_pairs(bare.clone(), times_each)),
        ));
        times(
            &contest(effort.rounds(), contestants)?,
            Target::AtMost(1.15),
        );
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

fn distinct_names(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: 64 tasks of one process, each with its own lock, on one connection");
    let times_each = effort.of(200);
    for flavour in &flavours()? {
        let mut contestants = Vec::new();
        for kind in ALONE {
            let client = flavour.runtime.block_on(kind.connect(url))?;
            contestants.push(Contestant::new(
                format!("{kind}, {}", flavour.name),
                move || {
                    together(flavour, |task| {
                        let lock = client.lock(&format!("task-{task}"));
                        async move { pair(lock?, times_each).await }
                    })
                },
            ));
        }
        rates(
            &contest(effort.rounds(), contestants)?,
            Target::AtLeast(0.75),
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
