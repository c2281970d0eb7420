//! Situations that no client can create at will: requests that arrive late, and wrong clocks.

use portalock_postgres::tokio_postgres::{Client, error::SqlState};

use crate::support::Server;

pub(crate) async fn acquire(
    admin: &Client,
    session: &str,
    epoch: i64,
    owner: &str,
) -> (String, Option<i64>) {
    let row = admin
        .query_one(
            "SELECT answer->>'outcome', (answer->>'token')::bigint
             FROM (SELECT portalock.acquire($1, $2, 'lock', 'a', $3, 10, 10, true, '{}')::json) a (answer)",
            &[&session, &epoch, &owner],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1))
}

async fn release(admin: &Client, session: &str, owner: &str) {
    let statement = "SELECT portalock.release($1, 'lock', 'a', $2)";
    let row = admin
        .query_one(statement, &[&session, &owner])
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0));
}

pub(crate) async fn open(admin: &Client, session: &str) {
    admin
        .query(
            "SELECT portalock.open_session($1, 60000, '{}', false)",
            &[&session],
        )
        .await
        .unwrap();
}

/// A server with the session `s`.
pub(crate) async fn with_session() -> (Server, Client) {
    let server = Server::start().await;
    let admin = server.admin().await;
    open(&admin, "s").await;
    (server, admin)
}

/// A request that its own release has overtaken has no effect.
#[tokio::test]
async fn a_request_that_comes_after_its_release_is_stale() {
    let (server, admin) = with_session().await;
    let released = admin
        .query_one(
            "SELECT * FROM portalock.release_for_good('s', 'lock', 'a', 'o')",
            &[],
        )
        .await
        .unwrap();
    assert!(!released.get::<_, bool>("freed"));
    assert_eq!(released.get::<_, Option<i64>>("epoch"), Some(1));
    assert_eq!(
        acquire(&admin, "s", 0, "o").await,
        ("stale".into(), Some(1))
    );
    assert_eq!(acquire(&admin, "s", 1, "p").await.0, "granted");
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.claims").await,
        1
    );
}

/// A session can't release a claim of another session, even with the name of the claim's owner.
#[tokio::test]
async fn a_release_needs_the_session() {
    let (_server, admin) = with_session().await;
    open(&admin, "t").await;
    acquire(&admin, "s", 0, "o").await;
    let released = admin
        .query_one("SELECT portalock.release('t', 'lock', 'a', 'o')", &[])
        .await
        .unwrap();
    assert!(!released.get::<_, bool>(0));
    assert_eq!(acquire(&admin, "t", 0, "p").await.0, "queued");
}

#[tokio::test]
async fn tokens_grow_though_the_clock_was_set_back() {
    let (server, admin) = with_session().await;
    // The last token came from a clock that was a year ahead.
    admin
        .batch_execute(
            "INSERT INTO portalock.names VALUES ('lock', 'a',
                (extract(epoch FROM clock_timestamp() + interval '1 year') * 1000000)::bigint)",
        )
        .await
        .unwrap();
    let last = server.number("SELECT token FROM portalock.names").await;
    assert_eq!(acquire(&admin, "s", 0, "o").await.1, Some(last + 1));
    // The row of the name now tells that nobody waits: that is the quick way.
    release(&admin, "s", "o").await;
    assert_eq!(acquire(&admin, "s", 0, "p").await.1, Some(last + 2));
}

/// A name that was held before and is free is granted by a change of its row. That also needs a living session and its epoch.
#[tokio::test]
async fn a_free_name_needs_a_living_session() {
    let (server, admin) = with_session().await;
    acquire(&admin, "s", 0, "o").await;
    release(&admin, "s", "o").await;
    let free = "SELECT count(*) FROM portalock.names WHERE owner IS NULL AND NOT busy";
    assert_eq!(server.number(free).await, 1);

    server.run("UPDATE portalock.sessions SET epoch = 1").await;
    assert_eq!(
        acquire(&admin, "s", 0, "p").await,
        ("stale".into(), Some(1))
    );
    server
        .run("UPDATE portalock.sessions SET expires = now()")
        .await;
    assert_eq!(acquire(&admin, "s", 1, "p").await.0, "ended");
    assert_eq!(server.number(free).await, 1);
}

