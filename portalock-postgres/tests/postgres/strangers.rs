//! What a user who may use locks, and nothing else, can't do to others. The names of claims are no secret: such a user can know
//! the owners of others, and guess the next ones.

use portalock_core::{LockBackend, LockName};
use portalock_postgres::tokio_postgres::{Client, error::SqlState};

use crate::{
    steps::{BUSY, CLAIMS, acquire, release, run, with_sessions},
    support::{Server, connect, until},
};

async fn stranger(server: &Server) -> Client {
    server
        .run("CREATE ROLE stranger LOGIN; GRANT USAGE ON SCHEMA portalock TO stranger")
        .await;
    connect(&server.url_of("stranger")).await
}

async fn refused(client: &Client, sql: &str, code: &SqlState) {
    let error = client.batch_execute(sql).await.unwrap_err();
    assert_eq!(error.code(), Some(code), "{sql}: {error:?}");
}

/// The claims of two sessions have nothing to do with each other, even if their owners have the same name.
#[tokio::test]
async fn an_owner_is_of_one_session() {
    let (server, admin) = with_sessions().await;
    let of = |name: &str, weight: u8| {
        format!(
            "SELECT portalock.acquire('u', 0, 'lock', '{name}', 'p', {weight}, 10, true, '')::json->>'outcome'"
        )
    };
    run(
        &admin,
        &[
            (&acquire("s", "o", 10), "granted"),
            (&acquire("t", "p", 10), "queued o"),
            (&of("c", 10), "granted"),
            (&of("d", 1), "granted"),
            (&acquire("u", "o", 10), "queued o"),
            (&release("u", "o"), "false"),
            (&release("u", "p"), "false"),
            (CLAIMS, "o p?"),
        ],
    )
    .await;
    // One session needs different names.
    let twice = "SELECT portalock.acquire('t', 0, 'lock', 'e', 'p', 1, 10, true, '')";
    refused(&admin, twice, &SqlState::INVALID_PARAMETER_VALUE).await;

    // The mark of a break stays, too.
    let breaks = "SELECT portalock.break_claim('lock', 'a', 'o', 'by')::text";
    let marked = "SELECT string_agg(session || ' ' || owner, ', ') FROM portalock.marks";
    run(
        &admin,
        &[
            (breaks, "3600000"),
            ("SELECT portalock.acquire('u', 0, 'lock', 'c2', 'o', 10, 10, true, '')::json->>'outcome'", "granted"),
            ("SELECT portalock.observe('u', 1, 'lock', 'c2')::text", "true"),
            ("SELECT portalock.release('u', 'lock', 'c2', 'o')::text", "true"),
            (marked, "s o"),
            (&release("s", "o"), "true"),
            (CLAIMS, "p"),
            (marked, "-"),
        ],
    )
    .await;
    drop(server);
}

/// Nor if the other claim comes while the first one is being made. A clean-up makes the first one wait in the middle.
#[tokio::test]
async fn an_owner_is_of_one_session_also_at_the_same_time() {
    for (weight, session) in [(1, "t"), (10, "t"), (1, "u")] {
        let (server, admin) = with_sessions().await;
        let stranger = stranger(&server).await;
        server
            .run("INSERT INTO portalock.names VALUES ('lock', 'old', 1)")
            .await;
        run(&admin, &[(&acquire("s", "o", 10), "granted")]).await;
        stranger
            .batch_execute("BEGIN; SELECT portalock.clean(100)")
            .await
            .unwrap();
        let other = connect(&server.url_of("stranger")).await;
        let claim = tokio::spawn(async move {
            let asks = format!(
                "SELECT portalock.acquire('u', 0, 'lock', 'old', 'p', {weight}, 10, true, '')::json->>'outcome'"
            );
            run(&other, &[(&asks, "granted")]).await;
        });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        until("the stranger waits", async || {
            server.number(waits).await == 1
        })
        .await;
        run(&admin, &[(&acquire(session, "p", 10), "queued o")]).await;
        stranger.batch_execute("COMMIT").await.unwrap();
        claim.await.unwrap();
        run(&admin, &[(CLAIMS, "o p?")]).await;
    }
}

