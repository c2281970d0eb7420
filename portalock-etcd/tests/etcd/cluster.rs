//! Three members; some of them are killed or stopped.

use std::{pin::pin, sync::Arc, time::Duration};

use portalock_core::{BackendErrorKind, Lock, LockError, Policy, clock::Instant};
use portalock_etcd::{EtcdBackend, EtcdSettings, etcd_client::Client};
use portalock_testkit::servers::EtcdOptions;

use crate::support::{Server, patient, until, with_users};

/// The leader.
async fn leader(server: &Server) -> usize {
    let mut leads = None;
    until("there is a leader", async || {
        for (member, endpoint) in server.etcd.endpoints().iter().enumerate() {
            let Ok(client) = Client::connect([endpoint], None).await else {
                continue;
            };
            let status = client.maintenance_client().status().await;
            if let Ok(status) = status
                && status
                    .header()
                    .is_some_and(|header| header.member_id() == status.leader())
            {
                leads = Some(member);
            }
        }
        leads.is_some()
    })
    .await;
    leads.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_may_die_or_stall_and_nothing_is_lost() {
    let server = Server::cluster();
    let client = server.client().await;
    let held = Lock::new(client.clone(), "held")
        .unwrap()
        .acquire_with(&patient())
        .await
        .unwrap();
    let lock = Lock::new(client.clone(), "turns").unwrap();
    let other = Lock::new(server.client().await, "turns").unwrap();
    // The first endpoint is the one in use.
    let (used, leads) = (0, leader(&server).await);
    for member in [used, leads] {
        for stalls in [true, false] {
            let guard = lock.acquire_with(&patient()).await.unwrap();
            let waiting = tokio::spawn({
                let other = other.clone();
                async move { other.acquire_with(&patient()).await }
            });
            until("the other waits", async || {
                lock.inspect()
                    .await
                    .is_ok_and(|seen| seen.waiters.len() == 1)
            })
            .await;
            if stalls {
                server.etcd.stall(member).unwrap();
            } else {
                server.etcd.kill(member);
            }
            // If no member answers in time, the session repeats the release.
            drop(guard);
            let next = waiting.await.unwrap().unwrap();
            next.ensure_held().unwrap();
            held.ensure_held().unwrap();
            if stalls {
                server.etcd.resume(member).unwrap();
            } else {
                server
                    .restart(if member == 0 {
                        &[0]
                    } else if member == 1 {
                        &[1]
                    } else {
                        &[2]
                    })
                    .await;
            }
            drop(next);
        }
    }
    held.ensure_held().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_granted_and_what_is_held_is_lost_in_time() {
    let server = Server::cluster();
    let client = server
        .client_with(|settings| settings.with_lease_time(Duration::from_secs(4)).unwrap())
        .await;
    let lock = Lock::new(client, "majority").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    server.etcd.kill(1);
    server.etcd.kill(2);
    guard.lost().await;
    let policy = Policy::default().with_timeout(Duration::from_secs(20));
    let error = lock.acquire_with(&policy).await.unwrap_err();
    match &error {
        LockError::Backend { source, .. }
        | LockError::Timeout {
            last_error: Some(source),
            ..
        } => assert_eq!(source.kind(), BackendErrorKind::Unavailable, "{error:?}"),
        _ => panic!("{error:?}"),
    }
    server.restart(&[1, 2]).await;
    until("it can be had again", async || match lock.acquire().await {
        Ok(guard) => guard.release().await.is_ok(),
        Err(_) => false,
    })
    .await;
}

/// A call that finds no leader logs in again, over a new connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_with_a_user_waits_for_a_leader_too() {
    let options = EtcdOptions::new().members(3).argument("--bcrypt-cost=4");
    let server = Server {
        etcd: Arc::new(options.start().unwrap()),
    };
    with_users(&server).await;
    let long = Duration::from_secs(600);
    let settings = EtcdSettings::new([server.etcd.endpoints().remove(0)]).unwrap();
    let settings = settings.with_user("billing", "hunter2");
    let settings = settings.with_prefix("billing").unwrap();
    let settings = settings.with_lease_time(long).unwrap();
    let settings = settings.with_request_timeout(Duration::from_secs(60));
    let client = EtcdBackend::with_settings(settings.unwrap()).await.unwrap();
    let lock = Lock::new(client, "election").unwrap();
    lock.acquire().await.unwrap().release().await.unwrap();
    server.etcd.kill(1);
    server.etcd.kill(2);
    until("the member knows of no leader", async || {
        let endpoint = server.etcd.endpoints().remove(0);
        let alone = Client::connect([endpoint], None).await.unwrap();
        let status = alone.maintenance_client().status().await;
        status.is_ok_and(|status| status.leader() == 0)
    })
    .await;
    let policy = patient().with_max_failures(0);
    let mut acquiring = pin!(lock.acquire_with(&policy));
    tokio::select! {
        ended = &mut acquiring => panic!("{ended:?}"),
        () = server.restart(&[1, 2]) => {}
    }
    acquiring.await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_outlives_many_elections_on_a_short_lease() {
    let server = Server::cluster();
    let client = server
        .client_with(|settings| settings.with_lease_time(Duration::from_secs(6)).unwrap())
        .await;
    let lock = Lock::new(client, "elections").unwrap();
    let guard = lock.acquire_with(&patient()).await.unwrap();
    let end = Instant::now() + Duration::from_secs(12);
    while Instant::now() < end {
        let leads = leader(&server).await;
        let endpoint = server.etcd.endpoints().remove(leads);
        let at_leader = Client::connect([endpoint], None).await.unwrap();
        let members = at_leader.cluster_client().member_list().await.unwrap();
        let leader_id = members.header().unwrap().member_id();
        let next = members
            .members()
            .iter()
            .find(|member| member.id() != leader_id)
            .unwrap();
        // Another election may have come first; then the next round does it.
        drop(at_leader.maintenance_client().move_leader(next.id()).await);
        guard
            .run(tokio::time::sleep(Duration::from_millis(700)))
            .await
            .unwrap();
    }
    guard.release().await.unwrap();
}

/// etcd executes the requests that it accepted before its store was full, and answers that it has no space.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_request_that_was_in_flight_when_the_store_became_full() {
    let options = EtcdOptions::new()
        .members(3)
        .argument("--quota-backend-bytes=4194304")
        .argument("--backend-batch-limit=1");
    let etcd = Arc::new(options.start().unwrap());
    let server = Server { etcd };
    let leads = leader(&server).await;
    let endpoint = server.etcd.endpoints().remove(leads);
    let settings = EtcdSettings::new([&endpoint]).unwrap();
    let long = Duration::from_secs(60);
    let settings = settings.with_request_timeout(long).unwrap();
    let settings = settings.with_lease_time(10 * long).unwrap();
    let client = EtcdBackend::with_settings(settings).await.unwrap();
    let warm = Lock::new(client.clone(), "warm").unwrap();
    drop(warm.acquire_with(&patient()).await.unwrap());
    until("it is released", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
    let store = Client::connect([&endpoint], None).await.unwrap();
    let others = (0..3).filter(|member| *member != leads);
    others
        .clone()
        .for_each(|member| server.etcd.stall(member).unwrap());
    let in_flight = async |count: f64| {
        until("so many requests are in flight", async || {
            let pending = "etcd_server_proposals_pending";
            server.counter_of(leads, pending).await >= count
        })
        .await;
    };
    for number in 0..5 {
        let mut store = store.kv_client();
        tokio::spawn(async move {
            let megabyte = vec![0_u8; 1024 * 1024];
            store.put(format!("load/{number}"), megabyte, None).await
        });
    }
    in_flight(5.0).await;
    let lock = Lock::new(client, "full").unwrap();
    let attempt = tokio::spawn(async move { lock.acquire_with(&patient()).await.map(drop) });
    in_flight(6.0).await;
    others.for_each(|member| server.etcd.resume(member).unwrap());
    let error = attempt.await.unwrap().unwrap_err();
    let LockError::Backend { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), BackendErrorKind::OutOfSpace, "{error:?}");
    until("nothing is left", async || {
        server.lock_keys().await.is_empty()
    })
    .await;
}
