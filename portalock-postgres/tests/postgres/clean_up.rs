//! What dead sessions and old names leave, and how it is removed.

use crate::functions::{acquire, open, with_session};

/// A clean-up changes the claims of a name only under the name's lock. Otherwise it could be in a deadlock with a request that
/// removes the same claims.
#[tokio::test]
async fn a_clean_up_leaves_a_name_that_somebody_has_locked() {
    let (server, admin) = with_session().await;
    acquire(&admin, "s", 0, "o").await;
    admin
        .batch_execute(
            "SELECT portalock.acquire('s', 0, 'lock', 'b', 'p', 10, 10, true, '{}');
             DELETE FROM portalock.sessions",
        )
        .await
        .unwrap();
    let other = server.admin().await;
    other
        .batch_execute("BEGIN; SELECT portalock.lock_name('a')")
        .await
        .unwrap();
    let cleaned = async |most: i32| {
        let row = admin
            .query_one("SELECT portalock.clean($1)", &[&most])
            .await;
        row.unwrap().get::<_, i32>(0)
    };
    let left = "SELECT count(*) FROM portalock.claims";
    assert_eq!(cleaned(100).await, 1);
    assert_eq!(server.number(left).await, 1);
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(cleaned(1).await, 1);
    assert_eq!(cleaned(1).await, 0);
    assert_eq!(server.number(left).await, 0);
}

/// A statement has little time, so one clean-up removes a part of very many old names, and says that there may be more. It
/// reads the table in its order, also over a client's connection.
#[tokio::test]
async fn a_clean_up_takes_a_part_of_very_many_names() {
    let (_server, admin) = with_session().await;
    acquire(&admin, "s", 0, "o").await;
    admin
        .batch_execute(
            "INSERT INTO portalock.names SELECT 'lock', 'old ' || n, 1 FROM generate_series(1, 10001) n;
             SET enable_seqscan = off; BEGIN",
        )
        .await
        .unwrap();
    let number = async |sql: &str| -> i64 { admin.query_one(sql, &[]).await.unwrap().get(0) };
    assert_eq!(number("SELECT portalock.clean(100)::bigint").await, 100);
    let scans = "SELECT pg_stat_get_xact_numscans('portalock.names'::regclass)";
    assert!(number(scans).await > 0);
    assert_eq!(number("SELECT portalock.clean(100)::bigint").await, 0);
    assert_eq!(number("SELECT count(*) FROM portalock.names").await, 1);
}

/// What a session has left is removed without a search through all names.
#[tokio::test]
async fn a_burial_reads_only_its_own_names() {
    let (server, admin) = with_session().await;
    acquire(&admin, "s", 0, "o").await;
    admin
        .batch_execute(
            "INSERT INTO portalock.names SELECT 'lock', 'other ' || n, 1 FROM generate_series(1, 1000) n;
             SELECT portalock.end_session('s');
             SET enable_seqscan = off;
             BEGIN;
             SELECT portalock.bury('s', '{lock,lock}', '{a,b}')",
        )
        .await
        .unwrap();
    let read = "SELECT sum(pg_stat_get_xact_tuples_returned(c) + pg_stat_get_xact_tuples_fetched(c))::bigint
                FROM (VALUES ('portalock.names'::regclass), ('portalock.names_pkey')) t (c)";
    let read: i64 = admin.query_one(read, &[]).await.unwrap().get(0);
    assert!(read < 100, "it read {read} rows");
    admin.batch_execute("COMMIT").await.unwrap();
    let left = "SELECT count(*) FROM portalock.claims";
    assert_eq!(server.number(left).await, 0);
}

/// Ended sessions and locks leave nothing, except the last token of each name for an hour.
#[tokio::test]
async fn what_nobody_needs_is_removed() {
    let (server, admin) = with_session().await;
    open(&admin, "t").await;
    acquire(&admin, "s", 0, "o").await;
    admin
        .batch_execute(
            "INSERT INTO portalock.names VALUES ('lock', 'old', 1);
             UPDATE portalock.sessions SET expires = now() - interval '2 minutes' WHERE id = 's';
             SELECT portalock.clean(100)",
        )
        .await
        .unwrap();
    assert_eq!(
        server
            .number("SELECT count(*) FROM portalock.sessions")
            .await,
        1
    );
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.claims").await,
        0
    );
    assert_eq!(
        server
            .number("SELECT count(*) FROM portalock.names WHERE name = 'a'")
            .await,
        1
    );
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.names").await,
        1
    );
}
