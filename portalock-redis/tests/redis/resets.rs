//! Repeated faults, while processes lock, share and stop waiting: no lock is lost, holds don't overlap, and places are
//! kept.
//!
//! Each test runs for a few seconds, with sessions that last longer than the load of the machine. [`the_bars_hold`] runs
//! for a minute for each kind of fault, with the default `session_ttl`, and prints a verdict.

mod worker;

use std::time::Duration;

use portalock_core::{LockBackend, Policy, clock::Instant};
use portalock_redis::{RedisBackend, RedisSettings};
use portalock_testkit::servers::{RedisOptions, RedisServer};
use tokio::{task::JoinSet, time::timeout};

use self::worker::{Counts, Worker};
use crate::fixture::{Admin, ENOUGH, eventually, lock, settings_at, waiters};

const PROCESSES: usize = 6;
/// The number of waiters in the queue whose order is checked.
const LINE: usize = 4;

/// How long, and with what sessions.
#[derive(Debug, Clone, Copy)]
struct Run {
    time: Duration,
    session: Duration,
}

const SHORT: Run = Run {
    time: Duration::from_secs(4),
    session: Duration::from_secs(10),
};

/// A client that connects at first use, so that calls handle a fault at that moment.
fn client(url: &str, session: Duration) -> RedisBackend {
    RedisBackend::new(settings_at(url).with_session_ttl(session).unwrap())
}

/// The waiters in the queue, in their order: the acquisition, and since when it has this place.
async fn places(backend: &RedisBackend) -> Vec<String> {
    let seen = LockBackend::inspect(backend, &"line".parse().unwrap()).await;
    let waiters = seen.unwrap().waiters.into_iter();
    waiters
        .map(|claim| format!("{:?} since {:?}", claim.owner, claim.holder.since))
        .collect()
}

/// Runs `fault` again and again, at intervals of about `every`, next to working processes, a holder and a queue behind it.
async fn count(
    run: Run,
    mut server: RedisServer,
    every: Duration,
    mut fault: impl AsyncFnMut(&mut RedisServer),
) -> Counts {
    let dir = tempfile::tempdir().unwrap();
    let client = || client(&server.url(), run.session);
    let (holder, others) = (client(), client());
    let held = lock(&holder, "line").acquire().await.unwrap();
    let mut line = JoinSet::new();
    for place in 0..LINE {
        let backend = if place % 2 == 0 { &others } else { &holder };
        let lock = lock(backend, "line").with_policy(Policy::forever());
        line.spawn(async move { lock.acquire().await });
        eventually(async || waiters(&holder, "line").await == place + 1).await;
    }
    let before = places(&others).await;
    let workers: Vec<_> = (0..PROCESSES)
        .map(|_| Worker::start(&server.url(), dir.path(), run))
        .collect();
    let begun = Instant::now();
    let mut faults = 0;
    while begun.elapsed() < run.time {
        tokio::time::sleep(every.mul_f64(0.5 + fastrand::f64())).await;
        fault(&mut server).await;
        faults += 1;
    }
    let ended = move || workers.into_iter().map(Worker::counts).sum();
    let mut counts: Counts = tokio::task::spawn_blocking(ended).await.unwrap();
    counts.faults = faults;
    counts.lost += u32::from(held.is_lost());
    let after = places(&others).await;
    let kept = |(before, after): &(&String, &String)| before == after;
    let kept = before.iter().zip(&after).filter(kept).count();
    counts.places_lost += u32::try_from(LINE - kept).unwrap();

    let mut last = held.token();
    let _ = held.release().await;
    while let Some(waiter) = timeout(ENOUGH, line.join_next()).await.unwrap() {
        let guard = waiter.unwrap().unwrap();
        counts.fell += u32::from(guard.token() <= last);
        last = guard.token();
        counts.lost += u32::from(guard.release().await.is_err());
    }
    counts
}

async fn killed_sessions(run: Run) -> Counts {
    let server = RedisServer::start().unwrap();
    let mut admin = Admin::of(&server).await;
    count(run, server, Duration::from_millis(500), async |_| {
        admin.ask::<u32>("CLIENT KILL TYPE pubsub").await;
    })
    .await
}

async fn killed_calls(run: Run) -> Counts {
    let server = RedisServer::start().unwrap();
    let mut admin = Admin::of(&server).await;
    count(run, server, Duration::from_millis(500), async |_| {
        admin.ask::<u32>("CLIENT KILL TYPE normal SKIPME yes").await;
    })
    .await
}

async fn stalls(run: Run, stall: Duration) -> Counts {
    let server = RedisServer::start().unwrap();
    count(run, server, Duration::from_secs(2), async |server| {
        server.stall().unwrap();
        tokio::time::sleep(stall).await;
        server.resume().unwrap();
    })
    .await
}

async fn restarts(run: Run) -> Counts {
    let server = RedisOptions::new().persistent(true).start().unwrap();
    count(run, server, Duration::from_secs(2), async |server| {
        server.restart().unwrap();
    })
    .await
}

fn assert_nothing_lost(counts: &Counts) {
    println!("{counts}");
    assert!(counts.nothing_lost(), "{counts}");
}

#[tokio::test]
async fn sessions_that_are_killed_twice_a_second_lose_nothing() {
    assert_nothing_lost(&killed_sessions(SHORT).await);
}

#[tokio::test]
async fn connections_of_calls_that_are_killed_lose_nothing() {
    assert_nothing_lost(&killed_calls(SHORT).await);
}

#[tokio::test]
async fn a_server_that_stands_still_again_and_again_loses_nothing() {
    assert_nothing_lost(&stalls(SHORT, SHORT.session / 5).await);
}

#[tokio::test]
async fn a_server_that_restarts_with_its_data_loses_nothing() {
    assert_nothing_lost(&restarts(SHORT).await);
}

/// Needs a machine that does nothing else: sessions last as long as by default.
#[tokio::test]
#[ignore = "four minutes on a quiet machine: see docs/testing.md"]
async fn the_bars_hold() {
    let seconds = std::env::var("PORTALOCK_RESETS_SECONDS");
    let run = Run {
        time: Duration::from_secs(seconds.map_or(60, |seconds| seconds.parse().unwrap())),
        session: RedisSettings::DEFAULT_SESSION_TTL,
    };
    let mut all_hold = true;
    let mut report = |what: &str, counts: Counts| {
        println!("{what}: {counts}");
        all_hold &= counts.nothing_lost();
    };
    report("sessions are killed", killed_sessions(run).await);
    report("connections of calls are killed", killed_calls(run).await);
    report("the server stalls", stalls(run, run.session / 2).await);
    report("the server restarts with its data", restarts(run).await);
    println!(
        "verdict: {}",
        if all_hold {
            "the bars hold"
        } else {
            "the bars do NOT hold"
        }
    );
    assert!(all_hold);
}
