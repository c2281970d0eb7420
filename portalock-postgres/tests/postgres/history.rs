//! Random clients, of locks and of permits, under random faults, and the verdict of the history checker.

use std::time::Duration;

use portalock_core::{LockBackend, Semaphore, clock::Instant};
use portalock_postgres::{PostgresBackend, tokio_postgres::Error};
use portalock_testkit::{
    history::{random_clients_of_both, seed, stress_time},
    proxy::{Direction, FaultProxy},
};

use crate::support::{Server, try_connect};

/// How long the test runs, unless the environment sets another time. CI sets a longer one.
const TIME: Duration = Duration::from_secs(15);

/// Shorter than some faults, so that locks are lost and pass on.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_promise_is_broken_under_random_faults() {
    let (seed, time) = (seed(), stress_time(TIME));
    println!("PORTALOCK_SEED={seed}");
    let server = Server::start().await;
    let (mut clients, mut lines) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (line, settings) = server.line();
        let settings = settings.with_lease_time(LEASE).unwrap();
        clients.push(PostgresBackend::with_settings(settings).await.unwrap());
        lines.push(line);
    }
    let faults = async {
        let mut random = fastrand::Rng::with_seed(seed);
        let end = Instant::now() + time;
        while Instant::now() < end {
            fault(&server, &lines, &mut random).await;
            tokio::time::sleep(Duration::from_millis(random.u64(50..600))).await;
        }
    };
    let (locks, permits) = random_clients_of_both(&clients, seed, faults)
        .await
        .unwrap();
    let claims = [
        LockBackend::capabilities(&clients[0]),
        Semaphore::capabilities(&clients[0]),
    ];
    for (history, claims) in [locks, permits].iter().zip(claims) {
        println!("{} grants in {time:?}", history.grants());
        let violations = history.check(&claims);
        assert!(
            history.grants() > 10,
            "PORTALOCK_SEED={seed}: too little happened"
        );
        assert!(
            violations.is_empty(),
            "PORTALOCK_SEED={seed}: {violations:#?}"
        );
    }
}

async fn fault(server: &Server, lines: &[FaultProxy], random: &mut fastrand::Rng) {
    let pause = Duration::from_millis(random.u64(50..3_000));
    let line = &lines[random.usize(..lines.len())];
    match random.u8(..8) {
        // If the server is away, there is nothing to kill.
        0 | 1 => drop(kill_processes(server, random.u8(1..=3)).await),
        2 => server.do_with(|postgres| postgres.restart().unwrap()).await,
        3 => {
            server.do_with(|postgres| postgres.stall().unwrap()).await;
            tokio::time::sleep(pause).await;
            server.do_with(|postgres| postgres.resume().unwrap()).await;
        }
        4 => line.cut(),
        5 | 6 => {
            line.black_hole(if random.bool() {
                Direction::Both
            } else {
                Direction::ToClient
            });
            tokio::time::sleep(pause).await;
            line.heal();
        }
        _ => {
            line.delay(Direction::Both, Duration::from_millis(random.u64(1..100)));
            tokio::time::sleep(pause).await;
            line.heal();
        }
    }
}

/// Ends one in `one_in` of the server processes that serve the clients.
async fn kill_processes(server: &Server, one_in: u8) -> Result<(), Error> {
    let admin = try_connect(&server.url).await?;
    admin
        .batch_execute(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'portalock' AND pid % {one_in} = 0"
        ))
        .await
}
