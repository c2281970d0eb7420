//! What the functions about a name's holder answer, statement by statement: fences, breaks and observers.

use portalock_postgres::tokio_postgres::error::SqlState;

use crate::steps::{CLAIMS, EXPIRE, acquire, release, run, with_sessions};

/// Whether an owner holds with the token of the lock `a`, or with the next one: both ways to ask must agree.
fn held(owner: &str, more: u8) -> String {
    format!(
        "SELECT CASE WHEN now = locked THEN now::text END FROM (
             SELECT portalock.is_held('{owner}', token + {more}, false), portalock.is_held('{owner}', token + {more}, true)
             FROM portalock.names WHERE name = 'a' AND kind = 'lock') t (now, locked)"
    )
}

#[tokio::test]
async fn an_owner_holds_its_name_with_its_token() {
    let (_server, admin) = with_sessions().await;
    let slashes = "SELECT portalock.acquire('s', 0, 'lock', 'x/y', 'slashes', 10, 10, true, '{}')::json->>'outcome'";
    let of_slashes = "SELECT portalock.is_held('slashes/lock/x/y', token, false)::text FROM portalock.names WHERE name = 'x/y'";
    run(
        &admin,
        &[
            (&acquire("s", "o", 10), "granted"),
            (&acquire("t", "p", 10), "queued o"),
            (&held("o/lock/a", 0), "true"),
            (&held("o/lock/a", 1), "false"),
            (&held("p/lock/a", 0), "false"),
            (&held("o/lock/b", 0), "false"),
            (&held("o/semaphore/a", 0), "false"),
            (slashes, "granted"),
            (of_slashes, "true"),
            (&release("s", "o"), "true"),
            (&held("o/lock/a", 0), "false"),
            (&held("p/lock/a", 0), "true"),
            (&release("t", "p"), "true"),
            // A part.
            (&acquire("s", "q", 1), "granted"),
            (&held("q/lock/a", 0), "true"),
            (&held("q/lock/a", 1), "false"),
            (&held("r/lock/a", 0), "false"),
        ],
    )
    .await;
}