/// Whoever waits, shares, observes or breaks makes a name busy: a release must do more than change the row of the name. After
/// the last of them has gone, it is not busy.
#[tokio::test]
async fn a_name_is_busy_until_the_last_has_gone() {
    let (server, admin) = with_session().await;
    let busy = async || {
        server
            .number("SELECT busy::int::bigint FROM portalock.names")
            .await
            == 1
    };

    acquire(&admin, "s", 0, "o").await;
    assert!(!busy().await);
    acquire(&admin, "s", 0, "p").await;
    assert!(busy().await);
    release(&admin, "s", "o").await;
    assert!(!busy().await, "the waiter holds");

    server
        .run("SELECT portalock.break_claim('lock', 'a', 'p', '{}')")
        .await;
    assert!(busy().await);
    release(&admin, "s", "p").await;
    assert_eq!(
        server.number("SELECT count(*) FROM portalock.marks").await,
        0
    );
    assert!(!busy().await);

    server
        .run("SELECT portalock.acquire('s', 0, 'lock', 'a', 'q', 1, 10, true, '{}')")
        .await;
    assert!(busy().await);
    assert_eq!(acquire(&admin, "s", 0, "w").await.0, "queued");
    release(&admin, "s", "q").await;
    release(&admin, "s", "w").await;
    assert!(!busy().await);

    server
        .run("SELECT portalock.observe('s', 1, 'lock', 'a')")
        .await;
    assert!(busy().await);
    acquire(&admin, "s", 0, "x").await;
    assert!(busy().await);
    server.run("SELECT portalock.stop_observing('s', 1)").await;
    release(&admin, "s", "x").await;
    assert!(!busy().await);
}

/// A session that was found expired stays dead, even if the clock is set back afterwards. A session that is being
/// renewed at that moment is not touched.
#[tokio::test]
async fn a_session_is_dead_once_and_for_all() {
    let (server, admin) = with_session().await;
    open(&admin, "t").await;
    acquire(&admin, "s", 0, "o").await;
    admin
        .batch_execute(
            "UPDATE portalock.sessions SET expires = now() - interval '1 second' WHERE id = 's'",
        )
        .await
        .unwrap();
    // Even if no session has acted on it yet: otherwise a late renewal would give it a whole lease.
    let late = admin
        .query_one("SELECT * FROM portalock.renew('s')", &[])
        .await
        .unwrap();
    assert!(!late.get::<_, bool>("alive"));
    let renewing = server.admin().await;
    // Like a renewal that has started in time and is not yet committed.
    renewing
        .batch_execute(
            "BEGIN; UPDATE portalock.sessions SET expires = now() + lease WHERE id = 's'",
        )
        .await
        .unwrap();
    assert_eq!(acquire(&admin, "t", 0, "p").await.0, "queued");
    renewing.batch_execute("ROLLBACK").await.unwrap();

    assert_eq!(acquire(&admin, "t", 0, "p").await.0, "granted");
    let row = admin
        .query_one("SELECT * FROM portalock.renew('s')", &[])
        .await
        .unwrap();
    assert!(!row.get::<_, bool>("alive"));
    assert_eq!(acquire(&admin, "s", 0, "o").await.0, "ended");
}

/// A writer that died while it waited doesn't block the readers behind it.
#[tokio::test]
async fn a_dead_waiter_is_passed_over() {
    let server = Server::start().await;
    let admin = server.admin().await;
    let shared = async |session: &str, owner: &str| -> String {
        let statement =
            "SELECT portalock.acquire($1, 0, 'lock', 'a', $2, 1, 10, true, '{}')::json->>'outcome'";
        let row = admin.query_one(statement, &[&session, &owner]).await;
        row.unwrap().get(0)
    };
    for session in ["s", "t", "u"] {
        open(&admin, session).await;
    }
    assert_eq!(shared("s", "reader").await, "granted");
    assert_eq!(acquire(&admin, "t", 0, "writer").await.0, "queued");
    assert_eq!(shared("u", "late reader").await, "queued");
    admin
        .batch_execute("UPDATE portalock.sessions SET expires = now() WHERE id = 't'")
        .await
        .unwrap();
    assert_eq!(shared("u", "late reader").await, "granted");
}

/// A session that was found dead at one name is dead at every other name: the waiters there make the server grant.
#[tokio::test]
async fn a_look_serves_those_who_wait_behind_the_dead() {
    let (_server, admin) = with_session().await;
    open(&admin, "t").await;
    acquire(&admin, "s", 0, "o").await;
    acquire(&admin, "t", 0, "p").await;
    let look = async || -> (Option<Vec<Option<i64>>>, Option<i64>) {
        let row = admin
            .query_one(
                "SELECT * FROM portalock.look('t', '{p}', '{lock}', '{a}')",
                &[],
            )
            .await
            .unwrap();
        (row.get("tokens"), row.get("again_in"))
    };
    let (tokens, again_in) = look().await;
    assert_eq!(tokens, Some(vec![None]));
    let again_in = again_in.unwrap();
    assert!((1..=60_000).contains(&again_in), "{again_in} ms");
    admin
        .batch_execute("DELETE FROM portalock.sessions WHERE id = 's'")
        .await
        .unwrap();
    assert!(look().await.0.unwrap()[0].is_some());
}

