//! A statement about one name neither reads nor changes another name, nor the semaphore of the same name.

use portalock_postgres::tokio_postgres::Client;

use crate::support::Server;

/// An attempt for `lock` `a`, by session and owner.
fn acquire(session: &str, owner: &str, weight: u8) -> String {
    format!(
        "SELECT portalock.acquire('{session}', 0, 'lock', 'a', '{owner}', {weight}, 10, true, '{{}}')::json->>'outcome'"
    )
}

fn release(session: &str, owner: &str) -> String {
    format!("SELECT portalock.release('{session}', 'lock', 'a', '{owner}')::text")
}

/// Everything that is not about `lock` `a`.
const OTHERS: &str = "
    SELECT string_agg(row, e'\\n' ORDER BY row) FROM (
        SELECT n::text FROM portalock.names n WHERE (kind, name) <> ('lock', 'a')
        UNION ALL SELECT c::text FROM portalock.queue c WHERE (kind, name) <> ('lock', 'a')
        UNION ALL SELECT o::text FROM portalock.observers o WHERE (kind, name) <> ('lock', 'a')
        UNION ALL SELECT m::text FROM portalock.marks m WHERE owner LIKE 'other%'
    ) t (row)";

/// Names that a wrong statement would serve. Two have a dead holder, a waiter, an observer and a mark. Others are free, held in part,
/// held by a session that dies, and held and wanted.
const NEIGHBOURS: &str = "
    SELECT portalock.open_session(s, 3600000, '{}', false) FROM unnest('{dead,live,s,t,u,x}'::text[]) s;
    DO $$
    DECLARE
        kind text;
        name text;
        number integer := 0;
    BEGIN
        FOR kind, name IN VALUES ('semaphore', 'a'), ('lock', 'b') LOOP
            number := number + 1;
            PERFORM portalock.acquire('dead', 0, kind, name, 'other ' || number, 10, 10, true, '{}');
            PERFORM portalock.acquire('live', 0, kind, name, 'other next ' || number, 10, 10, true, '{}');
            PERFORM portalock.observe('live', number, kind, name);
            PERFORM portalock.break_claim(kind, name, 'other ' || number, '{}');
        END LOOP;
        FOR kind, name IN VALUES ('semaphore', 'free'), ('lock', 'c') LOOP
            PERFORM portalock.acquire('live', 0, kind, name, 'other free', 10, 10, true, '{}');
            PERFORM portalock.release('live', kind, name, 'other free');
        END LOOP;
        PERFORM portalock.acquire('live', 0, 'semaphore', 'part', 'other part', 3, 10, true, '{}');
        PERFORM portalock.acquire('x', 0, 'lock', 'd', 'other d', 10, 10, true, '{}');
        PERFORM portalock.acquire('x', 0, 'semaphore', 'held', 'other held', 10, 10, true, '{}');
        PERFORM portalock.acquire('s', 0, 'semaphore', 'wanted', 'other wanted', 10, 10, true, '{}');
        PERFORM portalock.acquire('live', 0, 'semaphore', 'wanted', 'other wants', 10, 10, true, '{}');
    END $$;
    UPDATE portalock.sessions SET expires = clock_timestamp() WHERE id = 'dead'";

async fn ask(admin: &Client, sql: &str) -> Option<String> {
    admin.query_one(sql, &[]).await.unwrap().get(0)
}

const CLAIMS: &str = "SELECT string_agg(owner, ' ' ORDER BY place NULLS FIRST, token) FROM portalock.claims WHERE name = 'a' AND kind = 'lock'";
const BUSY: &str = "SELECT busy::text FROM portalock.names WHERE name = 'a' AND kind = 'lock'";
const MARKS: &str = "SELECT count(*)::text FROM portalock.marks WHERE owner = 'p'";
const EXPIRE: &str =
    "UPDATE portalock.sessions SET expires = clock_timestamp() WHERE id = 'x' RETURNING 'expired'";