/// A message to a session is sent by whoever changes a claim, so that statement must not fail.
#[tokio::test]
async fn names_that_fit_in_no_message_are_refused() {
    let (server, admin) = with_sessions().await;
    let stranger = stranger(&server).await;
    let invalid = SqlState::INVALID_PARAMETER_VALUE;
    refused(
        &stranger,
        "SELECT portalock.open_session(repeat('s', 60), 60000, '{}', false)",
        &invalid,
    )
    .await;
    run(&admin, &[(&acquire("s", "o", 10), "granted")]).await;
    refused(
        &stranger,
        "SELECT portalock.acquire('u', 0, 'lock', 'a', repeat('p', 9000), 10, 10, true, '')",
        &invalid,
    )
    .await;
    run(&admin, &[(&release("s", "o"), "true")]).await;
    // This one gets no message.
    stranger
        .batch_execute(
            "SELECT portalock.acquire('u', 0, 'lock', 'a', repeat('p', 9000), 10, 10, true, repeat('w', 9000))",
        )
        .await
        .unwrap();
    run(
        &admin,
        &[(
            "SELECT portalock.observe('s', 1, 'lock', 'a')::text",
            "true",
        )],
    )
    .await;
}

/// A name may be in the index of marks only if it is short. No client waits for this holder to notice the break.
#[tokio::test]
async fn a_lock_is_taken_from_an_owner_with_a_very_long_name() {
    let (server, admin) = with_sessions().await;
    let stranger = stranger(&server).await;
    run(
        &admin,
        &[
            (&acquire("s", "o", 10), "granted"),
            (&release("s", "o"), "true"),
        ],
    )
    .await;
    stranger
        .batch_execute(
            "SELECT portalock.acquire('u', 0, 'lock', 'a', '1-2-3.' || string_agg(md5(n::text), ''), 10, 10, true, '')
             FROM generate_series(1, 100) n",
        )
        .await
        .unwrap();
    run(
        &admin,
        &[
            (
                "SELECT portalock.break_claim('lock', 'a', '1-2-3', '{}')::text",
                "0",
            ),
            ("SELECT portalock.evict('lock', 'a', '1-2-3')::text", "true"),
            (CLAIMS, "-"),
        ],
    )
    .await;
}

/// The end of a lease is a time that others compute.
#[tokio::test]
async fn a_lease_of_many_years_is_refused() {
    let (server, _) = with_sessions().await;
    let stranger = stranger(&server).await;
    refused(
        &stranger,
        "SELECT portalock.open_session('z', extract(epoch FROM '294276-12-31'::timestamptz - now())::bigint * 1000, '{}', false)",
        &SqlState::INVALID_PARAMETER_VALUE,
    )
    .await;
}

/// An observer reads the token after the owner. It would take no later term for a new one.
#[tokio::test]
async fn an_owner_is_not_taken_for_a_token() {
    let (server, admin) = with_sessions().await;
    let stranger = stranger(&server).await;
    let owner = r#"1-2-3 9000000000000000000 0 {"host":"forged","pid":1}"#;
    stranger
        .batch_execute(&format!(
            "SELECT portalock.acquire('u', 0, 'lock', 'a', '{owner}', 10, 10, true, '{{\"host\":\"h\",\"pid\":1}}')"
        ))
        .await
        .unwrap();
    let client = server.client().await;
    let mut watch = client
        .watch(&LockName::new("a").unwrap())
        .await
        .unwrap()
        .unwrap();
    let seen = watch.next().await.unwrap().unwrap();
    assert_eq!(&*seen.holder.host, "h");
    let token = "SELECT token FROM portalock.names WHERE name = 'a' AND kind = 'lock'";
    let token: i64 = admin.query_one(token, &[]).await.unwrap().get(0);
    assert_eq!(seen.token.unwrap().get(), token.cast_unsigned());
}

/// A transaction that doesn't see a new waiter must not say that there is none: the next release would not serve it.
#[tokio::test]
async fn a_transaction_that_sees_the_past_changes_no_queue() {
    let (server, admin) = with_sessions().await;
    let stranger = stranger(&server).await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        run(
            &admin,
            &[
                (&acquire("s", "o", 10), "granted"),
                (&acquire("u", "q", 10), "queued o"),
            ],
        )
        .await;
        stranger
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL {level}; SELECT portalock.names()"
            ))
            .await
            .unwrap();
        run(&admin, &[(&acquire("t", "p", 10), "queued o")]).await;
        let left = stranger.batch_execute(&release("u", "q")).await;
        stranger.batch_execute("COMMIT").await.unwrap();
        run(&admin, &[(BUSY, "true")]).await;
        let error = left.unwrap_err();
        assert_eq!(
            error.code(),
            Some(&SqlState::INVALID_TRANSACTION_STATE),
            "{error:?}"
        );
        run(
            &admin,
            &[
                (&release("s", "o"), "true"),
                (&release("u", "q"), "true"),
                (CLAIMS, "p"),
                (&release("t", "p"), "true"),
            ],
        )
        .await;
    }
}

#[test]
fn a_forked_child_is_refused_what_needs_no_session_too() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_server, client) = runtime.block_on(async {
        let server = Server::start().await;
        let client = server.client().await;
        (server, client)
    });
    portalock_testkit::refuses_in_a_child(&client).unwrap();
}
