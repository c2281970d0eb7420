//! Many clients on one lock, each with a connection of its own: how often it changes hands.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    report::{Target, row, table},
};
use portalock_core::{Lock, Policy};
use portalock_redis::RedisBackend;
use redis::{Value, aio::MultiplexedConnection};
use rslock::LockManager;
use tokio::task::JoinSet;

use super::bare;
use crate::{
    Effort,
    flavours::flavours,
    locks::{contend, rates},
};

const CLIENTS: usize = 64;
/// How long a peer's clients contend in one round: they don't take turns, so no number of acquisitions says when to stop.
const WINDOW: Duration = Duration::from_secs(1);
const TOKEN: &str = "bench-token";

pub(super) fn run(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Redis: 64 clients on one lock, a connection each");
    let handoffs = effort.of(64 * 100).max(256);
    for flavour in flavours()? {
        let (bare, locks) = flavour.runtime.block_on(async {
            let mut bare = Vec::new();
            let mut locks = Vec::new();
            for _ in 0..CLIENTS {
                bare.push(bare::connection(url).await?);
                locks.push(lock(RedisBackend::connect(url).await?)?);
            }
            Ok::<_, Failure>((bare, locks))
        })?;
        let lone = locks[0].backend().clone();
        let lone: Vec<_> = (0..CLIENTS)
            .map(|_| lock(lone.clone()))
            .collect::<Result<_, _>>()?;
        let peers: Vec<_> = (0..CLIENTS).map(|_| LockManager::new(vec![url])).collect();
        let mut spread = Vec::new();
        let outcomes = contest(
            effort.rounds().min(7),
            vec![
                Contestant::new("token", || flavour.run(pass_token(bare.clone(), handoffs))),
                Contestant::new("portalock", || {
                    let (time, most_to_fewest) = flavour.run(contend(locks.clone(), handoffs))?;
                    spread.push(most_to_fewest);
                    Ok(time)
                }),
                Contestant::new("one connection", || {
                    Ok(flavour.run(contend(lone.clone(), handoffs))?.0)
                }),
                Contestant::new("rslock", || flavour.run(rslock(peers.clone()))),
            ],
        )?;
        rates(
            &[
                format!("floor: a token by `BLPOP` and `RPUSH`, {}", flavour.name),
                format!("portalock, {}", flavour.name),
                format!("the same 64 in one session, {}", flavour.name),
                format!("rslock, {}", flavour.name),
            ],
            &outcomes,
            Target::AtLeast(0.5),
        );
        let worst = spread.into_iter().fold(1.0, f64::max);
        let what = format!("portalock: most to fewest acquisitions, {}", flavour.name);
        row(&what, format!("{worst:.3}"), worst, Target::AtMost(1.1));
    }
    Ok(())
}

fn lock(backend: RedisBackend) -> Result<Lock<RedisBackend>, Failure> {
    Ok(Lock::new(backend, "contended")?.with_policy(Policy::forever()))
}

async fn pass_token(bare: Vec<MultiplexedConnection>, handoffs: u32) -> Result<Duration, Failure> {
    let Some(mut first) = bare.first().cloned() else {
        return Err("no connection".into());
    };
    let _: Value = redis::cmd("DEL").arg(TOKEN).query_async(&mut first).await?;
    // Before anybody waits: a connection that waits takes no other command.
    push(&mut first).await?;
    let left = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for mut connection in bare {
        let done = left.clone();
        tasks.spawn(async move {
            while done.fetch_add(1, Ordering::Relaxed) < handoffs {
                let _: Value = redis::cmd("BLPOP")
                    .arg(TOKEN)
                    .arg(0)
                    .query_async(&mut connection)
                    .await?;
                push(&mut connection).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    let started = Instant::now();
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(started.elapsed() / handoffs)
}

async fn push(connection: &mut MultiplexedConnection) -> Result<(), Failure> {
    let _: Value = redis::cmd("RPUSH")
        .arg(TOKEN)
        .arg("token")
        .query_async(connection)
        .await?;
    Ok(())
}

/// Counts only what another client gets than had it last.
async fn rslock(peers: Vec<LockManager>) -> Result<Duration, Failure> {
    let (handoffs, last) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let end = Instant::now() + WINDOW;
    let mut tasks = JoinSet::new();
    for (peer, number) in peers.into_iter().zip(1..) {
        let (handoffs, last) = (handoffs.clone(), last.clone());
        tasks.spawn(async move {
            while Instant::now() < end {
                // It gives up after three tries.
                if let Ok(lock) = peer.lock("rslock-contended", WINDOW).await {
                    if last.swap(number, Ordering::Relaxed) != number {
                        handoffs.fetch_add(1, Ordering::Relaxed);
                    }
                    peer.unlock(&lock).await;
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(WINDOW / handoffs.load(Ordering::Relaxed).max(1))
}
