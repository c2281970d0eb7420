//! Two requests that change the same rows never wait for each other.

use portalock_postgres::tokio_postgres::Client;

use crate::support::{Server, until};

/// An administrator with a session `s` that holds `a`, and whose hold is broken.
async fn broken(server: &Server) -> Client {
    let admin = server.admin().await;
    admin
        .batch_execute(
            "SELECT portalock.open_session('s', 60000, '{}', false);
             SELECT portalock.acquire('s', 0, 'lock', 'a', 'o', 10, 10, true, '{}');
             SELECT portalock.break_claim('lock', 'a', 'o', '{}')",
        )
        .await
        .unwrap();
    admin
}

/// How many statements wait for others.
async fn waiting(server: &Server) -> i64 {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    server.number(waiting).await
}

const LEAVES: &str = "SELECT portalock.release_for_good('s', 'lock', 'a', 'o')";

/// A release for good removes the mark of a broken hold, and so does whoever ends the session.
#[tokio::test]
async fn a_broken_hold_is_released_beside_the_end_of_its_session() {
    let server = Server::start().await;
    let admin = broken(&server).await;
    // Both wait for the session's row, the end first.
    admin
        .batch_execute("BEGIN; SELECT FROM portalock.sessions FOR UPDATE")
        .await
        .unwrap();
    let (ends, leaves) = (server.admin().await, server.admin().await);
    let end = tokio::spawn(async move {
        ends.batch_execute("SELECT portalock.end_session('s')")
            .await
    });
    until("it waits", async || waiting(&server).await == 1).await;
    let leave = tokio::spawn(async move { leaves.batch_execute(LEAVES).await });
    until("it waits", async || waiting(&server).await == 2).await;
    admin.batch_execute("COMMIT").await.unwrap();
    end.await.unwrap().unwrap();
    leave.await.unwrap().unwrap();
    let left =
        "SELECT (SELECT count(*) FROM portalock.claims) + (SELECT count(*) FROM portalock.marks)";
    assert_eq!(server.number(left).await, 0);
}

/// A burial that kills a session at one name comes to a name that this session is releasing for good.
#[tokio::test]
async fn a_burial_that_kills_a_session_waits_for_none_of_its_releases() {
    let server = Server::start().await;
    let admin = broken(&server).await;
    // The session `s` waits behind `t`, which has ended, and has expired meanwhile.
    admin
        .batch_execute(
            "SELECT portalock.open_session('t', 60000, '{}', false);
             SELECT portalock.acquire('t', 0, 'lock', '1', 'p', 10, 10, true, '{}');
             SELECT portalock.acquire('t', 0, 'lock', '2', 'q', 10, 10, true, '{}');
             SELECT portalock.acquire('s', 0, 'lock', '1', 'w', 10, 10, true, '{}');
             SELECT portalock.end_session('t');
             UPDATE portalock.sessions SET expires = now()",
        )
        .await
        .unwrap();
    admin
        .batch_execute("BEGIN; SELECT portalock.lock_name('2')")
        .await
        .unwrap();
    let (buries, leaves) = (server.admin().await, server.admin().await);
    let bury = tokio::spawn(async move {
        buries
            .batch_execute("SELECT portalock.bury('t', '{lock,lock,lock}', '{1,2,a}')")
            .await
    });
    until("it waits", async || waiting(&server).await == 1).await;
    let leave = tokio::spawn(async move { leaves.batch_execute(LEAVES).await });
    until("the release waits or is done", async || {
        leave.is_finished() || waiting(&server).await == 2
    })
    .await;
    admin.batch_execute("COMMIT").await.unwrap();
    leave.await.unwrap().unwrap();
    bury.await.unwrap().unwrap();
    let left = "SELECT count(*) FROM portalock.claims";
    assert_eq!(server.number(left).await, 0);
}
