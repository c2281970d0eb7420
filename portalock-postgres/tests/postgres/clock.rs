//! The server's clock jumps. All times are in the tables, so changing them there has the same effect as changing the
//! clock.

use std::time::Duration;

use portalock_core::{Lock, clock::Instant};
use portalock_postgres::{Fence, PostgresBackend};

use crate::support::{Server, connect, patient, until};

const LEASE: Duration = Duration::from_secs(3);

/// Sets the clock back by this number of hours, or forward if the number is negative.
async fn set_back(server: &Server, hours: i64) {
    server
        .run(&format!(
            "BEGIN;
             UPDATE portalock.sessions SET expires = expires + interval '{hours} hours';
             UPDATE portalock.queue SET since = since + interval '{hours} hours';
             UPDATE portalock.names SET since = since + interval '{hours} hours' WHERE owner IS NOT NULL;
             UPDATE portalock.names SET token = token + {hours} * 3600000000 WHERE owner IS NULL;
             COMMIT"
        ))
        .await;
}

/// Living sessions notice nothing. The locks of a session that died before pass on one lease after another session has
/// checked.
#[tokio::test]
async fn a_clock_that_is_set_back_keeps_no_lock_from_passing_on() {
    let server = Server::start().await;
    let lives = server.settings_with_lease(LEASE);
    let lives = PostgresBackend::with_settings(lives).await.unwrap();
    let (line, settings) = server.line();
    let dies = PostgresBackend::with_settings(settings.with_lease_time(LEASE).unwrap());
    let doomed = Lock::new(dies.await.unwrap(), "a").unwrap();
    let doomed = doomed.acquire_with(&patient()).await.unwrap();
    let waiter = Lock::new(lives.clone(), "a").unwrap();
    let waiting = tokio::spawn({
        let waiter = waiter.clone();
        async move { waiter.acquire_with(&patient()).await.unwrap() }
    });
    until("the other waits", async || {
        waiter.inspect().await.unwrap().waiters.len() == 1
    })
    .await;
    let kept = Lock::new(lives, "kept").unwrap();
    let kept = kept.acquire_with(&patient()).await.unwrap();

    set_back(&server, 1).await;
    let last = waiter.inspect().await.unwrap().last_token;
    line.refuse(true);
    line.cut();
    let start = Instant::now();
    let guard = waiting.await.unwrap();
    // The holder was told within one lease time after its line was cut.
    assert!(doomed.is_lost());
    assert!(start.elapsed() < 4 * LEASE, "{:?}", start.elapsed());
    assert!(guard.token() > last, "{:?} after {last:?}", guard.token());
    guard.release().await.unwrap();
    kept.ensure_held().unwrap();
    kept.release().await.unwrap();
}

/// Every lease ends early. Holders are told with their next renewal, and a fence refuses them as soon as another owner
/// has the lock.
#[tokio::test]
async fn a_clock_that_jumps_ahead_is_told() {
    let server = Server::start().await;
    let holder = server.settings_with_lease(Duration::from_secs(30));
    let holder = PostgresBackend::with_settings(holder).await.unwrap();
    let guard = Lock::new(holder.clone(), "a").unwrap();
    let guard = guard.acquire_with(&patient()).await.unwrap();
    let fence = holder.fence(guard.owner()).unwrap();
    set_back(&server, -1).await;
    let other = Lock::new(server.client().await, "a").unwrap();
    let next = other.acquire_with(&patient()).await.unwrap();
    let writer = connect(&server.url).await;
    let late = writer
        .query(Fence::STATEMENT, &[&fence.owner, &fence.token])
        .await;
    assert!(Fence::refused(&late.unwrap_err()));
    guard.lost().await;
    next.ensure_held().unwrap();
    next.release().await.unwrap();
}
