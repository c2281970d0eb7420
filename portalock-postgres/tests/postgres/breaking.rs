//! Locks that an operator breaks: how their holders are told, and which users may break them.

use std::time::Duration;

use portalock_core::{Broken, Holder, Lock, Loss, OwnerId};
use portalock_postgres::{PostgresBackend, migrate, schema_sql};
use portalock_testkit::{proxy::Direction, servers::PostgresOptions};

use crate::support::{Server, until};

/// A renewal finds the mark, even if the notification did not arrive.
#[tokio::test]
async fn a_mark_that_nobody_told_of_is_found() {
    let server = Server::start().await;
    let settings = server.settings_with_lease(Duration::from_secs(3));
    let holder = PostgresBackend::with_settings(settings).await.unwrap();
    let lock = Lock::new(holder, "a").unwrap();
    let guard = lock.acquire().await.unwrap();
    let by = serde_json::to_string(&Holder::this_process(Some("operator".into()))).unwrap();
    server
        .run(&format!(
            "INSERT INTO portalock.marks SELECT owner, session, '{by}' FROM portalock.claims"
        ))
        .await;
    let Loss::Broken(by) = guard.lost().await else {
        panic!("it was lost in another way: {:?}", guard.lost_signal());
    };
    assert_eq!(by.label.as_deref(), Some("operator"));
    let next = lock.acquire().await.unwrap();
    assert!(next.token() > guard.token());
}

/// A user who may only use locks may break them, unless the right to break is revoked from PUBLIC.
#[tokio::test]
async fn who_may_break_can_be_restricted() {
    let server = Server::empty(PostgresOptions::new()).await;
    migrate(&server.settings()).await.unwrap();
    let lock = Lock::new(server.client().await, "a").unwrap();
    let guard = lock.acquire().await.unwrap();
    server
        .run("CREATE ROLE least LOGIN; GRANT USAGE ON SCHEMA portalock TO least")
        .await;
    let admin = server.admin().await;
    admin.batch_execute("SET ROLE least").await.unwrap();
    let owner = guard.owner().to_string();
    let breaks = "SELECT portalock.break_claim('lock', 'a', $1, '{}')";
    assert!(admin.query_one(breaks, &[&owner]).await.is_ok());
    server
        .run(
            "REVOKE EXECUTE ON FUNCTION portalock.break_claim(text, text, text, text), portalock.evict(text, text, text)
             FROM PUBLIC",
        )
        .await;
    assert!(admin.query_one(breaks, &[&owner]).await.is_err());
    // An upgrade replaces the functions.
    let schema = schema_sql();
    let (_, functions) = schema
        .split_once(include_str!("../../src/sql/5_holds.sql"))
        .unwrap();
    server.run(&format!("BEGIN; {functions} COMMIT")).await;
    assert!(admin.query_one(breaks, &[&owner]).await.is_err());
    let again = lock.break_holder(guard.owner()).await.unwrap();
    assert!(matches!(again, Broken::Released | Broken::NotHeld));
    assert!(guard.is_lost());
}

/// The holder has released the lock before the mark is sent again.
#[tokio::test]
async fn a_hold_whose_mark_got_no_answer_is_told_as_broken() {
    let server = Server::start().await;
    let held = Lock::new(server.client().await, "a").unwrap();
    let held = held.acquire().await.unwrap();
    let owner = held.owner();
    let (line, settings) = server.line();
    let breaker = PostgresBackend::with_settings(settings).await.unwrap();
    let breaker = Lock::new(breaker, "a").unwrap();
    // Opens the connection.
    let nothing = breaker.break_holder(OwnerId::mint()).await;
    assert_eq!(nothing.unwrap(), Broken::NotHeld);
    line.drop_bytes(Direction::ToClient);
    let breaks = tokio::spawn(async move { breaker.break_holder(owner).await });
    let loss = held.lost().await;
    assert!(matches!(loss, Loss::Broken(_)), "{loss}");
    let claims = "SELECT count(*) FROM portalock.claims";
    until("it is released", async || server.number(claims).await == 0).await;
    line.heal();
    line.cut();
    assert_eq!(breaks.await.unwrap().unwrap(), Broken::Released);
}