/// From the check at the commit on, the claim can't be released, whether it holds the whole name or a part.
#[tokio::test]
async fn a_fence_keeps_the_claim_until_the_commit() {
    let (server, admin) = with_sessions().await;
    let writer = server.admin().await;
    let token = "SELECT token FROM portalock.names WHERE name = 'a' AND kind = 'lock'";
    let fence = format!("SELECT portalock.ensure_held('o/lock/a', ({token}))");
    for weight in [10, 1] {
        run(&admin, &[(&acquire("s", "o", weight), "granted")]).await;
        let commits = format!("BEGIN; {fence}; SET CONSTRAINTS ALL IMMEDIATE");
        writer.batch_execute(&commits).await.unwrap();
        admin
            .batch_execute("SET lock_timeout = '20ms'")
            .await
            .unwrap();
        let waits = admin.batch_execute(&release("s", "o")).await.unwrap_err();
        assert_eq!(waits.code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
        admin.batch_execute("RESET lock_timeout").await.unwrap();
        writer.batch_execute("COMMIT").await.unwrap();
        run(
            &admin,
            &[
                ("SELECT count(*)::text FROM portalock.fences", "0"),
                (&release("s", "o"), "true"),
            ],
        )
        .await;
        // At once, and not only at the commit.
        let late = writer.batch_execute(&format!("BEGIN; {fence}")).await;
        assert_eq!(late.unwrap_err().code().map(SqlState::code), Some("PL001"));
        writer.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn holders_are_broken_and_evicted_and_nobody_else() {
    let (_server, admin) = with_sessions().await;
    let breaks =
        |owner: &str| format!("SELECT portalock.break_claim('lock', 'a', '{owner}', 'by')::text");
    let evict = |owner: &str| format!("SELECT portalock.evict('lock', 'a', '{owner}')::text");
    let holds = |owner: &str| {
        format!(
            "SELECT (portalock.hold_of('lock', 'a', '{owner}') = token)::text FROM portalock.names WHERE name = 'a' AND kind = 'lock'"
        )
    };
    let marks = "SELECT string_agg(owner, ' ') FROM portalock.marks";
    run(
        &admin,
        &[
            (&breaks("o"), "-"),
            (&evict("o"), "false"),
            // The part after the dot is its client's own.
            (&acquire("x", "o.1", 10), "granted"),
            (&acquire("t", "p", 10), "queued o.1"),
            (&holds("o"), "true"),
            (&holds("p"), "-"),
            (&breaks("other-1"), "-"),
            (&breaks("other-3"), "-"),
            (&breaks("p"), "-"),
            (&evict("other-1"), "false"),
            (&evict("p"), "false"),
            (CLAIMS, "o.1 p?"),
            (marks, "-"),
            (&breaks("o"), "3600000"),
            (marks, "o.1"),
            (&evict("o"), "true"),
            (CLAIMS, "p"),
            (marks, "-"),
            ("SELECT portalock.end_session('t')::text", ""),
            (&breaks("p"), "0"),
            (marks, "-"),
            (&evict("p"), "true"),
            (CLAIMS, "-"),
        ],
    )
    .await;
}

/// An attempt in an earlier session was granted without an answer, and the owner has made another one since.
#[tokio::test]
async fn an_owner_that_shares_a_name_twice_is_broken_where_it_lives() {
    let (_server, admin) = with_sessions().await;
    run(
        &admin,
        &[
            (&acquire("x", "o.1", 1), "granted"),
            (&acquire("s", "o.2", 1), "granted"),
            ("SELECT portalock.end_session('x')::text", ""),
            (
                "SELECT portalock.break_claim('lock', 'a', 'o', 'by')::text",
                "3600000",
            ),
            ("SELECT string_agg(owner, ' ') FROM portalock.marks", "o.2"),
            (
                "SELECT (portalock.hold_of('lock', 'a', 'o') = token)::text FROM portalock.claims WHERE owner = 'o.2'",
                "true",
            ),
            ("SELECT portalock.evict('lock', 'a', 'o')::text", "true"),
            (CLAIMS, "o.1"),
        ],
    )
    .await;
}

#[tokio::test]
async fn observers_are_told_of_the_living_holder_of_the_whole_name() {
    let (_server, admin) = with_sessions().await;
    let state =
        "SELECT regexp_replace(portalock.state_of('lock', 'a'), ' [0-9]{16}', ' number', 'g')";
    let observe = |session: &str, id: u8| {
        format!("SELECT portalock.observe('{session}', {id}, 'lock', 'a')::text")
    };
    let observers =
        "SELECT string_agg(session || id, ' ' ORDER BY session, id) FROM portalock.observers";
    let long = "SELECT portalock.acquire('s', 0, 'lock', 'a', 'long', 10, 10, true, repeat('x', 7000))::json->>'outcome'";
    let since = "SELECT (abs(split_part(portalock.state_of('lock', 'a'), ' ', 4)::bigint / 1000000 - extract(epoch FROM now())) < 3600)::text";
    run(
        &admin,
        &[
            (state, ""),
            (&acquire("x", "o.1", 10), "granted"),
            (state, " o number number o.1"),
            (since, "true"),
            (EXPIRE, "expired"),
            (state, ""),
            (&observe("x", 1), "false"),
            (&acquire("s", "p", 1), "granted"),
            (state, ""),
            (&release("s", "p"), "true"),
            (long, "granted"),
            (state, r#" long number number {"host":"?","pid":0}"#),
            (&observe("s", 1), "true"),
            (&observe("s", 1), "true"),
            (&observe("s", 2), "true"),
            (&observe("t", 1), "true"),
            (&observe("x", 1), "false"),
            (observers, "s1 s2 t1"),
            ("SELECT portalock.stop_observing('s', 1)::text", ""),
            (observers, "s2 t1"),
            ("SELECT portalock.end_session('t')::text", ""),
            (observers, "s2"),
        ],
    )
    .await;
}
