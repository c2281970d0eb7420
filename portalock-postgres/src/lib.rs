//! Locks and semaphores in PostgreSQL, for [portalock](portalock_core): one statement per operation, first come, first
//! served, with fencing tokens, and released when their client is gone.
//!
//! ```
//! use portalock_core::Lock;
//! use portalock_postgres::{PostgresBackend, PostgresSettings, migrate};
//!
//! # #[cfg(not(unix))] fn main() {}
//! # #[cfg(unix)]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let server = portalock_testkit::servers::PostgresServer::start()?;
//! # let url = server.url();
//! let settings = PostgresSettings::from_url(&url)?; // "postgres://worker:password@db.example/app"
//! migrate(&settings).await?; // Once for the database, or at each start.
//!
//! let postgres = PostgresBackend::with_settings(settings).await?;
//! let guard = Lock::new(postgres, "nightly-report")?.acquire().await?;
//! println!("mine, by token {:?}", guard.token());
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! It needs a tokio runtime with I/O and time: `Builder::enable_all`, as `#[tokio::main]` has it. In a program without async use
//! [`blocking`](portalock_core::blocking), which needs no runtime.
//!
//! # How it works
//!
//! Names, claims and sessions are rows in the schema `portalock`, and functions of that schema change them. An
//! acquisition or a release is one call of one function: one statement, one round trip, one commit. The function holds
//! the advisory lock of its name until the statement ends. The row of a name contains its last token and its holder, so
//! a lock that nobody else wants is one changed row. A contended request gets a place in the queue. A release grants to
//! the next waiter and notifies that waiter's session with `NOTIFY`. Nobody polls. Only a grant to a waiter sends a
//! notification, because `NOTIFY` makes commits wait for each other and wakes all connections of the database that
//! listen.
//!
//! A backend has one *session*: a row with a secret id and a lease, which it renews every third of the lease. Renewals
//! and notifications use a connection on the library's own thread. Statements use one connection for each runtime that
//! uses the backend. The session is the row, not the connection: while the lease lasts, no lock and no place is lost by
//! a killed server process, a reset, or a restart of the server.
//!
//! A crashed client's locks pass on when its lease ends ([`lease_time`](PostgresSettings::with_lease_time), 10 s). The
//! waiting sessions know that time, and check then. With
//! [`release_without_notice`](PostgresSettings::with_release_without_notice) they pass on at once, because a session then
//! ends with its connection. The price: every connection reset loses the session's locks.
//!
//! Exclusive locks, shared locks and semaphores are one mechanism: weights under a capacity.
//!
//! # Setting it up
//!
//! [`migrate`] creates or upgrades the schema; many processes may call it at once. It needs a user who may create
//! schemas, and for an upgrade the user who owns this one. If you run migrations with a tool of your own, use the SQL of [`schema_sql`]. A program that only uses
//! locks needs this privilege, also after an upgrade:
//!
//! ```sql
//! GRANT USAGE ON SCHEMA portalock TO worker;
//! ```
//!
//! Such a program may also [break](portalock_core::Lock::break_holder) locks. To restrict this to some users, revoke
//! `EXECUTE` on `portalock.break_claim(text, text, text, text)` and `portalock.evict(text, text, text)` from `PUBLIC`,
//! and grant it to those users.
//!
//! The functions run with the rights of the schema's owner, and no other user can access the tables. A client checks
//! the version of the schema when it connects, and refuses another version.
//!
//! A session's id must stay secret, because a user of the schema who knows it can act as that session. The crate never logs it, but
//! `tokio_postgres` logs the parameters of statements at level `DEBUG`: leave that level of that target off in production.
//!
//! # A lock as a condition of your own transaction
//!
//! With a [`Fence`] the database itself refuses the transaction of a worker that has lost its lock without knowing it:
//!
//! ```
//! # #[cfg(not(unix))] fn main() {}
//! # #[cfg(unix)]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use portalock_core::Lock;
//! # use portalock_postgres::{PostgresBackend, PostgresSettings, migrate, tokio_postgres};
//! # let server = portalock_testkit::servers::PostgresServer::start()?;
//! # let url = server.url();
//! # migrate(&PostgresSettings::from_url(&url)?).await?;
//! # let (mut client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
//! # tokio::spawn(connection);
//! # client.batch_execute("CREATE TABLE report (line text)").await?;
//! use portalock_postgres::Fence;
//!
//! let postgres = PostgresBackend::connect(&url).await?;
//! let guard = Lock::new(postgres.clone(), "report")?.acquire().await?;
//! let fence = postgres.fence(guard.owner()).ok_or("the lock is not held")?;
//!
//! let write = client.transaction().await?;
//! write.query(Fence::STATEMENT, &[&fence.owner, &fence.token]).await?;
//! write.execute("INSERT INTO report VALUES ('done')", &[]).await?;
//! // However long this worker was stopped: it can't commit once another could hold the lock.
//! write.commit().await?;
//!
//! guard.release().await?;
//! let late = client.query(Fence::STATEMENT, &[&fence.owner, &fence.token]).await;
//! assert!(late.is_err_and(|error| Fence::refused(&error)));
//! # Ok(()) }
//! ```
//!
//! # Poolers
//!
//! A pooler that uses another server process for each transaction (PgBouncer's `pool_mode = transaction`) or for each
//! statement does not support `LISTEN`. A session detects this at its start and fails with
//! [`Unsupported`](portalock_core::BackendErrorKind::Unsupported). Use the server's own address for locks, or a pool in
//! session mode. For any number of locks, a process needs a connection for its session, one for each runtime that uses locks, and
//! up to two for the library's own threads, which release dropped guards and repeat releases that have failed. A pool in session mode,
//! or the connection limit of a role, must be large enough for all of them: without a connection such a lock stays held.
//!
//! # Several servers
//!
//! A URL may name several hosts, such as `postgres://db-1,db-2/app`. A session connects to the first host that accepts writes and confirms them,
//! and the other connections of its client go to the same host. After a standby was promoted, sessions continue there, with
//! all locks that were replicated to it.
//!
//! # What it takes
//!
//! - PostgreSQL 13 or later, tested with 13 to 18; a database in the encoding UTF8. The feature `tls` adds connections
//!   over TLS, by rustls.
//! - Durable commits: if the default of a connection is `synchronous_commit = off`, it is set to `on`.
//! - A host whose clock doesn't jump. `docs/guarantees.md` lists which faults break which guarantee.
//!
//! # What it costs
//!
//! An uncontended acquisition changes one row, and so does its release, with one commit each and no change of an index.
//! A hand-over is the releaser's statement and one message, for which the server wakes the process of each session in the
//! database: with 64 sessions that takes longer than the rest. A session costs a statement per third of its lease, and another one while it
//! holds or waits. Waiters cost nothing else, except behind a session with
//! [`release_without_notice`](PostgresSettings::with_release_without_notice): there each waiting session sends five small
//! statements a second. A request for a shared lock reads all its holders.
//!
//! An [observer](portalock_core::Observer) of an election is a row, and each change of the name's holder is a message
//! to the observer's session.
//!
//! Rows change often, so the tables need autovacuum, like any queue, and are configured to be vacuumed often. A transaction that stays open for hours anywhere in the database prevents the removal of dead rows,
//! and busy names get slower until it ends.
//!
//! A released lock leaves the row of its name, for an hour. Sessions remove old rows once an hour, with `portalock.clean`, which
//! reads all these rows.
//!
//! # Features
//!
//! - `tls`: connections over TLS by rustls, if `sslmode` or `sslrootcert` in the URL asks for it.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod backend;
mod breaking;
mod client;
mod config;
mod connection;
mod dial;
mod error;
mod fence;
mod keys;
mod look;
mod observe;
mod queue;
mod record;
mod route;
mod schema;
mod semaphore;
mod session;
mod tls;
mod url;

pub use backend::PostgresBackend;
pub use config::PostgresSettings;
pub use fence::Fence;
pub use schema::{migrate, schema_sql};

/// The Postgres client that this crate uses.
pub use tokio_postgres;
