//! Many clients on one lock: how often it changes hands, and what each time costs the server.

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
    report::{Target, per_second, row, table},
};
use portalock_core::{Lock, Policy};
use portalock_etcd::EtcdBackend;
use portalock_testkit::servers::EtcdServer;
use tokio::task::JoinSet;

use super::{
    bare::{Bare, Load},
    endpoint,
};
use crate::{
    Effort,
    flavours::{Flavour, flavours},
    locks::contend,
};

const WANTED: f64 = 700.0;

pub(super) fn run(effort: Effort) -> Result<(), Failure> {
    table("etcd: clients on one lock, a connection each, to 700 handoffs/s");
    for waiters in [8_u32, 64] {
        for flavour in flavours()? {
            handoffs(waiters, &flavour, effort)?;
        }
    }
    table("etcd: load on the server by one handoff, to that of 4 clients");
    let [_, multi_thread] = flavours()?;
    let mut first = None;
    for waiters in [4, 8, 16, 32, 64] {
        let load = load(waiters, &multi_thread, effort)?;
        let four = *first.get_or_insert(load);
        for (what, one, to) in [
            ("requests", load.requests, four.requests),
            ("messages to watchers", load.messages, four.messages),
        ] {
            let measured = format!("{one:.2}");
            row(
                &format!("{waiters} clients: {what}"),
                measured,
                one / to,
                Target::AtMost(1.2),
            );
        }
    }
    Ok(())
}

fn handoffs(waiters: u32, flavour: &Flavour, effort: Effort) -> Result<(), Failure> {
    let ours = EtcdServer::start()?;
    // Of its own: its queue is none of ours.
    let theirs = EtcdServer::start()?;
    let locks = locks(&ours, waiters, flavour)?;
    let bare = flavour.runtime.block_on(async {
        let mut bare = Vec::new();
        for _ in 0..waiters {
            bare.push(Bare::connect(&endpoint(&theirs)?).await?);
        }
        Ok::<_, Failure>(bare)
    })?;
    let compactor = flavour
        .runtime
        .block_on(async { Bare::connect(&endpoint(&ours)?).await })?;
    let mut worst = 1.0_f64;
    let outcomes = contest(
        effort.rounds().min(3),
        vec![
            Contestant::new("portalock", || {
                flavour.runtime.block_on(compactor.compact())?;
                let (time, most_to_fewest) =
                    flavour.run(contend(locks.clone(), effort.of(300).max(waiters)))?;
                worst = worst.max(most_to_fewest);
                Ok(time)
            }),
            Contestant::new("the server's lock RPC", || {
                flavour.run(contend_bare(bare.clone(), effort.of(128).max(waiters)))
            }),
        ],
    )?;
    for outcome in outcomes {
        let target = if outcome.name == "portalock" {
            Target::AtLeast(1.0)
        } else {
            Target::None
        };
        let what = format!("{}: {waiters} clients, {}", outcome.name, flavour.name);
        let rate = 1.0 / outcome.time.as_secs_f64() / WANTED;
        row(&what, per_second(outcome.time), rate, target);
    }
    let what = format!("most to fewest: {waiters} clients, {}", flavour.name);
    row(&what, format!("{worst:.2}"), worst, Target::None);
    Ok(())
}

fn locks(
    server: &EtcdServer,
    count: u32,
    flavour: &Flavour,
) -> Result<Vec<Lock<EtcdBackend>>, Failure> {
    flavour.runtime.block_on(async {
        let mut locks = Vec::new();
        for _ in 0..count {
            let backend = EtcdBackend::connect(&endpoint(server)?).await?;
            locks.push(Lock::new(backend, "contended")?.with_policy(Policy::forever()));
        }
        Ok(locks)
    })
}

async fn contend_bare(bare: Vec<Bare>, handoffs: u32) -> Result<Duration, Failure> {
    let done = Arc::new(AtomicU32::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for client in bare {
        let done = done.clone();
        tasks.spawn(async move {
            while done.fetch_add(1, Ordering::Relaxed) < handoffs {
                client.lock_and_unlock().await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(started.elapsed() / handoffs)
}

fn load(waiters: u32, flavour: &Flavour, effort: Effort) -> Result<Load, Failure> {
    let server = EtcdServer::start()?;
    let locks = locks(&server, waiters, flavour)?;
    let port = server.port(0);
    let handoffs = effort.of(640).max(waiters * 10);
    let before = flavour.runtime.block_on(Load::of(port))?;
    flavour.run(contend(locks, handoffs))?;
    let after = flavour.runtime.block_on(Load::of(port))?;
    Ok(Load {
        requests: (after.requests - before.requests) / f64::from(handoffs),
        messages: (after.messages - before.messages) / f64::from(handoffs),
    })
}
