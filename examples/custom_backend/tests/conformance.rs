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
const LEASE: Duration = Duration::from_secs(3);

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
        let connection = Connection::open(self.file()).map_err(FixtureError::failed)?;
        connection
            .execute(sql, parameters)
            .map_err(FixtureError::failed)?;
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

    async fn take_away(&self, name: &LockName) -> Result<(), FixtureError> {
        self.execute("DELETE FROM locks WHERE name = ?1", [name.as_str()])
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
