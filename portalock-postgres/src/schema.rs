//! The schema: tables and functions in the database, and their migration.

use std::{sync::Arc, time::Duration};

use portalock_core::{BackendError, session};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Error, error::SqlState};

use crate::{
    PostgresSettings,
    connection::{Connection, drive},
    dial::{Dialled, dial},
    error::{failed, timed_out, wrong_version},
    route::Route,
};

/// The version that this crate works with, which the function `portalock.version` returns.
pub(crate) const VERSION: i32 = 5;

/// How long a migration may take, including the wait for another one.
const WITHIN: Duration = Duration::from_secs(60);

/// How long a migration may pause between two requests, while others wait for it. Then the server ends it: its machine may be gone.
/// The time in which the last request arrives counts too, and it is long. No table is locked then.
const PAUSE_WITHIN: Duration = Duration::from_secs(15);

/// How long a migration waits for a table before it lets go of all tables and tries again. Meanwhile it blocks all clients,
/// also the renewals of their leases. It must be less than the server's `deadlock_timeout`, because a client that has read
/// one table and waits for the next one could be in a deadlock with the migration.
const TABLE_WITHIN: Duration = Duration::from_millis(200);
/// How long the clients then work undisturbed.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

const MIGRATING: &str = "migrate the schema portalock";

/// The step from each version to the next: each table is changed once.
const STEPS: [&str; 5] = [
    include_str!("sql/1_tables.sql"),
    include_str!("sql/2_operators.sql"),
    include_str!("sql/3_connections.sql"),
    include_str!("sql/4_names.sql"),
    include_str!("sql/5_holds.sql"),
];

/// The functions of every version, in their latest form: each upgrade replaces them.
const FUNCTIONS: [&str; 7] = [
    include_str!("sql/rights.sql"),
    include_str!("sql/queue.sql"),
    include_str!("sql/operations.sql"),
    include_str!("sql/sessions.sql"),
    include_str!("sql/fence.sql"),
    include_str!("sql/breaking.sql"),
    include_str!("sql/observing.sql"),
];

/// Creates the schema `portalock`, or upgrades it from an earlier version. If the schema is up to date, this does
/// nothing and waits for nobody, so a program can call it at each start. If many processes call it at once, one of them does the work, in
/// one transaction, and the others wait for it. An upgrade while clients are at work makes them wait for a moment. It has
/// to wait for each open transaction that has run a [`Fence`](crate::Fence), and blocks no client meanwhile. What blocks clients is one
/// request to the server, so it doesn't take longer if this process is stopped or cut off.
///
/// It needs a user who may create a schema in the database; an upgrade needs the user who owns the schema. Programs that only use locks need fewer privileges: `USAGE`
/// on the schema. The crate's front page has an example.
///
/// # Errors
///
/// [`BackendError`] if the server can't be reached or refuses the user; `Misconfigured` if the schema's version is
/// later than this crate's.
///
/// # Cancel safety
///
/// Safe: once polled, it goes on, on the library's own thread, and either everything has changed or nothing.
pub async fn migrate(settings: &PostgresSettings) -> Result<(), BackendError> {
    // A caller may not poll this for a while, and others wait for it.
    let settings = settings.clone();
    session::run(async move { connect_and_run(&settings).await }).await?
}

async fn connect_and_run(settings: &PostgresSettings) -> Result<(), BackendError> {
    let order = Arc::new(Route::default()).order(settings.servers.len());
    let (
        _,
        Dialled {
            client, messages, ..
        },
    ) = timeout(settings.connect_timeout, dial(settings, &order))
        .await
        .unwrap_or_else(|_| Err(timed_out(MIGRATING)))?;
    // Dropping the connection rolls back uncommitted work.
    let work = async {
        tokio::select! {
            biased;
            done = run(&client) => done,
            () = drive(messages, Box::new(|_| {}), None) => {
                Err(timed_out(MIGRATING))
            }
        }
    };
    timeout(WITHIN, work)
        .await
        .unwrap_or_else(|_| Err(timed_out(MIGRATING)))
}

