//! What held locks and waiters cost while nothing happens to them.

use std::time::{Duration, Instant};

use portalock_benches::{
    Failure,
    report::{Target, micros, row, table},
};
use portalock_core::{Lock, Policy};
use portalock_postgres::{PostgresBackend, PostgresSettings};
use tokio::task::JoinSet;

use super::{bare::Bare, server};
use crate::{
    Effort,
    flavours::flavours,
    locks::{free, hold},
};

const HELD: u32 = 10_000;
const WAITERS: u32 = 200;
/// Rare signs of life, so that what waiters cost beside them shows.
const WAITERS_LEASE: Duration = Duration::from_secs(600);

pub(super) fn run(effort: Effort) -> Result<(), Failure> {
    let server = server(false)?;
    waiting(&server.url(), effort)?;
    held(&server.url(), effort)
}

fn waiting(url: &str, effort: Effort) -> Result<(), Failure> {
    table("Postgres: transactions in 10 s beside waiters in one session, to those without them");
    let [_, multi_thread] = flavours()?;
    let url = url.to_owned();
    let seconds = effort.of(10).max(3);
    multi_thread.run(async move {
        let settings = PostgresSettings::from_url(&url)?.with_lease_time(WAITERS_LEASE)?;
        let holder = PostgresBackend::with_settings(settings.clone()).await?;
        let guard = Lock::new(holder, "waited")?.acquire().await?;
        let lock = Lock::new(PostgresBackend::with_settings(settings).await?, "waited")?;
        let bare = Bare::connect(&url).await?;
        let without = quiet(&bare, seconds).await?;
        let mut waiters = JoinSet::new();
        for _ in 0..WAITERS {
            let lock = lock.clone().with_policy(Policy::forever());
            waiters.spawn(async move { lock.acquire().await });
        }
        while lock.inspect().await?.waiters.len() < WAITERS as usize {
            tokio::task::yield_now().await;
        }
        let with = quiet(&bare, seconds).await?;
        for (what, count, target) in [
            ("none waits".to_owned(), without, Target::None),
            (
                format!("portalock: {WAITERS} wait"),
                with,
                Target::AtMost(1.2),
            ),
        ] {
            row(&what, format!("{count:.0}"), count / without, target);
        }
        waiters.abort_all();
        guard.release().await?;
        Ok(())
    })
}

/// How many transactions there are while nobody does anything; those of the counting are among them.
async fn quiet(bare: &Bare, seconds: u32) -> Result<f64, Failure> {
    // A server process that is idle tells its numbers within 10 s.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let before = bare.transactions().await?;
    tokio::time::sleep(Duration::from_secs(seconds.into())).await;
    Ok(bare.transactions().await? - before)
}

fn held(url: &str, effort: Effort) -> Result<(), Failure> {
    let count = effort.of(HELD);
    table("Postgres: many held locks in one session, each to one of the first tenth");
    let [_, multi_thread] = flavours()?;
    let url = url.to_owned();
    multi_thread.run(async move {
        let backend = PostgresBackend::connect(&url).await?;
        let tenth = (count / 10).max(1);
        let started = Instant::now();
        let mut held = hold(&backend, tenth, |number| format!("first {number}"), false).await?;
        let first = started.elapsed() / tenth;
        let rest = count - tenth;
        let started = Instant::now();
        held.extend(hold(&backend, rest, |number| format!("then {number}"), false).await?);
        let each = started.elapsed() / rest.max(1);
        // Several renewals and looks.
        let kept_for = backend.settings().lease_time() * 3 / 2;
        tokio::time::sleep(kept_for).await;
        let lost = held.iter().filter(|guard| guard.is_lost()).count();
        if lost > 0 {
            return Err(format!("{lost} of {count} locks were lost in {kept_for:?}").into());
        }
        let started = Instant::now();
        free(held).await?;
        let freed = started.elapsed() / count;
        for (what, time, target) in [
            (format!("acquire, the first {tenth}"), first, Target::None),
            (
                format!("portalock: acquire, up to {count}"),
                each,
                Target::AtMost(1.2),
            ),
            ("release".to_owned(), freed, Target::None),
        ] {
            row(
                &what,
                micros(time),
                time.as_secs_f64() / first.as_secs_f64(),
                target,
            );
        }
        Ok(())
    })
}
