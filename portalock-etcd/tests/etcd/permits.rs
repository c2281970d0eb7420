//! Permits that many clients try to take at once.

use portalock_core::Pool;
use portalock_etcd::{EtcdBackend, EtcdSettings};

use crate::support::{LONG, Server, patient};

/// A pool of a client of its own, with time for a busy machine.
async fn crowd(server: &Server, permits: u32) -> Pool<EtcdBackend> {
    let change = |settings: EtcdSettings| settings.with_request_timeout(LONG).unwrap();
    let client = server.client_with(change).await;
    Pool::new(client, "crowd", permits)
        .unwrap()
        .with_policy(patient())
}

#[tokio::test]
async fn everyone_who_tries_for_a_free_permit_gets_one() {
    let server = Server::start();
    let mut tries = Vec::new();
    for _ in 0..2 {
        let pool = crowd(&server, 400).await;
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
    let pool = crowd(&server, 20).await;
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
