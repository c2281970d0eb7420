//! What the suite does not know of: the database itself.

#![allow(clippy::unwrap_used, reason = "what fails here fails a test")]

use std::{
    path::Path,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use portalock_core::{BackendErrorKind, FencingToken, Lock, Policy};
use portalock_example_custom_backend::SqliteBackend;
use tokio::runtime::{Builder, Runtime};

const LEASE: Duration = Duration::from_secs(10);

async fn one_token(file: &Path) -> FencingToken {
    let lock = Lock::new(SqliteBackend::open(file, LEASE).unwrap(), "job").unwrap();
    let guard = lock.acquire().await.unwrap();
    let token = guard.token().unwrap();
    guard.release().await.unwrap();
    token
}

#[test]
fn the_whole_backend_is_under_200_lines() {
    let lines = include_str!("../src/lib.rs").lines().count();
    assert!(lines < 200, "{lines} lines");
}

#[tokio::test]
async fn tokens_grow_over_a_deleted_database() {
    let directory = tempfile::tempdir().unwrap();
    let before = one_token(&directory.path().join("one.db")).await;
    let after = one_token(&directory.path().join("another.db")).await;
    assert!(after > before, "{after} after {before}");
}

#[tokio::test]
async fn tokens_grow_although_the_clock_was_set_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("locks.db");
    one_token(&file).await;
    let far_ahead = i64::MAX - 10;
    let database = rusqlite::Connection::open(&file).unwrap();
    database
        .execute("UPDATE tokens SET last = ?1", [far_ahead])
        .unwrap();
    assert_eq!(
        one_token(&file).await.get(),
        u64::try_from(far_ahead).unwrap() + 1
    );
}

#[test]
fn a_new_database_is_opened_by_many_at_once() {
    const OPENERS: usize = 16;
    let directory = tempfile::tempdir().unwrap();
    let file: Arc<Path> = directory.path().join("locks.db").into();
    let start = Arc::new(Barrier::new(OPENERS));
    let openers: Vec<_> = (0..OPENERS)
        .map(|_| {
            let (file, start) = (file.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                SqliteBackend::open(file, LEASE).map(drop)
            })
        })
        .collect();
    for opener in openers {
        opener.join().unwrap().unwrap();
    }
}

/// The lease is renewed on the library's own thread.
#[test]
fn a_holder_whose_runtime_stands_still_keeps_its_lock() {
    let directory = tempfile::tempdir().unwrap();
    let lock = || {
        let lease = Duration::from_secs(2);
        let backend = SqliteBackend::open(directory.path().join("locks.db"), lease).unwrap();
        Lock::new(backend, "job").unwrap()
    };
    let halted = runtime();
    let guard = halted.block_on(lock().acquire()).unwrap();
    let two_leases = Policy::new().with_timeout(Duration::from_secs(4));
    let next = runtime().block_on(async { lock().acquire_with(&two_leases).await });
    assert!(next.unwrap_err().is_contention());
    assert!(!guard.is_lost());
}

/// Nothing can be renewed, as when the process is stopped: only the clock tells.
#[test]
fn a_holder_knows_that_it_is_lost_before_another_is_granted() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("locks.db");
    let lock = |lease| Lock::new(SqliteBackend::open(&file, lease).unwrap(), "job").unwrap();
    let guard = runtime()
        .block_on(lock(Duration::from_secs(1)).acquire())
        .unwrap();
    let mut other = rusqlite::Connection::open(&file).unwrap();
    let busy = other
        .transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)
        .unwrap();
    runtime().block_on(guard.lost());
    drop(busy);
    let patient = Policy::new().with_timeout(Duration::from_secs(20));
    let next = runtime().block_on(async { lock(LEASE).acquire_with(&patient).await });
    assert!(next.unwrap().token() > guard.token());
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn what_can_not_be_a_lock_database_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("notes.txt");
    std::fs::write(
        &text,
        "certainly not a database, at any length you may like\n".repeat(100),
    )
    .unwrap();
    let nowhere = directory.path().join("no such directory/locks.db");
    let file = directory.path().join("locks.db");
    for (file, lease, kind) in [
        (&text, LEASE, BackendErrorKind::Corrupt),
        (&nowhere, LEASE, BackendErrorKind::NotFound),
        (&file, Duration::ZERO, BackendErrorKind::Misconfigured),
        (&file, Duration::MAX, BackendErrorKind::Misconfigured),
    ] {
        let error = SqliteBackend::open(file, lease).unwrap_err();
        assert_eq!(error.kind(), kind, "{}: {error}", file.display());
    }
}
