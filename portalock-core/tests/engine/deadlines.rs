//! Timeouts, attempts at a contended lock, and answers at the deadline.

use std::time::Duration;

use portalock_core::{
    BackendErrorKind, Lock, LockError, MemoryBackend, Patience, Policy, clock::Instant,
};

use crate::scripted::{Scripted, Step, seconds};

#[tokio::test(start_paused = true)]
async fn a_free_lock_takes_one_attempt_and_no_time() {
    let backend = Scripted::new([Step::Grant]);
    let start = Instant::now();
    let guard = backend.lock().acquire().await.unwrap();
    assert_eq!(
        (backend.attempts().len(), start.elapsed()),
        (1, Duration::ZERO)
    );
    guard.release().await.unwrap();
    assert_eq!(backend.releases().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_contended_acquire_waits_its_whole_timeout_and_not_longer() {
    let backend = Scripted::new([Step::Contended]);
    let start = Instant::now();
    let error = backend.lock().acquire().await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let LockError::Timeout {
        waited,
        attempts,
        last_error,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(waited, Duration::from_secs(5));
    assert_eq!(attempts as usize, backend.attempts().len());
    assert!(last_error.is_none());
}

#[tokio::test(start_paused = true)]
async fn looks_grow_apart_up_to_the_check_interval_and_the_last_is_just_before_the_deadline() {
    let backend = Scripted::new([Step::Contended]);
    let policy = seconds(2).with_jitter(0.0).unwrap();
    backend.lock().acquire_with(&policy).await.unwrap_err();
    let times: Vec<_> = backend.attempts().iter().map(Duration::as_millis).collect();
    assert_eq!(
        times,
        [
            0, 1, 3, 7, 15, 31, 63, 127, 255, 505, 755, 1005, 1255, 1505, 1755, 1998
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_lock_freed_between_the_last_two_looks_is_not_missed() {
    let steps = [Step::Contended, Step::Contended, Step::Grant];
    let backend = Scripted::new(steps);
    let policy = seconds(3)
        .with_check_interval(Duration::from_secs(60))
        .and_then(|policy| policy.with_first_check(Duration::from_secs(1)))
        .and_then(|policy| policy.with_jitter(0.0))
        .unwrap();
    assert!(backend.lock().acquire_with(&policy).await.is_ok());
    assert_eq!(backend.attempts().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_last_look_comes_early_enough_for_its_answer() {
    let round_trip = Duration::from_millis(100);
    let backend = Scripted::new([Step::ContendedAfter(round_trip)]);
    let policy = seconds(3)
        .with_first_check(Duration::from_secs(60))
        .and_then(|policy| policy.with_check_interval(Duration::from_secs(60)))
        .unwrap();
    backend.lock().acquire_with(&policy).await.unwrap_err();
    let last = *backend.attempts().last().unwrap();
    assert_eq!(last + 2 * round_trip, Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_stall_ends_at_the_deadline_and_never_reads_as_locked() {
    let backend = Scripted::new([Step::Stalls]);
    let start = Instant::now();
    let error = backend.lock().acquire_with(&seconds(3)).await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert!(!error.is_contention(), "{error}");
    let LockError::Timeout {
        last_error: Some(last),
        attempts: 1,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(last.kind(), BackendErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_stall_after_contention_ends_at_the_same_deadline() {
    let backend = Scripted::new([
        Step::Contended,
        Step::ContendedAfter(Duration::from_secs(1)),
        Step::Stalls,
    ]);
    let start = Instant::now();
    let error = backend.lock().acquire_with(&seconds(10)).await.unwrap_err();
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert!(
        !error.is_contention(),
        "eight silent seconds are no contention: {error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_grant_at_the_very_deadline_counts() {
    let backend = Scripted::new([Step::GrantAfter(Duration::from_secs(5))]);
    let guard = backend.lock().acquire().await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(backend.releases().len(), 1, "released once, by its guard");
}

#[tokio::test(start_paused = true)]
async fn try_acquire_makes_one_attempt_that_asks_for_no_place() {
    let backend = Scripted::new([Step::Contended]);
    let error = backend.lock().try_acquire().await.unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }));
    assert_eq!(backend.attempts().len(), 1);
    assert_eq!(*backend.0.patience.lock().unwrap(), Some(Patience::Once));
    assert!(
        backend.releases().is_empty(),
        "there was nothing to withdraw"
    );
}

#[tokio::test(start_paused = true)]
async fn try_acquire_ends_although_the_policy_waits_forever() {
    let backend = Scripted::new([Step::Stalls]);
    let lock = backend.lock().with_policy(Policy::forever());
    let start = Instant::now();
    let error = tokio::time::timeout(Duration::from_secs(3600), lock.try_acquire()).await;
    let error = error.expect("it waits forever").unwrap_err();
    assert!(!error.is_contention(), "{error}");
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn fail_when_locked_does_not_wait() {
    let backend = Scripted::new([Step::Contended]);
    let start = Instant::now();
    let policy = Policy::forever().with_fail_when_locked(true);
    let error = backend.lock().acquire_with(&policy).await.unwrap_err();
    assert!(matches!(error, LockError::AlreadyLocked { .. }));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_zero_timeout_is_one_attempt_that_may_take_a_round_trip() {
    let round_trip = Duration::from_millis(80);
    let backend = Scripted::new([
        Step::GrantAfter(round_trip),
        Step::ContendedAfter(round_trip),
        Step::Stalls,
    ]);
    let (lock, none) = (backend.lock(), Policy::new().with_timeout(Duration::ZERO));
    assert!(lock.acquire_with(&none).await.is_ok());
    let error = lock.acquire_with(&none).await.unwrap_err();
    assert!(
        matches!(error, LockError::Timeout { attempts: 1, .. }) && error.is_contention(),
        "{error}"
    );
    let start = Instant::now();
    assert!(!lock.acquire_with(&none).await.unwrap_err().is_contention());
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn without_a_timeout_a_call_waits_for_days() {
    let backend = Scripted::new([
        Step::ContendedAfter(Duration::from_secs(86_400)),
        Step::Contended,
        Step::Grant,
    ]);
    assert!(
        backend
            .lock()
            .acquire_with(&Policy::forever())
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn after_a_last_attempt_that_was_quick_there_is_a_later_one() {
    let [slow, quick] = [100, 5].map(Duration::from_millis);
    let contended = [slow, slow, quick].map(Step::ContendedAfter);
    let backend = Scripted::new(contended).listening();
    let timeout = Duration::from_secs(2);
    let policy = Policy::new().with_timeout(timeout);
    let policy = policy.with_check_interval(timeout * 2).unwrap();
    let error = backend.lock().acquire_with(&policy).await.unwrap_err();
    assert!(error.is_contention(), "{error}");
    // It subscribes after the first one, and tries again.
    // Each is as early as two of the answer before it.
    let last = [1_800, 1_990].map(Duration::from_millis);
    assert_eq!(backend.attempts()[2..], last);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_in_memory_is_told_and_need_not_look() {
    let lock = Lock::new(MemoryBackend::new(), "held").unwrap();
    let _held = lock.acquire().await.unwrap();
    let patient = Policy::new().with_timeout(Duration::from_secs(30));
    let LockError::Timeout { attempts, .. } = lock.acquire_with(&patient).await.unwrap_err() else {
        panic!("not a timeout");
    };
    assert!(
        attempts <= 2,
        "{attempts}: the first, and one before the deadline"
    );
}
