//! Random clients, of locks and of permits, under random faults, and the verdict of the history checker.

use std::time::Duration;

use portalock_core::{LockBackend, Semaphore, clock::Instant};
use portalock_redis::RedisBackend;
use portalock_testkit::{
    history::{random_clients_of_both, seed, stress_time},
    proxy::{Direction, FaultProxy},
    servers::{RedisOptions, RedisServer},
};
use tokio::task::block_in_place;

use crate::fixture::settings_at;

/// How long the test runs, unless the environment sets another time. CI sets a longer one.
const TIME: Duration = Duration::from_secs(15);

/// Shorter than some faults, so that locks are lost and pass on.
const SESSION: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_promise_is_broken_under_random_faults() {
    let (seed, time) = (seed(), stress_time(TIME));
    println!("PORTALOCK_SEED={seed}");
    let mut server = RedisOptions::new().persistent(true).start().unwrap();
    let (mut clients, mut lines) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let line = FaultProxy::start(server.addr()).unwrap();
        let settings = settings_at(&format!("redis://{}", line.addr()));
        clients.push(RedisBackend::new(
            settings.with_session_ttl(SESSION).unwrap(),
        ));
        lines.push(line);
    }
    let faults = async {
        let mut random = fastrand::Rng::with_seed(seed);
        let end = Instant::now() + time;
        while Instant::now() < end {
            fault(&mut server, &lines, &mut random).await;
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

async fn fault(server: &mut RedisServer, lines: &[FaultProxy], random: &mut fastrand::Rng) {
    let pause = Duration::from_millis(random.u64(50..3_000));
    let line = &lines[random.usize(..lines.len())];
    match random.u8(..7) {
        0 => block_in_place(|| server.restart().unwrap()),
        1 => {
            server.stall().unwrap();
            tokio::time::sleep(pause).await;
            server.resume().unwrap();
        }
        2 => line.cut(),
        3 | 4 => {
            line.black_hole(if random.bool() {
                Direction::Both
            } else {
                Direction::ToClient
            });
            tokio::time::sleep(pause).await;
            line.heal();
        }
        5 => {
            for line in lines {
                line.cut();
            }
        }
        _ => {
            line.delay(Direction::Both, Duration::from_millis(random.u64(1..100)));
            tokio::time::sleep(pause).await;
            line.heal();
        }
    }
}