/// Runs the statements, and compares their answers with the expected ones and all other names with what they were. Does so for names
/// whose semaphores differ.
async fn run(steps: &[(&str, Option<&str>)]) {
    let server = Server::start().await;
    let admin = server.admin().await;
    for name in ["a", "held", "wanted"] {
        let of_name = |sql: &str| {
            sql.replace("'a'", &format!("'{name}'"))
                .replace("'{a", &format!("'{{{name}"))
        };
        let others = of_name(OTHERS);
        admin.batch_execute("BEGIN").await.unwrap();
        admin.batch_execute(NEIGHBOURS).await.unwrap();
        let before = ask(&admin, &others).await;
        for (number, (sql, expected)) in steps.iter().enumerate() {
            let sql = of_name(sql);
            let answer = ask(&admin, &sql).await;
            assert_eq!(answer.as_deref(), *expected, "step {number}: {sql}");
            assert_eq!(ask(&admin, &others).await, before, "step {number}: {sql}");
        }
        admin.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn an_attempt_or_a_release_leaves_all_other_names() {
    run(&[
        // A name without a row, and one with it.
        (&acquire("s", "o", 10), Some("granted")),
        (BUSY, Some("false")),
        (&release("s", "o"), Some("true")),
        (BUSY, Some("false")),
        (&acquire("s", "o", 10), Some("granted")),
        // A waiter, who gets the lock.
        (&acquire("t", "p", 10), Some("queued")),
        (
            "SELECT portalock.acquire('u', 0, 'lock', 'a', 'q', 10, 10, false, '{}')::json->>'outcome'",
            Some("refused"),
        ),
        (CLAIMS, Some("o p")),
        (&release("s", "o"), Some("true")),
        (CLAIMS, Some("p")),
        (BUSY, Some("false")),
        (
            "SELECT portalock.break_claim('lock', 'a', 'p', '{}')::text",
            Some("3600000"),
        ),
        (BUSY, Some("true")),
        (&release("t", "p"), Some("true")),
        (BUSY, Some("false")),
        (MARKS, Some("0")),
        // Shares, and a waiter between them who gives up.
        (&acquire("s", "q", 1), Some("granted")),
        (&acquire("t", "r", 1), Some("granted")),
        (&acquire("u", "w", 10), Some("queued")),
        (&acquire("u", "v", 1), Some("queued")),
        (&release("s", "q"), Some("true")),
        (CLAIMS, Some("r w v")),
        // A release of another session, and ones that name another lock.
        (&release("s", "w"), Some("false")),
        (
            "SELECT portalock.release('u', 'lock', 'c', 'w')::text",
            Some("false"),
        ),
        (
            "SELECT portalock.release('u', 'semaphore', 'a', 'w')::text",
            Some("false"),
        ),
        (CLAIMS, Some("r w v")),
        (&release("u", "w"), Some("false")),
        (CLAIMS, Some("r v")),
        (&release("t", "r"), Some("true")),
        (&release("u", "v"), Some("true")),
        (BUSY, Some("false")),
        // An observer.
        (
            "SELECT portalock.observe('s', 1, 'lock', 'a')::text",
            Some("true"),
        ),
        (&acquire("s", "o", 10), Some("granted")),
        (BUSY, Some("true")),
        ("SELECT portalock.stop_observing('s', 1)::text", Some("")),
        (&release("s", "o"), Some("true")),
        (BUSY, Some("false")),
    ])
    .await;
}

#[tokio::test]
async fn the_end_of_a_hold_or_of_a_session_leaves_all_other_names() {
    run(&[
        // Dead holders, of the whole and of a part, and a dead waiter.
        (&acquire("x", "o", 10), Some("granted")),
        (EXPIRE, Some("expired")),
        (&acquire("s", "p", 10), Some("granted")),
        (CLAIMS, Some("p")),
        (&release("s", "p"), Some("true")),
        (&acquire("t", "p", 10), Some("granted")),
        (
            "SELECT session FROM portalock.claims WHERE owner = 'p'",
            Some("t"),
        ),
        (&acquire("s", "q", 10), Some("queued")),
        (
            "SELECT again_in IS NOT NULL || ' ' || owners[1] FROM portalock.look('s', '{q}', '{lock}', '{a}')",
            Some("true q"),
        ),
        (
            "SELECT string_agg(state || ' ' || coalesce(owner, ''), ', ') FROM portalock.inspect('lock', 'a')",
            Some("last , holds p, waits q"),
        ),
        (
            "SELECT (array_agg(n ORDER BY n) = ARRAY(SELECT unnest('{a,b}'::text[]) ORDER BY 1))::text FROM portalock.names() n",
            Some("true"),
        ),
        (
            "SELECT portalock.break_claim('lock', 'a', 'p', '{}')::text",
            Some("3600000"),
        ),
        (
            "SELECT portalock.evict('lock', 'a', 'p')::text",
            Some("true"),
        ),
        (MARKS, Some("0")),
        (CLAIMS, Some("q")),
        // The end of a session.
        (&acquire("u", "r", 10), Some("queued")),
        ("SELECT portalock.end_session('s')::text", Some("")),
        (
            "SELECT portalock.bury('s', '{lock}', '{a}')::text",
            Some(""),
        ),
        (CLAIMS, Some("r")),
        (&release("u", "r"), Some("true")),
        (CLAIMS, None),
    ])
    .await;
}
