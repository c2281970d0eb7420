//! The suite on the SQLite backend, and what it is told of how to hurt it.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use portalock_core::{
    Attempt, BackendError, BackendErrorKind, Capabilities, Inspection, LockBackend, LockName,
    LockRequest, Released,
};
use portalock_example_custom_backend::SqliteBackend;
use portalock_testkit::{Fixture, FixtureError, Restore};
use rusqlite::Connection;
use tempfile::TempDir;

/// Short, so that a crash is soon over, and long enough for a machine that is busy.
const LEASE: Duration = Duration::from_secs(5);

portalock_testkit::conformance!(Database::new());

/// A database in a directory of its own.
struct Database {
    directory: TempDir,
    stall: Arc<Mutex<Option<Connection>>>,
}

impl Database {
    fn new() -> Result<Self, FixtureError> {
        Ok(Self {
            directory: tempfile::tempdir()?,
            stall: Arc::default(),
        })
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("locks.db")
    }

    /// Runs one statement, as an administrator would.
    fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<(), FixtureError> {
        let executed = Connection::open(self.file()).and_then(|connection| {
            // On a busy disk the clients would wait too long for the end of this transaction.
            connection.pragma_update(None, "synchronous", "off")?;
            connection.execute(sql, parameters)
        });
        executed.map_err(FixtureError::failed)?;
        Ok(())
    }
}

#[async_trait]
impl Fixture for Database {
    type Backend = Mortal;

    async fn client(&self) -> Result<Mortal, FixtureError> {
        Ok(Mortal::new(SqliteBackend::open(self.file(), LEASE)?))
    }

    async fn crash(&self, client: &Mortal) -> Result<(), FixtureError> {
        client.die();
        Ok(())
    }

    /// A transaction that somebody forgot to end.
    async fn stall_service(&self) -> Result<Restore, FixtureError> {
        let connection = Connection::open(self.file()).map_err(FixtureError::failed)?;
        connection
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(FixtureError::failed)?;
        self.stall.lock().unwrap().replace(connection);
        let stall = self.stall.clone();
        Ok(Restore::new(async move {
            stall.lock().unwrap().take();
            Ok(())
        }))
    }

    fn address(&self) -> Option<String> {
        self.file().to_str().map(str::to_owned)
    }

    async fn connect(address: &str) -> Result<Mortal, FixtureError> {
        Ok(Mortal::new(SqliteBackend::open(address, LEASE)?))
    }
}

/// A client that can die: its renewals stop, and nothing that it says afterwards reaches the database.
#[derive(Debug)]
struct Mortal {
    alive: Mutex<Option<Arc<SqliteBackend>>>,
    capabilities: Capabilities,
}

impl Mortal {
    fn new(backend: SqliteBackend) -> Self {
        Self {
            capabilities: backend.capabilities(),
            alive: Mutex::new(Some(Arc::new(backend))),
        }
    }

    fn die(&self) {
        self.alive.lock().unwrap().take();
    }

    fn backend(&self) -> Result<Arc<SqliteBackend>, BackendError> {
        let alive = self.alive.lock().unwrap().clone();
        alive.ok_or_else(|| BackendError::new(BackendErrorKind::Unavailable, "the client is dead"))
    }
}

#[async_trait]
impl LockBackend for Mortal {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn try_acquire(&self, request: &LockRequest) -> Result<Attempt, BackendError> {
        self.backend()?.try_acquire(request).await
    }

    async fn release(&self, request: &LockRequest) -> Result<Released, BackendError> {
        self.backend()?.release(request).await
    }

    async fn inspect(&self, name: &LockName) -> Result<Inspection, BackendError> {
        self.backend()?.inspect(name).await
    }
}

/// What the backend can't tell a holder of before it has happened: somebody deletes a lock's row.
///
/// The holder misses it when it renews. Of what the backend does by itself a holder is told in advance, which is what it
/// claims and the suite above holds it to. So these cases run on one that claims no more than that it is told within the
/// lease.
mod by_hand {
    use portalock_core::LossNotice;
    use portalock_testkit::Suite;

    use super::*;

    struct Robbed(Database);

    #[async_trait]
    impl Fixture for Robbed {
        type Backend = Mortal;

        async fn client(&self) -> Result<Mortal, FixtureError> {
            let mut client = self.0.client().await?;
            client.capabilities = client.capabilities.with_loss(LossNotice::Within(LEASE));
            Ok(client)
        }

        async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
            let delete = "DELETE FROM locks WHERE name = ?1";
            self.0.execute(delete, [name.as_str()])
        }
    }

    fn check(case: &str) {
        Suite::new(|| async { Database::new().map(Robbed) }).check(case);
    }

    #[test]
    fn a_lock_taken_away_fires_lost() {
        check("loss::a_lock_taken_away_fires_lost");
    }

    #[test]
    fn work_stops_with_the_lock() {
        check("loss::work_stops_with_the_lock");
    }

    #[test]
    fn a_lost_guard_leaves_the_next_holder() {
        check("loss::a_lost_guard_leaves_the_next_holder");
    }

    #[test]
    fn one_loss_is_the_sets_loss() {
        check("composite::one_loss_is_the_sets_loss");
    }

    #[test]
    fn random_history_with_losses() {
        check("stress::random_history_with_losses");
    }
}
