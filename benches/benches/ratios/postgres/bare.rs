//! The floors: statements and advisory locks alone, over a plain connection.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use portalock_benches::Failure;
use portalock_postgres::tokio_postgres::{self, AsyncMessage, Client, NoTls, Statement};
use tokio::{sync::Notify, task::JoinSet};

/// How long a poller sleeps that found the lock held.
const POLL: Duration = Duration::from_millis(50);

/// A connection, with what it measures prepared.
#[derive(Clone)]
pub(crate) struct Bare {
    pub(crate) client: Arc<Client>,
    update: Statement,
    take: Statement,
    give: Statement,
    pass: Statement,
    /// Wakes the client that was notified, on the channel of its number.
    notified: Arc<Notify>,
}

impl Bare {
    pub(crate) async fn connect(url: &str) -> Result<Self, Failure> {
        let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
        let notified = Arc::new(Notify::new());
        let wakes = notified.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if matches!(message, AsyncMessage::Notification(_)) {
                    wakes.notify_one();
                }
            }
        });
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
        let pass = "WITH written AS (UPDATE bare SET number = number + 1 WHERE id = 1) SELECT pg_notify($1, '')";
        Ok(Self {
            pass: client.prepare(pass).await?,
            notified,
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
        for (number, one) in many.iter().enumerate() {
            one.client
                .batch_execute(&format!("LISTEN bare_{number}"))
                .await?;
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

    /// The same, by a holder that writes a row, as most do.
    async fn written(&self) -> Result<(), Failure> {
        self.client.query("SELECT pg_advisory_lock(1)", &[]).await?;
        self.client.execute(&self.update, &[]).await?;
        self.client
            .query("SELECT pg_advisory_unlock(1)", &[])
            .await?;
        Ok(())
    }

    /// Writes a row and notifies the client with this number, in one statement.
    async fn pass(&self, next: usize) -> Result<(), Failure> {
        let channel = format!("bare_{next}");
        self.client.execute(&self.pass, &[&channel]).await?;
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
    /// The same, and each holder writes a row.
    Written,
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
                    Contended::Written => client.written().await?,
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

/// Each client in turn writes a row and notifies the next one, without a lock: the time of one. A lock needs at least this if
/// its release is on the disk and wakes the next holder.
pub(crate) async fn pass_on(clients: Vec<Bare>, handoffs: u32) -> Result<Duration, Failure> {
    let many = clients.len();
    let first = clients.first().ok_or("there is no client")?.clone();
    let left = Arc::new(AtomicU32::new(handoffs));
    let finished = Arc::new(Notify::new());
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        let (left, finished) = (left.clone(), finished.clone());
        tasks.spawn(async move {
            loop {
                client.notified.notified().await;
                if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    finished.notify_one();
                    return Ok::<_, Failure>(());
                }
                client.pass((number + 1) % many).await?;
            }
        });
    }
    first.pass(0).await?;
    tokio::select! {
        () = finished.notified() => Ok(started.elapsed() / handoffs),
        Some(failed) = tasks.join_next() => {
            failed??;
            Ok(started.elapsed() / handoffs)
        }
    }
}
