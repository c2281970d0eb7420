//! What the functions answer and what they write, statement by statement.

use portalock_postgres::tokio_postgres::error::SqlState;

use crate::{
    steps::{BUSY, CLAIMS, EXPIRE, acquire, attempt, release, run, with_sessions},
    support::until,
};

const INSPECT: &str =
    "SELECT string_agg(concat_ws(' ', state, owner), ', ') FROM portalock.inspect('lock', 'a')";

#[tokio::test]
async fn a_repeated_attempt_finds_its_place() {
    let (_server, admin) = with_sessions().await;
    let again = attempt("s", "o", 10, true);
    let again = format!(
        "SELECT ({again}->>'token' = (SELECT token::text FROM portalock.names WHERE name = 'a' AND kind = 'lock'))::text"
    );
    let tries = |owner| {
        let attempt = attempt("t", owner, 10, false);
        format!("SELECT concat_ws(' ', a->>'outcome', a->>'who') FROM (SELECT {attempt}) a (a)")
    };
    run(
        &admin,
        &[
            (&acquire("s", "o", 10), "granted"),
            (&again, "true"),
            (&acquire("t", "p", 10), "queued o"),
            (&acquire("t", "p", 10), "queued o"),
            (&tries("p"), "queued o"),
            (&tries("q"), "refused o"),
            (CLAIMS, "o p?"),
            (&acquire("s", "o", 10), "granted"),
            (&release("s", "o"), "true"),
            (&acquire("t", "p", 10), "granted"),
            (CLAIMS, "p"),
            (&acquire("s", "r", 10), "queued p"),
            (&acquire("u", "q", 10), "queued p"),
            (INSPECT, "last, holds p, waits r, waits q"),
        ],
    )
    .await;
}

