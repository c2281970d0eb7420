//! What the functions about whole sessions answer and write, statement by statement.

use crate::steps::{CLAIMS, EXPIRE, acquire, release, run, with_sessions};

/// The kinds of `names`, all locks, as an argument.
fn locks(names: usize) -> String {
    vec!["lock"; names].join(",")
}

/// A check of the session `s` that asks for these owners and names.
fn look(owners: &str, kinds: &str, names: &str, columns: &str) -> String {
    format!(
        "SELECT {columns} FROM portalock.look('s', '{{{owners}}}', '{{{kinds}}}', '{{{names}}}')"
    )
}

const AGAIN: &str = "CASE WHEN again_in BETWEEN 1800000 AND 3600000 THEN 'an hour' WHEN again_in BETWEEN 1000 AND 600000 THEN 'ten minutes' ELSE coalesce(again_in::text, 'never') END";

#[tokio::test]
async fn a_session_is_renewed_and_replaces_its_former() {
    let (_server, admin) = with_sessions().await;
    let renew = "SELECT concat_ws(' ', alive, backend = pg_backend_pid(), array_to_string(broken || broken_by, ' ')) FROM portalock.renew('s')";
    let late = "UPDATE portalock.sessions SET expires = clock_timestamp() + interval '1 min' WHERE id = 's' RETURNING 'late'";
    let left = "SELECT (expires > clock_timestamp() + interval '30 min')::text FROM portalock.sessions WHERE id = 's'";
    run(
        &admin,
        &[
            (&acquire("s", "o", 10), "granted"),
            (late, "late"),
            (left, "false"),
            (renew, "t t"),
            (left, "true"),
            (
                "SELECT portalock.break_claim('lock', 'b', 'other-3', 'by')::text",
                "3600000",
            ),
            (renew, "t t"),
            (
                "SELECT portalock.break_claim('lock', 'a', 'o', 'by')::text",
                "3600000",
            ),
            // The first mark stays.
            (
                "SELECT portalock.break_claim('lock', 'a', 'o', 'another')::text",
                "3600000",
            ),
            (renew, "t t o by"),
            (
                "SELECT portalock.open_session('new', 1000, '{s}', false)::text",
                "",
            ),
            (renew, "f t"),
            ("SELECT count(*)::text FROM portalock.marks", "1"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_check_finds_its_own_claims_only() {
    let (_server, admin) = with_sessions().await;
    let asks = look(
        "h,h,h,none,p,o,q,part",
        "lock,semaphore,lock,lock,lock,lock,lock,lock",
        "c,c,a,c,a,a,a,d",
        "array_to_string(owners, ' ') || ' ' || array_to_string(tokens, ' ', '?')",
    );
    let asks = format!("SELECT regexp_replace(t, '[0-9]{{16}}', 'token', 'g') FROM ({asks}) t (t)");
    let hold = |session: &str, name: &str, owner: &str, weight: u8| {
        format!(
            "SELECT portalock.acquire('{session}', 0, 'lock', '{name}', '{owner}', {weight}, 10, true, '{{}}')::json->>'outcome'"
        )
    };
    let again = look("", "", "", AGAIN);
    run(
        &admin,
        &[
            (&hold("s", "c", "h", 10), "granted"),
            (&hold("s", "d", "part", 1), "granted"),
            (&hold("t", "d", "another", 1), "granted"),
            // It waits for nobody.
            (&again, "never"),
            (&acquire("t", "o", 10), "granted"),
            (&acquire("s", "p", 10), "queued o"),
            (&acquire("t", "q", 10), "queued o"),
            (&asks, "h p part token ? token"),
            (&again, "an hour"),
            (&hold("x", "e", "sooner", 10), "granted"),
            (
                "UPDATE portalock.sessions SET expires = clock_timestamp() + interval '10 min' WHERE id = 'x' RETURNING 'set'",
                "set",
            ),
            (&hold("s", "e", "next", 10), "queued"),
            (&again, "ten minutes"),
        ],
    )
    .await;
}

/// A session that waits for very many names reads its claims in parts after a reconnect.
#[tokio::test]
async fn claims_are_read_without_the_other_names_of_their_session() {
    let (server, admin) = with_sessions().await;
    admin
        .batch_execute(
            "SELECT portalock.acquire(session, 0, 'lock', 'n' || n, session || n, 10, 10, true, '{}')
             FROM generate_series(1, 1000) n, unnest('{x,s}'::text[]) WITH ORDINALITY t (session, number)",
        )
        .await
        .unwrap();
    // What another connection has read doesn't count here.
    let admin = server.admin().await;
    admin
        .batch_execute("SET enable_seqscan = off; BEGIN")
        .await
        .unwrap();
    let read = "SELECT (sum(pg_stat_get_xact_tuples_returned(c) + pg_stat_get_xact_tuples_fetched(c)) < 100)::text FROM unnest(
        '{portalock.names,portalock.names_pkey,portalock.queue,portalock.queue_pkey,portalock.queue_place,portalock.queue_session}'::regclass[]) c";
    let asks = look(
        "s1,x1,s2,none",
        &locks(4),
        "n1,n1,n2,n3",
        "array_to_string(owners, ' ') || ' ' || array_to_string(tokens, ' ', '?')",
    );
    run(
        &admin,
        &[
            (&asks.replace(".look(", ".claims_of("), "s1 s2 ? ?"),
            (read, "true"),
            (&asks, "s1 s2 ? ?"),
            (read, "false"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_check_serves_the_names_that_it_can_lock() {
    let (server, admin) = with_sessions().await;
    let many = "SELECT count(portalock.acquire(session, 0, 'lock', 'n' || n, session || n, 10, 10, true, '{}'))::text
        FROM generate_series(1, 101) n, unnest('{x,s}'::text[]) WITH ORDINALITY t (session, number)";
    let waiting = "SELECT count(*)::text FROM portalock.queue WHERE session = 's'";
    let again = look("", "", "", AGAIN);
    run(
        &admin,
        &[
            (&acquire("x", "o", 10), "granted"),
            (&acquire("s", "p", 10), "queued o"),
            (EXPIRE, "expired"),
        ],
    )
    .await;
    let other = server.admin().await;
    let lock = "BEGIN; SELECT portalock.lock_name('a'); SET LOCAL lock_timeout = '20ms'";
    other.batch_execute(lock).await.unwrap();
    admin
        .batch_execute("SET lock_timeout = '20ms'")
        .await
        .unwrap();
    run(&admin, &[(&again, "100"), (CLAIMS, "o p?")]).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    admin.batch_execute("RESET lock_timeout").await.unwrap();
    run(
        &admin,
        &[
            (&again, "100"),
            (CLAIMS, "p"),
            (&again, "never"),
            // Not more than a hundred names at once.
            (
                "SELECT portalock.open_session('x', 3600000, '{x}', false)::text",
                "",
            ),
            (many, "202"),
            (waiting, "101"),
            (EXPIRE, "expired"),
            (&again, "100"),
            (waiting, "1"),
            (&again, "100"),
            (waiting, "0"),
            // A name that it observes is served, too.
            (
                "SELECT portalock.open_session('x', 3600000, '{x}', false)::text",
                "",
            ),
            (&release("s", "p"), "true"),
            (&acquire("x", "o", 10), "granted"),
            (
                "SELECT portalock.observe('s', 1, 'lock', 'a')::text",
                "true",
            ),
            (EXPIRE, "expired"),
            (&again, "100"),
            (CLAIMS, "-"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_burial_ends_the_claims_of_a_dead_session() {
    let (_server, admin) = with_sessions().await;
    let bury = |names: &str| {
        let kinds = locks(names.split(',').count());
        format!("SELECT portalock.bury('s', '{{{kinds}}}', '{{{names}}}')::text")
    };
    let others = "SELECT count(*)::text FROM portalock.claims WHERE session = 's' AND name <> 'a'";
    run(
        &admin,
        &[
            (&acquire("s", "o", 10), "granted"),
            (&acquire("t", "p", 10), "queued o"),
            (&acquire("s", "q", 10), "queued o"),
            ("SELECT portalock.acquire('s', 0, 'lock', 'c', 'other o', 10, 10, true, '{}')::json->>'outcome'", "granted"),
            ("SELECT portalock.acquire('s', 0, 'semaphore', 'a', 'other q', 10, 10, true, '{}')::json->>'outcome'", "queued"),
            // It lives.
            (&bury("a"), ""),
            (CLAIMS, "o p? q?"),
            ("SELECT portalock.end_session('s')::text", ""),
            (&bury("a,a"), ""),
            (CLAIMS, "p"),
            (others, "1"),
            (&bury("c"), ""),
            (others, "0"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_clean_up_removes_what_nobody_needs() {
    let (server, admin) = with_sessions().await;
    let clean = "SELECT portalock.clean(1)::text";
    let names = "SELECT string_agg(name, ' ' ORDER BY name) FROM portalock.names WHERE name LIKE 'n%' AND kind = 'lock'";
    let expires = |later: &str| {
        format!(
            "UPDATE portalock.sessions SET expires = clock_timestamp() + interval '{later}' WHERE id = 'x' RETURNING 'set'"
        )
    };
    let hour = "WITH old AS (UPDATE portalock.names SET token = token - 3601000000 WHERE name IN ('n1', 'n2', 'n3', 'n4') RETURNING 1)
        SELECT count(*)::text FROM old";
    let hold = |name: &str, weight: u8| {
        format!(
            "SELECT portalock.acquire('s', 0, 'lock', '{name}', '{name}', {weight}, 10, true, '{{}}')::json->>'outcome'"
        )
    };
    let left = "SELECT count(*)::text FROM portalock.claims WHERE session = 'x'";
    let free =
        |name: &str| format!("SELECT portalock.release('s', 'lock', '{name}', '{name}')::text");
    run(
        &admin,
        &[
            // The whole of one, a part of another, and names that are free.
            (&hold("n1", 10), "granted"),
            (&hold("n2", 1), "granted"),
            (&hold("n3", 10), "granted"),
            (&free("n3"), "true"),
            (&hold("n4", 1), "granted"),
            (&free("n4"), "true"),
            (&hold("n5", 10), "granted"),
            (&free("n5"), "true"),
            (hour, "4"),
            (
                "SELECT portalock.acquire('s', 0, 'semaphore', 'n3', 'part', 1, 10, true, '{}')::json->>'outcome'",
                "granted",
            ),
            (&acquire("x", "o", 10), "granted"),
            (&acquire("t", "p", 10), "queued o"),
        ],
    )
    .await;
    let other = server.admin().await;
    let lock =
        "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('portalock.clean', 1919249516))";
    other.batch_execute(lock).await.unwrap();
    run(&admin, &[(clean, "0"), (names, "n1 n2 n3 n4 n5")]).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    run(
        &admin,
        &[
            // It still lives for a moment.
            (&expires("30 s"), "set"),
            (clean, "0"),
            (CLAIMS, "o p?"),
            (names, "n1 n2 n5"),
            (&expires("-61 s"), "set"),
        ],
    )
    .await;
    // One that renews itself, or kills the session.
    let row = "BEGIN; SELECT FROM portalock.sessions WHERE id = 'x' FOR UPDATE";
    other.batch_execute(row).await.unwrap();
    admin
        .batch_execute("SET lock_timeout = '20ms'")
        .await
        .unwrap();
    run(&admin, &[(clean, "0"), (CLAIMS, "o p?")]).await;
    other.batch_execute("ROLLBACK").await.unwrap();
    admin.batch_execute("RESET lock_timeout").await.unwrap();
    run(
        &admin,
        &[
            (clean, "1"),
            (CLAIMS, "p"),
            (
                "SELECT count(*)::text FROM portalock.sessions WHERE id = 'x'",
                "0",
            ),
            (clean, "0"),
            (&hold("n1", 10), "granted"),
            // A lock and a semaphore of one name.
            (
                "SELECT portalock.open_session('x', 3600000, '{}', false)::text",
                "",
            ),
            (
                "SELECT count(portalock.acquire('x', 0, kind, 'n6', kind, 10, 10, true, '{}'))::text
                 FROM unnest('{lock,semaphore}'::text[]) kind",
                "2",
            ),
            (&expires("-61 s"), "set"),
            (clean, "1"),
            (left, "1"),
            (clean, "1"),
            (left, "0"),
        ],
    )
    .await;
}

/// The claims of one session, whether they hold, share or wait. Only one call at a time reads them.
#[tokio::test]
async fn all_claims_of_a_session_are_read_by_one_call_at_a_time() {
    let (server, admin) = with_sessions().await;
    let all = "SELECT coalesce(string_agg(concat_ws(' ', owner, kind, name, weight, capacity), ', ' ORDER BY owner), 'none')
        FROM portalock.all_claims_of('s') WHERE owner IS NOT NULL";
    let unread = "SELECT concat_ws(' ', count(*), count(owner)) FROM portalock.all_claims_of('s')";
    admin
        .batch_execute(
            "SELECT portalock.acquire('s', 0, 'lock', 'a', 'holds', 10, 10, true, '{}');
             SELECT portalock.acquire('s', 0, 'semaphore', 'a', 'shares', 2, 3, true, '{}');
             SELECT portalock.acquire('x', 0, 'lock', 'b', 'other', 10, 10, true, '{}');
             SELECT portalock.acquire('s', 0, 'lock', 'b', 'waits', 1, 10, true, '{}')",
        )
        .await
        .unwrap();
    let claims = "holds lock a 10 10, shares semaphore a 2 3, waits lock b 1 10";
    run(&admin, &[(all, claims)]).await;
    let other = server.admin().await;
    other.batch_execute("BEGIN").await.unwrap();
    run(&other, &[(all, claims)]).await;
    run(&admin, &[(unread, "1 0")]).await;
    other.batch_execute("COMMIT").await.unwrap();
    run(&admin, &[(all, claims)]).await;
}
