//! What operations cost, as ratios to floors of the same run. Run alone, on a machine that does nothing else:
//! `cargo test --release -p portalock-postgres --test postgres -- --ignored --nocapture cost::`

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use portalock_core::{Lock, clock::Instant};
use portalock_postgres::PostgresBackend;
use portalock_testkit::servers::PostgresOptions;

use crate::support::{Server, patient};

const ROUNDS: usize = 1_000;
const CLIENTS: usize = 64;
const CROWD_FOR: Duration = Duration::from_secs(5);

/// The median of what `act` takes.
async fn median<F: Future>(rounds: usize, act: impl Fn() -> F) -> Duration {
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        act().await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// How often `turn` happens in a second while so many clients do it.
async fn crowd<F: Future + Send>(turns: Vec<impl Fn() -> F + Send + Sync + 'static>) -> f64 {
    let count = Arc::new(AtomicU32::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = turns
        .into_iter()
        .map(|turn| {
            let count = count.clone();
            tokio::spawn(async move {
                while start.elapsed() < CROWD_FOR {
                    turn().await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    f64::from(count.load(Ordering::Relaxed)) / start.elapsed().as_secs_f64()
}

async fn server() -> Server {
    Server::with(
        PostgresOptions::new()
            .durable()
            .setting("max_connections", "300"),
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn one_client() {
    let server = server().await;
    server
        .run("CREATE TABLE floor (id int PRIMARY KEY, x int); INSERT INTO floor VALUES (1, 0)")
        .await;
    let admin = server.admin().await;
    let update = admin
        .prepare("UPDATE floor SET x = x + 1 WHERE id = 1")
        .await
        .unwrap();
    let lock = Lock::new(server.client().await, "a").unwrap();
    for _ in 0..3 {
        let floor = median(ROUNDS, || admin.execute(&update, &[])).await;
        let pair = median(ROUNDS, || async {
            lock.acquire().await.unwrap().release().await.unwrap();
        })
        .await;
        println!(
            "pair {pair:?}, statement {floor:?}: {:.2} of two",
            pair.as_secs_f64() / floor.as_secs_f64() / 2.0
        );

        let other = Lock::new(server.client().await, "a").unwrap();
        let mut times = Vec::new();
        for _ in 0..200 {
            let guard = lock.acquire().await.unwrap();
            let other = other.clone();
            let waiting = tokio::spawn(async move {
                let guard = other.acquire_with(&patient()).await.unwrap();
                (Instant::now(), guard)
            });
            crate::support::until("it waits", async || {
                lock.inspect().await.unwrap().waiters.len() == 1
            })
            .await;
            let start = Instant::now();
            let released = tokio::spawn(guard.release());
            let (had, guard) = waiting.await.unwrap();
            times.push(had - start);
            released.await.unwrap().unwrap();
            guard.release().await.unwrap();
        }
        times.sort_unstable();
        let hand_over = times[times.len() / 2];
        println!(
            "hand-over {hand_over:?}: {:.2} statements",
            hand_over.as_secs_f64() / floor.as_secs_f64()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn a_crowd() {
    let server = server().await;
    let mut ours = Vec::new();
    let mut advisory = Vec::new();
    for _ in 0..CLIENTS {
        ours.push(Lock::new(server.client().await, "a").unwrap());
        advisory.push(Arc::new(server.admin().await));
    }
    let turns = ours
        .into_iter()
        .map(|lock| {
            move || {
                let lock = lock.clone();
                async move {
                    let guard = lock.acquire_with(&patient()).await.unwrap();
                    guard.release().await.unwrap();
                }
            }
        })
        .collect();
    println!("{CLIENTS} clients: {:.0} hand-overs/s", crowd(turns).await);
    let turns = advisory
        .into_iter()
        .map(|client| {
            move || {
                let client = client.clone();
                async move {
                    client
                        .query("SELECT pg_advisory_lock(1)", &[])
                        .await
                        .unwrap();
                    client
                        .query("SELECT pg_advisory_unlock(1)", &[])
                        .await
                        .unwrap();
                }
            }
        })
        .collect();
    println!("pg_advisory_lock: {:.0} hand-overs/s", crowd(turns).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn ten_thousand_held_locks() {
    let server = server().await;
    let client: PostgresBackend = server.client().await;
    let start = Instant::now();
    let mut guards = Vec::new();
    for number in 0..10_000 {
        let lock = Lock::new(client.clone(), format!("name-{number}")).unwrap();
        guards.push(lock.acquire().await.unwrap());
    }
    println!("10000 acquired in {:?}", start.elapsed());
    // Several renewals and looks.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(guards.iter().all(|guard| !guard.is_lost()));
    let start = Instant::now();
    for guard in guards {
        guard.release().await.unwrap();
    }
    println!("released in {:?}", start.elapsed());
}