#[tokio::test]
async fn those_who_share_hold_together_and_keep_others_out() {
    let (_server, admin) = with_sessions().await;
    let permits = |owner: &str, weight: u8, capacity: u8| {
        format!(
            "SELECT portalock.acquire('s', 0, 'semaphore', 'permits', '{owner}', {weight}, {capacity}, false, '{{}}')::json->>'outcome'"
        )
    };
    let ahead = "WITH ahead AS (UPDATE portalock.names SET token = token + 1000000000000 WHERE name = 'a' AND kind = 'lock' RETURNING token)
        SELECT 'ahead' FROM ahead";
    let is_ahead = "SELECT (token > 1000000 * extract(epoch FROM now() + interval '10 days'))::text FROM portalock.names WHERE name = 'a' AND kind = 'lock'";
    let last = "SELECT (token - (SELECT min(token) FROM portalock.queue WHERE name = 'a' AND kind = 'lock'))::text FROM portalock.names WHERE name = 'a' AND kind = 'lock'";
    run(
        &admin,
        &[
            (&acquire("s", "one", 1), "granted"),
            (&acquire("t", "two", 1), "granted"),
            (&release("s", "one"), "true"),
            (BUSY, "true"),
            (&acquire("u", "w", 10), "queued two"),
            (&release("t", "two"), "true"),
            (CLAIMS, "w"),
            (BUSY, "false"),
            // Readers behind a writer all get the lock, and a writer behind them waits for both.
            (&acquire("s", "one", 1), "queued w"),
            (&acquire("t", "two", 1), "queued w"),
            (&acquire("v", "z", 10), "queued w"),
            (&release("u", "w"), "true"),
            (CLAIMS, "one two z?"),
            (&release("s", "one"), "true"),
            (CLAIMS, "two z?"),
            (&acquire("u", "y", 10), "queued two"),
            (&release("u", "y"), "false"),
            (&release("t", "two"), "true"),
            (CLAIMS, "z"),
            (&release("v", "z"), "true"),
            // The clock was set back.
            (ahead, "ahead"),
            (&acquire("s", "one", 1), "granted"),
            (is_ahead, "true"),
            (last, "0"),
            (&acquire("t", "two", 1), "granted"),
            (last, "1"),
            // The smallest capacity of all counts.
            (&permits("three", 3, 10), "granted"),
            (&permits("seven", 7, 10), "granted"),
            (&permits("one more", 1, 10), "refused"),
            (
                "SELECT portalock.release('s', 'semaphore', 'permits', 'seven')::text",
                "true",
            ),
            (&permits("of five", 3, 5), "refused"),
            (&permits("of five", 2, 5), "granted"),
            (&permits("of ten", 1, 10), "refused"),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_dead_are_passed_over_and_nobody_else() {
    let (_server, admin) = with_sessions().await;
    let open = "SELECT portalock.open_session('x', 3600000, '{x}', false)::text";
    run(
        &admin,
        &[
            // A dead waiter.
            (&acquire("s", "o", 10), "granted"),
            (&acquire("x", "p", 10), "queued o"),
            (&acquire("t", "q", 10), "queued o"),
            (EXPIRE, "expired"),
            (&release("s", "o"), "true"),
            (CLAIMS, "q"),
            (&release("t", "q"), "true"),
            // A dead holder of a part, beside a living one.
            (open, ""),
            (&acquire("x", "one", 1), "granted"),
            (&acquire("t", "two", 1), "granted"),
            (EXPIRE, "expired"),
            (&acquire("u", "w", 10), "queued two"),
            (CLAIMS, "two w?"),
            (&release("t", "two"), "true"),
            (CLAIMS, "w"),
            // A dead holder, a waiter, and one who asks: the waiter is first.
            (&release("u", "w"), "true"),
            (open, ""),
            (&acquire("x", "o", 10), "granted"),
            (&acquire("s", "p", 10), "queued o"),
            (EXPIRE, "expired"),
            (&acquire("t", "q", 10), "queued p"),
            (CLAIMS, "p q?"),
            (BUSY, "true"),
            (&release("s", "p"), "true"),
            (CLAIMS, "q"),
        ],
    )
    .await;
}

/// A release changes only the row of the name if it is not busy.
#[tokio::test]
async fn a_name_is_busy_while_it_has_a_mark_or_an_observer() {
    let (_server, admin) = with_sessions().await;
    run(
        &admin,
        &[
            (&acquire("s", "o", 10), "granted"),
            (
                "SELECT portalock.observe('t', 1, 'lock', 'a')::text",
                "true",
            ),
            (&release("s", "o"), "true"),
            (BUSY, "true"),
            (&acquire("s", "p", 10), "granted"),
            (BUSY, "true"),
            ("SELECT portalock.stop_observing('t', 1)::text", ""),
            (
                "SELECT portalock.break_claim('lock', 'a', 'p', 'by')::text",
                "3600000",
            ),
            (&acquire("t", "q", 10), "queued p"),
            // Serves the queue beside the mark.
            (&release("t", "q"), "false"),
            (BUSY, "true"),
            (&release("s", "p"), "true"),
            ("SELECT count(*)::text FROM portalock.marks", "0"),
            (BUSY, "false"),
        ],
    )
    .await;
}

/// The place of a waiter may be lost in a crash of the server, and a grant may not.
#[tokio::test]
async fn only_a_waiters_place_is_not_waited_for() {
    let (_server, admin) = with_sessions().await;
    let commit = "SELECT current_setting('synchronous_commit')";
    admin.batch_execute("BEGIN").await.unwrap();
    run(
        &admin,
        &[
            (&acquire("x", "o", 10), "granted"),
            (&acquire("s", "p", 10), "queued o"),
            (commit, "off"),
            ("SELECT set_config('synchronous_commit', 'on', true)", "on"),
            (EXPIRE, "expired"),
            // This attempt grants the lock to the waiter.
            (&acquire("t", "q", 10), "queued p"),
            (commit, "on"),
            (CLAIMS, "p q?"),
        ],
    )
    .await;
}

/// Every function that changes the claims of a name locks the name first.
#[tokio::test]
async fn every_change_waits_for_the_lock_of_the_name() {
    let (server, admin) = with_sessions().await;
    run(&admin, &[(&acquire("s", "o", 10), "granted")]).await;
    let other = server.admin().await;
    other
        .batch_execute("BEGIN; SELECT portalock.lock_name('a')")
        .await
        .unwrap();
    admin
        .batch_execute("SET lock_timeout = '20ms'")
        .await
        .unwrap();
    for statement in [
        "acquire('t', 0, 'lock', 'a', 'p', 10, 10, true, '{}')",
        "release('s', 'lock', 'a', 'o')",
        "release_for_good('s', 'lock', 'a', 'o')",
        "break_claim('lock', 'a', 'o', '{}')",
        "hold_of('lock', 'a', 'o')",
        "evict('lock', 'a', 'o')",
        "observe('s', 1, 'lock', 'a')",
        "bury('gone', '{lock}', '{a}')",
    ] {
        let waits = admin
            .batch_execute(&format!("SELECT portalock.{statement}"))
            .await
            .expect_err(statement);
        assert_eq!(
            waits.code(),
            Some(&SqlState::LOCK_NOT_AVAILABLE),
            "{statement}: {waits:?}"
        );
    }
    admin.batch_execute("RESET lock_timeout").await.unwrap();
    run(&admin, &[(CLAIMS, "o")]).await;
}

/// Within a transaction the server shows the processes as they were when it was first asked.
#[tokio::test]
async fn a_session_that_is_younger_than_the_transaction_lives() {
    let (server, admin) = with_sessions().await;
    admin
        .batch_execute("BEGIN; SELECT count(*) FROM pg_stat_activity")
        .await
        .unwrap();
    let tied = server.admin().await;
    run(
        &tied,
        &[
            (
                "SELECT portalock.open_session('tied', 3600000, '{}', true)::text",
                "",
            ),
            (&acquire("tied", "o", 10), "granted"),
        ],
    )
    .await;
    run(
        &admin,
        &[
            (&acquire("s", "p", 10), "queued o"),
            ("SELECT portalock.clean(1)::text", "0"),
            (CLAIMS, "o p?"),
        ],
    )
    .await;
    admin.batch_execute("COMMIT").await.unwrap();
    drop(tied);
    // The end of its process is noticed at once.
    let gone = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%''tied''%' AND pid <> pg_backend_pid()";
    until("its process has ended", async || {
        server.number(gone).await == 0
    })
    .await;
    run(
        &admin,
        &[
            ("SELECT portalock.look_in('lock', 'a', 's')::text", "0"),
            (&acquire("s", "p", 10), "granted"),
        ],
    )
    .await;
}

/// When a waiter has to check again, in seconds.
#[tokio::test]
async fn a_check_is_due_when_an_owner_ahead_may_be_dead() {
    let (server, admin) = with_sessions().await;
    let due = |session: &str| {
        format!(
            "SELECT CASE WHEN due BETWEEN 1800000 AND 3600000 THEN 'an hour' WHEN due BETWEEN 1 AND 200 THEN 'soon'
                 ELSE coalesce(due::text, 'never') END FROM portalock.look_in('lock', 'a', '{session}') due"
        )
    };
    let forward = "UPDATE portalock.sessions SET expires = expires + interval '1 day' WHERE id = 't' RETURNING 'set back'";
    let left = "SELECT (expires > clock_timestamp() + interval '2 hours')::text FROM portalock.sessions WHERE id = 't'";
    run(
        &admin,
        &[
            (&due("s"), "never"),
            (&acquire("t", "o", 10), "granted"),
            (&due("t"), "never"),
            (&due("s"), "an hour"),
            // One ahead who waits counts, too, and one further ahead does not.
            (&acquire("s", "p", 10), "queued o"),
            (&due("t"), "an hour"),
            (&acquire("x", "q", 10), "queued o"),
            (EXPIRE, "expired"),
            (&due("s"), "an hour"),
            // The clock was set back.
            (forward, "set back"),
            (left, "true"),
        ],
    )
    .await;
    // A session that is being renewed is left alone.
    let other = server.admin().await;
    let renews = "BEGIN; SELECT FROM portalock.sessions WHERE id = 't' FOR UPDATE";
    other.batch_execute(renews).await.unwrap();
    admin
        .batch_execute("SET lock_timeout = '20ms'")
        .await
        .unwrap();
    run(&admin, &[(&due("s"), "an hour"), (left, "true")]).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    admin.batch_execute("RESET lock_timeout").await.unwrap();
    run(
        &admin,
        &[
            (&due("s"), "an hour"),
            (left, "false"),
            ("UPDATE portalock.sessions SET expires = clock_timestamp() - interval '1 s' WHERE id = 't' RETURNING 'past'", "past"),
            (&due("s"), "0"),
            (&due("t"), "an hour"),
            ("DELETE FROM portalock.sessions WHERE id = 't' RETURNING 'gone'", "gone"),
            (&due("s"), "0"),
            ("UPDATE portalock.names SET owner = NULL WHERE name = 'a' AND kind = 'lock' RETURNING 'removed'", "removed"),
            (&due("s"), "0"),
            (&due("u"), "0"),
            // One who waits fits when a person has removed a holder of a part.
            ("WITH all_of AS (DELETE FROM portalock.queue WHERE kind = 'lock' AND name = 'a' RETURNING 1) SELECT count(*)::text FROM all_of", "2"),
            (&acquire("u", "one", 1), "granted"),
            (&due("s"), "an hour"),
            (&release("u", "one"), "true"),
            (&acquire("u", "six", 6), "granted"),
            (&due("s"), "an hour"),
            (&acquire("v", "four", 4), "granted"),
            (&acquire("s", "next", 4), "queued six"),
            (&due("s"), "an hour"),
            ("DELETE FROM portalock.queue WHERE owner = 'four' RETURNING 'removed'", "removed"),
            (&due("s"), "0"),
        ],
    )
    .await;
    // The smallest capacity counts.
    let permits = |owner: &str, weight: u8, capacity: u8| {
        format!(
            "SELECT portalock.acquire('s', 0, 'semaphore', 'c', '{owner}', {weight}, {capacity}, true, '{{}}')::json->>'outcome'"
        )
    };
    run(
        &admin,
        &[
            (&permits("three", 3, 5), "granted"),
            (&permits("three more", 3, 10), "queued"),
            (
                "SELECT (portalock.look_in('semaphore', 'c', 'u') > 1800000)::text",
                "true",
            ),
        ],
    )
    .await;
    let tied = server.admin().await;
    run(
        &tied,
        &[
            ("SELECT portalock.open_session('tied', 3600000, '{}', true)::text", ""),
            ("SELECT portalock.acquire('tied', 0, 'lock', 'c', 'o', 10, 10, true, '{}')::json->>'outcome'", "granted"),
            ("SELECT (portalock.look_in('lock', 'c', 's') BETWEEN 1 AND 200)::text", "true"),
        ],
    )
    .await;
}
