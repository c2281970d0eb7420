//! etcd: what a lock costs beyond the requests that it needs. The server's data lies in memory where the system has a place
//! for that.

mod bare;
mod contended;

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    contest::{Contestant, contest},
    plot,
    report::{Target, micros, row, table, times},
};
use portalock_core::Lock;
use portalock_etcd::EtcdBackend;
use portalock_testkit::servers::EtcdServer;

use crate::{
    Effort,
    flavours::{flavours, multi_thread},
    growth,
    locks::{Exclusive, passed},
};
use bare::{Bare, Lease, LockRpc, Shape};

/// One client, and one that passes a lock to another.
pub(crate) fn run(effort: Effort) -> Result<(), Failure> {
    let server = EtcdServer::start()?;
    let endpoint = endpoint(&server)?;
    shapes(&endpoint, effort)?;
    acquire(&endpoint, effort)?;
    lone(&endpoint, effort)?;
    passing(&endpoint, effort)?;
    history(&endpoint, effort)
}

/// Many clients that want the same lock.
pub(crate) fn contended(effort: Effort) -> Result<(), Failure> {
    contended::run(effort)
}

/// Over three decades.
pub(crate) fn growth(effort: Effort) -> Result<(), Failure> {
    let server = EtcdServer::start()?;
    let endpoint = endpoint(&server)?;
    growth::run("etcd", effort, 30, async || {
        EtcdBackend::connect(&endpoint).await
    })
}

fn endpoint(server: &EtcdServer) -> Result<String, Failure> {
    let first = server.endpoints().into_iter().next();
    Ok(first.ok_or("a server without an endpoint")?)
}

/// How long an acquisition takes; the release is not counted.
async fn acquiring<L: Exclusive>(lock: L, times: u32) -> Result<Duration, Failure> {
    let mut took = Duration::ZERO;
    for _ in 0..times {
        let started = Instant::now();
        let held = lock.take().await?;
        took += started.elapsed();
        L::give(held).await?;
    }
    Ok(took / times)
}

fn acquire(endpoint: &str, effort: Effort) -> Result<(), Failure> {
    table("etcd: acquire, nobody else wants it");
    let times_each = effort.of(100);
    for flavour in flavours()? {
        let (bare, lock, rpc) = flavour.runtime.block_on(async {
            let backend = EtcdBackend::connect(endpoint).await?;
            Ok::<_, Failure>((
                Bare::connect(endpoint).await?,
                Lock::new(backend, "nightly")?,
                LockRpc::connect(endpoint, Lease::Clients).await?,
            ))
        })?;
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::new(
                    format!("floor: one transaction that puts a key, {}", flavour.name),
                    || flavour.run(bare.clone().transactions(times_each)),
                ),
                Contestant::new(format!("portalock, {}", flavour.name), || {
                    flavour.run(acquiring(lock.clone(), times_each))
                }),
                Contestant::new(
                    format!("the server's lock RPC, with a lease, {}", flavour.name),
                    || flavour.run(acquiring(rpc.clone(), times_each)),
                ),
            ],
        )?;
        times(&outcomes, Target::AtMost(1.15));
    }
    Ok(())
}

/// What each part of our transaction costs.
fn shapes(endpoint: &str, effort: Effort) -> Result<(), Failure> {
    table("etcd: what the parts of a transaction cost");
    let times_each = effort.of(100);
    let [_, multi_thread] = flavours()?;
    let bare = multi_thread.runtime.block_on(Bare::connect(endpoint))?;
    let mut contestants = Vec::new();
    for (what, shape) in [
        ("a put, if there is none", Shape::Put),
        ("and a condition on the session", Shape::Session),
        ("and a count of the queue", Shape::Count),
        ("and three reads if a condition fails", Shape::Otherwise),
        ("all, released by its value", Shape::Release),
    ] {
        let (bare, multi_thread) = (bare.clone(), &multi_thread);
        contestants.push(Contestant::new(what, move || {
            multi_thread.run(bare.clone().shaped(shape, times_each))
        }));
    }
    times(&contest(effort.rounds(), contestants)?, Target::None);
    Ok(())
}

