//! The floors: statements and advisory locks alone, over a plain connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use portalock_benches::Failure;
use portalock_postgres::tokio_postgres::{self, Client, NoTls, Statement};
use tokio::task::JoinSet;

/// How long a poller sleeps that found the lock held.
const POLL: Duration = Duration::from_millis(50);

/// A connection, with what it measures prepared.
#[derive(Clone)]
pub(crate) struct Bare {
    pub(crate) client: Arc<Client>,
    update: Statement,
    take: Statement,
    give: Statement,
}

impl Bare {
    pub(crate) async fn connect(url: &str) -> Result<Self, Failure> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        client
            .batch_execute(
                "SELECT pg_advisory_lock(0);
                 CREATE TABLE IF NOT EXISTS bare (id int PRIMARY KEY, number bigint NOT NULL, held boolean NOT NULL);
                 INSERT INTO bare VALUES (1, 0, false) ON CONFLICT DO NOTHING;
                 SELECT pg_advisory_unlock(0)",
            )
            .await?;
        let update = "UPDATE bare SET number = number + 1 WHERE id = 1";
        let take = "UPDATE bare SET held = true WHERE id = 1 AND NOT held";
        let give = "UPDATE bare SET held = false WHERE id = 1";
        Ok(Self {
            update: client.prepare(update).await?,
            take: client.prepare(take).await?,
            give: client.prepare(give).await?,
            client: Arc::new(client),
        })
    }

    pub(crate) async fn many(url: &str, count: u32) -> Result<Vec<Self>, Failure> {
        let mut many = Vec::new();
        for _ in 0..count {
            many.push(Self::connect(url).await?);
        }
        Ok(many)
    }

    /// How long a statement takes that writes one row.
    pub(crate) async fn statement(self, times: u32) -> Result<Duration, Failure> {
        let started = Instant::now();
        for _ in 0..times {
            self.client.execute(&self.update, &[]).await?;
        }
        Ok(started.elapsed() / times)
    }

    /// How long two of them take.
    pub(crate) async fn two_statements(self, times: u32) -> Result<Duration, Failure> {
        Ok(2 * self.statement(2 * times).await?)
    }

    /// The server's own lock, taken and given back.
    async fn advisory(&self) -> Result<(), Failure> {
        self.client.query("SELECT pg_advisory_lock(1)", &[]).await?;
        self.client
            .query("SELECT pg_advisory_unlock(1)", &[])
            .await?;
        Ok(())
    }

    /// A row that says whether the lock is held, looked at until it is free.
    async fn polled(&self) -> Result<(), Failure> {
        while self.client.execute(&self.take, &[]).await? == 0 {
            tokio::time::sleep(POLL).await;
        }
        self.client.execute(&self.give, &[]).await?;
        Ok(())
    }

    /// How many transactions the server has carried out, as it counts them once a second.
    pub(crate) async fn transactions(&self) -> Result<f64, Failure> {
        let count =
            "SELECT xact_commit::float8 FROM pg_stat_database WHERE datname = current_database()";
        Ok(self.client.query_one(count, &[]).await?.get(0))
    }
}

/// What a crowd of plain clients contends for.
#[derive(Clone, Copy)]
pub(crate) enum Contended {
    Advisory,
    Polled,
}

/// Takes and gives back until so many have had it among all: the time of one.
pub(crate) async fn contend(
    clients: Vec<Bare>,
    what: Contended,
    handoffs: u32,
) -> Result<Duration, Failure> {
    let done = Arc::new(AtomicU32::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for client in clients {
        let done = done.clone();
        tasks.spawn(async move {
            while done.fetch_add(1, Ordering::Relaxed) < handoffs {
                match what {
                    Contended::Advisory => client.advisory().await?,
                    Contended::Polled => client.polled().await?,
                }
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(started.elapsed() / handoffs)
}