/// The SQL that [`migrate`] runs in an empty database, for users who run migrations with a tool of their own. Run it in
/// one transaction. If clients are at work, send it together with the `COMMIT` as one request: until then no client can renew its lease.
///
/// It consists of the numbered files of `src/sql`, in order, followed by the other files, with `rights.sql` first. For an
/// upgrade, run the numbered files that are new, then all the other files again.
pub fn schema_sql() -> String {
    [STEPS.as_slice(), FUNCTIONS.as_slice()].concat().join("\n")
}

async fn run(client: &Client) -> Result<(), BackendError> {
    let migrating = |error| failed(MIGRATING, error);
    let mut found = present(client).await.map_err(migrating)?;
    while found < VERSION {
        match upgrade(client).await {
            Ok(version) => found = version,
            Err(error) if is_in_the_way(&error) => {
                client.batch_execute("ROLLBACK").await.map_err(migrating)?;
                sleep(AGAIN_AFTER).await;
            }
            Err(error) => return Err(migrating(error)),
        }
    }
    if found > VERSION {
        return Err(wrong_version(found, VERSION));
    }
    Ok(())
}

/// Whether another transaction was in the way.
fn is_in_the_way(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ]
        .contains(code)
    })
}

/// Fails if the schema belongs to another user. An upgrade would run triggers of that user with the rights of this one, who may be
/// a superuser. And the functions of that user would have no rights to the new tables.
const OWNED: &str = "DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'portalock' AND pg_get_userbyid(nspowner) <> current_user) THEN
        RAISE EXCEPTION 'the schema portalock belongs to another user: migrate as its owner' USING ERRCODE = 'insufficient_privilege';
    END IF;
END $$";

/// Upgrades the schema in one transaction. Returns the version that it has then.
async fn upgrade(client: &Client) -> Result<i32, Error> {
    let pause_within = PAUSE_WITHIN.as_millis();
    client
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
             SET LOCAL idle_in_transaction_session_timeout = {pause_within};
             SET LOCAL client_min_messages = warning;
             -- This user may be a superuser, and others may create functions in the schema `public`.
             SET LOCAL search_path = pg_catalog;
             SET LOCAL statement_timeout = 0;
             SET LOCAL lock_timeout = 0;
             -- Since version 17.
             SELECT set_config('transaction_timeout', '0', true) WHERE current_setting('transaction_timeout', true) IS NOT NULL;
             SELECT pg_advisory_xact_lock(hashtextextended('portalock.migrate', 1919249516));"
        ))
        .await?;
    let found = present(client).await?;
    if found >= VERSION {
        client.batch_execute("COMMIT").await?;
        return Ok(found);
    }
    let done = usize::try_from(found).unwrap_or(0);
    let steps: Vec<&str> = STEPS.into_iter().skip(done).chain(FUNCTIONS).collect();
    // One request: from the first lock of a table to the commit, which frees it, the server waits for nothing from here.
    client
        .batch_execute(&format!(
            "SET LOCAL lock_timeout = {};\n{OWNED};\n{};\nCOMMIT",
            TABLE_WITHIN.as_millis(),
            steps.join("\n"),
        ))
        .await?;
    Ok(VERSION)
}

/// The version of the existing schema; 0 if there is none. Runs no function of the schema, whose owner may be anybody, and none of the
/// user's search path.
pub(crate) async fn present(client: &Client) -> Result<i32, Error> {
    let version = client
        .query_opt(
            "SELECT pg_catalog.substring(prosrc, '[0-9]+')::pg_catalog.int4 FROM pg_catalog.pg_proc
             WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regprocedure('portalock.version()')::pg_catalog.oid",
            &[],
        )
        .await?;
    version.map_or(Ok(0), |row| row.try_get(0))
}

/// The version of the existing schema, as read by a program that uses locks.
pub(crate) async fn version(connection: &Connection) -> Result<i32, Error> {
    let rows = connection.query("SELECT portalock.version()", &[]).await?;
    rows.first().map_or(Ok(0), |row| row.try_get(0))
}
