//! Statements one after the other, and what each answers.

use portalock_postgres::tokio_postgres::Client;

use crate::support::Server;

/// A server with these sessions, which live for an hour. The semaphore `a` and the lock `b` are held and wanted.
pub(crate) async fn with_sessions() -> (Server, Client) {
    let server = Server::start().await;
    let admin = server.admin().await;
    admin
        .batch_execute(
            "SELECT portalock.open_session(s, 3600000, '{}', false) FROM unnest('{s,t,u,v,x,other}'::text[]) s;
             SELECT portalock.acquire('other', 0, kind, name, 'other-' || owner, 10, 10, true, 'other')
             FROM (VALUES ('semaphore', 'a', '1'), ('semaphore', 'a', '2'), ('lock', 'b', '3'), ('lock', 'b', '4'))
                 t (kind, name, owner)",
        )
        .await
        .unwrap();
    (server, admin)
}

/// The answer to an attempt for this weight of ten. The owner's name describes its holder, too.
pub(crate) fn attempt(session: &str, owner: &str, weight: u8, queues: bool) -> String {
    format!(
        "portalock.acquire('{session}', 0, 'lock', 'a', '{owner}', {weight}, 10, {queues}, '{owner}')::json"
    )
}

/// The outcome, and the holder if there is one in the answer.
pub(crate) fn acquire(session: &str, owner: &str, weight: u8) -> String {
    let attempt = attempt(session, owner, weight, true);
    format!("SELECT concat_ws(' ', a->>'outcome', a->>'who') FROM (SELECT {attempt}) a (a)")
}

pub(crate) fn release(session: &str, owner: &str) -> String {
    format!("SELECT portalock.release('{session}', 'lock', 'a', '{owner}')::text")
}

/// Holders, then waiters; each waiter with a question mark.
pub(crate) const CLAIMS: &str = "SELECT string_agg(owner || CASE WHEN token IS NULL THEN '?' ELSE '' END, ' ' ORDER BY place NULLS FIRST, token)
    FROM portalock.claims WHERE name = 'a' AND kind = 'lock'";
pub(crate) const BUSY: &str =
    "SELECT busy::text FROM portalock.names WHERE name = 'a' AND kind = 'lock'";
pub(crate) const EXPIRE: &str =
    "UPDATE portalock.sessions SET expires = clock_timestamp() WHERE id = 'x' RETURNING 'expired'";

/// Runs statements one after the other, and compares the text that each returns.
pub(crate) async fn run(admin: &Client, steps: &[(&str, &str)]) {
    for (number, (sql, expected)) in steps.iter().enumerate() {
        let row = admin.query_one(*sql, &[]).await.unwrap();
        let answer: Option<&str> = row.get(0);
        assert_eq!(answer.unwrap_or("-"), *expected, "step {number}: {sql}");
    }
}
