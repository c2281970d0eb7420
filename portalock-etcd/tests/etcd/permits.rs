//! Permits that many clients try to take at once, and the end of a session by its permits.

use std::time::Duration;

use portalock_core::{Pool, Semaphore};
use portalock_etcd::EtcdBackend;

use crate::support::{Server, patient};

/// Permits whose requests and session outlast a crowd on a busy machine.
async fn crowded(server: &Server, capacity: u32) -> Pool<EtcdBackend> {
    let client = server
        .client_with(|settings| {
            settings
                .with_request_timeout(Duration::from_secs(60))
                .unwrap()
                .with_lease_time(Duration::from_secs(600))
                .unwrap()
        })
        .await;
    let pool = Pool::new(client, "crowd", capacity).unwrap();
    pool.with_policy(patient())
}

#[tokio::test]
async fn everyone_who_tries_for_a_free_permit_gets_one() {
    let server = Server::start();
    let mut tries = Vec::new();
    for _ in 0..2 {
        let pool = crowded(&server, 400).await;
        for _ in 0..150 {
            let pool = pool.clone();
            tries.push(tokio::spawn(async move { pool.try_acquire(1).await }));
        }
    }
    let mut held = Vec::new();
    for attempt in tries {
        held.push(attempt.await.unwrap().unwrap());
    }
    assert_eq!(held.len(), 300);
}

#[tokio::test]
async fn of_too_many_who_try_as_many_as_there_are_permits_get_one() {
    let server = Server::start();
    let pool = crowded(&server, 20).await;
    let mut tries = Vec::new();
    for _ in 0..60 {
        let pool = pool.clone();
        tries.push(tokio::spawn(async move { pool.try_acquire(1).await }));
    }
    let mut held = Vec::new();
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(guard) => held.push(guard),
            Err(error) => assert!(error.is_contention(), "{error}"),
        }
    }
    assert_eq!(held.len(), 20);
    assert_eq!(server.lock_keys().await.len(), 20);
}

#[tokio::test]
async fn closing_gives_back_the_permits() {
    let server = Server::start();
    let client = server.client().await;
    let pool = Pool::new(client.clone(), "close", 1).unwrap();
    let held = pool.acquire(1).await.unwrap();
    Semaphore::close(&client).await.unwrap();
    assert!(held.is_lost());
    assert_eq!(server.lock_keys().await, Vec::<String>::new());
}
