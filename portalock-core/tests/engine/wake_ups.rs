//! Waiters that are woken, get a grant, or lose their place.

use std::time::Duration;

use portalock_core::{
    BackendError, BackendErrorKind, Grant, Policy, Wake, clock::Instant, wakeups,
};

use crate::scripted::{Scripted, Step, seconds};

#[tokio::test(start_paused = true)]
async fn a_wake_up_is_followed_at_once_by_a_look() {
    let backend = Scripted::new([Step::Contended, Step::Contended, Step::Grant]).listening();
    let policy = Policy::forever()
        .with_check_interval(Duration::from_secs(3600))
        .unwrap();
    let waiter = tokio::spawn({
        let lock = backend.lock();
        async move { lock.acquire_with(&policy).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(
        backend.attempts().len(),
        2,
        "tries, subscribes and tries again, then sleeps"
    );
    backend.line().wake();
    drop(waiter.await.unwrap().unwrap());
    assert_eq!(backend.attempts()[2], Duration::from_secs(10));
}

/// Another waiter was quicker, or the lock is about to be free.
#[tokio::test(start_paused = true)]
async fn after_a_wake_up_in_vain_the_next_look_comes_soon() {
    let contended = [(); 3].map(|()| Step::Contended);
    let backend = Scripted::new(contended.into_iter().chain([Step::Grant])).listening();
    let policy = Policy::forever()
        .with_check_interval(Duration::from_secs(3600))
        .unwrap();
    let lock = backend.lock();
    let mut waiter = std::pin::pin!(lock.acquire_with(&policy));
    assert!(futures_util::poll!(&mut waiter).is_pending());
    backend.line().wake();
    let start = Instant::now();
    drop(waiter.await.unwrap());
    assert!(start.elapsed() < Duration::from_secs(1), "{start:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_wake_up_costs_one_check_interval() {
    let backend = Scripted::new([Step::Contended, Step::Contended, Step::Grant]).listening();
    let start = Instant::now();
    assert!(
        backend
            .lock()
            .acquire_with(&Policy::forever())
            .await
            .is_ok()
    );
    assert!(start.elapsed() <= Policy::DEFAULT_CHECK_INTERVAL);
}

#[tokio::test(start_paused = true)]
async fn a_grant_by_wake_up_needs_no_further_attempt() {
    let backend = Scripted::new([Step::Contended]).listening();
    let waiter = tokio::spawn({
        let lock = backend.lock();
        async move { lock.acquire().await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let before = backend.attempts().len();
    backend.line().grant(Grant::new());
    drop(waiter.await.unwrap().unwrap());
    assert_eq!(backend.attempts().len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_ends_with_its_session_is_taken_anew() {
    let backend = Scripted::new([
        Step::Contended,
        Step::Contended,
        Step::Contended,
        Step::Contended,
    ])
    .listening();
    let policy = Policy::forever()
        .with_check_interval(Duration::from_secs(3600))
        .unwrap();
    let waiter = tokio::spawn({
        let lock = backend.lock();
        async move { lock.acquire_with(&policy).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    backend.line().fail(BackendError::new(
        BackendErrorKind::SessionEnded,
        "the connection closed",
    ));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        backend.0.lines.lock().unwrap().len(),
        2,
        "listens on the new session"
    );
    backend.line().grant(Grant::new());
    drop(waiter.await.unwrap().unwrap());
}

/// As if the session was closed between the attempt and the subscription: the next attempt begins another session.
#[tokio::test(start_paused = true)]
async fn a_subscription_that_fails_is_made_again() {
    let advice = Duration::from_secs(3600);
    let backend = Scripted::new([Step::Queued(advice)]).listening();
    *backend.0.subscription_fails.lock().unwrap() = 1;
    let waiter = tokio::spawn({
        let lock = backend.lock();
        async move { lock.acquire_with(&Policy::forever()).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(backend.attempts().len(), 2);
    backend.line().grant(Grant::new());
    drop(waiter.await.unwrap().unwrap());
}

/// No wake-up comes to such a waiter, although its policy relies on them.
#[tokio::test(start_paused = true)]
async fn a_place_that_ends_is_taken_anew_soon_though_the_subscription_fails() {
    let backend = Scripted::new([Step::Queued(Duration::from_secs(3600))]).listening();
    let policy = Policy::forever()
        .with_check_interval(Duration::MAX)
        .unwrap();
    let waiter = tokio::spawn({
        let lock = backend.lock();
        async move { lock.acquire_with(&policy).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    *backend.0.subscription_fails.lock().unwrap() = 1;
    let ended = BackendErrorKind::SessionEnded;
    backend.line().fail(BackendError::new(ended, "it ended"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(backend.attempts().len(), 3);
    backend.line().grant(Grant::new());
    drop(waiter.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_fails_for_good_ends() {
    let backend = Scripted::new([Step::Contended]).listening();
    let lock = backend.lock();
    let policy = Policy::forever();
    let mut waiter = std::pin::pin!(lock.acquire_with(&policy));
    assert!(futures_util::poll!(&mut waiter).is_pending());
    let error = BackendError::new(BackendErrorKind::PermissionDenied, "no longer allowed");
    backend.line().fail(error);
    let ended = tokio::time::timeout(Duration::from_secs(3600), waiter).await;
    let error = ended.expect("it waits on").unwrap_err();
    assert!(!error.is_retryable(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_subscription_that_fails_for_good_ends_the_wait() {
    let backend = Scripted::new([Step::Contended]).listening();
    *backend.0.subscription_fails.lock().unwrap() = u32::MAX;
    *backend.0.subscription_error.lock().unwrap() = Some(BackendErrorKind::PermissionDenied);
    let error = backend.lock().acquire().await.unwrap_err();
    assert!(!error.is_retryable() && !error.is_contention(), "{error}");
    assert_eq!(backend.attempts().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_line_leaves_the_engine_looking_by_itself() {
    let advice = Duration::from_secs(3600);
    let backend = Scripted::new([Step::Queued(advice), Step::Queued(advice), Step::Grant]);
    let waiter = tokio::spawn({
        let lock = backend.clone().listening().lock();
        async move { lock.acquire_with(&Policy::forever()).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(backend.attempts().len(), 1, "it counts on a wake-up");
    backend.0.lines.lock().unwrap().clear();
    let start = Instant::now();
    drop(waiter.await.unwrap().unwrap());
    assert!(start.elapsed() <= Policy::DEFAULT_CHECK_INTERVAL * 2);
    assert_eq!(
        backend.attempts().len(),
        3,
        "the advice is not followed again"
    );
}

/// Such an interval relies on wake-ups.
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_line_falls_silent_looks_soon_whatever_the_check_interval_is() {
    let queued = Step::Queued(Duration::from_secs(3600));
    let backend = Scripted::new([queued.clone(), queued, Step::Grant]);
    let policy = Policy::forever()
        .with_check_interval(Duration::MAX)
        .unwrap();
    let waiter = tokio::spawn({
        let lock = backend.clone().listening().lock();
        async move { lock.acquire_with(&policy).await }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(backend.attempts().len(), 1);
    backend.0.lines.lock().unwrap().clear();
    let granted = tokio::time::timeout(Duration::from_secs(1), waiter).await;
    drop(granted.expect("it still pauses").unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_could_not_subscribe_looks_by_itself() {
    let queued = Step::Queued(Duration::from_secs(3600));
    let backend = Scripted::new([queued.clone(), queued, Step::Grant]).listening();
    *backend.0.subscription_fails.lock().unwrap() = u32::MAX;
    let start = Instant::now();
    let lock = backend.lock();
    let granted = lock.acquire_with(&Policy::forever()).await;
    drop(granted.unwrap());
    assert!(start.elapsed() <= Policy::DEFAULT_CHECK_INTERVAL * 2);
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_reads_as_contention_also_to_a_waiter_that_can_not_subscribe() {
    let backend = Scripted::new([Step::Queued(Duration::from_secs(3600))]).listening();
    *backend.0.subscription_fails.lock().unwrap() = u32::MAX;
    let error = backend.lock().acquire_with(&seconds(5)).await.unwrap_err();
    assert!(error.is_contention(), "{error:?}");
    // It polls at the pace of its policy.
    let attempts = backend.attempts().len();
    assert!((3..60).contains(&attempts), "{attempts} attempts");
}

#[tokio::test]
async fn the_last_sender_tells_that_it_goes() {
    let (sender, mut line) = wakeups();
    drop(sender);
    assert!(matches!(line.next().await, Wake::Silent));
}