/// What polls the task decides what a round trip costs, as with Redis.
fn lone(endpoint: &str, effort: Effort) -> Result<(), Failure> {
    table("etcd: a lone task on a multi-thread runtime, by what polls it");
    let times_each = effort.of(200);
    let runtime = multi_thread(2)?;
    let lock = runtime.block_on(async {
        Ok::<_, Failure>(Lock::new(EtcdBackend::connect(endpoint).await?, "lone")?)
    })?;
    let outcomes = contest(
        effort.rounds(),
        vec![
            Contestant::new("spawned", || {
                runtime.block_on(async { tokio::spawn(acquiring(lock.clone(), times_each)).await? })
            }),
            Contestant::new("`block_on`", || {
                runtime.block_on(acquiring(lock.clone(), times_each))
            }),
        ],
    )?;
    times(&outcomes, Target::None);
    Ok(())
}

/// What earlier acquisitions of the same name cost, until etcd's history is compacted.
fn history(endpoint: &str, effort: Effort) -> Result<(), Failure> {
    table(
        "etcd: acquire, after so many earlier acquisitions of the name since the last compaction",
    );
    let [_, multi_thread] = flavours()?;
    let (bare, lock) = multi_thread.runtime.block_on(async {
        let backend = EtcdBackend::connect(endpoint).await?;
        Ok::<_, Failure>((
            Bare::connect(endpoint).await?,
            Lock::new(backend, "history")?,
        ))
    })?;
    multi_thread.runtime.block_on(bare.compact())?;
    let (mut floor, mut done, mut points) = (None, 1, Vec::new());
    for earlier in [10, 30, 100, 300, 1_000, 3_000, 10_000] {
        let earlier = effort.of(earlier);
        multi_thread.run(acquiring(lock.clone(), earlier.saturating_sub(done).max(1)))?;
        let took = multi_thread.run(acquiring(lock.clone(), effort.of(100)))?;
        done = earlier + effort.of(100);
        let first = *floor.get_or_insert(took);
        let ratio = took.as_secs_f64() / first.as_secs_f64();
        row(&earlier.to_string(), micros(took), ratio, Target::None);
        points.push((f64::from(earlier), took.as_secs_f64() * 1e6));
    }
    if effort == Effort::Full {
        let path = std::path::Path::new(crate::PLOTS);
        std::fs::create_dir_all(path)?;
        let series = [("portalock".to_owned(), points)];
        let title = "etcd: acquire, by earlier acquisitions since the last compaction";
        plot::write(
            &path.join("etcd-history.svg"),
            title,
            "earlier",
            "µs",
            &series,
        )?;
    }
    Ok(())
}

fn passing(endpoint: &str, effort: Effort) -> Result<(), Failure> {
    table("etcd: from a release to the waiter's lock, another connection's");
    let times_each = effort.of(50);
    for flavour in flavours()? {
        let (bare, locks, rpcs) = flavour.runtime.block_on(async {
            let one = Lock::new(EtcdBackend::connect(endpoint).await?, "passed")?;
            let other = Lock::new(EtcdBackend::connect(endpoint).await?, "passed")?;
            let bare = [
                Bare::connect(endpoint).await?,
                Bare::connect(endpoint).await?,
            ];
            let rpcs = [
                LockRpc::connect(endpoint, Lease::Clients).await?,
                LockRpc::connect(endpoint, Lease::Clients).await?,
            ];
            Ok::<_, Failure>((bare, [one, other], rpcs))
        })?;
        let outcomes = contest(
            effort.rounds(),
            vec![
                Contestant::new(
                    format!("floor: a put seen by a watch, {}", flavour.name),
                    || {
                        let [writer, watcher] = bare.clone();
                        flavour.run(writer.seen_by(watcher, times_each))
                    },
                ),
                Contestant::new(format!("portalock, {}", flavour.name), || {
                    flavour.runtime.block_on(bare[0].compact())?;
                    flavour.run(passed(locks.clone(), times_each))
                }),
                Contestant::new(
                    format!("the server's lock RPC, with a lease, {}", flavour.name),
                    || flavour.run(passed(rpcs.clone(), times_each)),
                ),
            ],
        )?;
        times(&outcomes, Target::AtMost(3.0));
    }
    Ok(())
}
