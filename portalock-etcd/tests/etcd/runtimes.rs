//! A session outlives the runtime that started it, and survives a runtime that is blocked.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use portalock_core::{BackendErrorKind, Lock, LockError, blocking};
use portalock_testkit::refuses_in_a_child;
use tokio::runtime::{Builder, Runtime};

use portalock_etcd::{EtcdBackend, EtcdSettings};

use crate::support::{Server, patient, until};

const LEASE: Duration = Duration::from_secs(3);

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_lock_is_kept_while_its_runtime_stands_still() {
    let server = Server::start();
    let blocked = current_thread();
    let (client, guard) = blocked.block_on(async {
        let client = server
            .client_with(|settings| settings.with_lease_time(LEASE).unwrap())
            .await;
        let lock = Lock::new(client.clone(), "still").unwrap();
        (client, lock.acquire().await.unwrap())
    });
    // Now nothing polls the runtime, as in a computation that takes three leases.
    let until = Instant::now() + LEASE * 3;
    let other = current_thread();
    other.block_on(async {
        let rival = Lock::new(server.client().await, "still").unwrap();
        while Instant::now() < until {
            assert!(!guard.is_lost());
            assert!(rival.try_acquire().await.is_err(), "two hold");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    blocked.block_on(guard.release()).unwrap();
    drop(client);
}

#[test]
fn a_session_outlives_the_runtime_that_started_it_and_is_revoked_at_the_end() {
    let server = Server::start();
    let first = Runtime::new().unwrap();
    let client = first.block_on(
        server.client_with(|settings| settings.with_lease_time(Duration::from_secs(600)).unwrap()),
    );
    drop(first);
    let second = current_thread();
    let holder = second.block_on(async {
        let lock = Lock::new(server.client().await, "handed").unwrap();
        lock.acquire().await.unwrap()
    });
    let waiting = std::thread::spawn({
        let lock = blocking::Lock::new(client.clone(), "handed")
            .unwrap()
            .with_policy(patient());
        move || drop(lock.acquire().unwrap())
    });
    second.block_on(async {
        server.waiters("handed", 1).await;
        holder.release().await.unwrap();
    });
    waiting.join().unwrap();
    drop(client);
    second.block_on(async {
        server
            .until("the lease is revoked", async || {
                server.session_keys().await.len() <= 1 && server.lock_keys().await.is_empty()
            })
            .await;
    });
}

#[test]
fn a_backend_serves_one_short_runtime_after_another() {
    let server = Server::start();
    let client = current_thread()
        .block_on(server.client_with(|settings| settings.with_lease_time(LEASE).unwrap()));
    for _ in 0..3 {
        let runtime = current_thread();
        let lock = Lock::new(client.clone(), "short").unwrap();
        let guard = runtime.block_on(lock.acquire_with(&patient())).unwrap();
        drop(runtime);
        assert!(!guard.is_lost());
        // Its runtime is gone, so the release is made in the background.
        drop(guard);
    }
}

/// The cluster has no leader, so each call waits for an election.
#[test]
fn a_look_whose_runtime_has_ended_fails_and_its_timers_do_not_panic() {
    let server = Server::cluster();
    let endpoint = server.etcd.endpoints()[0].clone();
    let settings = EtcdSettings::new([endpoint]).unwrap();
    let first = current_thread();
    let client = first.block_on(EtcdBackend::with_settings(settings));
    let lock = Lock::new(client.unwrap(), "ended").unwrap();
    for member in [1, 2] {
        server.etcd.kill(member);
    }
    first.block_on(async {
        until("there is no leader", async || lock.inspect().await.is_err()).await;
    });
    for round in 0..8 {
        let (own, other) = (current_thread(), current_thread());
        let mut looking = pin!(lock.inspect());
        // At different moments of its pauses.
        let brief = Duration::from_millis(300 + 37 * round);
        let early = own.block_on(async { tokio::time::timeout(brief, &mut looking).await });
        drop(own);
        if early.is_err() {
            other.block_on(looking).unwrap_err();
        }
    }
}

#[test]
fn a_call_outside_a_runtime_says_what_to_do() {
    let server = Server::start();
    let own = current_thread();
    let lock = Lock::new(own.block_on(server.client()), "outside").unwrap();
    let refused = |poll: Poll<LockError>| {
        let Poll::Ready(LockError::Backend { source, .. }) = poll else {
            panic!("{poll:?}");
        };
        assert_eq!(source.kind(), BackendErrorKind::Misconfigured, "{source}");
    };
    let mut context = Context::from_waker(Waker::noop());
    let mut acquires = Box::pin(lock.acquire());
    refused(acquires.as_mut().poll(&mut context).map(Result::unwrap_err));
    let mut looks = pin!(lock.inspect());
    refused(looks.as_mut().poll(&mut context).map(Result::unwrap_err));
    // And nothing is left of them.
    drop(acquires);
    drop(own.block_on(lock.acquire_with(&patient())).unwrap());
}

#[test]
fn a_forked_child_is_refused_what_needs_no_session_too() {
    let server = Server::start();
    refuses_in_a_child(&current_thread().block_on(server.client())).unwrap();
}