/// A holder's row that was deleted by a person blocks nobody: the next check, or the next request, serves the queue.
#[tokio::test]
async fn a_queue_that_nobody_served_is_served() {
    let server = Server::start().await;
    let admin = server.admin().await;
    for session in ["s", "t", "u"] {
        open(&admin, session).await;
    }
    for looks in [true, false] {
        admin
            .batch_execute("DELETE FROM portalock.queue; UPDATE portalock.names SET owner = NULL")
            .await
            .unwrap();
        acquire(&admin, "s", 0, "o").await;
        assert_eq!(acquire(&admin, "t", 0, "p").await.0, "queued");
        admin
            .batch_execute("UPDATE portalock.names SET owner = NULL WHERE owner = 'o'")
            .await
            .unwrap();
        if looks {
            admin
                .query("SELECT portalock.look('t', '{}', '{}', '{}')", &[])
                .await
                .unwrap();
        } else {
            assert_eq!(acquire(&admin, "u", 0, "q").await.0, "queued");
        }
        // Not by an attempt of the waiter, which serves the queue itself.
        let holds = "SELECT count(*) FROM portalock.claims WHERE owner = 'p' AND token IS NOT NULL";
        assert_eq!(server.number(holds).await, 1);
    }
}

/// A request that doesn't wait also finds a dead holder.
#[tokio::test]
async fn a_try_passes_over_a_dead_holder() {
    let (_server, admin) = with_session().await;
    open(&admin, "t").await;
    acquire(&admin, "s", 0, "o").await;
    let tries = async || -> String {
        let statement = "SELECT portalock.acquire('t', 0, 'lock', 'a', 'p', 10, 10, false, '{}')::json->>'outcome'";
        admin.query_one(statement, &[]).await.unwrap().get(0)
    };
    assert_eq!(tries().await, "refused");
    admin
        .batch_execute("UPDATE portalock.sessions SET expires = now() WHERE id = 's'")
        .await
        .unwrap();
    assert_eq!(tries().await, "granted");
}

/// A weight that no client asks for keeps nobody from waiting, and from being served when its session is dead.
#[tokio::test]
async fn the_largest_weight_is_one_like_others() {
    let (_server, admin) = with_session().await;
    open(&admin, "t").await;
    admin
        .batch_execute(&format!(
            "SELECT portalock.acquire('s', 0, 'lock', 'a', 'o', {0}, {0}, true, '{{}}')",
            i64::MAX
        ))
        .await
        .unwrap();
    assert_eq!(acquire(&admin, "t", 0, "p").await.0, "queued");
    assert_eq!(acquire(&admin, "t", 0, "q").await.0, "queued");
    admin
        .batch_execute(
            "DELETE FROM portalock.sessions WHERE id = 's'; SELECT portalock.look('t', '{}', '{}', '{}')",
        )
        .await
        .unwrap();
    assert_eq!(acquire(&admin, "t", 0, "p").await.0, "granted");
}

/// A request that no client makes does nothing: it could be granted beside an exclusive holder.
#[tokio::test]
async fn an_odd_request_does_nothing() {
    let (server, admin) = with_session().await;
    // A free name with a row: that is the quick way.
    acquire(&admin, "s", 0, "o").await;
    release(&admin, "s", "o").await;
    for odd in [
        "'lock', 'a', 'p', -1, -1, true, '{}'",
        "'lock', 'a', 'p', 0, 0, true, '{}'",
        "'lock', 'a', 'p', 0, 10, true, '{}'",
        "'lock', 'a', 'p', -5, 10, true, '{}'",
        "'lock', 'a', 'p', 11, 10, true, '{}'",
        "'other', 'a', 'p', 10, 10, true, '{}'",
    ] {
        let asked = format!("SELECT portalock.acquire('s', 0, {odd})");
        let error = admin.query(&asked, &[]).await.expect_err(odd);
        assert_eq!(
            error.code(),
            Some(&SqlState::INVALID_PARAMETER_VALUE),
            "{odd}: {error:?}"
        );
    }
    for odd in [
        "'lock', 'a', 'p', NULL, 10, true, '{}'",
        "'lock', 'a', 'p', 10, NULL, true, '{}'",
        "'lock', 'a', NULL, 10, 10, true, '{}'",
        "'lock', 'a', 'p', 10, 10, true, NULL",
        "'lock', NULL, 'p', 10, 10, true, '{}'",
        "'lock', 'a', 'p', 1, 10, NULL, '{}'",
        "NULL, 'a', 'p', 10, 10, true, '{}'",
    ] {
        let asked = format!("SELECT portalock.acquire('s', 0, {odd})");
        let answer = admin.query_one(&asked, &[]).await.unwrap();
        assert_eq!(answer.get::<_, Option<String>>(0), None, "{odd}");
    }
    let claims = "SELECT count(*) FROM portalock.claims";
    assert_eq!(server.number(claims).await, 0);
}
