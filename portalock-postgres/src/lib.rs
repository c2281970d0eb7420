//! Locks and semaphores in Postgres, for [portalock](portalock_core): one statement an operation, first come first served,
//! fenced, gone with their client.
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
//! # How it works
//!
//! Claims, sessions and the last token of each name are rows in a schema of its own, `portalock`; what is done to them are
//! functions there. An acquisition or a release is one call of one function: one statement, one round trip, one commit. It runs
//! under the advisory lock of its name, which lasts as long as the statement. A request that doesn't fit beside the holders gets a
//! place in the queue; a release grants to the next in line, and tells its session by `NOTIFY`. Nobody polls, and only a
//! grant to somebody who waits sends a notification, since `NOTIFY` makes commits wait for each other.
//!
//! A backend has one *session*: a row with a secret id and a lease, renewed every third of its time. Renewals and notifications go
//! over a connection on the library's own thread, statements over one connection for each runtime that uses the backend. The
//! session is its row, not its connection: killed server processes, resets and a restarted server cost nobody a lock or a place
//! as long as the lease lasts.
//!
//! A crash says nothing, so the lease has to end ([`lease_time`](PostgresSettings::with_lease_time), 10 s). The sessions that wait
//! behind it know when that is, and look then. Who can't wait for that chooses
//! [`release_without_notice`](PostgresSettings::with_release_without_notice): then a session ends with its connection, and locks
//! are lost to every reset.
//!
//! Exclusive locks, shared locks and semaphores are one mechanism: weights under a capacity.
//!
//! # Setting it up
//!
//! [`migrate`] creates the schema or upgrades it; many may call it at once. Those who run migrations themselves find the SQL in
//! [`schema_sql`]. It needs a user who may create schemas. A program that only uses locks needs no more than this, also after an
//! upgrade:
//!
//! ```sql
//! GRANT USAGE ON SCHEMA portalock TO worker;
//! ```
//!
//! Such a program may also [break](portalock_core::Lock::break_holder) locks. To keep that to some, revoke `EXECUTE` on
//! `portalock.break_claim(text, text, text, text)` and `portalock.evict(text, text, text)` from `PUBLIC`, and grant it to them.
//!
//! The functions run with the rights of the schema's owner; the tables are for nobody else. A client asks for the schema's version
//! when it connects and refuses another one's.
//!
//! # A lock as a condition of your own transaction
//!
//! With a [`Fence`] the database itself refuses the transaction of a worker that lost its lock without knowing:
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
//! A pooler that gives each transaction another server process (PgBouncer's `pool_mode = transaction`) can't carry `LISTEN`: it is
//! found out when a session starts, and refused as [`Unsupported`](portalock_core::BackendErrorKind::Unsupported). Give the
//! locks the server's own address beside it, or a pool in session mode. A process needs one connection, and one for each runtime
//! that uses locks, however many locks there are.
//!
//! # Several servers
//!
//! A URL may name several hosts, `postgres://db-1,db-2/app`: each connection goes to the first of them that takes writes. When a standby
//! is promoted, sessions go on there, with all locks that it had heard of.
//!
//! # What it takes
//!
//! - PostgreSQL 13 or later, tested with 13 and 15 to 18; a database in the encoding UTF8. The feature `tls` adds connections over TLS, by rustls.
//! - Commits that last: connections with `synchronous_commit = off` as their default are set to `on`.
//! - A host whose clock doesn't jump. See `docs/guarantees.md` for what holds until which fault.
//!
//! # What it costs
//!
//! An uncontended acquisition writes two rows and a release deletes one, each with one commit. A hand-over is the releaser's
//! statement and one message. A session costs a statement each third of its lease, and another one while it holds or waits; who
//! waits costs no more. Those who share a name are read as a whole by whoever joins them.
//!
//! An [observer](portalock_core::Observer) of an election is a row, and each change of its name's holder a message to its session. A name that
//! nobody observes costs one more look into an index with each grant and release.
//!
//! Rows come and go, so the tables rely on autovacuum like any queue, and are set to be vacuumed often. A transaction that stays open
//! for hours anywhere in the database keeps dead rows from being removed: busy names get slower until it ends.
//!
//! Of a released lock its last token is left, for an hour. Sessions remove what is over once an hour, by `portalock.clean`.
//!
//! # Features
//!
//! - `tls`: connections over TLS by rustls, where `sslmode` or `sslrootcert` in the URL asks for it.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend;
mod breaking;
mod client;
mod config;
mod connection;
mod error;
mod fence;
mod keys;
mod look;
mod observe;
mod place;
mod queue;
mod record;
mod schema;
mod semaphore;
mod session;
mod tls;
mod url;

pub use backend::PostgresBackend;
pub use config::PostgresSettings;
pub use fence::Fence;
pub use schema::{migrate, schema_sql};

/// The client that this crate speaks to Postgres with.
pub use tokio_postgres;
