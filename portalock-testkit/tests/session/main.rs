//! The session layer of the core under faults that a real server shows rarely: each request may be lost, or come late, its answer may be
//! lost, and a server may fail over to an older state.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod backend;
mod kept;
mod records;
mod world;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use portalock_core::{
    Lock, LockBackend, LockSet, LostSignal, Policy, Semaphore, SlotSemaphore, clock::Instant,
    shutdown,
};
use portalock_testkit::history::{random_clients, random_pool_clients, seed, stress_time};

use crate::{backend::Simulated, records::LEASE, world::World};

/// How long the test runs, unless the environment sets another time.
const TIME: Duration = Duration::from_secs(4);
/// Generous: nobody waits for so long unless something is stranded.
const PATIENCE: Duration = Duration::from_secs(60);
const NAMES: [&str; 3] = ["job", "other", "third"];
const STAYED_IN: &str = "room";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_promise_is_broken_and_nothing_is_left_behind() {
    let (seed, time) = (seed(), stress_time(TIME));
    println!("PORTALOCK_SEED={seed}");
    let world = Arc::new(World::new(seed));
    let clients: Vec<_> = (0..3).map(|_| Simulated::new(&world)).collect();
    let pools: Vec<_> = (clients.iter().cloned().map(SlotSemaphore::new))
        .map(Arc::new)
        .collect();
    let inside = Mutex::default();
    let end = Instant::now() + time;
    let faults = async {
        tokio::join!(
            faults(&world, end),
            cut_off(&world, &clients, end),
            join_all(clients.iter().map(|it| give_up_and_break(&world, it, end))),
            join_all((0..).zip(&clients).map(|it| stay(&world, it, &inside, end))),
            close(&world, &clients, end)
        );
    };
    let until = tokio::time::sleep_until(end);
    let (locks, permits) = tokio::try_join!(
        random_clients(&clients, seed, faults),
        random_pool_clients(&pools, seed, until),
    )
    .unwrap_or_else(|error| panic!("PORTALOCK_SEED={seed}: {error}"));
    let claims = [
        LockBackend::capabilities(&clients[0]),
        Semaphore::capabilities(&pools[0]),
    ];
    for (history, claims) in [locks, permits].iter().zip(claims) {
        println!("{} grants in {time:?}", history.grants());
        let violations = history.check(&claims);
        assert!(
            violations.is_empty(),
            "PORTALOCK_SEED={seed}: {violations:#?}"
        );
    }

    world.calm();
    shutdown(PATIENCE).await.unwrap();
    // The sessions live on: what is left is not removed with them.
    let looked = Instant::now();
    while !world.is_empty() {
        assert!(
            looked.elapsed() < PATIENCE,
            "PORTALOCK_SEED={seed}: {world:#?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for client in &clients {
        for name in NAMES.iter().chain([&STAYED_IN]) {
            let lock = Lock::new(client.clone(), *name).unwrap();
            let policy = Policy::default().with_timeout(PATIENCE);
            drop(lock.acquire_with(&policy).await.unwrap());
        }
    }
}

fn brief() -> Policy {
    Policy::default().with_timeout(LEASE / 2)
}

/// In some runs much, in others little happens, and no server fails over: where too much goes wrong, nothing is ever granted.
async fn faults(world: &World, end: Instant) {
    let pause = [100, 400, 1500][world.one_of(3)];
    let fails_over = world.one_of(2) == 0;
    while Instant::now() < end {
        world.pause(pause).await;
        match world.one_of(20) {
            0..=9 => world.reset_a_connection(),
            10..=12 => world.is_away_for(LEASE / 4),
            13 => world.is_away_for(LEASE * 2),
            14 if fails_over => world.fails_over(),
            _ => {}
        }
    }
}

/// For longer than the lease, so that others are granted what a client that is cut off holds. In each run, whatever else happens.
async fn cut_off(world: &World, clients: &[Simulated], end: Instant) {
    while Instant::now() < end {
        world.pause(1000).await;
        clients[world.one_of(clients.len())].cut_off_for(LEASE * 3);
    }
}

/// Calls that are dropped at any moment, sets of locks, and locks that are broken.
async fn give_up_and_break(world: &World, client: &Simulated, end: Instant) {
    while Instant::now() < end {
        let name = NAMES[world.one_of(NAMES.len())];
        let lock = Lock::new(client.clone(), name).unwrap();
        match world.one_of(4) {
            0 | 1 => {
                let call = async { lock.acquire_with(&brief()).await.map(drop) };
                let _gave_up = tokio::time::timeout(world.up_to(30), call).await;
            }
            2 => {
                let set = LockSet::new(client.clone(), NAMES).unwrap();
                drop(set.acquire_with(&brief()).await);
            }
            _ => {
                let Ok(found) = lock.inspect().await else {
                    continue;
                };
                if let Some(owner) = found.holders.first().and_then(|holder| holder.owner) {
                    let broken = tokio::time::timeout(PATIENCE, lock.break_holder(owner)).await;
                    let _may_fail = broken.expect("a break ends");
                }
            }
        }
    }
}

/// Holders that stay for longer than their lease, if nothing renews it. Nobody who has not lost the lock may be inside with another.
async fn stay(
    world: &World,
    (number, client): (u32, &Simulated),
    inside: &Mutex<HashMap<u32, LostSignal>>,
    end: Instant,
) {
    let lock = Lock::new(client.clone(), STAYED_IN).unwrap();
    let policy = Policy::default().with_timeout(LEASE * 3);
    while Instant::now() < end {
        let Ok(guard) = lock.acquire_with(&policy).await else {
            continue;
        };
        let signal = guard.lost_signal();
        {
            let mut inside = inside.lock().unwrap();
            inside.retain(|_, other| !other.is_lost());
            // The own signal is looked at last.
            assert!(
                inside.is_empty() || signal.is_lost(),
                "client {number} is inside with {inside:?}"
            );
            inside.insert(number, signal.clone());
        }
        let _stayed = tokio::time::timeout(world.up_to(4000), signal.lost()).await;
        inside.lock().unwrap().remove(&number);
        drop(guard);
    }
}

/// A closed client starts anew with its next call.
async fn close(world: &World, clients: &[Simulated], end: Instant) {
    while Instant::now() < end {
        world.pause(1500).await;
        let _may_fail = LockBackend::close(&clients[world.one_of(clients.len())]).await;
    }
}
