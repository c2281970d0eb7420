//! Waiters cost the server nothing except their session's renewals.

use std::time::Duration;

use portalock_core::Lock;
use portalock_postgres::PostgresBackend;

use crate::support::{Server, patient, until};

#[tokio::test]
async fn idle_waiters_cost_no_statement() {
    let server = Server::start().await;
    let settings = server.settings_with_lease(Duration::from_secs(30));
    let holder = Lock::new(server.client().await, "a").unwrap();
    let guard = holder.acquire().await.unwrap();
    let client = PostgresBackend::with_settings(settings).await.unwrap();
    let lock = Lock::new(client, "a").unwrap();
    let waiters: Vec<_> = (0..200)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move { lock.acquire_with(&patient()).await })
        })
        .collect();
    until("all wait", async || {
        holder.inspect().await.unwrap().waiters.len() == 200
    })
    .await;

    let admin = server.admin().await;
    let count = async || -> i64 {
        admin
            .batch_execute("SELECT pg_stat_clear_snapshot()")
            .await
            .unwrap();
        let sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
        admin.query_one(sql, &[]).await.unwrap().get(0)
    };
    let settle = Duration::from_secs(2);
    // The server updates its statistics once a second.
    tokio::time::sleep(settle).await;
    let before = count().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let spent = count().await - before;
    // Two sessions, with leases of 10 s and 30 s, and the test's own queries.
    assert!(spent < 20, "{spent} transactions");
    for waiter in &waiters {
        waiter.abort();
    }
    guard.release().await.unwrap();
}
