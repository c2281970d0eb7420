//! What is left behind by those who went away, and who sees to it.

use std::time::Duration;

use portalock_core::{BackendErrorKind, Lease, LockError, Loss, clock::Instant};

use crate::scripted::{Call, Scripted, Step};

#[tokio::test(start_paused = true)]
async fn a_grant_after_the_deadline_is_released_in_the_background() {
    let backend = Scripted::new([Step::GrantAfter(Duration::from_millis(5_001))]);
    assert!(backend.lock().acquire().await.is_err());
    assert!(
        backend.releases().is_empty(),
        "released before the attempt had ended"
    );
    backend.first_release().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_a_waiter_withdraws_its_place() {
    let backend = Scripted::new([Step::Contended]).listening();
    let lock = backend.lock();
    {
        let mut waiting = std::pin::pin!(lock.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
    let Some((_, Call::Attempt(owner))) = backend.0.calls.lock().unwrap().first().cloned() else {
        panic!()
    };
    assert_eq!(backend.first_release().await, owner);
}

#[tokio::test(start_paused = true)]
async fn dropping_an_attempt_in_flight_sees_it_out_before_the_release() {
    let backend = Scripted::new([Step::GrantAfter(Duration::from_secs(2))]);
    let lock = backend.lock();
    {
        let mut waiting = std::pin::pin!(lock.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
    }
    backend.first_release().await;
    assert_eq!(
        backend.0.start.lock().unwrap().unwrap().elapsed(),
        Duration::from_secs(2)
    );
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_goes_on_in_the_background() {
    let backend = Scripted::new([Step::Grant]).failing_releases(3);
    let guard = backend.lock().acquire().await.unwrap();
    let error = guard.release().await.unwrap_err();
    assert!(matches!(error, LockError::Backend { .. }));
    while backend.releases().len() < 4 {
        backend.0.released.notified().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_reaper_stops_once_the_lease_has_ended() {
    let lease = Lease::until(Instant::now() + Duration::from_secs(3));
    let backend = Scripted::new([Step::Grant]).failing_releases(u32::MAX);
    *backend.0.lease.lock().unwrap() = Some(lease);
    drop(backend.lock().acquire().await.unwrap());
    tokio::time::sleep(Duration::from_secs(60)).await;
    let after_the_lease = backend.releases().len();
    assert!(after_the_lease > 1, "one try is no retry");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(backend.releases().len(), after_the_lease);
}

#[tokio::test(start_paused = true)]
async fn a_released_guards_signal_outlives_the_session_in_silence() {
    let session = Lease::unbounded();
    let backend = Scripted::new([Step::Grant]);
    *backend.0.lease.lock().unwrap() = Some(session.clone());
    let released = backend.lock().acquire().await.unwrap();
    let dropped = backend.lock().acquire().await.unwrap();
    let held = backend.lock().acquire().await.unwrap();
    let signals = [released.lost_signal(), dropped.lost_signal()];
    released.release().await.unwrap();
    drop(dropped);
    session.end(Loss::SessionEnded("all its locks with it".into()));
    assert!(held.is_lost());
    assert!(
        signals.iter().all(|signal| !signal.is_lost()),
        "lost fired on a normal release"
    );
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_failed_is_withdrawn_even_if_the_next_was_answered() {
    let fails = Step::Fails(BackendErrorKind::Unavailable);
    let backend = Scripted::new([fails, Step::Contended]);
    assert!(backend.lock().try_acquire().await.is_err());
    backend.first_release().await;
}

#[test]
fn a_guard_dropped_outside_its_runtime_is_released() {
    let backend = Scripted::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let guard = runtime.block_on(async {
        *backend.0.start.lock().unwrap() = Some(Instant::now());
        backend.0.steps.lock().unwrap().push_back(Step::Grant);
        backend.lock().acquire().await.unwrap()
    });
    drop(runtime);
    let owner = guard.owner();
    drop(guard);
    let elsewhere = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let released = elsewhere.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), backend.first_release()).await
    });
    assert_eq!(released.unwrap(), owner);
}
