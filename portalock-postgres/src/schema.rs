//! The schema: tables and functions in the database, and their migration.

use std::time::Duration;

use portalock_core::BackendError;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Error, error::SqlState};

use crate::{
    PostgresSettings,
    connection::{Connection, drive},
    dial::{Dialled, dial},
    error::{failed, timed_out, wrong_version},
};

/// The version that this crate works with, which the function `portalock.version` returns.
pub(crate) const VERSION: i32 = 4;

/// How long a migration may take, including the wait for another one.
const WITHIN: Duration = Duration::from_secs(60);

/// How long a migration waits for a table before it lets go of all tables and tries again. Meanwhile it blocks all clients,
/// also the renewals of their leases. It must be less than the server's `deadlock_timeout`, because a client that has read
/// one table and waits for the next one could be in a deadlock with the migration.
const TABLE_WITHIN: Duration = Duration::from_millis(200);
/// How long the clients then work undisturbed.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

const MIGRATING: &str = "migrate the schema portalock";

/// The step from each version to the next: each table is changed once.
const STEPS: [&str; 4] = [
    include_str!("sql/1_tables.sql"),
    include_str!("sql/2_operators.sql"),
    include_str!("sql/3_connections.sql"),
    include_str!("sql/4_names.sql"),
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
/// nothing, so a program can call it at each start. If many processes call it at once, one of them does the work, in
/// one transaction, and the others wait for it. An upgrade while clients are at work makes them wait for a moment. It has
/// to wait for each open transaction that has run a [`Fence`](crate::Fence), and blocks no client meanwhile.
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
/// Safe: either everything has changed or nothing.
pub async fn migrate(settings: &PostgresSettings) -> Result<(), BackendError> {
    let order: Vec<usize> = (0..settings.servers.len()).collect();
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
/// one transaction.
///
/// It consists of the numbered files of `src/sql`, in order, followed by the other files, with `rights.sql` first. For an
/// upgrade, run the numbered files that are new, then all the other files again.
pub fn schema_sql() -> String {
    [STEPS.as_slice(), FUNCTIONS.as_slice()].concat().join("\n")
}

async fn run(client: &Client) -> Result<(), BackendError> {
    let migrating = |error| failed(MIGRATING, error);
    loop {
        match upgrade(client).await {
            Ok(found) if found > VERSION => return Err(wrong_version(found, VERSION)),
            Ok(_) => return Ok(()),
            Err(error) if is_in_the_way(&error) => {
                client.batch_execute("ROLLBACK").await.map_err(migrating)?;
                sleep(AGAIN_AFTER).await;
            }
            Err(error) => return Err(migrating(error)),
        }
    }
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

/// Upgrades the schema in one transaction. Returns the version that it had.
async fn upgrade(client: &Client) -> Result<i32, Error> {
    client
        .batch_execute(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
             SET LOCAL client_min_messages = warning;
             -- This user may be a superuser, and others may create functions in the schema `public`.
             SET LOCAL search_path = pg_catalog;
             SET LOCAL statement_timeout = 0;
             SET LOCAL lock_timeout = 0;
             -- Since version 17.
             SELECT set_config('transaction_timeout', '0', true) WHERE current_setting('transaction_timeout', true) IS NOT NULL;
             SELECT pg_advisory_xact_lock(hashtextextended('portalock.migrate', 1919249516));",
        )
        .await?;
    let found = present(client).await?;
    if found < VERSION {
        let table_within = TABLE_WITHIN.as_millis();
        client
            .batch_execute(&format!("SET LOCAL lock_timeout = {table_within}"))
            .await?;
        client.batch_execute(OWNED).await?;
        let done = usize::try_from(found).unwrap_or(0);
        for sql in STEPS.iter().skip(done).chain(&FUNCTIONS) {
            client.batch_execute(sql).await?;
        }
    }
    client.batch_execute("COMMIT").await?;
    Ok(found)
}

/// The version of the existing schema; 0 if there is none. Runs no function of the schema, whose owner may be anybody.
pub(crate) async fn present(client: &Client) -> Result<i32, Error> {
    let version = client
        .query_opt(
            "SELECT substring(prosrc FROM '[0-9]+')::int4 FROM pg_proc WHERE oid = to_regprocedure('portalock.version()')",
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
