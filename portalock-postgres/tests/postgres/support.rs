//! A server for one test, and the reads that tests need.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use portalock_core::{Policy, clock::Instant};
use portalock_postgres::{
    PostgresBackend, PostgresSettings, migrate,
    tokio_postgres::{self, Client, Error, NoTls},
};
use portalock_testkit::{
    proxy::FaultProxy,
    servers::{PostgresOptions, PostgresServer},
};

/// How long a test waits for something that must happen. The machine may be busy.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A policy for waits on a busy machine.
pub(crate) fn patient() -> Policy {
    Policy::default().with_timeout(LONG)
}

/// Waits until `holds` returns true, and fails the test if that takes too long.
pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < LONG, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) struct Server {
    pub(crate) postgres: Arc<Mutex<PostgresServer>>,
    pub(crate) url: String,
}

impl Server {
    /// A server with the schema.
    pub(crate) async fn start() -> Self {
        Self::with(PostgresOptions::new()).await
    }

    pub(crate) async fn with(options: PostgresOptions) -> Self {
        let server = Self::empty(options).await;
        migrate(&server.settings()).await.unwrap();
        server
    }

    /// A server without the schema.
    pub(crate) async fn empty(options: PostgresOptions) -> Self {
        let start = move || options.start();
        let postgres = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        Self {
            url: postgres.url(),
            postgres: Arc::new(Mutex::new(postgres)),
        }
    }

    pub(crate) fn url_of(&self, user: &str) -> String {
        self.postgres.lock().unwrap().url_of(user)
    }

    pub(crate) fn settings(&self) -> PostgresSettings {
        PostgresSettings::from_url(&self.url).unwrap()
    }

    pub(crate) fn settings_with_lease(&self, lease: Duration) -> PostgresSettings {
        self.settings().with_lease_time(lease).unwrap()
    }

    pub(crate) async fn client(&self) -> PostgresBackend {
        PostgresBackend::connect(&self.url).await.unwrap()
    }

    /// A fault proxy in front of the server, and settings that use it.
    pub(crate) fn line(&self) -> (FaultProxy, PostgresSettings) {
        let line = FaultProxy::start(self.postgres.lock().unwrap().addr()).unwrap();
        let url = format!("postgres://postgres@{}/postgres", line.addr());
        (line, PostgresSettings::from_url(&url).unwrap())
    }

    /// A plain connection of an administrator, without locks.
    pub(crate) async fn admin(&self) -> Client {
        connect(&self.url).await
    }

    /// Runs statements without an answer.
    pub(crate) async fn run(&self, sql: &str) {
        self.admin().await.batch_execute(sql).await.unwrap();
    }

    /// The number that this query returns.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.admin().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Runs `act` on the server without blocking the test's own runtime, which has sessions to renew.
    pub(crate) async fn do_with(&self, act: impl FnOnce(&mut PostgresServer) + Send + 'static) {
        let postgres = self.postgres.clone();
        let act = move || act(&mut postgres.lock().unwrap());
        tokio::task::spawn_blocking(act).await.unwrap();
    }
}

/// A plain connection.
pub(crate) async fn connect(url: &str) -> Client {
    try_connect(url).await.unwrap()
}

/// As [`connect`], to a server that may be away.
pub(crate) async fn try_connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
